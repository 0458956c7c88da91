"""Which axis of a tensor runs over units and which over samples, followed through a forward.

The unit axis follows the tensor, not its rank: after ``linear`` it is the last axis, after a
convolution axis 1; permuting and squeezing carry it along; a reshape that merges or splits it
ends the lineage, with the reason.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nndiag.measure import Axes

NO_UNITS = "no layer before it that has units"
RESHAPED = "a reshape merged or split its unit axis"
UNKNOWN = "it comes out of a call that is not understood"


@dataclass(frozen=True)
class Trail:
    """What is known about one live tensor: the node that made it and its axes."""

    node: int
    axes: Axes = field(default_factory=Axes)
    why_no_units: str = NO_UNITS


@dataclass
class _Entry:
    ref: weakref.ref[torch.Tensor]
    trail: Trail
    version: int = -1
    stats: int | None = None


class Trails:
    """Trails of live tensors. Holds none of them alive."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def __getitem__(self, tensor: torch.Tensor) -> Trail | None:
        entry = self._entry(tensor)
        return None if entry is None else entry.trail

    def __setitem__(self, tensor: torch.Tensor, trail: Trail) -> None:
        key = id(tensor)
        entry = self._entry(tensor)
        if entry is not None:
            entry.trail = trail
            return
        self._entries[key] = _Entry(weakref.ref(tensor, lambda _: self._entries.pop(key, None)), trail)

    def _entry(self, tensor: torch.Tensor) -> _Entry | None:
        entry = self._entries.get(id(tensor))
        return entry if entry is not None and entry.ref() is tensor else None

    def stats(self, tensor: torch.Tensor) -> int | None:
        """Which measurement already describes this tensor's present values."""
        entry = self._entry(tensor)
        fresh = entry is not None and entry.stats is not None and entry.version == version(tensor)
        return entry.stats if fresh and entry is not None else None

    def set_stats(self, tensor: torch.Tensor, index: int) -> None:
        entry = self._entry(tensor)
        if entry is not None:
            entry.version, entry.stats = version(tensor), index


def version(tensor: torch.Tensor) -> int:
    """How often the tensor was changed in place; -2 where torch does not count."""
    try:
        return tensor._version
    except RuntimeError:  # a tensor made in inference mode
        return -2


def elementwise(parents: Sequence[tuple[Trail, torch.Size]], shape: torch.Size) -> Axes:
    """Axes of an elementwise call's output, aligned from the right as broadcasting does."""
    unit = batch = None
    samples = 1
    for trail, parent in parents:
        shift = len(shape) - len(parent)
        for name in ("unit", "batch"):
            axis = getattr(trail.axes, name)
            if axis is None or shape[axis + shift] != parent[axis]:
                continue
            if name == "unit" and unit is None:
                unit = axis + shift
            elif name == "batch" and batch is None:
                batch = axis + shift
        samples = max(samples, trail.axes.samples)
    return Axes(unit, batch, samples)


def reshaped(trail: Trail, old: Sequence[int], new: Sequence[int]) -> Trail:
    """Axes after a row-major reshape from ``old`` to ``new``."""
    axes = trail.axes
    unit, batch = None, None
    for before, after in _groups(old, new):
        if axes.unit in before:
            size = old[axes.unit] if axes.unit is not None else 0
            same = [a for a in after if new[a] == size]
            if same and math.prod(new[a] for a in after) == size:
                unit = same[0]
        if axes.batch in before and axes.batch is not None:
            # The sample index must stay the slowest part of one axis.
            slowest = [a for a in before if old[a] != 1]
            if after and (not slowest or slowest[0] == axes.batch):
                first = next((a for a in after if new[a] != 1), after[0])
                if new[first] % axes.samples == 0:
                    batch = first
    why = trail.why_no_units if axes.unit is None else RESHAPED
    return Trail(trail.node, Axes(unit, batch, axes.samples), why)


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes of ``old`` and ``new`` that hold the same elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [], []
        a = b = 1
        while True:
            if a == b and before and after:
                break
            if a <= b and i < len(old):
                a *= old[i]
                before.append(i)
                i += 1
            elif j < len(new):
                b *= new[j]
                after.append(j)
                j += 1
            elif i < len(old):
                a *= old[i]
                before.append(i)
                i += 1
            else:
                break
        while i < len(old) and old[i] == 1:
            before.append(i)
            i += 1
        while j < len(new) and new[j] == 1:
            after.append(j)
            j += 1
        yield before, after


def viewed(
    trail: Trail,
    shape: torch.Size,
    call: Callable[[torch.Tensor], Any],
) -> list[Trail]:
    """Trails of a view's outputs, found by doing the same to a token tensor.

    The token lives on the meta device and costs nothing: its strides are 1 along the unit axis,
    a large prime along the batch axis and 0 elsewhere, and a view only moves strides about.
    """
    axes = trail.axes
    strides = [0] * len(shape)
    if axes.unit is not None:
        strides[axes.unit] = 1
    if axes.batch is not None:
        strides[axes.batch] = _PRIME
    try:
        token = torch.empty_strided(tuple(shape), strides, device="meta")
        made = call(token)
    except Exception:  # a call that meta tensors cannot follow: the lineage just ends
        return []
    outputs = made if isinstance(made, (tuple, list)) else [made]
    trails = []
    for output in outputs:
        unit = batch = None
        if output._base is not None or output is token:
            for axis, stride in enumerate(output.stride()):
                if stride and stride % _PRIME == 0 and axes.batch is not None:
                    batch = axis if output.shape[axis] == shape[axes.batch] else None
                elif stride and axes.unit is not None and stride < _PRIME:
                    unit = axis
        why = trail.why_no_units if axes.unit is None else RESHAPED
        trails.append(Trail(trail.node, Axes(unit, batch, axes.samples), why))
    return trails


_PRIME = 1_000_003


def reduced(trail: Trail, shape: torch.Size, dims: Any, keepdim: bool) -> Trail:
    """Axes after a mean over ``dims``."""
    if dims is None:
        return replace(trail, axes=Axes(None, None, trail.axes.samples))
    gone = {d % len(shape) for d in (dims if isinstance(dims, (tuple, list)) else [dims])}

    def moved(axis: int | None) -> int | None:
        if axis is None or axis in gone:
            return None
        return axis if keepdim else axis - sum(d < axis for d in gone)

    axes = Axes(moved(trail.axes.unit), moved(trail.axes.batch), trail.axes.samples)
    return replace(trail, axes=axes)
