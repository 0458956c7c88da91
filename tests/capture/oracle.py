"""What plain hooks and plain autograd say about a model: the other side of every comparison."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import nndiag
from nndiag.stats import Layer, Snapshot, TensorStats


def look(model: nn.Module, batch: Any, loss_fn: Any = None, **options: Any) -> Snapshot:
    """The snapshot behind a whole check, none of whose rules crashed."""
    report = nndiag.check(model, batch, loss_fn=loss_fn, config=False, **options)
    assert report.crashed == ()
    return report.snapshot


def rows(snapshot: Snapshot) -> list[str]:
    return [layer.name for layer in snapshot.layers]


def row(snapshot: Snapshot, name: str) -> Layer:
    return snapshot.by_name[name]


@dataclasses.dataclass
class Plain:
    """Outputs of every module call by its name, gradients there, gradients of parameters."""

    outputs: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    parameters: dict[str, torch.Tensor | None]
    loss: float


def plain(model: nn.Module, batch: Any, loss_fn: Any = None, seed: int = 0) -> Plain:
    """Run forward and backward with nothing but forward hooks, tensor hooks and ``.grad``."""
    outputs: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}
    calls: Counter[nn.Module] = Counter()
    forward, backward = True, False
    differentiate = torch.autograd.grad

    def quietly(*args: Any, **options: Any) -> Any:
        """What a checkpoint recomputes for a gradient within the forward is no call."""
        nonlocal forward
        forward = False
        found = differentiate(*args, **options)
        forward = True
        return found

    def keep(name: str) -> Callable[[torch.Tensor], None]:
        def at(grad: torch.Tensor) -> None:
            if backward:
                gradients[name] = grad.clone()

        return at

    def hook(name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, out: Any) -> None:
            if not forward:
                return
            calls[module] += 1
            here = f"{name}@{calls[module]}" if calls[module] > 1 else name
            tensor = next(tensors(out), None)
            if tensor is None or tensor.is_nested or functional(tensor):
                return
            outputs[here] = tensor.detach().clone()
            if tensor.requires_grad:
                tensor.register_hook(keep(here))

        return after

    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(hook(name), prepend=True)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    target = None
    with mock.patch("torch.autograd.grad", quietly):
        if isinstance(batch, dict):
            output = model(**batch)
        elif isinstance(batch, tuple):
            output, target = model(batch[0]), batch[1]
        else:
            output = model(batch)
    forward, backward = False, True
    loss = loss_fn(output, target) if loss_fn is not None else cotangent(output, seed)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return Plain(outputs, gradients, grads, loss.item())


def cotangent(output: Any, seed: int) -> torch.Tensor:
    """The documented stand-in for a loss: outputs against fixed random directions."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for tensor in tensors(output):
        if tensor.requires_grad:
            values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            direction = torch.randn(values.shape, generator=generator)
            wide = values.to(torch.promote_types(values.dtype, torch.float32))
            total = total + (wide * direction).sum() / math.sqrt(values.numel())
    return total


def functional(tensor: torch.Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from tensors([getattr(value, f.name) for f in dataclasses.fields(value)])
    elif hasattr(value, "__dict__"):
        yield from tensors(list(vars(value).values()))


def values(tensor: torch.Tensor) -> np.ndarray:
    """All values in double precision; a complex number is two."""
    tensor = tensor.detach().resolve_conj()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.to_dense().double().numpy().ravel()


def same_numbers(stats: TensorStats, tensor: torch.Tensor, rel: float = 1e-5) -> None:
    """The pooled numbers are those of this tensor, as NumPy gives them."""
    x = values(tensor)
    close = pytest.approx  # the scale of what may be lost is the largest value, not the mean
    size = np.abs(x).max() if x.size else 1.0
    assert stats.count == x.size
    assert stats.zeros == (x == 0).sum()
    assert (stats.min, stats.max) == (x.min(), x.max())
    assert stats.mean == close(x.mean(), rel=rel, abs=rel * size)
    assert stats.std == close(x.std(), rel=rel, abs=rel * size)
    assert stats.rms == close(np.sqrt((x**2).mean()), rel=rel, abs=rel * size)
