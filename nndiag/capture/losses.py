"""The calls that compute the loss: what they read, and numbers about the targets."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch

from nndiag import ops
from nndiag.batch import Batch, tensors_in
from nndiag.capture.calls import Call
from nndiag.capture.paths import Paths
from nndiag.experiment import (
    INPUT,
    OUTPUT,
    TARGET,
    Experiment,
    LossCall,
    Operand,
    Unregistered,
    Values,
)
from nndiag.stats import Node

__all__ = [
    "MOST_CALLS",
    "MOST_SORTED",
    "MOST_VALUES",
    "SeenLossCall",
    "class_axis",
    "experiment",
    "nearest",
    "seen",
    "values_of",
]

MOST_CALLS = 64
"""A loss in a Python loop makes thousands of calls: the first ones show what they all do."""
MOST_VALUES = 1_000_000
"""Larger tensors are not looked at."""
MOST_SORTED = 20_000
"""Different values are counted in no more than these, unless they are small whole numbers."""
_COLUMNS = 4096


@dataclass
class SeenLossCall:
    """A call of the loss while it is under way."""

    name: str
    op: str
    location: str | None
    operands: tuple[Operand, ...]
    nodes: tuple[int, ...]
    options: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)

    def done(self, result: Any) -> LossCall:
        is_tensor = isinstance(result, torch.Tensor)
        measured = is_tensor and self.op in _LOSSES and result.numel() > 0
        return LossCall(
            self.name,
            self.op,
            tuple(result.shape) if is_tensor else (),
            self.operands,
            self.nodes,
            self.options,
            float(result.detach().double().mean()) if measured else math.nan,
            self.location,
            self.facts,
        )


_LOSSES = frozenset(op.name for op in ops.OPS.values() if op.loss is not None)
_REDUCTIONS = {"none": 0.0, "mean": 1.0, "sum": 2.0, "batchmean": 3.0}


def experiment(
    batch: Batch, calls: Iterable[LossCall], unregistered: tuple[Unregistered, ...] = ()
) -> Experiment:
    """What a batch and the calls of its loss show, as plain data."""
    tensors = list(tensors_in(batch.target))
    names = ["target"] if len(tensors) == 1 else [f"target.{k}" for k in range(len(tensors))]
    if isinstance(batch.target, Mapping) and len(batch.target) == len(tensors) > 1:
        names = [f"target.{key}" for key in batch.target]
    values = {name: values_of(x) for name, x in zip(names, tensors, strict=True)}
    known = {name: v for name, v in values.items() if v is not None}
    return Experiment(tuple(calls), known, unregistered=unregistered)


def seen(call: Call, name: str, location: str | None, paths: Paths) -> SeenLossCall:
    """Look at a call's operands before it runs. Values are read for torch's losses only."""
    is_loss = call.op in _LOSSES
    tensors = _loss_operands(call) if is_loss else call.tensors
    operands = tuple(_operand(x, paths, is_loss and k < 2) for k, x in enumerate(tensors))
    trails = [t for x in tensors if (t := paths.trails[x]) is not None]
    options = _options(call.bound) if is_loss else {}
    nodes = tuple(dict.fromkeys(t.node for t in trails))
    facts = _beyond_bounds(tensors, operands) if is_loss or call.op == "sub" else {}
    return SeenLossCall(name, call.op, location, operands, nodes, options, facts)


def _beyond_bounds(
    tensors: Sequence[torch.Tensor], operands: Sequence[Operand]
) -> dict[str, float]:
    """How much of a target lies beyond the bounds of the output that it is compared with."""
    if len(tensors) < 2:
        return {}
    for output, (target, its) in permutations(zip(tensors[:2], operands[:2], strict=True), 2):
        made = output[1].made
        if made is None or OUTPUT in its.sources or TARGET in output[1].sources:
            continue
        if made.low == -math.inf and made.high == math.inf:
            continue
        if not 0 < target.numel() <= MOST_VALUES or target.is_complex():
            continue
        if TARGET in its.sources or (INPUT in its.sources and OUTPUT not in output[1].sources):
            return _distances(target.detach().double(), made.low, made.high)
    return {}


def _distances(target: torch.Tensor, low: float, high: float) -> dict[str, float]:
    known = target[torch.isfinite(target)]
    if not known.numel():
        return {}
    nearest = known.clamp(low, high)
    distance = (known - nearest).abs()
    beyond = distance > 1e-6 * (1 + nearest.abs())
    outside, inside = known[beyond], known[~beyond]

    def different(x: torch.Tensor) -> float:
        return float(min(x.numel(), 1) + (x.numel() > 0 and bool((x != x[0]).any())))

    return {
        "outside": float(beyond.double().mean()),
        "outside_values": different(outside),
        "inside_values": different(inside),
        "absolute_left": float(distance.mean()),
        "square_left": float(distance.square().mean()),
        "variance": float(known.var(correction=0)),
        "first_outside": float(outside[0]) if outside.numel() else math.nan,
    }


def _loss_operands(call: Call) -> list[torch.Tensor]:
    """The output and the target first, then the others (class weights, a variance)."""
    first = [call.input, call.bound.get("target")]
    first = [x for x in first if isinstance(x, torch.Tensor)]
    return first + [x for x in call.tensors if all(x is not y for y in first)]


def _options(bound: Mapping[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in bound.items():
        if name == "reduction" and isinstance(value, str):
            numbers[name] = _REDUCTIONS.get(value, math.nan)
        elif isinstance(value, (bool, int, float)):
            numbers[name] = float(value)
        elif name in ("weight", "pos_weight") and isinstance(value, torch.Tensor):
            numbers[name] = 1.0  # given; its values are an operand
    return numbers


def _operand(x: torch.Tensor, paths: Paths, with_values: bool) -> Operand:
    trail = paths.trail_of(x)
    return Operand(
        tuple(x.shape),
        str(x.dtype).removeprefix("torch."),
        () if trail is None else paths.sources(trail.node),
        paths.direct.get(x) is True,
        None if trail is None else trail.axes.batch,
        paths.made.get(x),
        values_of(x) if with_values else None,
    )


def nearest(
    nodes: Iterable[int], graph: Sequence[Node], network: Collection[int]
) -> tuple[int, ...]:
    """Of the nodes and their ancestors in ``graph`` the nearest ones that are in ``network``."""
    found: set[int] = set()
    queue, visited = list(nodes), set[int]()
    while queue:
        node = queue.pop()
        if node in visited:
            continue
        visited.add(node)
        if node in network:
            found.add(node)
        else:
            queue += graph[node].inputs
    return tuple(sorted(found))


def class_axis(shape: Sequence[int]) -> int:
    """The axis of the classes, as torch's losses have it: 1, or 0 without an axis of samples."""
    return 1 if len(shape) > 1 else 0


@torch.no_grad()
def values_of(tensor: torch.Tensor) -> Values | None:
    """Numbers about a tensor; None where there are too many values, or none that are numbers."""
    if not tensor.numel() or tensor.numel() > MOST_VALUES or tensor.is_complex():
        return None
    if tensor.is_nested or tensor.is_meta or tensor.layout != torch.strided:
        return None
    x = tensor.detach().cpu().to(torch.float64)
    finite = torch.isfinite(x)
    known = x[finite]
    count, shape = known.numel(), tuple(tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not count:
        return Values(shape, dtype, 0, x.numel())
    low, high = map(float, torch.aminmax(known))
    whole = bool((known == known.round()).all())
    distinct, counts = _counted(known, low, high, whole)
    return Values(
        shape,
        dtype,
        count,
        x.numel() - count,
        float(known.mean()),
        float(known.std(correction=0)),
        low,
        high,
        float(known.median()),
        whole,
        distinct,
        counts,
        size=float(known.abs().mean()),
        deviation=float((known - known.median()).abs().mean()),
        **_rows(x, tensor.is_floating_point(), tensor.element_size() < 4),
    )


def _counted(
    known: torch.Tensor, low: float, high: float, whole: bool
) -> tuple[int, dict[int, int]]:
    """How many different values there are, and how often each occurs if they are whole."""
    most = Values.MOST_DISTINCT
    if whole and high - low < MOST_SORTED:
        bins = torch.bincount((known - low).to(torch.int64))
        there = bins.nonzero()[:, 0]
        if len(there) > most:
            return most + 1, {}
        values = (there + int(low)).tolist()
        return len(values), dict(zip(values, bins[there].tolist(), strict=True))
    if known.numel() > MOST_SORTED:
        return most + 1, {}
    different, counts = torch.unique(known, return_counts=True)
    if len(different) > most:
        return most + 1, {}
    small = whole and max(abs(low), abs(high)) < 2**53
    values = [int(v) for v in different.tolist()] if small else []
    return len(different), dict(zip(values, counts.tolist(), strict=small)) if small else {}


def _rows(x: torch.Tensor, floating: bool, short: bool) -> dict[str, Any]:
    """Numbers about rows along the class axis, and about columns. ``short``: of half precision."""
    if x.dim() < 2 or x.shape[1] > _COLUMNS:
        return {}
    rows = x.movedim(class_axis(x.shape), -1).reshape(-1, x.shape[1])
    facts: dict[str, Any] = {
        "column_means": tuple(rows.mean(0).tolist()),
        "column_variances": tuple(rows.var(0, correction=0).tolist()),
    }
    if x.shape[1] == 1:
        return facts
    sums = (rows.sum(1) - 1).abs() <= 1e-4
    facts["summing"] = float((sums & (rows >= 0).all(1)).double().mean())
    facts["several"] = float(((rows > 0.5).sum(1) > 1).double().mean())
    if floating:
        off = rows.logsumexp(1).abs()
        facts["normalized"] = float((off <= (0.05 if short else 1e-3)).double().mean())
    return facts
