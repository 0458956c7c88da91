"""From tensors to :class:`~nndiag.stats.TensorStats`, with few calls and few passes over memory.

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
from typing import Any

import numpy as np
import torch

from nndiag import layout
from nndiag.layout import BLOCK, Axes, Pending, as_double, blocks_of, grid_of, plan_of, readable
from nndiag.moments import SAFE, Unfinished, reduced_of, stats_of
from nndiag.stats import DirectionStats, FlatStats

__all__ = [
    "GATHERED",
    "GATHERED_ELSEWHERE",
    "MOST_DIRECTIONS",
    "MOST_GATHERED",
    "SMALL",
    "SMALL_ELSEWHERE",
    "Meter",
    "is_small",
]

MOST_DIRECTIONS = 4_096
# In values: a tensor up to SMALL waits until there are GATHERED of its kind. Anywhere but on a CPU
# the price is the number of calls, up to far larger tensors.
SMALL, GATHERED = 8_192, 65_536
SMALL_ELSEWHERE, GATHERED_ELSEWHERE, MOST_GATHERED = 262_144, 1_048_576, 64
_NO_AXES = Axes()


# Measures k stacked tensors (k, *shape). Gives k results, or a Pending that will give them.
_Work = Callable[[torch.Tensor], "list[Any] | Pending"]


class _Group:
    """A buffer of tensors of one kind, measured together once it is full."""

    def __init__(self, work: _Work, like: torch.Tensor) -> None:
        size = max(1, like.numel())
        if layout.is_on_cpu(like):
            self.places = max(1, GATHERED // size)
        else:
            self.places = min(MOST_GATHERED, GATHERED_ELSEWHERE // size)
        self.buffer = torch.empty((self.places, *like.shape), dtype=like.dtype, device=like.device)
        self.slots = list(self.buffer[:16].unbind())
        self.work = work
        self.indices: list[int] = []  # where each tensor's result goes
        # Other measurements of some of them: by kind, the work and each slot's result index.
        self.more: dict[Hashable, tuple[_Work, dict[int, int]]] = {}

    def slot(self, index: int) -> torch.Tensor:
        """A view of one tensor's place in the buffer.

        Views are made on demand, twice as many each time: the buffer may have 65,536 places, while
        a model fills only a few.
        """
        if index == len(self.slots):
            self.slots += self.buffer[index : 2 * index].unbind()
        return self.slots[index]

    def take(self) -> Iterator[tuple[list[Any] | Pending, list[int]]]:
        """All results so far; the group is empty afterwards."""
        filled = self.buffer[: len(self.indices)]
        yield self.work(filled), self.indices
        for work, indices in self.more.values():
            chosen = filled
            if list(indices) != list(range(len(filled))):  # no index that has to go to the device
                chosen = torch.stack([self.slots[slot] for slot in indices])
            yield work(chosen), list(indices.values())
        self.indices, self.more = [], {}


class _Scratch:
    """One reused block of memory for intermediate values; allocating each time is slow."""

    def __init__(self) -> None:
        self._blocks: dict[torch.dtype, torch.Tensor] = {}

    def like(self, x: torch.Tensor) -> torch.Tensor | None:
        """Memory of the same shape and dtype; None where reuse does not help."""
        if not layout.is_on_cpu(x) or x.numel() > BLOCK:
            return None
        block = self._blocks.get(x.dtype)
        if block is None or len(block) < x.numel():
            block = self._blocks[x.dtype] = torch.empty(x.numel(), dtype=x.dtype)
        return block[: x.numel()].view(x.shape)


class Meter:
    """Measures tensors; :meth:`collect` returns all results at once.

    Each measurement returns an index into that list. No tensor is kept alive; a few small ones are
    copied.
    """

    def __init__(self) -> None:
        self._results: list[Any] = []
        self._pending: list[tuple[Pending, list[int]]] = []
        self._groups: dict[Hashable, _Group] = {}
        self._copies: dict[int, tuple[_Group, int]] = {}  # where a tensor's copy still is
        self._reduced: dict[Hashable, Unfinished] = {}
        self._scratch = _Scratch()

    def add(self, pending: Pending) -> int:
        """Take in the result of one tensor, measured elsewhere; returns its index."""
        return self.add_measured(Pending(pending.vector, lambda values: [pending.read(values)]))

    def add_measured(self, measured: list[Any] | Pending) -> int:
        """Take in a list with one result; returns its index."""
        index = self._index()
        self._store(measured, [index])
        return index

    def measure_small(
        self, x: torch.Tensor, kind: tuple[Hashable, ...], work: _Work, of: int | None = None
    ) -> int:
        """Measure a small tensor together with others of its ``kind``, shape and dtype.

        ``of``: the index of another measurement of the same values, whose copy can be used again.
        """
        source = None if of is None else self._copies.get(of)
        if source is not None and source[0].slots[0].shape == x.shape:
            group, slot = source
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
            self._measure_group(group)
            slot = 0
        group.slot(slot).copy_(x)
        group.indices.append(index)
        self._copies[index] = group, slot
        return index

    def _index(self) -> int:
        self._results.append(None)
        return len(self._results) - 1

    def _measure_group(self, group: _Group) -> None:
        for index in group.indices:
            del self._copies[index]
        for measured, indices in group.take():
            self._store(measured, indices)

    def _store(self, measured: list[Any] | Pending, places: list[int]) -> None:
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
            return self.measure_small(x, kind, lambda v: stats_of(v, axes, histogram, probe))
        if layout.is_on_cpu(x):
            return self._finish_later(x, axes, histogram, probe)
        return self.add_measured(stats_of(x[None], axes, histogram, probe))

    def _finish_later(self, x: torch.Tensor, axes: Axes, histogram: bool, probe: bool) -> int:
        plan = plan_of(x.shape, axes)
        reduced = reduced_of(x[None], plan, histogram, probe)
        same = len(reduced.moments), reduced.followed is None
        key = (axes, x.shape, x.dtype, histogram, probe, same)
        unfinished = self._reduced.get(key)
        if unfinished is None:
            unfinished = self._reduced[key] = Unfinished(plan, [], [])
        index = self._index()
        unfinished.parts.append(reduced)
        unfinished.indices.append(index)
        if len(unfinished.parts) * reduced.size >= GATHERED:
            self._store(*self._reduced.pop(key).finished())
        return index

    def flat(
        self,
        tensor: torch.Tensor,
        flat: Sequence[tuple[float, float]],
        axes: Axes = _NO_AXES,
        *,
        of: int | None = None,
    ) -> int:
        """Count values in the closed intervals ``flat``, and which units were ever outside.

        ``of``: the index of the same values' :meth:`stats`, where there is one.
        """
        intervals = tuple(flat)
        kind = ("flat", axes, intervals)
        return self._measure_values(tensor, kind, lambda v: _flat(v, intervals, axes), of)

    def directions(self, tensor: torch.Tensor, unit: int, *, of: int | None = None) -> int:
        """The sum of the unit-length feature vectors along axis ``unit``, for their mean cosine.

        A vector that is zero, or not finite, has no direction. ``of``: as in :meth:`flat`.
        """
        if not 1 < tensor.shape[unit] <= MOST_DIRECTIONS:
            return self.add_measured([None])
        kind = ("directions", unit)
        return self._measure_values(tensor, kind, lambda v: _directions(v, unit, self._scratch), of)

    def _measure_values(
        self, tensor: torch.Tensor, kind: tuple[Hashable, ...], work: _Work, of: int | None
    ) -> int:
        x = readable(tensor)
        if not is_small(x.numel(), x.device):
            return self.add_measured(work(x[None]))
        return self.measure_small(x, kind, work, of)

    def collect(self) -> list[Any]:
        """Bring all numbers to the host, one transfer per device, and read them."""
        for group in self._groups.values():
            self._measure_group(group)
        self._groups.clear()
        for unfinished in self._reduced.values():
            self._store(*unfinished.finished())
        self._reduced.clear()
        devices: dict[torch.device, list[tuple[Pending, list[int]]]] = {}
        for item in self._pending:
            devices.setdefault(item[0].vector.device, []).append(item)
        self._pending = []
        for items in devices.values():
            whole = torch.cat([pending.vector for pending, _ in items]).cpu().numpy()
            ends = np.cumsum([pending.vector.numel() for pending, _ in items])
            for (pending, places), values in zip(items, np.split(whole, ends[:-1]), strict=True):
                self._store(pending.read(values), places)
        return self._results


def is_small(size: int, device: torch.device) -> bool:
    """Whether a tensor of ``size`` values is measured together with others."""
    return size <= (SMALL if device.type == "cpu" else SMALL_ELSEWHERE)


# -- flat parts, directions ---------------------------------------------------------------------


def _flat(
    v: torch.Tensor, intervals: tuple[tuple[float, float], ...], axes: Axes
) -> list[FlatStats] | Pending:
    k, plan = len(v), plan_of(v.shape[1:], axes)
    total = v[0].numel()

    def read(values: np.ndarray) -> list[FlatStats]:
        inside, opened = values.reshape(k, -1)[:, 0].tolist(), values.reshape(k, -1)[:, 1:] > 0
        return [
            FlatStats(axes.samples, total, int(n), None if plan.unit is None else opened[i])
            for i, n in enumerate(inside)
        ]

    if layout.is_on_cpu(v):
        parts = [_inside(grid, intervals) for grid in blocks_of(v, plan)]
        return read(parts[0] if len(parts) == 1 else np.sum(parts, 0))
    grid = grid_of(v, plan)
    inside = functools.reduce(torch.logical_or, [_between(grid, *ends) for ends in intervals])
    both = torch.cat([inside.sum((1, 2, 3))[:, None], (~inside).sum((1, 3))], 1)
    return Pending(as_double(both).reshape(-1), read)


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
    k, plan = len(v), plan_of(v.shape[1:], Axes(unit))

    def read(sums: np.ndarray) -> list[DirectionStats]:
        return [DirectionStats(int(row[-1]), row[:-1]) for row in sums.reshape(k, -1)]

    if layout.is_on_cpu(v):
        sums = [_sum_of_directions(grid, scratch).numpy() for grid in blocks_of(v, plan)]
        return read(sums[0] if len(sums) == 1 else np.sum(sums, 0))
    return Pending(_sum_of_directions(grid_of(v, plan), scratch).reshape(-1), read)


def _sum_of_directions(grid: torch.Tensor, scratch: _Scratch) -> torch.Tensor:
    """The sum of the vectors along a grid's third axis, each at length 1, and their number."""
    if grid.shape[3] == 1:
        sizes = torch.linalg.vector_norm(grid, dim=2)  # (k, before, after)
    else:  # not the norm along an axis that is not the last in memory: it is far slower
        sizes = torch.mul(grid, grid, out=scratch.like(grid)).sum(2).sqrt_()
    plain = False
    if layout.is_on_cpu(grid) and grid.numel():
        low, high = torch.aminmax(sizes)
        plain = SAFE[0] < low.item() and high.item() < SAFE[1]
    if plain:
        vectors, factors = grid, sizes.reciprocal_()
        number = grid.new_full((len(grid), 1), float(sizes[0].numel()), dtype=torch.float64)
    else:
        largest = grid.abs().amax(2, keepdim=True)
        nonzero = torch.isfinite(largest) & (largest > 0)
        vectors = torch.where(nonzero, grid / torch.where(nonzero, largest, 1.0), 0.0)
        squares = (vectors * vectors).sum(2)
        factors = torch.where(squares > 0, squares.rsqrt(), 0.0)
        number = as_double((squares > 0).sum((1, 2)))[:, None]
    if grid.shape[3] == 1:
        summed = torch.matmul(factors.permute(0, 2, 1), vectors[..., 0])[:, 0]
    else:
        # A matrix product with one vector for each sample is slower than two passes.
        summed = torch.mul(vectors, factors[:, :, None], out=scratch.like(grid)).sum((1, 3))
    return torch.cat([as_double(summed), number], 1)
