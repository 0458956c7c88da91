"""Hand-built repairs, made of the hand-built reports: the few that every format is tested on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import samples

from nndiag.fixes.actions import Action
from nndiag.fixes.fix import Fix
from nndiag.fixes.result import Repair, Step
from nndiag.fixes.trial import Trial
from nndiag.report import Report
from nndiag.stats import FlatStats, Node

NO_MODEL = cast(Any, None)  # what renders a repair has no business with its model

REDRAW = Fix(
    "redraw",
    "Re-initialise encoder.0 with He weights.",
    "They are 11.3 times as large as they should be.",
    "each layer's output is as large as its input",
    "weights",
    (Action("draw-normal", ("encoder.0.weight",), (2**0.5, 4)),),
)
SWAP = Fix(
    "swap-activation",
    "Replace tanh by ReLU at encoder.2.",
    changes="architecture",
    actions=(Action("swap", ("encoder.2",), ("ReLU",)),),
    source="In __init__, replace nn.Tanh() by nn.ReLU().",
)


def step(
    rule: str = "init-scale",
    fix: Fix = REDRAW,
    reason: str = "init-scale is gone",
    *,
    taken: bool = True,
    layers: tuple[str, ...] = ("encoder.0.weight",),
) -> Step:
    return Step(
        rule,
        samples.RULES[rule].RULE.code,
        layers,
        fix,
        taken,
        reason,
        not reason.startswith("not tried"),
    )


def repair(before: Report, after: Report, *steps: Step, **more: Any) -> Repair:
    return Repair(NO_MODEL, before, after, steps, more.pop("trained", ""), "all", 0, **more)


def decaying(ends: tuple[float, ...], steps: int = 40) -> np.ndarray:
    """Losses that fall from 2.3 to these ends, one seed each."""
    way = np.linspace(0, 1, steps)
    return np.array([2.3 * (end / 2.3) ** way for end in ends])


def trained_better() -> Trial:
    return Trial((0, 1, 2), decaying((2.2, 2.21, 2.22)), decaying((0.01, 0.012, 0.009)))


def diverged() -> Trial:
    losses = decaying((2.2, 2.2, 2.2))
    losses[:, 25:] = np.nan
    return Trial((0, 1, 2), losses, decaying((0.5, 0.4, 0.6)))


def tie() -> Trial:
    return Trial((0, 1, 2), decaying((0.5, 0.4, 0.6)), decaying((0.4, 0.6, 0.5)))


def after() -> Report:
    """The sick network, with a batch norm and a ReLU where encoder.2 was a tanh."""
    report = samples.healthy()
    old = report.snapshot.layers
    relu = np.maximum(np.random.default_rng(2).normal(size=(8, 4)), 0)
    grad = samples.stats(np.full((8, 4), 1e-3))
    layers = (
        replace(old[0], grad=grad),
        old[1],
        samples.layer("encoder.2.0", "batch_norm", "BatchNorm1d", node=3),
        samples.layer(
            "encoder.2.1", "relu", "ReLU", node=4, output=samples.stats(relu),
            input=samples.stats(relu - 0.5), flat=FlatStats(8, 32, 16, np.ones(4, dtype=bool)),
        ),
        samples.layer("decoder.mlp.up", node=5),
        samples.layer("head", node=6),
    )  # fmt: skip
    nodes = (Node("input"), *(Node(r.op, (i,), i) for i, r in enumerate(layers)))
    snapshot = replace(report.snapshot, layers=layers, nodes=nodes, outputs=(6,))
    return replace(report, snapshot=snapshot)


def before() -> Report:
    """The sick network; its tanh has an input, as one that was watched has."""
    report = samples.sick()
    layers = list(report.snapshot.layers)
    layers[2] = replace(layers[2], input=samples.stats(np.arange(32.0).reshape(8, 4)))
    return replace(report, snapshot=replace(report.snapshot, layers=tuple(layers)))


def repaired() -> Repair:
    return repair(
        before(),
        after(),
        step(taken=False, fix=samples.FIX, reason="init-scale stays as it is"),
        step(),
        step("saturation", SWAP, "saturation is gone", layers=("encoder.2", "encoder.4", "head")),
        trial=trained_better(),
        held_out=(samples.sick(), samples.healthy()),
        notes=("make the optimiser again from the repaired model's parameters",),
    )


def better() -> Repair:
    """One warning is left, and training shows no difference."""
    sick = samples.sick()
    dead = next(f for f in sick.findings if f.rule == "dead-relu")
    report = replace(samples.healthy(), findings=(dead,))
    failed = step(
        "dead-relu", REDRAW, "it brings a new error: non-finite at head", taken=False,
        layers=("encoder.3.act",),
    )  # fmt: skip
    return repair(before(), report, step(), failed, trial=tie())


def safe() -> Repair:
    """A trained model, and leave for nothing: three fixes not tried, one of them at two places."""
    trained = "not tried: the model is trained (norm.weight is not the constant it starts as)"
    architecture = "not tried: it changes the architecture, which allow='all' permits"
    steps = (
        step(taken=False, reason=trained),
        step("dead-relu", REDRAW, trained, taken=False, layers=("encoder.1/relu", "encoder.3")),
        step("dead-relu", REDRAW, trained, taken=False, layers=("encoder.1/relu",)),
        step("saturation", SWAP, architecture, taken=False, layers=("encoder.2",)),
    )
    return replace(repair(samples.sick(), samples.sick(), *steps), allow="safe")


def hopeless() -> Repair:
    failed = step(taken=False, reason="it raises ValueError: no")
    return repair(samples.sick(), samples.sick(), failed)


def healthy() -> Repair:
    return repair(samples.healthy(), samples.healthy())


def empty() -> Repair:
    return repair(samples.empty(), samples.empty())


def without_gradients() -> Repair:
    made = repaired()
    bare = [
        replace(
            report,
            snapshot=replace(
                report.snapshot,
                has_gradients=False,
                layers=tuple(replace(layer, grad=None) for layer in report.snapshot.layers),
            ),
        )
        for report in (made.before, made.after)
    ]
    return replace(made, before=bare[0], after=bare[1], trial=None)


def hostile(name: str) -> Repair:
    """A repair in which everything that a model's author can name is called ``name``."""
    report = samples.hostile(name)
    fix = Fix("redraw", name, name, name, "weights", (Action("set-zeros", (name,)),), name)
    taken = Step(name, "ND1", (name,), fix, True, name)
    refused = replace(taken, taken=False)
    return repair(
        report, report, taken, refused, trained=name, trial=tie(), held_out=(report, report),
        notes=(name,),
    )  # fmt: skip


def large(layers: int = 200) -> Repair:
    """Every layer has findings before and none after; twenty seeds were trained for long."""
    sick = samples.large(layers)
    fine = replace(sick, findings=(), outcomes=samples.healthy().outcomes)
    losses = decaying((0.1,) * 20, 3000)
    steps = [
        step(layers=tuple(layer.name for layer in sick.snapshot.layers)),
        *(step(taken=False, reason=f"it raises ValueError: {i}") for i in range(30)),
    ]
    return repair(sick, fine, *steps, trial=Trial(tuple(range(20)), losses, 0.5 * losses))
