"""``@pytest.mark.nndiag``."""

from __future__ import annotations

import pytest
from plugin_parts import DEAD, SICK, WELL, cases


@cases(
    "marker",
    [
        ("ignore='dead-relu'",),
        ("ignore=['ND1']",),
        ("select=['ND2', 'symmetry']",),
        ("thresholds={'dead-relu.share': 0.9}",),
        ("thresholds={'dead-relu': {'share': 0.9}}",),
        ("fail_on='error'",),
    ],
)
def test_it_judges_its_test_alone(inner, marker):
    result = inner(f"@pytest.mark.nndiag({marker})\n{DEAD}{DEAD.replace('test_dead', 'test_bare')}")

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_bare*"])


def test_the_nearest_says_most_and_thresholds_add_up(inner):
    inner(
        "pytestmark = pytest.mark.nndiag(ignore='symmetry', thresholds={'dead-relu.share': 0.9})\n"
        "@pytest.mark.nndiag(thresholds={'dead-relu.share': 0.1})\n"
        "class TestIt:\n"
        "    def test_far(self, diagnose):\n"
        "        diagnose(dead(), batch())\n"
        "    @pytest.mark.nndiag(thresholds={'dead-relu.share': 0.95})\n"
        "    def test_near(self, diagnose):\n"
        "        diagnose(dead(), batch())\n"
    ).assert_outcomes(passed=1, failed=1)


def test_a_call_says_more_than_its_marker(inner):
    inner(
        "@pytest.mark.nndiag(thresholds={'dead-relu.share': 0.9})\n"
        "def test_it(diagnose):\n"
        "    diagnose(dead(), batch(), thresholds={'dead-relu.share': 0.2})\n"
    ).assert_outcomes(failed=1)


def test_an_option_says_more_than_a_marker(inner):
    inner(f"@pytest.mark.nndiag(select='ND2')\n{DEAD}", "--nndiag-select=ND1").assert_outcomes(
        failed=1
    )


def test_it_judges_parametrized_models(inner):
    inner(
        "@pytest.mark.nndiag(thresholds={'dead-relu.share': 0.9})\n"
        "@nndiag.testing.parametrize_with_checks({'a': dead}, batch, select='dead-relu')\n"
        "def test_models(check):\n    check()\n"
    ).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (
            "'ND2'",
            "@pytest.mark.nndiag takes select=, ignore=, thresholds=, fail_on=, seed=,",
        ),
        ("selct='ND2'", "but got 'selct'"),
        ("select='dead'", "no rule is called 'dead'"),
        ("thresholds={'dead-relu.shar': 1}", "dead-relu has no threshold 'shar'. Did you mean"),
        ("fail_on='note'", "@pytest.mark.nndiag(fail_on=): 'note' is not one of error"),
    ],
)
def test_a_wrong_one_is_an_error_of_its_tests(inner, marker, message):
    result = inner(f"@pytest.mark.nndiag({marker})\n{WELL}")

    result.assert_outcomes(failed=1)
    assert message in result.stdout.str()
    assert "nndiag/testing" not in result.stdout.str()


def test_it_is_registered(inner, pytester):
    inner(SICK.replace("def", "@pytest.mark.nndiag(fail_on='never')\ndef"), "--strict-markers"
          ).assert_outcomes(passed=1)  # fmt: skip
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.nndiag(select=None, ignore=None, thresholds=None, *"]
    )
