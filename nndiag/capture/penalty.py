"""The loss of other outputs: what it adds for the weights alone, and what a constant costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from nndiag.batch import Batch, tensors_in
from nndiag.loss import LossMaker

__all__ = ["constant_loss", "penalties"]


def penalties(
    model: nn.Module,
    loss_fn: Callable[..., Any] | None,
    output: Any,
    target: Any,
    named: Mapping[str, nn.Parameter],
) -> dict[str, torch.Tensor]:
    """Each parameter's gradient by a penalty in ``loss_fn``; empty without one.

    ``output`` is detached. What is left of the gradient comes from the parameters themselves. It is
    a penalty only if it stays the same for another output, and if no layer of the model runs in
    the loss: a head or a decoder there learns from the data, too.
    """
    if loss_fn is None or output is None:
        return {}
    layers, ran = {id(m) for m in model.modules()}, []

    def note(module: nn.Module, _: Any) -> None:
        if id(module) in layers:
            ran.append(module)

    parameters = {name: p for name, p in named.items() if p.requires_grad}
    handle = register_module_forward_pre_hook(note)
    try:
        first = _gradients(loss_fn, output, target, parameters)
        second = (
            _gradients(loss_fn, _with(lambda x: x / 2, output), target, parameters) if first else {}
        )
    except Exception:  # a loss that differentiates the output, or that counts its calls
        return {}
    finally:
        handle.remove()
    if ran or not first or first.keys() != second.keys():
        return {}
    return first if all(torch.equal(first[name], second[name]) for name in first) else {}


def _gradients(
    loss_fn: Callable[..., Any], output: Any, target: Any, parameters: Mapping[str, nn.Parameter]
) -> dict[str, torch.Tensor]:
    _, value = LossMaker(loss_fn, None)(output, Batch(target=target))
    if not value.requires_grad:
        return {}
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None and g.any()}


def constant_loss(loss: LossMaker, output: Any, target: Any) -> float:
    """The loss where each sample gets the mean of the outputs; NaN where there is none."""
    if loss.loss_fn is None or output is None:
        return math.nan
    try:
        with torch.no_grad():
            constant = _with(lambda x: x.mean(0, keepdim=True).expand_as(x).contiguous(), output)
            return float(loss(constant, Batch(target=target))[1])
    except Exception:  # a loss that differentiates the output, or an output without samples
        return math.nan


def _with(change: Callable[[torch.Tensor], torch.Tensor], output: Any) -> Any:
    """The same kind of output with each tensor of numbers changed."""
    if isinstance(output, torch.Tensor):
        return change(output) if output.is_floating_point() else output
    if isinstance(output, dict):
        return type(output)((key, _with(change, value)) for key, value in output.items())
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_with(change, value) for value in output))
    if isinstance(output, (list, tuple)):
        return type(output)(_with(change, value) for value in output)
    if any(True for _ in tensors_in(output)):
        raise TypeError(f"the tensors inside a {type(output).__name__} cannot be replaced")
    return output
