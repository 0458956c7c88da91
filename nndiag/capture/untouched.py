"""Leave the model, and the process around it, bitwise as they were."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Kept:
    """The contents that were put aside, to go back to in between."""

    tensors: list[tuple[torch.Tensor, torch.Tensor]]
    seed: int | None
    random: list[tuple[Callable[..., Any], Any]]

    @torch.no_grad()
    def reset(self) -> None:
        """Parameters, buffers and randomness as at the start; gradients empty."""
        for tensor, copy in self.tensors:
            if tensor.shape == copy.shape:
                tensor.data.copy_(copy)
            tensor.grad = None
        for restore, state in self.random:
            restore(state)
        if self.seed is not None:
            torch.manual_seed(self.seed)
            random.seed(self.seed)
            np.random.seed(self.seed % 2**32)


@contextlib.contextmanager
def untouched(model: nn.Module, seed: int | None) -> Iterator[Kept]:
    """Whatever happens inside, afterwards the model and the global state are as before.

    That is: parameters, buffers and their ``.grad``, ``requires_grad``, every module's attributes
    (training mode and hooks among them), the random generators of every device, Python and NumPy,
    autograd's and autocast's settings, the deterministic flags and the default dtype.
    Gradients start empty inside, and everything random starts from ``seed``.
    """
    with ExitStack() as undo:
        # In this order: what is pushed last is undone first, so tensors get their contents back
        # after the modules have their tensors back.
        tensors = _keep_tensors(model, undo)
        _keep_modules(model, undo)
        _keep_settings(undo)
        states = random_states()
        for restore, state in states:
            undo.callback(restore, state)
        kept = Kept(tensors, seed, states)
        kept.reset()
        yield kept


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found[id(tensor)] = tensor
    return list(found.values())


def _keep_tensors(
    model: nn.Module, undo: ExitStack
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    kept = []
    for tensor in _tensors(model):
        # The alias survives even if the model swaps the tensor's storage (``tensor.data = …``).
        alias, copy = tensor.detach(), tensor.detach().clone()
        undo.callback(_restore_tensor, tensor, alias, copy, tensor.requires_grad, tensor.grad)
        hooks = getattr(tensor, "_post_accumulate_grad_hooks", None)
        if hooks:
            # An optimiser that steps inside backward must not step because we look.
            undo.callback(setattr, tensor, "_post_accumulate_grad_hooks", hooks)
            tensor._post_accumulate_grad_hooks = None  # type: ignore[attr-defined]
        tensor.grad = None
        kept.append((tensor, copy))
    return kept


def _restore_tensor(
    tensor: torch.Tensor,
    alias: torch.Tensor,
    copy: torch.Tensor,
    requires_grad: bool,
    grad: torch.Tensor | None,
) -> None:
    with torch.no_grad():
        if tensor.layout == torch.strided and (
            tensor.data_ptr() != alias.data_ptr() or tensor.shape != alias.shape
        ):
            tensor.data = alias
        # Through .data, so that a graph the caller still holds stays valid.
        tensor.data.copy_(copy)
    if tensor.requires_grad != requires_grad and tensor.is_leaf:
        tensor.requires_grad_(requires_grad)
    tensor.grad = grad


_CONTAINERS = (dict, list, set, deque)


def _keep_modules(model: nn.Module, undo: ExitStack) -> None:
    for module in model.modules():
        state = vars(module)
        contents = {k: _copy(v) for k, v in state.items() if isinstance(v, _CONTAINERS)}
        undo.callback(_restore_module, module, type(module), dict(state), contents)


def _copy(container: Any) -> Any:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _restore_module(
    module: nn.Module, kind: type, attributes: dict[str, Any], contents: dict[str, Any]
) -> None:
    if type(module) is not kind:  # a lazy module turns itself into another class
        module.__class__ = kind
    state = vars(module)
    if list(state) != list(attributes) or any(state[k] is not v for k, v in attributes.items()):
        state.clear()
        state.update(attributes)
    for name, items in contents.items():
        container = attributes[name]
        if not _same(_copy(container), items):
            container.clear()
            container.extend(items) if isinstance(container, (list, deque)) else container.update(items)


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x is y or (type(x) is tuple and len(x) == 2 and x[0] is y[0] and x[1] is y[1])
        for x, y in zip(a, b, strict=True)
    )


def _keep_settings(undo: ExitStack) -> None:
    undo.callback(torch.set_grad_enabled, torch.is_grad_enabled())
    undo.callback(torch.set_default_dtype, torch.get_default_dtype())
    undo.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    undo.callback(
        torch.autograd.set_detect_anomaly,
        torch.is_anomaly_enabled(),
        torch.is_anomaly_check_nan_enabled(),
    )
    for flag in ("benchmark", "deterministic"):
        undo.callback(setattr, torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    for device in ("cpu", "cuda"):
        undo.callback(torch.set_autocast_enabled, device, torch.is_autocast_enabled(device))
    undo.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())


def random_states() -> list[tuple[Callable[..., Any], Any]]:
    """Every global random generator: how to restore it, and its state now."""
    states: list[tuple[Callable[..., Any], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    for module in _accelerators():
        if hasattr(module, "get_rng_state_all"):
            states.append((module.set_rng_state_all, module.get_rng_state_all()))
        else:
            states.append((module.set_rng_state, module.get_rng_state()))
    return states


def _accelerators() -> Iterator[Any]:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield torch.cuda
    if torch.backends.mps.is_available():
        yield torch.mps
    if hasattr(torch, "xpu") and torch.xpu.is_available() and torch.xpu.is_initialized():
        yield torch.xpu


