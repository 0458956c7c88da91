"""Tests for the inner sessions, and what several files here share."""

from __future__ import annotations

import pytest

HEAD = """
import pytest
import torch
from torch import nn
import torch.nn.functional as F
import nndiag.testing
from nets import batch, dead, sick, well


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
"""

# Workers are processes, which each load torch: ``make test`` has one of them, in one test.
WITH_WORKERS = ("-n", "2")
both_quick = pytest.mark.parametrize(
    "workers",
    [(), ("-n", "1"), pytest.param(WITH_WORKERS, marks=pytest.mark.exhaustive)],
    ids=["plain", "with a worker", "with workers"],
    indirect=True,
)
both = pytest.mark.parametrize(
    "workers",
    [(), pytest.param(WITH_WORKERS, marks=pytest.mark.exhaustive)],
    ids=["plain", "with workers"],
    indirect=True,
)


def cases(names: str, values: list[tuple[object, ...]]) -> pytest.MarkDecorator:
    """Each case in one process; the first one with workers, too."""
    plain = [(*value, ()) for value in values]
    first = pytest.param(*values[0], WITH_WORKERS, marks=pytest.mark.exhaustive)
    return pytest.mark.parametrize(f"{names},workers", [*plain, first], indirect=["workers"])


SICK = "def test_sick(diagnose):\n    diagnose(sick(), batch(), loss_fn=F.cross_entropy)\n"
DEAD = "def test_dead(diagnose):\n    diagnose(dead(), batch(), loss_fn=F.cross_entropy)\n"
WELL = (
    "def test_well(diagnose):\n"
    "    report = diagnose(well(), batch(), loss_fn=F.cross_entropy)\n"
    "    assert report.ok and report.snapshot.has_gradients\n"
)
LOUDER = "    model[2].weight.data.mul_(5)\n"


def held(hurt: str = "") -> str:
    """A test that holds a network against its baseline; ``hurt`` is done to the network first."""
    return (
        f"def build():\n    model = well()\n{hurt}    return model\n"
        "def test_net(diagnose):\n"
        "    diagnose.baseline(build, batch, loss_fn=F.cross_entropy, seeds=8)\n"
    )
