"""The data flow of a forward, and each tensor's place in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nndiag.batch import has_samples
from nndiag.capture.lineage import UNKNOWN, TensorMap, Trail, Trails
from nndiag.experiment import INPUT, OUTPUT, TARGET, Made
from nndiag.layout import Axes
from nndiag.ops import CONTRACTIONS
from nndiag.stats import Node

__all__ = ["Paths", "measurable", "why_not_measurable"]

_SOURCES = (INPUT, TARGET, OUTPUT)


def measurable(tensor: Any) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and (tensor.is_floating_point() or tensor.is_complex())
        and not tensor.is_nested
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def why_not_measurable(tensors: list[torch.Tensor]) -> str:
    if not tensors:
        return "its output holds no tensor"
    if any(x.is_nested for x in tensors):
        return "nested tensors are not looked into"
    if any(x.is_meta for x in tensors):
        return "a tensor on the meta device has no values"
    if any(x.is_floating_point() or x.is_complex() for x in tensors):
        return "inside a functional transform (vmap, grad) values cannot be read"
    return "its output holds no floating-point tensor"


class Paths:
    """The nodes of one forward, each tensor's trail, and the parameters that weights come from.

    ``axis`` is the assumed sample axis of the inputs; ``axis_found`` the one that the model's
    layers use (1 for recurrent or attention layers that are not batch_first).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], axis: int) -> None:
        self.nodes: list[Node] = []
        self.trails = Trails()
        self.samples = 1
        self.axis = self.axis_found = axis
        self.loses_samples = False  # whether a call may have mixed samples with one another
        self.made: TensorMap[Made | None] = TensorMap()
        self.direct: TensorMap[bool] = TensorMap()  # whole outputs and targets, at most viewed
        self._origins: list[int] = []  # for each node its sources, as bits
        self._weight_sources: TensorMap[str] = TensorMap()
        for name, parameter in parameters.items():
            self._weight_sources[parameter] = name

    def node(self, op: str, inputs: list[int], row: int = -1, parameter: str = "") -> int:
        origins = 1 << _SOURCES.index(op) if op in _SOURCES and not inputs else 0
        for source in inputs:
            origins |= self._origins[source]
        self.nodes.append(Node(op, tuple(inputs), row, parameter))
        self._origins.append(origins)
        return len(self.nodes) - 1

    def sources(self, node: int) -> tuple[str, ...]:
        """What a node depends on: INPUT, TARGET, OUTPUT; INPUT only where not through an output."""
        names = tuple(name for k, name in enumerate(_SOURCES) if self._origins[node] >> k & 1)
        return tuple(n for n in names if n != INPUT) if OUTPUT in names else names

    def give_unknown_trail(self, tensor: torch.Tensor, op: str, sources: list[Trail]) -> None:
        """Set the trail of the output of a call that is not understood."""
        samples = max((t.axes.samples for t in sources), default=1)
        batches = {t.axes.batch for t in sources} - {None}
        batch = batches.pop() if len(batches) == 1 else None
        if batch is not None and (tensor.dim() <= batch or tensor.size(batch) != samples):
            batch = None
        node = self.node(op, list(dict.fromkeys(t.node for t in sources)))
        self.trails[tensor] = Trail(node, Axes(None, batch, samples), UNKNOWN)

    def trail_of(self, tensor: torch.Tensor) -> Trail | None:
        """A tensor's trail; from autograd's graph if no recorded call made it."""
        trail = self.trails[tensor]
        if trail is None and tensor.grad_fn is not None and self.parameter(tensor) is None:
            same, sources = self.trails.origin(tensor)
            if same is not None:
                self.trails[tensor] = same
            elif sources:
                name = type(tensor.grad_fn).__name__.rstrip("0123456789").removesuffix("Backward")
                self.give_unknown_trail(tensor, f"?{name}", sources)
            trail = self.trails[tensor]
        return trail

    def source(self, tensor: torch.Tensor) -> Trail | None:
        """The trail of a layer's input; a new one for a batch of unknown origin."""
        trail = self.trail_of(tensor)
        if trail is None and self.parameter(tensor) is None and measurable(tensor):
            at = self.axis
            if has_samples(tensor, at) and tensor.shape[at] == self.samples:
                axes = Axes(None, at, self.samples)
                self.trails[tensor] = trail = Trail(self.node("?", []), axes, UNKNOWN)
        return trail

    def axes_along(self, x: torch.Tensor, trail: Trail, axis: int, *, unit: int) -> Axes:
        """The axes for a layer that takes its samples from ``axis``, whatever was assumed."""
        axes = trail.axes
        if x.dim() < 3 or axes.batch == axis:
            return axes._replace(unit=unit)
        if axes.batch is not None:
            self.axis_found = axis
            return Axes(unit, axis, x.shape[axis])
        return Axes(unit, axis if x.shape[axis] == axes.samples else None, axes.samples)

    def start(self, tensor: torch.Tensor, samples: int) -> Axes:
        """Set the trail of one of the model's inputs; returns its axes."""
        self.samples = samples
        there = has_samples(tensor, self.axis) and tensor.size(self.axis) == samples
        batch = self.axis if there else None
        unit = 1 if tensor.dim() == 2 and batch == 0 and tensor.is_floating_point() else None
        axes = Axes(unit, batch, samples)
        self.trails[tensor] = Trail(self.node("input", []), axes)
        return axes

    def follow_samples(self, tensors: list[torch.Tensor], result: Any) -> None:
        """After a call: note whether it lost the axis of the samples, and so may have mixed them.

        A product of two tensors that both have that axis may have summed over it.
        """
        if self.loses_samples or not isinstance(result, torch.Tensor):
            return
        trails = [(t, x) for x in tensors if (t := self.trails[x]) is not None]
        with_samples = [(t.axes.batch, x.dim()) for t, x in trails if t.axes.batch is not None]
        after = self.trails[result]
        if not with_samples or after is None:
            return
        crossed = len(with_samples) > 1 and self.nodes[after.node].op in CONTRACTIONS
        self.loses_samples = after.axes.batch is None or (
            crossed and any(axis >= rank - 2 for axis, rank in with_samples[1:])
        )

    def start_target(self, tensor: torch.Tensor) -> None:
        """Set the trail of a tensor of the target."""
        there = has_samples(tensor, 0) and tensor.size(0) == self.samples
        axes = Axes(None, 0 if there else None, self.samples)
        self.trails[tensor] = Trail(self.node(TARGET, []), axes)
        self.direct[tensor] = True

    def mark_output(self, tensor: torch.Tensor) -> None:
        """From here on this tensor is an output of the network: what is made of it, is the loss."""
        trail = self.trail_of(tensor)
        if trail is not None:
            self._origins[trail.node] |= 1 << _SOURCES.index(OUTPUT)
            self.direct[tensor] = True

    def parameter(self, tensor: torch.Tensor) -> str | None:
        """The name of the parameter that a tensor is, or is computed from."""
        return self._weight_sources.get(tensor)

    def record_weight_source(self, outputs: list[torch.Tensor], sources: list[Any]) -> None:
        """After a call on parameters (a transposition, a normalisation): remember their names."""
        named = [(x, n) for x in sources if (n := self.parameter(x)) is not None]
        for out in outputs:
            alike = (n for x, n in named if x.shape == out.shape)
            name = next(alike, named[0][1] if named else None)
            if name is not None and self.parameter(out) is None:
                self._weight_sources[out] = name
