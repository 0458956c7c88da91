"""Gradients that shrink from layer to layer until the first layers no longer learn.

What it does
------------

Measures the gradient at the pre-activations (the outputs of layers with weights) along each chain
of layers. It compares the gradient's norm at the first layer of a chain with the norm at the last
hidden one.

It also measures it across two or more softmaxes that stand between layers in place of an
activation. One alone may be an attention that is written with weight layers.

A chain ends at a residual addition, a concatenation, a normalisation or a recurrence, because
gradients have other paths there. The size of weight gradients does not show this: it is the
same in every layer of a collapsed network.

Scaling the loss does not change this ratio, as long as no gradient comes near the smallest number
of its format. Gradients that do are reported for the loss as given.

Why it matters
--------------

On its way back through a layer the gradient is multiplied by the activation's slope and by the
weights. A sigmoid's slope is at most 1/4: with Xavier weights 0.24 of the gradient passes each
layer, and ten layers leave 2e-6.

Weights that are too small do the same with any activation. torch's default nn.Linear init with
ReLU passes 0.41 of the gradient per layer.

When it is no fault
-------------------

If one module is called repeatedly, the factor is over time and not over depth: a note. The last
layer with weights is left out, because a small or zero head is a choice. In narrow networks the
thresholds leave room for what chance alone does.

Sick::

    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        layers += [nn.Linear(64, 64), nn.Sigmoid()]
        nn.init.xavier_normal_(layers[-2].weight)
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    batch = torch.randn(256, 64)

Well::

    model = nn.Sequential(*[nn.Tanh() if isinstance(m, nn.Sigmoid) else m for m in model])

References: Hochreiter 1991; Glorot & Bengio 2010, section 4.2; He et al. 2015, section 2.2;
Pascanu et al. 2013, section 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import flow, gradient_flow
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix, advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Severity, Threshold, Thresholds, Unjudged
from nndiag.stats import Layer, Snapshot

__all__ = ["ANOTHER_WAY", "LOSS_SCALE", "RULE", "SMALLEST", "check"]

# IEEE 754-2019, table 3.5 (bfloat16 by its 8 bits of exponent and 7 of fraction).
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
LOSS_SCALE = advice(
    "Scale the loss before backward and the gradients back after it, or use bfloat16.",
    "The ratio between layers stays, and small gradients are not rounded to zero.",
    "scaler = torch.amp.GradScaler()\nscaler.scale(loss).backward()",
)

ANOTHER_WAY = advice(
    "Add residual connections: they give the gradient another way.",
    "Then it no longer is a product over all layers.",
    "x = x + block(x)",
    "architecture",
)

RULE = Rule(
    code="ND201",
    name="vanishing-gradient",
    severity="warning",
    about="gradients",
    needs=("gradients",),
    thresholds={
        "total": Threshold(
            1e-2,
            "derived: 4 hidden layers of GELU or SiLU at torch's default init (slope 1/2, gain "
            "1/√3) pass (1/2 · 1/√3)³ = 1/42 and train; a factor 2.4 of room for chance",
            0,
            1,
            "share",
        ),
        "stall": Threshold(
            1e-4,
            "cited: He et al. 2015, section 2.2: with Xavier weights 22 ReLU layers (2^-11 = "
            "4.9e-4) "
            "converge and 30 layers (2^-15 = 3.1e-5) stall completely",
            0,
            1,
            "share",
        ),
        "steps": Threshold(
            4,
            "derived: numbers this close to zero are multiples of the smallest one; rounding is "
            "off by 1/√12 of it, 7 % of a gradient of 4",
            0,
        ),
    },
    caused_by=(
        "training-damage",
        "input-missing",
        "input-scale",
        "non-finite",
        "symmetry",
        "init-scale",
        "saturation",
        "dead-relu",
    ),
    fixes=(
        advice(
            "Replace saturating activations by ReLU, with He weights.",
            "ReLU's slope is 1 where it is active. A sigmoid's is at most 0.25, and no usual init "
            "makes up for that.",
            'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
            "architecture",
        ),
        advice(
            "Add residual connections or normalisation layers.",
            "Then the gradient no longer is a product over all layers.",
            changes="architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    for path in gradient_flow.paths(snapshot):
        if path.total >= thresholds.total * path.band[0]:
            continue
        severity: Severity = "error" if path.total < thresholds.stall * path.band[0] else "warning"
        yield RULE.finding(
            path.origin,
            _message(path),
            summary=_summary(path, severity),
            severity="note" if path.repeated else severity,
            against=("total", thresholds),
            suspects=RULE.caused_by
            if path.slope_share < 0.5
            else tuple(s for s in RULE.caused_by if s != "init-scale"),
            fixes=RULE.fixes if path.repeated else (*_fixes(snapshot, path),),
            evidence={
                "total": path.total,
                "per_layer": path.per_layer,
                "layers": len(path.passages),
                "slope_share": path.slope_share,
                "first_grad_rms": path.first.grad.rms if path.first.grad else math.nan,
            },
        )
    yield from _through_softmax(snapshot, thresholds)
    yield from _rounded_away(snapshot, thresholds)
    for first, why in gradient_flow.unseen(snapshot):
        yield RULE.unjudged(first, why)


_NO_SOFTMAX = advice(
    "Use ReLU between hidden layers, and softmax at the output only.",
    "A softmax over n units has outputs near 1/n, and a slope as small.",
    "torch.relu(x)",
    "architecture",
)


def _through_softmax(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    """Softmax in place of an activation, twice or more: one may be an attention by weight layers.

    ``gradient_flow.paths`` ends at a softmax, because it mixes units.
    """
    passed = {before.name: (layer, after) for before, layer, after in _hidden_softmax(snapshot)}
    behind = {after.name for _, after in passed.values()}
    for first in (name for name in passed if name not in behind):
        softmax, last = passed[first]
        inner = [softmax]
        while last.name in passed:
            softmax, last = passed[last.name]
            inner.append(softmax)
        grad, arriving = snapshot.by_name[first].grad, last.grad
        if len(inner) < 2 or grad is None or arriving is None or not arriving.norm > 0:
            continue
        total = grad.norm / arriving.norm
        if not total < thresholds.total:
            continue
        yield RULE.finding(
            inner[0],
            f"The gradient at {first} is {number(total)} times that at {last.name}: it passes "
            f"{len(inner)} softmaxes between hidden layers. Over n units the slope of a softmax is "
            "about 1/n.",
            summary=f"The layers before {inner[-1].name} will hardly learn: their gradient passes "
            f"{len(inner)} softmaxes between hidden layers.",
            severity="error" if total < thresholds.stall else "warning",
            against=("total", thresholds),
            fixes=(_NO_SOFTMAX,),
            evidence={"total": total, "layers": len(inner)},
        )


def _hidden_softmax(snapshot: Snapshot) -> Iterator[tuple[Layer, Layer, Layer]]:
    """Each softmax that reads one weight layer and is read by one other only, with these two."""
    for layer in snapshot.of_op("softmax"):
        source, used = snapshot.nodes[layer.node].inputs, snapshot.consumers[layer.node]
        if len(source) != 1 or len(used) != 1 or not layer.options.get("over_units"):
            continue
        before, after = snapshot.layer_at(source[0]), snapshot.layer_at(used[0])
        if before is None or after is None or len(snapshot.nodes[after.node].inputs) != 1:
            continue
        if before.weight is not None and after.weight is not None:
            yield before, layer, after


def _fixes(snapshot: Snapshot, path: gradient_flow.GradientPath) -> Iterator[Fix]:
    layers = path.layers
    saturating = [
        row
        for layer in layers
        if (row := flow.activation_after(snapshot, layer)) is not None
        and (act := flow.act_of(row)) is not None
        and act.family == "saturating"
    ]
    by_weights = [*gradient_flow.weight_fixes(snapshot, path)]
    by_layers = [
        *propose.swap(
            snapshot,
            saturating,
            ("ReLU",),
            "F.relu(x)",
            "Its slope is 1 where it is active. A sigmoid's is at most 0.25, and no usual init "
            "makes up for that.",
            "with He weights the gradient keeps its size from layer to layer",
            redrawn=layers,
        ),
        *propose.normalize(snapshot, layers),
    ]
    # If the slopes shrink the gradient, new weights help only for a while.
    yield from by_layers + by_weights if path.slope_share >= 0.5 else by_weights + by_layers
    yield ANOTHER_WAY


def _message(path: gradient_flow.GradientPath) -> str:
    steps = flow.plural(len(path.passages), "call" if path.repeated else "layer")
    alone = path.decisive
    if path.total > 0 or alone is None:
        size = f"is {number(path.total, 'share')} of the gradient at {path.last.name}"
        where = f"{number(path.per_layer, 'share')} passes each of {steps}"
        if alone is not None:
            factor = number(alone.factor, "share")
            where = f"{factor} of it passes from {alone.after.name} to {alone.layer.name}"
        return f"The gradient at {path.first.name} {size}: {where}. {path.reason}"
    why = f"Before {alone.after.name} it is smaller than {alone.layer.dtype} can hold."
    if alone.blocked and alone.activation is not None:
        why = f"No value of {alone.activation.name} lies where {alone.activation.op} has a slope."
    where = f"{steps} before {path.last.name}"
    return f"The gradient at {path.first.name} is exactly zero, {where}. {why}"


def _summary(path: gradient_flow.GradientPath, severity: Severity) -> str:
    slowly = "not learn" if severity == "error" and not path.repeated else "learn slowly"
    if path.total == 0:
        return f"{path.first.name} will not learn: its gradient is exactly zero."
    if path.decisive is not None:
        here = path.decisive
        return (
            f"{here.layer.name} and the layers before it will {slowly}: "
            f"{number(here.factor, 'share')} of the gradient arrives from {here.after.name}."
        )
    return (
        f"{path.beginning} will {slowly}: the gradient shrinks {1 / path.per_layer:.2g}-fold at "
        f"each of {path.steps}."
    )


def _rounded_away(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    """Gradients near the smallest number of their format. They depend on the scale of the loss."""
    weighted = [la for la in snapshot.layers if la.weight is not None and la.grad is not None]
    close = []
    for layer in weighted:
        grad, smallest = layer.grad, SMALLEST.get(layer.dtype)
        if grad is None or smallest is None or grad.nonfinite or grad.zeros >= grad.count:
            continue
        steps = grad.rms / math.sqrt(1 - grad.zero_fraction) / smallest
        if steps < thresholds.steps:
            close.append((steps, layer))
    if not close:
        return
    steps, layer = close[0]
    yield RULE.finding(
        layer,
        f"The gradients of {len(close)} of {flow.plural(len(weighted), 'layer')} are close to the "
        f"smallest number of {layer.dtype}, {SMALLEST[layer.dtype]:.2g}. Where the gradient here "
        f"is not zero, it is {steps:.2g} times that number. Rounding changes much of it.",
        summary=f"Small gradients will be rounded away: at {layer.name} they are {steps:.2g} times "
        f"the smallest number of {layer.dtype}.",
        against=("steps", thresholds),
        suspects=(*RULE.caused_by, RULE.name),
        fixes=(LOSS_SCALE,),
        evidence={"steps": steps, "layers": len(close)},
    )
