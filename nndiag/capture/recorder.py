"""Watch one forward and backward: modules for scope, calls for what is computed, tensor hooks
for gradients. Nothing is kept alive but small vectors of numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from nndiag import ops
from nndiag.batch import tensors_in
from nndiag.capture import chance, losses
from nndiag.capture.calls import Call, understood
from nndiag.capture.handlers import COMPARISONS, HANDLERS, IN_LOSS, QUIET, inside_leaf
from nndiag.capture.lineage import UNKNOWN, Trail, arrangement, version, whole
from nndiag.capture.locate import location
from nndiag.capture.modules import (
    as_one_call,
    counts_as_one_call,
    has_layers,
    is_script,
    is_torch_leaf,
)
from nndiag.capture.paths import Paths, measurable, why_not_measurable
from nndiag.capture.rows import Row, layer_of
from nndiag.capture.weights import RunningStatistics, use_of
from nndiag.experiment import LossCall, Made
from nndiag.layout import Axes, Pending
from nndiag.measure import Meter
from nndiag.stats import Layer, Node, TensorStats, Weight

__all__ = [
    "FROZEN",
    "GRADIENTS_OFF",
    "NONE_CAME",
    "NONE_CAME_TO_VIEW",
    "ROOT",
    "Recorder",
    "Scope",
    "UnknownLeaf",
]

ROOT = "(root)"
_NO_MODULE = nn.Module()
GRADIENTS_OFF = "gradient not observed: it ran where gradients are off (no_grad, or a checkpoint)"
FROZEN = "gradient not observed: nothing before it is trainable"
NONE_CAME = "gradient not observed: none reached it"
NONE_CAME_TO_VIEW = f"{NONE_CAME}, or it is a view that was changed in place"


@dataclass
class Scope:
    """A module's forward that is under way."""

    module: nn.Module
    name: str
    error: BaseException | None  # the exception being handled when it began
    counts: dict[str, int] = field(default_factory=dict)
    row: Row | None = None
    leaf: bool = False  # a layer of torch.nn: the calls inside belong to its row
    muted: bool = False  # inside a leaf: nothing is recorded
    handling: Generator[None, Any, None] | None = None  # if it counts as one call


@dataclass(frozen=True)
class UnknownLeaf:
    """A leaf that forward used and the model does not list; the row that its call opens."""

    tensor: torch.Tensor
    row: int
    location: str | None


class _OwnArithmetic:
    """Context of our own arithmetic: not recorded, without gradients, errors noted and not raised.

    A class and not a generator, which costs more: it is entered several times per layer.
    """

    __slots__ = ("gradients", "guard", "rec", "what")

    def __init__(self, rec: Recorder, what: str) -> None:
        self.rec, self.what = rec, what

    def __enter__(self) -> None:
        self.rec._busy = True
        self.guard = torch._C.DisableTorchFunction()
        self.guard.__enter__()
        self.rec.with_gradients = self.gradients = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        torch._C._set_grad_enabled(self.gradients)
        self.guard.__exit__(kind, error, trace)
        self.rec._busy = False
        if error is None or not isinstance(error, Exception):
            return False
        self.rec.not_observed[f"{self.what}: {_failure_text(error)}"] = None
        return True


class Recorder(TorchFunctionMode):
    """Records one batch. Use as ``with recorder.watching(): model(...)``, then ``backward``.

    ``only_inputs``: measure nothing but the moments of each unit in the layers' inputs.
    """

    def __init__(
        self,
        names: Mapping[nn.Module, str],
        parameters: Mapping[str, nn.Parameter],
        *,
        gradients: bool,
        only_inputs: bool = False,
        axis: int = 0,
        tick: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.names = names
        self.parameters = parameters
        self.gradients = gradients
        self.only_inputs = only_inputs
        self.paths = Paths(parameters, axis)
        self.tick = tick
        self.rows: list[Row] = []
        self.meter = Meter()
        self.numbers: list[Any] = []
        self.running_statistics: dict[str, RunningStatistics] = {}  # of BatchNorms, by row
        self.not_observed: dict[str, None] = {}
        self.called: set[nn.Module] = set()
        self.finished: set[nn.Module] = set()
        self.used: set[str] = set()
        self.loss_calls: list[LossCall] = []
        self.unknown_leaves: dict[int, UnknownLeaf] = {}  # that forward used, by id
        self.other_leaves: set[int] = set()  # ids of leaves of the loss that are no parameters
        self.network_nodes = 0  # nodes of the network; those behind them belong to the loss
        self._loss_began = -1  # the first node of the loss; -1: the model runs
        self._loss_scope: Scope | None = None
        self._rows_before_loss = sys.maxsize
        self.failed: tuple[BaseException, Scope] | None = None  # error, innermost module it left
        self._calls: Counter[nn.Module] = Counter()
        self._stack: list[Scope] = []
        self._handles: list[Any] = []
        self._last_linear: tuple[Any, torch.Tensor, Any, Any, Any] | None = None
        self._thread = threading.get_ident()
        self._busy = False
        self._backward = False
        self.with_gradients = True  # whether the model runs with gradients on

    # -- scopes -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Context in which the forward is recorded, by global module hooks and this mode.

        Not hooks on the model's own modules: ScriptModules refuse those, and they would have to be
        removed again.
        """
        with contextlib.ExitStack() as undo:
            before = torch_module.register_module_forward_pre_hook(self._enter)
            undo.callback(before.remove)
            # Not with_kwargs: torch calls such a hook with wrong arguments after an error.
            after = torch_module.register_module_forward_hook(self._leave, always_call=True)
            undo.callback(after.remove)
            undo.callback(self._stack.clear)
            undo.callback(setattr, self, "_last_linear", None)
            with self:
                yield

    @contextlib.contextmanager
    def watching_loss(self, output: Any, target: Any) -> Iterator[None]:
        """Context in which the caller's loss is recorded, after the forward."""
        for x in tensors_in(output):
            self.paths.mark_output(x)
        self._loss_began, self._rows_before_loss = len(self.paths.nodes), len(self.rows)
        for x in tensors_in(target):
            if self.paths.trails[x] is None:
                self.paths.start_target(x)
        self._loss_scope = Scope(_NO_MODULE, "loss", sys.exc_info()[1])
        with self.watching():
            yield

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """Context of the backward to record; a forward may run backwards of its own."""
        self._backward = True
        try:
            yield
        finally:
            self._backward = False

    @property
    def loss_runs_layers(self) -> bool:
        """Whether the loss called modules of the model."""
        return len(self.rows) > self._rows_before_loss

    def close(self) -> None:
        """Remove the tensor hooks: a tensor that the model keeps must not keep the recorder."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _own_arithmetic(self, what: str) -> _OwnArithmetic:
        return _OwnArithmetic(self, what)

    def measure_optional(
        self, row: Row, what: str, look: Callable[[], tuple[Pending | None, str]]
    ) -> None:
        """Add optional numbers to a row, or the reason why they could not be computed."""
        if self.only_inputs:
            return
        try:
            pending, why = look()
        except Exception as error:
            pending, why = None, f"{what}: {_failure_text(error)}"
        if pending is not None:
            row.facts.append(self.meter.add(pending))
        if why:
            row.unseen.append(why)

    def _is_outside_forward(self) -> bool:
        """Whether this is our arithmetic, another thread or a backward (as of a checkpoint)."""
        return (
            self._busy
            or threading.get_ident() != self._thread
            or torch._C._current_graph_task_id() != -1
        )

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._is_outside_forward() or module not in self.names:
            return
        try:  # no tensor is touched here, so _own_arithmetic is not needed
            scope = self._scope(module)
            self._stack.append(scope)
        except Exception as error:
            self.not_observed[f"{self.names[module] or ROOT}: {_failure_text(error)}"] = None
            return
        if args and scope.row is not None and not scope.leaf and counts_as_one_call(module):
            with self._own_arithmetic(scope.name or ROOT):
                call = as_one_call(module, args)
                scope.leaf = True
                handling = HANDLERS[call.category](self, call)
                next(handling)
                scope.muted, scope.handling = True, handling

    def _scope(self, module: nn.Module) -> Scope:
        outer = self._stack[-1] if self._stack else None
        error = sys.exc_info()[1]
        self.called.add(module)
        if outer is not None and (outer.leaf or outer.muted) and not _is_users_child(module, outer):
            return Scope(module, outer.name, error, muted=True)
        if isinstance(module, ParametrizationList):  # computes a weight, not an activation
            return Scope(module, self.names[module], error, muted=True)
        self._calls[module] += 1
        count = self._calls[module]
        name = self.names[module] + (f"@{count}" if count > 1 else "")
        scope = Scope(module, name, error, leaf=is_torch_leaf(module))
        if scope.leaf or is_script(module) or not has_layers(module):
            kind = getattr(module, "original_name", None) or type(module).__name__
            scope.row = self._new_row(name or ROOT, str(kind))
        return scope

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_outside_forward():
            return
        depths = [depth for depth, scope in enumerate(self._stack) if scope.module is module]
        if not depths:
            return
        scope = self._stack[depths[-1]]
        del self._stack[depths[-1] :]  # and what an exception left open inside
        error = sys.exc_info()[1]
        if output is None and error is not None and error is not scope.error:
            if self.failed is None or self.failed[0] is not error:
                self.failed = error, scope
            return
        self.finished.add(module)
        if scope.handling is not None:
            with self._own_arithmetic(scope.name or ROOT), contextlib.suppress(StopIteration):
                scope.handling.send(output)
        if not scope.muted or scope.handling is not None:
            with self._own_arithmetic(scope.name or ROOT):
                self._finish_module(scope, args, output)

    def _finish_module(self, scope: Scope, args: Any, output: Any) -> None:
        tensors = [output] if isinstance(output, torch.Tensor) else list(tensors_in(output))
        unknown = [x for x in tensors if self.paths.trail_of(x) is None]
        if unknown:
            sources = [t for t in map(self.paths.trail_of, tensors_in(args)) if t is not None]
            for x in unknown:
                self.paths.give_unknown_trail(x, "?", sources)
        if is_script(scope.module):
            self.not_observed[f"{scope.name or ROOT}: a ScriptModule; its inside is not seen"] = (
                None
            )
            self.used.update(
                n for n, p in self.parameters.items() if _has_parameter(scope.module, p)
            )
        row = scope.row
        if row is None:
            return
        outputs = [x for x in tensors if measurable(x)]
        if not outputs:
            self.not_observed[f"{row.name}: {why_not_measurable(tensors)}"] = None
            return
        x = outputs[0]
        trail = self.paths.trails[x]
        assert trail is not None
        if scope.leaf and row.node < 0:
            # A module such as Identity calls nothing, but is still a layer.
            row.op = type(scope.module).__name__.lower()
            index = self.paths.node(row.op, [trail.node], row.index)
            trail = Trail(index, trail.axes, trail.why_no_units)
            self.paths.trails[x] = trail
        if row.node < 0:
            row.node = trail.node
            node = self.paths.nodes[row.node]
            if node.layer < 0:
                self.paths.nodes[row.node] = Node(node.op, node.inputs, row.index, node.parameter)
        if len(outputs) > 1 and not scope.leaf:
            row.unseen.append(f"only the first of its {len(outputs)} outputs is measured")
        self._measure_output(row, x, trail.axes)

    # -- calls --------------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        op, category = understood(func)
        quiet = op in QUIET and (self._loss_scope is None or op not in COMPARISONS)
        if quiet or self._is_outside_forward():
            return func(*args, **kwargs)
        scope = self._stack[-1] if self._stack else None
        where = f"{scope.name if scope is not None else ''}/{op}"
        handling: Generator[None, Any, None] | None = None
        with self._own_arithmetic(where):
            call = Call(op, category, func, args, kwargs)
            for x in call.tensors:
                name = self.paths.parameter(x)
                if name is not None:
                    self.used.add(name)
                elif x.requires_grad and x.is_leaf and self.with_gradients:
                    self._note_leaf(x, scope)
            handler = inside_leaf if scope is not None and scope.muted else HANDLERS[category]
            if scope is None and self._loss_scope is not None:
                handler = IN_LOSS.get(category, handler)
            started = handler(self, call)
            next(started)
            handling = started
        result = func(*args, **kwargs)
        if handling is not None:
            with self._own_arithmetic(where):
                with contextlib.suppress(StopIteration):
                    handling.send(result)
                if self._loss_scope is None:
                    self.paths.follow_samples(call.tensors, result)
        return result

    def _note_leaf(self, x: torch.Tensor, scope: Scope | None) -> None:
        """Remember a leaf that learns, is no parameter, and no input."""
        if id(x) in self.unknown_leaves or self.paths.trails[x] is not None or self.only_inputs:
            return
        if scope is None and self._loss_scope is not None:  # the loss's own weights
            return
        if scope is not None and any(p is x for p in scope.module._parameters.values()):
            return  # functional_call or FSDP put it in the place of a parameter
        self.unknown_leaves[id(x)] = UnknownLeaf(x, len(self.rows), location())

    def row(self, op: str) -> Row:
        """The row of the torch.nn layer that is running, or a new row for a call in a forward."""
        scope = self._stack[-1] if self._stack else None
        if scope is not None and scope.leaf and scope.row is not None:
            scope.row.op = op
            return scope.row
        row = self._new_row(self._call_name(op), "function")
        row.op = op
        return row

    def _call_name(self, op: str) -> str:
        """The name of this call: the k-th of its op in the module, or in the loss."""
        scope = self._stack[-1] if self._stack else self._loss_scope
        if scope is None:
            return f"/{op}"
        scope.counts[op] = count = scope.counts.get(op, 0) + 1
        return f"{scope.name}/{op}" + (f"#{count}" if count > 1 else "")

    def loss_call(self, call: Call) -> losses.SeenLossCall:
        name = self._call_name(call.op)
        return losses.seen(call, name, location(), self.paths)

    def twice(self, call: Call, row: Row, before: Made | None) -> None:
        if before is None or before.after or self.only_inputs:
            return
        if ops.named(before.op).makes and ops.named(call.op).makes:
            seen = losses.seen(call, row.name, row.location, self.paths)
            seen.options = dict(row.options)
            self.finish_loss_call(seen, None)

    def finish_loss_call(self, seen: losses.SeenLossCall, result: Any) -> None:
        if len(self.loss_calls) < losses.MOST_CALLS and not self.only_inputs:
            self.loss_calls.append(seen.done(result))

    def _new_row(self, name: str, kind: str) -> Row:
        row = Row(len(self.rows), name, kind, None if self.only_inputs else location())
        self.rows.append(row)
        self.tick(name)
        return row

    def finish(self, row: Row, result: Any, trails: list[Trail], axes: Axes, why: str) -> None:
        """After a call: set the trails of its outputs, and measure them for a row of its own."""
        row.node = self.paths.node(row.op, list(dict.fromkeys(t.node for t in trails)), row.index)
        tensors = [result] if isinstance(result, torch.Tensor) else list(tensors_in(result))
        for x in tensors:
            alike = x.shape == tensors[0].shape
            rest = Axes(None, None, axes.samples)
            self.paths.trails[x] = Trail(
                row.node, axes if alike else rest, why if alike else UNKNOWN
            )
        outputs = [x for x in tensors if measurable(x)]
        if row.kind == "function" and outputs:  # a module's output is measured as it leaves
            self._measure_output(row, outputs[0], axes)

    def _measure_output(self, row: Row, tensor: torch.Tensor, axes: Axes) -> None:
        if self.only_inputs:
            return
        row.shape = tuple(tensor.shape)
        row.dtype = str(tensor.dtype).removeprefix("torch.")
        row.output = self.measure(tensor, axes)
        if not self.gradients:
            return
        if tensor.requires_grad:
            row.why_no_gradient = NONE_CAME_TO_VIEW if tensor._is_view() else NONE_CAME
            row.grads = self._gradients(row.name, tensor, axes)
        else:
            row.why_no_gradient = FROZEN if self.with_gradients else GRADIENTS_OFF

    def _gradients(self, name: str, tensor: torch.Tensor, axes: Axes) -> list[int]:
        """Indices of the measurements of a tensor's gradient: one hook per tensor and version."""
        notes = self.paths.trails.notes(tensor)
        known: list[int] | None = notes.get(("gradient", axes))
        if known is not None:
            return known
        indices: list[int] = []
        notes["gradient", axes] = indices
        pooled = Axes(None, axes.batch, axes.samples)

        def hook(grad: torch.Tensor) -> None:
            if self._backward:
                with self._own_arithmetic(f"the gradient at {name}"):
                    indices.append(self.measure(grad, pooled, gradient=True))

        handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        self._handles.append(handle)
        return indices

    # -- numbers, trails, names ---------------------------------------------------------------

    def measure_input(self, row: Row, tensor: torch.Tensor, axes: Axes) -> None:
        """Measure what enters a layer."""
        if not self.only_inputs or axes.unit is not None:
            row.input = self.measure(tensor, axes)

    def measure_flat(
        self, row: Row, tensor: torch.Tensor, flat: Sequence[tuple[float, float]], axes: Axes
    ) -> None:
        row.flat = self.meter.flat(tensor, flat, axes, of=row.input)

    def remember_linear(self, out: torch.Tensor, x: Any, weight: Any, bias: Any) -> None:
        """Keep what the last linear layer read, until the next one; only if that is small."""
        fits = measurable(x) and measurable(out) and out.numel() <= 4 * chance.MOST_VALUES
        if fits and not x.is_complex() and 0 < x.numel() <= chance.MOST_VALUES:
            self._last_linear = weakref.ref(out), x, version(x), weight, bias
        else:
            self._last_linear = None

    def measure_chance(self, row: Row, z: torch.Tensor) -> None:
        """Count how many random units would be off, where ``z`` comes from a linear layer."""
        if self._last_linear is None or self.only_inputs:
            return
        out, x, read, weight, bias = self._last_linear
        if out() is z and version(x) == read and z.numel():
            self.measure_optional(
                row,
                "its chance of dead units",
                lambda: (chance.never_active(x, weight, bias, z), ""),
            )

    def measure_directions(self, row: Row, tensor: torch.Tensor, features: int) -> None:
        row.direction = self.meter.directions(tensor, features, of=row.input)

    def measure(self, tensor: torch.Tensor, axes: Axes, *, gradient: bool = False) -> int:
        """The index of the statistics of a tensor's present values; measured once."""
        notes = self.paths.trails.notes(whole(tensor))
        key = arrangement(tensor, axes), gradient
        index: int | None = notes.get(key)
        if index is None:
            all_of_it = not self.only_inputs
            index = notes[key] = self.meter.stats(
                tensor, axes, histogram=all_of_it, probe=all_of_it and not gradient
            )
        return index

    def add_input(self, name: str, tensor: torch.Tensor, samples: int) -> int | None:
        """Start a trail at one of the model's inputs; returns its measurement."""
        axes = self.paths.start(tensor, samples)
        index = None
        if tensor.is_nested or tensor.is_meta:
            self.not_observed[f"{name}: {why_not_measurable([tensor])}"] = None
            return None
        if not self.only_inputs:
            with self._own_arithmetic(name):
                index = self.measure(tensor, axes)
        return index

    def weight_use(self, call: Call, x: torch.Tensor, weight: Any, bias: Any) -> Weight | None:
        if not isinstance(weight, torch.Tensor) or self.only_inputs:
            return None
        name = self.paths.parameter(weight) or self._own_name(weight, "weight")
        bias_name = None
        if isinstance(bias, torch.Tensor):
            bias_name = self.paths.parameter(bias) or self._own_name(bias, "bias")
        if name is None:
            return None
        known = self.parameters.get(name)
        return use_of(call.op, x, weight, known, name, bias_name, call.bound)

    def _own_name(self, tensor: torch.Tensor, name: str) -> str | None:
        """The name of a parameter that functional_call or FSDP replaced in a torch.nn layer."""
        scope = self._stack[-1] if self._stack else None
        if scope is None or not scope.leaf or getattr(scope.module, name, None) is not tensor:
            return None
        prefix = self.names[scope.module]
        full = f"{prefix}.{name}" if prefix else name
        self.used.add(full)
        return full

    def batches_tracked(self) -> float:
        module = self._stack[-1].module if self._stack else None
        count = getattr(module, "num_batches_tracked", None)
        return math.nan if count is None else float(count)

    # -- the result ---------------------------------------------------------------------------

    def inputs(self) -> dict[str, TensorStats]:
        """What entered the layers, by their names."""
        numbers = self.meter.collect()
        return {row.name: numbers[row.input] for row in self.rows if row.input is not None}

    def layers(self) -> list[Layer]:
        """All rows as plain data; waits for the device once."""
        self.numbers = self.meter.collect()
        self._separate_loss()
        measured = [row for row in self.rows if row.output is not None]
        position = {row.index: at for at, row in enumerate(measured)}
        for at, node in enumerate(self.paths.nodes):
            # Of several calls inside one layer of torch.nn, the last one is the layer's node.
            is_last = node.layer >= 0 and self.rows[node.layer].node == at
            layer = position.get(node.layer, -1) if is_last else -1
            if layer != node.layer:
                self.paths.nodes[at] = Node(node.op, node.inputs, layer, node.parameter)
        layers = []
        for row in measured:
            layer_data, running = layer_of(row, self.numbers, gradients=self.gradients)
            layers.append(layer_data)
            if running is not None:
                self.running_statistics[row.name] = running
        return layers

    def _separate_loss(self) -> None:
        """Take the loss's nodes off the network's, but for those that a layer run in it needs."""
        began, nodes = self._loss_began, self.paths.nodes
        if began < 0:
            return
        kept = set(range(began))
        for row in self.rows:
            queue = [row.node] if row.node >= began else []
            while queue:
                node = queue.pop()
                if node not in kept:
                    kept.add(node)
                    queue += nodes[node].inputs
        for at, call in enumerate(self.loss_calls):
            reads = losses.nearest(call.nodes, nodes, kept)
            self.loss_calls[at] = dataclasses.replace(call, nodes=reads)
        if len(kept) > began:
            new = {node: at for at, node in enumerate(sorted(kept))}
            for row in self.rows:
                row.node = new.get(row.node, row.node)
            self.loss_calls = [
                dataclasses.replace(call, nodes=tuple(new[n] for n in call.nodes))
                for call in self.loss_calls
            ]
            self.paths.nodes = [
                dataclasses.replace(nodes[n], inputs=tuple(new[i] for i in nodes[n].inputs))
                for n in sorted(kept)
            ]
        else:
            del nodes[began:]
        self._loss_began = -1


def _failure_text(error: Exception) -> str:
    return f"nndiag could not measure it ({type(error).__name__}: {error})"


def _has_parameter(module: nn.Module, parameter: nn.Parameter) -> bool:
    return any(p is parameter for p in module.parameters())


def _is_users_child(module: nn.Module, outer: Scope) -> bool:
    """Whether a user added this module to a torch.nn layer, where a hook of theirs calls it."""
    return (
        outer.leaf
        and not outer.muted
        and bool(outer.module._parameters)
        and any(child is module for child in outer.module._modules.values())
        and not isinstance(module, ParametrizationList)
    )
