from __future__ import annotations

import errno
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from render import samples

import nndiag
import nndiag.api
from nndiag import cli
from nndiag.errors import CaptureError, TargetError

NET = """
import functools
from dataclasses import dataclass

import torch
from torch import nn

print("a word from the user's file")


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.hidden, self.act, self.head = nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.act(self.hidden(x)))


def sick():
    net = Net()
    nn.init.constant_(net.hidden.bias, -100.0)
    return net


def batch():
    torch.manual_seed(0)
    return torch.randn(128, 4), torch.randint(0, 2, (128,))


def inputs():
    return batch()[0]


def labels():
    return batch()[1]


def fails():
    return {}["missing"]


def leaves():
    raise SystemExit("usage: train.py DATA")


def wide(width, depth=1):
    return Net(width)


@dataclass
class Holder:
    net: object


net, loss = Net(), nn.CrossEntropyLoss()
wide_net = functools.partial(wide, 16)
held = Holder(net)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with the user's file; what it imports is forgotten afterwards."""
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run(project, monkeypatch, capsys):
    """``run("check", "net.py:net", ...)`` gives the exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nndiag", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def stub(monkeypatch):
    """``check`` gives the report that is put here, and says what it was called with."""
    samples.use_sample_rules(monkeypatch)

    def check(*arguments, **options):
        check.arguments, check.options = arguments, options
        return check.report

    check.report = samples.sick()
    monkeypatch.setattr(nndiag.api, "check", check)
    return check


CHECK = ("check", "net.py:net", "--batch", "net.py:batch")


class TestExit:
    def test_findings_are_one(self, run, stub):
        assert run(*CHECK)[0] == 1

    def test_health_is_zero(self, run, stub):
        stub.report = samples.healthy()

        status, out, _ = run(*CHECK)

        assert status == 0
        assert "No problem found in the network (6 rules)." in out

    @pytest.mark.parametrize(
        ("kept", "fail_on", "status"),
        [
            ("error", "error", 1), ("warning", "error", 0), ("warning", "warning", 1),
            ("note", "warning", 0), ("error", "never", 0),
        ],
    )  # fmt: skip
    def test_fail_on_says_what_is_grave_enough(self, run, stub, kept, fail_on, status):
        stub.report = samples.Report(
            stub.report.snapshot,
            tuple(f for f in stub.report.findings if f.severity == kept), (), (),
        )  # fmt: skip

        assert run(*CHECK, "--fail-on", fail_on)[0] == status

    @pytest.mark.parametrize(("fail_on", "status"), [("error", 1), ("never", 0)])
    def test_a_crashed_rule_fails_whoever_wants_to_fail(self, run, stub, fail_on, status):
        stub.report = samples.Report(stub.report.snapshot, (), stub.report.outcomes, ())

        assert run(*CHECK, "--fail-on", fail_on)[0] == status

    def test_fail_on_of_the_settings_is_heard_and_the_option_is_over_it(self, run, stub, project):
        (project / "pyproject.toml").write_text('[tool.nndiag]\nfail-on = "never"')

        assert run(*CHECK)[0] == 0
        assert run(*CHECK, "--fail-on", "warning")[0] == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            ("check", "net.py:net"), ("check",), (*CHECK, "--format", "pdf"),
            (*CHECK, "--fail-on", "note"), ("nonsense",), (*CHECK, "--no-such-option"),
        ],
    )  # fmt: skip
    def test_wrong_usage_is_two(self, run, stub, arguments):
        status, out, err = run(*arguments)

        assert status == 2
        assert out == ""
        assert "Usage" in err

    def test_an_error_of_nndiags_is_two_and_one_message(self, run, stub, monkeypatch):
        def check(*arguments, **options):
            raise CaptureError("the model raised in encoder.2")

        monkeypatch.setattr(nndiag.api, "check", check)

        status, out, err = run(*CHECK)

        assert (status, out) == (2, "")
        assert err.endswith("CaptureError: the model raised in encoder.2\n")
        assert "Traceback" not in err

    def test_a_fault_in_nndiag_is_two_and_shows_where(self, run, stub, monkeypatch):
        monkeypatch.setattr(nndiag.api, "check", lambda *a, **o: 1 / 0)

        status, _, err = run(*CHECK)

        assert status == 2
        assert "Traceback" in err
        assert "This is an error in nndiag, not in your model." in err


class TestArguments:
    def test_targets_and_options_reach_check(self, run, stub):
        run(
            "check", "net.py:Net", "--batch", "net.py:inputs", "--target", "net.py:labels",
            "--loss", "torch.nn.functional:cross_entropy", "--select", "ND1,init-scale",
            "--select", "ND4", "--ignore", "ND104", "--threshold", "dead-relu.share=0.5",
            "--threshold", "dead-relu.samples=20", "--seed", "3",
        )  # fmt: skip

        model, batch, target, loss = stub.arguments
        assert type(model).__name__ == "Net"
        assert batch.shape == (128, 4)
        assert target.shape == (128,)
        assert loss.__name__ == "cross_entropy"
        assert stub.options == {
            "select": ["ND1", "init-scale", "ND4"],
            "ignore": ["ND104"],
            "thresholds": {"dead-relu.share": 0.5, "dead-relu.samples": 20.0},
            "seed": 3,
        }

    def test_an_optimiser_is_an_object_a_class_or_a_function_of_the_parameters(self, run, stub):
        Path("opt.py").write_text(
            "import torch\nfrom net import net\nadam = torch.optim.Adam(net.parameters())\n"
            "def sgd(parameters): return torch.optim.SGD(parameters, 0.1)\n"
        )
        for target, name in (("opt.py:adam", "Adam"), ("opt.py:sgd", "sgd"),
                             ("torch.optim:AdamW", "AdamW")):  # fmt: skip
            run(*CHECK, "--optimizer", target)
            given = stub.options["optimizer"]
            assert getattr(given, "__name__", type(given).__name__) == name

    def test_what_is_not_given_is_left_to_check(self, run, stub):
        run(*CHECK)

        assert stub.arguments[2:] == (None, None)
        assert stub.options == dict.fromkeys(("select", "ignore", "thresholds", "seed"))

    @pytest.mark.parametrize("text", ["dead-relu.share", "dead-relu.share=much", "share=0.5", "="])
    def test_a_threshold_that_cannot_be_read_says_how_to_write_one(self, run, stub, text):
        status, _, err = run(*CHECK, "--threshold", text)

        assert status == 2
        assert f"--threshold {text}: write rule.name=number, such as dead-relu.share=0.5" in err


class TestOutput:
    def test_the_report_goes_to_stdout_and_the_users_words_to_stderr(self, run, stub):
        _, out, err = run(*CHECK)

        assert out == f"{stub.report}\n"
        assert "a word from the user's file" in err

    @pytest.mark.parametrize(
        "form",
        ["json", "html", "csv", "markdown", "sarif", "junit", "github", "concise"],
    )
    def test_one_format_goes_to_stdout_as_it_would_to_a_file(self, run, stub, form, tmp_path):
        _, out, _ = run(*CHECK, "--format", form)
        run(*CHECK, "--format", form, "--output", tmp_path / "reports")

        names = {
            "csv": "findings.csv", "markdown": "report.md", "junit": "report.junit.xml",
            "github": "report.github.txt", "concise": "report.txt",
        }  # fmt: skip
        name = names.get(form, f"report.{form}")
        assert out == (tmp_path / "reports" / name).read_text(encoding="utf-8")

    def test_reports_with_names_of_their_own_share_a_folder_and_an_index(self, run, stub, tmp_path):
        for name in ("unet", "head"):
            run(*CHECK, "--output", tmp_path, "--name", name)

        names = {path.name for path in tmp_path.iterdir()}
        assert {"unet.html", "unet.json", "unet.findings.csv", "head.html"} <= names
        text = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert 'href="unet.html"' in text
        assert 'href="head.html"' in text

    @pytest.mark.parametrize("name", ["a/b", "..", "", "index", "a\\b"])
    def test_a_name_is_no_path(self, run, stub, tmp_path, name):
        status, _, err = run(*CHECK, "--output", tmp_path / "out", "--name", name)

        assert status == 2
        assert "not a path" in err
        assert not (tmp_path / "out").exists()

    def test_several_formats_need_a_folder(self, run, stub):
        status, _, err = run(*CHECK, "--format", "json", "--format", "html")

        assert status == 2
        assert "--output DIR" in err

    def test_a_folder_gets_every_format_where_none_is_named(self, run, stub, tmp_path):
        _, out, _ = run(*CHECK, "--output", tmp_path / "a" / "b")

        assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
            "findings.csv", "index.html", "layers.csv", "parameters.csv", "report.html",
            "report.json",
            "report.junit.xml",
            "report.md", "report.sarif",
        ]  # fmt: skip
        assert "dead-relu" in out

    def test_a_folder_gets_only_the_formats_that_are_named(self, run, stub, tmp_path):
        run(*CHECK, "--format", "json", "--format", "csv", "--output", tmp_path / "r")

        assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [
            "findings.csv", "layers.csv", "parameters.csv", "report.json",
        ]  # fmt: skip

    def test_a_folder_that_cannot_be_written_is_two(self, run, stub):
        status, _, err = run(*CHECK, "--output", "net.py")

        assert status == 2
        assert "OutputError" in err
        assert Path("net.py").read_text(encoding="utf-8") == NET

    def test_quiet_leaves_the_exit_status_to_speak(self, run, stub):
        status, out, _ = run(*CHECK, "--quiet")

        assert (status, out) == (1, "")

    def test_quiet_still_gives_the_format_that_was_asked_for(self, run, stub):
        assert json.loads(run(*CHECK, "--quiet", "--format", "json")[1])["schema"] == 1

    def test_colour_is_for_terminals_and_for_those_who_force_it(self, run, stub, monkeypatch):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        assert "\x1b" not in run(*CHECK)[1]

        monkeypatch.setenv("FORCE_COLOR", "1")
        assert "\x1b[1;31merror" in run(*CHECK)[1]

        monkeypatch.setenv("NO_COLOR", "1")
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]", run(*CHECK)[1])

    def test_a_console_that_lacks_a_character_gets_it_escaped(self, project):
        code = "from nndiag.cli import main; print('before'); main()"
        done = subprocess.run(
            [sys.executable, "-c", code, "rules"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": _root()},
        )

        assert done.returncode == 0, done.stderr


def _root():
    return str(Path(nndiag.__file__).parents[1])


class TestTargets:
    @pytest.fixture(autouse=True)
    def _project(self, project):
        self.project = project

    def test_a_file_and_a_module_are_two_ways_to_say_the_same(self):
        assert type(cli.load("net.py:net")).__name__ == "Net"
        assert cli.load("net:net") is cli.load("net.py:net")

    def test_a_file_is_run_once_however_often_it_is_named(self, capsys):
        assert cli.load("net.py:net") is cli.load(f"{self.project}/net.py:net")
        assert capsys.readouterr().out.count("a word") == 1

    def test_classes_functions_and_partials_are_called_and_objects_are_not(self):
        net = cli.load("net.py:net")

        assert cli.load("net.py:held.net") is net
        assert type(cli.load("net.py:Net")) is type(net)
        assert cli.load("net.py:Net") is not net
        assert cli.load("net.py:wide_net").hidden.out_features == 16
        assert cli.load("net.py:batch")[0].shape == (128, 4)

    def test_a_loss_is_an_object_a_class_or_the_function_itself(self):
        load = functools.partial(cli.load, is_function=True)

        assert load("net.py:loss") is cli.load("net.py:loss")
        assert type(load("torch.nn:MSELoss")).__name__ == "MSELoss"
        assert load("torch.nn.functional:mse_loss").__name__ == "mse_loss"

    def test_a_package_in_the_working_directory_is_found(self, monkeypatch):
        (self.project / "pkg").mkdir()
        (self.project / "pkg" / "__init__.py").write_text("")
        (self.project / "pkg" / "parts.py").write_text("size = 5")
        (self.project / "pkg" / "model.py").write_text("from .parts import size\nthing = [size]")
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(self.project))])

        assert cli.load("pkg.model:thing") == [5]

    def test_a_file_finds_its_neighbours(self):
        (self.project / "sub").mkdir()
        (self.project / "sub" / "neighbour.py").write_text("x = 3")
        (self.project / "sub" / "main_file.py").write_text("import neighbour\ny = [neighbour.x]")

        assert cli.load("sub/main_file.py:y") == [3]

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("net.py", "'net.py' does not name an object. Write package.module:attr or file.py"),
            (":net", "does not name an object"),
            ("net.py:", "does not name an object"),
            ("nett.py:net", "there is no file nett.py. Did you mean 'net.py'?"),
            ("nowhere/net.py:net", "there is no file nowhere/net.py."),
            ("net.py:nett", "net has no 'nett'. Did you mean 'net'? It has: Holder, Net, batch,"),
            ("net.py:held.nott", "Holder has no 'nott'. Did you mean 'net'?"),
            ("nett:net", "there is no module 'nett'. Did you mean 'net'? It was looked for in"),
            ("torch.nothing:x", "there is no module 'torch.nothing'."),
            ("net.py:wide", "needs arguments (width), but is called without any."),
        ],
    )
    def test_what_cannot_be_found_is_said_with_what_is_near(self, target, message):
        with pytest.raises(TargetError, match=re.escape(message)):
            cli.load(target)

    def test_a_factory_that_raises_shows_its_error_and_its_line(self):
        line = NET.splitlines().index('    return {}["missing"]') + 1

        with pytest.raises(TargetError) as caught:
            cli.load("net.py:fails")

        assert str(caught.value) == (
            "net.py:fails raised when it was called:\n"
            "  KeyError: 'missing'\n"
            f"  at {self.project / 'net.py'}:{line}, in fails"
        )

    def test_a_factory_that_leaves_the_program_is_an_error_too(self):
        with pytest.raises(TargetError, match=r"SystemExit: usage: train\.py DATA"):
            cli.load("net.py:leaves")

    def test_a_file_that_raises_shows_its_error_and_its_line(self):
        (self.project / "broken.py").write_text("x = 1\nimport json\njson.loads('{')\n")

        with pytest.raises(TargetError, match=r"broken\.py raised while it was run") as caught:
            cli.load("broken.py:x")
        assert str(caught.value).endswith(f"at {self.project / 'broken.py'}:3, in <module>")
        assert "broken" not in sys.modules

    def test_a_syntax_error_shows_its_line(self):
        (self.project / "torn.py").write_text("x = (1,\n")

        with pytest.raises(TargetError, match=r"(?s)torn\.py.*line 1.*SyntaxError"):
            cli.load("torn.py:x")

    def test_a_missing_import_inside_the_users_module_is_not_the_module_missing(self):
        (self.project / "needy.py").write_text("import not_installed_anywhere\n")

        with pytest.raises(TargetError, match="needy raised while it was imported") as caught:
            cli.load("needy:x")
        assert "No module named 'not_installed_anywhere'" in str(caught.value)

    def test_a_file_of_a_package_is_pointed_to_its_module(self):
        (self.project / "part.py").write_text("from .other import x\n")

        with pytest.raises(TargetError, match=r"write package\.module:attr instead"):
            cli.load("part.py:x")


class TestPages:
    @pytest.fixture(autouse=True)
    def _rules(self, monkeypatch):
        samples.use_sample_rules(monkeypatch)

    @pytest.mark.parametrize("name", ["dead-relu", "ND103", "nd103"])
    def test_a_rules_page_is_found_by_name_and_by_code(self, run, name):
        status, out, _ = run("rule", name)

        assert status == 0
        assert out.startswith("ND103 dead-relu (warning)\n\nUnits that were zero on every sample.")
        assert "measured: reports/calibration/dead-relu.md" in out

    def test_the_page_as_data_is_strict_json(self, run):
        def refuse(word):
            raise AssertionError(word)

        text = json.loads(run("rule", "dead-relu", "--json")[1], parse_constant=refuse)

        assert (text["code"], text["name"], text["severity"]) == ("ND103", "dead-relu", "warning")
        assert text["thresholds"]["samples"]["high"] == "Infinity"
        assert text["title"] == "Units that were zero on every sample."
        assert text["fixes"][0]["what"] == "Re-initialise the weights (He), biases at zero."

    def test_an_unknown_rule_is_two_and_names_the_nearest(self, run):
        status, out, err = run("rule", "dead-rule")

        assert (status, out) == (2, "")
        assert err.startswith("UnknownRuleError: no rule is called 'dead-rule'. Did you mean")

    def test_all_rules_are_listed_in_order_of_code(self, run):
        lines = run("rules")[1].splitlines()

        assert [line.split()[:3] for line in lines[1:]] == [
            [m.RULE.code, m.RULE.name, m.RULE.severity] for m in samples.RULES.values()
        ]
        assert lines[2].rstrip().endswith("Units that were zero on every sample.")


def test_the_version_is_shown(run):
    assert run("--version") == (0, f"nndiag {nndiag.__version__}\n", "")


def test_help_tells_of_every_command(run):
    status, out, _ = run("--help")

    assert status == 0
    for command in ("check", "rule", "rules", "demo"):
        assert re.search(rf"\b{command}\b", out)


def test_the_demo_gets_its_folder(run, monkeypatch, tmp_path):
    import nndiag.demo

    monkeypatch.setattr(nndiag.demo, "main", lambda output, console: print("demo", output))

    assert run("demo", "--output", tmp_path) == (0, f"demo {tmp_path}\n", "")


def test_a_sick_net_is_found_sick_from_the_command_line(run):
    status, out, _ = run(
        "check", "net.py:sick", "--batch", "net.py:batch",
        "--loss", "torch.nn.functional:cross_entropy",
    )  # fmt: skip

    line = NET.splitlines().index("        return self.head(self.act(self.hidden(x)))") + 1
    assert status == 1
    assert re.search(rf"\[ND103\] dead-relu\n  --> act   ReLU   .*net\.py:{line}\n", out)


class TestBaseline:
    """Only what a report from before does not hold makes the exit status 1."""

    SICK = ("check", "net.py:sick", "--batch", "net.py:batch", "--loss", "net.py:loss")
    WELL = ("check", "net.py:net", *SICK[2:])

    @pytest.fixture
    def saved(self, run, project):
        run(*self.SICK, "--output", "old", "--format", "json", "-q")
        return "old/report.json"

    def test_known_findings_are_shown_and_pass(self, run, saved):
        status, out, err = run(*self.SICK, "--baseline", saved)

        assert status == 0
        assert "dead-relu" in out
        assert err.rstrip().endswith("Against old/report.json: 0 new findings, 5 known.")

    def test_new_ones_fail_and_are_named(self, run, project):
        run(*self.WELL, "--output", "old", "--format", "json", "-q")
        status, _, err = run(*self.SICK, "--baseline", "old/report.json")

        assert status == 1
        assert "5 new findings, 0 known.\n  error dead-relu at act (explains 4 more)\n" in err

    def test_what_is_no_longer_there_is_no_failure(self, run, saved):
        assert run(*self.WELL, "--baseline", saved)[0] == 0

    def test_where_nothing_fails_new_ones_do_not_either(self, run, project):
        run(*self.WELL, "--output", "old", "--format", "json", "-q")

        assert run(*self.SICK, "--baseline", "old/report.json", "--fail-on", "never")[0] == 0

    def test_rules_that_did_not_judge_then_bring_nothing_new(self, run, project):
        run(*self.SICK, "--output", "old", "--format", "json", "-q", "--ignore", "dead-relu")

        status, _, err = run(*self.SICK, "--baseline", "old/report.json")
        assert status == 0
        assert ", 1 of rules that did not run for it." in err

    def test_a_layer_by_another_name_is_the_same(self, run, saved, project):
        (project / "renamed.py").write_text(
            NET.replace("hidden", "first").replace("self.act", "self.relu"), encoding="utf-8"
        )

        assert run("check", "renamed.py:sick", *self.SICK[2:], "--baseline", saved)[0] == 0

    def test_one_that_is_not_there_is_said_before_anything_runs(self, run, stub, project):
        status, out, err = run(*self.SICK, "--baseline", "old/main.json")

        assert (status, out) == (2, "")
        assert "--baseline old/main.json does not exist. Save one with: " in err
        assert "--output old --name main --format json" in err
        assert not hasattr(stub, "arguments")

    def test_one_that_is_no_report_is_an_error(self, run, project):
        (project / "other.json").write_text("{}")
        status, out, err = run(*self.SICK, "--baseline", "other.json")

        assert (status, out) == (2, "")
        assert "ReportError: other.json" in err


class TestInGithub:
    """In a job of GitHub's, annotations and the job's summary come by themselves."""

    @pytest.fixture(autouse=True)
    def job(self, monkeypatch, project):
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project / "summary.md"))

    def test_annotations_follow_the_report(self, run, stub):
        _, out, _ = run(*CHECK)

        assert out == f"{stub.report}\n{stub.report.to_github()}"

    def test_the_summary_is_added_to_what_the_job_has_said(self, run, stub, project):
        (project / "summary.md").write_text("before\n", encoding="utf-8")
        run(*CHECK)
        run(*CHECK, "-q")

        said = stub.report.to_markdown()
        assert (project / "summary.md").read_text("utf-8") == f"before\n{said}{said}"

    def test_a_report_on_stdout_stays_as_it_is(self, run, stub):
        _, out, _ = run(*CHECK, "--format", "json")

        json.loads(out)

    def test_quiet_is_quiet(self, run, stub):
        assert run(*CHECK, "-q")[1] == ""

    def test_a_summary_that_cannot_be_written_costs_no_verdict(self, run, stub, monkeypatch):
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/nowhere/summary.md")
        status, _, err = run(*CHECK)

        assert status == 1
        assert "GITHUB_STEP_SUMMARY cannot be written: " in err

    def test_elsewhere_there_are_none(self, run, stub, monkeypatch, project):
        monkeypatch.setenv("GITHUB_ACTIONS", "false")
        _, out, _ = run(*CHECK)

        assert out == f"{stub.report}\n"
        assert not (project / "summary.md").exists()


class TestFix:
    """Real repairs: what is shown, what is kept, and that nothing of the user's is lost."""

    FIX = ("check", "net.py:sick", "--batch", "net.py:batch", "--loss", "net.py:loss", "--fix")

    def test_shows_what_was_tried_and_ends_as_what_is_left_says(self, run):
        status, out, _ = run(*self.FIX)

        assert status == 0
        assert "dead-relu is gone" in out
        assert "nn.init.zeros_(model.hidden.bias)" in out

    def test_what_is_not_allowed_is_not_done(self, run):
        status, out, _ = run(*self.FIX, "--trained")

        assert status == 1
        assert "not tried" in out

    def test_the_repaired_state_and_its_lines_are_kept(self, run, project):
        import torch

        assert run(*self.FIX, "--output", "out", "-q")[:2] == (0, "")

        kept = {path.name for path in Path("out").iterdir()}
        assert kept == {"repair.pt", "repair.py", "repair.html", "repair.md"}
        state = torch.load("out/repair.pt", weights_only=True)
        assert state["hidden.bias"].abs().max() < 1
        assert "nn.init.zeros_(model.hidden.bias)" in Path("out/repair.py").read_text("utf-8")

    @pytest.mark.parametrize("ending", ["pt", "py", "html", "md"])
    def test_nothing_is_overwritten_unless_forced(self, run, project, ending):
        Path("out").mkdir()
        dear = Path(f"out/repair.{ending}")
        dear.write_text("dear")

        status, _, err = run(*self.FIX, "--output", "out")

        assert status == 2
        assert f"{dear} already exists. Nothing was written." in err
        assert "--force" in err
        assert [path.name for path in Path("out").iterdir()] == [dear.name]
        assert dear.read_text() == "dear"
        assert run(*self.FIX, "--output", "out", "--force")[0] == 0
        assert dear.read_bytes() != b"dear"

    def test_a_repair_with_a_name_lies_beside_the_report_of_that_name(self, run, project):
        assert run(*self.FIX, "--output", "out", "--name", "unet", "-q")[0] == 0

        assert Path("out/unet.repair.pt").exists()
        assert not Path("out/unet.html").exists()

    @pytest.mark.parametrize("form", ["html", "markdown"])
    def test_the_page_goes_to_stdout(self, run, form):
        status, out, _ = run(*self.FIX, "--format", form)

        assert status == 0
        assert "zeros_(model.hidden.bias)" in out
        assert ("<!doctype html>" in out) == (form == "html")

    def test_training_before_and_after_is_tried_with_the_users_optimiser(self, run, project):
        Path("opt.py").write_text(
            "import torch\ndef sgd(parameters): return torch.optim.SGD(parameters, 0.1)\n"
        )

        status, out, _ = run(*self.FIX, "--trial", "5", "--optimizer", "opt.py:sgd")

        assert status == 0
        assert "5 seeds" in out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--fix", "--format", "sarif"), "a repair has no format sarif; with --fix use"),
            (("--force",), "it needs --fix"),
            (("--trial", "10"), "it needs --fix"),
            (("--allow", "all"), "it needs --fix"),
            (("--untrained",), "it needs --fix"),
            (("--fix", "--trial", "-1"), "Invalid value for '--trial'"),
            (("--fix", "--allow", "some"), "'some' is not one of"),
        ],
    )
    def test_wrong_usage_is_two(self, run, arguments, message):
        status, _, err = run(*CHECK, *arguments)

        assert status == 2
        assert message in " ".join(err.replace("│", " ").split())


def test_python_m_nndiag_is_the_same_and_commands_without_a_model_need_no_torch(project):
    code = (
        "import runpy, sys; sys.argv = ['nndiag', 'rules']\n"
        "try: runpy.run_module('nndiag', run_name='__main__')\n"
        "except SystemExit as left: assert not left.code\n"
        "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": _root(), "PYTHONIOENCODING": "utf-8"},
    )

    assert done.returncode == 0, done.stderr
    assert "ND103" in done.stdout


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == cli.FAILED
    said = capsys.readouterr().err
    assert said.startswith("nndiag: the output could not be written: [Errno 28] No space left")
    assert "fault in nndiag" not in said
