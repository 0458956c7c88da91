"""What holds for the whole suite."""

from __future__ import annotations

import torch


def pytest_configure() -> None:
    # The tests' tensors are small: two threads for each only wait for one another.
    torch.set_num_threads(1)
