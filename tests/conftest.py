"""What holds for the whole suite."""

from __future__ import annotations

import os
import secrets

import torch
from hypothesis import settings

# No deadline: how fast an example runs is the machine's business. In CI the examples are the same
# each time; on a developer's machine each run looks at new ones.
settings.register_profile("nndiag", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("nndiag")


def pytest_configure() -> None:
    # The tests' tensors are small: two threads for each only wait for one another.
    torch.set_num_threads(1)
    # What is true of a claim is true whatever the seed; workers of xdist inherit it.
    os.environ.setdefault("NNDIAG_SEED", str(secrets.randbelow(2**31)))


def pytest_report_header() -> str:
    return f"lecture: seed {os.environ['NNDIAG_SEED']} (set NNDIAG_SEED to repeat one)"
