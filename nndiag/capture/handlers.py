"""For each category of calls a handler, which measures its inputs and outputs.

A handler runs up to its ``yield`` before the call, while values that the call may overwrite are
still there. The ``yield`` returns the call's result. A handler never makes the call itself: if it
fails, the model still runs as it would without nndiag.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import wraps
from typing import Any, Protocol

import torch

from nndiag import activations, ops
from nndiag.batch import tensors_in
from nndiag.capture import opaque
from nndiag.capture.calls import Call, options
from nndiag.capture.lineage import (
    UNKNOWN,
    Trail,
    elementwise,
    joined,
    reduced,
    reshaped,
    viewed,
)
from nndiag.capture.losses import SeenLossCall
from nndiag.capture.made import (
    alike,
    by_activation,
    by_softmax,
    carried,
    softmax_axis,
    softmax_options,
)
from nndiag.capture.paths import Paths, measurable
from nndiag.capture.rows import Row
from nndiag.capture.weights import running_statistics, spatial
from nndiag.experiment import Made
from nndiag.layout import Axes, Pending
from nndiag.stats import Weight

__all__ = [
    "COMPARISONS",
    "HANDLERS",
    "HEADS",
    "IN_LOSS",
    "QUIET",
    "Handler",
    "Recording",
    "activation",
    "activation_in_loss",
    "affine",
    "attention",
    "inside_leaf",
    "join",
    "join_in_loss",
    "keeps_axes",
    "loss",
    "norm",
    "of_values",
    "recurrent",
    "reduce",
    "reshape",
    "same_values",
    "softmax",
    "unknown",
    "view",
    "weighted",
]

HEADS = "its heads are axes of their own"


class Recording(Protocol):
    """What a handler may do with the recording under way."""

    only_inputs: bool
    paths: Paths

    def row(self, op: str) -> Row:
        """The row of the layer that this call belongs to, or a new one."""

    def measure_input(self, row: Row, tensor: torch.Tensor, axes: Axes) -> None:
        """Measure what enters a layer."""

    def measure_flat(
        self, row: Row, tensor: torch.Tensor, flat: Sequence[tuple[float, float]], axes: Axes
    ) -> None:
        """Count the values on flat parts of the activation."""

    def measure_directions(self, row: Row, tensor: torch.Tensor, features: int) -> None:
        """Measure the mean cosine between its samples."""

    def remember_linear(self, out: torch.Tensor, x: Any, weight: Any, bias: Any) -> None:
        """Keep what the last linear layer read, until the next one."""

    def measure_chance(self, row: Row, z: torch.Tensor) -> None:
        """Count how many random units would be off, where ``z`` comes from a linear layer."""

    def measure_optional(
        self, row: Row, what: str, look: Callable[[], tuple[Pending | None, str]]
    ) -> None:
        """Add optional numbers to a row, or the reason why they could not be computed."""

    def weight_use(self, call: Call, x: torch.Tensor, weight: Any, bias: Any) -> Weight | None:
        """How a layer uses its weight."""

    def batches_tracked(self) -> float:
        """How many batches the running BatchNorm has counted; NaN if it does not count."""

    def loss_call(self, call: Call) -> SeenLossCall:
        """Look at the operands of a call that the loss makes."""

    def twice(self, call: Call, row: Row, before: Made | None) -> None:
        """Record an activation of the network that takes probabilities, as if of the loss."""

    def finish_loss_call(self, seen: SeenLossCall, result: Any) -> None:
        """After the call: record it."""

    def finish(self, row: Row, result: Any, trails: list[Trail], axes: Axes, why: str) -> None:
        """After the call: set the trails of its outputs, and measure them for its row."""


Handler = Callable[[Recording, Call], Generator[None, Any, None]]


def of_values(
    handler: Callable[[Recording, Call, Trail], Generator[None, Any, None]],
) -> Handler:
    """Decorator: handle calls whose input has a known trail; others go to :func:`join`."""

    @wraps(handler)
    def checked(rec: Recording, call: Call) -> Generator[None, Any, None]:
        trail = rec.paths.source(call.input) if measurable(call.input) else None
        yield from join(rec, call) if trail is None else handler(rec, call, trail)

    return checked


@of_values
def activation(rec: Recording, call: Call, trail: Trail) -> Generator[None, Any, None]:
    z, shaping = call.input, options(call)
    if shaping is None:
        yield from join(rec, call)
        return
    row = rec.row(call.op)
    row.options = shaping
    rec.measure_input(row, z, trail.axes)
    act = None if rec.only_inputs else activations.named(call.op, **shaping)
    if act is not None and act.flat and not z.is_complex():
        rec.measure_flat(row, z, act.flat, trail.axes)
        if trail.axes.unit is None:
            row.unseen.append(f"per unit: {trail.why_no_units}")
        elif act.flat == _OFF_BELOW_ZERO:
            rec.measure_chance(row, z)
    before = rec.paths.made.get(z)
    made = by_activation(call.op, shaping, row.name, before)
    rec.twice(call, row, before)
    result = yield
    rec.finish(row, result, [trail], trail.axes, trail.why_no_units)
    rec.paths.made[result] = made


_OFF_BELOW_ZERO = ((-math.inf, 0.0),)


@of_values
def softmax(rec: Recording, call: Call, trail: Trail) -> Generator[None, Any, None]:
    z = call.input
    row = rec.row(call.op)
    dim = softmax_axis(z, call.bound.get("dim"))
    row.options = softmax_options(z, dim, trail.axes)
    rec.twice(call, row, rec.paths.made.get(z))
    rec.paths.loses_samples |= bool(row.options["over_samples"])
    rec.measure_optional(row, "its rows", lambda: (opaque.one_hot_rows(call.op, z, dim), ""))
    result = yield
    rec.finish(row, result, [trail], trail.axes, trail.why_no_units)
    rec.paths.made[result] = by_softmax(call.op, row.name, row.options)


def weighted(rec: Recording, call: Call) -> Generator[None, Any, None]:
    x, weight, bias = call.input, call.bound.get("weight"), call.bound.get("bias")
    if call.op == "addmm":
        x, weight, bias = call.bound.get("mat1"), call.bound.get("mat2"), x
    yield from affine(rec, call, x, weight, bias)


def affine(
    rec: Recording, call: Call, x: Any, weight: Any, bias: Any
) -> Generator[None, Any, None]:
    op = "linear" if call.op == "matmul" else ops.named(call.op).recorded_as or call.op
    trail = rec.paths.source(x) or Trail(rec.paths.node("?", []))
    others = [t for t in call.tensors if t is not x and rec.paths.parameter(t) is None]
    trails = [trail, *(t for t in map(rec.paths.trail_of, others) if t is not None)]
    row = rec.row(op)
    row.weight = rec.weight_use(call, x, weight, bias)
    batch, samples = trail.axes.batch, trail.axes.samples
    if measurable(x):
        features = x.dim() - 1 - spatial(op)
        rec.measure_input(row, x, Axes(features, batch, samples))
        if not rec.only_inputs:
            rec.measure_directions(row, x, features)
    result = yield
    if op == "embedding_bag":
        batch, samples = 0, result.shape[0]
    rec.finish(row, result, trails, Axes(result.dim() - 1 - spatial(op), batch, samples), "")
    if op == "linear":
        rec.remember_linear(result, x, weight, bias)


@of_values
def norm(rec: Recording, call: Call, trail: Trail) -> Generator[None, Any, None]:
    x = call.input
    row = rec.row(call.op)
    axes = trail.axes
    if call.op in ("batch_norm", "instance_norm", "group_norm") and x.dim() > 1:
        axes = axes._replace(unit=1)
    elif axes.unit is None and call.op in ("layer_norm", "rms_norm"):
        axes = axes._replace(unit=x.dim() - 1)
    rec.measure_input(row, x, axes)
    if call.op == "batch_norm":
        training = bool(call.bound.get("training", False))
        row.options = {"training": float(training)}
        mean, variance = call.bound.get("running_mean"), call.bound.get("running_var")
        if not training and mean is not None and variance is not None:
            statistics = running_statistics(mean, variance, rec.batches_tracked())
            rec.measure_optional(row, "its running statistics", lambda: (statistics, ""))
    result = yield
    rec.finish(row, result, [trail], axes, "")


@of_values
def keeps_axes(rec: Recording, call: Call, trail: Trail) -> Generator[None, Any, None]:
    """Pooling, dropout and resizing: a layer whose output has the axes of its input."""
    x = call.input
    row = rec.row(call.op)
    if call.category == "dropout":
        row.options = {
            name: float(value)
            for name in ("p", "training")
            if isinstance(value := call.bound.get(name, _DROPOUT[name]), (bool, int, float))
        }
    before = x.dim()
    result = yield
    out = next(tensors_in(result))
    axes, why = trail.axes, trail.why_no_units
    if out.dim() != before or call.op.startswith("pixel"):
        axes, why = Axes(None, axes.batch, axes.samples), UNKNOWN
    rec.finish(row, result, [trail], axes, why)


# What F.dropout does by itself.
_DROPOUT = {"p": 0.5, "training": True}


def attention(rec: Recording, call: Call) -> Generator[None, Any, None]:
    query = call.input
    trails = [t for t in map(rec.paths.trail_of, call.tensors) if t is not None]
    if not trails or not measurable(query):
        yield from unknown(rec, call)
        return
    row = rec.row(call.op)
    trail = rec.paths.trail_of(query) or trails[0]
    axes = Axes(None, trail.axes.batch, trail.axes.samples)
    why = HEADS
    rec.measure_optional(
        row, "its attention weights", lambda: opaque.attention_rows(call.op, call.bound)
    )
    if call.op == "multi_head_attention_forward":
        row.unseen.append("its projections run inside one call: their outputs are not seen")
        axes, why = rec.paths.axes_along(query, trail, 1, unit=query.dim() - 1), ""
    result = yield
    rec.finish(row, result, trails, axes, why)


def recurrent(rec: Recording, call: Call) -> Generator[None, Any, None]:
    x = call.tensors[0]
    trail = rec.paths.source(x)
    if trail is None or not measurable(x):
        yield from unknown(rec, call)
        return
    row = rec.row(call.op)
    axes = trail.axes._replace(unit=x.dim() - 1)
    if x.dim() == 3:
        axes = rec.paths.axes_along(x, trail, 0 if call.args[-1] else 1, unit=2)
    rec.measure_optional(row, "its input", lambda: (opaque.reads(x), ""))
    rec.measure_optional(row, "its gates", lambda: opaque.gates(call.op, call.args))
    result = yield
    rec.finish(row, result, [trail], axes, "")
    for state in list(tensors_in(result))[1:]:  # (layers, samples, units)
        batch = 1 if state.dim() == 3 and state.shape[1] == axes.samples else None
        state_axes = Axes(state.dim() - 1, batch, axes.samples)
        rec.paths.trails[state] = Trail(row.node, axes if state.dim() == 2 else state_axes, "")


def join(rec: Recording, call: Call) -> Generator[None, Any, None]:
    """Arithmetic and concatenation: no layer, but a node where paths of values join."""
    paths = rec.paths
    tensors = call.tensors
    if call.op == "matmul" and len(tensors) == 2 and tensors[1].dim() == 2:
        x, weight = tensors
        if paths.parameter(weight) is not None and paths.trail_of(x) is not None:
            yield from affine(rec, call, x, weight, None)
            return
    parents = [(trail, x.shape) for x in tensors if (trail := paths.trail_of(x)) is not None]
    known = [x for x in tensors if paths.trails[x] is not None]
    made = carried(call, paths.made.get(known[0])) if len(known) == 1 else None
    if len(known) > 1 and call.op in ("cat", "stack"):
        made = alike([paths.made.get(x) for x in known])
    result = yield
    outputs = tensors[:1] if call.op == "setitem" else list(tensors_in(result))
    if not parents:
        paths.record_weight_source(outputs, tensors)
        return
    nodes = list(dict.fromkeys(trail.node for trail, _ in parents))
    factors = [name for x in tensors if paths.trails[x] is None and (name := paths.parameter(x))]
    learned = bool(factors)
    moved = call.op in ("add", "sub") or (call.op in ("mul", "div") and not learned)
    for out in outputs:
        axes = _joined_axes(call, parents, out)
        why = "" if axes.unit is not None else next(iter(_reasons(parents)), UNKNOWN)
        if made is not None:
            paths.made[out] = made
        if len(parents) == 1 and moved:  # only shifted or scaled by a constant: no node
            paths.trails[out] = Trail(nodes[0], axes, why)
            continue
        # A product with a parameter is a learned scale (LayerScale, ReZero), not a gate.
        scale = call.op in ("mul", "div") and learned and len(nodes) == 1
        op = f"{call.op}:parameter" if scale else call.op
        node = paths.node(op, nodes, parameter=factors[0] if scale else "")
        paths.trails[out] = Trail(node, axes, why)


_JOINED_ALONG = {"hstack": 1, "dstack": 2}


def _reasons(parents: list[tuple[Trail, torch.Size]]) -> list[str]:
    return [trail.why_no_units for trail, _ in parents if trail.why_no_units]


def _joined_axes(call: Call, parents: list[tuple[Trail, torch.Size]], out: torch.Tensor) -> Axes:
    samples = max(trail.axes.samples for trail, _ in parents)
    if call.op in ("cat", "stack"):
        dim = call.bound.get("dim", _JOINED_ALONG.get(call.func.__name__, 0)) % out.dim()
        return joined(parents, out.shape, dim)
    if call.op == "setitem":
        trail, shape = parents[0]
        return trail.axes if shape == out.shape else Axes(None, None, samples)
    if call.op in ops.ELEMENTWISE:
        return elementwise([(t, s) for t, s in parents if len(s) <= out.dim()], out.shape)
    if call.op == "matmul":
        trail, shape = parents[0]
        axis = trail.axes.batch
        led = axis is not None and axis < out.dim() - 1 and len(shape) == out.dim()
        return Axes(None, axis if led and shape[:-1] == out.shape[:-1] else None, samples)
    return Axes(None, None, samples)


# Of the calls that keep the trail, those after which the values' bounds are not known.
_OTHER_VALUES = ("masked_fill", "tril", "triu", "nan_to_num")


def _carry(rec: Recording, x: torch.Tensor, outputs: list[torch.Tensor], call: Call) -> None:
    """What is known of a tensor's values is known of its views and casts."""
    paths = rec.paths
    made = paths.made.get(x)
    if made is not None and call.op == "neg":
        made = carried(call, made)
    whole = paths.direct.get(x) is True and call.op not in ("neg", "roll", "flip")
    for out in outputs:
        if made is not None:
            paths.made[out] = made
        if whole and out.numel() == x.numel():
            paths.direct[out] = True


def same_values(rec: Recording, call: Call) -> Generator[None, Any, None]:
    """Copies, casts and moves to another device: the result keeps the trail."""
    paths = rec.paths
    x = call.input
    result = yield
    if not isinstance(x, torch.Tensor) or not isinstance(result, torch.Tensor) or result is x:
        return
    trail = paths.trail_of(x)
    if trail is not None and result.shape == x.shape:
        paths.trails[result] = trail
        paths.loses_samples |= call.op in ("roll", "flip")  # along the samples, too, perhaps
        if call.op not in _OTHER_VALUES:
            _carry(rec, x, [result], call)
    elif trail is None:
        paths.record_weight_source([result], [x])


def reshape(rec: Recording, call: Call) -> Generator[None, Any, None]:
    paths = rec.paths
    x = call.input
    before, trail = x.shape, paths.trail_of(x)
    result = yield
    if trail is None:
        paths.record_weight_source([result], [x])
    elif result.dtype != x.dtype:
        paths.give_unknown_trail(result, "?view", [trail])
    else:
        paths.trails[result] = reshaped(trail, before, result.shape)
        _carry(rec, x, [result], call)


def view(rec: Recording, call: Call) -> Generator[None, Any, None]:
    paths = rec.paths
    x = call.input
    before, trail = x.shape, paths.trail_of(x)
    result = yield
    outputs = list(tensors_in(result))
    if trail is None:
        paths.record_weight_source(outputs, [x])
        return
    lost = Trail(trail.node, Axes(None, None, trail.axes.samples), UNKNOWN)
    try:
        trails = viewed(trail, before, call.repeat_with)
    except Exception:  # the call fails on meta tensors: the axes are lost
        trails = []
    if len(trails) != len(outputs):
        trails = [lost] * len(outputs)
    for out, moved in zip(outputs, trails, strict=True):
        paths.trails[out] = _repeated(rec, call, moved, before, out)
    _carry(rec, x, outputs, call)


def _repeated(
    rec: Recording, call: Call, trail: Trail, before: torch.Size, out: torch.Tensor
) -> Trail:
    """The trail after one sample was expanded to the whole batch: its copies are the samples."""
    at, own = rec.paths.axis, rec.paths.axis - (out.dim() - len(before))
    if (
        call.op in ("expand", "expand_as", "broadcast_to")
        and trail.axes.batch is None
        and at < out.dim()
        and out.shape[at] == rec.paths.samples > 1
        and (own < 0 or before[own] == 1)
    ):
        return trail._replace(axes=trail.axes._replace(batch=at, samples=rec.paths.samples))
    return trail


def reduce(rec: Recording, call: Call) -> Generator[None, Any, None]:
    paths = rec.paths
    x = call.input
    before, trail = x.shape, paths.trail_of(x)
    result = yield
    if trail is None:
        paths.record_weight_source([result], [x])
        return
    dim, keepdim = call.bound.get("dim"), bool(call.bound.get("keepdim", False))
    moved = reduced(trail, before, dim, keepdim)
    paths.trails[result] = moved._replace(node=paths.node(call.op, [trail.node]))


def unknown(rec: Recording, call: Call) -> Generator[None, Any, None]:
    paths = rec.paths
    parents = [t for t in map(paths.trail_of, call.tensors) if t is not None]
    result = yield
    outputs = [x for x in tensors_in(result, depth=3) if paths.trails[x] is None]
    if not parents:
        paths.record_weight_source(outputs, call.tensors)
        return
    for out in outputs:
        paths.give_unknown_trail(out, f"?{call.op}", parents)


def loss(rec: Recording, call: Call) -> Generator[None, Any, None]:
    """One of torch's losses, in the model's forward or in the caller's loss."""
    seen = rec.loss_call(call)
    result = yield
    rec.finish_loss_call(seen, result)
    parents = [t for t in map(rec.paths.trail_of, call.tensors) if t is not None]
    for out in tensors_in(result):
        rec.paths.give_unknown_trail(out, call.op, parents)


def activation_in_loss(rec: Recording, call: Call) -> Generator[None, Any, None]:
    """An activation or softmax that the loss applies: no layer of the network."""
    x, paths = call.input, rec.paths
    trail = paths.source(x) if measurable(x) else None
    shaping = options(call) if call.category == "activation" else {}
    if trail is None or shaping is None:
        yield from join(rec, call)
        return
    seen = rec.loss_call(call)
    if call.category == "softmax":
        seen.options = softmax_options(x, softmax_axis(x, call.bound.get("dim")), trail.axes)
        made = by_softmax(call.op, seen.name, seen.options)
    else:
        seen.options = shaping
        made = by_activation(call.op, shaping, seen.name, paths.made.get(x))
    result = yield
    rec.finish_loss_call(seen, result)
    paths.trails[result] = Trail(paths.node(call.op, [trail.node]), trail.axes, trail.why_no_units)
    paths.made[result] = made


def join_in_loss(rec: Recording, call: Call) -> Generator[None, Any, None]:
    """Arithmetic in the loss.

    Recorded are results that are larger than each of their operands, differences between what has
    bounds and a target, and logarithms of probabilities.
    """
    sizes = [x.numel() for x in call.tensors]
    elementwise = call.op in ops.ELEMENTWISE
    single = call.op in ("log", "exp", "logsumexp")
    seen = rec.loss_call(call) if single or (elementwise and len(sizes) > 1) else None
    telling = seen is not None and (
        bool(seen.facts) or (single and seen.operands[0].made is not None)
    )
    joining = join(rec, call)
    next(joining)
    result = yield
    larger = len(sizes) > 1 and elementwise and result.numel() > max(sizes)
    if seen is not None and (larger or telling):
        rec.finish_loss_call(seen, result)
    with contextlib.suppress(StopIteration):
        joining.send(result)


IN_LOSS: Mapping[str, Handler] = {
    "activation": activation_in_loss,
    "softmax": activation_in_loss,
    "join": join_in_loss,
}
"""Other handlers for calls that the loss makes itself, outside every module of the model."""


def inside_leaf(rec: Recording, call: Call) -> Generator[None, Any, None]:
    """A call inside a torch.nn layer: only tensors computed from parameters are recorded."""
    paths = rec.paths
    result = yield
    if all(paths.trails[x] is None for x in call.tensors):
        paths.record_weight_source(list(tensors_in(result, depth=3)), call.tensors)


HANDLERS: Mapping[str, Handler] = {
    "activation": activation,
    "softmax": softmax,
    "weighted": weighted,
    "norm": norm,
    "embedding": weighted,
    "pool": keeps_axes,
    "dropout": keeps_axes,
    "resize": keeps_axes,
    "attention": attention,
    "recurrent": recurrent,
    "join": join,
    "same": same_values,
    "reshape": reshape,
    "view": view,
    "reduce": reduce,
    "loss": loss,
    "module": unknown,
    "": unknown,
}

# Calls that compute no activation: they are not handled at all.
QUIET = frozenset(
    ("size", "dim", "shape", "dtype", "device", "numel", "stride", "is_contiguous", "requires_grad",
     "grad_fn", "grad", "is_cuda", "is_nested", "ndim", "ndimension", "item", "tolist", "len",
     "backward", "register_hook", "is_floating_point", "is_complex", "data_ptr", "layout",
     "is_sparse", "is_quantized", "is_leaf", "_version", "names", "untyped_storage", "is_meta",
     "element_size", "get_device", "repr", "format", "hash", "bool", "int", "index", "isnan",
     "isinf", "isfinite", "any", "all", "eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin",
     "_base", "storage_offset", "is_same_size", "is_pinned", "nonzero", "count_nonzero", "equal",
     "is_inference", "new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "zeros_like",
     "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "bernoulli",
     "uniform", "normal", "retain_grad", "retains_grad", "_set_grad_enabled", "set_grad_enabled",
     "contains", "iter", "set", "output_nr", "itemsize", "nbytes", "is_signed")
)  # fmt: skip

# But in a loss: its mask of ``target == 1`` broadcasts as the target itself does.
COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
