"""How a layer uses its weight, and how BatchNorm's running statistics compare with a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nndiag.layout import Pending, as_double
from nndiag.stats import TensorStats, Weight

__all__ = ["RunningStatistics", "covered", "running_statistics", "spatial", "use_of"]


def spatial(op: str) -> int:
    """How many axes a convolution slides along; 0 for anything else."""
    return int(op[-2]) if op.startswith("conv") else 0


def use_of(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    parameter: torch.Tensor | None,
    name: str,
    bias: str | None,
    bound: Mapping[str, Any],
) -> Weight | None:
    """Fans and axes of a weight; ``parameter`` is the parameter that it is or is computed from."""
    shape = tuple(weight.shape)
    if len(shape) < 2:
        return None
    taps = math.prod(shape[2:])
    axis, coverage = 0, 1.0
    if op in ("addmm", "matmul"):
        fan_in, fan_out, axis = shape[0], shape[1], 1
    elif op == "bilinear":
        fan_in, fan_out = shape[1] * shape[2], shape[0]
    elif op.startswith("embedding"):
        fan_in, fan_out, axis, bias = 1, shape[1], 1, None
    elif op.startswith("conv_transpose"):
        groups = int(bound.get("groups") or 1)
        strides = math.prod(_as_tuple(bound.get("stride") or 1, spatial(op)))
        fan_in, fan_out, axis = max(1, shape[0] // groups * taps // strides), shape[1] * taps, 1
    else:
        fan_in, fan_out = shape[1] * taps, shape[0] * taps
        if spatial(op):
            coverage = covered(tuple(x.shape[-spatial(op) :]), shape[2:], bound)
    return Weight(name, bias, fan_in, fan_out, _axis_in(parameter, weight, axis), coverage)


def _axis_in(parameter: torch.Tensor | None, weight: torch.Tensor, axis: int) -> int:
    """The weight's axis as an axis of the parameter; it may be a transposed view of that."""
    if parameter is None or parameter is weight or parameter.dim() != weight.dim():
        return axis
    if weight.layout != torch.strided or parameter.layout != torch.strided:
        return axis
    axes = [
        a
        for a, stride in enumerate(parameter.stride())
        if stride == weight.stride(axis) and parameter.shape[a] == weight.shape[axis]
    ]
    return axis if axis in axes or not axes else axes[0]


def covered(size: tuple[int, ...], kernel: tuple[int, ...], bound: Mapping[str, Any]) -> float:
    """Share of a convolution's taps that fall on the input rather than on its zero padding."""
    n = len(kernel)
    strides, dilations = (
        _as_tuple(bound.get("stride") or 1, n),
        _as_tuple(bound.get("dilation") or 1, n),
    )
    padding = bound.get("padding") or 0
    share = 1.0
    for axis, (length, k, s, d) in enumerate(zip(size, kernel, strides, dilations, strict=True)):
        reach = d * (k - 1)
        if padding == "same":  # an odd rest is added at the end
            before, total = reach // 2, reach
        else:
            before = 0 if padding == "valid" else _as_tuple(padding, n)[axis]
            total = 2 * before
        outputs = (length + total - reach - 1) // s + 1
        taps = np.arange(outputs)[:, None] * s - before + np.arange(k) * d
        share *= float(((taps >= 0) & (taps < length)).mean())
    return share


def _as_tuple(value: Any, n: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)
    return values * n if len(values) == 1 else values


@dataclass(frozen=True)
class RunningStatistics:
    """BatchNorm's running statistics in eval mode, to be compared with those of all batches."""

    mean: np.ndarray
    variance: np.ndarray
    tracked: float

    def compare(self, entering: TensorStats | None) -> dict[str, float]:
        if entering is None or entering.units is None or len(entering.units) != len(self.mean):
            return {}
        variance = np.maximum(self.variance, 1e-12)
        shift = np.abs(entering.units.mean - self.mean) / np.sqrt(variance)
        ratio = np.maximum(entering.units.variance, 1e-12) / variance
        return {
            "running_mean_shift": float(np.median(shift)),
            "running_variance_ratio": float(np.median(ratio)),
            "batches_tracked": self.tracked,
        }


@torch.no_grad()
def running_statistics(mean: torch.Tensor, variance: torch.Tensor, tracked: float) -> Pending:
    both = torch.cat([as_double(mean.detach()), as_double(variance.detach())])
    half = mean.numel()
    return Pending(both, lambda v: RunningStatistics(v[:half].copy(), v[half:].copy(), tracked))
