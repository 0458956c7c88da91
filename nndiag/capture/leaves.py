"""Tensors that learn and that the model does not list, with the names under which it holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from nndiag.capture.recorder import ROOT, Recorder
from nndiag.experiment import Unregistered

__all__ = ["unregistered"]

_DEPTH = 4  # of containers and modules below an attribute


def unregistered(model: nn.Module, recorder: Recorder) -> tuple[Unregistered, ...]:
    """Of the leaves that forward used and the model does not list, those that the loss reaches."""
    leaves = {
        key: leaf for key, leaf in recorder.unknown_leaves.items() if key in recorder.other_leaves
    }
    if not leaves:
        return ()
    names = _names(model, set(leaves))
    found = []
    for key, leaf in leaves.items():
        name, in_module = names.get(key, ("", False))
        row = recorder.rows[leaf.row].name if leaf.row < len(recorder.rows) else ROOT
        shape = tuple(leaf.tensor.shape)
        found.append(Unregistered(name, shape, row, leaf.location, in_module))
    return tuple(found)


def _names(model: nn.Module, wanted: set[int]) -> dict[int, tuple[str, bool]]:
    """For tensors by id: how the model reaches them, and whether a module of its own holds them."""
    names: dict[int, tuple[str, bool]] = {}
    for prefix, module in model.named_modules():
        for attribute, value in list(vars(module).items()):
            if attribute in _REGISTERED:
                continue
            path = ".".join(filter(None, ("model", prefix, attribute)))
            for name, tensor, in_module in _tensors(value, path, _DEPTH):
                if id(tensor) in wanted:
                    names.setdefault(id(tensor), (name, in_module))
    return names


_REGISTERED = ("_parameters", "_buffers", "_modules")


def _tensors(value: Any, path: str, depth: int) -> Iterator[tuple[str, torch.Tensor, bool]]:
    if isinstance(value, torch.Tensor):
        yield path, value, False
    elif isinstance(value, nn.Module):
        for name, parameter in value.named_parameters():
            yield f"{path}.{name}", parameter, True
    elif depth and isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from _tensors(item, f"{path}[{key!r}]", depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{path}[{index}]", depth - 1)
