"""Learning rates that are usual for an optimiser, to be named in advice."""

from __future__ import annotations

from collections.abc import Iterable

from nndiag.experiment import Group

__all__ = ["USUAL", "usual"]

USUAL = {"SGD": 1e-2, "Adadelta": 1.0, "Adagrad": 1e-2, "Adamax": 2e-3, "Rprop": 1e-2, "Lion": 1e-4}
"""By class. torch's defaults where they are in use; for all others, as for Adam, 0.001."""


def usual(groups: Iterable[Group]) -> str:
    """A sentence: the first rate that is usual for each of the optimisers."""
    rates = {group.optimizer: USUAL.get(group.optimizer, 1e-3) for group in groups}
    named = " and ".join(f"{rate:g} for {name}" for name, rate in rates.items())
    return f"A usual first rate is {named}."
