"""What holds for the whole suite."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

# No deadline: how fast an example runs is the machine's business. In CI the examples are the same
# each time; on a developer's machine each run looks at new ones.
settings.register_profile("nndiag", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("nndiag")


def pytest_configure() -> None:
    # The tests' tensors are small: two threads for each only wait for one another.
    torch.set_num_threads(1)
