"""What kind of module one is: a layer of torch's own, a scope, a script, one call spelled out."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import nn

from nndiag.capture.calls import Call, understood

__all__ = ["as_one_call", "has_layers", "is_script", "is_spelled_out", "is_torch_leaf"]


def is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def has_layers(module: nn.Module) -> bool:
    """Whether a module has children other than those that make its weights."""
    return any(m is not None and n != "parametrizations" for n, m in module._modules.items())


# Modules of torch.nn that call other modules, or have no forward of their class's own (compiled
# ones): scopes, not leaves.
_SCOPES = ("container", "transformer", "adaptive", "module")


def is_torch_leaf(module: nn.Module) -> bool:
    """One of torch.nn's own layers with its own forward: one row, its inside belongs to it."""
    kind: Any = type(module)  # mypy does not take a class of modules for hashable
    return not is_script(module) and _has_torchs_forward(kind)


def is_spelled_out(module: nn.Module) -> bool:
    """A layer that is made of other calls, such as a tanh, and is taken for one call.

    What happens to that tanh says nothing about the layer. Either the module says itself which
    call it amounts to: its method ``as_torch_call`` takes the positional arguments of ``forward``
    and returns a function of torch with its arguments, as in ``nndiag.fixes``. Or it is a GELU.
    Only this family is known by name, as its members hardly differ, while anything may be called a
    ReLU.
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
    home = getattr(getattr(kind, "forward", None), "__module__", "") or ""
    if not home.startswith(("torch.nn.modules.", "torch.ao.nn.")):
        return False
    return home.rpartition(".")[2] not in _SCOPES
