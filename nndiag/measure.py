"""From a tensor to :class:`~nndiag.stats.TensorStats`: the only tensor arithmetic there is.

Everything is reduced on the tensor's own device, into one small float64 vector per tensor, and
nothing waits for the device: :func:`collect` brings all vectors of a batch across in one transfer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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

T = TypeVar("T")


@dataclass(frozen=True)
class Axes:
    """Which axis of a tensor runs over units and which over independent samples.

    ``batch``: the axis that runs over samples, or None; on that axis the sample index is the
    slowest part, so a (N·T, C) view of (N, T, C) has ``batch=0`` and ``samples=N``.
    """

    unit: int | None = None
    batch: int | None = None
    samples: int = 1


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
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.is_quantized:
        x = x.dequantize()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if x.dtype == torch.float64 or x.dtype == torch.float32:
        return x
    return x.to(torch.float64 if not x.is_floating_point() else torch.float32)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In double precision where the device has it (Apple's GPUs do not)."""
    return x.float().cpu().double() if x.device.type == "mps" else x.double()


@torch.no_grad()
def measure(
    tensor: torch.Tensor,
    axes: Axes = Axes(),  # noqa: B008  (frozen)
    *,
    histogram: bool = True,
) -> Pending:
    """Everything :class:`TensorStats` holds about one tensor, in one go.

    Values are scaled by the largest magnitude before they are squared: the square of a vanished
    gradient of 1e-25 would be zero in float32, that of an exploded one of 1e25 infinite.
    """
    x = readable(tensor)
    total = x.numel()
    if total == 0:
        return Pending(torch.zeros(0, dtype=torch.float64), lambda _: _empty(axes.samples))
    unit, count = _units(x, axes)
    grid = x.reshape(math.prod(x.shape[:unit]), count, -1) if unit is not None else x.reshape(1, 1, -1)

    finite = torch.isfinite(grid)
    clean = _all_finite(grid, finite)
    safe = grid if clean else torch.where(finite, grid, torch.zeros((), dtype=x.dtype, device=x.device))
    largest = safe.abs().amax()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = safe / scale

    if clean:
        n = torch.full((count,), total / count, dtype=torch.float64, device=x.device)
        unit_mean = scaled.mean((0, 2))
        centred = scaled - unit_mean[None, :, None]
    else:
        n = _wide(finite.sum((0, 2)))
        unit_mean = scaled.sum((0, 2)) / n.clamp(min=1).to(x.dtype)
        centred = torch.where(finite, scaled - unit_mean[None, :, None], torch.zeros_like(scaled))
    unit_m2 = _wide((centred * centred).sum((0, 2)))
    # The mean of float32 values is rounded to float32; what that leaves over is put back.
    rest = _wide(centred.sum((0, 2))) / n.clamp(min=1)
    unit_m2 = (unit_m2 - n * rest * rest).clamp(min=0)
    means = _wide(unit_mean) + torch.where(n > 0, rest, torch.zeros_like(rest))
    wide_scale = _wide(scale)

    if clean:
        low, high = torch.aminmax(grid)
        nan = inf = torch.zeros((), dtype=torch.float64, device=n.device)
    else:
        low = torch.where(finite, grid, torch.full_like(scale, math.inf)).amin()
        high = torch.where(finite, grid, torch.full_like(scale, -math.inf)).amax()
        nan = _wide(torch.isnan(grid).sum())
        inf = _wide(torch.isinf(grid).sum())
    zeros = _wide(total - torch.count_nonzero(safe)) - (nan + inf)

    parts = [
        torch.stack([_wide(low), _wide(high), nan, inf, zeros]),
        n,
        means * wide_scale,
        unit_m2 * wide_scale * wide_scale,
    ]
    if histogram:
        parts.append(_wide(_histogram(safe.reshape(-1))))
    probe_shape: tuple[int, ...] | None = None
    groups = _groups(x, axes)
    if groups is not None:
        samples, per_sample = groups
        picked = per_sample[:, _strided(per_sample.shape[1], x.device)]
        picked = _wide(torch.where(torch.isfinite(picked), picked, torch.zeros_like(picked)))
        centre = picked.mean(0)
        parts += [centre, ((picked - centre) ** 2).sum(0)]
        probe_shape = tuple(s for a, s in enumerate(x.shape) if a != axes.batch)
        probe_samples, probe_width = samples, picked.shape[1]

    def read(values: np.ndarray) -> TensorStats:
        low, high, nan, inf, zeros = values[:5]
        n, mean, m2, rest = np.split(values[5:], [count, 2 * count, 3 * count])
        pooled_n = n.sum()
        pooled_mean = float((n * mean).sum() / pooled_n) if pooled_n else math.nan
        pooled_m2 = float(m2.sum() + (n * (mean - pooled_mean) ** 2).sum()) if pooled_n else 0.0
        counts = None
        if histogram:
            counts, rest = np.split(rest, [2 * Histogram.SIDE + 1])
            counts[Histogram.SIDE] -= nan + inf
        probe = None
        if probe_shape is not None:
            centre, spread, rest = np.split(rest, [probe_width, 2 * probe_width])
            probe = ProbeStats(probe_shape, probe_samples, centre, spread)
        return TensorStats(
            samples=axes.samples,
            count=int(pooled_n),
            nan=int(nan),
            inf=int(inf),
            zeros=int(zeros),
            mean=pooled_mean,
            m2=pooled_m2,
            min=float(low) if pooled_n else math.nan,
            max=float(high) if pooled_n else math.nan,
            histogram=None if counts is None else Histogram(counts),
            units=UnitStats(n, mean, m2) if unit is not None else None,
            probe=probe,
        )

    return Pending(torch.cat(parts), read)


@torch.no_grad()
def measure_directions(tensor: torch.Tensor, unit: int) -> Pending:
    """The sum of the unit-length feature vectors along axis ``unit``, for their mean cosine."""
    x = readable(tensor)
    width = x.shape[unit]
    if x.numel() == 0 or not 1 < width <= MOST_DIRECTIONS:
        return Pending(torch.zeros(0, dtype=torch.float64), lambda _: None)
    grid = x.reshape(math.prod(x.shape[:unit]), width, -1)
    grid = grid / grid.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
    lengths = torch.linalg.vector_norm(grid, dim=1, keepdim=True)
    seen = lengths > 0
    directions = torch.where(seen, grid / torch.where(seen, lengths, torch.ones_like(lengths)), 0.0)
    vector = torch.cat([_wide(directions.sum((0, 2))), _wide(seen.sum()).reshape(1)])
    return Pending(vector, lambda v: DirectionStats(int(v[-1]), v[:-1].copy()))


@torch.no_grad()
def measure_flat(
    tensor: torch.Tensor, flat: Sequence[tuple[float, float]], axes: Axes = Axes()  # noqa: B008
) -> Pending:
    """How many values lie in the closed intervals ``flat``, and which units were ever outside."""
    x = readable(tensor)
    if x.numel() == 0:
        return Pending(torch.zeros(0, dtype=torch.float64), lambda _: FlatStats(axes.samples, 0, 0))
    inside = torch.zeros_like(x, dtype=torch.bool)
    for low, high in flat:
        part = x <= high if low == -math.inf else x >= low if high == math.inf else None
        inside |= ((x >= low) & (x <= high)) if part is None else part
    parts = [_wide(inside.sum()).reshape(1)]
    unit, count = _units(x, axes)
    if unit is not None:
        grid = inside.reshape(math.prod(x.shape[:unit]), count, -1)
        parts.append(_wide(~grid.all(2).all(0)))
    total = x.numel()

    def read(values: np.ndarray) -> FlatStats:
        opened = values[1:] > 0 if unit is not None else None
        return FlatStats(axes.samples, total, int(values[0]), opened)

    return Pending(torch.cat(parts), read)


def _empty(samples: int) -> TensorStats:
    counts = np.zeros(2 * Histogram.SIDE + 1)
    return TensorStats(samples, 0, 0, 0, 0, math.nan, 0.0, math.nan, math.nan, Histogram(counts))


def _all_finite(x: torch.Tensor, finite: torch.Tensor) -> bool:
    # Asking a GPU would make it wait; there the masked arithmetic is used whatever the values.
    return bool(finite.all()) if x.device.type == "cpu" else False


def _units(x: torch.Tensor, axes: Axes) -> tuple[int | None, int]:
    if axes.unit is None or not 0 <= axes.unit < x.dim() or x.shape[axes.unit] > MOST_UNITS:
        return None, 1
    return axes.unit, x.shape[axes.unit]


def _groups(x: torch.Tensor, axes: Axes) -> tuple[int, torch.Tensor] | None:
    """The tensor as (samples, values of one sample), where the batch axis is known."""
    if axes.batch is None or not 0 <= axes.batch < x.dim():
        return None
    moved = x.movedim(axes.batch, 0)
    if axes.samples < 1 or moved.shape[0] % axes.samples:
        return None
    return axes.samples, moved.reshape(axes.samples, -1)


def _strided(width: int, device: torch.device) -> torch.Tensor:
    """Evenly strided positions, the same for the same width: up to ``PROBES`` of them."""
    if width <= PROBES:
        return torch.arange(width, device=device)
    return torch.arange(PROBES, device=device) * width // PROBES


def _histogram(x: torch.Tensor) -> torch.Tensor:
    """Counts over the bins of :class:`Histogram`, read off the bits of float32.

    A float32's bits, shifted right by 21, are its exponent and two leading mantissa bits: the
    bin number up to an offset. No logarithm is taken.
    """
    side = Histogram.SIDE
    bits = x.to(torch.float32).view(torch.int32)
    size = (bits & 0x7FFFFFFF) >> 21
    index = (size - ((127 + Histogram.LOW) * Histogram.PER_OCTAVE - 1)).clamp_(0, side)
    index = torch.where(bits < 0, side - index, side + index)
    return torch.bincount(index.to(torch.int64), minlength=2 * side + 1)
