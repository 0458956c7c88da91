"""What a step at usual and at wrong rates does to the loss: where the thresholds come from.

Remade by ``PYTHONPATH=tests python -m calibration.learning_rates``; writes ``learning-rates.csv``
and ``learning-rates.md`` into ``reports/calibration``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from calibration import experiments_optimizer as small
from calibration import healthy
from nndiag import judge
from nndiag.batch import Batch, batches
from nndiag.capture.watch import watch
from nndiag.experiment import Optimizer
from nndiag.loss import LossMaker
from nndiag.rules import discover

FOLDER = Path(__file__).parents[2] / "reports" / "calibration"
FACTORS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
ZOO: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD 0.01": lambda p: torch.optim.SGD(p, 0.01),
    "Adam 0.0001": lambda p: torch.optim.Adam(p, 1e-4),
    "Adam 0.01": lambda p: torch.optim.Adam(p, 1e-2),
    "RMSprop 0.001": lambda p: torch.optim.RMSprop(p, 1e-3),
}
DECAYS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "SGD": lambda p, d: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=d),
    "Adam": lambda p, d: torch.optim.Adam(p, 1e-3, weight_decay=d),
    "AdamW": lambda p, d: torch.optim.AdamW(p, 1e-3, weight_decay=d),
}


def look(model: Any, batch: Batch, loss_fn: Any, make: Any) -> Optimizer:
    needs = judge.needed({n: m for n, m in discover().items() if m.RULE.code.startswith("ND8")})
    snapshot = watch(
        model, [batch], needs=needs, loss=LossMaker(loss_fn, 0), optimizer=make, seed=0,
        max_batches=1,
    )  # fmt: skip
    found = snapshot.experiment.optimizer
    assert found is not None
    return found


def row(found: Optimizer) -> dict[str, float]:
    """Numbers of one look, as multiples of the loss before it."""
    losses, size = dict(found.losses), abs(found.before)

    def norm(part: str) -> float:
        return math.hypot(*(getattr(u, part) for u in found.updates))

    far = max((k for k, v in losses.items() if v <= found.before + found.noise), default=0.0)
    rest, data, pull, push = map(norm, ("rest", "data", "pull", "push"))
    return {
        "loss": found.before,
        "change": found.change / size,
        "update": norm("move") / norm("value"),
        "gradient": norm("grad") * norm("value") / size,
        "farthest": far,
        "one": found.after / size,
        "two": found.again[0] / size if found.again else math.nan,
        "share": max(rest / (rest + data), pull / (pull + push) if pull else 0.0),
    }


def zoo() -> Iterator[dict[str, Any]]:
    """Fresh networks that nothing is wrong with, at usual rates and at ten times them."""
    for network in healthy.at_init():
        subject = network.build(0)
        if subject.loss_fn is None:
            continue
        for name, make in ZOO.items():
            given = subject.batch
            batch = next(iter(batches(given, subject.model)))
            if subject.target is not None:
                args = given if isinstance(given, tuple) else (given,)
                batch = Batch(args, {}, subject.target)
            found = look(subject.model, batch, subject.loss_fn, make)
            if found.updates and found.losses:
                yield {"part": "zoo", "network": network.name, "optimizer": name, **row(found)}


def rates() -> Iterator[dict[str, Any]]:
    """Small networks at every rate, and what 60 steps at it come to."""
    for net in small.NETS:
        for name, make in small.OPTIMIZERS.items():
            for factor in FACTORS:
                model, x, y, loss = made = small.made(net)
                found = look(model, Batch((x,), {}, y), loss, lambda p, m=make, f=factor: m(p, f))
                small.fit(made, make(model.parameters(), factor), 60)
                end = float(loss(model(x), y).detach()) / abs(found.before)
                known = {"part": "rates", "network": net, "optimizer": name, "factor": factor}
                yield known | row(found) | {"end": end}


def decays() -> Iterator[dict[str, Any]]:
    """Small networks under weight decay, and what 120 steps come to."""
    for net in small.NETS:
        for name, make in DECAYS.items():
            for decay in (0.1, 10, 100, 300) if name == "AdamW" else (5e-4, 0.01, 0.1, 1.0, 5.0):
                model, x, y, loss = made = small.made(net)
                found = look(model, Batch((x,), {}, y), loss, lambda p, m=make, d=decay: m(p, d))
                small.fit(made, make(model.parameters(), decay), 120)
                end = float(loss(model(x), y).detach()) / abs(found.before)
                known = {"part": "decays", "network": net, "optimizer": name, "factor": decay}
                yield known | row(found) | {"end": end}


def page(rows: pd.DataFrame) -> str:
    """The tables that the thresholds refer to."""
    fresh, grid = rows[rows.part == "zoo"], rows[rows.part == "rates"]
    decay = rows[rows.part == "decays"]
    lines = [
        "# A step of the optimiser, at usual and at wrong rates",
        "",
        "Made by `python -m calibration.learning_rates`; the numbers are in "
        "[learning-rates.csv](learning-rates.csv).",
        "",
        f"## {fresh.network.nunique()} fresh networks that nothing is wrong with",
        "",
        "The smallest values over the networks. `change`: of the loss by one step, as a share of "
        "it. `update`: norm of the update over norm of the weights, over `gradient` where that is "
        "below 1; where the change is below 1.5e-5, and anywhere. `gradient`: gradient norm times "
        "weight norm over the loss. `two`: the largest loss after two steps where the first one "
        "raised it, over the loss before (of SGD: a variational autoencoder whose loss is a sum "
        "over pixels).",
        "",
        "| optimiser | change | update, small change | update | gradient | two |",
        "|---|---|---|---|---|---|",
    ]
    fresh = fresh.assign(update=fresh["update"] / fresh.gradient.clip(upper=1))
    for name, part in fresh.groupby("optimizer"):
        small_change = part[part.change.abs() < 1.5e-5]
        values = (part.change.abs().min(), small_change["update"].min(), part["update"].min(),
                  part.gradient.min(), part.two.max())  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(f"{v:.2g}" for v in values) + " |")
    lines += [
        "",
        "## Small networks at every rate",
        "",
        f"{grid.network.nunique()} networks, {grid.optimizer.nunique()} optimisers. Factor: of the "
        "usual rate. Change: the median. Farther: share of runs in which a step a hundred times as "
        "long still lowers the loss. One, two: the largest loss after one and after two steps, "
        "over the loss before. Fails: share of runs that end no lower than they began after 60 "
        "steps, or not finite.",
        "",
        "| factor | change | farther | one | two | fails |",
        "|---|---|---|---|---|---|",
    ]
    for factor, part in grid.groupby("factor"):
        fails = ~(part.end < 0.98)
        lines.append(
            f"| {factor:g} | {part.change.abs().median():.2g} | "
            f"{(part.farthest >= 100).mean():.0%} | {part.one.max():.3g} | {part.two.max():.3g} | "
            f"{fails.mean():.0%} |"
        )
    lines += [
        "",
        "## Weight decay",
        "",
        "`share`: of the gradient (AdamW: of the update) that is weight decay. End: the loss after "
        "120 steps over the loss before, smallest and largest.",
        "",
        "| share | runs | end |",
        "|---|---|---|",
    ]
    edges = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    for low, high in itertools.pairwise(edges):
        part = decay[(decay.share > low) & (decay.share <= high)]
        if len(part):
            lines.append(
                f"| {low:g} to {high:g} | {len(part)} | {part.end.min():.2g} to "
                f"{part.end.max():.2g} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = pd.DataFrame([*zoo(), *rates(), *decays()])
    rows.to_csv(FOLDER / "learning-rates.csv", index=False, float_format="%.4g")
    (FOLDER / "learning-rates.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
