"""From a tensor to :class:`~nndiag.stats.TensorStats`: the only tensor arithmetic there is.

Everything is reduced on the tensor's own device, into small float64 vectors, and nothing waits for
the device: :meth:`Meter.collect` brings all vectors of a batch across in one transfer.

What it costs is the number of passes over memory and, for small tensors, the number of calls. So a
large tensor is taken in blocks that stay in a core's cache, small ones of one kind are copied side
by side and measured together, and what is left of a large one (its units' moments, a few of its
values) is worked out together with what is left of others. ``torch.var``, ``torch.var_mean`` and
reductions of boolean tensors would say the same in one call each, but on a CPU they are many times
slower than sums of floats, and than NumPy's reductions of booleans.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
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
# one in blocks of about BLOCK (half a megabyte).
SMALL, GATHERED, BLOCK = 8_192, 65_536, 131_072
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
        places = max(1, GATHERED // max(1, like.numel()))
        self.buffer = torch.empty((places, *like.shape), dtype=like.dtype, device=like.device)
        self.slots = self.buffer.unbind()
        self.work = work
        self.indices: list[int] = []  # of each one's result
        # What else is done to some of them: to which slots, and the indices of the results.
        self.more: dict[Hashable, tuple[_Work, list[int], list[int]]] = {}

    def take(self) -> Iterator[tuple[list[Any] | Pending, list[int]]]:
        """All results so far; the group is empty afterwards."""
        held = self.buffer[: len(self.indices)]
        yield self.work(held), self.indices
        for work, slots, indices in self.more.values():
            yield work(held if len(slots) == len(held) else held[slots]), indices
        self.indices, self.more = [], {}


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
        self._held: dict[int, tuple[_Group, int]] = {}  # where a tensor's copy still is
        self._reduced: dict[Hashable, _Remains] = {}
        self._scratch = _Scratch()
        self._known: dict[Hashable, tuple[StorageWeakRef, int]] = {}

    def add(self, pending: Pending) -> int:
        """Something measured elsewhere."""
        return self.apart(Pending(pending.vector, lambda values: [pending.read(values)]))

    def apart(self, measured: list[Any] | Pending) -> int:
        """Measured elsewhere, in a list of one."""
        index = self._index()
        self._put(measured, [index])
        return index

    def together(
        self, x: torch.Tensor, kind: tuple[Hashable, ...], work: _Work, of: int | None = None
    ) -> int:
        """A small tensor, to be worked on with others of its ``kind``, shape and dtype.

        ``of``: the index of another measurement of the same values, whose copy may do.
        """
        index = self._index()
        held = None if of is None else self._held.get(of)
        if held is not None:
            group, slot = held
            _, slots, indices = group.more.setdefault(kind, (work, [], []))
            slots.append(slot)
            indices.append(index)
            return index
        key = (kind, x.shape, x.dtype, x.device)
        group_of_kind = self._groups.get(key)
        if group_of_kind is None:
            group_of_kind = self._groups[key] = _Group(work, x)
        group = group_of_kind
        slot = len(group.indices)
        if slot == len(group.slots):
            self._empty(group)
            slot = 0
        group.slots[slot].copy_(x)
        group.indices.append(index)
        self._held[index] = group, slot
        return index

    def _index(self) -> int:
        self._results.append(None)
        return len(self._results) - 1

    def _empty(self, group: _Group) -> None:
        for index in group.indices:
            del self._held[index]
        for measured, indices in group.take():
            self._put(measured, indices)

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
        x = readable(tensor)
        if x.numel() <= SMALL:
            kind = ("stats", axes, histogram, probe)
            return self.together(x, kind, lambda v: _stats(v, axes, histogram, probe))
        memory = _memory(tensor, axes)
        if memory is not None:
            memory = (*memory, histogram, probe)
            known = self._known.get(memory)
            if known is not None and not known[0].expired():  # type: ignore[no-untyped-call]
                return known[1]
        if _is_here(x):
            index = self._finish_later(x, axes, histogram, probe)
        else:
            index = self.apart(_stats(x[None], axes, histogram, probe))
        if memory is not None:
            alive = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._known[memory] = alive, index
        return index

    def _finish_later(self, x: torch.Tensor, axes: Axes, histogram: bool, probe: bool) -> int:
        reduced = _reduced(x[None], axes, histogram, probe)
        key = (axes, x.shape, x.dtype, reduced.counted is None, reduced.followed is None)
        remains = self._reduced.get(key)
        if remains is None:
            remains = self._reduced[key] = _Remains([], [])
        index = self._index()
        remains.parts.append(reduced)
        remains.indices.append(index)
        if len(remains.parts) * reduced.size >= GATHERED:
            self._put(*self._reduced.pop(key).finished())
        return index

    def flat(
        self,
        tensor: torch.Tensor,
        flat: Sequence[tuple[float, float]],
        axes: Axes = _NO_AXES,
        *,
        of: int | None = None,
    ) -> int:
        """How many values lie in the closed intervals ``flat``; which units were ever outside.

        ``of``: the index of the same values' :meth:`stats`, where there is one.
        """
        intervals = tuple(flat)
        kind = ("flat", axes, intervals)
        return self._take(tensor, kind, lambda v: _flat(v, intervals, axes), of)

    def directions(self, tensor: torch.Tensor, unit: int, *, of: int | None = None) -> int:
        """The sum of the unit-length feature vectors along axis ``unit``, for their mean cosine.

        A vector that is zero, or not finite, has no direction. ``of``: as in :meth:`flat`.
        """
        if not 1 < tensor.shape[unit] <= MOST_DIRECTIONS:
            return self.apart([None])
        kind = ("directions", unit)
        return self._take(tensor, kind, lambda v: _directions(v, unit, self._scratch), of)

    def _take(
        self, tensor: torch.Tensor, kind: tuple[Hashable, ...], work: _Work, of: int | None
    ) -> int:
        x = readable(tensor)
        if x.numel() > SMALL:
            return self.apart(work(x[None]))
        return self.together(x, kind, work, of)

    def collect(self) -> list[Any]:
        """Bring all numbers to the host, one transfer per device, and read them."""
        for group in self._groups.values():
            self._empty(group)
        self._groups.clear()
        for remains in self._reduced.values():
            self._put(*remains.finished())
        self._reduced.clear()
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


class _Found(NamedTuple):
    """What is known of tensors besides numbers."""

    samples: int
    units: bool
    shape: tuple[int, ...] | None  # of a sample, if it is followed


class _Reduced(NamedTuple):
    """What is left of k tensors (k, *shape) on a CPU once each value has been looked at."""

    counts: np.ndarray  # (k, 5): extremes, NaN, inf, zeros
    n: np.ndarray  # (k, units), or (k, 1) where all units have as many
    mean: np.ndarray  # (k, units)
    m2: np.ndarray  # (k, units)
    counted: torch.Tensor | None  # (k, samples, places), values for the histogram
    followed: torch.Tensor | None  # (k, samples, places), values; None: the units are, or nothing
    what: _Found

    @property
    def size(self) -> int:
        picked = (0 if x is None else x.numel() for x in (self.counted, self.followed))
        return self.mean.size + self.m2.size + sum(picked)


@dataclass
class _Remains:
    """Of several tensors of one kind, to be finished together."""

    parts: list[_Reduced]
    indices: list[int]

    def finished(self) -> tuple[list[TensorStats], list[int]]:
        if len(self.parts) == 1:
            return _finished(self.parts[0]), self.indices
        counts, n, mean, m2, counted, followed, (what, *_) = zip(*self.parts, strict=True)
        if len({part.shape for part in n}) > 1:
            n = tuple(np.broadcast_to(x, y.shape) for x, y in zip(n, mean, strict=True))
        together = _Reduced(
            np.concatenate(counts),
            np.concatenate(n),
            np.concatenate(mean),
            np.concatenate(m2),
            None if counted[0] is None else torch.cat(counted),
            None if followed[0] is None else torch.cat(followed),
            what,
        )
        return _finished(together), self.indices


def _stats(v: torch.Tensor, axes: Axes, histogram: bool, probe: bool) -> list[Any] | Pending:
    """Statistics of k tensors side by side, (k, *shape)."""
    if _is_here(v):
        return _finished(_reduced(v, axes, histogram, probe))
    k, unit = len(v), _unit(v, axes)
    parts = _masked(_grid(v, unit))
    samples = _by_sample(v, axes) if histogram or probe else None
    if histogram:
        parts.append(_histogram(_codes(_some(v, samples))))
    followed = samples if probe else None
    if followed is not None:
        parts += _variation(_picked(followed, PROBES), axes.samples)
    what = _Found(axes.samples, unit is not None, _shape(followed))
    sizes = [part[0].numel() for part in parts]

    def read(values: np.ndarray) -> list[TensorStats]:
        arrays = np.split(values, np.cumsum(sizes)[:-1] * k)
        counts, n, mean, m2, *rest = (x.reshape(k, -1) for x in arrays)
        bins = rest.pop(0) if histogram else None
        return _assembled(what, counts, n, mean, m2, bins, rest)

    return Pending(torch.cat([part.reshape(-1) for part in parts]), read)


def _reduced(v: torch.Tensor, axes: Axes, histogram: bool, probe: bool) -> _Reduced:
    unit = _unit(v, axes)
    counts, n, mean, m2 = _moments(v, unit)
    samples = _by_sample(v, axes) if histogram or probe else None
    counted = _some(v, samples) if histogram else None
    followed = samples if probe else None
    what = _Found(axes.samples, unit is not None, _shape(followed))
    if followed is not None:
        units_only = unit not in (None, axes.batch) and followed.dim() == 3
        finite = not counts[:, 2:4].any()
        followed = None if units_only and finite else _picked(followed, PROBES)
    return _Reduced(counts, n, mean, m2, counted, followed, what)


def _finished(reduced: _Reduced) -> list[TensorStats]:
    counts, n, mean, m2, counted, values, what = reduced
    bins = None if counted is None else _histogram_here(_codes(counted).numpy())
    followed: list[np.ndarray] = []
    if values is not None:
        followed = [x.numpy() for x in _variation(values, what.samples)]
    elif what.shape is not None:
        followed = [mean, m2]
        if what.shape[0] > PROBES:
            picks = spread(what.shape, PROBES, torch.device("cpu"))[0].numpy()
            followed = [mean[:, picks], m2[:, picks]]
    return _assembled(what, counts, n, mean, m2, bins, followed)


def _variation(picked: torch.Tensor, samples: int) -> list[torch.Tensor]:
    """Mean and sum of squared deviations over the samples, of values (k, samples, places)."""
    values = picked[..., None]
    values = wide(torch.where(torch.isfinite(values), values, 0.0))  # few: never too small
    size = torch.full((), float(samples), dtype=torch.float64, device=values.device)
    return _centred(values, size, values.mean(1, keepdim=True))


def _assembled(
    what: _Found,
    counts: np.ndarray,
    n: np.ndarray,
    mean: np.ndarray,
    m2: np.ndarray,
    bins: np.ndarray | None,
    followed: list[np.ndarray],
) -> list[TensorStats]:
    width = mean.shape[1]
    if width == 1:
        total, pooled, within = n[:, 0], mean[:, 0], m2[:, 0]
    else:
        total, pooled, within = (x[:, 0] for x in _merged(n, mean, m2, 1))
    rows = zip(counts.tolist(), total.tolist(), pooled.tolist(), within.tolist(), strict=True)
    n = np.broadcast_to(n, mean.shape)
    return [
        _made(
            TensorStats,
            samples=what.samples,
            count=int(count),
            nan=int(nan),
            inf=int(inf),
            zeros=int(zeros),
            mean=average if count else math.nan,
            m2=deviation,
            min=low if count else math.nan,
            max=high if count else math.nan,
            histogram=None if bins is None else _made(Histogram, counts=bins[i]),
            units=_made(UnitStats, count=n[i], mean=mean[i], m2=m2[i]) if what.units else None,
            probe=None
            if what.shape is None
            else _made(
                ProbeStats,
                shape=what.shape,
                samples=what.samples,
                mean=followed[0][i],
                m2=followed[1][i],
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


def _moments(v: torch.Tensor, unit: int | None) -> list[np.ndarray]:
    """On a CPU: counts (k, 5), namely extremes, NaN, inf, zeros; units' n, mean, m2 (k, units).

    n is (k, 1) where all units have as many.
    """
    grids = _blocks(v, unit)
    found = _plain(grids)
    if found is not None:
        return found
    blocks = [_shifted(grid) or [x.numpy() for x in _masked(grid)] for grid in grids]
    if len(blocks) == 1:
        return blocks[0]
    n = [block[1] for block in blocks]
    if len({part.shape for part in n}) > 1:
        n = [np.broadcast_to(part, block[2].shape) for part, block in zip(n, blocks, strict=True)]
    counts, mean, m2 = (np.concatenate([block[i] for block in blocks]) for i in (0, 2, 3))
    return [_added(counts)[None], *_merged(np.concatenate(n), mean, m2, 0)]


def _added(counts: np.ndarray) -> np.ndarray:
    """The counts (5) of all parts (parts, 5)."""
    return np.concatenate([counts[:, :1].min(0), counts[:, 1:2].max(0), counts[:, 2:].sum(0)])


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


def _plain(grids: list[torch.Tensor]) -> list[np.ndarray] | None:
    """The moments of all blocks of tensors on a CPU, from plain sums and sums of squares.

    None where that would not do: values that are not finite, or cannot be squared as they are, or a
    unit whose spread is small beside its mean, and would be lost to rounding.
    """
    k, _, units, _ = grids[0].shape
    several, first, second = [], np.zeros((k, units)), np.zeros((k, units))
    for grid in grids:
        counts = _counts(grid)
        if counts is None:
            return None
        several.append(counts)
        sums, squares = _sums(grid)
        first += sums
        second += squares
    n = float(sum(grid.shape[1] * grid.shape[3] for grid in grids))
    if (first * first > 0.96 * n * second).any():
        return None
    counts = several[0] if len(several) == 1 else _added(np.concatenate(several))[None]
    mean = first / n
    return [counts, np.full((k, 1), n), mean, np.maximum(second - first * mean, 0)]


def _shifted(grid: torch.Tensor) -> list[np.ndarray] | None:
    """The moments of a grid on a CPU, if all is finite and can be squared as it is.

    Deviations are taken from the first value: then neither the mean nor a spread small beside it is
    lost to rounding, unless that value lies far from the others; if so, from the mean.
    """
    counts = _counts(grid)
    if counts is None:
        return None
    n = grid.shape[1] * grid.shape[3]
    centre = grid[:, :1, :, :1]
    first, second = _sums(grid - centre)
    if (first * first > 0.99 * n * second).any():
        centre = centre + torch.from_numpy(first / n).to(grid.dtype)[:, None, :, None]
        first, second = _sums(grid - centre)
    rest = first / n
    mean, m2 = centre[:, 0, :, 0].numpy() + rest, np.maximum(second - first * rest, 0)
    return [counts, np.full((len(grid), 1), float(n)), mean, m2]


def _counts(grid: torch.Tensor) -> np.ndarray | None:
    """Extremes and numbers of NaN, inf (none) and zeros, (k, 5); None if not plain."""
    if grid.numel() == 0:
        return None
    k = len(grid)
    flat = grid.reshape(k, -1)
    if k == 1:
        low, high = torch.aminmax(flat)  # NaN if there is one anywhere
        lows, highs = [low.item()], [high.item()]
    else:
        lows, highs = flat.amin(1).tolist(), flat.amax(1).tolist()
    if not all(_can_be_squared(-low, high) for low, high in zip(lows, highs, strict=True)):
        return None
    zero = flat.numpy() == 0
    zeros = [np.count_nonzero(row) for row in zero] if k == 1 or zero.any() else [0] * k
    return np.array([lows, highs, [0] * k, [0] * k, zeros], np.float64).T


# How many squares are summed up in float32 before double precision takes over.
_RUN = 256


def _sums(grid: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each unit's sum, and that of the squares, (k, units)."""
    units, after = grid.shape[2:]
    first = grid.sum((1, 3)).numpy().astype(np.float64)
    if after == 1 and units < 16:
        return first, (grid * grid).sum((1, 3)).numpy().astype(np.float64)
    if after == 1:
        return first, sum(
            np.einsum("kbru,kbru->kbu", rows.numpy(), rows.numpy()).sum(1, dtype=np.float64)
            for rows in _runs(grid[..., 0], 1)
        )
    return first, sum(
        (torch.linalg.vector_norm(runs, dim=4).double() ** 2).sum((1, 3)).numpy()
        for runs in _runs(grid, 3)
    )


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


def _some(v: torch.Tensor, samples: torch.Tensor | None) -> torch.Tensor:
    """The values that a histogram counts."""
    values = v.reshape(len(v), 1, -1) if samples is None else samples
    return _picked(values, _binned(math.prod(values.shape[2:])))


def _codes(x: torch.Tensor) -> torch.Tensor:
    """The leading 11 bits of values as float32: sign, exponent and two bits of the mantissa."""
    if x.dtype == torch.float64:  # what is finite stays finite, what is not becomes NaN
        most = torch.finfo(torch.float32).max
        x = torch.where(torch.isfinite(x), x, math.nan).clamp(-most, most)
    return x.to(torch.float32).view(torch.int32) >> 21


def _histogram(codes: torch.Tensor) -> torch.Tensor:
    """How many of the codes (k, ...) are in each bin, (k, bins)."""
    k = len(codes)
    # Not bincount: it makes a GPU wait, since it asks for the largest.
    places = (codes.reshape(k, -1) + _CODES * torch.arange(k, device=codes.device)[:, None]).long()
    counts = torch.zeros(k * _CODES, dtype=torch.int64, device=codes.device)
    counts.scatter_add_(0, places.reshape(-1) + _CODES // 2, torch.ones_like(places).view(-1))
    table = torch.from_numpy(_BINS).to(codes.device, non_blocking=True)
    bins = torch.zeros((k, _SIZE), dtype=torch.float64, device=codes.device)
    return bins.index_add_(1, table, counts.reshape(k, _CODES).double())[:, :-1]


def _histogram_here(codes: np.ndarray) -> np.ndarray:
    """The same on a CPU."""
    k = len(codes)
    found = _BINS.take(codes.reshape(k, -1) + _CODES // 2) + _SIZE * np.arange(k)[:, None]
    counted = np.bincount(found.reshape(-1), minlength=k * _SIZE).reshape(k, _SIZE)
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
    if grid.shape[3] == 1:
        sizes = torch.linalg.vector_norm(grid, dim=2)  # (k, before, after)
    else:  # not the norm along an axis that is not the last in memory: it is ten times as slow
        sizes = torch.mul(grid, grid, out=scratch.like(grid)).sum(2).sqrt_()
    plain = False
    if _is_here(grid) and grid.numel():
        low, high = torch.aminmax(sizes)
        plain = SAFE[0] < low.item() and high.item() < SAFE[1]
    if plain:
        vectors, factors = grid, sizes.reciprocal_()
        number = grid.new_full((len(grid), 1), float(sizes[0].numel()), dtype=torch.float64)
    else:
        largest = grid.abs().amax(2, keepdim=True)
        seen = torch.isfinite(largest) & (largest > 0)
        vectors = torch.where(seen, grid / torch.where(seen, largest, 1.0), 0.0)
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


def _shape(samples: torch.Tensor | None) -> tuple[int, ...] | None:
    """The shape of one sample, of (k, samples, *shape)."""
    return None if samples is None else tuple(samples.shape[2:])


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
