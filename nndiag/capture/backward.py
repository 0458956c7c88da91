"""The backward pass under a recorder, which leaves gradients of other tensors as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from nndiag.capture.recorder import Recorder

__all__ = ["backward", "without_other_gradients"]


def backward(
    value: torch.Tensor,
    recorder: Recorder,
    parameters: Iterable[nn.Parameter],
    first_function: int,
) -> Exception | None:
    """Run the backward; returns the exception that it raised, or None.

    The recorder gets to know the leaves that the loss depends on besides the model's parameters.

    ``parameters``: the model's parameters. ``first_function``: the number of the first function of
    autograd that is ours.
    """
    try:
        with (
            without_other_gradients(
                value, parameters, first_function, recorder.other_leaves
            ) as has_foreign_part,
            recorder.backward(),
        ):
            torch.autograd.backward(value, retain_graph=has_foreign_part)
    except Exception as error:  # reported: the forward can still be judged
        return error
    return None


@contextlib.contextmanager
def without_other_gradients(
    value: torch.Tensor,
    parameters: Iterable[nn.Parameter],
    first_function: int,
    other_leaves: set[int] | None = None,
) -> Iterator[bool]:
    """Context that restores gradients of other tensors; yields whether the graph must be retained.

    A loss may have parameters of its own. And a model may use a tensor from a graph of the caller,
    which has to stay usable.
    """
    ours = {id(p) for p in parameters}
    has_foreign_part = False
    with contextlib.ExitStack() as undo:
        for function in _graph(value):
            if type(function).__name__ != "AccumulateGrad":
                has_foreign_part |= function._sequence_nr() < first_function
            elif id(function.variable) not in ours:
                if other_leaves is not None:
                    other_leaves.add(id(function.variable))
                undo.callback(setattr, function.variable, "grad", function.variable.grad)
                function.variable.grad = None
        yield has_foreign_part


def _graph(value: torch.Tensor) -> Iterator[Any]:
    queue: list[Any] = [value.grad_fn]
    visited = {None}
    while queue:
        function = queue.pop()
        if function not in visited:
            visited.add(function)
            yield function
            queue += [f for f, _ in function.next_functions]
