"""``--nndiag-update-baseline``."""

from __future__ import annotations

from plugin_parts import LOUDER, both, held


@both
def test_it_is_made_kept_and_met(inner, section, pytester):
    result = inner(held(), "--nndiag-update-baseline")

    result.assert_outcomes(passed=1)
    assert section(result) == [
        "1 baseline written. Review and commit:",
        "  nndiag-baselines/test_it.test_net.json",
    ]
    result = inner(held())
    result.assert_outcomes(passed=1)
    assert section(result) == []


def test_what_is_meant_is_written_anew(inner):
    inner(held(), "--nndiag-update-baseline")
    inner(held(LOUDER), "--nndiag-update-baseline").assert_outcomes(passed=1)

    inner(held(LOUDER)).assert_outcomes(passed=1)
    inner(held()).assert_outcomes(failed=1)


def test_what_is_met_stays_as_it_is(inner, section, pytester):
    inner(held(), "--nndiag-update-baseline")
    path = pytester.path / "nndiag-baselines" / "test_it.test_net.json"
    before = path.stat().st_mtime_ns, path.read_bytes()
    result = inner(held(), "--nndiag-update-baseline")

    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert section(result) == []


def test_a_file_that_is_broken_is_written_anew(inner, pytester):
    inner(held(), "--nndiag-update-baseline")
    path = pytester.path / "nndiag-baselines" / "test_it.test_net.json"
    path.write_text("<<<<<<< HEAD\n")

    inner(held(), "--nndiag-update-baseline").assert_outcomes(passed=1)
    inner(held()).assert_outcomes(passed=1)
