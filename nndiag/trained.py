"""Whether a model was trained, as far as its biases and normalisation layers show it."""

from __future__ import annotations

import math

from nndiag import flow, ops
from nndiag.stats import Parameter, Snapshot, Weight

__all__ = ["FEW_BIASES", "ROUNDING", "training"]

FEW_BIASES = 8
"""With fewer biases one cannot tell how they were drawn."""
ROUNDING = 1 + 2**-8
"""bfloat16 may round a value just inside a bound to one outside it, by this factor at most."""


def training(snapshot: Snapshot) -> str:
    """The evidence that a model was trained, as text; "" if there is none.

    Initialisation leaves biases equal, or uniform within torch's ±1/√fan_in, and scales of
    normalisation layers at one; whatever trains moves them apart. Values set by hand take two
    values at most: then (max - mean)(mean - min) is the variance (the bound of Bhatia & Davis
    2000, which only two-point distributions reach).
    """
    for layer in snapshot.layers:
        if layer.op in ops.NORMS and flow.is_module(layer):
            for part in ("weight", "bias"):
                p = snapshot.parameter.get(f"{flow.owner(snapshot, layer)}.{part}")
                if p is not None and _varied(p):
                    return f"{p.name} is not the constant it starts as"
        weight = layer.weight
        bias = snapshot.parameter.get(weight.bias or "") if weight is not None else None
        if weight is None or bias is None or bias.value.count < FEW_BIASES or not _varied(bias):
            continue
        bound = _default_bound(snapshot, weight, layer.op)
        beyond = max(abs(bias.value.min), abs(bias.value.max)) > bound * ROUNDING
        # The std of n uniform values is off by 0.45/√n of itself: this is more than five times it.
        least_std = bound / 3**0.5 * (1 - 2.5 / bias.value.count**0.5)
        if beyond or bias.value.std < least_std:
            return f"{bias.name} is neither constant nor as torch draws it"
    return ""


def _default_bound(snapshot: Snapshot, weight: Weight, op: str) -> float:
    """1/√fan_in as torch's ``reset_parameters`` counts it, for transposed convolutions, too."""
    p = snapshot.parameter.get(weight.name)
    if p is None or len(p.shape) < 2:
        return 1 / math.sqrt(weight.fan_in)
    fan_in = p.shape[1] if op == "bilinear" else math.prod(p.shape[1:])
    return 1 / math.sqrt(fan_in)


def _varied(p: Parameter) -> bool:
    """Whether a parameter takes more than two different values."""
    v = p.value
    if v.nonfinite or v.count < 3 or v.std <= 1e-6 * max(abs(v.min), abs(v.max)):
        return False
    return (v.max - v.mean) * (v.mean - v.min) > v.variance * 1.001
