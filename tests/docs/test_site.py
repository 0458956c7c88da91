"""The documentation: it builds without a warning, every link leads somewhere, its code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nndiag
from docs import site
from nndiag import rules

pytest.importorskip("sphinx", reason="the documentation needs Python 3.11")

DOCS = site.ROOT / "docs"
BUILD = site.builder()
HEADINGS = [
    "What it does", "Why it matters", "When it is no fault", "Example",
    "Thresholds and their sources", "Fixes, and whether each is safe", "References",
]  # fmt: skip


@pytest.fixture(scope="module")
def made():
    return BUILD.pages()


def code_of(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, DOCS / "build.py", folder],
        env={**os.environ, "PYTHONPATH": str(site.ROOT)},
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return site.read(folder / "html")


@pytest.mark.exhaustive
class TestTheBuiltSite:
    def test_every_link_leads_somewhere(self, pages):
        assert len(pages) > len(rules.discover())
        assert sum(len(page.links) for page in pages.values()) > 500
        assert site.broken(pages) == []

    def test_it_loads_nothing_from_elsewhere(self, pages):
        loaded = [link for page in pages.values() for link in page.loaded]

        assert loaded
        assert [link for link in loaded if "//" in link] == []

    def test_every_public_name_is_described(self, pages):
        anchors = {anchor for page in pages.values() for anchor in page.anchors}
        names = [
            *(f"nndiag.Report.{name}" for name in dir(nndiag.Report) if name[0] != "_"),
            *(f"nndiag.Repair.{name}" for name in dir(nndiag.Repair) if name[0] != "_"),
            *(f"nndiag.{name}" for name in nndiag.__all__ if name not in vars(nndiag.errors)),
            *(f"nndiag.errors.{name}" for name in nndiag.__all__ if name in vars(nndiag.errors)),
            *(f"nndiag.fixes.{name}" for name in nndiag.fixes.__all__),
            *(f"nndiag.testing.{name}" for name in nndiag.testing.__all__),
            *(f"nndiag.rules.{name}" for name in nndiag.rules.__all__),
        ]
        # A module's own anchor is "module-...".
        assert [n for n in names if n not in anchors and f"module-{n}" not in anchors] == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here">1</a><a href="b.html#there">2</a><a href="c.html">3</a>'
        '<a href="#gone">4</a><a href="https://github.com/nndiag/nndiag/blob/main/gone.md">5</a>'
        '<a href="https://github.com/nndiag/nndiag/blob/main/LICENSE">6</a><img src="no.png">'
    )
    (tmp_path / "b.html").write_text('<p id="there">')

    assert [fault.partition(": ")[2] for fault in site.broken(site.read(tmp_path))] == [
        "c.html", "#gone", "https://github.com/nndiag/nndiag/blob/main/gone.md", "no.png",
    ]  # fmt: skip


@pytest.mark.parametrize("name", rules.discover())
def test_every_rule_has_a_page_under_the_fixed_headings(made, name):
    text = made[f"rules/{name}.md"]
    module = rules.discover()[name]
    found = re.findall(r"^## (.+)$", text, re.M)

    assert [heading for heading in found if heading != "Commands"] == [
        heading for heading in HEADINGS if heading in found
    ]
    assert set(HEADINGS[:4]) <= set(found)
    assert ("Fixes, and whether each is safe" in found) == bool(module.RULE.fixes)
    assert ("Thresholds and their sources" in found) == bool(module.RULE.thresholds)
    assert f"]({name}.md)" in made["rules/index.md"]


def test_a_rules_page_shows_its_text_as_it_stands():
    shown = BUILD._escaped("a*b_c <d> [e] |f| `g_*` 0.5^(1/n)")

    assert shown == r"a\*b\_c \<d\> \[e\] \|f\| `g_*` 0.5^(1/n)"
    assert BUILD._linked("measured: reports/a/b.csv, col") == (
        f"measured: [reports/a/b.csv]({site.REPOSITORY}blob/main/reports/a/b.csv), col"
    )


def test_every_command_and_every_pytest_option_is_listed(made):
    from nndiag.cli import app

    for command in app.registered_commands:
        assert f"`nndiag {command.name or command.callback.__name__}`" in made["command-line.md"]
    options = re.findall(r'"(--nndiag-[\w-]+)"', Path(nndiag.__file__).parent.joinpath(
        "pytest_plugin.py").read_text(encoding="utf-8"))  # fmt: skip
    assert options
    for option in set(options):
        assert f"`{option}" in made["pytest-options.md"]


def test_every_setting_is_described():
    from nndiag import settings

    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    for key in settings._KEYS:
        assert f"`{key}`" in text


def test_the_code_of_the_quickstart_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in code_of("quickstart.md"):
        exec(code, names)  # the page's code, as a reader would run it

    assert "vanishing-gradient" in capsys.readouterr().out
    assert not names["report"]
    assert names["repair"].ok
    assert (tmp_path / "report.html").is_file()


def test_the_workflow_builds_and_publishes_the_site():
    text = (site.ROOT / ".github/workflows/docs.yml").read_text("utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    [built] = [s["run"] for s in jobs["build"]["steps"] if "run" in s]
    upload = jobs["build"]["steps"][-1]

    assert built == "make docs"
    assert upload["uses"].startswith("actions/upload-pages-artifact@")
    assert upload["with"]["path"] == "build/docs/html"
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    ours = (site.ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    for action, version in re.findall(r"uses: (actions/(?:checkout|setup-python))@(\S+)", text):
        assert f"{action}@{version}" in ours
