"""Which axis of a tensor runs over units and which over samples, followed through a forward.

The unit axis belongs to the tensor, not to its rank: after ``linear`` it is the last axis, after a
convolution axis 1. Permuting and squeezing move it. A reshape that merges or splits it loses it;
the trail then says why.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from nndiag.layout import Axes

__all__ = [
    "NO_UNITS",
    "RESHAPED",
    "UNKNOWN",
    "TensorMap",
    "Trail",
    "Trails",
    "arrangement",
    "elementwise",
    "joined",
    "next_function",
    "reduced",
    "reshaped",
    "version",
    "viewed",
    "whole",
]

NO_UNITS = "no layer before it that has units"
RESHAPED = "a reshape merged or split its unit axis"
UNKNOWN = "it comes out of a call that is not understood"


class Trail(NamedTuple):
    """What is known about one live tensor: the node that made it and its axes."""

    node: int
    axes: Axes = Axes()
    why_no_units: str = NO_UNITS


Value = TypeVar("Value")


class TensorMap(Generic[Value]):
    """A value for each of many tensors, without keeping the tensors alive.

    Torch's own WeakTensorKeyDictionary does the same, but its lookup is slow Python code.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], Value]] = {}

    def get(self, tensor: torch.Tensor) -> Value | None:
        known = self._known.get(id(tensor))
        # A new tensor may have the id of a dead one.
        return known[1] if known is not None and known[0]() is tensor else None

    def __setitem__(self, tensor: torch.Tensor, value: Value) -> None:
        self._known[id(tensor)] = weakref.ref(tensor), value


# The key under which autograd's nodes keep the trails of their outputs.
_KEY = "nndiag.trail"


class Trails:
    """Trails of tensors, without keeping the tensors alive.

    A tensor that no recorded call made (in a custom autograd function, in TorchScript, or as the
    copy that a backward hook makes) is found by :meth:`origin`, from autograd's graph.
    """

    def __init__(self) -> None:
        self._first_function = next_function()
        self._trails: TensorMap[Trail] = TensorMap()
        # Per tensor: the version of its values, and notes on them.
        self._notes: TensorMap[tuple[int, dict[Any, Any]]] = TensorMap()

    def __getitem__(self, tensor: torch.Tensor) -> Trail | None:
        return self._trails.get(tensor)

    def __setitem__(self, tensor: torch.Tensor, trail: Trail) -> None:
        self._trails[tensor] = trail
        function: Any = tensor.grad_fn
        if function is not None:
            function.metadata[_KEY, tensor.output_nr] = trail, _memory_layout(tensor)

    def origin(self, tensor: torch.Tensor) -> tuple[Trail | None, list[Trail]]:
        """From autograd's graph: the trail of the tensor it is a copy of, if any; its sources."""
        sources: dict[Trail, None] = {}
        here = _memory_layout(tensor)
        queue: list[tuple[Any, int]] = [(tensor.grad_fn, tensor.output_nr)]
        visited: set[tuple[Any, int]] = {(None, 0)}
        while queue:
            function, number = queue.pop()
            if (function, number) in visited:
                continue
            visited.add((function, number))
            if function._sequence_nr() < self._first_function:  # of the caller's graph
                continue
            trail, place = function.metadata.get((_KEY, number), (None, None))
            if trail is None:
                queue += function.next_functions
            elif here is not None and place == here:
                return trail, [trail]
            else:
                sources[trail] = None
        return None, list(sources)

    def notes(self, tensor: torch.Tensor) -> dict[Any, Any]:
        """A dictionary for facts about the tensor's present values; emptied when they change.

        For a view, use that of the :func:`whole` tensor.
        """
        notes = self._notes.get(tensor)
        now = version(tensor)
        if notes is None or notes[0] != now or now < 0:
            notes = self._notes[tensor] = now, {}
        return notes[1]


def next_function() -> int:
    """The number that autograd will give to the next function it records."""
    with torch.enable_grad():
        function: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return int(function._sequence_nr()) + 1


def version(tensor: torch.Tensor) -> int:
    """How often the tensor was changed in place; -1 where torch does not count."""
    try:
        return tensor._version
    except RuntimeError:  # a tensor made in inference mode
        return -1


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that this one is a view of, or itself."""
    if tensor.__class__ not in _PLAIN or not tensor._is_view() or tensor.layout != torch.strided:
        return tensor
    base = tensor._base
    return tensor if base is None or base.dtype != tensor.dtype or base.is_complex() else base


def arrangement(tensor: torch.Tensor, axes: Axes) -> tuple[Hashable, ...]:
    """A key that is equal for two views of a tensor with the same values in the same axes.

    Merging or splitting axes other than the units' does not change it.
    """
    if tensor.layout != torch.strided:
        return axes
    offset = tensor.storage_offset()
    if axes.batch or not tensor.is_contiguous():
        return offset, tensor.shape, tensor.stride(), axes
    after = None if axes.unit is None else math.prod(tensor.shape[axes.unit :])
    units = None if axes.unit is None else tensor.shape[axes.unit]
    return offset, tensor.numel(), units, after, axes.batch, axes.samples


def _memory_layout(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]] | None:
    try:
        return tensor.data_ptr(), tensor.shape, tensor.stride()
    except RuntimeError:  # sparse, nested, or of a functional transform
        return None


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


def joined(parents: Sequence[tuple[Trail, torch.Size]], shape: torch.Size, dim: int) -> Axes:
    """Axes after a concatenation along ``dim``, or a stacking, which makes that axis."""

    def where(axis: int | None, rank: int) -> int | None:
        return None if axis is None else axis + (rank < len(shape) and axis >= dim)

    alike = [(t.axes, len(s)) for t, s in parents if len(shape) - 1 <= len(s) <= len(shape)]
    units = {where(axes.unit, rank) for axes, rank in alike}
    batches = {where(axes.batch, rank) for axes, rank in alike}
    batch = batches.pop() if len(batches) == 1 else None
    return Axes(
        units.pop() if len(units) == 1 else None,
        None if batch == dim else batch,
        max((t.axes.samples for t, _ in parents), default=1),
    )


def reshaped(trail: Trail, old: Sequence[int], new: Sequence[int]) -> Trail:
    """Axes after a row-major reshape from ``old`` to ``new``."""
    axes = trail.axes
    unit = batch = None
    for before, after in _groups(old, new):
        if axes.unit is not None and axes.unit in before:
            size = old[axes.unit]
            merged = size != 1 and any(old[a] != 1 for a in before if a != axes.unit)
            unit = None if merged else next((a for a in after if new[a] == size), None)
        if axes.batch is not None and axes.batch in before and after:
            # The sample index must stay the slowest part of one axis.
            slower = any(old[a] != 1 for a in before if a < axes.batch)
            first = next((a for a in after if new[a] != 1), after[0])
            batch = None if slower or new[first] % axes.samples else first
    why = trail.why_no_units if axes.unit is None else RESHAPED
    return Trail(trail.node, Axes(unit, batch, axes.samples), why)


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of axes of ``old`` and ``new`` that hold the same elements.

    Axes of size 1 hold nothing: they go with the run before them.
    """
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(before), j + len(after)
        while (a := math.prod(old[k] for k in before)) != (b := math.prod(new[k] for k in after)):
            if (a < b or j == len(new)) and i < len(old):
                before.append(i)
                i += 1
            elif j < len(new):
                after.append(j)
                j += 1
            else:  # sizes with a zero in them
                break
        while i < len(old) and old[i] == 1:
            before.append(i)
            i += 1
        while j < len(new) and new[j] == 1:
            after.append(j)
            j += 1
        yield before, after


# Strides of the token below: a view gives a new axis of size 1 a multiple of a neighbour's stride.
_UNIT, _BATCH = 1_009, 1_000_003


def viewed(trail: Trail, shape: torch.Size, call: Callable[[torch.Tensor], Any]) -> list[Trail]:
    """Trails of a view's outputs, found by making the same call on a token tensor.

    The token is on the meta device and costs nothing. Its strides mark the unit axis and the batch
    axis (all others are 0), and a view only rearranges strides.
    """
    axes = trail.axes
    strides = [0] * len(shape)
    if axes.unit is not None:
        strides[axes.unit] = _UNIT
    if axes.batch is not None:
        strides[axes.batch] = _BATCH
    token = torch.empty_strided(tuple(shape), strides, device="meta")
    result = call(token)
    why = trail.why_no_units if axes.unit is None else RESHAPED
    trails = []
    for output in result if isinstance(result, (tuple, list)) else [result]:
        unit = batch = None
        if output._base is not None or output is token:
            unit = _axis(output, _UNIT)
            batch = _axis(output, _BATCH)
            if batch is not None and output.shape[batch] != shape[axes.batch or 0]:
                batch = None  # some of the samples
        trails.append(Trail(trail.node, Axes(unit, batch, axes.samples), why))
    return trails


def _axis(output: torch.Tensor, stride: int) -> int | None:
    """The axis with this stride; or with a multiple of it, which is a slice with steps."""
    strides = list(output.stride())
    if stride in strides:
        return strides.index(stride)
    steps = (a for a, s in enumerate(strides) if s and s % stride == 0 and output.shape[a] > 1)
    return next(steps, None)


def reduced(trail: Trail, shape: torch.Size, dims: Any, keepdim: bool) -> Trail:
    """Axes after a mean over ``dims``."""
    if dims is None:
        return trail._replace(axes=Axes(None, None, trail.axes.samples))
    removed = {d % len(shape) for d in (dims if isinstance(dims, (tuple, list)) else [dims])}

    def moved(axis: int | None) -> int | None:
        if axis is None or axis in removed:
            return None
        return axis if keepdim else axis - sum(d < axis for d in removed)

    axes = Axes(moved(trail.axes.unit), moved(trail.axes.batch), trail.axes.samples)
    return trail._replace(axes=axes)
