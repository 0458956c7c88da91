"""What a DataLoader yields, turned into arguments for ``forward`` and a target; and the loss."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nndiag.errors import BatchError, LossError


@dataclass(frozen=True)
class Batch:
    """One batch that leaves nothing to guess: ``model(*args, **kwargs)`` and its target."""

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
    if _is_one(data):
        yield one(data, model)
        return
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise BatchError(
            f"a batch of type {_typename(data)} is not understood. Legal are a tensor, "
            "(inputs, target), a dict of forward's arguments, nndiag.Batch(args=…, kwargs=…, "
            f"target=…), or a DataLoader of those.{_array_hint(data)}"
        )
    empty = True
    for item in data:
        if not _is_one(item):
            raise BatchError(
                f"the stream of batches yields a {_typename(item)}; each of its items must be a "
                f"tensor, (inputs, target), a dict or an nndiag.Batch.{_array_hint(item)}"
            )
        empty = False
        yield one(item, model)
    if empty:
        raise BatchError(f"the stream of batches ({_typename(data)}) is empty: nothing was run.")


def _is_one(data: Any) -> bool:
    if isinstance(data, list):
        return bool(data) and all(isinstance(item, torch.Tensor) for item in data)
    return isinstance(data, (Batch, torch.Tensor, tuple, Mapping))


def one(data: Any, model: nn.Module) -> Batch:
    """One batch. If ``forward`` requires both of two tensors, both are inputs."""
    if isinstance(data, Batch):
        batch = Batch(tuple(data.args), dict(data.kwargs), data.target)
    elif isinstance(data, torch.Tensor):
        batch = Batch((data,))
    elif isinstance(data, Mapping):
        batch = Batch(kwargs={str(key): value for key, value in data.items()})
    elif hasattr(data, "_fields") and isinstance(data, tuple):  # a PackedSequence and its like
        batch = Batch((data,))
    else:
        batch = _positional(tuple(data), model)
    _fits(batch, model)
    return batch


def _positional(items: tuple[Any, ...], model: nn.Module) -> Batch:
    if not items:
        raise BatchError("the batch is an empty tuple: nothing to give to forward.")
    required, allowed = _arity(model)
    if len(items) == 1:
        return _inputs(items[0], None)
    if len(items) == required or (len(items) > 2 and len(items) <= required):
        return Batch(items)
    if len(items) == 2:
        return _inputs(items[0], items[1])
    if len(items) == required + 1:
        return Batch(items[:-1], target=items[-1])
    if len(items) <= allowed:
        return Batch(items)
    raise BatchError(
        f"the batch is a tuple of {len(items)}, but {_signature(model)} takes "
        f"{_span(required, allowed)}. Say which are inputs and which is the target: "
        "nndiag.Batch(args=(…), target=…)."
    )


def _inputs(inputs: Any, target: Any) -> Batch:
    if isinstance(inputs, Mapping):
        return Batch(kwargs={str(k): v for k, v in inputs.items()}, target=target)
    if type(inputs) in (tuple, list) and all(isinstance(i, torch.Tensor) for i in inputs):
        return Batch(tuple(inputs), target=target)
    return Batch((inputs,), target=target)


def _arity(model: nn.Module) -> tuple[int, float]:
    """How many positional arguments ``forward`` requires, and how many it accepts."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1, math.inf
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return required, math.inf if variadic else len(positional)


def _fits(batch: Batch, model: nn.Module) -> None:
    tensors = [t for t in tensors_in((batch.args, batch.kwargs)) if t.dim() > 0]
    if any(t.shape[0] == 0 for t in tensors):
        raise BatchError(f"the batch is empty: {describe(batch)}. Give at least one sample.")
    if isinstance(model, torch.jit.ScriptModule):
        return
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        raise BatchError(
            f"the batch does not fit {_signature(model)}: {error}. Given: {describe(batch)}. "
            "nndiag.Batch(args=…, kwargs=…, target=…) leaves nothing to guess."
        ) from None


def argument_names(batch: Batch, model: nn.Module) -> dict[str, torch.Tensor]:
    """The batch's tensors, named ``input`` or ``input.KEY`` by forward's parameter."""
    named: dict[str, torch.Tensor] = {}
    try:
        bound = inspect.signature(model.forward).bind(*batch.args, **batch.kwargs).arguments
    except (TypeError, ValueError):
        bound = {str(i): value for i, value in enumerate(batch.args)} | dict(batch.kwargs)
    for key, value in bound.items():
        found = list(tensors_in(value))
        for index, tensor in enumerate(found):
            named[f"input.{key}" + (f".{index}" if len(found) > 1 else "")] = tensor
    return {"input": next(iter(named.values()))} if len(named) == 1 else named


def detached(value: Any) -> Any:
    """A copy of everything in ``value`` that a forward could change in place."""
    if isinstance(value, torch.Tensor):
        if value.is_sparse or value.is_nested:
            return value.detach().clone()
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(
            value.requires_grad
        )
    if isinstance(value, tuple):
        items = [detached(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if type(value) is list:
        return [detached(item) for item in value]
    if type(value) is dict:
        return {key: detached(item) for key, item in value.items()}
    return value


def tensors_in(value: Any, depth: int = 6) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists, dicts, dataclasses and plain objects."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth == 0 or value is None or isinstance(value, (str, bytes, int, float, nn.Module)):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from tensors_in(getattr(value, f.name, None), depth - 1)
    elif hasattr(value, "__dict__") and not callable(value) and not isinstance(value, type):
        for item in vars(value).values():
            yield from tensors_in(item, depth - 1)


@dataclass(frozen=True)
class LossMaker:
    """How the scalar comes about that is differentiated; ``kind`` is filled in by use."""

    loss_fn: Callable[..., Any] | None
    seed: int | None

    def __call__(self, output: Any, batch: Batch) -> tuple[str, torch.Tensor]:
        """The kind of the loss and the loss: a scalar that hangs on the model.

        In this order: ``loss_fn(output, target)``; the output's own ``.loss`` or ``["loss"]``; a
        scalar output; else the outputs' inner product with fixed random directions, seeded. Never
        the sum of the outputs: after a softmax or a normalisation that is a constant.

        Raises:
            LossError: no scalar, not a number, or not connected to the model.
        """
        if self.loss_fn is not None:
            return "loss_fn", self._scalar(self._call(output, batch), "loss_fn returned")
        own = _own_loss(output)
        if own is not None:
            return "output.loss", self._scalar(own, "the output's own loss is")
        if isinstance(output, torch.Tensor) and output.numel() == 1 and output.is_floating_point():
            return "scalar output", output.reshape(())
        return "random cotangent", self._random(output)

    def _call(self, output: Any, batch: Batch) -> Any:
        assert self.loss_fn is not None
        args: tuple[Any, ...] = (output, batch.target)
        if batch.target is None:
            if not _takes_one(self.loss_fn):
                raise LossError(
                    "loss_fn was given but no target. Pass target=…, a batch (inputs, target), or "
                    "a loss_fn that takes the output alone."
                )
            args = (output,)
        try:
            return self.loss_fn(*args)
        except Exception as error:
            raise LossError(
                f"loss_fn raised {type(error).__name__}: {error}\n"
                f"  output: {describe(output)}\n  target: {describe(batch.target)}\n"
                "  The model is as it was."
            ) from error

    def _scalar(self, loss: Any, what: str) -> torch.Tensor:
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or loss.is_complex():
            raise LossError(
                f"{what} {describe(loss)}, but a loss is one real number. "
                "Reduce it, for example with .mean()."
            )
        return loss.reshape(())

    def _random(self, output: Any) -> torch.Tensor:
        tensors = [
            t for t in tensors_in(output) if t.requires_grad and (t.is_floating_point() or t.is_complex())
        ]
        if not tensors:
            raise LossError(
                f"the output {describe(output)} holds nothing that can be differentiated. Pass "
                "loss_fn, or a model whose output depends on trainable parameters."
            )
        generator = torch.Generator().manual_seed(0 if self.seed is None else self.seed)
        total = torch.zeros((), dtype=torch.float32, device=tensors[0].device)
        for t in tensors:
            values = torch.view_as_real(t) if t.is_complex() else t
            direction = torch.randn(values.shape, generator=generator).to(values.device)
            wide = values.to(torch.promote_types(values.dtype, torch.float32))
            total = total + (wide * direction).sum().to(total.device) / math.sqrt(max(values.numel(), 1))
        return total


def _own_loss(output: Any) -> Any:
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        loss = None if isinstance(output, torch.Tensor) else getattr(output, "loss", None)
    return loss if isinstance(loss, torch.Tensor) else None


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind in (0, 1)]
    return len(required) == 1


_SHORT = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.bool: "bool", torch.complex64: "c64",
}  # fmt: skip


def describe(value: Any, depth: int = 3) -> str:
    """A value as ``f32[64, 3, 28, 28]`` or ``dict(image=…)``: never its contents."""
    if isinstance(value, torch.Tensor):
        kind = _SHORT.get(value.dtype, str(value.dtype).removeprefix("torch."))
        return f"{kind}{list(value.shape)}"
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
    return repr(value) if isinstance(value, (int, float, type(None))) else _typename(value)


def _typename(value: Any) -> str:
    return type(value).__qualname__


def _array_hint(data: Any) -> str:
    if type(data).__module__ == "numpy" or isinstance(data, Sequence):
        return " For arrays and lists of numbers, use torch.as_tensor first."
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return " For a dataset, pass torch.utils.data.DataLoader(dataset, batch_size=…)."
    return ""


def _signature(model: nn.Module) -> str:
    try:
        return f"{type(model).__name__}.forward{inspect.signature(model.forward)}"
    except (TypeError, ValueError):
        return f"{type(model).__name__}.forward"


def _span(required: int, allowed: float) -> str:
    if allowed == required:
        return f"{required} positional"
    return f"{required} or more positional" if allowed == math.inf else f"{required} to {allowed:.0f} positional"
