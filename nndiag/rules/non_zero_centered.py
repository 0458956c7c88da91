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

from collections.abc import Iterator

import numpy as np

from nndiag import flow, prescribe, theory
from nndiag.rule import Finding, Limits, Prescription, Rule, Threshold
from nndiag.stats import Layer, Snapshot

BATCH_NORMS = frozenset(("batch_norm", "instance_norm"))

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
    caused_by=("symmetry", "saturation", "vanishing-gradient", "signal-collapse"),
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
        act, ratio = flow.act_of(layer), _ratio(layer)
        if act is None or layer.output.nonfinite or not ratio >= limit.ratio:
            continue
        one, of = _one_sign(snapshot, layer, limit)
        # Everyone lives with what a ReLU and its kin do; a sigmoid can be replaced by a tanh.
        if act.family == "saturating" and of and one >= limit.one_sign * of:
            yield _warn(snapshot, layer, ratio, one, of, limit)
        else:
            noted.append((layer, ratio))
    if noted:
        layer, ratio = max(noted, key=lambda item: item[1])
        yield RULE.finding(
            noted[0][0],
            f"{flow.plural(len(noted), 'hidden activation')} with units off zero: the mean of a "
            f"unit lies up to {ratio:.2g} of its standard deviations from it ({layer.op}, at "
            f"{layer.name})",
            severity="note",
            against=("ratio", limit),
            cures=(),
            evidence={"ratio": ratio, "layers": len(noted)},
        )


def _warn(
    snapshot: Snapshot, layer: Layer, ratio: float, one: int, of: int, limit: Limits
) -> Finding:
    width = len(layer.output.units) if layer.output.units is not None else 1
    return RULE.finding(
        layer,
        f"the means of its units are {ratio:.2g} standard deviations from zero: in the next layer "
        f"the weight gradients of {one:,} of {flow.plural(of, 'unit')} all have one sign",
        against=("one_sign", limit),
        cures=(
            *prescribe.swap(
                snapshot,
                [layer],
                "nn.Tanh()",
                "torch.tanh(x)",
                "tanh(x) = 2 sigmoid(2x) - 1 is the same curve around zero.",
                "units vary around zero, and the weights' gradients have both signs",
            ),
            *prescribe.center(snapshot, [layer]),
        )
        or RULE.cures,
        evidence={
            "ratio": ratio,
            "one_sign": one / of,
            "rows": of,
            "condition": theory.mean_square_condition(ratio, width),
        },
    )


def _ratio(layer: Layer) -> float:
    """|mean| / std over the units that vary, less what so few samples show by chance.

    Root of a ratio of sums: it is what the condition number knows, and in a mean of ratios one
    nearly constant unit outweighs all others.
    """
    units = layer.output.units
    if units is None or layer.output.samples < 2:
        return 0.0
    varied = units.std > 1e-6 * np.abs(units.mean)
    if not varied.any():
        return 0.0
    square = (units.mean[varied] ** 2).sum() / units.variance[varied].sum()
    return float(np.sqrt(max(square - 1 / (layer.output.samples - 1), 0.0)))


def _centred_in_training(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a BatchNorm behind these weights takes the mean out of their gradients.

    In evaluation mode it does not, but that is not how they are trained.
    """
    users = flow.users(snapshot, layer.node)
    return bool(users) and all(snapshot.nodes[n].op in BATCH_NORMS for n in users)


def _one_sign(snapshot: Snapshot, layer: Layer, limit: Limits) -> tuple[int, int]:
    """Of the units of the weight layers that read this one: whose gradients have one sign."""
    one = of = 0
    for row in flow.readers(snapshot).get(layer.node, ()):
        if row.weight is None or row.weight.fan_in < limit.fan_in:
            continue
        if _centred_in_training(snapshot, row):
            continue
        parameter = snapshot.parameter.get(row.weight.name)
        if parameter is not None:
            one, of = one + parameter.one_sign_rows, of + parameter.graded_rows
    return one, of
