"""What a DataLoader yields, turned into arguments for ``forward`` and a target."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

from nndiag.errors import BatchError

__all__ = [
    "TARGETS",
    "Batch",
    "argument_names",
    "as_batch",
    "batches",
    "describe",
    "detached",
    "has_samples",
    "length",
    "tensors_in",
]


@dataclass(frozen=True)
class Batch:
    """One batch, spelled out: the call ``model(*args, **kwargs)`` and its target."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None


def batches(data: Any, model: nn.Module) -> Iterator[Batch]:
    """The batches in ``data``: one, or all of a stream.

    A tensor, a tuple, a mapping, a :class:`Batch` and a list of tensors are one batch; any other
    list, a DataLoader and any iterator are streams of those.

    Raises:
        BatchError: nothing in it, or something that is no batch.
    """
    if _is_single_batch(data):
        yield as_batch(data, model)
        return
    if (
        isinstance(data, (str, bytes))
        or hasattr(data, "__array__")
        or not isinstance(data, Iterable)
    ):
        raise BatchError(
            f"a batch of type {_type_name(data)} is not understood. Pass a tensor, "
            "(inputs, target), a dict of forward's arguments, nndiag.Batch(args=…, kwargs=…, "
            f"target=…), or a DataLoader of those.{_array_hint(data)}"
        )
    empty = True
    for item in data:
        if not isinstance(item, (Batch, torch.Tensor, tuple, list, Mapping)):
            raise BatchError(
                f"the stream of batches yields a {_type_name(item)}; each of its items must be a "
                f"tensor, (inputs, target), a dict or an nndiag.Batch.{_array_hint(item)}"
            )
        empty = False
        yield as_batch(item, model)
    if empty:
        raise BatchError(
            f"the stream of batches ({_type_name(data)}) is empty: nothing was run. Give at least "
            "one batch; an iterator that was used up before has none left."
        )


def _is_single_batch(data: Any) -> bool:
    if isinstance(data, list):  # what a DataLoader yields has a tensor in it: [x, y], [{…}, y]
        return any(isinstance(item, torch.Tensor) for item in data)
    return isinstance(data, (Batch, torch.Tensor, tuple, Mapping))


def as_batch(data: Any, model: nn.Module) -> Batch:
    """``data`` as one :class:`Batch`. If ``forward`` requires two tensors, both are inputs.

    Raises:
        BatchError: it is empty, holds NumPy arrays, or does not fit ``forward``.
    """
    if isinstance(data, Batch):
        batch = Batch(tuple(data.args), dict(data.kwargs), data.target)
    elif isinstance(data, torch.Tensor):
        batch = Batch((data,))
    elif isinstance(data, Mapping):
        batch = _from_mapping({str(key): value for key, value in data.items()}, model)
    elif hasattr(data, "_fields") and isinstance(data, tuple):  # a PackedSequence and its like
        batch = Batch((data,))
    else:
        batch = _from_items(tuple(data), model)
    _check_fit(batch, model)
    return batch


TARGETS = ("labels", "label", "targets", "target", "y")
"""What a dict calls its target, where ``forward`` has no argument of that name."""


def _from_mapping(kwargs: dict[str, Any], model: nn.Module) -> Batch:
    """A dict of forward's arguments, and of a target that forward does not take."""
    names = [key for key in TARGETS if key in kwargs]
    if _call_error(Batch(kwargs=kwargs), model) is None or len(names) != 1:
        return Batch(kwargs=kwargs)
    inputs = {key: value for key, value in kwargs.items() if key != names[0]}
    batch = Batch(kwargs=inputs, target=kwargs[names[0]])
    if len(inputs) == 1 and _call_error(batch, model) is not None:
        batch = Batch(tuple(inputs.values()), target=batch.target)
    return batch if _call_error(batch, model) is None else Batch(kwargs=kwargs)


def _from_items(items: tuple[Any, ...], model: nn.Module) -> Batch:
    if not items:
        raise BatchError(
            f"the batch is an empty tuple: there is nothing to give to {_forward_text(model)}."
        )
    required, allowed = _arity(model)
    if len(items) == 1:
        return _from_inputs(items[0], None)
    if len(items) == 2 and not isinstance(items[0], torch.Tensor):  # ((a, b), y), ({…}, y)
        batch = _from_inputs(items[0], items[1])
        if _call_error(batch, model) is None:
            return batch
    if len(items) == required or (len(items) > 2 and len(items) <= required):
        return Batch(items)
    if len(items) == 2:
        return _from_inputs(items[0], items[1])
    if len(items) == required + 1:
        return Batch(items[:-1], target=items[-1])
    if len(items) <= allowed:
        return Batch(items)
    raise BatchError(
        f"the batch is a tuple of {len(items)}, but {_forward_text(model)} takes "
        f"{_argument_count(required, allowed)}. Say which are inputs and which is the target: "
        "nndiag.Batch(args=(…), target=…)."
    )


def _from_inputs(inputs: Any, target: Any) -> Batch:
    if isinstance(inputs, Mapping):
        return Batch(kwargs={str(k): v for k, v in inputs.items()}, target=target)
    if type(inputs) in (tuple, list) and all(isinstance(i, torch.Tensor) for i in inputs):
        return Batch(tuple(inputs), target=target)
    return Batch((inputs,), target=target)


def _signature(model: nn.Module) -> inspect.Signature | None:
    """How ``forward`` may be called; None where Python cannot say.

    A wrapper that takes any arguments (DataParallel, a compiled module) has the signature of its
    only child.
    """
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    children = list(model.children())
    if len(children) == 1 and all(p.kind in _VARIADIC for p in signature.parameters.values()):
        return _signature(children[0])
    return signature


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _arity(model: nn.Module) -> tuple[int, float]:
    """How many positional arguments ``forward`` requires, and how many it accepts."""
    signature = _signature(model)
    if signature is None:
        return 1, math.inf
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return required, math.inf if variadic else len(positional)


def _check_fit(batch: Batch, model: nn.Module) -> None:
    arrays = [a for a in (*batch.args, *batch.kwargs.values()) if hasattr(a, "__array_interface__")]
    if arrays:
        raise BatchError(
            f"the batch holds a NumPy array ({describe(batch)}), but forward is given what is in "
            "it. Convert it first: torch.as_tensor(array)."
        )
    if length(batch) == 0:
        raise BatchError(f"the batch is empty: {describe(batch)}. Give at least one sample.")
    error = _call_error(batch, model)
    if error is not None:
        raise BatchError(
            f"the batch does not fit {_forward_text(model)}: {error}. Given: {describe(batch)}. "
            "To name each argument, pass nndiag.Batch(args=…, kwargs=…, target=…)."
        )


def _call_error(batch: Batch, model: nn.Module) -> TypeError | None:
    """The error that Python would raise for this call of ``forward``; None if it fits."""
    signature = _signature(model)
    try:
        if signature is not None:
            signature.bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        return error
    return None


def length(batch: Batch, axis: int = 0) -> int:
    """How many samples a batch holds, if ``axis`` of its first tensor runs over them."""
    for tensor in tensors_in((batch.args, batch.kwargs)):
        if has_samples(tensor, axis):
            return int(tensor.size(axis))
    return 1


def has_samples(tensor: torch.Tensor, axis: int) -> bool:
    """Whether a tensor can have its samples along ``axis``: features do not lie there."""
    least = 2 if axis == 1 and not tensor.is_floating_point() else 2 * axis + 1
    return tensor.dim() >= least


def argument_names(batch: Batch, model: nn.Module) -> dict[str, torch.Tensor]:
    """The batch's tensors, named ``input`` or ``input.KEY`` by forward's parameter."""
    signature = _signature(model)
    if signature is None:
        bound = {str(i): value for i, value in enumerate(batch.args)} | dict(batch.kwargs)
    else:
        bound = dict(signature.bind(*batch.args, **batch.kwargs).arguments)
    named: dict[str, torch.Tensor] = {}
    for key, value in bound.items():
        tensors = list(tensors_in(value))
        for index, tensor in enumerate(tensors):
            named[f"input.{key}" + (f".{index}" if len(tensors) > 1 else "")] = tensor
    return {"input": next(iter(named.values()))} if len(named) == 1 else named


def detached(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy of everything in ``value`` that a forward could change in place.

    One tensor at two places is one tensor in the copy, too.
    """
    memo = {} if memo is None else memo
    if id(value) not in memo:
        memo[id(value)] = _detached(value, memo)
    return memo[id(value)]


def _detached(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        copied = value.detach().clone()
        return copied.requires_grad_() if value.requires_grad else copied
    if isinstance(value, tuple):
        items = [detached(item, memo) for item in value]
        if type(value) is tuple:
            return tuple(items)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if not (isinstance(value, (list, dict)) or _is_plain_object(value)):
        return value
    try:
        copied = copy.copy(value)
    except Exception:  # it holds a lock or a file handle: pass it on uncopied
        return value
    if copied is value:
        return value
    memo[id(value)] = copied
    if isinstance(value, list):
        copied[:] = [detached(item, memo) for item in value]
    elif isinstance(value, dict):
        # transformers' outputs forbid update().
        dict.update(copied, {key: detached(item, memo) for key, item in value.items()})
    for name in _attribute_names(copied):
        # Plain setattr would raise for a frozen dataclass.
        object.__setattr__(copied, name, detached(getattr(value, name), memo))
    return copied


def _is_plain_object(value: Any) -> bool:
    """Whether an object only holds attributes, so that tensors in it can be listed."""
    return (
        (hasattr(value, "__dict__") or dataclasses.is_dataclass(value))
        and not callable(value)
        and not isinstance(value, ModuleType)
    )


def _attribute_names(value: Any) -> list[str]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [*slots, *getattr(value, "__dict__", ())]
    return [name for name in names if not name.startswith("__") and hasattr(value, name)]


def tensors_in(value: Any, depth: int = 6, above: tuple[int, ...] = ()) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists, mappings, dataclasses and plain objects."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    if depth == 0 or id(value) in above:
        return
    if isinstance(value, (tuple, list)):
        items: Iterable[Any] = value
    elif isinstance(value, Mapping):
        items = value.values()
    elif _is_plain_object(value):
        items = [getattr(value, name) for name in _attribute_names(value)]
    else:
        return
    for item in items:
        yield from tensors_in(item, depth - 1, (*above, id(value)))


_SHORT = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.bool: "bool", torch.complex64: "c64",
}  # fmt: skip


def describe(value: Any, depth: int = 3) -> str:
    """A value as ``f32[64, 3, 28, 28]`` or ``dict(image=…)``: never its contents."""
    if isinstance(value, torch.Tensor):
        kind = _SHORT.get(value.dtype, str(value.dtype).removeprefix("torch."))
        shape = f"[{value.size(0)}, nested]" if value.is_nested else list(value.shape)
        return f"{kind}{shape}"
    if isinstance(value, Batch):
        parts = [describe(a) for a in value.args]
        parts += [f"{k}={describe(v)}" for k, v in value.kwargs.items()]
        if value.target is not None:
            parts.append(f"target {describe(value.target)}")
        return "(" + ", ".join(parts) + ")"
    if depth and isinstance(value, Mapping):
        return "dict(" + ", ".join(f"{k}={describe(v, depth - 1)}" for k, v in value.items()) + ")"
    if depth and type(value) in (tuple, list):
        return "(" + ", ".join(describe(v, depth - 1) for v in value) + ")"
    return repr(value) if isinstance(value, (int, float, type(None))) else _type_name(value)


def _type_name(value: Any) -> str:
    return type(value).__qualname__


def _array_hint(data: Any) -> str:
    if isinstance(data, (str, bytes)):
        return " Turn text into tensors first, with a tokenizer."
    if hasattr(data, "__array__") or isinstance(data, (Sequence, float, int)):
        return " For arrays and lists of numbers, use torch.as_tensor first."
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return " For a dataset, pass torch.utils.data.DataLoader(dataset, batch_size=…)."
    return ""


def _forward_text(model: nn.Module) -> str:
    return f"{type(model).__name__}.forward{_signature(model) or '(…)'}"


def _argument_count(required: int, allowed: float) -> str:
    if allowed == required:
        return f"{required} positional arguments"
    if allowed == math.inf:
        return f"{required} or more positional arguments"
    return f"{required} to {allowed:.0f} positional arguments"
