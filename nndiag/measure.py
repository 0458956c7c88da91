"""From a tensor to :class:`~nndiag.stats.TensorStats`: the only tensor arithmetic there is.

Everything is reduced on the tensor's own device, into small float64 vectors, and nothing waits for
the device: :meth:`Meter.collect` brings all vectors of a batch across in one transfer.

What it costs is the number of passes over memory and, for small tensors, the number of calls. So a
large tensor is taken in blocks that stay in a core's cache, and small ones of one kind are copied
side by side and measured together. ``torch.var``, ``torch.var_mean`` and reductions of boolean
tensors would say the same in one call each, but on a CPU they read 0.3 to 0.7 GB/s, float sums 10
to 30, and NumPy's boolean ones as much.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
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
# In values: a tensor up to SMALL waits until there are GATHERED of its kind; a CPU takes a larger
# one in blocks of about BLOCK (half a megabyte).
SMALL, GATHERED, BLOCK = 8_192, 32_768, 131_072
# Sizes whose squares and their sums neither underflow nor overflow in float32.
SAFE = 1e-15, 1e15


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


# What measures tensors side by side, (k, *shape), and reads k results.
_Work = Callable[[torch.Tensor], Pending]


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

    def take(self) -> tuple[Pending, list[int]]:
        places, self.places = self.places, []
        return self.work(self.buffer[: len(places)]), places


class _Scratch:
    """One block of memory for what is only passed through; taking a new one each time is slow."""

    def __init__(self) -> None:
        self._blocks: dict[torch.dtype, torch.Tensor] = {}

    def like(self, x: torch.Tensor) -> torch.Tensor | None:
        """Memory for as many values, where that helps."""
        if x.device.type != "cpu" or x.numel() > BLOCK:
            return None
        block = self._blocks.get(x.dtype)
        if block is None:
            block = self._blocks[x.dtype] = torch.empty(BLOCK, dtype=x.dtype)
        return block[: x.numel()].view(x.shape)


class Meter:
    """Measures tensors now, and says what they were once they are all :meth:`collect`\\ ed.

    Each measurement returns its index in what ``collect`` returns. No tensor is kept, but for the
    copies of a few small ones.
    """

    def __init__(self) -> None:
        self._count = 0
        self._pending: list[tuple[Pending, list[int] | int]] = []
        self._groups: dict[Hashable, _Group] = {}
        self._scratch = _Scratch()

    def __len__(self) -> int:
        return self._count

    def add(self, pending: Pending) -> int:
        """Something measured elsewhere."""
        self._pending.append((pending, self._count))
        self._count += 1
        return self._count - 1

    def apart(self, pending: Pending) -> int:
        """Measured elsewhere, in a list of one."""
        return self.add(Pending(pending.vector, lambda values: pending.read(values)[0]))

    def together(self, x: torch.Tensor, kind: tuple[Hashable, ...], work: _Work) -> int:
        """A small tensor, to be worked on with others of its ``kind``, shape and dtype."""
        key = (*kind, x.shape, x.dtype, x.device)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(work, x)
        if group.add(x, self._count):
            self._pending.append(group.take())
        self._count += 1
        return self._count - 1

    def stats(
        self,
        tensor: torch.Tensor,
        axes: Axes = _NO_AXES,
        *,
        histogram: bool = True,
        probe: bool = True,
    ) -> int:
        """Everything :class:`TensorStats` holds about one tensor.

        Values far from 1 are scaled by a power of two before they are squared: the square of a
        vanished gradient of 1e-25 would be zero in float32, that of an exploded one infinite.
        """
        x = readable(tensor)
        kind = ("stats", axes, histogram, probe)
        return self._take(x, kind, lambda v: _stats(v, axes, histogram, probe, self._scratch))

    def flat(
        self, tensor: torch.Tensor, flat: Sequence[tuple[float, float]], axes: Axes = _NO_AXES
    ) -> int:
        """How many values lie in the closed intervals ``flat``; which units were ever outside."""
        intervals = tuple(flat)
        kind = ("flat", axes, intervals)
        return self._take(
            readable(tensor), kind, lambda v: _flat(v, intervals, axes, self._scratch)
        )

    def directions(self, tensor: torch.Tensor, unit: int) -> int:
        """The sum of the unit-length feature vectors along axis ``unit``, for their mean cosine.

        A vector that is zero, or not finite, has no direction.
        """
        x = readable(tensor)
        if not 1 < x.shape[unit] <= MOST_DIRECTIONS:
            return self.add(Pending(torch.zeros(0, dtype=torch.float64), lambda _: None))
        return self._take(x, ("directions", unit), lambda v: _directions(v, unit, self._scratch))

    def collect(self) -> list[Any]:
        """Bring all numbers to the host, one transfer per device, and read them."""
        for group in self._groups.values():
            if group.places:
                self._pending.append(group.take())
        self._groups.clear()
        results: list[Any] = [None] * self._count
        devices: dict[torch.device, list[tuple[Pending, list[int] | int]]] = {}
        for item in self._pending:
            devices.setdefault(item[0].vector.device, []).append(item)
        self._pending = []
        for items in devices.values():
            whole = torch.cat([pending.vector for pending, _ in items]).cpu().numpy()
            start = 0
            for pending, places in items:
                end = start + pending.vector.numel()
                found = pending.read(whole[start:end])
                start = end
                if isinstance(places, int):
                    results[places] = found
                else:
                    for place, result in zip(places, found, strict=True):
                        results[place] = result
        return results

    def _take(self, x: torch.Tensor, kind: tuple[Hashable, ...], work: _Work) -> int:
        if x.numel() > SMALL:
            return self.apart(work(x[None]))
        return self.together(x, kind, work)


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


# -- moments, extremes, counts ------------------------------------------------------------------


def _stats(v: torch.Tensor, axes: Axes, histogram: bool, probe: bool, scratch: _Scratch) -> Pending:
    """Statistics of k tensors side by side, (k, *shape)."""
    k, unit = len(v), _unit(v, axes)
    samples = _by_sample(v, axes) if histogram or probe else None
    counts, n, mean, m2 = _moments(v, unit, scratch)
    parts = [counts, n, mean, m2]
    if histogram:
        values = v.reshape(k, 1, -1) if samples is None else samples
        parts.append(_histogram(_picked(values, _binned(math.prod(values.shape[2:])))))
    shape: tuple[int, ...] | None = None
    if probe and samples is not None:
        shape = tuple(samples.shape[2:])
        finite = v.device.type == "cpu" and not counts[:, 2:4].any()
        if finite and unit is not None and len(shape) == 1 and v.shape[unit + 1] == shape[0]:
            # A sample's elements are the units.
            (picks,) = spread(shape, min(shape[0], PROBES), v.device)
            parts += [mean[:, picks], m2[:, picks]]
        else:
            picked = _picked(samples, PROBES)[..., None]
            picked = torch.where(torch.isfinite(picked), picked, 0.0)
            size = torch.full((), float(axes.samples), dtype=torch.float64, device=v.device)
            parts += _centred(picked, size, picked[:, :1], asking=v.device.type == "cpu")
    sizes = [part[0].numel() for part in parts]

    def read(values: np.ndarray) -> list[TensorStats]:
        ends = np.cumsum(sizes) * k
        found = iter(
            values[end - k * size : end].reshape(k, size)
            for end, size in zip(ends, sizes, strict=True)
        )
        counts, n, mean, m2 = next(found), next(found), next(found), next(found)
        total = n.sum(1)
        pooled = (n * mean).sum(1) / np.maximum(total, 1)
        spread = m2.sum(1) + (n * (mean - pooled[:, None]) ** 2).sum(1)
        bins = next(found) if histogram else None
        followed = (next(found), next(found)) if shape is not None else None
        return [
            TensorStats(
                samples=axes.samples,
                count=int(count),
                nan=int(nan),
                inf=int(inf),
                zeros=int(zeros),
                mean=average if count else math.nan,
                m2=deviation,
                min=low if count else math.nan,
                max=high if count else math.nan,
                histogram=None if bins is None else Histogram(bins[i]),
                units=None if unit is None else UnitStats(n[i], mean[i], m2[i]),
                probe=None
                if followed is None or shape is None
                else ProbeStats(shape, axes.samples, followed[0][i], followed[1][i]),
            )
            for i, ((low, high, nan, inf, zeros), count, average, deviation) in enumerate(
                zip(counts.tolist(), total.tolist(), pooled.tolist(), spread.tolist(), strict=True)
            )
        ]

    return Pending(torch.cat([part.reshape(-1) for part in parts]), read)


def _moments(v: torch.Tensor, unit: int | None, scratch: _Scratch) -> list[torch.Tensor]:
    """Counts (k, 5): extremes, NaN, inf, zeros; each unit's n, mean and m2 (k, units); float64."""
    blocks = [_of_block(grid, scratch) for grid in _blocks(v, unit)]
    if len(blocks) == 1:
        return blocks[0]
    counts, n, mean, m2 = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    low, high, *sums = counts.unbind(1)
    counts = torch.stack([low.amin(), high.amax(), *(s.sum() for s in sums)])
    total = n.sum(0)
    pooled = (n * mean).sum(0) / total.clamp(min=1)
    m2 = (m2 + n * (mean - pooled) ** 2).sum(0)
    return [counts[None], total[None], pooled[None], m2[None]]


def _of_block(grid: torch.Tensor, scratch: _Scratch) -> list[torch.Tensor]:
    """The same of a (k, before, units, after) grid."""
    k, before, units, after = grid.shape
    if grid.numel() == 0:
        return [wide(grid.new_zeros(k, size)) for size in (5, units, units, units)]
    flat = grid.flatten(1)
    if k == 1:
        low, high = (x[None] for x in torch.aminmax(flat))  # NaN if there is one anywhere
    else:
        low, high = flat.amin(1), flat.amax(1)
    # Asking a GPU would make it wait; there the masked arithmetic is used whatever the values.
    asking = grid.device.type == "cpu"
    if asking and math.isfinite((low + high).sum().item()):
        finite, values, n = None, grid, grid.new_full((k, units), float(before * after))
        nan = inf = torch.zeros_like(low)
        zeros = torch.from_numpy(np.count_nonzero(flat.numpy() == 0, axis=1))
    else:
        finite = torch.isfinite(grid)
        low = torch.where(finite, grid, math.inf).flatten(1).amin(1)
        high = torch.where(finite, grid, -math.inf).flatten(1).amax(1)
        nan, inf = torch.isnan(flat).sum(1), torch.isinf(flat).sum(1)
        zeros = (flat == 0).sum(1)
        values, n = torch.where(finite, grid, 0.0), finite.sum((1, 3))
    n = wide(n)
    counts = torch.stack([wide(x) for x in (low, high, nan, inf, zeros)], 1)
    largest = torch.maximum(-low, high)
    if asking and finite is None and _safe(largest):
        return [
            counts,
            n,
            *_centred(values, n, values[:, :1, :, :1], scratch.like(values), asking=True),
        ]
    scale = _power_of_two(torch.where(torch.isfinite(largest), largest, 0.0))[:, None, None, None]
    values = values / scale
    centre = (wide(values.sum((1, 3))) / n.clamp(min=1)).to(grid.dtype)[:, None, :, None]
    mean, m2 = _centred(values, n, centre, finite=finite)
    wide_scale = wide(scale[:, 0, 0])
    return [counts, n, mean * wide_scale, m2 * wide_scale * wide_scale]


def _centred(
    values: torch.Tensor,
    n: torch.Tensor,
    centre: torch.Tensor,
    out: torch.Tensor | None = None,
    finite: torch.Tensor | None = None,
    *,
    asking: bool = False,
) -> list[torch.Tensor]:
    """Mean and sum of squared deviations of each unit of a grid, from deviations from a centre.

    Any value near the unit's others will do for a centre: then neither the mean nor a spread small
    beside it is lost to rounding. One far away is found out where ``asking`` is
    free, and replaced by the mean.
    """
    deviation = torch.sub(values, centre, out=out)
    if finite is not None:
        deviation *= finite
    first = wide(deviation.sum((1, 3)))
    deviation *= deviation
    second = wide(deviation.sum((1, 3)))
    rest = first / n.clamp(min=1)
    mean, lost = wide(centre[:, 0, :, 0]) + rest, first * rest
    if asking and bool((lost > 0.99 * second).any()):
        nearer = mean.to(values.dtype)[:, None, :, None]
        return _centred(values, n, nearer, out, finite)
    return [mean, (second - lost).clamp(min=0)]


def _safe(sizes: torch.Tensor) -> bool:
    smallest, largest = SAFE
    return all(size == 0 or smallest < size < largest for size in sizes.tolist())


def _power_of_two(x: torch.Tensor) -> torch.Tensor:
    """The power of two at or just below a size, so that dividing by it rounds nothing."""
    as_integer, exponent = {
        torch.float32: (torch.int32, 0x7F80_0000),
        torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
    }[x.dtype]
    power = (x.view(as_integer) & exponent).view(x.dtype)
    return power.clamp(min=torch.finfo(x.dtype).tiny)


def _binned(width: int) -> int:
    """How many of a sample's values go into the histogram: a quarter of them, 16 to 512."""
    return min(PROBES, max(16, width // 4))


def _histogram(values: torch.Tensor) -> torch.Tensor:
    """Counts (k, bins) of values (k, …), by their leading 11 bits as float32.

    Those are sign, exponent and two bits of the mantissa: no logarithm is taken.
    """
    k, x = len(values), values.reshape(-1)
    if x.dtype == torch.float64:  # what is finite stays finite, what is not becomes NaN
        most = torch.finfo(torch.float32).max
        x = torch.where(torch.isfinite(x), x, math.nan).clamp(-most, most)
    codes = (x.to(torch.float32).view(torch.int32) >> 21).add_(_CODES // 2)
    size = 2 * Histogram.SIDE + 2  # and one more for what is not finite
    if x.device.type == "cpu":
        bins = _BINS.take(codes.numpy()).reshape(k, -1)
        bins += size * np.arange(k)[:, None]
        counts = torch.from_numpy(np.bincount(bins.reshape(-1), minlength=k * size))
    else:  # bincount would make a GPU wait: it asks for the largest
        table = torch.from_numpy(_BINS).to(x.device, non_blocking=True)
        places = table[codes.long()].reshape(k, -1)
        places += size * torch.arange(k, device=x.device)[:, None]
        counts = torch.zeros(k * size, dtype=torch.int64, device=x.device)
        counts.scatter_add_(0, places.reshape(-1), torch.ones_like(codes, dtype=torch.int64))
    return wide(counts.reshape(k, size)[:, :-1])


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


# -- flat parts, directions ---------------------------------------------------------------------


def _flat(
    v: torch.Tensor, intervals: tuple[tuple[float, float], ...], axes: Axes, scratch: _Scratch
) -> Pending:
    k, total, unit = len(v), v[0].numel(), _unit(v, axes)
    counts = sum(_inside(grid, intervals, scratch) for grid in _blocks(v, unit))
    assert isinstance(counts, torch.Tensor)
    units = counts.shape[1]

    def read(values: np.ndarray) -> list[FlatStats]:
        per_unit = values.reshape(k, units)
        opened = None if unit is None else per_unit < total // max(1, units)
        return [
            FlatStats(axes.samples, total, int(flat), None if opened is None else opened[i])
            for i, flat in enumerate(per_unit.sum(1))
        ]

    return Pending(counts.reshape(-1), read)


def _inside(
    grid: torch.Tensor, intervals: tuple[tuple[float, float], ...], scratch: _Scratch
) -> torch.Tensor:
    """How many of each unit's values lie in the intervals, (k, units) float64."""
    if grid.device.type != "cpu":
        masks = [_between(grid, low, high) for low, high in intervals]
        return wide(functools.reduce(torch.logical_or, masks).sum((1, 3)))
    values = grid.numpy()
    inside = functools.reduce(np.logical_or, [_between(values, *ends) for ends in intervals])
    ones = scratch.like(grid)
    counted = torch.from_numpy(inside)
    # As floats, exact up to 2²⁴: a sum of booleans is ten times slower.
    counted = counted.float() if ones is None else ones.copy_(counted)
    return wide(counted.sum((1, 3)))


def _between(x: Any, low: float, high: float) -> Any:
    if low == -math.inf:
        return x <= high
    return x >= low if high == math.inf else (x >= low) & (x <= high)


def _directions(v: torch.Tensor, unit: int, scratch: _Scratch) -> Pending:
    k, width = len(v), v.shape[unit + 1]
    sums = sum(_unit_lengths(grid, scratch) for grid in _blocks(v, unit))
    assert isinstance(sums, torch.Tensor)

    def read(values: np.ndarray) -> list[DirectionStats]:
        return [DirectionStats(int(row[-1]), row[:-1].copy()) for row in values.reshape(k, -1)]

    assert sums.shape == (k, width + 1)
    return Pending(sums.reshape(-1), read)


def _unit_lengths(grid: torch.Tensor, scratch: _Scratch) -> torch.Tensor:
    """Of the vectors along the third axis of a grid: their sum at unit length, and their number."""
    squares = torch.mul(grid, grid, out=scratch.like(grid)).sum(2)  # (k, before, after)
    vectors = grid
    smallest, largest = (x * x for x in SAFE)
    if grid.device.type == "cpu":
        extremes = squares.numpy()
        safe = ((extremes > smallest) & (extremes < largest)).all()
    if grid.device.type != "cpu" or not safe:
        sizes = grid.abs().amax(2, keepdim=True)
        seen = torch.isfinite(sizes) & (sizes > 0)
        vectors = torch.where(seen, grid / torch.where(seen, sizes, 1.0), 0.0)
        squares = (vectors * vectors).sum(2)
    factors = torch.where(squares > 0, squares.rsqrt(), 0.0)
    summed = torch.matmul(vectors.permute(0, 2, 1, 3).flatten(2), factors.flatten(1)[..., None])
    return torch.cat([wide(summed[..., 0]), wide((squares > 0).sum((1, 2)))[:, None]], 1)


# -- shapes -------------------------------------------------------------------------------------


def _unit(v: torch.Tensor, axes: Axes) -> int | None:
    return axes.unit if axes.unit is not None and v.shape[axes.unit + 1] <= MOST_UNITS else None


def _blocks(v: torch.Tensor, unit: int | None) -> list[torch.Tensor]:
    """Tensors (k, *shape) as grids (k, before, units, after); a large one on a CPU in several."""
    if v.device.type != "cpu" or len(v) > 1 or v.numel() <= 2 * BLOCK:
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
    shape = v.shape[2:]
    width = math.prod(shape)
    if width <= most:
        return v.flatten(2) if v.dim() > 2 else v[..., None]
    everything: Any = slice(None)
    return v[(everything, everything, *spread(tuple(shape), most, v.device))]


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
