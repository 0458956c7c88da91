"""``--nndiag-report=DIR``."""

from __future__ import annotations

import os

import pytest
from plugin_parts import DEAD, HEAD, SICK, WELL, both, both_quick

from nndiag import Report


@both_quick
def test_every_report_is_there_and_one_index_lists_them(inner, saved, section, pytester):
    result = inner(SICK + WELL + DEAD, "--nndiag-report=out")

    names = {f"test_it.test_{name}" for name in ("sick", "well", "dead")}
    assert set(saved("out")) == {"index.html"} | {
        f"{n}.{e}" for n in names for e in ("html", "json")
    }
    index = (pytester.path / "out" / "index.html").read_text("utf-8")
    assert all(f"{name}.html" in index for name in names)
    lines = section(result)
    assert f"Reports: {os.path.join('out', 'index.html')}" in lines
    assert not any("--nndiag-report" in line for line in lines)


@both
def test_where_all_are_well_it_says_where_the_reports_are(inner, section):
    assert section(inner(WELL, "--nndiag-report=out")) == [
        "1 model diagnosed, none failed.",
        f"Reports: {os.path.join('out', 'index.html')}",
    ]


def test_a_saved_report_is_the_report(inner, pytester):
    inner(SICK, "--nndiag-report=out")

    report = Report.from_json(pytester.path / "out" / "test_it.test_sick.json")
    assert report.findings[0].rule == "vanishing-gradient"


def test_what_was_there_before_stays(inner, saved, pytester):
    (pytester.path / "out").mkdir()
    (pytester.path / "out" / "notes.txt").write_text("mine")
    inner(WELL, "--nndiag-report=out")

    assert "notes.txt" in saved("out")
    assert (pytester.path / "out" / "notes.txt").read_text() == "mine"


def test_the_tests_of_a_parametrized_model_share_a_report(inner, saved):
    inner(
        "@nndiag.testing.parametrize_with_checks({'a': well, 'b': dead}, batch, select='ND1')\n"
        "def test_models(check):\n    check()\n",
        "--nndiag-report=out",
        "--nndiag-format=json",
    )

    assert saved("out") == ["test_it.test_models-a.json", "test_it.test_models-b.json"]


def test_it_is_relative_to_where_pytest_was_called(inner, saved, pytester, monkeypatch):
    inner("def test_nothing():\n    pass\n")
    (pytester.path / "below").mkdir()
    monkeypatch.chdir(pytester.path / "below")
    result = pytester.runpytest_inprocess("..", "--rootdir=..", "--nndiag-report=out")
    result.assert_outcomes(passed=1)
    (pytester.path / "test_it.py").write_text(
        (pytester.path / "test_it.py").read_text() + "\n" + WELL
    )
    pytester.runpytest_inprocess("..", "--rootdir=..", "--nndiag-report=out").assert_outcomes(
        passed=2
    )

    assert "test_it.test_well.json" in saved("below/out")


def test_a_folder_that_cannot_be_written_to_is_an_error_of_the_test(inner, pytester):
    (pytester.path / "out").write_text("a file")
    result = inner(WELL, "--nndiag-report=out")

    result.assert_outcomes(failed=1)
    assert "OutputError: " in result.stdout.str()
    assert "nndiag/testing" not in result.stdout.str()


@pytest.mark.exhaustive
def test_reports_of_a_build_that_is_killed_are_whole(pytester, inner, saved):
    """Each is written beside its place first, and the index after each."""
    import json
    import signal
    import subprocess
    import sys

    pytester.makepyfile(
        test_it=f"{HEAD}\nimport os, signal\n{SICK}{WELL}"
        "def test_end(diagnose, monkeypatch):\n"
        "    from nndiag.render import files\n"
        "    replace, kill = os.replace, lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    monkeypatch.setattr(files.os, 'replace', kill)\n"  # in the midst of writing
        "    diagnose(dead(), batch())\n"
    )
    command = [sys.executable, "-m", "pytest", "--nndiag-report=out"]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True)

    assert done.returncode == -signal.SIGKILL
    whole = [name for name in saved("out") if not name.startswith(".")]
    assert whole == [
        "index.html", "test_it.test_sick.html", "test_it.test_sick.json",
        "test_it.test_well.html", "test_it.test_well.json",
    ]  # fmt: skip
    for name in whole:
        text = (pytester.path / "out" / name).read_text("utf-8")
        assert json.loads(text) if name.endswith(".json") else text.rstrip().endswith("</html>")
    index = (pytester.path / "out" / "index.html").read_text("utf-8")
    assert index.count('class="report') or "test_it.test_well.html" in index


def test_without_it_only_pages_of_what_failed_are_kept_in_pytests_cache(inner, saved):
    inner(SICK + WELL)

    assert saved(".pytest_cache/d/nndiag") == ["index.html", "test_it.test_sick.html"]


def test_without_it_and_without_a_cache_nothing_is_kept(inner, section, pytester):
    lines = section(inner(SICK, "-p", "no:cacheprovider"))

    assert not (pytester.path / ".pytest_cache").exists()
    assert lines[0] == "1 of 1 diagnosed model failed."


@pytest.mark.parametrize("where", ["ini", "toml"])
def test_it_can_stand_in_a_file(inner, saved, pytester, where):
    if where == "ini":
        pytester.makeini("[pytest]\nnndiag_report = kept\n")
    else:
        pytester.makepyprojecttoml("[tool.nndiag]\nreport = 'kept'\n")
    inner(WELL)

    assert "index.html" in saved("kept")


def test_the_command_line_says_more_than_ini_and_ini_more_than_settings(inner, saved, pytester):
    pytester.makepyprojecttoml(
        "[tool.nndiag]\nreport = 'settings'\n[tool.pytest.ini_options]\nnndiag_report = 'ini'\n"
    )
    inner(WELL)
    assert "index.html" in saved("ini")
    inner(WELL, "--nndiag-report=option")
    assert "index.html" in saved("option")
    assert not (pytester.path / "settings").exists()
