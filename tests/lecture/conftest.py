"""What the lecture's tests share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def seed() -> int:
    """Another one in each session: a claim holds whatever the seed."""
    return int(os.environ["NNDIAG_SEED"])
