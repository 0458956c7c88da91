"""``--nndiag-ignore``."""

from __future__ import annotations

import pytest
from plugin_parts import DEAD, SICK, WELL, cases


@cases(
    "options,failed",
    [
        (("--nndiag-ignore=dead-relu",), ["test_sick"]),
        (("--nndiag-ignore=ND1,ND2", "--nndiag-ignore=ND3"), []),
        (("--nndiag-ignore=symmetry",), ["test_sick", "test_dead"]),
    ],
)
def test_these_rules_do_not_judge(inner, options, failed):
    result = inner(SICK + DEAD, *options)

    result.assert_outcomes(passed=2 - len(failed), failed=len(failed))
    for name in failed:
        result.stdout.fnmatch_lines([f"FAILED test_it.py::{name}*"])


def test_what_an_ignored_rule_would_explain_stands_for_itself(inner):
    result = inner(
        "@nndiag.testing.parametrize_with_checks({'a': sick}, batch, loss_fn=F.cross_entropy)\n"
        "def test_models(check):\n    check()\n",
        "--nndiag-ignore=vanishing-gradient",
    )

    result.stdout.fnmatch_lines(["FAILED test_it.py::test_models[[]a-signal-collapse[]]*"])


def test_an_unknown_rule_is_said_before_any_test(inner):
    result = inner(WELL, "--nndiag-ignore=ND9")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: no rule is called 'ND9'.*"])


@pytest.mark.parametrize(
    "text",
    [
        "[tool.nndiag]\nignore = ['dead-relu']\n",
        "[tool.pytest.ini_options]\nnndiag_ignore = ['dead-relu']\n",
    ],
)
def test_it_can_stand_in_a_file(inner, pytester, text):
    pytester.makepyprojecttoml(text)

    inner(DEAD).assert_outcomes(passed=1)
