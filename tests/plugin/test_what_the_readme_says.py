"""The README's tests run, and its table names the options there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nndiag import pytest_plugin, settings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## In a test suite\n")[2].partition("\n## ")[0]
NAMES = (
    "build_unet, build_gated, make_batch, loss = well, dead, batch, F.cross_entropy\n"
    "batch = batch()\n"
)


def test_its_tests_run(inner):
    fixture, parametrized = re.findall(r"```python\n(.*?)```", SECTION, re.S)
    names = NAMES.replace("batch = batch()\n", "")

    inner(NAMES + fixture).assert_outcomes(passed=1)
    result = inner(names + parametrized)
    result.assert_outcomes(passed=27, xfailed=1)


def test_its_table_lists_every_option(pytester):
    row = r"^\| `(--nndiag-[\w-]+)(?:=[^`]*)?` \| (?:`(\w+)`, `([\w-]+)` )?\|"
    listed = re.findall(row, SECTION, re.M)
    parser = pytest.Parser(_ispytest=True)
    pytest_plugin.pytest_addoption(parser)
    [group] = [g for g in parser._groups if g.name == "nndiag"]

    assert [option for option, _, _ in listed] == [o.names()[0] for o in group.options]
    assert [ini for _, ini, _ in listed if ini] == list(parser._inidict)
    assert {key for _, _, key in listed if key} <= set(settings._KEYS)
