"""Two of the demo's networks as a workflow names them: ``tests/ci/nets.py:healthy_cnn``."""

from __future__ import annotations

import torch
from torch import nn

from nndiag import demo

RECIPES = {recipe.name: recipe for recipe in demo.RECIPES}


def healthy_cnn() -> nn.Module:
    return demo.build(RECIPES["healthy-cnn"])


def sigmoid_stack() -> nn.Module:
    return demo.build(RECIPES["sigmoid-stack"])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    data = demo.digits()
    return data.images[:256], data.labels[:256]
