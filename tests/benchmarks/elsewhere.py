"""A pretended accelerator: its tensors hold real values, say they lie elsewhere, and are counted as
somebody waits for them.

Where no CUDA device exists this shows what CUDA's ``set_sync_debug_mode`` shows: whether code asks
a device for values while work is still being queued. Lazy tensors' device lends its name, as every
build of torch knows it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("lazy")
aten = torch.ops.aten

# Their results, or the results' shapes, depend on values: the host has to wait for them.
WAITING = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero,
    aten.masked_select, aten.bincount, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.repeat_interleave, aten.allclose,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_}


class Elsewhere(torch.Tensor):
    """A tensor of this device around a tensor of the CPU's."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=values.requires_grad,
        )
        made.values = values.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        raise AssertionError(f"{function} outside Accelerator()")


class Accelerator(TorchDispatchMode):
    """Works for the tensors that are elsewhere; ``waits`` counts who waited for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = dict(kwargs or {})
        held: list[Elsewhere] = []
        tree_map_only(Elsewhere, held.append, (args, kwargs))
        wanted = kwargs.get("device")
        if wanted == DEVICE:
            kwargs["device"] = torch.device("cpu")
        there = bool(held) if wanted is None else wanted == DEVICE
        packet = function.overloadpacket
        if packet is aten.copy_:
            there = isinstance(args[0], Elsewhere)
        if held and (packet in WAITING or (packet in INDEXING and _by_booleans(args[1]))):
            self.waits[str(packet)] += 1
        elif packet in (aten._to_copy, aten.copy_):
            crossing = there != isinstance(args[-1 if packet is aten.copy_ else 0], Elsewhere)
            if crossing and not kwargs.get("non_blocking"):
                self.waits["to the device" if there else "to the host"] += 1
        args, kwargs = tree_map_only(Elsewhere, lambda x: x.values, (args, kwargs))
        result = function(*args, **kwargs)
        if not there:
            return result
        known = {id(x.values): x for x in held}  # what is changed in place stays the same tensor
        return tree_map_only(
            torch.Tensor, lambda x: known[id(x)] if id(x) in known else Elsewhere(x), result
        )


def _by_booleans(indices: Any) -> bool:
    """How many elements come out depends on the values."""
    return any(index is not None and index.dtype == torch.bool for index in indices)


def moved(model: nn.Module) -> nn.Module:
    """The model with its parameters elsewhere. (``model.to`` would ask for a real device.)"""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)
    return model
