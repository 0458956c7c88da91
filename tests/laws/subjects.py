"""Small networks, sick and healthy, for the laws to be tried on; each is checked in milliseconds.

A subject is a recipe: a model from one seed, data of any size from another, a loss. ``leads`` names
the rule that its injected fault belongs to; None is healthy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

import nndiag

FEATURES, WIDTH, CLASSES, TOKENS = 16, 32, 4, 20
N = 128


@dataclass(frozen=True)
class Subject:
    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[int], torch.Tensor]
    leads: str | None = None

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def data(self, n: int = N, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples and their classes: the first of a larger draw are those of a smaller one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = [(self.draw(16), torch.randint(0, CLASSES, (16,))) for _ in range(-(-n // 16))]
        x, y = (torch.cat(part)[:n] for part in zip(*drawn, strict=True))
        return x, y

    def __repr__(self) -> str:
        return self.name


SUBJECTS: dict[str, Subject] = {}
seeds = st.integers(0, 3)


def any_subject(but: tuple[str, ...] = (), only: Callable[[Subject], bool] | None = None) -> Any:
    """Strategy: a subject and the seed of its weights."""
    chosen = [s for s in SUBJECTS.values() if s.name not in but and (only is None or only(s))]
    return st.tuples(st.sampled_from(chosen), seeds)


def subject(draw: Callable[[int], torch.Tensor], leads: str | None = None) -> Any:
    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        name = build.__name__.replace("_", "-")
        SUBJECTS[name] = Subject(name, build, draw, leads)
        return build

    return register


def check(
    model: nn.Module, data: Any, loss_fn: Any = F.cross_entropy, **options: Any
) -> nndiag.Report:
    return nndiag.check(model, data, loss_fn=loss_fn, config=False, **options)


@functools.cache
def usual(subject: Subject, seed: int) -> nndiag.Report:
    """The report that the others are held against."""
    return check(subject.model(seed), subject.data(seed=seed + 1))


def vectors(n: int) -> torch.Tensor:
    return torch.randn(n, FEATURES)


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8)


def sequences(n: int) -> torch.Tensor:
    return torch.randn(n, 6, FEATURES)


def sentences(n: int) -> torch.Tensor:
    return torch.randint(0, TOKENS, (n, 6))


def init(layer: nn.Module, gain: float) -> nn.Module:
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    nn.init.zeros_(layer.bias)
    return layer


def mlp(
    activation: Callable[[], nn.Module], gain: float, depth: int = 4, width: int = WIDTH
) -> nn.Sequential:
    """Weights at 0, 2, 4, ...; the gain is the weights' std times the root of their fan-in."""
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [init(nn.Linear(width if k else FEATURES, width), gain), activation()]
    return nn.Sequential(*layers, init(nn.Linear(width, CLASSES), 1.0))


HE, XAVIER = math.sqrt(2), 1.0

# -- healthy ------------------------------------------------------------------------------------


@subject(vectors)
def he_mlp() -> nn.Module:
    return mlp(nn.ReLU, HE)


@subject(vectors)
def tanh_mlp() -> nn.Module:
    return mlp(nn.Tanh, XAVIER, depth=8)


@subject(vectors)
def gelu_default_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


@subject(images)
def batch_norm_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 16, CLASSES),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


@subject(vectors)
def residual_mlp() -> nn.Module:
    blocks = [
        Residual(nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, WIDTH), nn.ReLU(),
                               nn.Linear(WIDTH, FEATURES)))
        for _ in range(4)
    ]  # fmt: skip
    return nn.Sequential(*blocks, nn.LayerNorm(FEATURES), nn.Linear(FEATURES, CLASSES))


class Attention(nn.Module):
    """Written out: queries, keys and values of one head."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(FEATURES, FEATURES) for _ in range(3))
        self.out, self.scale = nn.Linear(FEATURES, FEATURES), scale / math.sqrt(FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1) * self.scale
        return self.out(torch.softmax(scores, -1) @ self.v(x))


class Pooled(nn.Module):
    """Mean over the steps of what a body makes of a sequence, and a head."""

    def __init__(self, body: nn.Module, width: int = FEATURES) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.head((x[0] if isinstance(x, tuple) else x).mean(1))


def transformer(scale: float = 1.0) -> nn.Module:
    blocks: list[nn.Module] = []
    for _ in range(2):
        norm, wide = nn.LayerNorm(FEATURES), nn.Linear(FEATURES, WIDTH)
        feed = nn.Sequential(
            nn.LayerNorm(FEATURES), wide, nn.GELU(), nn.Linear(WIDTH, FEATURES)
        )  # fmt: skip
        blocks += [Residual(nn.Sequential(norm, Attention(scale))), Residual(feed)]
    return Pooled(nn.Sequential(*blocks, nn.LayerNorm(FEATURES)))


@subject(sequences)
def pre_norm_transformer() -> nn.Module:
    return transformer()


@subject(sequences)
def torch_transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        FEATURES, 2, WIDTH, dropout=0.0, batch_first=True, norm_first=True
    )
    return Pooled(nn.Sequential(layer, nn.LayerNorm(FEATURES)))


@subject(sequences)
def lstm() -> nn.Module:
    return Pooled(nn.LSTM(FEATURES, WIDTH, batch_first=True), WIDTH)


@subject(sentences)
def embedding_gru() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(TOKENS, FEATURES), Pooled(nn.GRU(FEATURES, WIDTH, batch_first=True), WIDTH)
    )


# -- sick ---------------------------------------------------------------------------------------


@subject(vectors, "vanishing-gradient")
def sigmoid_stack() -> nn.Module:
    return mlp(nn.Sigmoid, XAVIER, depth=8)


@subject(vectors, "init-scale")
def tanh_too_small() -> nn.Module:
    return mlp(nn.Tanh, 0.01 * math.sqrt(WIDTH), depth=6)


@subject(vectors, "init-scale")
def tanh_too_large() -> nn.Module:
    return mlp(nn.Tanh, 4 * math.sqrt(WIDTH), depth=6)


@subject(vectors, "init-scale")
def deep_default_relu() -> nn.Module:
    return mlp(nn.ReLU, 1 / math.sqrt(3), depth=10)


@subject(vectors, "init-scale")
def exploding() -> nn.Module:
    return mlp(lambda: nn.LeakyReLU(0.5), 5.0, depth=8)


@subject(images, "init-scale")
def small_convolutions() -> nn.Module:
    layers: list[nn.Module] = []
    for k in range(6):
        layers += [init(nn.Conv2d(8 if k else 3, 8, 3, padding=1), 0.1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, CLASSES))


@subject(vectors, "dead-relu")
def dead_biases() -> nn.Module:
    model = mlp(nn.ReLU, HE)
    nn.init.constant_(model[2].bias[:24], -30.0)
    return model


@subject(vectors, "dead-relu")
def dead_layer() -> nn.Module:
    model = mlp(nn.ReLU, HE)
    nn.init.constant_(model[4].bias, -30.0)
    return model


@subject(vectors, "saturation")
def saturated_biases() -> nn.Module:
    model = mlp(nn.Tanh, XAVIER, depth=3)
    nn.init.uniform_(model[2].bias, 5, 6)
    return model


@subject(sequences, "saturation")
def one_hot_attention() -> nn.Module:
    return transformer(scale=300.0)


@subject(sequences, "saturation")
def saturated_lstm() -> nn.Module:
    model = Pooled(nn.LSTM(FEATURES, WIDTH, batch_first=True), WIDTH)
    nn.init.constant_(model.body.bias_ih_l0[2 * WIDTH : 3 * WIDTH], 20.0)
    return model


@subject(vectors, "symmetry")
def all_zero() -> nn.Module:
    model = mlp(nn.ReLU, HE)
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


@subject(vectors, "symmetry")
def constant_weights() -> nn.Module:
    model = mlp(nn.Tanh, XAVIER)
    for layer in model[::2]:
        nn.init.constant_(layer.weight, 0.05)
    return model


@subject(vectors, "symmetry")
def equal_units() -> nn.Module:
    return duplicated(mlp(nn.Tanh, XAVIER), WIDTH // 2)


def duplicated(model: nn.Sequential, count: int) -> nn.Sequential:
    """The first units of the second hidden layer are copies of one another, in and out."""
    with torch.no_grad():
        model[2].weight[:count] = model[2].weight[0].clone()
        model[2].bias[:count] = model[2].bias[0].clone()
        model[4].weight[:, :count] = model[4].weight[:, :1].clone()
    return model


@subject(vectors, "frozen-layer")
def frozen_middle() -> nn.Module:
    model = mlp(nn.ReLU, HE)
    model[4].requires_grad_(False)
    return model


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(nn.ReLU, HE)[:4], nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).detach())


@subject(vectors, "no-gradient")
def detached_body() -> nn.Module:
    return Detached()


class Unused(nn.Module):
    """Two parts that have nothing to do with one another never run."""

    def __init__(self) -> None:
        super().__init__()
        self.main = mlp(nn.ReLU, HE)
        self.left, self.right = nn.Linear(FEATURES, 2), nn.Sequential(nn.Linear(FEATURES, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


@subject(vectors, "no-gradient")
def unused_parts() -> nn.Module:
    return Unused()


@subject(vectors, "covariate-shift")
def foreign_statistics() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )
    with torch.no_grad():
        for _ in range(30):
            model(30 + 0.1 * torch.randn(64, FEATURES))
    return model.eval()


@subject(vectors, "non-finite")
def root_of_negatives() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), Root(), nn.Linear(WIDTH, CLASSES))


class Root(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()
