"""``nndiag.testing.parametrize_with_checks``."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from plugin_parts import both

from nndiag import errors, rules
from nndiag.testing import parametrize_with_checks

RULES = list(rules.discover())
# They need an optimiser, which no test here brings.
SKIPPED = [name for name, rule in rules.catalogue().items() if "optimizer" in rule.needs]
RUN = {"passed": len(RULES) - len(SKIPPED), "skipped": len(SKIPPED)}
ND1 = sum(rule.code.startswith("ND1") for rule in rules.catalogue().values())


def models(what: str) -> str:
    return (
        f"@nndiag.testing.parametrize_with_checks({what})\ndef test_models(check):\n    check()\n"
    )


def outcomes(result: pytest.RunResult) -> dict[str, str]:
    """By the test's id in brackets, from -v."""
    found = {}
    for line in result.stdout.lines:
        # plain: "nodeid OUTCOME ..."; a worker: "[gw0] [ 7%] OUTCOME nodeid"
        match = re.search(r"::test_models\[(\S+)\] ([A-Z]+)", line)
        other = re.search(r"\] ([A-Z]+) \S*::test_models\[([^\s\]]+)\]", line)
        if match:
            found[match[1]] = match[2]
        elif other:
            found[other[2]] = other[1]
    return found


@both
def test_each_model_and_rule_is_a_test(inner):
    found = outcomes(
        inner(models("{'ok': well, 'bad': sick}, batch, loss_fn=F.cross_entropy"), "-v")
    )

    assert set(found) == {f"{m}-{r}" for m in ("ok", "bad") for r in RULES}
    assert {found[f"ok-{r}"] for r in RULES if r not in SKIPPED} == {"PASSED"}
    assert {found[f"ok-{r}"] for r in SKIPPED} == {"SKIPPED"}
    assert found["bad-vanishing-gradient"] == "FAILED"
    assert [k for k, v in found.items() if v == "FAILED"] == ["bad-vanishing-gradient"]


def test_what_another_test_explains_is_an_xfail_and_says_so(inner):
    result = inner(models("{'bad': sick}, batch, loss_fn=F.cross_entropy"), "-v", "-rx")

    assert outcomes(result)["bad-signal-collapse"] == "XFAIL"
    result.stdout.fnmatch_lines(["XFAIL*explained by vanishing-gradient at 0"])


def test_what_no_test_explains_fails_itself(inner):
    only = models("{'bad': sick}, batch, loss_fn=F.cross_entropy, select='signal-collapse'")

    assert outcomes(inner(only, "-v")) == {"bad-signal-collapse": "FAILED"}


def test_a_failure_shows_the_report_of_its_rule_and_no_frame_of_ours(inner):
    result = inner(models("{'bad': sick}, batch, loss_fn=F.cross_entropy"))

    result.stdout.fnmatch_lines([">       check()", "E*FindingsError: 1 error", "E*--> 0   Linear"])
    assert "nndiag/testing" not in result.stdout.str()


def test_one_check_serves_all_tests_of_a_model(inner, pytester):
    inner(
        "built = []\n"
        "def build():\n    built.append(1)\n    return well()\n"
        + models("{'ok': build}, batch, loss_fn=F.cross_entropy")
        + "def test_once():\n    assert len(built) == 1\n"
    ).assert_outcomes(**RUN | {"passed": RUN["passed"] + 1})


@both
def test_known_findings_are_strict_xfails_with_their_reason(inner, section):
    expected = "expected={'gated': {'dead-relu': 'a sparse gate by design'}}"
    result = inner(
        models(f"{{'gated': dead, 'ok': well}}, batch, loss_fn=F.cross_entropy, {expected}"),
        "-v",
        "-rx",
    )
    found = outcomes(result)

    assert found["gated-dead-relu"] == "XFAIL"
    assert found["ok-dead-relu"] == "PASSED"
    result.stdout.fnmatch_lines(["XFAIL*gated-dead-relu*a sparse gate by design*"])
    assert section(result) == []


@pytest.mark.parametrize("fail_on", ["error", "never"])
def test_a_known_finding_is_known_whatever_fails(inner, fail_on):
    result = inner(
        models("{'gated': dead}, batch, expected={'dead-relu': 'by design'}, select='ND103'"),
        f"--nndiag-fail-on={fail_on}",
    )

    result.assert_outcomes(xfailed=1)


def test_a_note_can_be_known_too(inner):
    result = inner(
        "def leaky():\n"
        "    return nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.Linear(16, 3))\n"
        + models("{'it': leaky}, batch, expected={'dense-activation': 'meant'}, select='ND104'")
    )

    result.assert_outcomes(xfailed=1)


def test_markers_and_settings_hold_as_they_do_for_the_fixture(inner, pytester):
    pytester.makepyprojecttoml("[tool.nndiag]\nmax-batches = 1\n")
    inner(
        "seeds = []\n"
        "def build():\n    seeds.append(torch.initial_seed())\n    return well()\n"
        "data = [(torch.randn(32, 8),) for _ in range(4)]\n"
        "@pytest.mark.nndiag(seed=7)\n"
        "@nndiag.testing.parametrize_with_checks({'a': build}, data, select='ND103')\n"
        "def test_models(check):\n"
        "    assert check().snapshot.samples == 32\n"
        "    assert seeds == [7]\n"
    ).assert_outcomes(passed=1)


def test_one_decorator_may_serve_tests_that_judge_differently(inner, section, saved):
    result = inner(
        "checks = nndiag.testing.parametrize_with_checks({'a': dead}, batch, select='ND103')\n"
        "@pytest.mark.nndiag(thresholds={'dead-relu.share': 0.9})\n"
        "@checks\n"
        "def test_lenient(check):\n    check()\n"
        "@checks\n"
        "def test_strict(check):\n    check()\n",
        "--nndiag-report=out",
    )

    result.assert_outcomes(passed=1, failed=1)
    assert "    out/test_it.test_strict-a.html" in section(result)
    assert {"test_it.test_lenient-a.html", "test_it.test_strict-a.html"} < set(saved("out"))


def test_a_model_is_one_whatever_else_its_test_is_parametrized_by(inner, section):
    result = inner(
        "@pytest.mark.parametrize('device', ['cpu'])\n"
        + models("{'a': dead}, batch, select='ND1'").replace("(check)", "(check, device)")
    )

    assert section(result)[0] == "1 of 1 diagnosed model failed."


def test_all_rules_that_fail_a_model_are_told(inner, section):
    result = inner(
        "def both():\n    model = dead()\n    model[2].requires_grad_(False)\n    return model\n"
        + models("{'a': both}, batch, loss_fn=F.cross_entropy")
    )
    lines = section(result)

    assert lines[0] == "1 of 1 diagnosed model failed."
    assert {line.split("[")[-1].split("]")[0] for line in lines[1:5:2]} == {
        "a-dead-relu", "a-frozen-layer",
    }  # fmt: skip


def test_a_known_finding_that_is_gone_fails(inner, section):
    result = inner(models("{'ok': well}, batch, expected={'ND103': 'once it was'}"), "-v")

    assert outcomes(result)["ok-dead-relu"] == "FAILED"
    result.stdout.fnmatch_lines(["[[]XPASS(strict)[]] once it was"])
    assert "    dead-relu was expected (once it was) but not found" in section(result)


def test_the_tests_of_a_model_are_a_group_for_xdist(inner):
    """Whether it then keeps them together is its own: 3.8 does not under pytest 9.2."""
    inner(
        "@nndiag.testing.parametrize_with_checks({'a': well, 'b': well}, batch, select='ND1')\n"
        "def test_models(check, request):\n"
        "    [group] = request.node.iter_markers('xdist_group')\n"
        "    assert group.args == (f'nndiag-{check.model}',)\n",
        "--strict-markers",
    ).assert_outcomes(passed=2 * ND1)


def test_it_needs_no_xdist(inner):
    inner(models("{'ok': well}, batch, select='ND1'"), "-p", "no:xdist", "--strict-markers"
          ).assert_outcomes(passed=ND1)  # fmt: skip


def test_a_factory_may_bring_its_own_batch(inner):
    inner(
        "def build():\n"
        "    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))\n"
        "    nn.init.kaiming_normal_(model[0].weight)\n"
        "    return model, torch.randn(256, 5), torch.randint(0, 2, (256,))\n"
        + models("{'ok': build}, loss_fn=F.cross_entropy")
    ).assert_outcomes(**RUN)


def test_a_model_may_be_given_as_it_is(inner):
    inner(models("{'ok': well()}, batch(), loss_fn=F.cross_entropy")).assert_outcomes(**RUN)


def test_models_are_built_at_the_seed_and_the_process_stays_as_it_was(inner):
    inner(
        "drawn = []\n"
        "def build():\n    drawn.append(torch.rand(1).item())\n    return well()\n"
        "torch.manual_seed(5)\n"
        "@nndiag.testing.parametrize_with_checks({'ok': build}, batch, select='dead-relu')\n"
        "def test_models(check):\n"
        "    before = torch.get_rng_state()\n"
        "    check()\n"
        "    assert torch.equal(torch.get_rng_state(), before)\n"
        "    torch.manual_seed(0)\n"
        "    assert drawn == [torch.rand(1).item()]\n"
    ).assert_outcomes(passed=1)


def test_a_model_that_cannot_be_built_says_why_once_and_where_for_the_others(inner):
    result = inner(
        "def broken():\n    raise ValueError('no weights at hand')\n"
        + models("{'bad': broken, 'ok': well}, batch, select='ND1'"),
        "-v",
    )
    found = outcomes(result)

    assert {v for k, v in found.items() if k.startswith("bad-")} == {"FAILED"}
    assert {v for k, v in found.items() if k.startswith("ok-")} == {"PASSED"}
    result.stdout.fnmatch_lines(
        [
            "E*ValueError: no weights at hand",
            "bad could not be checked, see test_it.py::test_models[[]bad-saturation[]]: "
            "ValueError: no weights at hand",
        ]
    )


def test_what_a_rule_cannot_judge_is_skipped(inner):
    result = inner(
        "class NoGrad(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        with torch.no_grad():\n            return super().forward(x)\n"
        + models("{'it': lambda: NoGrad(nn.Linear(8, 3)).requires_grad_(False)}, batch"),
        "-v",
        "-rs",
    )

    assert outcomes(result)["it-vanishing-gradient"] == "SKIPPED"
    result.stdout.fnmatch_lines(["SKIPPED*needs gradients: no parameter of the model requires*"])


def test_a_rule_that_crashes_fails_its_test_whatever_was_expected(inner):
    result = inner(
        "from nndiag import rules\n"
        "@pytest.fixture(autouse=True)\n"
        "def broken(monkeypatch):\n"
        "    def check(*_):\n        raise ZeroDivisionError('by zero')\n"
        "    monkeypatch.setattr(rules.discover()['dead-relu'], 'check', check)\n"
        + models("{'it': well}, batch, expected={'dead-relu': 'why not'}, select='dead-relu'"),
        "-v",
    )

    assert outcomes(result) == {"it-dead-relu": "FAILED"}
    assert "dead-relu crashed: ZeroDivisionError: by zero" in result.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (({},), errors.SettingsError, 'models is {}. Write {"unet": build_unet}'),
        ((["unet"],), errors.SettingsError, "models is ['unet']"),
    ],
)
def test_no_models_are_an_error_at_once(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        parametrize_with_checks(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"select": "dead"}, errors.UnknownRuleError, "no rule is called 'dead'"),
        ({"thresholds": {"dead-relu.shar": 1}}, errors.UnknownRuleError, "no threshold 'shar'"),
        ({"expected": {"dead": "x"}}, errors.UnknownRuleError, "no rule is called 'dead'"),
        ({"expected": {"dead-relu": " "}}, errors.SettingsError,
         "Write why the finding is intended"),
        ({"expected": {"unte": {"dead-relu": "x"}}}, errors.SettingsError,
         "there is no such model. Did you mean 'unet'? Choose one of: unet."),
        ({"expected": ["dead-relu"]}, errors.SettingsError, "expected is ['dead-relu']"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_an_error_at_once(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        parametrize_with_checks({"unet": None}, **options)


def test_what_is_no_model_is_an_error_of_its_tests(inner):
    result = inner(models("{'it': lambda: 3}, batch, select='dead-relu'"))

    result.assert_outcomes(failed=1)
    assert "ModelError: models['it'] gives int. Give a torch.nn.Module" in result.stdout.str()
    assert "nndiag/testing" not in result.stdout.str()


def test_a_batch_given_twice_is_an_error_of_its_tests(inner):
    result = inner(models("{'it': lambda: (well(), batch())}, batch, select='dead-relu'"))

    result.assert_outcomes(failed=1)
    assert "models['it'] returns a batch, and batch= gives another" in result.stdout.str()


def test_collecting_builds_nothing_and_loads_no_torch(pytester):
    pytester.makepyfile(
        test_it="import sys\nimport nndiag.testing\n"
        "def build():\n    raise AssertionError\n"
        + models("{'it': build}")
        + "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:torch",
               "-p", "no:pytest_torch", "-p", "no:hypothesispytest"]  # fmt: skip
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout
    assert f"{len(RULES)} tests collected" in done.stdout
