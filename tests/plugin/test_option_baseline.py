"""``diagnose.baseline`` and ``--nndiag-baseline=DIR``."""

from __future__ import annotations

import json

import pytest
from plugin_parts import LOUDER, both, held


@both
def test_without_a_baseline_the_test_fails_and_says_how_to_make_one(inner, section, pytester):
    result = inner(held())

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*there is no baseline */nndiag-baselines/test_it.test_net.json yet. Write it, *: "
            "pytest --nndiag-update-baseline test_it.py::test_net"
        ]
    )
    assert "nndiag/testing" not in result.stdout.str()
    assert section(result)[-1] == ("To accept an intended change: pytest --nndiag-update-baseline")
    assert not (pytester.path / "nndiag-baselines").exists()


def test_it_is_small_and_has_a_line_for_each_part(inner, pytester):
    inner(held(), "--nndiag-update-baseline")
    text = (pytester.path / "nndiag-baselines" / "test_it.test_net.json").read_text("utf-8")

    shown = json.loads(text)
    assert (shown["model"], shown["seeds"], shown["batches"]) == ("Sequential", 8, "drawn")
    assert [layer["name"] for layer in shown["layers"]] == ["0", "1", "2", "3", "4"]
    assert len(text) < 4_000
    assert len(text.splitlines()) == 5 + 3 * 2 + 5 + 6 + 1 + 2


def test_a_change_fails_and_says_what_moved_and_what_to_do_if_it_is_meant(inner, section):
    inner(held(), "--nndiag-update-baseline")
    result = inner(held(LOUDER))

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*differences from *test_it.test_net.json, beyond what other seeds explain",
            "E*parameter: 2.weight: its scale was * over 8 seeds), is * (× *",
            "E*If that is intended: pytest --nndiag-update-baseline *",
        ]
    )
    lines = section(result)
    assert any(line.strip().startswith("2.weight: its scale was") for line in lines)


def test_several_of_one_test_have_files_of_their_own(inner, saved):
    inner(
        "def test_net(diagnose):\n"
        "    for name in ('small', 'big'):\n"
        "        diagnose.baseline(well, batch, seeds=5, name=name)\n",
        "--nndiag-update-baseline",
    ).assert_outcomes(passed=1)

    assert len(saved("nndiag-baselines")) == 2


@pytest.mark.parametrize("where", ["option", "ini", "toml"])
def test_the_folder_can_be_named(inner, saved, pytester, where):
    options = ["--nndiag-update-baseline"]
    if where == "option":
        options.append("--nndiag-baseline=kept")
    elif where == "ini":
        pytester.makeini("[pytest]\nnndiag_baseline = kept\n")
    else:
        pytester.makepyprojecttoml("[tool.nndiag]\nbaseline = 'kept'\n")
    inner(held(), *options).assert_outcomes(passed=1)

    assert saved("kept") == ["test_it.test_net.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"nndiag baseline": 9}', '{"nndiag baseline": 1, "layers": 3}']
)
def test_a_file_that_is_no_baseline_is_an_error(inner, pytester, text):
    (pytester.path / "nndiag-baselines").mkdir()
    (pytester.path / "nndiag-baselines" / "test_it.test_net.json").write_text(text)
    result = inner(held())

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*ReportError: *test_net.json is no baseline of nndiag: *"])
    assert "nndiag/testing" not in result.stdout.str()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("well(), batch", "ModelError: diagnose.baseline got Sequential. Give a function"),
        ("lambda: 3, batch", "ModelError: build() returned int"),
        ("well, batch, seeds=3", "SettingsError: seeds = 3: a baseline needs at least 5"),
    ],
)
def test_bad_input_is_one_clear_error(inner, given, message):
    result = inner(
        f"def test_net(diagnose):\n    diagnose.baseline({given})\n", "--nndiag-update-baseline"
    )

    result.assert_outcomes(failed=1)
    assert message in result.stdout.str()
    assert "nndiag/testing" not in result.stdout.str()


def test_the_name_does_not_depend_on_what_else_is_diagnosed(inner, saved):
    inner(held(), "--nndiag-update-baseline")
    inner(
        held().replace("    diagnose.base", "    diagnose(build(), batch())\n    diagnose.base")
    ).assert_outcomes(passed=1)

    assert saved("nndiag-baselines") == ["test_it.test_net.json"]


@pytest.mark.parametrize("call", ["diagnose(well(), batch(), name='a')",
                                  "diagnose.baseline(well, batch, seeds=5, name='a')"])  # fmt: skip
def test_a_name_that_a_test_uses_twice_is_an_error(inner, call):
    result = inner(f"def test_it(diagnose):\n    {call}\n    {call}\n", "--nndiag-update-baseline")

    result.assert_outcomes(failed=1)
    assert "SettingsError: name='a' names an earlier" in result.stdout.str()


def test_the_command_it_tells_works_from_where_pytest_was_called(inner, pytester, monkeypatch):
    inner(held())
    (pytester.path / "below").mkdir()
    monkeypatch.chdir(pytester.path / "below")
    result = pytester.runpytest_inprocess("../test_it.py", "--rootdir=..")

    assert "pytest --nndiag-update-baseline ../test_it.py::test_net" in result.stdout.str()


def test_what_the_users_functions_raise_shows_no_frame_of_ours(inner):
    result = inner(
        "def build():\n    raise ValueError('no weights at hand')\n"
        "def test_it(diagnose):\n    diagnose.baseline(build, batch)\n",
        "--nndiag-update-baseline",
    )

    result.assert_outcomes(failed=1)
    assert "ValueError: no weights at hand" in result.stdout.str()
    assert "nndiag/testing" not in result.stdout.str()
