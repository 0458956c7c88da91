"""Watch one forward and backward: modules for scope, calls for what is computed, tensor hooks
for gradients. Nothing is kept alive but small vectors of numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from nndiag import theory
from nndiag.batch import tensors_in
from nndiag.capture import opaque
from nndiag.capture.calls import bind, options, understood
from nndiag.capture.lineage import (
    UNKNOWN,
    Trail,
    Trails,
    elementwise,
    reduced,
    reshaped,
    version,
    viewed,
)
from nndiag.capture.locate import location
from nndiag.measure import Axes, Pending, collect, measure, measure_directions, measure_flat
from nndiag.stats import Layer, Node, TensorStats, Weight

ROOT = "(root)"
HIDDEN_BY_CHECKPOINT = "gradient not observed: the output did not require one (checkpointed, or under no_grad)"
NO_GRADIENT_CAME = "gradient not observed: none reached it, or it was changed in place as a view"


@dataclass
class _Row:
    """A layer while it is being watched; numbers are indices into ``Recorder.pending``."""

    name: str
    kind: str
    location: str | None
    op: str = "module"
    node: int = -1
    shape: tuple[int, ...] = ()
    dtype: str = ""
    axes: Axes = field(default_factory=Axes)
    options: dict[str, float] = field(default_factory=dict)
    weight: Weight | None = None
    output: int | None = None
    input: int | None = None
    direction: int | None = None
    flat: int | None = None
    grads: list[int] = field(default_factory=list)
    facts: list[int] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    hooked: bool = False
    # Identity of the tensor that was measured as the output: another one at a module's exit means
    # that the module did more than the call that was understood.
    output_id: int = 0


@dataclass
class _Scope:
    """A module's forward that is under way."""

    module: nn.Module
    name: str
    counts: Counter[str] = field(default_factory=Counter)
    row: _Row | None = None
    leaf: bool = False  # one of torch.nn's own: the calls inside belong to its row
    muted: bool = False  # inside such a leaf


class Recorder(TorchFunctionMode):
    """Records one batch. Use as ``with recorder.watching(): model(...)``, then ``backward``."""

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[nn.Module, str],
        parameters: Mapping[int, str],
        *,
        gradients: bool,
        tick: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.parameters = parameters
        self.gradients = gradients
        self.tick = tick
        self.rows: list[_Row] = []
        self.nodes: list[Node] = []
        self.pending: list[Pending] = []
        self.not_observed: dict[str, None] = {}
        self.called: set[nn.Module] = set()
        self.used: set[str] = set()
        self.trails = Trails()
        self._derived: dict[int, tuple[Any, str]] = {}
        self._calls: Counter[nn.Module] = Counter()
        self._stack: list[_Scope] = []
        self._handles: list[Any] = []
        self._thread = threading.get_ident()
        self._busy = False
        self.failed: _Scope | None = None  # the innermost module that raised

    # -- scopes -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Global module hooks and this mode, for as long as the forward runs.

        Global hooks, not hooks on the model's modules: they see ScriptModules too, which refuse
        hooks of their own, and nothing on the model has to be removed again.
        """
        with contextlib.ExitStack() as undo:
            before = torch_module.register_module_forward_pre_hook(self._enter)
            undo.callback(before.remove)
            after = torch_module.register_module_forward_hook(
                self._leave, with_kwargs=True, always_call=True
            )
            undo.callback(after.remove)
            undo.callback(self._stack.clear)
            with self:
                yield

    def close(self) -> None:
        """Remove the tensor hooks: a tensor the model keeps must not keep us."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread or module not in self.names or self._busy:
            return
        outer = self._stack[-1] if self._stack else None
        if outer is not None and (outer.leaf or outer.muted):
            self.called.add(module)
            self._stack.append(_Scope(module, outer.name, muted=True))
            return
        self.called.add(module)
        self._calls[module] += 1
        count = self._calls[module]
        name = self.names[module] + (f"@{count}" if count > 1 else "")
        scope = _Scope(module, name, leaf=is_torch_leaf(module))
        if scope.leaf or not any(True for _ in module.children()) or is_script(module):
            kind = getattr(module, "original_name", None) or type(module).__name__
            scope.row = _Row(name or ROOT, str(kind), location(2))
            self.rows.append(scope.row)
            self.tick(scope.row.name)
        self._stack.append(scope)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if threading.get_ident() != self._thread or self._busy:
            return
        if not any(scope.module is module for scope in self._stack):
            return
        while True:  # a scope an exception left open closes with the one around it
            scope = self._stack.pop()
            if scope.module is module:
                break
        if output is None and sys.exc_info()[0] is not None:
            self.failed = self.failed or scope
            return
        if scope.muted:
            return
        with self._off():
            self._finish_module(scope, args, kwargs, output)

    def _finish_module(self, scope: _Scope, args: Any, kwargs: Any, output: Any) -> None:
        outputs = [t for t in tensors_in(output) if _measurable(t)]
        if is_script(scope.module):
            self.not_observed[f"{scope.name or ROOT}: a ScriptModule; its inside is not seen"] = None
        inputs = [t for t in tensors_in((args, kwargs)) if self.trails[t] is not None]
        for tensor in outputs:
            if self.trails[tensor] is None:
                self._give_node(tensor, "?", inputs)
        row = scope.row
        if row is None or not outputs:
            if row is not None and row.output is None:
                self.rows.remove(row)
                self.not_observed[f"{row.name}: its output is no floating-point tensor"] = None
            return
        tensor = outputs[0]
        if row.output is None or row.output_id != id(tensor):
            trail = self.trails[tensor]
            assert trail is not None
            if row.op == "module" and scope.leaf:
                # Identity and its like: no call inside, yet a layer of its own.
                row.op = type(scope.module).__name__.lower()
                trail = Trail(self._node(row.op, [trail.node], row), trail.axes, trail.why_no_units)
                self.trails[tensor] = trail
            row.node = trail.node if row.node < 0 else row.node
            self._measure_output(row, tensor, trail)

    @contextlib.contextmanager
    def _off(self) -> Iterator[None]:
        """Our own arithmetic is no part of the model."""
        self._busy = True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self._busy = False

    # -- calls --------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op, category = understood(func)
        scope = self._stack[-1] if self._stack else None
        if self._busy or (scope is not None and scope.muted) or op in _QUIET:
            return func(*args, **kwargs)
        handler = self._handlers.get(category)
        if handler is None:
            result = func(*args, **kwargs)
            self._unknown(op, args, kwargs, result)
            return result
        return handler(self, op, func, args, kwargs)

    def _activation(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        bound = bind(op, args, kwargs, getattr(func, "__name__", ""))
        z = bound.get("input")
        shaping = options(op, bound)
        trail = self.trails[z] if isinstance(z, torch.Tensor) else None
        if shaping is None or trail is None or not _measurable(z):
            return self._join(op, func, args, kwargs)
        row = self._row(op)
        row.op, row.options = op, shaping
        with self._off():
            # Before the call: it may work in place.
            row.input = self._measure(z, trail.axes)
            act = theory.activation(op, **shaping)
            if act is not None and act.flat:
                row.flat = self._add(measure_flat(z, act.flat, trail.axes))
                if trail.axes.unit is None:
                    row.unseen.append(f"per unit: {trail.why_no_units}")
        result = func(*args, **kwargs)
        axes = trail.axes
        if op == "glu":
            axes = Axes(axes.unit, axes.batch, axes.samples)
        self._finish_call(row, result, [trail], axes, trail.why_no_units)
        return result

    def _softmax(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        bound = bind(op, args, kwargs)
        z = bound["input"]
        trail = self.trails[z]
        if trail is None or not _measurable(z):
            return func(*args, **kwargs)
        row = self._row(op)
        row.op = op
        dim = bound.get("dim")
        dim = dim if isinstance(dim, int) else -1
        with self._off():
            row.facts.append(self._add(opaque.one_hot_rows(z, dim)))
        result = func(*args, **kwargs)
        self._finish_call(row, result, [trail], trail.axes, trail.why_no_units)
        return result

    def _weighted(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        bound = bind(op, args, kwargs)
        x, weight, bias = bound.get("input"), bound.get("weight"), bound.get("bias")
        if op == "addmm":
            bias, x, weight = x, bound.get("mat1"), bound.get("mat2")
        return self._affine(op, func, args, kwargs, x, weight, bias)

    def _affine(
        self, op: str, func: Any, args: Any, kwargs: Any, x: Any, weight: Any, bias: Any
    ) -> Any:
        scope = self._stack[-1] if self._stack else None
        name = self._parameter(weight)
        if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor):
            return func(*args, **kwargs)
        if name is None and scope is not None and scope.leaf and scope.module is not self.model:
            name = f"{scope.name}.weight"
        trail = self.trails[x] or Trail(self._node("?", []))
        row = self._row("linear" if op in ("addmm", "matmul") else op)
        row.op = "linear" if op in ("addmm", "matmul") else op
        with self._off():
            bound = bind(op, args, kwargs)
            row.weight = _weight_use(op, x, weight, name, self._parameter(bias), bound)
            if _measurable(x) and op not in ("embedding", "embedding_bag"):
                features = 1 if op.startswith("conv") and x.dim() > 2 else x.dim() - 1
                if op.startswith("conv") and x.dim() == int(op[-2]) + 1:
                    features = 0
                axes = Axes(features, trail.axes.batch, trail.axes.samples)
                row.input = self._measure(x, axes if trail.axes.unit is None else trail.axes)
                row.direction = self._add(measure_directions(x, features))
        result = func(*args, **kwargs)
        unit = result.dim() - 1
        if op.startswith("conv"):
            unit = result.dim() - 1 - int(op[-2])
        axes = Axes(unit, trail.axes.batch, trail.axes.samples)
        if op == "embedding_bag":
            axes = Axes(unit, 0, result.shape[0])
        self._finish_call(row, result, [trail], axes, "")
        return result

    def _norm(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        bound = bind(op, args, kwargs)
        x = bound["input"]
        trail = self.trails[x]
        if trail is None or not _measurable(x):
            return func(*args, **kwargs)
        self._parameter(bound.get("weight")), self._parameter(bound.get("bias"))
        row = self._row(op)
        row.op = op
        axes = trail.axes
        if op in ("batch_norm", "instance_norm", "group_norm") and x.dim() > 1:
            axes = Axes(1, axes.batch, axes.samples)
        elif axes.unit is None and op in ("layer_norm", "rms_norm"):
            axes = Axes(x.dim() - 1, axes.batch, axes.samples)
        training = bool(bound.get("training", False))
        with self._off():
            row.input = self._measure(x, axes)
            running = bound.get("running_mean"), bound.get("running_var")
            if op == "batch_norm" and not training and None not in running:
                row.facts.append(self._add(_running(*running, self._tracked())))
        row.options = {"training": float(training)} if op == "batch_norm" else {}
        result = func(*args, **kwargs)
        self._finish_call(row, result, [trail], axes, "")
        return result

    def _kept(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        x = bind(op, args, kwargs).get("input")
        trail = self.trails[x] if isinstance(x, torch.Tensor) else None
        if trail is None:
            return func(*args, **kwargs)
        row = self._row(op)
        row.op = op
        result = func(*args, **kwargs)
        out = next(tensors_in(result), None)
        axes = trail.axes
        if out is not None and out.dim() != x.dim():
            axes = Axes(None, None, axes.samples)
        elif op.startswith("pixel"):
            axes = Axes(None, axes.batch, axes.samples)
        self._finish_call(row, result, [trail], axes, trail.why_no_units)
        return result

    def _attention(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        bound = bind(op, args, kwargs)
        query, key, value = bound["input"], bound["key"], bound["value"]
        trails = [t for t in (self.trails[x] for x in (query, key, value)) if t is not None]
        if not trails:
            return func(*args, **kwargs)
        row = self._row(op)
        row.op = op
        axes = trails[0].axes
        with self._off():
            facts, why = opaque.attention_rows(op, bound)
            if facts is not None:
                row.facts.append(self._add(facts))
            else:
                row.unseen.append(f"attention weights: {why}")
            if op == "multi_head_attention_forward":
                for part in ("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias",
                             "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v"):  # fmt: skip
                    self._parameter(bound.get(part))
                row.unseen.append("its projections run inside one call: their outputs are not seen")
                batch = axes.batch
                if query.dim() == 3 and batch in (0, None) and axes.samples == query.shape[0]:
                    batch = 1 if query.shape[1] != 1 or batch is None else batch
                samples = query.shape[1] if query.dim() == 3 else 1
                axes = Axes(query.dim() - 1, batch, samples if batch == 1 else axes.samples)
        if op == "scaled_dot_product_attention":
            batch = axes.batch if axes.batch is not None else None
            axes = Axes(None, batch, axes.samples)
        result = func(*args, **kwargs)
        self._finish_call(row, result, trails, axes, "heads are split")
        return result

    def _recurrent(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        inputs = [t for t in tensors_in((args, tuple(kwargs.values())))]
        for t in inputs:
            self._parameter(t)
        trails = [t for t in (self.trails[x] for x in inputs) if t is not None]
        if not trails:
            return func(*args, **kwargs)
        row = self._row(op)
        row.op = op
        result = func(*args, **kwargs)
        out = next(tensors_in(result))
        x = inputs[0]
        samples, batch = trails[0].axes.samples, trails[0].axes.batch
        if not op.endswith("_cell") and x.dim() == 3 and isinstance(args[-1], bool):
            batch = 0 if args[-1] else 1
            samples = x.shape[batch]
        axes = Axes(out.dim() - 1, batch if out.dim() == x.dim() else None, samples)
        with self._off():
            facts, why = opaque.gates(op, args, result)
            if facts is not None:
                row.facts.append(self._add(facts))
            if why:
                row.unseen.append(why)
        self._finish_call(row, result, trails, axes, "")
        return result

    def _join(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [t for t in tensors_in((args, tuple(kwargs.values())))]
        if op == "matmul" and len(tensors) == 2 and self._parameter(tensors[1]) is not None:
            if self.trails[tensors[0]] is not None and tensors[1].dim() == 2:
                return self._affine(op, func, args, kwargs, tensors[0], tensors[1], None)
        parents = [(t, x.shape) for x in tensors if (t := self.trails[x]) is not None]
        for t in tensors:
            self._parameter(t)
        derived = not parents and tensors and all(self._parameter(t) is not None for t in tensors)
        result = func(*args, **kwargs)
        outputs = [t for t in tensors_in(result) if _measurable(t)]
        if op == "setitem" and tensors:
            outputs = [tensors[0]] if _measurable(tensors[0]) else []
        if derived:
            for out in outputs:
                self._derive(out, self._parameter(tensors[0]))
            return result
        if not parents or not outputs:
            return result
        nodes = list(dict.fromkeys(t.node for t, _ in parents))
        with_parameter = len(tensors) > len(parents) and any(
            self._parameter(t) is not None for t in tensors
        )
        linear = op in ("add", "sub") or (op in ("mul", "div") and not with_parameter)
        for out in outputs:
            alike = [(t, s) for t, s in parents if len(s) <= out.dim()]
            axes = elementwise(alike, out.shape) if op in _ELEMENTWISE else Axes(
                None, None, max(t.axes.samples for t, _ in parents)
            )
            if op in ("matmul", "einsum"):
                axes = Axes(None, _leading(parents, out), axes.samples)
            elif op == "cat":
                axes = _concatenated(parents, out, axes)
            why = UNKNOWN if axes.unit is None else ""
            if len(nodes) == 1 and len(parents) == 1 and linear:
                self.trails[out] = Trail(nodes[0], axes, why or parents[0][0].why_no_units)
            else:
                joined = self._node(_labelled(op, with_parameter, len(nodes)), nodes)
                self.trails[out] = Trail(joined, axes, why)
        return result

    def _same(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        x = args[0] if args else None
        if isinstance(x, torch.Tensor) and isinstance(result, torch.Tensor) and result is not x:
            trail = self.trails[x]
            if trail is not None and _measurable(result) and result.shape == x.shape:
                self.trails[result] = trail
            elif trail is None and (name := self._parameter(x)) is not None:
                self._derive(result, name)
        return result

    def _reshape(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs.get("input")
        before = x.shape
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            trail = self.trails[x]
            if trail is not None and result is not x:
                moved = reshaped(trail, before, result.shape)
                self._pass_through(op, x, result, moved)
            elif trail is None and (name := self._parameter(x)) is not None:
                self._derive(result, name)
        return result

    def _view(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs.get("input")
        result = func(*args, **kwargs)
        if not isinstance(x, torch.Tensor):
            return result
        outputs = [result] if isinstance(result, torch.Tensor) else list(tensors_in(result))
        trail = self.trails[x]
        if trail is None:
            if (name := self._parameter(x)) is not None:
                for out in outputs:
                    self._derive(out, name)
            return result
        with self._off():
            if op in ("expand_as",):
                rest: tuple[Any, ...] = (*result.shape,)
                trails = viewed(trail, x.shape, lambda token: token.expand(*rest))
            elif any(isinstance(a, torch.Tensor) for a in tensors_in((args[1:], dict(kwargs)))):
                trails = []
            elif kwargs.get("input") is x:
                others = {k: v for k, v in kwargs.items() if k != "input"}
                trails = viewed(trail, x.shape, lambda token: func(token, **others))
            else:
                trails = viewed(trail, x.shape, lambda token: func(token, *args[1:], **kwargs))
        if len(trails) != len(outputs):
            lost = Trail(trail.node, Axes(None, None, trail.axes.samples), UNKNOWN)
            trails = [lost] * len(outputs)
        for out, moved in zip(outputs, trails, strict=True):
            self._pass_through(op, x, out, moved)
        return result

    def _pass_through(self, op: str, x: torch.Tensor, out: torch.Tensor, trail: Trail) -> None:
        """A call that only moves values: no node; a torch.nn leaf made of it is still a layer."""
        if out is not x or self.trails[out] is not None:
            self.trails[out] = trail

    def _reduce(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        bound = bind(op, args, kwargs)
        x = bound.get("input")
        result = func(*args, **kwargs)
        trail = self.trails[x] if isinstance(x, torch.Tensor) else None
        if trail is None or not isinstance(result, torch.Tensor) or not _measurable(result):
            return result
        if op == "mean":
            moved = reduced(trail, x.shape, bound.get("dim"), bool(bound.get("keepdim", False)))
        else:
            moved = Trail(trail.node, Axes(None, None, trail.axes.samples), UNKNOWN)
        self.trails[result] = dataclasses.replace(moved, node=self._node(op, [trail.node]))
        return result

    def _unknown(self, op: str, args: Any, kwargs: Any, result: Any) -> None:
        inputs = [t for t in tensors_in((args, dict(kwargs)), depth=3)]
        parents = [t for t in inputs if self.trails[t] is not None]
        for t in inputs:
            self._parameter(t)
        for out in tensors_in(result, depth=3):
            if _measurable(out) and parents and self.trails[out] is None:
                self._give_node(out, f"?{op}", parents)
            elif not parents and inputs and (name := self._parameter(inputs[0])) is not None:
                self._derive(out, name)

    _handlers: Mapping[str, Callable[..., Any]] = {
        "activation": _activation,
        "softmax": _softmax,
        "weighted": _weighted,
        "norm": _norm,
        "kept": _kept,
        "attention": _attention,
        "recurrent": _recurrent,
        "join": _join,
        "same": _same,
        "reshape": _reshape,
        "view": _view,
        "reduce": _reduce,
    }

    # -- rows, nodes, numbers -----------------------------------------------------------------

    def _row(self, op: str) -> _Row:
        """The row of the torch.nn leaf we are in, or a new one for a call in a forward."""
        scope = self._stack[-1] if self._stack else None
        if scope is not None and scope.leaf and scope.row is not None:
            return scope.row
        name = scope.name if scope is not None else ""
        count = 1
        if scope is not None:
            scope.counts[op] += 1
            count = scope.counts[op]
        row = _Row(f"{name}/{op}" + (f"#{count}" if count > 1 else ""), "function", location(4))
        self.rows.append(row)
        self.tick(row.name)
        return row

    def _finish_call(
        self, row: _Row, result: Any, trails: list[Trail], axes: Axes, why: str
    ) -> None:
        out = next((t for t in tensors_in(result) if _measurable(t)), None)
        if out is None:
            if row in self.rows and row.kind == "function":
                self.rows.remove(row)
            return
        inputs = list(dict.fromkeys(t.node for t in trails))
        row.node = self._node(row.op, inputs, row)
        trail = Trail(row.node, axes, why)
        for other in tensors_in(result):
            self.trails[other] = trail
        self._measure_output(row, out, trail)

    def _measure_output(self, row: _Row, tensor: torch.Tensor, trail: Trail) -> None:
        with self._off():
            row.axes, row.shape = trail.axes, tuple(tensor.shape)
            row.dtype = str(tensor.dtype).removeprefix("torch.")
            row.output = self._measure(tensor, trail.axes)
            row.output_id = id(tensor)
            if not self.gradients:
                return
            if tensor.requires_grad and not tensor.is_leaf:
                row.hooked = True
                self._handles.append(tensor.register_hook(self._gradient_hook(row, trail.axes)))

    def _gradient_hook(self, row: _Row, axes: Axes) -> Callable[[torch.Tensor], None]:
        row.grads = grads = []

        def hook(grad: torch.Tensor) -> None:
            grads.append(self._add(measure(grad, axes)))

        return hook

    def _measure(self, tensor: torch.Tensor, axes: Axes) -> int:
        known = self.trails.stats(tensor)
        if known is not None:
            return known
        index = self._add(measure(tensor, axes))
        self.trails.set_stats(tensor, index)
        return index

    def _add(self, pending: Pending) -> int:
        self.pending.append(pending)
        return len(self.pending) - 1

    def _node(self, op: str, inputs: list[int], row: _Row | None = None) -> int:
        layer = -1
        if row is not None:
            layer = next(i for i in range(len(self.rows) - 1, -1, -1) if self.rows[i] is row)
        self.nodes.append(Node(op, tuple(inputs), layer))
        return len(self.nodes) - 1

    def _give_node(self, tensor: torch.Tensor, op: str, inputs: list[torch.Tensor]) -> None:
        trails = [t for t in (self.trails[x] for x in inputs) if t is not None]
        nodes = list(dict.fromkeys(t.node for t in trails))
        samples = max((t.axes.samples for t in trails), default=1)
        batch = None
        if tensor.dim() and any(t.axes.batch == 0 for t in trails) and tensor.shape[0] == samples:
            batch = 0
        self.trails[tensor] = Trail(self._node(op, nodes), Axes(None, batch, samples), UNKNOWN)

    def add_input(self, name: str, tensor: torch.Tensor, samples: int) -> int | None:
        """Start a trail at one of the model's inputs; returns its measurement."""
        node = self._node("input", [])
        batch = 0 if tensor.dim() and tensor.shape[0] == samples else None
        unit = 1 if tensor.dim() == 2 and batch == 0 and tensor.is_floating_point() else None
        axes = Axes(unit, batch, samples)
        self.trails[tensor] = Trail(node, axes)
        return self._measure(tensor, axes) if tensor.numel() else None

    def _parameter(self, tensor: Any) -> str | None:
        """The name of the parameter a tensor is or is a view of."""
        if not isinstance(tensor, torch.Tensor):
            return None
        name = self.parameters.get(id(tensor))
        if name is None:
            entry = self._derived.get(id(tensor))
            name = entry[1] if entry is not None and entry[0]() is tensor else None
        if name is not None:
            self.used.add(name)
        return name

    def _derive(self, tensor: Any, name: str | None) -> None:
        import weakref

        if name is not None and isinstance(tensor, torch.Tensor):
            self._derived[id(tensor)] = (weakref.ref(tensor), name)

    def _tracked(self) -> float:
        module = self._stack[-1].module if self._stack else None
        count = getattr(module, "num_batches_tracked", None)
        return math.nan if count is None else float(count)

    # -- the result ---------------------------------------------------------------------------

    def layers(self) -> list[Layer]:
        """All rows as plain data; waits for the device once."""
        numbers = collect(self.pending)
        layers: list[Layer] = []
        index_of: dict[int, int] = {}
        for position, row in enumerate(self.rows):
            if row.output is None:
                continue
            index_of[position] = len(layers)
            layers.append(self._layer(row, numbers))
        self.nodes = [
            dataclasses.replace(n, layer=index_of.get(n.layer, -1)) for n in self.nodes
        ]
        self.numbers = numbers
        return layers

    def _layer(self, row: _Row, numbers: list[Any]) -> Layer:
        assert row.output is not None
        unseen = list(row.unseen)
        grad: TensorStats | None = None
        for g in row.grads if self.gradients else ():
            grad = numbers[g] if grad is None else grad.merge(numbers[g])
        if self.gradients and grad is None:
            unseen.append(NO_GRADIENT_CAME if row.hooked else HIDDEN_BY_CHECKPOINT)
        entering: TensorStats | None = None if row.input is None else numbers[row.input]
        if entering is not None and row.direction is not None:
            entering = dataclasses.replace(entering, direction=numbers[row.direction])
        facts: dict[str, float] = {}
        for f in row.facts:
            found = numbers[f]
            if isinstance(found, _Running):
                found = found.compare(entering)
            facts.update(found)
        return Layer(
            name=row.name,
            kind=row.kind,
            op=row.op,
            shape=row.shape,
            node=row.node,
            output=numbers[row.output],
            input=entering,
            flat=None if row.flat is None else numbers[row.flat],
            grad=grad,
            location=row.location,
            options=row.options,
            weight=row.weight,
            facts=facts,
            unseen=tuple(unseen),
            dtype=row.dtype,
        )


_QUIET = frozenset(
    ("size", "dim", "shape", "dtype", "device", "numel", "stride", "is_contiguous", "requires_grad",
     "grad_fn", "grad", "is_cuda", "is_nested", "ndim", "ndimension", "item", "tolist", "__len__",
     "len", "backward", "register_hook", "is_floating_point", "is_complex", "data_ptr", "layout",
     "is_sparse", "is_quantized", "is_leaf", "_version", "names", "untyped_storage", "element_size",
     "get_device", "is_meta", "repr", "format", "hash", "bool", "int", "index", "isnan", "isinf",
     "isfinite", "any", "all", "eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "_base",
     "storage_offset", "is_same_size", "is_pinned", "nonzero", "count_nonzero", "equal", "is_inference",
     "new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "zeros_like", "ones_like",
     "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "bernoulli", "uniform",
     "normal", "retain_grad", "retains_grad", "_set_grad_enabled", "set_grad_enabled", "contains", "iter")
)  # fmt: skip
_ELEMENTWISE = frozenset(
    ("add", "sub", "mul", "div", "where", "lerp", "addcmul", "addcdiv", "maximum", "minimum", "pow",
     "exp", "log", "sqrt", "rsqrt", "sin", "cos", "abs", "square", "reciprocal", "log1p", "expm1",
     "cumsum", "cat", "setitem", "clamp", "threshold", "prelu")
)  # fmt: skip


def _labelled(op: str, with_parameter: bool, parents: int) -> str:
    # A product with a parameter is a learned scale (LayerScale, ReZero), not a gate.
    return f"{op}:parameter" if op in ("mul", "div") and with_parameter and parents == 1 else op


def _leading(parents: list[tuple[Trail, torch.Size]], out: torch.Tensor) -> int | None:
    trail, shape = parents[0]
    axis = trail.axes.batch
    if axis is None or axis >= out.dim() - 1 or len(shape) != out.dim():
        return None
    return axis if out.shape[axis] == shape[axis] else None


def _concatenated(
    parents: list[tuple[Trail, torch.Size]], out: torch.Tensor, axes: Axes
) -> Axes:
    units = {t.axes.unit for t, s in parents if len(s) == out.dim()}
    batch = {t.axes.batch for t, s in parents if len(s) == out.dim()}
    unit = units.pop() if len(units) == 1 else None
    first = batch.pop() if len(batch) == 1 else None
    if first is not None and any(s[first] != out.shape[first] for _, s in parents):
        first = None  # concatenated along the samples
    return Axes(unit, first, axes.samples)


def _measurable(tensor: Any) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and (tensor.is_floating_point() or tensor.is_complex())
        and not tensor.is_nested
        and tensor.device.type != "meta"
    )


def is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


# Modules of torch.nn that call other modules: scopes, not leaves.
_SCOPES = ("container", "transformer", "adaptive")


def is_torch_leaf(module: nn.Module) -> bool:
    """One of torch.nn's own layers with its own forward: one row, its inside belongs to it."""
    if is_script(module):
        return False
    home = getattr(type(module).forward, "__module__", "") or ""
    if not home.startswith(("torch.nn.modules.", "torch.ao.nn.")):
        return False
    return home.rpartition(".")[2] not in _SCOPES


def _weight_use(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    name: str | None,
    bias: str | None,
    bound: Mapping[str, Any],
) -> Weight | None:
    shape = tuple(weight.shape)
    if name is None or len(shape) < 2:
        return None
    if op in ("addmm", "matmul"):
        return Weight(name, bias, shape[0], shape[1], unit_axis=1)
    if op == "linear":
        return Weight(name, bias, shape[1], shape[0])
    if op == "bilinear":
        return Weight(name, bias, shape[1] * shape[2], shape[0])
    if op.startswith("embedding"):
        return Weight(name, None, 1, shape[1], unit_axis=1)
    taps = math.prod(shape[2:])
    if op.startswith("conv_transpose"):
        groups = int(bound.get("groups", 1) or 1)
        strides = math.prod(_tuple(bound.get("stride", 1), len(shape) - 2))
        return Weight(
            name, bias, max(1, shape[0] // groups * taps // strides), shape[1] * taps, unit_axis=1
        )
    spatial = tuple(x.shape[-(len(shape) - 2) :])
    coverage = _coverage(spatial, shape[2:], bound)
    return Weight(name, bias, shape[1] * taps, shape[0] * taps, coverage=coverage)


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)
    return values * n if len(values) == 1 else values


def _coverage(spatial: tuple[int, ...], kernel: tuple[int, ...], bound: Mapping[str, Any]) -> float:
    """Share of a convolution's taps that fall on the input rather than on its zero padding."""
    n = len(kernel)
    stride, dilation = _tuple(bound.get("stride", 1), n), _tuple(bound.get("dilation", 1), n)
    padding = bound.get("padding", 0)
    if padding == "valid":
        return 1.0
    pads = (
        tuple((d * (k - 1)) // 2 for d, k in zip(dilation, kernel, strict=True))
        if padding == "same"
        else _tuple(padding, n)
    )
    share = 1.0
    for size, k, s, d, p in zip(spatial, kernel, stride, dilation, pads, strict=True):
        outputs = max(1, (size + 2 * p - d * (k - 1) - 1) // s + 1)
        taps = np.arange(outputs)[:, None] * s - p + np.arange(k)[None, :] * d
        share *= float(((taps >= 0) & (taps < size)).mean())
    return share


@dataclass(frozen=True)
class _Running:
    """BatchNorm's running statistics in eval mode, to be held against this batch's."""

    mean: np.ndarray
    variance: np.ndarray
    tracked: float

    def compare(self, entering: TensorStats | None) -> dict[str, float]:
        if entering is None or entering.units is None or len(entering.units) != len(self.mean):
            return {}
        sd = np.sqrt(np.maximum(self.variance, 1e-12))
        shift = np.abs(entering.units.mean - self.mean) / sd
        here = np.maximum(entering.units.variance, 1e-12)
        ratio = np.median(here / np.maximum(self.variance, 1e-12))
        return {
            "running_mean_shift": float(np.median(shift)),
            "running_variance_ratio": float(ratio),
            "batches_tracked": self.tracked,
        }


def _running(mean: torch.Tensor, variance: torch.Tensor, tracked: float) -> Pending:
    wide = torch.cat([mean.detach().double(), variance.detach().double()])
    half = mean.numel()
    return Pending(wide, lambda v: _Running(v[:half].copy(), v[half:].copy(), tracked))


__all__ = ["ROOT", "Recorder", "is_torch_leaf", "version"]
