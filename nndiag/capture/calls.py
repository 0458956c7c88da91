"""Calls of torch functions: their canonical names, categories and arguments by name."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nndiag import ops
from nndiag.batch import tensors_in

__all__ = ["Call", "Options", "canonical", "options", "understood"]

Options = dict[str, float]

# Functions whose argument order differs from that of the same name in torch.nn.functional.
_OWN_ORDER: dict[Any, tuple[str, ...]] = {
    operator.attrgetter(path.removeprefix("torch."))(torch): order
    for op in ops.OPS.values()
    for path, order in op.orders.items()
}
_INPUTS = ("input", "query", "tensors", "self", "x")


@functools.lru_cache(maxsize=8192)
def canonical(func: Callable[..., Any]) -> str:
    """The one name of a torch function, method, operator or property."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    elif name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    elif name.endswith("_") and not name.startswith("_"):
        name = name[:-1]
    return ops.SPELLINGS.get(name, name)


@functools.lru_cache(maxsize=8192)
def understood(func: Callable[..., Any]) -> tuple[str, str]:
    """Canonical name and category ("" for a call that is not understood) of a function."""
    name = canonical(func)
    return name, ops.named(name).category


_NUMBERS = frozenset((type(None), bool, int, float, str))


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif value.__class__ not in _NUMBERS:
            tensors += tensors_in(value, depth=2)
    return tensors


def _bound(
    op: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    order = _OWN_ORDER.get(func)
    if order is None:
        order = ("input", *ops.named(op).order)
    bound = dict(zip(order, args, strict=False))
    for key, value in kwargs.items():
        bound["input" if key in _INPUTS else key] = value
    return bound


class Call:
    """One call of a torch function.

    ``tensors``: all tensors among the arguments, in order. ``bound``: the arguments by name; the
    first is ``input``.
    """

    def __init__(
        self,
        op: str,
        category: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.op, self.category, self.func, self.args, self.kwargs = op, category, func, args, kwargs
        self.tensors = _tensors(args, kwargs)
        self.bound = _bound(op, func, args, kwargs)
        self.input: Any = self.bound.get("input")

    def repeat_with(self, other: torch.Tensor) -> Any:
        """Make the same call with another tensor as its first argument."""
        if self.args:
            return self.func(other, *self.args[1:], **self.kwargs)
        name = next(iter(self.kwargs))
        return self.func(**{**self.kwargs, name: other})


def options(call: Call) -> Options | None:
    """The numeric options of an activation; None if one of them is not a plain number."""
    numbers: Options = {}
    for name in ops.named(call.op).options:
        value = call.bound.get(name)
        if value is None:
            continue
        if name == "approximate":
            numbers["approximate_tanh"] = float(value == "tanh")
        elif call.op == "prelu" and isinstance(value, torch.Tensor):
            numbers[name] = float(value.detach().float().mean())
        elif isinstance(value, (int, float)):
            numbers[name] = float(value)
        else:
            return None
    return numbers
