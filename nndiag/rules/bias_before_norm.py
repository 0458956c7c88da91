"""Biases that the normalisation behind them subtracts again.

What it does
------------

Looks for layers with a bias whose output goes straight into a normalisation that subtracts the mean
of each unit: BatchNorm or InstanceNorm.

Why it matters
--------------

What a bias adds to a unit is subtracted again with the unit's mean. The bias has no effect, its
gradient is zero up to rounding, and it takes memory and time (Ioffe & Szegedy 2015, section 3.2).

When it is no fault
-------------------

It is never a fault: the network computes the same with and without these biases. The finding is a
note.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    batch = torch.randn(128, 8)

Well::

    model[0] = nn.Linear(8, 16, bias=False)

References: Ioffe & Szegedy 2015, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow, ops
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND503",
    name="bias-before-norm",
    severity="note",
    about="parameters",
    fixes=(
        advice(
            "Create these layers without a bias.",
            "The normalisation has a shift of its own.",
            "nn.Linear(8, 16, bias=False)",
            "architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    layers = [layer for layer in snapshot.layers if _has_lost_bias(snapshot, layer)]
    if not layers:
        return
    names = list(dict.fromkeys(x.weight.bias for x in layers if x.weight and x.weight.bias))
    values = sum(snapshot.parameter[name].value.total for name in names)
    several = len(names) > 1
    yield RULE.finding(
        layers[0],
        f"{flow.plural(len(names), 'bias', 'biases')} ({flow.plural(values, 'value')}) "
        f"{'are' if several else 'is'} subtracted again by the normalisation right behind "
        f"{'them' if several else 'it'}.",
        summary=f"{flow.plural(len(names), 'bias', 'biases')} will do nothing: the normalisation "
        f"right behind {'them' if several else 'it'} subtracts {'them' if several else 'it'}.",
        evidence={"biases": len(names), "values": values},
    )


def _has_lost_bias(snapshot: Snapshot, layer: Layer) -> bool:
    if layer.op not in ops.WEIGHTED or layer.weight is None:
        return False
    if layer.weight.bias not in snapshot.parameter or layer.node in snapshot.outputs:
        return False
    after = snapshot.consumers[layer.node]
    return bool(after) and all(snapshot.nodes[n].op in ops.UNIT_CENTRED for n in after)
