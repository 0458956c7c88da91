"""Sessions that have nothing to do with nndiag, and those that switch it off."""

from __future__ import annotations

import subprocess
import sys

import pytest
from plugin_parts import SICK, both

UNRELATED = "import sys\ndef test_it():\n    print('LOADED', *sys.modules)\n"


def loaded(pytester: pytest.Pytester, *options: str) -> set[str]:
    """What an unrelated session has loaded when its only test runs."""
    pytester.makepyfile(test_it=UNRELATED)
    command = [sys.executable, "-m", "pytest", "-s", *options]
    # The other plugins that happen to be installed here load what they like.
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": ""}
    done = subprocess.run(command, cwd=pytester.path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if "LOADED" in line]
    return set(line.partition("LOADED")[2].split())


def test_an_unrelated_session_loads_the_plugin_and_nothing_more(pytester):
    bare = loaded(pytester)
    more = loaded(pytester, "-p", "nndiag.pytest_plugin") - bare

    assert {name for name in more if name.startswith("nndiag")} == {
        "nndiag", "nndiag.errors", "nndiag.pytest_plugin",
    }  # fmt: skip
    assert more & {"torch", "numpy", "scipy", "pandas", "pydantic", "rich", "jinja2"} == set()


def test_a_session_with_options_of_ours_alone_loads_no_torch(pytester):
    assert "torch" not in loaded(
        pytester, "-p", "nndiag.pytest_plugin", "--nndiag-select=ND2", "--nndiag-report=out"
    )


def test_nothing_is_said_nor_kept_where_no_model_is_diagnosed(inner, section, pytester):
    result = inner("def test_it():\n    assert 1 == 2\n", "--nndiag-report=out")

    result.assert_outcomes(failed=1)
    assert section(result) == []
    assert not (pytester.path / "out").exists()


@both
def test_it_can_be_switched_off(inner):
    result = inner(SICK, "-p", "no:nndiag")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*fixture 'diagnose' not found"])


def test_parametrized_models_are_checked_with_the_plugin_off_too(inner):
    inner(
        "@nndiag.testing.parametrize_with_checks({'a': dead, 'b': well}, batch, select='ND103')\n"
        "def test_models(check):\n    check()\n",
        "-p",
        "no:nndiag",
    ).assert_outcomes(failed=1, passed=1)


@both
def test_it_lives_beside_pytest_torch(inner):
    pytest.importorskip("pytest_torch")
    inner(
        "def test_both(diagnose, torch_device, torch_seed):\n"
        "    diagnose(well().to(torch_device), batch(), loss_fn=F.cross_entropy)\n",
        "--strict-markers",
    ).assert_outcomes(passed=1)


def test_all_options_begin_alike(pytester):
    text = pytester.runpytest_inprocess("--help").stdout.str()
    start = text.index("nndiag: what is wrong inside neural networks")
    options = [w for w in text[start:].split("\n\n")[0].split() if w.startswith("--")]

    assert options
    assert all(option.startswith("--nndiag-") for option in options)
