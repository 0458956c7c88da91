"""Small networks on real data, in three forms, and optimisers for them that are usual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration import trained

SAMPLES = 128


@dataclass(frozen=True)
class Case:
    """What ``check`` takes, and the rule that should lead; "" where nothing is wrong."""

    name: str
    rule: str
    build: Callable[[], tuple[nn.Module, Any, Any, Any, Any]]


class Functional(nn.Module):
    """A perceptron of bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(48, 13) * (2 / 13) ** 0.5)
        self.shift = nn.Parameter(torch.zeros(48))
        self.second = nn.Parameter(torch.randn(3, 48) / 48**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.first, self.shift)), self.second)


class Convolutions(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16) if norm else nn.Identity(),
            nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32) if norm else nn.Identity(),
            nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(trained.LETTERS), 24)
        self.rnn = nn.GRU(24, 48, batch_first=True)
        self.head = nn.Linear(48, len(trained.LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0]).transpose(1, 2)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.randn(8, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.body(x.squeeze(1)) + self.place).mean(1))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(13, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 48), nn.ReLU(),
        nn.Linear(48, 3),
    )  # fmt: skip


def regression() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1))


def autoencoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 64))


Made = tuple[nn.Module, Tensor, Tensor, Callable[[Any, Tensor], Tensor]]


def made(name: str, seed: int = 0) -> Made:
    """A network as it is built, a batch, its targets and its loss."""
    build, task = NETS[name]
    torch.manual_seed(seed)
    model = build()
    data = task.data()
    return model, data.x[:SAMPLES], data.y[:SAMPLES], task.loss


NETS: dict[str, tuple[Callable[[], nn.Module], trained.Task]] = {
    "perceptron": (perceptron, trained.WINE),
    "functional": (Functional, trained.WINE),
    "convolutions": (lambda: Convolutions(False), trained.DIGITS),
    "batch-norm": (lambda: Convolutions(True), trained.DIGITS),
    "recurrent": (Recurrent, trained.TEXT),
    "transformer": (Transformer, trained.DIGITS),
    "regression": (regression, trained.DIABETES),
    "autoencoder": (autoencoder, trained.REBUILD),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, k=1.0: torch.optim.SGD(p, 0.05 * k, weight_decay=5e-4),
    "sgd-low": lambda p, k=1.0: torch.optim.SGD(p, 0.01 * k),
    "momentum": lambda p, k=1.0: torch.optim.SGD(p, 0.01 * k, momentum=0.9, weight_decay=5e-4),
    "adam": lambda p, k=1.0: torch.optim.Adam(p, 1e-3 * k),
    "adamw": lambda p, k=1.0: torch.optim.AdamW(p, 3e-4 * k, weight_decay=0.1),
    "rmsprop": lambda p, k=1.0: torch.optim.RMSprop(p, 1e-3 * k),
    "adagrad": lambda p, k=1.0: torch.optim.Adagrad(p, 1e-2 * k),
}


def fit(made: Made, optimizer: torch.optim.Optimizer, steps: int) -> None:
    model, x, y, loss = made
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
