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
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

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

Made = TypeVar("Made")

PROBES = 512
# Beyond this many units (a vocabulary's logits) per-unit numbers would dwarf the rest of a report.
MOST_UNITS = 16_384
MOST_DIRECTIONS = 4_096
# In values: a tensor up to SMALL waits until there are GATHERED of its kind; a CPU takes a larger
# one in blocks of about BLOCK (half a megabyte). Anywhere else the price is the number of calls, up
# to far larger tensors.
SMALL, GATHERED, BLOCK = 8_192, 65_536, 131_072
SMALL_ELSEWHERE, GATHERED_ELSEWHERE, MOST_GATHERED = 262_144, 1_048_576, 64
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


# Of a tensor: lowest and highest, numbers of NaN, inf and zeros.
_Counts = tuple[float, float, float, float, float]


class _Group:
    """Tensors of one kind side by side, until there are enough of them to be worth a call."""

    def __init__(self, work: _Work, like: torch.Tensor) -> None:
        size = max(1, like.numel())
        if _is_here(like):
            self.places = max(1, GATHERED // size)
        else:
            self.places = min(MOST_GATHERED, GATHERED_ELSEWHERE // size)
        self.buffer = torch.empty((self.places, *like.shape), dtype=like.dtype, device=like.device)
        self.slots = list(self.buffer[:16].unbind())
        self.work = work
        self.indices: list[int] = []  # of each one's result
        # What else is done to some of them: to which slots, each with the index of its result.
        self.more: dict[Hashable, tuple[_Work, dict[int, int]]] = {}

    def slot(self, index: int) -> torch.Tensor:
        """The place of one tensor in the buffer.

        Twice as many are made when they run out: of single values the buffer holds 65,536, and a
        model has a few.
        """
        if index == len(self.slots):
            self.slots += self.buffer[index : 2 * index].unbind()
        return self.slots[index]

    def take(self) -> Iterator[tuple[list[Any] | Pending, list[int]]]:
        """All results so far; the group is empty afterwards."""
        held = self.buffer[: len(self.indices)]
        yield self.work(held), self.indices
        for work, indices in self.more.values():
            some = held
            if list(indices) != list(range(len(held))):  # no index that has to go to the device
                some = torch.stack([self.slots[slot] for slot in indices])
            yield work(some), list(indices.values())
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
        held = None if of is None else self._held.get(of)
        if held is not None and held[0].slots[0].shape == x.shape:
            group, slot = held
            _, indices = group.more.setdefault(kind, (work, {}))
            if slot not in indices:
                indices[slot] = self._index()
            return indices[slot]
        index = self._index()
        key = (kind, x.shape, x.dtype, x.device)
        group_of_kind = self._groups.get(key)
        if group_of_kind is None:
            group_of_kind = self._groups[key] = _Group(work, x)
        group = group_of_kind
        slot = len(group.indices)
        if slot == group.places:
            self._empty(group)
            slot = 0
        group.slot(slot).copy_(x)
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

        Values far from 1 are scaled by a power of two before they are squared: the square of a
        vanished gradient of 1e-25 would be zero in float32, that of an exploded one infinite.
        """
        x = readable(tensor)
        if is_small(x.numel(), x.device):
            kind = ("stats", axes, histogram, probe)
            return self.together(x, kind, lambda v: _stats(v, axes, histogram, probe))
        if _is_here(x):
            return self._finish_later(x, axes, histogram, probe)
        return self.apart(_stats(x[None], axes, histogram, probe))

    def _finish_later(self, x: torch.Tensor, axes: Axes, histogram: bool, probe: bool) -> int:
        plan = _plan(x.shape, axes)
        reduced = _reduced(x[None], plan, histogram, probe)
        same = len(reduced.moments), reduced.followed is None
        key = (axes, x.shape, x.dtype, histogram, probe, same)
        remains = self._reduced.get(key)
        if remains is None:
            remains = self._reduced[key] = _Remains(plan, [], [])
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
        if not is_small(x.numel(), x.device):
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


def is_small(size: int, device: torch.device) -> bool:
    """Whether a tensor of so many values waits for others of its kind."""
    return size <= (SMALL if device.type == "cpu" else SMALL_ELSEWHERE)


# -- moments, extremes, counts ------------------------------------------------------------------


class _Reduced(NamedTuple):
    """What is left of k tensors (k, *shape) on a CPU once each value has been looked at."""

    counts: list[_Counts]  # k
    # Sums and sums of squares, each the same number of values; or number, mean, m2: (k, units).
    moments: tuple[np.ndarray, ...]
    counted: torch.Tensor | None  # (k, samples, places), values for the histogram
    followed: torch.Tensor | None  # (k, samples, places), values; None: the units are, or nothing
    probe: bool  # whether something is followed

    @property
    def size(self) -> int:
        picked = (0 if x is None else x.numel() for x in (self.counted, self.followed))
        return sum(part.size for part in self.moments) + sum(picked)


@dataclass
class _Remains:
    """Of several tensors of one kind, to be finished together."""

    plan: _Plan
    parts: list[_Reduced]
    indices: list[int]

    def finished(self) -> tuple[list[TensorStats], list[int]]:
        counts, moments, counted, followed, (probe, *_) = zip(*self.parts, strict=True)
        together = _Reduced(
            list(itertools.chain(*counts)),
            tuple(_joined(parts) for parts in zip(*moments, strict=True)),
            None if counted[0] is None else torch.cat(counted),
            None if followed[0] is None else torch.cat(followed),
            probe,
        )
        return _finished(together, self.plan), self.indices


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    if len({part.shape[1] for part in parts}) > 1:  # counts: one for all units, or one a unit
        shape = max(part.shape for part in parts)
        parts = [np.broadcast_to(part, shape) for part in parts]
    return np.concatenate(parts)


def _stats(v: torch.Tensor, axes: Axes, histogram: bool, probe: bool) -> list[Any] | Pending:
    """Statistics of k tensors side by side, (k, *shape)."""
    k, plan = len(v), _plan(v.shape[1:], axes)
    if _is_here(v):
        return _finished(_reduced(v, plan, histogram, probe), plan)
    parts = _masked(_grid(v, plan))
    if histogram:
        parts.append(_histogram(_codes(_picked(v, plan, plan.binned))))
    probe = probe and plan.sample is not None
    if probe:
        parts += _variation(_picked(v, plan, PROBES), plan.samples)
    sizes = [part[0].numel() for part in parts]

    def read(values: np.ndarray) -> list[TensorStats]:
        arrays = np.split(values, np.cumsum(sizes)[:-1] * k)
        counts, n, mean, m2, *rest = (x.reshape(k, -1) for x in arrays)
        bins = rest.pop(0) if histogram else None
        return _assembled(counts.tolist(), n, mean, m2, bins, rest if probe else None, plan)

    return Pending(torch.cat([part.reshape(-1) for part in parts]), read)


def _reduced(v: torch.Tensor, plan: _Plan, histogram: bool, probe: bool) -> _Reduced:
    grids = _blocks(v, plan)
    found = _plain(grids)
    plain = found is not None
    counts, *moments = _careful(grids) if found is None else found
    counted = _picked(v, plan, plan.binned) if histogram else None
    probe = probe and plan.sample is not None
    followed: torch.Tensor | None = None
    if probe and not (plain and plan.units_are_values):
        followed = _picked(v, plan, PROBES)
    return _Reduced(counts, tuple(moments), counted, followed, probe)


def _finished(reduced: _Reduced, plan: _Plan) -> list[TensorStats]:
    counts, moments, counted, values, probe = reduced
    if len(moments) == 2:
        first, second = (part.astype(np.float64) for part in moments)
        mean = first / plan.n
        m2 = np.maximum(second - first * mean, 0)
        n = np.full((len(mean), 1), plan.n)
    else:
        n, mean, m2 = moments
    bins = None if counted is None else _histogram_here(_codes(counted).numpy())
    followed: list[np.ndarray] | None = None
    if values is not None:
        followed = [x.numpy() for x in _variation(values, plan.samples)]
    elif probe:
        followed = [mean, m2]
        if plan.width > PROBES:
            picks = spread((plan.width,), PROBES, torch.device("cpu"))[0].numpy()
            followed = [mean[:, picks], m2[:, picks]]
    return _assembled(counts, n, mean, m2, bins, followed, plan)


def _variation(picked: torch.Tensor, samples: int) -> list[torch.Tensor]:
    """Mean and sum of squared deviations over the samples, of values (k, samples, places)."""
    values = picked[..., None]
    values = wide(torch.where(torch.isfinite(values), values, 0.0))  # few: never too small
    size = torch.full((), float(samples), dtype=torch.float64, device=values.device)
    return _centred(values, size, values.mean(1, keepdim=True))


def _assembled(
    counts: Sequence[Sequence[float]],
    n: np.ndarray,
    mean: np.ndarray,
    m2: np.ndarray,
    bins: np.ndarray | None,
    followed: list[np.ndarray] | None,
    plan: _Plan,
) -> list[TensorStats]:
    if mean.shape[1] == 1:
        total, pooled, within = n[:, 0], mean[:, 0], m2[:, 0]
    else:
        total, pooled, within = (x[:, 0] for x in _merged(n, mean, m2, 1))
    rows = zip(counts, total.tolist(), pooled.tolist(), within.tolist(), strict=True)
    n = np.broadcast_to(n, mean.shape)
    return [
        _made(
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
            histogram=None if bins is None else _made(Histogram, counts=bins[i]),
            units=None
            if plan.unit is None
            else _made(UnitStats, count=n[i], mean=mean[i], m2=m2[i]),
            probe=None
            if followed is None
            else _made(
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


def _made(kind: type[Made], **values: Any) -> Made:
    """A frozen dataclass without its constructor, which is slow; all fields are given."""
    made = object.__new__(kind)
    made.__dict__.update(values)
    return made


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


def _plain(
    grids: list[torch.Tensor],
) -> tuple[list[_Counts], np.ndarray, np.ndarray] | None:
    """Counts, sums and sums of squares of all blocks of tensors on a CPU.

    None where those would not do: values that are not finite, or cannot be squared as they are, or
    a unit whose spread is small beside its mean, and would be lost to rounding.
    """
    counts: list[_Counts] = []
    first = second = None
    for grid in grids:
        found = _counts(grid)
        if found is None:
            return None
        counts += found
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
    return counts if len(grids) == 1 else [_together(counts)], first, second


def _together(counts: Sequence[_Counts]) -> _Counts:
    """Of one tensor, those of its blocks."""
    low, high, *numbers = zip(*counts, strict=True)
    nan, inf, zeros = (sum(number) for number in numbers)
    return min(low), max(high), nan, inf, zeros


def _careful(
    grids: list[torch.Tensor],
) -> tuple[list[_Counts], np.ndarray, np.ndarray, np.ndarray]:
    """On a CPU: counts; units' n, mean, m2, (k, units). n is (k, 1) if all units have as many."""
    blocks = [_shifted(grid) or _read(_masked(grid)) for grid in grids]
    if len(blocks) == 1:
        return blocks[0]
    counts, *parts = zip(*blocks, strict=True)
    n, mean, m2 = (_joined(part) for part in parts)
    return [_together(list(itertools.chain(*counts)))], *_merged(n, mean, m2, 0)


def _read(
    masked: list[torch.Tensor],
) -> tuple[list[_Counts], np.ndarray, np.ndarray, np.ndarray]:
    counts, n, mean, m2 = (x.numpy() for x in masked)
    return [tuple(row) for row in counts.tolist()], n, mean, m2


def _shifted(
    grid: torch.Tensor,
) -> tuple[list[_Counts], np.ndarray, np.ndarray, np.ndarray] | None:
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


def _counts(grid: torch.Tensor) -> list[_Counts] | None:
    """Extremes and numbers of NaN, inf (none) and zeros of k; None if any is not plain."""
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
    k, plan = len(v), _plan(v.shape[1:], axes)
    total = v[0].numel()

    def read(values: np.ndarray) -> list[FlatStats]:
        inside, opened = values.reshape(k, -1)[:, 0].tolist(), values.reshape(k, -1)[:, 1:] > 0
        return [
            FlatStats(axes.samples, total, int(n), None if plan.unit is None else opened[i])
            for i, n in enumerate(inside)
        ]

    if _is_here(v):
        parts = [_inside(grid, intervals) for grid in _blocks(v, plan)]
        return read(parts[0] if len(parts) == 1 else np.sum(parts, 0))
    grid = _grid(v, plan)
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
    k, plan = len(v), _plan(v.shape[1:], Axes(unit))

    def read(sums: np.ndarray) -> list[DirectionStats]:
        return [DirectionStats(int(row[-1]), row[:-1]) for row in sums.reshape(k, -1)]

    if _is_here(v):
        sums = [_unit_lengths(grid, scratch).numpy() for grid in _blocks(v, plan)]
        return read(sums[0] if len(sums) == 1 else np.sum(sums, 0))
    return Pending(_unit_lengths(_grid(v, plan), scratch).reshape(-1), read)


def _unit_lengths(grid: torch.Tensor, scratch: _Scratch) -> torch.Tensor:
    """Of the vectors along the third axis of a grid: their sum at unit length, and their number."""
    if grid.shape[3] == 1:
        sizes = torch.linalg.vector_norm(grid, dim=2)  # (k, before, after)
    else:  # not the norm along an axis that is not the last in memory: it is far slower
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


_PLAIN = (torch.Tensor, torch.nn.Parameter)


class _Plan(NamedTuple):
    """How to take a tensor apart: all that follows from its shape and axes alone."""

    unit: int | None  # None: none, or too many
    grid: tuple[int, int, int]  # before the unit axis, along it, after it
    n: int  # values of a unit
    blocks: tuple[int, int] | None  # of one on a CPU: along which axis, and how long; None: whole
    batch: int | None  # None: samples cannot be told apart
    samples: int
    sample: tuple[int, ...] | None  # the shape of a sample
    width: int  # its values; all, where samples cannot be told apart
    binned: int  # how many of them are for the histogram
    units_are_values: bool  # of a sample


@functools.lru_cache(maxsize=4096)
def _plan(shape: tuple[int, ...], axes: Axes) -> _Plan:
    unit, batch = axes.unit, axes.batch
    if unit is not None and shape[unit] > MOST_UNITS:
        unit = None
    total = math.prod(shape)
    grid = (1, 1, total)
    if unit is not None:
        grid = math.prod(shape[:unit]), shape[unit], math.prod(shape[unit + 1 :])
    blocks: tuple[int, int] | None = None
    if total > BLOCK:
        others = [axis for axis in range(len(shape)) if axis != unit]
        # Along the first axis, since that is the slowest in memory, if it is long enough.
        axis = next((a for a in others if shape[a] >= total // BLOCK), None)
        if axis is None:
            axis = max(others, key=lambda a: shape[a], default=0)
        blocks = axis + 1, max(1, shape[axis] * BLOCK // total)
    sample: tuple[int, ...] | None = None
    if batch is not None and total and shape[batch] % axes.samples == 0:
        steps = shape[batch] // axes.samples
        sample = (*shape[:batch], *shape[batch + 1 :])
        sample = sample if steps == 1 else (steps, *sample)
    width = total if sample is None else math.prod(sample)
    return _Plan(
        unit,
        grid,
        grid[0] * grid[2],
        blocks,
        None if sample is None else batch,
        axes.samples,
        sample,
        width,
        _binned(width),
        sample is not None and len(sample) == 1 and unit not in (None, batch),
    )


def _blocks(v: torch.Tensor, plan: _Plan) -> list[torch.Tensor]:
    """Tensors (k, *shape) as grids (k, before, units, after); a large one on a CPU in several."""
    if plan.blocks is None or len(v) > 1:
        return [_grid(v, plan)]
    axis, length = plan.blocks
    before, units, after = plan.grid
    parts = torch.split(v, length, axis)
    if plan.unit is None:
        return [part.reshape(1, 1, 1, -1) for part in parts]
    if axis <= plan.unit:
        return [part.reshape(1, -1, units, after) for part in parts]
    return [part.reshape(1, before, units, -1) for part in parts]


def _grid(v: torch.Tensor, plan: _Plan) -> torch.Tensor:
    """Tensors (k, *shape) as (k, before, units, after); (k, 1, 1, all) without a unit axis."""
    return v.reshape(len(v), *plan.grid)


def _picked(v: torch.Tensor, plan: _Plan, most: int) -> torch.Tensor:
    """Of (k, *shape) up to ``most`` values of each sample, the same for the same shape.

    Of all together, where samples cannot be told apart. (k, samples, values).
    """
    k, samples = len(v), 1 if plan.sample is None else plan.samples
    if plan.batch:
        v = torch.movedim(v, plan.batch + 1, 1)
    if plan.width <= most:
        return v.reshape(k, samples, plan.width)
    if plan.sample is None or v.is_contiguous():  # several times as fast as an index for each axis
        flat = v.reshape(k, samples, plan.width)
        return flat.index_select(2, spread((plan.width,), most, v.device)[0])
    everything: Any = slice(None)
    by_sample = v.reshape(k, samples, *plan.sample)
    return by_sample[(everything, everything, *spread(plan.sample, most, v.device))]


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
