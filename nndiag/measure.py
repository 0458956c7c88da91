"""From a tensor to :class:`~nndiag.stats.TensorStats`: the only tensor arithmetic there is.

Everything is reduced on the tensor's own device, into one small float64 vector per tensor, and
nothing waits for the device: :func:`collect` brings all vectors of a batch across in one transfer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nndiag.stats import (
    DirectionStats,
    FlatStats,
    Histogram,
    ProbeStats,
    TensorStats,
    UnitStats,
)

PROBES = 512
# Beyond this many units (a vocabulary's logits) per-unit numbers would dwarf the rest of a report.
MOST_UNITS = 16_384
MOST_DIRECTIONS = 4_096


@dataclass(frozen=True)
class Axes:
    """Which axis of a tensor runs over units and which over independent samples.

    ``batch``: the axis that runs over samples, or None; on that axis the sample index is the
    slowest part, so a (N·T, C) view of (N, T, C) has ``batch=0`` and ``samples=N``.
    """

    unit: int | None = None
    batch: int | None = None
    samples: int = 1


_NO_AXES = Axes()


@dataclass(frozen=True)
class Pending:
    """Numbers still on their device, and how to read them once they are here."""

    vector: torch.Tensor  # 1-D float64
    read: Callable[[np.ndarray], Any]


def collect(pending: Sequence[Pending]) -> list[Any]:
    """Bring all numbers to the host, one transfer per device, and read them."""
    devices: dict[torch.device, list[int]] = {}
    for index, item in enumerate(pending):
        devices.setdefault(item.vector.device, []).append(index)
    results: list[Any] = [None] * len(pending)
    for indices in devices.values():
        sizes = [pending[i].vector.numel() for i in indices]
        values = torch.cat([pending[i].vector for i in indices]).cpu().numpy()
        for i, part in zip(indices, np.split(values, np.cumsum(sizes)[:-1]), strict=True):
            results[i] = pending[i].read(part)
    return results


def readable(x: torch.Tensor) -> torch.Tensor:
    """The same values as a dense, real floating-point tensor outside autograd."""
    x = x.detach()
    if hasattr(x, "full_tensor"):  # a DTensor: sharded over processes
        x = x.full_tensor()
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.is_quantized:
        x = x.dequantize()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if x.dtype in (torch.float64, torch.float32):
        return x
    return x.to(torch.float32 if x.is_floating_point() else torch.float64)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In double precision where the device has it (Apple's GPUs do not)."""
    return x.float().cpu().double() if x.device.type == "mps" else x.double()


@torch.no_grad()
def measure(
    tensor: torch.Tensor,
    axes: Axes = _NO_AXES,
    *,
    histogram: bool = True,
) -> Pending:
    """Everything :class:`TensorStats` holds about one tensor, in one go.

    Values are scaled by a power of two near the largest before they are squared: the square of a
    vanished gradient of 1e-25 would be zero in float32, that of an exploded one of 1e25 infinite.
    """
    x = readable(tensor)
    unit = _unit(x, axes)
    parts = _moments(_grid(x, unit))
    if histogram:
        parts.append(wide(_codes(x)))
    groups = _groups(x, axes)
    if groups is not None:
        picked = groups[:, _strided(groups.shape[1], x.device)]
        picked = wide(torch.where(torch.isfinite(picked), picked, torch.zeros_like(picked)))
        centre = picked.sum(0) / max(1, len(picked))
        parts += [centre, ((picked - centre) ** 2).sum(0)]
    sizes = [part.numel() for part in parts]
    sample_shape = None if groups is None else _sample_shape(x, axes)

    def read(values: np.ndarray) -> TensorStats:
        found = iter(np.split(values, np.cumsum(sizes)[:-1]))
        low, high, nan, inf, zeros = next(found)
        n, mean, m2 = next(found), next(found), next(found)
        codes = next(found) if histogram else None
        count = n.sum()
        pooled_mean = float((n * mean).sum() / count) if count else math.nan
        pooled_m2 = float(m2.sum() + (n * (mean - pooled_mean) ** 2).sum()) if count else 0.0
        return TensorStats(
            samples=axes.samples,
            count=int(count),
            nan=int(nan),
            inf=int(inf),
            zeros=int(zeros),
            mean=pooled_mean,
            m2=pooled_m2,
            min=float(low) if count else math.nan,
            max=float(high) if count else math.nan,
            histogram=None if codes is None else _histogram(codes),
            units=UnitStats(n, mean, m2) if unit is not None else None,
            probe=None
            if sample_shape is None
            else ProbeStats(sample_shape, axes.samples, next(found), next(found)),
        )

    return Pending(torch.cat(parts), read)


def _moments(grid: torch.Tensor) -> list[torch.Tensor]:
    """Of values as (before, units, after): extremes and counts; each unit's n, mean and m2."""
    units = grid.shape[1]
    if grid.numel() == 0:
        return [wide(grid.new_zeros(size)) for size in (5, units, units, units)]
    low, high = torch.aminmax(grid)  # NaN if there is one anywhere
    finite: torch.Tensor | None = None
    nan = inf = torch.zeros((), dtype=torch.int64, device=grid.device)
    values = grid
    # Asking a GPU would make it wait; there the masked arithmetic is used whatever the values.
    if grid.device.type != "cpu" or not math.isfinite(low) or not math.isfinite(high):
        finite = torch.isfinite(grid)
        low = torch.where(finite, grid, math.inf).amin()
        high = torch.where(finite, grid, -math.inf).amax()
        nan, inf = torch.isnan(grid).sum(), torch.isinf(grid).sum()
        values = torch.where(finite, grid, 0.0)
    zeros = grid.numel() - torch.count_nonzero(values) - nan - inf
    n = wide(
        nan.new_full((units,), grid.numel() // units) if finite is None else finite.sum((0, 2))
    )
    largest = torch.maximum(low.abs(), high.abs())
    scale = _power_of_two(torch.where(torch.isfinite(largest), largest, 0.0))
    scaled = values / scale
    mean = (wide(scaled.sum((0, 2))) / n.clamp(min=1)).to(grid.dtype)
    scaled -= mean[None, :, None]
    if finite is not None:
        scaled *= finite
    # The mean is rounded to the values' precision; what that leaves over is put back.
    rest = wide(scaled.sum((0, 2))) / n.clamp(min=1)
    scaled *= scaled
    m2 = (wide(scaled.sum((0, 2))) - n * rest * rest).clamp(min=0)
    counts = torch.stack([wide(v) for v in (low, high, nan, inf, zeros)])
    wide_scale = wide(scale)
    return [counts, n, (wide(mean) + rest) * wide_scale, m2 * wide_scale * wide_scale]


def _power_of_two(x: torch.Tensor) -> torch.Tensor:
    """The power of two at or just below a size, so that dividing by it rounds nothing."""
    as_integer, exponent = {
        torch.float32: (torch.int32, 0x7F80_0000),
        torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
    }[x.dtype]
    power = (x.view(as_integer) & exponent).view(x.dtype)
    return power.clamp(min=torch.finfo(x.dtype).tiny)


@torch.no_grad()
def measure_directions(tensor: torch.Tensor, unit: int) -> Pending:
    """The sum of the unit-length feature vectors along axis ``unit``, for their mean cosine.

    A vector that is zero, or not finite, has no direction.
    """
    x = readable(tensor)
    width = x.shape[unit]
    if not 1 < width <= MOST_DIRECTIONS:
        return Pending(torch.zeros(0, dtype=torch.float64), lambda _: None)
    vectors = _grid(x, unit)
    sizes = vectors.abs().amax(1, keepdim=True)
    seen = torch.isfinite(sizes) & (sizes > 0)
    scaled = torch.where(seen, vectors / torch.where(seen, sizes, 1.0), 0.0)
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    directions = scaled / torch.where(seen, lengths, 1.0)
    parts = torch.cat([wide(directions).sum((0, 2)), wide(seen.sum()).reshape(1)])
    return Pending(parts, lambda v: DirectionStats(int(v[-1]), v[:-1].copy()))


@torch.no_grad()
def measure_flat(
    tensor: torch.Tensor, flat: Sequence[tuple[float, float]], axes: Axes = _NO_AXES
) -> Pending:
    """How many values lie in the closed intervals ``flat``, and which units were ever outside."""
    x = readable(tensor)
    inside = functools.reduce(torch.logical_or, [_between(x, low, high) for low, high in flat])
    parts = [wide(inside.sum()).reshape(1)]
    unit = _unit(x, axes)
    if unit is not None:
        parts.append(wide(~_grid(inside, unit).all(2).all(0)))
    total = x.numel()

    def read(values: np.ndarray) -> FlatStats:
        opened = values[1:] > 0 if unit is not None else None
        return FlatStats(axes.samples, total, int(values[0]), opened)

    return Pending(torch.cat(parts), read)


def _between(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    if low == -math.inf:
        return x <= high
    return x >= low if high == math.inf else (x >= low) & (x <= high)


def _unit(x: torch.Tensor, axes: Axes) -> int | None:
    return axes.unit if axes.unit is not None and x.shape[axes.unit] <= MOST_UNITS else None


def _grid(x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """The tensor as (before, along, after) an axis; (1, 1, all) without one."""
    if axis is None:
        return x.reshape(1, 1, x.numel())
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


def _groups(x: torch.Tensor, axes: Axes) -> torch.Tensor | None:
    """The tensor as (samples, values of one sample), where the batch axis is known."""
    if axes.batch is None or x.numel() == 0 or x.shape[axes.batch] % axes.samples:
        return None
    return x.movedim(axes.batch, 0).reshape(axes.samples, -1)


def _sample_shape(x: torch.Tensor, axes: Axes) -> tuple[int, ...]:
    others = tuple(size for axis, size in enumerate(x.shape) if axis != axes.batch)
    steps = x.shape[axes.batch or 0] // axes.samples
    return others if steps == 1 else (steps, *others)


def _strided(width: int, device: torch.device) -> torch.Tensor:
    """Evenly strided positions, the same for the same width: up to ``PROBES`` of them."""
    if width <= PROBES:
        return torch.arange(width, device=device)
    return torch.arange(PROBES, device=device) * width // PROBES


def _codes(x: torch.Tensor) -> torch.Tensor:
    """How often each leading 11 bits occur: sign, exponent and two of the mantissa of a float32."""
    if x.dtype == torch.float64:  # what is finite stays finite, what is not becomes NaN
        most = torch.finfo(torch.float32).max
        x = torch.where(torch.isfinite(x), x, math.nan).clamp(-most, most)
    codes = (x.reshape(-1).to(torch.float32).view(torch.int32) >> 21).add_(_CODES // 2)
    if x.device.type == "cpu":
        return torch.bincount(codes, minlength=_CODES)
    # bincount would make a GPU wait: it asks for the largest code.
    counts = torch.zeros(_CODES, dtype=torch.int64, device=x.device)
    return counts.scatter_add_(0, codes.long(), torch.ones_like(codes, dtype=torch.int64))


_CODES = 2048


def _bins() -> np.ndarray:
    """The bin of each code, or one bin more for what is not finite; no logarithm is taken."""
    side = Histogram.SIDE
    code = np.arange(_CODES) - _CODES // 2  # as a signed number: negative values below zero
    size = code & (_CODES // 2 - 1)
    above = np.clip(size - (127 + Histogram.LOW) * Histogram.PER_OCTAVE + 1, 0, side)
    bins = np.where(code < 0, side - above, side + above)
    return np.where(size >= 255 * Histogram.PER_OCTAVE, 2 * side + 1, bins)


_BINS = _bins()


def _histogram(codes: np.ndarray) -> Histogram:
    return Histogram(np.bincount(_BINS, codes, minlength=2 * Histogram.SIDE + 2)[:-1])
