"""Whether things and the process are, bit by bit and object by object, as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def untouched(*things: Any) -> Iterator[None]:
    """Fails where something about these things or about the process differs afterwards."""
    before = [*process(), *state(*things)]
    yield
    after = [*process(), *state(*things)]
    difference = _first_difference(before, after)
    assert difference is None, difference


def state(*things: Any) -> list[Any]:
    seen: dict[int, int] = {}
    return [frozen(thing, seen) for thing in things]


def frozen(thing: Any, seen: dict[int, int]) -> Any:
    """Everything about a thing that one can compare, down to bits and identities."""
    if id(thing) in seen:
        return "seen", seen[id(thing)]
    if not isinstance(thing, (str, int, float, bool, type(None))):
        seen[id(thing)] = len(seen)
    if isinstance(thing, torch.Tensor):
        dense = thing.detach().cpu() if not thing.is_meta else torch.zeros(0)
        dense = dense if dense.layout == torch.strided else dense.to_dense()
        return (
            id(thing),
            type(thing),
            thing.dtype,
            thing.requires_grad,
            -1 if thing.is_inference() else thing._version,
            thing.data_ptr() if thing.layout == torch.strided else 0,
            dense.contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
            [frozen(hook, seen) for hook in (thing._backward_hooks or {}).values()],
            [frozen(hook, seen) for hook in (thing._post_accumulate_grad_hooks or {}).values()],
            frozen(thing.grad, seen) if thing.is_leaf else None,
        )
    if isinstance(thing, torch.Generator):
        return thing.get_state().numpy().tobytes()
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    if isinstance(thing, np.random.Generator):
        return repr(thing.bit_generator.state)
    if isinstance(thing, dict):
        return id(thing), [(frozen(k, seen), frozen(v, seen)) for k, v in thing.items()]
    if isinstance(thing, (list, tuple, set)):
        return id(thing), [frozen(item, seen) for item in thing]
    if isinstance(thing, torch.jit.ScriptModule):
        return [thing.training, [frozen(t, seen) for t in (*thing.parameters(), *thing.buffers())]]
    foreign = type(thing).__module__.partition(".")[0] in ("torch", "builtins", "numpy")
    if isinstance(thing, nn.Module) or (hasattr(thing, "__dict__") and not foreign):
        return id(thing), type(thing), frozen(vars(thing), seen)
    return repr(thing)


def process() -> list[Any]:
    """The global state that a check could disturb."""
    hooks = torch.nn.modules.module
    return [
        torch.get_rng_state().numpy().tobytes(),
        [s.numpy().tobytes() for s in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_initialized()
        else None,
        random.getstate(),
        repr(np.random.get_state()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.is_autocast_cache_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch._C._len_torch_function_stack(),
        [
            dict(v)
            for k, v in vars(hooks).items()
            if k.startswith("_global") and hasattr(v, "items")
        ],
    ]


def _first_difference(a: Any, b: Any, path: str = "") -> str | None:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        found = (_first_difference(x, y, f"{path}/{i}") for i, (x, y) in pairs)
        return next((f for f in found if f), None)
    return None if a == b else f"{path}: {str(a)[:200]} != {str(b)[:200]}"
