"""Where a model was watched: versions, device, number format, mode."""

from __future__ import annotations

import platform

import torch
from torch import nn

import nndiag
from nndiag.stats import Environment

__all__ = ["environment"]


def environment(model: nn.Module, device: str, seed: int | None) -> Environment:
    return Environment(
        nndiag=nndiag.__version__,
        torch=str(torch.__version__),
        python=platform.python_version(),
        device=device,
        dtype=_dtype(model),
        seed=seed,
        mode=_mode(model),
    )


def _dtype(model: nn.Module) -> str:
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    return ", ".join(sorted(kinds)) or str(torch.get_default_dtype()).removeprefix("torch.")


def _mode(model: nn.Module) -> str:
    modes = {m.training for m in model.modules()}
    return "mixed" if len(modes) == 2 else "train" if modes == {True} else "eval"
