"""Moments, extremes, counts and histograms of k stacked tensors (k, *shape)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from nndiag import layout
from nndiag.layout import (
    PROBES,
    Axes,
    Pending,
    Plan,
    as_double,
    blocks_of,
    grid_of,
    plan_of,
    sample_positions,
    sampled_values,
)
from nndiag.stats import Histogram, ProbeStats, TensorStats, UnitStats

__all__ = ["SAFE", "Counts", "Reduced", "Unfinished", "reduced_of", "stats_of"]

Value = TypeVar("Value")

# Sizes whose squares and their sums neither underflow nor overflow in float32.
SAFE = 1e-15, 1e15
# One tensor's lowest and highest value, and its numbers of NaN, inf and zeros.
Counts = tuple[float, float, float, float, float]


class Reduced(NamedTuple):
    """k tensors (k, *shape) on a CPU, reduced to sums and a few of their values."""

    counts: list[Counts]  # k
    # (sum, sum of squares) where all units have as many values, else (number, mean, m2): (k, units)
    moments: tuple[np.ndarray, ...]
    counted: torch.Tensor | None  # (k, samples, places): values for the histogram
    followed: torch.Tensor | None  # (k, samples, places): values for the probe, unless units do
    probe: bool  # whether single values are followed across samples

    @property
    def size(self) -> int:
        picked = (0 if x is None else x.numel() for x in (self.counted, self.followed))
        return sum(part.size for part in self.moments) + sum(picked)


@dataclass
class Unfinished:
    """Reduced tensors of one kind, waiting to be turned into statistics together."""

    plan: Plan
    parts: list[Reduced]
    indices: list[int]

    def finished(self) -> tuple[list[TensorStats], list[int]]:
        counts, moments, counted, followed, (probe, *_) = zip(*self.parts, strict=True)
        joined = Reduced(
            list(itertools.chain(*counts)),
            tuple(_concatenated(parts) for parts in zip(*moments, strict=True)),
            None if counted[0] is None else torch.cat(counted),
            None if followed[0] is None else torch.cat(followed),
            probe,
        )
        return _finished(joined, self.plan), self.indices


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    if len({part.shape[1] for part in parts}) > 1:  # one count for all units, or one per unit
        shape = max(part.shape for part in parts)
        parts = [np.broadcast_to(part, shape) for part in parts]
    return np.concatenate(parts)


def stats_of(v: torch.Tensor, axes: Axes, histogram: bool, probe: bool) -> list[Any] | Pending:
    """Statistics of k stacked tensors (k, *shape)."""
    k, plan = len(v), plan_of(v.shape[1:], axes)
    if layout.is_on_cpu(v):
        return _finished(reduced_of(v, plan, histogram, probe), plan)
    parts = _masked_moments(grid_of(v, plan))
    if histogram:
        parts.append(_histogram(_codes(sampled_values(v, plan, plan.binned))))
    probe = probe and plan.sample is not None
    if probe:
        parts += _variation(sampled_values(v, plan, PROBES), plan.samples)
    sizes = [part[0].numel() for part in parts]

    def read(values: np.ndarray) -> list[TensorStats]:
        arrays = np.split(values, np.cumsum(sizes)[:-1] * k)
        counts, n, mean, m2, *rest = (x.reshape(k, -1) for x in arrays)
        bins = rest.pop(0) if histogram else None
        return _assembled(counts.tolist(), n, mean, m2, bins, rest if probe else None, plan)

    return Pending(torch.cat([part.reshape(-1) for part in parts]), read)


def reduced_of(v: torch.Tensor, plan: Plan, histogram: bool, probe: bool) -> Reduced:
    grids = blocks_of(v, plan)
    sums = _plain_moments(grids)
    plain = sums is not None
    counts, *moments = _careful_moments(grids) if sums is None else sums
    counted = sampled_values(v, plan, plan.binned) if histogram else None
    probe = probe and plan.sample is not None
    followed: torch.Tensor | None = None
    if probe and not (plain and plan.units_are_values):
        followed = sampled_values(v, plan, PROBES)
    return Reduced(counts, tuple(moments), counted, followed, probe)


def _finished(reduced: Reduced, plan: Plan) -> list[TensorStats]:
    counts, moments, counted, values, probe = reduced
    if len(moments) == 2:
        first, second = (part.astype(np.float64) for part in moments)
        mean = first / plan.n
        m2 = np.maximum(second - first * mean, 0)
        n = np.full((len(mean), 1), plan.n)
    else:
        n, mean, m2 = moments
    bins = None if counted is None else _histogram_on_cpu(_codes(counted).numpy())
    followed: list[np.ndarray] | None = None
    if values is not None:
        followed = [x.numpy() for x in _variation(values, plan.samples)]
    elif probe:
        followed = [mean, m2]
        if plan.width > PROBES:
            picks = sample_positions((plan.width,), PROBES, torch.device("cpu"))[0].numpy()
            followed = [mean[:, picks], m2[:, picks]]
    return _assembled(counts, n, mean, m2, bins, followed, plan)


def _variation(picked: torch.Tensor, samples: int) -> list[torch.Tensor]:
    """Mean and sum of squared deviations over the samples, of values (k, samples, places)."""
    values = picked[..., None]
    values = as_double(
        torch.where(torch.isfinite(values), values, 0.0)
    )  # in double precision no square is 0
    size = torch.full((), float(samples), dtype=torch.float64, device=values.device)
    return _centred(values, size, values.mean(1, keepdim=True))


def _assembled(
    counts: Sequence[Sequence[float]],
    n: np.ndarray,
    mean: np.ndarray,
    m2: np.ndarray,
    bins: np.ndarray | None,
    followed: list[np.ndarray] | None,
    plan: Plan,
) -> list[TensorStats]:
    if mean.shape[1] == 1:
        total, pooled, within = n[:, 0], mean[:, 0], m2[:, 0]
    else:
        total, pooled, within = (x[:, 0] for x in _merged(n, mean, m2, 1))
    rows = zip(counts, total.tolist(), pooled.tolist(), within.tolist(), strict=True)
    n = np.broadcast_to(n, mean.shape)
    return [
        _without_init(
            TensorStats,
            samples=plan.samples,
            count=int(count),
            nan=int(nan),
            inf=int(inf),
            zeros=int(zeros),
            mean=average if count else math.nan,
            m2=deviation,
            min=low if count else math.nan,
            max=high if count else math.nan,
            histogram=None if bins is None else _without_init(Histogram, counts=bins[i]),
            units=None
            if plan.unit is None
            else _without_init(UnitStats, count=n[i], mean=mean[i], m2=m2[i]),
            probe=None
            if followed is None
            else _without_init(
                ProbeStats,
                shape=plan.sample,
                samples=plan.samples,
                mean=followed[0][i],
                m2=followed[1][i],
            ),
            direction=None,
        )
        for i, ((low, high, nan, inf, zeros), count, average, deviation) in enumerate(rows)
    ]


def _without_init(kind: type[Value], **values: Any) -> Value:
    """A frozen dataclass made without its slow constructor; all fields must be given."""
    instance = object.__new__(kind)
    instance.__dict__.update(values)
    return instance


def _merged(
    n: np.ndarray, mean: np.ndarray, m2: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means and sums of squared deviations of all parts along an axis, which stays."""
    with np.errstate(over="ignore"):  # of float64 beyond 1e154
        total = n.sum(axis, keepdims=True)
        if n.shape[axis] < mean.shape[axis]:  # one number for all
            total = total * mean.shape[axis]
        pooled = (n * mean).sum(axis, keepdims=True) / np.maximum(total, 1)
        return total, pooled, (m2 + n * (mean - pooled) ** 2).sum(axis, keepdims=True)


def _plain_moments(
    grids: list[torch.Tensor],
) -> tuple[list[Counts], np.ndarray, np.ndarray] | None:
    """Counts, sums and sums of squares of all blocks of tensors on a CPU.

    None where that would be wrong: a value is not finite or too large or small to be squared, or a
    unit's spread is so small beside its mean that rounding would lose it.
    """
    counts: list[Counts] = []
    first = second = None
    for grid in grids:
        block_counts = _counts(grid)
        if block_counts is None:
            return None
        counts += block_counts
        sums, squares = _sums(grid)
        if first is None or second is None:
            first, second = sums, squares
        else:
            first, second = np.add(first, sums, dtype=float), np.add(second, squares, dtype=float)
    assert first is not None
    assert second is not None
    n = sum(grid.shape[1] * grid.shape[3] for grid in grids)
    mean = first * (1 / n)
    if (mean * mean > second * (0.9 / n)).any():
        return None
    return counts if len(grids) == 1 else [_pooled_counts(counts)], first, second


def _pooled_counts(counts: Sequence[Counts]) -> Counts:
    """The counts of a tensor from those of its blocks."""
    low, high, *numbers = zip(*counts, strict=True)
    nan, inf, zeros = (sum(number) for number in numbers)
    return min(low), max(high), nan, inf, zeros


def _careful_moments(
    grids: list[torch.Tensor],
) -> tuple[list[Counts], np.ndarray, np.ndarray, np.ndarray]:
    """On a CPU: counts, and each unit's n, mean and m2 (k, units); n may be (k, 1)."""
    blocks = [_shifted_moments(grid) or _as_arrays(_masked_moments(grid)) for grid in grids]
    if len(blocks) == 1:
        return blocks[0]
    counts, *parts = zip(*blocks, strict=True)
    n, mean, m2 = (_concatenated(part) for part in parts)
    return [_pooled_counts(list(itertools.chain(*counts)))], *_merged(n, mean, m2, 0)


def _as_arrays(
    masked: list[torch.Tensor],
) -> tuple[list[Counts], np.ndarray, np.ndarray, np.ndarray]:
    counts, n, mean, m2 = (x.numpy() for x in masked)
    return [tuple(row) for row in counts.tolist()], n, mean, m2


def _shifted_moments(
    grid: torch.Tensor,
) -> tuple[list[Counts], np.ndarray, np.ndarray, np.ndarray] | None:
    """The moments of a grid on a CPU, if all is finite and can be squared as it is.

    Deviations are taken from the first value: then neither the mean nor a spread small beside it is
    lost to rounding, unless that value lies far from the others; if so, from the mean.
    """
    counts = _counts(grid)
    if counts is None:
        return None
    n = grid.shape[1] * grid.shape[3]
    centre = grid[:, :1, :, :1]
    first, second = (x.astype(np.float64) for x in _sums(grid - centre))
    if (first * first > 0.99 * n * second).any():
        centre = centre + torch.from_numpy(first / n).to(grid.dtype)[:, None, :, None]
        first, second = (x.astype(np.float64) for x in _sums(grid - centre))
    rest = first / n
    mean, m2 = centre[:, 0, :, 0].numpy() + rest, np.maximum(second - first * rest, 0)
    return counts, np.full((len(grid), 1), float(n)), mean, m2


def _counts(grid: torch.Tensor) -> list[Counts] | None:
    """The counts of k tensors; None if a value is not finite or cannot be squared."""
    k = len(grid)
    if grid.numel() == 0:
        return None
    flat = grid.reshape(k, -1)
    if k == 1:
        lowest, highest = torch.aminmax(flat)  # NaN if there is one anywhere
        low, high = lowest.item(), highest.item()
        if not _can_be_squared(-low, high):
            return None
        return [(low, high, 0, 0, int(np.count_nonzero(flat.numpy() == 0)))]
    lows, highs = flat.amin(1).tolist(), flat.amax(1).tolist()
    if not all(_can_be_squared(-low, high) for low, high in zip(lows, highs, strict=True)):
        return None
    zero = flat.numpy() == 0
    zeros = [np.count_nonzero(row) for row in zero] if zero.any() else [0] * k
    return [(*extremes, 0, 0, n) for *extremes, n in zip(lows, highs, zeros, strict=True)]


# How many squares are summed up in float32 before double precision takes over.
_RUN = 256


def _sums(grid: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each unit's sum, and that of the squares, (k, units)."""
    before, units, after = grid.shape[1:]
    first = grid.sum((1, 3)).numpy()
    if after > 1:
        norms = (torch.linalg.vector_norm(runs, dim=4) for runs in _runs(grid, 3))
        return first, sum((norm.double() ** 2).sum((1, 3)).numpy() for norm in norms)
    if units < 16:
        return first, (grid * grid).sum((1, 3)).numpy()
    values = grid[..., 0].numpy()
    if before <= _RUN:
        return first, np.einsum("kru,kru->ku", values, values)
    runs = (run.numpy() for run in _runs(grid[..., 0], 1))
    return first, sum(np.einsum("kbru,kbru->kbu", x, x).sum(1, dtype=np.float64) for x in runs)


def _runs(x: torch.Tensor, axis: int) -> list[torch.Tensor]:
    """Views of a tensor with an axis cut in two, of which the latter is no longer than a run."""
    length = x.shape[axis]
    if length <= 2 * _RUN:
        return [x.unsqueeze(axis)]
    whole = length // _RUN * _RUN
    runs = [torch.unflatten(x.narrow(axis, 0, whole), axis, (-1, _RUN))]
    return (
        runs if whole == length else [*runs, x.narrow(axis, whole, length - whole).unsqueeze(axis)]
    )


def _can_be_squared(*sizes: float) -> bool:
    size = max(sizes)
    return size == 0 or SAFE[0] < size < SAFE[1]  # not so for NaN


def _masked_moments(grid: torch.Tensor) -> list[torch.Tensor]:
    """The moments of a grid with any values; reads none of them, so no GPU has to wait."""
    k, _, units, _ = grid.shape
    if grid.numel() == 0:
        return [as_double(grid.new_zeros(k, size)) for size in (5, units, units, units)]
    flat, finite = grid.flatten(1), torch.isfinite(grid)
    low = torch.where(finite, grid, math.inf).flatten(1).amin(1)
    high = torch.where(finite, grid, -math.inf).flatten(1).amax(1)
    nan, inf, zeros = torch.isnan(flat).sum(1), torch.isinf(flat).sum(1), (flat == 0).sum(1)
    n = as_double(finite.sum((1, 3)))
    largest = torch.maximum(-low, high)
    scale = _power_of_two(torch.where(torch.isfinite(largest), largest, 0.0))[:, None, None, None]
    scaled = torch.where(finite, grid, 0.0) / scale
    centre = (as_double(scaled.sum((1, 3))) / n.clamp(min=1)).to(grid.dtype)[:, None, :, None]
    mean, m2 = _centred(scaled, n, centre, finite)
    counts = torch.stack([as_double(x) for x in (low, high, nan, inf, zeros)], 1)
    unscaled = as_double(scale[:, 0, 0])
    return [counts, n, mean * unscaled, m2 * unscaled * unscaled]


def _centred(
    values: torch.Tensor, n: torch.Tensor, centre: torch.Tensor, finite: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Each unit's mean and sum of squared deviations, computed from deviations from a centre."""
    deviation = values - centre
    if finite is not None:
        deviation *= finite
    first = as_double(deviation.sum((1, 3)))
    deviation *= deviation
    second = as_double(deviation.sum((1, 3)))
    rest = first / n.clamp(min=1)
    return [as_double(centre[:, 0, :, 0]) + rest, (second - first * rest).clamp(min=0)]


def _power_of_two(x: torch.Tensor) -> torch.Tensor:
    """The power of two at or just below a size, so that dividing by it rounds nothing."""
    as_integer, exponent = {
        torch.float32: (torch.int32, 0x7F80_0000),
        torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
    }[x.dtype]
    power = (x.view(as_integer) & exponent).view(x.dtype)
    return power.clamp(min=torch.finfo(x.dtype).tiny)


def _codes(x: torch.Tensor) -> torch.Tensor:
    """The leading 11 bits of values as float32: sign, exponent and two bits of the mantissa."""
    if x.dtype == torch.float64:  # what is finite stays finite, what is not becomes NaN
        most = torch.finfo(torch.float32).max
        x = torch.where(torch.isfinite(x), x, math.nan).clamp(-most, most)
    return x.to(torch.float32).view(torch.int32) >> 21


def _histogram(codes: torch.Tensor) -> torch.Tensor:
    """How many of the codes (k, ...) are in each bin, (k, bins)."""
    k = len(codes)
    # Not bincount: it reads the largest value, so the host would wait for the GPU.
    places = (codes.reshape(k, -1) + _CODES * torch.arange(k, device=codes.device)[:, None]).long()
    counts = torch.zeros(k * _CODES, dtype=torch.int64, device=codes.device)
    counts.scatter_add_(0, places.reshape(-1) + _CODES // 2, torch.ones_like(places).view(-1))
    table = torch.from_numpy(_BINS).to(codes.device, non_blocking=True)
    bins = torch.zeros((k, _SIZE), dtype=torch.float64, device=codes.device)
    return bins.index_add_(1, table, counts.reshape(k, _CODES).double())[:, :-1]


def _histogram_on_cpu(codes: np.ndarray) -> np.ndarray:
    """As :func:`_histogram`, on a CPU."""
    k = len(codes)
    places = _BINS.take(codes.reshape(k, -1) + _CODES // 2) + _SIZE * np.arange(k)[:, None]
    counted = np.bincount(places.reshape(-1), minlength=k * _SIZE).reshape(k, _SIZE)
    return counted[:, :-1].astype(np.float64)


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
_SIZE = 2 * Histogram.SIDE + 2
