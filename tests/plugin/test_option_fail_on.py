"""``--nndiag-fail-on``."""

from __future__ import annotations

import pytest
from plugin_parts import DEAD, SICK, WELL, cases


@cases(
    "options,failed",
    [
        ((), ["test_sick", "test_dead"]),
        (("--nndiag-fail-on=warning",), ["test_sick", "test_dead"]),
        (("--nndiag-fail-on=error",), ["test_sick"]),
        (("--nndiag-fail-on=never",), []),
    ],
)
def test_a_finding_of_this_severity_or_worse_fails(inner, options, failed):
    result = inner(SICK + DEAD + WELL, *options)

    result.assert_outcomes(passed=3 - len(failed), failed=len(failed))
    for name in failed:
        result.stdout.fnmatch_lines([f"FAILED test_it.py::{name}*"])


def test_it_holds_for_parametrized_models(inner):
    tests = (
        "@nndiag.testing.parametrize_with_checks({'a': dead}, batch, select='dead-relu')\n"
        "def test_models(check):\n    check()\n"
    )
    inner(tests).assert_outcomes(failed=1)
    inner(tests, "--nndiag-fail-on=error").assert_outcomes(passed=1)


def test_an_unknown_one_is_said_before_any_test(inner):
    result = inner(WELL, "--nndiag-fail-on=note")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--nndiag-fail-on: invalid choice: *note*"])


@pytest.mark.parametrize(
    "text",
    ["[tool.nndiag]\nfail-on = 'error'\n", "[tool.pytest.ini_options]\nnndiag_fail_on='error'\n"],
)
def test_it_can_stand_in_a_file(inner, pytester, text):
    pytester.makepyprojecttoml(text)

    inner(DEAD).assert_outcomes(passed=1)
    inner(DEAD, "--nndiag-fail-on=warning").assert_outcomes(failed=1)


def test_an_unknown_one_in_ini_names_it(inner, pytester):
    pytester.makeini("[pytest]\nnndiag_fail_on = note\n")
    result = inner(WELL)

    result.assert_outcomes(failed=1)
    assert "pytest's ini nndiag_fail_on: 'note' is not one of error," in result.stdout.str()
