"""Runs of one network that should compare as equal, and changes that should not.

The networks, their data and optimizers are those of the trained half of the calibration
(``calibration.trained``): real data, every family. A run has its own seed, for the weights, for
what it is trained on, and for the batch that is looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from calibration.trained import TRAINED, Recipe, one_thread, train
from torch import nn

import nndiag
from nndiag.render import comparison
from nndiag.report import Report

STAGES = (0, 30)
"""Steps of training."""

LOOKED_AT = 128

FIRST = 2_000
"""Seeds up to here are those that the bands were set on."""

Edit = Callable[[nn.Module, torch.Tensor], "tuple[nn.Module, torch.Tensor] | None"]


def run(recipe: Recipe, stage: int, seed: int, edit: Edit | None = None) -> Report | None:
    """None where there is nothing to edit."""
    data = recipe.task.data()
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = train(replace(recipe, steps=stage), seed).model if stage else recipe.build()
        torch.manual_seed(10_000_019 + seed)
        chosen = torch.randperm(len(data.x))[:LOOKED_AT]
        x, y = data.x[chosen], data.y[chosen]
        if edit is not None:
            edited = edit(copy.deepcopy(model), x)
            if edited is None:
                return None
            model, x = edited
        return nndiag.check(model, x, y, recipe.task.loss, config=False)


# -- what should be seen ------------------------------------------------------------------------


def larger_weights(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(1.5)
    return model, x


_SWAPS: dict[type[nn.Module], Callable[[], nn.Module]] = {
    nn.ReLU: nn.Tanh, nn.Tanh: nn.ReLU, nn.GELU: nn.Sigmoid, nn.SiLU: nn.Tanh,
    nn.Sigmoid: nn.ReLU, nn.SELU: nn.Tanh, nn.ELU: nn.Tanh, nn.LeakyReLU: nn.Tanh,
}  # fmt: skip
_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d,
)  # fmt: skip


def _replaced(
    model: nn.Module, wanted: Callable[[nn.Module], nn.Module | None]
) -> nn.Module | None:
    found = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            new = wanted(child)
            if new is not None:
                setattr(parent, name, new)
                found = True
    return model if found else None


def another_activation(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor] | None:
    swapped = _replaced(model, lambda m: _SWAPS[type(m)]() if type(m) in _SWAPS else None)
    return None if swapped is None else (swapped, x)


def no_norm(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor] | None:
    bare = _replaced(model, lambda m: nn.Identity() if isinstance(m, _NORMS) else None)
    return None if bare is None else (bare, x)


def larger_input(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor] | None:
    return (model, x * 2) if x.is_floating_point() else None


EDITS: dict[str, Edit] = {
    "weights × 1.5": larger_weights,
    "another activation": another_activation,
    "no normalisation": no_norm,
    "input × 2": larger_input,
}
RECIPES = {recipe.name: recipe for recipe in TRAINED}


Asked = tuple[str, int, int, str]
"""Network, steps of training, number of the pair, and what is changed in its second run."""


def job(asked: Asked) -> dict[str, object] | None:
    name, stage, number, change = asked
    recipe = RECIPES[name]
    # Each run has a seed of its own: no two pairs share one.
    seed = FIRST + 2 * number
    old, new = run(recipe, stage, seed), run(recipe, stage, seed + 1, EDITS.get(change))
    if old is None or new is None:
        return None
    found = old.compare(new)
    reasons = [comparison.difference_text(d) for d in found.differences]
    reasons += [comparison.change_text(c) for c in found.appeared + found.vanished]
    return {
        "network": name,
        "steps": stage,
        "pair": number,
        "change": change,
        "same": found.same,
        "why": "" if found.same else reasons[0][:200],
    }
