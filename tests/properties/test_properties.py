"""The published table is what the batteries say now."""

from __future__ import annotations

import pandas as pd
import pytest

from properties import __main__ as command
from properties.blocks import KINDS

TABLE = pd.read_csv(command.OUTPUT / "properties.csv", keep_default_na=False)


def measured(kind, name):
    results = kind.battery.results(kind.blocks[name](), {}, {})
    return {r.name: (r.status, "" if r.value is None else command._cell(r.value)) for r in results}


def ours(kind):
    """Of our own: other versions of torch and scikit-learn may differ from what was published."""
    return [name for name in kind.blocks if name.startswith("fixes.")] or list(kind.blocks)[:1]


# ``make test`` looks at every third of each kind.
BLOCKS = [
    pytest.param(
        kind,
        name,
        id=f"{kind.battery.kind}-{name}",
        marks=pytest.mark.exhaustive if place % 3 else (),
    )
    for kind in KINDS
    for place, name in enumerate(ours(kind))
]


@pytest.mark.parametrize(("kind", "name"), BLOCKS)
def test_it_holds_what_is_measured(kind, name):
    rows = TABLE[(TABLE.kind == kind.battery.kind) & (TABLE.block == name)]
    text = {row.property: (row.status, row.value) for row in rows.itertuples()}
    assert text == measured(kind, name)


def test_it_has_every_block_and_every_property():
    wanted = {
        (kind.battery.kind, block, name)
        for kind in KINDS for block in kind.blocks for name in kind.battery.properties
    }  # fmt: skip
    assert set(zip(TABLE.kind, TABLE.block, TABLE.property, strict=True)) == wanted


def test_the_page_is_that_table():
    text = (command.OUTPUT / "README.md").read_text("utf-8")
    ending = text.index("Every result is in")

    assert command.page(TABLE)[:ending] == text[:ending]
    assert "| Sigmoid | 0 to 1 | yes | yes | 0.25 | both | neither | 0.5 |" in text
    assert "- ones_, rows-differ: units 0 and 1" in text
