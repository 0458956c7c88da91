"""Layer inputs whose distribution moves when the layers before them learn.

What it does
------------

Measures how far one update would move the inputs of each layer, how much the scale of layer inputs
differs along a chain, and whether BatchNorm's running statistics fit this batch.

The update is virtual. Every parameter is moved by 1 % of its norm against its gradient, the same
batch runs again, and everything is undone. The finding says how far the means of a layer's inputs
moved, in standard deviations, and how this grows with depth.

In evaluation mode BatchNorm uses running statistics. They do not fit a batch if the mean of the
median channel is off by more than 2 running standard deviations, or its variance by a factor beyond
10. The layer behind it then sees inputs that it was not trained on: a warning.

Why it matters
--------------

Ioffe & Szegedy 2015 call the change of a layer's input distribution by the training of the layers
before it internal covariate shift, and built BatchNorm to reduce it. Santurkar et al. 2018 measured
that BatchNorm trains better without reducing it. So the shift of an update is
shown as a number, not as a fault.

When it is no fault
-------------------

The shift of an update and the drift of the scale are a note at most: healthy networks shift,
saturated ones hardly do. A BatchNorm that never saw a batch has no running statistics yet: a note.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    for _ in range(50):
        model(torch.randn(64, 8))
    model.eval()
    batch = torch.randn(128, 8) * 8 + 20

Well::

    batch = torch.randn(128, 8)

References: Ioffe & Szegedy 2015, section 2; Santurkar et al. 2018, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import flow, ops
from nndiag.fixes import propose
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND501",
    name="covariate-shift",
    severity="warning",
    about="activations",
    uses=("gradients", "step"),
    thresholds={
        "running_mean": Threshold(
            2.0,
            "derived: for a batch like the training data the mean of n samples is off by 1/√n of a "
            "standard deviation; 2 is out of reach from n = 8 on",
            0,
        ),
        "running_variance": Threshold(
            10.0,
            "derived: the variance of 8 normal samples lies within a factor 10 of the truth with "
            "probability 99.8 % (chi-square, 7 degrees of freedom)",
            1,
            unit="factor",
        ),
        "shift": Threshold(
            0.5,
            "derived: a shift of half a standard deviation moves 20 % of a normal distribution "
            "(Kolmogorov-Smirnov distance 2Φ(d/2) - 1 = 0.197)",
            0,
        ),
        "drift": Threshold(
            10.0,
            "derived: a layer fed at ten times another's scale takes a hundred times its step",
            1,
            unit="factor",
        ),
    },
    caused_by=(
        "training-damage",
        "input-missing",
        "input-scale",
        "input-not-centered",
        "non-finite",
        "init-scale",
        "exploding-gradient",
        "covariate-shift",
    ),
    fixes=(
        advice(
            "Re-estimate the running statistics on training data.",
            "Some forward passes in training mode are enough.",
            "model.train()\n"
            "with torch.no_grad():\n"
            "    for x, _ in loader:\n"
            "        model(x)\n"
            "model.eval()",
            "scale",
        ),
        advice("Check that evaluation data are preprocessed as the training data were."),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    yield from _running_statistics(snapshot, thresholds)
    yield from _virtual_update(snapshot, thresholds)
    yield from _drift(snapshot, thresholds)


def _running_statistics(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    for layer in snapshot.layers:
        if "running_mean_shift" not in layer.facts or layer.output.nonfinite:
            continue
        shift = layer.facts["running_mean_shift"]
        ratio = layer.facts["running_variance_ratio"]
        tracked = layer.facts.get("batches_tracked", float("nan"))
        off = max(ratio, 1 / ratio) if ratio > 0 else float("inf")
        if shift <= thresholds.running_mean and off <= thresholds.running_variance:
            continue
        fresh = tracked == 0
        wrong = f"its running mean is off by {number(shift)} standard deviations"
        if shift <= thresholds.running_mean:
            wrong = f"its running variance is off by a factor {number(off)}"
        if fresh:
            wrong = "it has not seen a batch in training mode"
        yield RULE.finding(
            layer,
            "In evaluation mode its running statistics do not fit this batch. The mean of the "
            f"median channel is off by {shift:.2g} running standard deviations, its variance by a "
            f"factor {off:.2g}."
            + (" It has not seen a single batch in training mode." if fresh else ""),
            summary=f"{layer.name} will normalise wrongly: {wrong}.",
            severity="note" if fresh else "warning",
            against=(
                "running_mean" if shift > thresholds.running_mean else "running_variance",
                thresholds,
            ),
            fixes=(*propose.recalibrate(), *RULE.fixes[-1:]),
            evidence={"running_mean": shift, "running_variance": off, "batches_tracked": tracked},
        )


def _virtual_update(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    moved = [
        (layer, layer.shift)
        for layer in snapshot.layers
        if layer.shift is not None and layer.op in ops.LEARNED
    ]
    over = [(layer, shift) for layer, shift in moved if shift.mean >= thresholds.shift]
    if not over:
        return
    layer, shift = max(over, key=lambda item: item[1].mean)
    least = next((s.mean for _, s in moved if s.mean > 0), shift.mean)
    yield RULE.finding(
        layer,
        f"One update of 1 % of the weights' norm moves the means of its inputs by {shift.mean:.2g} "
        f"standard deviations and their scale by a factor {math.exp(shift.scale):.2g}. The inputs "
        f"of {len(over)} of {len(moved)} layers move by more than {thresholds.shift:g}.",
        summary=f"One update of 1 % will move the inputs of {layer.name} by {shift.mean:.2g} "
        "standard deviations.",
        severity="note",
        against=("shift", thresholds),
        fixes=(),
        evidence={
            "shift": shift.mean,
            "log_scale": shift.scale,
            "amplification": shift.mean / least if least else float("nan"),
            "layers": len(over),
        },
    )


def _drift(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    drifts = []
    for chain in flow.chains(snapshot):
        fed = [
            (link.layer.input.rms, link.layer)
            for link in chain.links[1:]
            if link.layer.input is not None and link.layer.input.rms > 0
        ]
        if len(fed) >= 2:
            low, high = min(fed, key=lambda x: x[0]), max(fed, key=lambda x: x[0])
            drifts.append((high[0] / low[0], low, high))
    over = [drift for drift in drifts if drift[0] >= thresholds.drift]
    if over:
        ratio, (smallest, first), (largest, last) = max(over, key=lambda x: x[0])
        others = flow.plural(len(over) - 1, "more chain")
        more = f" The same holds for {others}." if len(over) > 1 else ""
        yield RULE.finding(
            first,
            f"The scale of layer inputs differs by a factor {ratio:.3g} along this chain, from "
            f"{smallest:.2g} at {first.name} to {largest:.2g} at {last.name}.{more}",
            summary="Layers will learn at different speeds: the scale of their inputs differs "
            f"{ratio:.3g}-fold.",
            severity="note",
            against=("drift", thresholds),
            fixes=(),
            evidence={"drift": ratio, "chains": len(over)},
        )
