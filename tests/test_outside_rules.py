"""Rules that other packages bring: found, listed, selected, judged, shown; a broken one said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import nndiag
from nndiag import rules
from nndiag.render import page

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "own-rules.md"
LOUD = '''
"""Layers whose outputs are larger than ten.

The largest output is held against ten.

Sick::

    model, batch = nn.Sequential(nn.Linear(4, 4)), 100 * torch.ones(8, 4)

Well::

    batch = torch.ones(8, 4)
"""

import nndiag

RULE = nndiag.Rule(
    code="MY101",
    name="loud-layer",
    severity="warning",
    about="activations",
    thresholds={"size": nndiag.Threshold(10.0, "derived: ten is enough for this test", 0)},
)


def check(snapshot, limit):
    for layer in snapshot.layers:
        size = max(abs(layer.output.min), abs(layer.output.max))
        if size > limit.size:
            yield RULE.finding(
                layer, f"it reaches {size:.3g}", evidence={"size": size}, against=("size", limit)
            )
'''
GOOD = LOUD.replace("MY101", "MY102").replace("loud-layer", "other-layer")
BROKEN = {
    "import_fails": ("import no_such_package", "ModuleNotFoundError: No module named"),
    "has_no_rule": ('"""A page."""', "it has no RULE = nndiag.Rule(...)"),
    "has_no_check": (LOUD.partition("def check")[0], "it has no function check(snapshot, limit)"),
    "has_no_page": ("import nndiag" + LOUD.partition("import nndiag")[2],
                    "it has no docstring, which is the rule's page"),
    "takes_a_name": (GOOD.replace("other-layer", "dead-relu"),
                     "its name 'dead-relu' is that of nndiag.rules.dead_relu"),
    "takes_a_code": (GOOD.replace("MY102", "ND103"),
                     "its code 'ND103' is that of nndiag.rules.dead_relu"),
    "takes_both_of_another": (LOUD, "its name 'loud-layer' is that of loud_layer"),
    "has_an_odd_code": (GOOD.replace("MY102", "mine"), "its code 'mine' is not capital letters"),
    "has_an_odd_severity": (GOOD.replace('"warning"', '"fatal"'), "'fatal' is not one of 'error'"),
    "raises_at_import": ('raise ValueError("first\\nsecond")', "ValueError: first"),
}  # fmt: skip


def distribution(folder, **modules):
    """What ``pip install --target`` leaves of a package whose modules are rules."""
    info = folder / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    entries = [f"{name.replace('_', '-')} = {name}" for name in modules]
    (info / "entry_points.txt").write_text("\n".join(["[nndiag.rules]", *entries]) + "\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text).lstrip())
    return folder


def forget():
    rules._load.cache_clear()
    rules.discover.cache_clear()
    rules.not_loaded.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install(loud_layer=LOUD)``: from then on it is installed beside nndiag."""

    def run(**modules):
        monkeypatch.syspath_prepend(str(distribution(tmp_path / "site", **modules)))
        for name in modules:
            monkeypatch.delitem(sys.modules, name, raising=False)
        forget()

    yield run
    monkeypatch.undo()
    forget()


def report(**options):
    return nndiag.check(nn.Sequential(nn.Linear(4, 4)), 100 * torch.ones(8, 4), **options)


def test_a_rule_from_outside_is_found_and_listed(install):
    install(loud_layer=LOUD)

    assert next(iter(nndiag.rules.catalogue())) == "loud-layer"  # MY101 comes before ND101
    assert nndiag.rules.catalogue()["loud-layer"].thresholds["size"].value == 10
    assert rules.not_loaded() == {}


def test_the_command_line_lists_it_and_says_what_is_broken(tmp_path):
    site = distribution(tmp_path, loud_layer=LOUD, import_fails="import no_such_package")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "nndiag", "rules"],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "MY101  loud-layer" in done.stdout
    assert done.stderr == (
        "import_fails could not be loaded from outside 1.0: "
        "ModuleNotFoundError: No module named 'no_such_package'\n"
    )


@pytest.mark.parametrize("word", ["loud-layer", "MY101", "my1", "MY"])
def test_it_is_selected_and_judged_like_any_other(install, word):
    install(loud_layer=LOUD)

    [finding] = report(select=word).findings
    assert (finding.code, finding.rule, finding.layer) == ("MY101", "loud-layer", "0")
    assert finding.threshold == 10
    assert report(select=word, thresholds={"loud-layer.size": 1e9}).ok
    assert "loud-layer" not in {f.rule for f in report(ignore=word).findings}


@pytest.mark.parametrize("form", ["terminal", "html", "markdown", "sarif", "junit", "github"])
def test_it_is_shown_in_every_format(install, form, tmp_path):
    install(loud_layer=LOUD)
    found = report(select="MY")

    if form in ("html", "sarif", "junit"):
        getattr(found, f"to_{form}")(tmp_path / "report")
        text = (tmp_path / "report").read_text("utf-8")
    else:
        text = {"terminal": str, "markdown": nndiag.Report.to_markdown,
                "github": nndiag.Report.to_github}[form](found)  # fmt: skip
    assert "loud-layer" in text
    assert "it reaches" in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_its_page_is_in_english_where_nobody_translated_it(install, language):
    install(loud_layer=LOUD)
    text = page.page(rules.discover()["loud-layer"], language)

    assert "Layers whose outputs are larger than ten." in text
    assert "The largest output is held against ten." in text
    assert "derived: ten is enough for this test" in text


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_one_line_and_costs_no_other_rule(install, name):
    text, why = BROKEN[name]
    install(loud_layer=LOUD, **{name: text})

    assert {"loud-layer", "dead-relu"} <= set(rules.discover())
    [(broken, reason)] = rules.not_loaded().items()
    assert broken == name
    assert reason.startswith(f"could not be loaded from outside 1.0: {why}")
    assert "\n" not in reason


class TestTheReportOfABrokenRule:
    @pytest.fixture(autouse=True)
    def _broken(self, install):
        install(loud_layer=LOUD, import_fails="import no_such_package")

    def test_it_says_so_and_is_not_ok(self):
        found = report(thresholds={"loud-layer.size": 1e9}, ignore="ND")

        assert found.findings == ()
        assert not found.ok
        [missing] = [n for n in found.not_judged if n.what == "crashed"]
        assert (missing.rule, missing.layer) == ("import_fails", "")
        assert "no_such_package" in missing.reason
        assert "crashed: import_fails (could not be loaded from outside 1.0" in " ".join(
            str(found).split()
        )

    def test_it_can_be_ignored_by_the_name_of_its_module(self):
        found = report(select="MY")
        assert [o for o in found.outcomes if o.status == "crashed"] == []
        found = report(ignore=["import_fails", "ND"])
        assert [o for o in found.outcomes if o.status == "crashed"] == []
        assert ("import_fails", "not selected") in [(n.rule, n.reason) for n in found.not_judged]

    def test_every_format_can_be_written_and_read_back(self, tmp_path):
        found = report()
        for form in ("html", "sarif", "junit", "json"):
            getattr(found, f"to_{form}")(tmp_path / form)

        assert nndiag.Report.from_json(tmp_path / "json").to_markdown() == found.to_markdown()
        assert found.to_github()


def test_a_check_that_yields_something_else_crashes_alone(install):
    install(loud_layer=LOUD.partition("def check")[0] + "def check(s, limit):\n    yield 'loud'\n")

    [outcome] = [o for o in report().outcomes if o.status == "crashed"]
    assert (outcome.rule, outcome.reason) == (
        "loud-layer",
        "check yielded a str: yield RULE.finding(...)",
    )


def test_the_guides_rule_works_as_it_is_written(install):
    text = GUIDE.read_text(encoding="utf-8")
    module, check = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    [entry] = re.findall(r'^([\w-]+) = "acme_rules\.(\w+)"$', text, re.M)
    install(half_overflow=module)

    assert entry == ("half-overflow", "half_overflow")
    exec(f"{check}\ntest_it_is_found()", {"nndiag": nndiag, "nn": nn, "torch": torch})
    found = rules.discover()["half-overflow"]
    for code, times in zip(page.examples(found), (1, 0), strict=True):
        names = {"nn": nn, "torch": torch, "model": nn.Linear(4, 4)}
        exec(code, names)
        judged = nndiag.check(names["model"], names["batch"], select="ACME")
        assert len(judged.findings) == times
        assert judged.crashed == ()
