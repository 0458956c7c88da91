"""Activations that cost several times what a ReLU costs.

What it does
------------

Names the activations that take at least twice as long as ReLU, forward and backward. The times were
measured with today's vectorised kernels on one CPU thread.

ELU, SELU and softplus take 2.3 to 2.5 times as long as ReLU, softsign 5 and Mish 10.

Why it matters
--------------

The lecture objects to sigmoid and tanh that they compute an exponential for every value, where ReLU
compares (CS231n 2017 lecture 6, slides 22-24). With today's kernels sigmoid takes 1.1 and tanh 1.0
times as long as ReLU: all of them are limited by memory bandwidth.

When it is no fault
-------------------

Never a fault: this is a property of the activation. The finding is a note. Beside large matrix
products even a costly activation hardly matters.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Mish(), nn.Linear(32, 4))
    batch = torch.randn(128, 16)

Well::

    model[1] = nn.ReLU()

References: CS231n 2017 lecture 6 slides 22-24.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow, ops
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["MEASURED", "RULE", "check"]

MEASURED = "reports/benchmarks/activation-cost.csv"

RULE = Rule(
    code="ND105",
    name="costly-activation",
    severity="note",
    about="activations",
    thresholds={
        "times_relu": Threshold(2.0, f"measured: {MEASURED}", 1, unit="factor"),
    },
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    costly = [
        layer
        for layer in snapshot.layers
        if flow.is_activation(layer) and _cost(layer) >= thresholds.times_relu
    ]
    if costly:
        values = sum(layer.output.total for layer in costly) / max(snapshot.samples, 1)
        times = max(map(_cost, costly))
        yield RULE.finding(
            costly[0],
            f"{flow.plural(len(costly), 'activation takes', 'activations take')} up to "
            f"{times:.2g} times as long as ReLU "
            f"({', '.join(dict.fromkeys(layer.op for layer in costly))}), over {values:,.0f} "
            "values per sample.",
            summary=f"{flow.plural(len(costly), 'activation')} will take up to {times:.2g} times "
            "as long as ReLU.",
            against=("times_relu", thresholds),
            evidence={"times_relu": times, "values_per_sample": values},
        )


def _cost(layer: Layer) -> float:
    return ops.named(layer.op).cost or 1.0
