"""The networks whose training step is the unit of price."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from zoo import ResidualBlock

import nndiag

CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """A model, one batch for it, and the loss: all that a training step needs but the optimizer."""

    model: nn.Module
    x: torch.Tensor
    target: torch.Tensor
    loss_fn: Callable[[Any, torch.Tensor], torch.Tensor]
    unit: int  # the axis of a layer's output that runs over units; the samples lie along axis 0

    @property
    def batch(self) -> nndiag.Batch:
        return nndiag.Batch((self.x,), {}, self.target)

    def step(self) -> None:
        """The bare forward, loss and backward that everything is measured against."""
        self.loss_fn(self.model(self.x), self.target).backward()
        self.model.zero_grad(set_to_none=True)

    def to(self, device: str) -> Workload:
        """A copy there."""
        model = copy.deepcopy(self.model).to(device)
        return replace(self, model=model, x=self.x.to(device), target=self.target.to(device))

    def leaves(self) -> list[nn.Module]:
        return [m for m in self.model.modules() if not any(m.children())]


def tanh_chain(width: int, depth: int, batch: int, gain: float = 1.0) -> Workload:
    """``depth`` hidden layers of tanh, Xavier, and a head for ten classes."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.xavier_normal_(linear.weight, gain)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES))
    target = torch.randint(0, CLASSES, (batch,))
    return Workload(model, torch.randn(batch, width), target, F.cross_entropy, unit=1)


def mlp() -> Workload:
    return tanh_chain(width=512, depth=10, batch=256)


def narrow() -> Workload:
    """With the gain that is advised for tanh, 5/3, under which gradients of this depth explode."""
    return tanh_chain(width=32, depth=200, batch=64, gain=5 / 3)


class Block(ResidualBlock):
    """With its ReLU as a module, which plain hooks see."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


def resnet() -> Workload:
    """ResNet-18 as He et al. (2016) draw it, and with their initialisation."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [
        Block(inputs, outputs, 2 if outputs > inputs else 1)
        for inputs, outputs in itertools.pairwise(widths)
    ]
    stem = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    stem.append(nn.MaxPool2d(3, 2, padding=1))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)]
    model = nn.Sequential(*stem, *blocks, *head)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    target = torch.randint(0, CLASSES, (32,))
    return Workload(model, torch.randn(32, 3, 64, 64), target, F.cross_entropy, unit=1)


def gpt() -> Workload:
    """transformers' GPT-2 with random weights and no dropout (which would make the bare step dearer
    and every ratio smaller)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=1000, n_positions=128, n_embd=256, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    tokens = torch.randint(0, 1000, (8, 128))
    return Workload(GPT2LMHeadModel(config), tokens, tokens, next_token, unit=2)


def next_token(output: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def tiny() -> Workload:
    """For the tests of this harness."""
    return tanh_chain(width=4, depth=2, batch=8)


@dataclass(frozen=True)
class Goal:
    statistics: float
    check: float
    memory: float


RECIPES: dict[str, Callable[[], Workload]] = {
    "mlp": mlp,
    "resnet": resnet,
    "gpt": gpt,
    "narrow": narrow,
}
GOALS = {
    "mlp": Goal(statistics=1.30, check=3.5, memory=1.15),
    "resnet": Goal(statistics=1.50, check=3.5, memory=1.03),
    "gpt": Goal(statistics=1.30, check=3.5, memory=1.03),
    "narrow": Goal(statistics=3.5, check=6.0, memory=1.03),
}


def make(name: str) -> Workload:
    torch.manual_seed(0)
    return {**RECIPES, "tiny": tiny}[name]()
