"""Whether a model was trained, as far as its biases and normalisation layers show it."""

from __future__ import annotations

import math

from nndiag import flow, ops
from nndiag.stats import Parameter, Snapshot, Weight

FEW = 8
"""Biases that are too few to tell how they were drawn."""
ROUNDED = 1 + 2**-8
"""bfloat16 may round what lies just within a bound to beyond it."""


def training(snapshot: Snapshot) -> str:
    """What shows that a model was trained; "" if nothing does.

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
        if weight is None or bias is None or bias.value.count < FEW or not _varied(bias):
            continue
        bound = _drawn_within(snapshot, weight, layer.op)
        beyond = max(abs(bias.value.min), abs(bias.value.max)) > bound * ROUNDED
        # The std of n uniform values is off by 0.45/√n of itself: this is more than five times it.
        least = bound / 3**0.5 * (1 - 2.5 / bias.value.count**0.5)
        if beyond or bias.value.std < least:
            return f"{bias.name} is neither constant nor as torch draws it"
    return ""


def _drawn_within(snapshot: Snapshot, weight: Weight, op: str) -> float:
    """1/√fan_in as torch's ``reset_parameters`` counts it, for transposed convolutions, too."""
    p = snapshot.parameter.get(weight.name)
    if p is None or len(p.shape) < 2:
        return 1 / math.sqrt(weight.fan_in)
    fan_in = p.shape[1] if op == "bilinear" else math.prod(p.shape[1:])
    return 1 / math.sqrt(fan_in)


def _varied(p: Parameter) -> bool:
    """Whether it takes more than two values."""
    v = p.value
    if v.nonfinite or v.count < 3 or v.std <= 1e-6 * max(abs(v.min), abs(v.max)):
        return False
    return (v.max - v.mean) * (v.mean - v.min) > v.variance * 1.001
