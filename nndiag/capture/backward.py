"""The backward pass under a recorder; gradients that are not the model's are left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from nndiag.capture.recorder import Recorder

__all__ = ["backward"]


def backward(
    value: torch.Tensor,
    recorder: Recorder,
    own: Iterable[nn.Parameter],
    first_function: int,
) -> Exception | None:
    """What it raised, if it did.

    ``own``: the model's parameters. ``first_function``: the number of the first function of
    autograd that is ours.
    """
    try:
        with _foreign(value, own, first_function) as older, recorder.backward():
            torch.autograd.backward(value, retain_graph=older)
    except Exception as error:  # the forward was seen: the report can still say much, and this too
        return error
    return None


@contextlib.contextmanager
def _foreign(
    value: torch.Tensor, own: Iterable[nn.Parameter], first_function: int
) -> Iterator[bool]:
    """Keep the gradients of tensors that are not the model's; is part of the graph not ours?

    A loss may have parameters, a model may use a tensor that the caller's own graph made: that
    graph has to stay usable.
    """
    ours = {id(p) for p in own}
    older = False
    with contextlib.ExitStack() as undo:
        for function in _graph(value):
            if type(function).__name__ != "AccumulateGrad":
                older |= function._sequence_nr() < first_function
            elif id(function.variable) not in ours:
                undo.callback(setattr, function.variable, "grad", function.variable.grad)
                function.variable.grad = None
        yield older


def _graph(value: torch.Tensor) -> Iterator[Any]:
    todo: list[Any] = [value.grad_fn]
    seen = {None}
    while todo:
        function = todo.pop()
        if function not in seen:
            seen.add(function)
            yield function
            todo += [f for f, _ in function.next_functions]
