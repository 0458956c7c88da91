"""Checks before a repair: a model that can be copied and changed, data that can be read again.

And after it: the optimisers that still hold the old parameters.
"""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nndiag.batch import Batch, batches
from nndiag.errors import FixError, ModelError, did_you_mean
from nndiag.fixes.fix import KINDS

__all__ = ["check_changeable", "checked_kinds", "copied", "optimizers", "repeatable", "with_target"]


def checked_kinds(only: Iterable[str] | str | None) -> frozenset[str] | None:
    """The kinds of fixes to try; None for all.

    Raises:
        FixError: a name that is no kind of fix.
    """
    if only is None:
        return None
    kinds = [only] if isinstance(only, str) else list(only)
    for kind in kinds:
        if kind not in KINDS:
            raise FixError(
                f"no fix is called {kind!r}.{did_you_mean(kind, KINDS)} Choose one of: "
                f"{', '.join(KINDS)}."
            )
    return frozenset(kinds)


def check_changeable(model: nn.Module) -> None:
    """Raises ModelError for what cannot be changed layer by layer."""
    if _is_compiled(model):
        raise ModelError(
            "the model is compiled, so its layers cannot be changed. Repair the model from before "
            "torch.compile (model._orig_mod), and compile the result."
        )
    for name, part in model.named_modules():
        where = name or "the model"
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{where} is a ScriptModule, whose layers are fixed. Repair the model that it was "
                "made from, and script or trace the result."
            )
        if ".quantized" in type(part).__module__:
            raise ModelError(
                f"{where} ({type(part).__name__}) is quantised: its weights cannot be drawn or "
                "scaled. Repair the floating-point model and quantise the result."
            )
    for name, tensor in model.named_parameters():
        if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
            raise ModelError(
                f"{name} is {tensor.dtype}: its values cannot be drawn or scaled. Repair the "
                "floating-point model and quantise the result."
            )


def _is_compiled(model: nn.Module) -> bool:
    return any(
        type(part).__name__ == "OptimizedModule" or part._compiled_call_impl is not None
        for part in model.modules()
    )


def copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise ModelError(
            f"a repair works on a copy, and {type(model).__name__} cannot be copied: "
            f"copy.deepcopy raises {type(error).__name__}: {reason}. It cannot copy tensors that "
            "are results of computations, locks and open files. Take them out, or give the model a "
            "__deepcopy__."
        ) from error


def repeatable(data: Any, most: int) -> Any:
    """Data that yield the same batches each time; ``most`` batches of a stream are kept."""
    if isinstance(data, (torch.Tensor, tuple, list, Mapping, Batch, str, bytes)):
        return data
    if not isinstance(data, Iterable):
        return data  # check() raises the error for it
    return list(itertools.islice(data, most))


def with_target(data: Any, target: Any, model: nn.Module) -> list[Batch]:
    stream = list(batches(data, model))
    return stream if target is None else [replace(b, target=target) for b in stream]


def optimizers(model: nn.Module) -> list[tuple[str, int]]:
    """Existing optimisers that hold parameters of this model, and how many each."""
    own = {id(p) for p in model.parameters()}
    holders = []
    for candidate in gc.get_objects():
        # type(), not isinstance: reading __class__ of some objects runs code.
        if issubclass(type(candidate), torch.optim.Optimizer):
            groups = vars(candidate).get("param_groups") or []
            held = sum(id(p) in own for group in groups for p in group["params"])
            if held:
                holders.append((type(candidate).__name__, held))
    return holders
