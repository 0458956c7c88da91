"""``make test`` leaves out the long forms of laws, and no rule, format, law or page altogether."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from effort import LAID_OUT, left_out, looked_at_harder

from nndiag import rules

TESTS = Path(__file__).parent


@pytest.fixture
def quick(request) -> dict[str, list[bool]]:
    """Each test function by its place below ``tests``: whether ``make test`` runs its cases."""
    cases = defaultdict(list)
    for name, is_quick in request.config.stash[LAID_OUT]:
        cases[name.partition("[")[0].removeprefix("tests/")].append(is_quick)
    collected = {name.partition("::")[0] for name in cases}
    there = {str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")}
    if there - collected - {"cuda/test_cuda.py"}:  # which is for machines that have a GPU
        # What the whole suite touches can only be checked on the whole suite.
        pytest.skip("only a part of the suite was asked for")
    return cases


def of(quick: dict[str, list[bool]], start: str) -> dict[str, list[bool]]:
    found = {name: cases for name, cases in quick.items() if name.startswith(start)}
    assert found, start
    return found


def test_every_file_has_a_quick_test(quick):
    files = {name.partition("::")[0] for name in quick}

    assert [f for f in sorted(files) if not any(map(any, of(quick, f"{f}::").values()))] == []


def test_every_law_is_looked_at(quick):
    assert [name for name, cases in of(quick, "laws/").items() if not any(cases)] == []


def test_every_rule_has_all_that_holds_of_every_rule_and_tests_of_its_own(quick):
    assert all(map(all, of(quick, "test_every_rule.py::").values()))
    for name in rules.discover():
        assert any(map(any, of(quick, f"rules/test_{name.replace('-', '_')}.py::").values())), name


def test_every_format_is_held_against_its_golden_file(quick):
    assert all(map(all, of(quick, "render/test_golden.py::").values()))


def test_every_kind_of_page_is_opened(quick):
    looks = of(quick, "render/test_page.py::")
    opened = [name for name in looks if "open" in name]

    assert len(opened) >= 4  # a report, a comparison and an index, the gallery, a repair
    assert all(any(looks[name]) for name in opened)


def test_of_a_test_with_many_cases_one_in_so_many_is_quick(pytester):
    pytester.makeini("[pytest]\nmarkers = one_in(n): so many\n")
    items = pytester.getitems(
        "import pytest\n"
        "@pytest.mark.one_in(3)\n"
        "@pytest.mark.parametrize('b', 'xy')\n"
        "@pytest.mark.parametrize('a', 'xy')\n"
        "def test_one(a, b): pass\n"
        "def test_other(): pass\n"
    )

    left = list(left_out(items))

    assert [item.name for item in items if item not in left] == [
        "test_one[x-x]", "test_one[y-y]", "test_other",
    ]  # fmt: skip


def test_laws_and_tests_that_call_one_are_looked_at_harder(pytester):
    items = pytester.getitems(
        "from hypothesis import given, strategies as st\n"
        "@given(st.integers())\n"
        "def law(n): pass\n"
        "@given(st.integers())\n"
        "def test_law(n): pass\n"
        "def test_that_calls_one(): law()\n"
        "def test_with_one_inside(): given(st.integers())(lambda n: None)()\n"
        "def test_other(): pass\n"
    )

    assert [item.name for item in looked_at_harder(items)] == [
        "test_law", "test_that_calls_one", "test_with_one_inside",
    ]  # fmt: skip
