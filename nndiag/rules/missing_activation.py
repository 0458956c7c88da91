"""Two linear layers in a row, with no activation between them.

What it does
------------

Looks for a linear layer or convolution whose output goes straight into the next one. The width
between them must be no smaller than on either side. Dropout, flattening and average pooling between
them do not count as activations.

Why it matters
--------------

Two linear maps in a row are one linear map: W2(W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2). The
second layer adds parameters and time, but no function that one layer could not compute.

When it is no fault
-------------------

The finding is a note. These are not reported:

- A bottleneck or a projection to a narrower space: it limits the rank on purpose (LoRA, the code of
  an autoencoder).
- Queries, keys and values: products lie behind them.
- A grouped convolution and the one after it: together they are one separable convolution.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    batch = torch.randn(128, 8)

Well::

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                          nn.Linear(16, 4))

References: CS231n notes, neural networks part 1 ("the non-linearity is where we get the wiggle").
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import flow
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND106",
    name="missing-activation",
    severity="note",
    about="activations",
    fixes=(
        advice(
            "Put an activation between the two layers, or make them one layer.",
            "Without it both together compute what one linear layer can.",
            "x = F.relu(self.first(x))",
            "architecture",
        ),
    ),
)

_NONLINEAR = ("max_pool", "lp_pool", "fractional")


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    pairs = [
        (link.layer, after.layer)
        for chain in flow.chains(snapshot)
        for link, after in zip(chain.links, chain.links[1:], strict=False)
        if link.activation is None
        and not any(part in row.op for row in link.between for part in _NONLINEAR)
        and _widens(snapshot, link.layer, after.layer)
    ]
    if not pairs:
        return
    first, second = pairs[0]
    more = f" The same holds for {flow.plural(len(pairs) - 1, 'more pair')}." if pairs[1:] else ""
    yield RULE.finding(
        second,
        f"No activation lies between {first.name} and {second.name}: together they compute one "
        f"linear map.{more}",
        summary="Two layers will compute what one linear layer can: no activation lies between "
        f"{first.name} and {second.name}.",
        evidence={"pairs": len(pairs)},
    )


def _widens(snapshot: Snapshot, first: Layer, second: Layer) -> bool:
    """Whether the width between two layers is no smaller than either side."""
    inner, outer = _units(snapshot, first), _units(snapshot, second)
    if inner is None or outer is None or _grouped(snapshot, first) or _grouped(snapshot, second):
        return False
    return inner >= max(flow.width(first), outer)


def _units(snapshot: Snapshot, layer: Layer) -> int | None:
    parameter = snapshot.parameter.get(layer.weight.name) if layer.weight is not None else None
    if layer.weight is None or parameter is None:
        return None
    return parameter.shape[layer.weight.unit_axis]


def _grouped(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether each output of a convolution reads only some of the input channels."""
    weight = layer.weight
    if weight is None or "conv" not in layer.op or layer.input is None:
        return False
    shape = snapshot.parameter[weight.name].shape
    if "transpose" in layer.op:
        return len(layer.output.units or ()) > shape[1]
    return len(layer.input.units or ()) > shape[1] and math.prod(shape[2:]) > 0
