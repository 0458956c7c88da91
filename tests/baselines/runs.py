"""Baselines of networks of all families, runs that should meet them, and changes that should not.

The networks and their real data are those of the trained half of the calibration, as they are
initialised. A run has its own seed, for the weights and for the batch that is looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from calibration.trained import TRAINED, Recipe, one_thread
from comparison.pairs import EDITS, LOOKED_AT, Edit
from torch import nn

from nndiag.testing import baseline
from nndiag.testing.baseline import Baseline

RECIPES = {recipe.name: recipe for recipe in TRAINED}
ORIGINS = ("drawn", "resampled")
FIRST = 10_000
"""Seeds of runs begin here, each 100 after the last: a run's further seeds lie between."""


def one_larger(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """The weights in the middle of the network."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    with torch.no_grad():
        matrices[len(matrices) // 2].mul_(1.5)
    return model, x


def frozen(model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    next(model.parameters()).requires_grad_(False)
    return model, x


CHANGES: dict[str, Edit] = {
    **EDITS, "one layer's weights × 1.5": one_larger, "a frozen parameter": frozen,
}  # fmt: skip


def given(
    recipe: Recipe, change: str = "none"
) -> tuple[Callable[[], nn.Module], Callable[[], Any]]:
    """What builds the model, and what draws a batch for it."""
    data, edit = recipe.task.data(), CHANGES.get(change)

    def build() -> nn.Module:
        model = recipe.build()
        if edit is not None:
            model, _ = edit(model, torch.zeros(1)) or (model, None)
        return model

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randperm(len(data.x))[:LOOKED_AT]
        x = data.x[chosen]
        if change == "input × 2":
            x = x * 2
        return x, data.y[chosen]

    return build, draw


def applies(recipe: Recipe, change: str) -> bool:
    model, x = recipe.build(), recipe.task.data().x[:2]
    return CHANGES[change](copy.deepcopy(model), x) is not None


def made(recipe: Recipe, origin: str) -> Baseline:
    build, draw = given(recipe)
    batch: Any = draw
    if origin == "resampled":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            batch = draw()
    found = baseline.make(build, batch, None, recipe.task.loss)
    assert found.batches == origin
    return found


def held(known: Baseline, recipe: Recipe, number: int, change: str = "none") -> str:
    """Why a run does not meet a baseline; "" if it does."""
    build, draw = given(recipe, change)
    found = known.confirmed(
        lambda seed: baseline.look(build, draw, None, recipe.task.loss, seed=seed)[0],
        FIRST + 100 * number,
    )
    return found[0].text[:200] if found else ""


def job(asked: tuple[str, str, int, int]) -> list[dict[str, object]]:
    name, origin, runs, changed = asked
    recipe = RECIPES[name]
    with one_thread():
        return list(_rows(recipe, origin, runs, changed))


def _rows(recipe: Recipe, origin: str, runs: int, changed: int) -> Iterator[dict[str, object]]:
    known = made(recipe, origin)
    todo = [("none", number) for number in range(runs)]
    for change in CHANGES:
        if applies(recipe, change):
            todo += [(change, number) for number in range(changed)]
    for change, number in todo:
        why = held(known, recipe, number, change)
        yield {
            "network": recipe.name, "batches": origin, "numbers": known.count,
            "bytes": len(known.dumps()), "change": change, "run": number, "met": not why,
            "why": why,
        }  # fmt: skip
