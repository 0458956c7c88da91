"""A copy of a model with new weights: what it was like before its training."""

from __future__ import annotations

import copy

import torch
from torch import nn

from nndiag.capture.untouched import seeded

__all__ = ["drawn_again"]


def drawn_again(model: nn.Module, seed: int) -> nn.Module | None:
    """A copy whose weights are drawn anew by each module's own ``reset_parameters``.

    What is frozen stays. None where the model cannot be copied, or where a weight that learns has
    no ``reset_parameters`` that draws it.
    """
    try:
        fresh = copy.deepcopy(model)
        with seeded(seed):
            for module in fresh.modules():
                reset = getattr(module, "reset_parameters", None)
                own = list(module.parameters())
                if callable(reset) and (not own or any(p.requires_grad for p in own)):
                    reset()
    except Exception:  # locks, results of computations, a reset that needs arguments
        return None
    for old, new in zip(model.parameters(), fresh.parameters(), strict=True):
        same = old.requires_grad and torch.equal(old, new)
        if same and old.numel() > 1 and not bool((old == old.reshape(-1)[0]).all()):
            return None
    return fresh
