"""What holds for the whole suite."""

from __future__ import annotations

import os
import secrets

import pytest
import torch
from effort import ALL, LAID_OUT, QUICK, is_quick, left_out, looked_at_harder
from hypothesis import settings

# No deadline: how fast an example runs is the machine's business. In CI the examples are the same
# each time; on a developer's machine each run looks at new ones.
settings.register_profile("all", max_examples=ALL, deadline=None, derandomize="CI" in os.environ)
settings.register_profile("quick", settings.get_profile("all"), max_examples=QUICK)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("quick" if is_quick(config) else "all")
    # The tests' tensors are small: two threads for each only wait for one another.
    torch.set_num_threads(1)
    # What is true of a claim is true whatever the seed; workers of xdist inherit it.
    os.environ.setdefault("NNDIAG_SEED", str(secrets.randbelow(2**31)))


def pytest_report_header() -> str:
    return f"lecture: seed {os.environ['NNDIAG_SEED']} (set NNDIAG_SEED to repeat one)"


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not ask for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in left_out(items):
        item.add_marker("exhaustive")
    config.stash[LAID_OUT] = [
        (item.nodeid, item.get_closest_marker("exhaustive") is None) for item in items
    ]
    if not is_quick(config):
        for item in looked_at_harder(items):
            item.add_marker("exhaustive")
