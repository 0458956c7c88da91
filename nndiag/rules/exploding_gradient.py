"""Gradients that grow from layer to layer, so the first layers' updates are far too large.

What it does
------------

Measures the gradient as vanishing-gradient does: at pre-activations, along each chain of layers. It
compares the gradient's norm at the first layer of a chain with the norm at the last hidden one.

In a fused recurrent layer of ReLU units it measures how much larger the state is than what goes in,
if the recurrent weights stretch it.

Gradients that are larger than the number format can hold are reported by non-finite.

Why it matters
--------------

Weights that are too large multiply the gradient by more than one in each layer. A learning rate
that is right for the last layer is then far too large for the first.

Saturated activations do not prevent this. A tanh network with weights of std 1 (500 wide) passes
the gradient only through its few unsaturated units. Its norm still grows 3.5-fold in every layer,
while the median unit gets nothing. The lecture's "zero gradients" is true of the median, not of the
norm.

When it is no fault
-------------------

If one module is called repeatedly, the factor is over time and not over depth: a note. In narrow
networks the thresholds leave room for what chance alone does.

Sick::

    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        layers += [nn.Linear(64, 64), nn.LeakyReLU(0.5)]
        nn.init.orthogonal_(layers[-2].weight, gain=3.0)
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    batch = torch.randn(256, 64)

Well::

    for layer in model[:-1:2]:
        nn.init.kaiming_normal_(layer.weight, a=0.5)

References: Pascanu et al. 2013, section 2.1; CS231n 2017 lecture 6 slide 47.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import flow, gradient_flow
from nndiag.fixes import propose
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Severity, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND202",
    name="exploding-gradient",
    severity="warning",
    about="gradients",
    needs=("gradients",),
    thresholds={
        "total": Threshold(
            1e2,
            "derived: the mirror of vanishing-gradient; 10 layers of tanh with torch's recommended "
            "gain 5/3 reach 1.8, ten He layers 1.0",
            1,
            unit="factor",
        ),
        "overflow": Threshold(
            1e4,
            "derived: two orders over the warning: a step right for the last layer overshoots "
            "in the "
            "first by the square of the warning's factor",
            1,
            unit="factor",
        ),
    },
    caused_by=(
        "training-damage",
        "input-missing",
        "input-scale",
        "input-outliers",
        "non-finite",
        "symmetry",
        "init-scale",
        "saturation",
    ),
    fixes=(
        advice(
            "Re-initialise the weights: Xavier before tanh, He before ReLU.",
            "They keep the factor per layer at one.",
            "nn.init.xavier_normal_(layer.weight)",
            "weights",
        ),
        advice(
            "Clip the gradient's norm.",
            "It bounds the step, not the imbalance between layers.",
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    for path in gradient_flow.paths(snapshot):
        if path.total <= thresholds.total * path.band[1]:
            continue
        severity: Severity = (
            "error" if path.total > thresholds.overflow * path.band[1] else "warning"
        )
        grad, median = path.first.grad, math.nan
        if grad is not None and grad.histogram is not None and grad.rms > 0:
            median = grad.histogram.magnitude_quantile(0.5) / grad.rms
        yield RULE.finding(
            path.origin,
            _message(path),
            summary=_summary(path),
            severity="note" if path.repeated else severity,
            against=("total", thresholds),
            fixes=RULE.fixes
            if path.repeated
            else (
                *gradient_flow.weight_fixes(snapshot, path),
                *propose.normalize(snapshot, path.layers),
                *RULE.fixes[-1:],
            ),
            evidence={
                "total": path.total,
                "per_layer": path.per_layer,
                "layers": len(path.passages),
                "median_over_rms": median,
            },
        )
    yield from _over_time(snapshot, thresholds)


def _over_time(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    """Fused recurrent layers of ReLU units, whose state grows at every step.

    Their steps are no rows of a report, so the growth is read off the outputs, and the reason off
    the weights. tanh and gates bound the state.
    """
    for layer in snapshot.of_op("rnn_relu"):
        own = snapshot.parameters_of.get(flow.owner(snapshot, layer), ())
        weights = next((p for p in own if p.name.endswith("weight_hh_l0")), None)
        read = layer.facts.get("read_rms", math.nan)
        if weights is None or layer.output.nonfinite or not read > 0:
            continue
        gain = weights.value.rms * weights.value.count**0.25
        grown = layer.output.rms / read
        if not (gain > math.sqrt(2) and grown > thresholds.total):
            continue
        yield RULE.finding(
            layer,
            f"Its state grows over the steps, to {number(grown)} times what goes in. The gain of "
            f"its recurrent weights (std · √units) is {gain:.2g}; a ReLU keeps the scale at 1.4. "
            "The gradient grows on its way back as the state does.",
            summary=f"Updates of {layer.name} will be far too large: its state grows at every "
            "step.",
            severity="error" if grown > thresholds.overflow else "warning",
            against=("total", thresholds),
            fixes=(_ORTHOGONAL, *RULE.fixes[-1:]),
            evidence={"total": grown, "gain": gain},
        )


_ORTHOGONAL = advice(
    "Draw the recurrent weights orthogonal, or start from the identity.",
    "Then a step neither stretches the state nor shrinks it (Le et al. 2015).",
    "nn.init.orthogonal_(rnn.weight_hh_l0)",
    "weights",
)


def _message(path: gradient_flow.GradientPath) -> str:
    steps = flow.plural(len(path.passages), "call" if path.repeated else "layer")
    where = f"it grows {path.per_layer:.2g}-fold in each of {steps}"
    if path.decisive is not None:
        here = path.decisive
        where = f"it grows {number(here.factor)}-fold from {here.after.name} to {here.layer.name}"
    return (
        f"The gradient at {path.first.name} is {number(path.total)} times that at "
        f"{path.last.name}: {where}. {path.reason}"
    )


def _summary(path: gradient_flow.GradientPath) -> str:
    if path.decisive is not None:
        here = path.decisive
        return (
            f"Updates of {here.layer.name} and the layers before it will be far too large: the "
            f"gradient grows {number(here.factor)}-fold there."
        )
    return (
        f"Updates of {path.beginning.lower()} will be far too large: the gradient grows "
        f"{path.per_layer:.2g}-fold at each of {path.steps}."
    )
