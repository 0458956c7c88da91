"""What the lecture's tests share.

A test is named after a claim. It first asks the function by which the page judges that claim, on
the committed tables. What follows is evidence of another kind: laws, closed forms, naive sums, and
small networks of its own. That the claims hold on other random numbers is a test of all pages, in
``tests/gallery``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the lecture's order, so that the list of tests reads like the lecture."""
    mine = [place for place, item in enumerate(items) if item.path.parent == HERE]
    if not mine:
        return
    from gallery.page import PAGES

    order = {f"test_{name}": place for place, name in enumerate(PAGES)}
    ordered = sorted((items[place] for place in mine), key=lambda item: order[item.path.stem])
    for place, item in zip(mine, ordered, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def seed() -> int:
    """Another one in each session: a claim holds whatever the seed."""
    return int(os.environ["NNDIAG_SEED"])
