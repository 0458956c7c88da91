"""From a tensor to :class:`~nndiag.stats.TensorStats`: the only tensor arithmetic there is.

Everything is reduced on the tensor's own device, into small float64 vectors, and nothing waits for
the device: :meth:`Meter.collect` brings all vectors of a batch across in one transfer.

What it costs is the number of passes over memory and, for small tensors, the number of calls. So a
large tensor is taken in blocks that stay in a core's cache, and small ones of one kind are copied
side by side and measured together. ``torch.var``, ``torch.var_mean`` and reductions of boolean
tensors would say the same in one call each, but on a CPU they are many times slower than sums of
floats, and than NumPy's reductions of booleans.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from nndiag.stats import (
    DirectionStats,
    FlatStats,
    Histogram,
    ProbeStats,
    TensorStats,
    UnitStats,
)

Made = TypeVar("Made")

PROBES = 512
# Beyond this many units (a vocabulary's logits) per-unit numbers would dwarf the rest of a report.
MOST_UNITS = 16_384
MOST_DIRECTIONS = 4_096
# In values: a tensor up to SMALL waits until there are GATHERED of its kind; a CPU takes a larger
# one in blocks of about BLOCK (a megabyte).
SMALL, GATHERED, BLOCK = 8_192, 65_536, 262_144
# Sizes whose squares and their sums neither underflow nor overflow in float32.
SAFE = 1e-15, 1e15


class Axes(NamedTuple):
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


# What measures k tensors side by side, (k, *shape): k results, or how to get them.
_Work = Callable[[torch.Tensor], "list[Any] | Pending"]


class _Group:
    """Tensors of one kind side by side, until there are enough of them to be worth a call."""

    def __init__(self, work: _Work, like: torch.Tensor) -> None:
        self.work = work
        places = max(1, GATHERED // max(1, like.numel()))
        self.buffer = torch.empty((places, *like.shape), dtype=like.dtype, device=like.device)
        self.places: list[int] = []  # where each one's result belongs

    def add(self, x: torch.Tensor, place: int) -> bool:
        """Whether the group is full now."""
        self.buffer[len(self.places)].copy_(x)
        self.places.append(place)
        return len(self.places) == len(self.buffer)

    def take(self) -> tuple[list[Any] | Pending, list[int]]:
        places, self.places = self.places, []
        return self.work(self.buffer[: len(places)]), places


class _Scratch:
    """One block of memory for what is only passed through; taking a new one each time is slow."""

    def __init__(self) -> None:
        self._blocks: dict[torch.dtype, torch.Tensor] = {}

    def like(self, x: torch.Tensor) -> torch.Tensor | None:
        """Memory for as many values, where that helps."""
        if not _is_here(x) or x.numel() > BLOCK:
            return None
        block = self._blocks.get(x.dtype)
        if block is None or len(block) < x.numel():
            block = self._blocks[x.dtype] = torch.empty(x.numel(), dtype=x.dtype)
        return block[: x.numel()].view(x.shape)


class Meter:
    """Measures tensors now, and says what they were once they are all :meth:`collect`\\ ed.

    Each measurement returns its index in what ``collect`` returns. No tensor is kept, but for the
    copies of a few small ones.
    """

    def __init__(self) -> None:
        self._results: list[Any] = []
        self._pending: list[tuple[Pending, list[int]]] = []
        self._groups: dict[Hashable, _Group] = {}
        self._scratch = _Scratch()
        self._known: dict[Hashable, tuple[StorageWeakRef, int]] = {}

    def add(self, pending: Pending) -> int:
        """Something measured elsewhere."""
        return self.apart(Pending(pending.vector, lambda values: [pending.read(values)]))

    def apart(self, measured: list[Any] | Pending) -> int:
        """Measured elsewhere, in a list of one."""
        self._results.append(None)
        self._put(measured, [len(self._results) - 1])
        return len(self._results) - 1

    def together(self, x: torch.Tensor, kind: tuple[Hashable, ...], work: _Work) -> int:
        """A small tensor, to be worked on with others of its ``kind``, shape and dtype."""
        key = (*kind, x.shape, x.dtype, x.device)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(work, x)
        place = len(self._results)
        full = group.add(x, place)
        self._results.append(None)
        if full:
            self._put(*group.take())
        return place

    def _put(self, measured: list[Any] | Pending, places: list[int]) -> None:
        if isinstance(measured, Pending):
            self._pending.append((measured, places))
        else:
            for place, result in zip(places, measured, strict=True):
                self._results[place] = result

    def stats(
        self,
        tensor: torch.Tensor,
        axes: Axes = _NO_AXES,
        *,
        histogram: bool = True,
        probe: bool = True,
    ) -> int:
        """Everything :class:`TensorStats` holds about one tensor.

        What lies unchanged in memory and was measured in the same arrangement (as a view that
        merges or splits other axes has) is not measured again, unless it is small.

        Values far from 1 are scaled by a power of two before they are squared: the square of a
        vanished gradient of 1e-25 would be zero in float32, that of an exploded one infinite.
        """
        kind = ("stats", axes, histogram, probe)
        memory = _memory(tensor, axes) if tensor.numel() > SMALL else None
        if memory is not None:
            memory = (*memory, histogram, probe)
            known = self._known.get(memory)
            if known is not None and not known[0].expired():  # type: ignore[no-untyped-call]
                return known[1]
        place = self._take(
            readable(tensor), kind, lambda v: _stats(v, axes, histogram, probe, self._scratch)
        )
        if memory is not None:
            alive = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._known[memory] = alive, place
        return place

    def flat(
        self, tensor: torch.Tensor, flat: Sequence[tuple[float, float]], axes: Axes = _NO_AXES
    ) -> int:
        """How many values lie in the closed intervals ``flat``; which units were ever outside."""
        intervals = tuple(flat)
        kind = ("flat", axes, intervals)
        return self._take(readable(tensor), kind, lambda v: _flat(v, intervals, axes))

    def directions(self, tensor: torch.Tensor, unit: int) -> int:
        """The sum of the unit-length feature vectors along axis ``unit``, for their mean cosine.

        A vector that is zero, or not finite, has no direction.
        """
        x = readable(tensor)
        if not 1 < x.shape[unit] <= MOST_DIRECTIONS:
            return self.apart([None])
        return self._take(x, ("directions", unit), lambda v: _directions(v, unit, self._scratch))

    def collect(self) -> list[Any]:
        """Bring all numbers to the host, one transfer per device, and read them."""
        for group in self._groups.values():
            if group.places:
                self._put(*group.take())
        self._groups.clear()
        devices: dict[torch.device, list[tuple[Pending, list[int]]]] = {}
        for item in self._pending:
            devices.setdefault(item[0].vector.device, []).append(item)
        self._pending = []
        for items in devices.values():
            whole = torch.cat([pending.vector for pending, _ in items]).cpu().numpy()
            ends = np.cumsum([pending.vector.numel() for pending, _ in items])
            for (pending, places), values in zip(items, np.split(whole, ends[:-1]), strict=True):
                self._put(pending.read(values), places)
        return self._results

    def _take(self, x: torch.Tensor, kind: tuple[Hashable, ...], work: _Work) -> int:
        if x.numel() > SMALL:
            return self.apart(work(x[None]))
        return self.together(x, kind, work)


def readable(x: torch.Tensor) -> torch.Tensor:
    """The same values as a dense, real floating-point tensor outside autograd.

    Apple's GPUs know no double precision: what lies there is brought to the CPU at once.
    """
    if x.device.type == "mps":
        x = x.detach().cpu()
    if x.__class__ in _PLAIN and x.dtype == torch.float32 and x.layout == torch.strided:
        return x.detach() if x.requires_grad else x
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


def _is_here(x: torch.Tensor) -> bool:
    """Whether asking for a value is free; any other device would have to wait for it."""
    return x.device.type == "cpu"


# -- moments, extremes, counts ------------------------------------------------------------------


def _stats(
    v: torch.Tensor, axes: Axes, histogram: bool, probe: bool, scratch: _Scratch
) -> list[TensorStats] | Pending:
    """Statistics of k tensors side by side, (k, *shape)."""
    k, unit = len(v), _unit(v, axes)
    here = _is_here(v)
    parts: list[Any] = _moments(v, unit, scratch) if here else _masked(_grid(v, unit))
    samples = _by_sample(v, axes) if histogram or probe else None
    if histogram:
        values = v.reshape(k, 1, -1) if samples is None else samples
        parts.append(_histogram(_picked(values, _binned(math.prod(values.shape[2:])))))
    shape: tuple[int, ...] | None = None
    if probe and samples is not None:
        shape = tuple(samples.shape[2:])
        units_only = unit not in (None, axes.batch) and len(shape) == 1
        if here and units_only and not parts[0][:, 2:4].any():  # a sample's values are the units
            if shape[0] > PROBES:
                picks = spread(shape, PROBES, v.device)[0].numpy()
                parts += [part[:, picks] for part in parts[2:4]]
            else:
                parts += parts[2:4]
        else:
            picked = _picked(samples, PROBES)[..., None]
            picked = wide(torch.where(torch.isfinite(picked), picked, 0.0))  # few: never too small
            size = torch.full((), float(axes.samples), dtype=torch.float64, device=v.device)
            centre = picked.mean(1, keepdim=True)
            parts += [x.numpy() if here else x for x in _centred(picked, size, centre)]
    if here:
        return _assembled(parts, axes, unit, histogram, shape)
    sizes = [part[0].numel() for part in parts]

    def read(values: np.ndarray) -> list[TensorStats]:
        arrays = np.split(values, np.cumsum(sizes)[:-1] * k)
        return _assembled([x.reshape(k, -1) for x in arrays], axes, unit, histogram, shape)

    return Pending(torch.cat([part.reshape(-1) for part in parts]), read)


def _assembled(
    parts: Sequence[np.ndarray],
    axes: Axes,
    unit: int | None,
    histogram: bool,
    shape_of_probe: tuple[int, ...] | None,
) -> list[TensorStats]:
    counts, n, mean, m2, *rest = parts
    if n.shape[1] == 1:
        total, pooled, within = n[:, 0], mean[:, 0], m2[:, 0]
    else:
        total, pooled, within = (x[:, 0] for x in _merged(n, mean, m2, 1))
    rows = zip(counts.tolist(), total.tolist(), pooled.tolist(), within.tolist(), strict=True)
    bins = rest.pop(0) if histogram else None
    return [
        _made(
            TensorStats,
            samples=axes.samples,
            count=int(count),
            nan=int(nan),
            inf=int(inf),
            zeros=int(zeros),
            mean=average if count else math.nan,
            m2=deviation,
            min=low if count else math.nan,
            max=high if count else math.nan,
            histogram=None if bins is None else _made(Histogram, counts=bins[i]),
            units=None if unit is None else _made(UnitStats, count=n[i], mean=mean[i], m2=m2[i]),
            probe=None
            if shape_of_probe is None
            else _made(
                ProbeStats,
                shape=shape_of_probe,
                samples=axes.samples,
                mean=rest[0][i],
                m2=rest[1][i],
            ),
            direction=None,
        )
        for i, ((low, high, nan, inf, zeros), count, average, deviation) in enumerate(rows)
    ]


def _made(kind: type[Made], **values: Any) -> Made:
    """A frozen dataclass without its constructor, which is slow; all fields are given."""
    made = object.__new__(kind)
    made.__dict__.update(values)
    return made


def _moments(v: torch.Tensor, unit: int | None, scratch: _Scratch) -> list[np.ndarray]:
    """On a CPU: counts (k, 5), namely extremes, NaN, inf, zeros; units' n, mean, m2 (k, units)."""
    blocks = []
    for grid in _blocks(v, unit):
        found = _clean(grid, scratch)
        blocks.append([x.numpy() for x in _masked(grid)] if found is None else found)
    if len(blocks) == 1:
        return blocks[0]
    counts, n, mean, m2 = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    counts = np.concatenate([counts[:, :1].min(0), counts[:, 1:2].max(0), counts[:, 2:].sum(0)])
    return [counts[None], *_merged(n, mean, m2, 0)]


def _merged(
    n: np.ndarray, mean: np.ndarray, m2: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means and sums of squared deviations of all parts along an axis, which stays."""
    with np.errstate(over="ignore"):  # of float64 beyond 1e154
        total = n.sum(axis, keepdims=True)
        pooled = (n * mean).sum(axis, keepdims=True) / np.maximum(total, 1)
        return total, pooled, (m2 + n * (mean - pooled) ** 2).sum(axis, keepdims=True)


def _clean(grid: torch.Tensor, scratch: _Scratch) -> list[np.ndarray] | None:
    """The moments of a grid on a CPU, if all is finite and can be squared as it is.

    Deviations are taken from the first value: then neither the mean nor a spread small beside it is
    lost to rounding, unless that value lies far from the others; if so, from the mean.
    """
    k, before, units, after = grid.shape
    if grid.numel() == 0:
        return None
    flat = grid.reshape(k, -1)
    if k == 1:
        low, high = torch.aminmax(flat)  # NaN if there is one anywhere
        lows, highs = [low.item()], [high.item()]
    else:
        lows, highs = flat.amin(1).tolist(), flat.amax(1).tolist()
    if not all(_can_be_squared(-low, high) for low, high in zip(lows, highs, strict=True)):
        return None
    zeros = [np.count_nonzero(row) for row in flat.numpy() == 0]
    counts = np.array([lows, highs, [0] * k, [0] * k, zeros], np.float64).T
    n, centre = before * after, grid[:, :1, :, :1]
    first, second = _sums(grid, centre, scratch)
    if (first * first > 0.99 * n * second).any():
        centre = centre + torch.from_numpy(first / n).to(grid.dtype)[:, None, :, None]
        first, second = _sums(grid, centre, scratch)
    rest = first / n
    mean, m2 = centre[:, 0, :, 0].numpy() + rest, np.maximum(second - first * rest, 0)
    return [counts, np.broadcast_to(np.float64(n), (k, units)), mean, m2]


def _sums(
    grid: torch.Tensor, centre: torch.Tensor, scratch: _Scratch
) -> tuple[np.ndarray, np.ndarray]:
    """Each unit's sum of deviations from a centre, and of their squares."""
    deviation = torch.sub(grid, centre, out=scratch.like(grid))
    first = deviation.sum((1, 3)).numpy().astype(np.float64)
    torch.mul(deviation, deviation, out=deviation)
    return first, deviation.sum((1, 3)).numpy().astype(np.float64)


def _can_be_squared(*sizes: float) -> bool:
    size = max(sizes)
    return size == 0 or SAFE[0] < size < SAFE[1]  # not so for NaN


def _masked(grid: torch.Tensor) -> list[torch.Tensor]:
    """The moments of a grid, whatever its values, without asking for any: a GPU does not wait."""
    k, _, units, _ = grid.shape
    if grid.numel() == 0:
        return [wide(grid.new_zeros(k, size)) for size in (5, units, units, units)]
    flat, finite = grid.flatten(1), torch.isfinite(grid)
    low = torch.where(finite, grid, math.inf).flatten(1).amin(1)
    high = torch.where(finite, grid, -math.inf).flatten(1).amax(1)
    nan, inf, zeros = torch.isnan(flat).sum(1), torch.isinf(flat).sum(1), (flat == 0).sum(1)
    n = wide(finite.sum((1, 3)))
    largest = torch.maximum(-low, high)
    scale = _power_of_two(torch.where(torch.isfinite(largest), largest, 0.0))[:, None, None, None]
    scaled = torch.where(finite, grid, 0.0) / scale
    centre = (wide(scaled.sum((1, 3))) / n.clamp(min=1)).to(grid.dtype)[:, None, :, None]
    mean, m2 = _centred(scaled, n, centre, finite)
    counts = torch.stack([wide(x) for x in (low, high, nan, inf, zeros)], 1)
    unscaled = wide(scale[:, 0, 0])
    return [counts, n, mean * unscaled, m2 * unscaled * unscaled]


def _centred(
    values: torch.Tensor, n: torch.Tensor, centre: torch.Tensor, finite: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Mean and sum of squared deviations of each unit of a grid, by way of those from a centre."""
    deviation = values - centre
    if finite is not None:
        deviation *= finite
    first = wide(deviation.sum((1, 3)))
    deviation *= deviation
    second = wide(deviation.sum((1, 3)))
    rest = first / n.clamp(min=1)
    return [wide(centre[:, 0, :, 0]) + rest, (second - first * rest).clamp(min=0)]


def _power_of_two(x: torch.Tensor) -> torch.Tensor:
    """The power of two at or just below a size, so that dividing by it rounds nothing."""
    as_integer, exponent = {
        torch.float32: (torch.int32, 0x7F80_0000),
        torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
    }[x.dtype]
    power = (x.view(as_integer) & exponent).view(x.dtype)
    return power.clamp(min=torch.finfo(x.dtype).tiny)


def _binned(width: int) -> int:
    """How many of a sample's values go into the histogram: a 32nd of them, 16 to 256."""
    return min(256, max(16, width // 32))


def _histogram(values: torch.Tensor) -> Any:
    """Counts (k, bins) of values (k, …), by their leading 11 bits as float32.

    Those are sign, exponent and two bits of the mantissa: no logarithm is taken.
    """
    k, x = len(values), values.reshape(-1)
    if x.dtype == torch.float64:  # what is finite stays finite, what is not becomes NaN
        most = torch.finfo(torch.float32).max
        x = torch.where(torch.isfinite(x), x, math.nan).clamp(-most, most)
    codes = x.to(torch.float32).view(torch.int32) >> 21
    if not _is_here(x):  # bincount would make a GPU wait: it asks for the largest
        places = (codes.reshape(k, -1) + _CODES * torch.arange(k, device=x.device)[:, None]).long()
        counts = torch.zeros(k * _CODES, dtype=torch.int64, device=x.device)
        counts.scatter_add_(0, places.reshape(-1) + _CODES // 2, torch.ones_like(places).view(-1))
        table = torch.from_numpy(_BINS).to(x.device, non_blocking=True)
        bins = torch.zeros((k, _SIZE), dtype=torch.float64, device=x.device)
        return bins.index_add_(1, table, counts.reshape(k, _CODES).double())[:, :-1]
    numbers: np.ndarray = codes.numpy().reshape(k, -1)
    if k > 1:  # few values each: for them to look up the bin is less than to sum up the codes'
        found = _BINS.take(numbers + _CODES // 2) + _SIZE * np.arange(k)[:, None]
        counted = np.bincount(found.reshape(-1), minlength=k * _SIZE).reshape(k, _SIZE)
        return counted[:, :-1].astype(np.float64)
    counted = np.bincount((numbers + _CODES // 2).reshape(-1), minlength=_CODES)[None]
    sums = np.add.reduceat(counted, _FIRST, axis=1).astype(np.float64)
    binned = np.zeros((k, _SIZE))
    binned[:, _NEGATIVE] = sums[:, : len(_NEGATIVE)]  # of one sign, each bin occurs but once
    binned[:, _POSITIVE] += sums[:, len(_NEGATIVE) :]
    return binned[:, :-1]


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
# The first code of each run of codes that share a bin; and the bins, by the sign of their values.
_FIRST = np.flatnonzero((np.diff(_BINS, prepend=-1) != 0) | (np.arange(_CODES) == _CODES // 2))
_NEGATIVE, _POSITIVE = np.split(_BINS[_FIRST], [np.searchsorted(_FIRST, _CODES // 2)])


# -- flat parts, directions ---------------------------------------------------------------------


def _flat(
    v: torch.Tensor, intervals: tuple[tuple[float, float], ...], axes: Axes
) -> list[FlatStats] | Pending:
    k, total, unit = len(v), v[0].numel(), _unit(v, axes)

    def read(values: np.ndarray) -> list[FlatStats]:
        inside, opened = values.reshape(k, -1)[:, 0].tolist(), values.reshape(k, -1)[:, 1:] > 0
        return [
            FlatStats(axes.samples, total, int(n), None if unit is None else opened[i])
            for i, n in enumerate(inside)
        ]

    if _is_here(v):
        parts = [_inside(grid, intervals) for grid in _blocks(v, unit)]
        return read(parts[0] if len(parts) == 1 else np.sum(parts, 0))
    grid = _grid(v, unit)
    inside = functools.reduce(torch.logical_or, [_between(grid, *ends) for ends in intervals])
    both = torch.cat([inside.sum((1, 2, 3))[:, None], (~inside).sum((1, 3))], 1)
    return Pending(wide(both).reshape(-1), read)


def _inside(grid: torch.Tensor, intervals: tuple[tuple[float, float], ...]) -> np.ndarray:
    """On a CPU: how many values lie in the intervals, and which units have others, (k, 1 + units).

    In NumPy: torch's reductions of booleans are not vectorised on a CPU.
    """
    values = grid.numpy()
    inside = functools.reduce(np.logical_or, [_between(values, *ends) for ends in intervals])
    counts = [[np.count_nonzero(part)] for part in inside]
    closed = inside.all(3).all(1) if inside.shape[3] > 1 else inside[..., 0].all(1)
    return np.concatenate([counts, ~closed], 1)


def _between(x: Any, low: float, high: float) -> Any:
    if low == -math.inf:
        return x <= high
    return x >= low if high == math.inf else (x >= low) & (x <= high)


def _directions(v: torch.Tensor, unit: int, scratch: _Scratch) -> list[DirectionStats] | Pending:
    k = len(v)

    def read(sums: np.ndarray) -> list[DirectionStats]:
        return [DirectionStats(int(row[-1]), row[:-1]) for row in sums.reshape(k, -1)]

    if _is_here(v):
        sums = [_unit_lengths(grid, scratch).numpy() for grid in _blocks(v, unit)]
        return read(sums[0] if len(sums) == 1 else np.sum(sums, 0))
    return Pending(_unit_lengths(_grid(v, unit), scratch).reshape(-1), read)


def _unit_lengths(grid: torch.Tensor, scratch: _Scratch) -> torch.Tensor:
    """Of the vectors along the third axis of a grid: their sum at unit length, and their number."""
    squares = torch.mul(grid, grid, out=scratch.like(grid)).sum(2)  # (k, before, after)
    safe = False
    if _is_here(grid) and grid.numel():
        low, high = torch.aminmax(squares)
        safe = SAFE[0] ** 2 < low.item() and high.item() < SAFE[1] ** 2
    if safe:
        vectors, factors = grid, squares.rsqrt_()
        number = grid.new_full((len(grid), 1), float(squares[0].numel()), dtype=torch.float64)
    else:
        sizes = grid.abs().amax(2, keepdim=True)
        seen = torch.isfinite(sizes) & (sizes > 0)
        vectors = torch.where(seen, grid / torch.where(seen, sizes, 1.0), 0.0)
        squares = (vectors * vectors).sum(2)
        factors = torch.where(squares > 0, squares.rsqrt(), 0.0)
        number = wide((squares > 0).sum((1, 2)))[:, None]
    if grid.shape[3] == 1:
        summed = torch.matmul(factors.permute(0, 2, 1), vectors[..., 0])[:, 0]
    else:
        # A matrix product with one vector for each sample is slower than two passes.
        summed = torch.mul(vectors, factors[:, :, None], out=scratch.like(grid)).sum((1, 3))
    return torch.cat([wide(summed), number], 1)


# -- shapes -------------------------------------------------------------------------------------


def _memory(x: torch.Tensor, axes: Axes) -> tuple[Hashable, ...] | None:
    """What two tensors share if they are the same values in the same arrangement; None: unknown."""
    if x.__class__ not in _PLAIN or x.layout != torch.strided or x.is_inference():
        return None
    here = (x.untyped_storage()._cdata, x.data_ptr(), x._version, x.dtype, axes.samples)
    if not x.is_contiguous() or axes.batch:
        return (*here, x.shape, x.stride(), axes)
    unit = None
    if axes.unit is not None:
        unit = (x.shape[axes.unit], math.prod(x.shape[axes.unit + 1 :]))
    return (*here, x.numel(), unit, axes.batch)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _unit(v: torch.Tensor, axes: Axes) -> int | None:
    return axes.unit if axes.unit is not None and v.shape[axes.unit + 1] <= MOST_UNITS else None


def _blocks(v: torch.Tensor, unit: int | None) -> list[torch.Tensor]:
    """Tensors (k, *shape) as grids (k, before, units, after); a large one on a CPU in several."""
    if not _is_here(v) or len(v) > 1 or v.numel() <= BLOCK:
        return [_grid(v, unit)]
    others = [axis for axis in range(1, v.dim()) if unit is None or axis != unit + 1]
    # Along the first axis, since that is the slowest in memory, if it is long enough.
    axis = next((a for a in others if v.shape[a] >= v.numel() // BLOCK), None)
    if axis is None:
        axis = max(others, key=lambda a: v.shape[a], default=0)
    length = max(1, v.shape[axis] * BLOCK // v.numel())
    return [_grid(block, unit) for block in torch.split(v, length, axis)]


def _grid(v: torch.Tensor, unit: int | None) -> torch.Tensor:
    """Tensors (k, *shape) as (k, before, along, after) an axis; (k, 1, 1, all) without one."""
    if unit is None:
        return v.reshape(len(v), 1, 1, v[0].numel())
    before, units, after = v.shape[1 : unit + 1], v.shape[unit + 1], v.shape[unit + 2 :]
    return v.reshape(len(v), math.prod(before), units, math.prod(after))


def _by_sample(v: torch.Tensor, axes: Axes) -> torch.Tensor | None:
    """Tensors (k, *shape) as (k, samples, *shape of a sample), where the batch axis is known."""
    if axes.batch is None or v.numel() == 0 or v.shape[axes.batch + 1] % axes.samples:
        return None
    v = v.movedim(axes.batch + 1, 1)
    steps = v.shape[1] // axes.samples
    return v if steps == 1 else torch.unflatten(v, 1, (axes.samples, steps))


def _picked(v: torch.Tensor, most: int) -> torch.Tensor:
    """Of (k, samples, …) up to ``most`` values of each sample, the same for the same shape."""
    shape = tuple(v.shape[2:])
    width = math.prod(shape)
    if width <= most:
        return v.flatten(2) if v.dim() > 2 else v[..., None]
    if v.is_contiguous():  # several times as fast as an index for each axis
        return v.flatten(2).index_select(2, spread((width,), most, v.device)[0])
    everything: Any = slice(None)
    return v[(everything, everything, *spread(shape, most, v.device))]


@functools.lru_cache(maxsize=256)
def spread(shape: tuple[int, ...], most: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Up to ``most`` different, well spread positions in a tensor of this shape, an index an axis.

    Multiples of a step near the golden section of the size and coprime to it: an even stride would
    meet the same few channels, or the same head, over and over.
    """
    width = math.prod(shape)
    step = round(0.618 * width)
    while most < width and math.gcd(step, width) != 1:
        step += 1
    flat = np.sort(np.arange(most) * step % width) if most < width else np.arange(width)
    places = np.unravel_index(flat, shape)
    return tuple(torch.from_numpy(i).to(device, non_blocking=True) for i in places)
