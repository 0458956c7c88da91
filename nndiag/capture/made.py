"""What is known of a tensor's values from the calls that made them: its last activation, bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from nndiag import ops
from nndiag.capture.calls import Call
from nndiag.experiment import Made
from nndiag.layout import Axes

__all__ = [
    "alike",
    "by_activation",
    "by_softmax",
    "carried",
    "softmax_axis",
    "softmax_options",
]


def by_activation(op: str, options: Mapping[str, float], layer: str, before: Made | None) -> Made:
    """What an activation says of its outputs. A clamp only narrows what was known before it."""
    low, high = ops.named(op).range or (-math.inf, math.inf)
    if op == "hardtanh":
        low, high = options.get("min_val", -1.0), options.get("max_val", 1.0)
    elif op == "clamp":
        low, high = options.get("min", -math.inf), options.get("max", math.inf)
        if before is not None:
            return replace(
                before,
                low=min(max(before.low, low), high),
                high=max(min(before.high, high), low),
                after=(*before.after, "clamp"),
            )
    return Made(op, layer, low, high)


def by_softmax(op: str, layer: str, options: Mapping[str, float]) -> Made:
    low, high = (-math.inf, 0.0) if ops.named(op).makes == ops.LOG_PROBABILITIES else (0.0, 1.0)
    over = "one" if options["length"] == 1 else ""
    over = over or ("samples" if options["over_samples"] else "")
    return Made(op, layer, low, high, over or ("units" if options["over_units"] else ""))


def softmax_axis(x: torch.Tensor, dim: int | None) -> int:
    """The axis of a softmax; without ``dim`` the one that torch picks, and warns about."""
    if dim is None:
        return 0 if x.dim() in (0, 1, 3) else 1
    return dim


def alike(parts: Sequence[Made | None]) -> Made | None:
    """What is known of tensors put side by side, if one kind of activation made them all."""
    known = [m for m in parts if m is not None]
    if not known or len(known) < len(parts) or len({(m.op, m.over, m.after) for m in known}) > 1:
        return None
    low, high = min(m.low for m in known), max(m.high for m in known)
    return replace(known[0], low=low, high=high)


def softmax_options(x: torch.Tensor, dim: int, axes: Axes) -> dict[str, float]:
    """The axis of a softmax: its length, and whether it runs over samples or units."""
    axis = dim % max(x.dim(), 1)
    length = x.shape[axis] if x.dim() else 1
    return {
        "dim": float(axis),
        "length": float(length),
        "over_samples": float(axes.batch == axis and axes.samples > 1),
        "over_units": float(axes.unit == axis),
    }


_SLICES = ("gather", "index_select", "take_along_dim", "masked_select", "take")


def carried(call: Call, made: Made | None) -> Made | None:
    """What is known of the result of a call on values of which ``made`` was known; None: nothing.

    Only of calls with one tensor that depends on the network. Numbers shift, scale and mirror the
    bounds.
    """
    if call.op in _ONE_SIDED:
        return _one_sided(call, made)
    if made is None:
        return None
    if call.op in _SLICES:
        return replace(made, after=(*made.after, "gather"))
    if call.op == "neg":
        return replace(made, low=-made.high, high=-made.low, after=(*made.after, "neg"))
    if call.op == "log":
        return replace(made, low=_log(made.low), high=_log(made.high), after=(*made.after, "log"))
    number = _number(call)
    if number is None or call.op not in ("add", "sub", "mul", "div"):
        return None
    low, high = sorted(_moved(call, end, number) for end in (made.low, made.high))
    if math.isnan(low) or math.isnan(high):
        return None
    return replace(made, low=low, high=high, after=(*made.after, call.op))


_ONE_SIDED = ("exp", "abs", "square", "sqrt", "pow")


def _one_sided(call: Call, made: Made | None) -> Made | None:
    """An exponential, a size or an even power is no less than zero, whatever went in."""
    if call.op == "exp" and made is not None and made.op in ops.SOFTMAXES:
        return replace(made, low=_exp(made.low), high=_exp(made.high), after=(*made.after, "exp"))
    if call.op == "exp" and made is not None:
        return Made("exp", "", _exp(made.low), _exp(made.high))
    if call.op == "pow" and (_number(call) != 2 or not isinstance(call.input, torch.Tensor)):
        return None
    return Made("exp" if call.op == "exp" else call.op, "", 0.0)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _log(x: float) -> float:
    return math.log(x) if 0 < x < math.inf else (-math.inf if x <= 0 else math.inf)


def _number(call: Call) -> float | None:
    """The other operand, if it is a plain number."""
    others = [a for a in (*call.args, *call.kwargs.values()) if not isinstance(a, torch.Tensor)]
    if len(call.tensors) != 1 or len(others) != 1 or isinstance(others[0], bool):
        return None
    return float(others[0]) if isinstance(others[0], (int, float)) else None


def _moved(call: Call, x: float, number: float) -> float:
    backwards = call.func.__name__ in ("__rsub__", "__rdiv__", "__rtruediv__", "rsub") or (
        bool(call.args) and not isinstance(call.args[0], torch.Tensor)
    )
    if call.op == "add":
        return x + number
    if call.op == "sub":
        return number - x if backwards else x - number
    if call.op == "mul":
        return x * number if x and number else 0.0
    if backwards:  # 1 / x has a pole where x is zero
        return number / x if x > 0 else math.nan
    return x / number if number else math.nan
