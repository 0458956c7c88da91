"""``--nndiag-select``."""

from __future__ import annotations

import pytest
from plugin_parts import DEAD, SICK, WELL, cases

from nndiag import rules


@cases(
    "options,failed",
    [
        (("--nndiag-select=ND2",), ["test_sick"]),
        (("--nndiag-select=dead-relu",), ["test_dead"]),
        (("--nndiag-select=ND103,ND201",), ["test_sick", "test_dead"]),
        (("--nndiag-select=ND103", "--nndiag-select=ND201"), ["test_sick", "test_dead"]),
        (("--nndiag-select=symmetry",), []),
    ],
)
def test_only_these_rules_judge(inner, options, failed):
    result = inner(SICK + DEAD, *options)

    result.assert_outcomes(passed=2 - len(failed), failed=len(failed))
    for name in failed:
        result.stdout.fnmatch_lines([f"FAILED test_it.py::{name}*"])


def test_tests_of_other_rules_are_skipped(inner):
    result = inner(
        "@nndiag.testing.parametrize_with_checks({'a': dead}, batch, select='ND1')\n"
        "def test_models(check):\n    check()\n",
        "--nndiag-select=dead-relu",
        "-rs",
    )

    others = sum(rule.code.startswith("ND1") for rule in rules.catalogue().values()) - 1
    result.assert_outcomes(failed=1, skipped=others)
    result.stdout.fnmatch_lines(
        [f"SKIPPED [[]{others}[]]*not selected by option, marker or settings"]
    )


def test_an_unknown_rule_is_said_before_any_test(inner):
    result = inner(WELL, "--nndiag-select=dead-rel")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: no rule is called 'dead-rel'. Did you mean 'dead-relu'*"])


@pytest.mark.parametrize(
    "text",
    [
        "[tool.nndiag]\nselect = ['symmetry']\n",
        "[tool.pytest.ini_options]\nnndiag_select = ['symmetry']\n",
    ],
)
def test_it_can_stand_in_a_file(inner, pytester, text):
    pytester.makepyprojecttoml(text)

    inner(SICK).assert_outcomes(passed=1)
    inner(SICK, "--nndiag-select=ND2").assert_outcomes(failed=1)


def test_a_marker_selects_for_its_tests(inner):
    inner("@pytest.mark.nndiag(select='symmetry')\n" + SICK + DEAD).assert_outcomes(
        passed=1, failed=1
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("option", ["--nndiag-select=", "--nndiag-ignore=", "--nndiag-select=,"])
def test_one_that_is_empty_is_not_given(inner, option):
    inner(SICK, option).assert_outcomes(failed=1)
