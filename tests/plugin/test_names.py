"""What the report of a test is called."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nndiag.testing.session import file_name

words = st.from_regex(r"[a-zA-Z0-9_]{1,6}", fullmatch=True)
ids = st.text(max_size=12) | words
titles = st.builds(
    lambda folders, file, tests, given: "/".join([*folders, f"test_{file}.py"])
    + "".join(f"::{t}" for t in tests)
    + "".join(f"[{g}]" for g in given),
    st.lists(words, max_size=2), words, st.lists(words, min_size=1, max_size=2),
    st.lists(ids, max_size=2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("test_a.py::test_b", "test_a.test_b"),
        ("tests/unit/test_a.py::TestX::test_b[unet]", "tests-unit-test_a.TestX.test_b-unet"),
        ("test_a.py::test_b[unet][2]", "test_a.test_b-unet-2"),
    ],
)
def test_plain_names_stay_plain(title, name):
    assert file_name(title) == name


@given(titles)
def test_every_system_takes_it(title):
    name = file_name(title)

    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)
    assert len(name) <= 120


@given(st.lists(titles, min_size=2, max_size=2, unique=True))
def test_other_tests_have_other_names(pair):
    assert file_name(pair[0]) != file_name(pair[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("test_a.py::t[b-2]", "test_a.py::t[b][2]"),
        ("test_a.py::t[a/b]", "test_a.py::t[a.b]"),
        ("a/test_b.py::t", "a.test_b.py::t"),
        ("a/test_b.py::T::t", "a/test_b/T.py::t"),
        ("test_a.py::T::t", "test_a.py::T.t"),
        (f"test_a.py::t[{'x' * 200}]", f"test_a.py::t[{'x' * 201}]"),
    ],
)
def test_names_that_look_alike_are_told_apart(one, other):
    assert file_name(one) != file_name(other)
