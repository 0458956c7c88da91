"""Activations whose mean is far from zero, so the next weights' gradients share one sign.

What it does
------------

Measures how far the mean of each unit of a hidden activation lies from zero, in standard
deviations of that unit. It is a warning if, in the next layer, at least half of the units have
weight gradients of one sign only.

Over a batch the signs of single samples mix. So the signs are taken from the gradients that the
batch gives to the weights.

Why it matters
--------------

If all inputs of a unit are positive, the gradients of all its weights have the sign of the gradient
of its output. An update can then only raise all of them or lower all of them. The path to a good
direction becomes a zig-zag (CS231n 2017 lecture 6, slides 20-21).

A mean k standard deviations from zero also stretches the next layer's loss surface. For d inputs
the condition number of the layer's input grows like 1 + d k².

When it is no fault
-------------------

The mean of a sigmoid is 2.4 of its standard deviations from zero, and more with depth. This is a
warning only where the weight gradients show it. With an optimiser whose step lowers the loss it is
a note: the way is longer, and it leads down.

ReLU and its variants have positive outputs as well (0.68 standard deviations). All networks with
them share this property: a note at most. Gates and the model's outputs are meant to be positive.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 1))
    batch = torch.randn(256, 64)

Well::

    model[1] = model[3] = nn.Tanh()

References: CS231n 2017 lecture 6 slides 20-21; LeCun et al. 1998, "Efficient BackProp", section
4.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nndiag import flow, ops, theory
from nndiag.fixes import propose
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Layer, Snapshot

__all__ = ["RULE", "check"]

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
            "share",
        ),
        "fan_in": Threshold(
            8, "derived: below 8 inputs one sign is no rarity (2^(1-8) = 0.8 %)", 1
        ),
        "samples": Threshold(
            8,
            "derived: the error signals of n samples all have one sign by chance with 2^(1-n): "
            "0.8 % for 8, half of the time for 2",
            1,
        ),
    },
    caused_by=(
        "training-damage",
        "input-missing",
        "input-scale",
        "input-not-centered",
        "symmetry",
        "saturation",
        "vanishing-gradient",
        "signal-collapse",
    ),
    fixes=(
        advice(
            "Replace sigmoid by a zero-centred activation: tanh or ELU.",
            "tanh(x) = 2 sigmoid(2x) - 1 is the same curve around zero.",
            changes="architecture",
        ),
        advice(
            "Add a normalisation layer after it.",
            "It takes the mean out of each unit.",
            changes="architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    noted: list[tuple[Layer, float]] = []
    too_few = 0  # samples of what would be judged with more of them
    for layer in flow.hidden_activations(snapshot):
        act, ratio = flow.act_of(layer), _ratio(layer)
        if act is None or layer.output.nonfinite:
            continue
        if layer.output.samples < thresholds.samples:
            too_few = max(too_few, layer.output.samples)
            continue
        if not ratio >= thresholds.ratio:
            continue
        one, of = _one_sign(snapshot, layer, thresholds)
        # All networks with ReLU and its variants have this; a sigmoid can be replaced by a tanh.
        tells = bool(of) and one >= thresholds.one_sign * of
        if act.family == "saturating" and tells and not _falls(snapshot):
            yield _warn(snapshot, layer, ratio, one, of, thresholds)
        else:
            noted.append((layer, ratio))
    if too_few:
        yield RULE.unjudged(
            "(model)",
            f"{flow.plural(too_few, 'sample is', 'samples are')} too few; give "
            f"{thresholds.samples:.0f} or more",
        )
    if noted:
        layer, ratio = max(noted, key=lambda item: item[1])
        yield RULE.finding(
            noted[0][0],
            f"The units of {flow.plural(len(noted), 'hidden activation')} are not zero-centered: "
            f"their means lie up to {ratio:.2g} standard deviations from zero ({layer.op}, at "
            f"{layer.name}).",
            summary="Updates may take a longer way: units have means up to "
            f"{ratio:.2g} standard deviations from zero.",
            severity="note",
            against=("ratio", thresholds),
            fixes=(),
            evidence={"ratio": ratio, "layers": len(noted)},
        )


def _falls(snapshot: Snapshot) -> bool:
    """Whether the optimiser's own step lowers the loss: the signs do not keep it from learning."""
    optimizer = snapshot.experiment.optimizer
    if optimizer is None:
        return False
    return optimizer.after < optimizer.before - 10 * optimizer.noise


def _warn(
    snapshot: Snapshot, layer: Layer, ratio: float, one: int, of: int, thresholds: Thresholds
) -> Finding:
    width = len(layer.output.units) if layer.output.units is not None else 1
    return RULE.finding(
        layer,
        f"The means of its units are {ratio:.2g} standard deviations from zero. In the next layer "
        f"the weight gradients of {one:,} of {flow.plural(of, 'unit')} all have one sign.",
        summary=f"Updates will zig-zag: after {layer.name}, the weight gradients of {one:,} of "
        f"{flow.plural(of, 'unit')} all have one sign.",
        against=("one_sign", thresholds),
        fixes=(
            *propose.swap(
                snapshot,
                [layer],
                ("Tanh",),
                "torch.tanh(x)",
                "tanh(x) = 2 sigmoid(2x) - 1 is the same curve around zero.",
                "units vary around zero, and the weights' gradients have both signs",
            ),
            *propose.center(snapshot, [layer]),
        )
        or RULE.fixes,
        evidence={
            "ratio": ratio,
            "one_sign": one / of,
            "rows": of,
            "condition": theory.mean_square_condition(ratio, width),
        },
    )


def _ratio(layer: Layer) -> float:
    """|mean| / std over the units that vary, less what so few samples show by chance.

    The root of a ratio of sums, because the condition number depends on it, and because in a mean
    of ratios one nearly constant unit outweighs all others.
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
    return bool(users) and all(snapshot.nodes[n].op in ops.UNIT_CENTRED for n in users)


def _one_sign(snapshot: Snapshot, layer: Layer, thresholds: Thresholds) -> tuple[int, int]:
    """Of the units of the weight layers that read this one: whose gradients have one sign."""
    one = of = 0
    for row in flow.readers(snapshot).get(layer.node, ()):
        if row.weight is None or row.weight.fan_in < thresholds.fan_in:
            continue
        if _centred_in_training(snapshot, row):
            continue
        parameter = snapshot.parameter.get(row.weight.name)
        if parameter is not None:
            one, of = one + parameter.one_sign_rows, of + parameter.graded_rows
    return one, of
