"""Activations that are far from zero mean, so that the next weights' gradients share one sign.

If everything that enters a unit is positive, the gradients of all its weights have the sign of
the gradient of its output: an update can only move them all up or all down, and the way to a good
direction is a zig-zag (CS231n 2017 lecture 6, slides 20-21). Over a batch the signs mix, so what
is measured is the consequence: the share of the next layer's units whose weight gradients all
have one sign. A mean k standard deviations from zero also stretches the next layer's loss surface:
the condition number of its input grows like 1 + d k² for d inputs.

A sigmoid's mean is 2.4 of its standard deviations from zero, and more with depth; that is a
warning where the weight gradients show it. The positive outputs of ReLU and its kin (0.68) are a
property everyone lives with: a note at most. Gates and the model's outputs are meant to be
positive.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 1))
    batch = torch.randn(256, 64)

Well::

    model[1] = model[3] = nn.Tanh()

References: CS231n 2017 lecture 6 slides 20-21; LeCun et al. 1998, "Efficient BackProp", section
4.3."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from nndiag import flow, theory
from nndiag.rule import Finding, Limits, Prescription, Rule, Threshold
from nndiag.stats import Layer, Parameter, Snapshot

RULE = Rule(
    code="ND102",
    name="non-zero-centered",
    severity="warning",
    about="activations",
    uses=("gradients",),
    thresholds={
        "ratio": Threshold(
            0.5,
            "derived: |mean|/std is 0.68 for ReLU and 2.40 for sigmoid of N(0, 1), 0.20 for "
            "ELU and "
            "0 for tanh; 0.5 parts the one-sided from the centred",
            0,
        ),
        "one_sign": Threshold(
            0.5,
            "derived: with centred inputs a row of d weight gradients has one sign with "
            "probability 2^(1-d); half of all rows is far from that for any d",
            0,
            1,
        ),
        "fan_in": Threshold(
            8, "derived: below 8 inputs one sign is no rarity (2^(1-8) = 0.8 %)", 1
        ),
    },
    caused_by=("non-finite", "symmetry", "saturation", "vanishing-gradient", "signal-collapse"),
    cures=(
        Prescription(
            "Use a zero-centred activation: tanh in place of sigmoid, or ELU.",
            "tanh(x) = 2 sigmoid(2x) - 1 is the same curve around zero.",
        ),
        Prescription("Put a normalisation layer after it; it takes the mean out of each unit."),
    ),
)


def check(snapshot: Snapshot, limit: Limits) -> Iterator[Finding]:
    noted: list[tuple[Layer, float]] = []
    for layer in flow.hidden_activations(snapshot):
        units = layer.output.units
        if units is None or layer.output.nonfinite or not layer.output.count:
            continue
        ratio = _ratio(units.mean, units.std)
        pooled = abs(layer.output.mean) / layer.output.std if layer.output.std > 0 else math.inf
        if min(ratio, pooled) < limit.ratio or not _one_sided(layer):
            continue
        act = flow.act_of(layer)
        rows = _one_sign(snapshot, layer, limit)
        if act is not None and act.family == "saturating" and rows is not None:
            one, of = rows
            if one >= limit.one_sign * of:
                yield _warn(layer, ratio, one, of, limit)
                continue
        noted.append((layer, ratio))
    if noted:
        layer, ratio = max(noted, key=lambda item: item[1])
        first = noted[0][0]
        yield RULE.finding(
            first,
            f"{flow.plural(len(noted), 'hidden activation')} with outputs of one sign: mean up to "
            f"{ratio:.2g} standard deviations from zero (at {layer.name})",
            severity="note",
            against=("ratio", limit),
            evidence={"ratio": ratio, "layers": len(noted)},
        )


def _warn(layer: Layer, ratio: float, one: int, of: int, limit: Limits) -> Finding:
    width = len(layer.output.units) if layer.output.units is not None else 1
    return RULE.finding(
        layer,
        f"its outputs have one sign, their mean {ratio:.2g} standard deviations from zero: in the "
        f"next layer the weight gradients of {one} of {of} units all have one sign",
        against=("one_sign", limit),
        evidence={
            "ratio": ratio,
            "one_sign": one / of,
            "condition": theory.mean_square_condition(ratio, width),
        },
    )


def _ratio(mean: np.ndarray, std: np.ndarray) -> float:
    """Root mean square over the units that vary of |mean| / std."""
    varied = std > 1e-6 * np.maximum(np.abs(mean), 1e-30)
    if not varied.any():
        return 0.0
    return float(np.sqrt(np.mean((mean[varied] / std[varied]) ** 2)))


def _one_sided(layer: Layer) -> bool:
    return layer.output.min >= 0 or layer.output.max <= 0


def _one_sign(snapshot: Snapshot, layer: Layer, limit: Limits) -> tuple[int, int] | None:
    """Of the units of the weight layers that read this one: whose gradients have one sign."""
    one = of = 0
    for node in flow.descendants(snapshot, layer.node):
        row = snapshot.layer_at(node)
        if row is None or row.weight is None or row.weight.fan_in < limit.fan_in:
            continue
        if flow.source_node(snapshot, row) != layer.node:
            continue
        parameter: Parameter | None = snapshot.parameter.get(row.weight.name)
        if parameter is not None:
            one, of = one + parameter.one_sign_rows, of + parameter.graded_rows
    return (one, of) if of else None
