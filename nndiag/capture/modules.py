"""Kinds of modules: torch.nn layers, modules that hold others, scripts, composed layers."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import nn

from nndiag.capture.calls import Call, understood

__all__ = ["as_one_call", "counts_as_one_call", "has_layers", "is_script", "is_torch_leaf"]


def is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def has_layers(module: nn.Module) -> bool:
    """Whether a module has children other than those that make its weights."""
    return any(m is not None and n != "parametrizations" for n, m in module._modules.items())


# Files of torch.nn whose modules call other modules or have no forward of their own: not leaves.
_SCOPES = ("container", "transformer", "adaptive", "module")


def is_torch_leaf(module: nn.Module) -> bool:
    """Whether a module runs the forward of a torch.nn layer: it is one row with all its calls."""
    kind: Any = type(module)  # mypy does not take a class of modules for hashable
    return not is_script(module) and _has_torchs_forward(kind)


def counts_as_one_call(module: nn.Module) -> bool:
    """Whether a layer that makes several calls, such as a tanh, is judged as one call.

    What happens to that tanh says nothing about the layer. The module may say which call it equals:
    its method ``as_torch_call`` takes the positional arguments of ``forward`` and returns a
    function of torch with its arguments, as in ``nndiag.fixes``. Or it is a GELU, the only family
    known by name: all GELUs are nearly the same function, but any module may be called a ReLU.
    """
    return hasattr(type(module), "as_torch_call") or (
        _GELU.fullmatch(type(module).__name__) is not None
        and not has_layers(module)
        and not module._parameters
    )


_GELU = re.compile(r"(New|Fast|Quick|Accurate|OpenAI|Tanh)?GELU(Activation|Tanh|New)?", re.I)


def as_one_call(module: Any, args: tuple[Any, ...]) -> Call:
    kwargs: dict[str, Any] = {}
    if hasattr(type(module), "as_torch_call"):
        func, args = module.as_torch_call(*args)
    else:
        func, args, kwargs = torch.nn.functional.gelu, args[:1], {"approximate": "tanh"}
    return Call(*understood(func), func, args, kwargs)


@functools.lru_cache(maxsize=1024)
def _has_torchs_forward(kind: type) -> bool:
    module = getattr(getattr(kind, "forward", None), "__module__", "") or ""
    if not module.startswith(("torch.nn.modules.", "torch.ao.nn.")):
        return False
    return module.rpartition(".")[2] not in _SCOPES
