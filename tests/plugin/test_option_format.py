"""``--nndiag-format``."""

from __future__ import annotations

import pytest
from plugin_parts import WELL, cases


@cases(
    "options",
    [
        (("--nndiag-format=sarif,markdown", "--nndiag-format=junit"),),
        (("--nndiag-format", "sarif, markdown, junit"),),
    ],
)
def test_reports_are_kept_in_these(inner, saved, options):
    inner(WELL, "--nndiag-report=out", *options)

    assert saved("out") == [f"test_it.test_well.{e}" for e in ("junit.xml", "md", "sarif")]


def test_tables_have_the_tests_name_before_theirs(inner, saved):
    inner(WELL, "--nndiag-report=out", "--nndiag-format=csv")

    assert saved("out") == [
        f"test_it.test_well.{table}.csv" for table in ("findings", "layers", "parameters")
    ]


def test_an_unknown_one_is_said_before_any_test(inner):
    result = inner(WELL, "--nndiag-format=pdf")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --nndiag-format: 'pdf' is not one of json, html, csv, markdown, *"]
    )


@pytest.mark.parametrize("where", ["ini", "toml"])
def test_it_can_stand_in_a_file(inner, saved, pytester, where):
    if where == "ini":
        pytester.makeini("[pytest]\nnndiag_report = out\nnndiag_format = json sarif\n")
    else:
        pytester.makepyprojecttoml("[tool.nndiag]\nreport = 'out'\nformat = ['json', 'sarif']\n")
    inner(WELL)

    assert saved("out") == ["test_it.test_well.json", "test_it.test_well.sarif"]


def test_an_unknown_one_in_a_file_names_the_file(inner, pytester):
    pytester.makepyprojecttoml("[tool.nndiag]\nformat = ['pdf']\n")
    result = inner(WELL)

    result.assert_outcomes(failed=1)
    assert "pyproject.toml [tool.nndiag] format = ['pdf']: write a list of" in result.stdout.str()
