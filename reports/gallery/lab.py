"""What the experiments share: real data, small networks, one training loop, nndiag's verdicts."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

import nndiag
from nndiag.demo import leading, verdict

T = TypeVar("T")
Loss = Callable[[Tensor, Tensor], Tensor]


EXPERIMENT = ("ND6", "ND7", "ND8")
"""Families of rules about what is around the network."""


class Lab:
    """Where a page measures.

    Args:
        update: called with the share of the page that is done, from 0 to 1, and the current item.
        first: the first seed. The committed tables start at 0; another start repeats all of it on
            other random numbers.
    """

    def __init__(
        self, update: Callable[[float, str], None] = lambda share, text: None, first: int = 0
    ) -> None:
        self.first = first
        self._update = update
        self._verdicts: list[dict[str, object]] = []
        self._depth = 0

    def seeds(self, count: int) -> range:
        return range(self.first, self.first + count)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the outermost loop of a page moves its progress bar."""
        listed = list(items)
        self._depth += 1
        for place, item in enumerate(listed):
            if self._depth == 1:
                self._update(place / len(listed), item if isinstance(item, str) else "")
            yield item
        self._depth -= 1

    def check(
        self, name: str, model: nn.Module, *batch: Any, loss: Callable[..., Tensor] | None = None
    ) -> nndiag.Report:
        """``nndiag.check``, its verdict kept for the page under ``name``."""
        # The claims are about the network; what is wrong with data and loss would lead over it.
        report = nndiag.check(
            model, *batch, loss_fn=loss or F.cross_entropy, ignore=EXPERIMENT, config=False
        )
        severe = report.at_least("warning")
        self._verdicts.append(
            {
                "network": name,
                "verdict": verdict(report),
                "errors": sum(f.severity == "error" for f in severe),
                "warnings": sum(f.severity == "warning" for f in severe),
                "leading": leading(report),
                "message": severe[0].message if severe else "",
            }
        )
        return report

    @property
    def verdicts(self) -> pd.DataFrame:
        columns = ["network", "verdict", "errors", "warnings", "leading", "message"]
        return pd.DataFrame(self._verdicts, columns=columns)


# -- data ----------------------------------------------------------------------------------------


@functools.cache
def _loaded(name: str) -> tuple[np.ndarray, np.ndarray]:
    load = {"wine": "load_wine", "cancer": "load_breast_cancer", "digits": "load_digits"}[name]
    x, y = getattr(datasets, load)(return_X_y=True)
    return x, y


def table(name: str) -> tuple[Tensor, Tensor]:
    """Real data, as they are, in an order shuffled once and for all.

    Args:
        name: ``digits`` (1797 x 64 pixels from 0 to 16, ten classes), ``wine`` (178 x 13
            measurements, three classes) or ``cancer`` (569 x 30 measurements, two classes).
    """
    x, y = _loaded(name)
    order = np.random.default_rng(0).permutation(len(x))
    return torch.tensor(x[order], dtype=torch.float32), torch.tensor(y[order])


def split(x: Tensor, y: Tensor, train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first ``train`` rows to train on, the rest to test on."""
    return x[:train], y[:train], x[train:], y[train:]


def digits(train: int = 1297) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits to train and to test on, with the mean and deviation of all training pixels."""
    x, y, x_test, y_test = split(*table("digits"), train)
    mean, std = x.mean(), x.std()
    return (x - mean) / std, y, (x_test - mean) / std, y_test


@functools.cache
def photographs() -> np.ndarray:
    """Scikit-learn's two sample photographs (a temple, a flower): (2, 427, 640, 3), 0 to 255."""
    return np.stack(datasets.load_sample_images().images)


def tiles(size: int) -> tuple[np.ndarray, np.ndarray]:
    """All patches of this size, side by side, a row each, and the photograph that each is from."""
    images = photographs()
    n, height, width, channels = images.shape
    down, across = height // size, width // size
    cut = images[:, : down * size, : across * size].reshape(n, down, size, across, size, channels)
    flat = cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size * channels)
    return flat, np.repeat(np.arange(n), down * across)


# -- networks ------------------------------------------------------------------------------------


def mlp(
    widths: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    init: Callable[[nn.Linear], object] | None = None,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Linear layers of these widths, input first; behind all but the last a norm, an activation and
    dropout.

    ``init`` is called with every linear layer; None leaves torch's default.
    """
    layers: list[nn.Module] = []
    for place, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        linear = nn.Linear(fan_in, fan_out)
        if init is not None:
            init(linear)
        layers.append(linear)
        if place < len(widths) - 2:
            layers += [norm(fan_out)] if norm is not None else []
            layers.append(activation())
            layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


def normal(std: Callable[[int], float]) -> Callable[[nn.Linear], None]:
    """An init for ``mlp``: weights from N(0, std(fan_in)²), biases zero."""

    def draw(linear: nn.Linear) -> None:
        nn.init.normal_(linear.weight, std=std(linear.in_features))
        nn.init.zeros_(linear.bias)

    return draw


he, xavier = normal(lambda n: math.sqrt(2 / n)), normal(lambda n: 1 / math.sqrt(n))


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def train(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    optimizer: Any,
    steps: int,
    seed: int | torch.Generator = 0,
    batch: int = 64,
    *,
    loss: Loss = F.cross_entropy,
    choose: Callable[[], Any] | None = None,
    before: Callable[[int, Tensor, Tensor], Tensor] = lambda step, images, labels: images,
    each: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> np.ndarray:
    """Train in place; the loss of each step. Every page trains by this loop.

    It ends early where the loss is no longer finite.

    Args:
        model: a network, or a function of images that runs several networks side by side.
        optimizer: whatever has ``zero_grad`` and ``step``.
        seed: of the random batches of ``batch`` examples, or the generator that draws them.
        loss: of outputs and labels; one number, or one for each of several networks.
        choose: which examples the next step takes, if not a random batch.
        before: what the model gets instead of a step's images.
        each: is called behind every step.
    """
    draws = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    choose = choose or (lambda: torch.randint(len(x), (batch,), generator=draws))
    losses: list[np.ndarray] = []
    for step in range(steps):
        chosen = choose()
        images, labels = x[chosen], y[chosen]
        value = loss(model(before(step, images, labels)), labels)
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        losses.append(value.detach().numpy().astype(float))
        each(step, value)
        if not np.isfinite(losses[-1]).any():
            break
    return np.array(losses)


def sgd(model: nn.Module, rate: float, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, **options)


def adam(model: nn.Module, rate: float, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate, **options)


def softmax_regression(x: Tensor, y: Tensor, rate: float, target: float, most: int) -> list[float]:
    """The loss at each step of full-batch gradient descent from zero weights, with a bias.

    It ends at the target, after ``most`` steps, or where the loss explodes. In closed form and
    float64: it is run many hundred times.
    """
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    wanted = F.one_hot(y).to(x.dtype)
    weights = torch.zeros(x.shape[1], wanted.shape[1], dtype=x.dtype)
    losses: list[float] = []
    while len(losses) <= most:
        logs = torch.log_softmax(x @ weights, dim=1)
        losses.append(-(logs * wanted).sum().item() / len(x))
        if losses[-1] <= target or not losses[-1] < 1e3:
            break
        weights -= rate / len(x) * (x.T @ (logs.exp() - wanted))
    return losses


def largest_curvature(x: Tensor) -> float:
    """The largest eigenvalue of the second moments of (x, 1): twice a softmax's curvature at most
    (Böhning 1992)."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    return float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])


def timed(call: Callable[[], object], reference: Callable[[], object]) -> dict[str, float]:
    """How long a call takes over a reference: quartiles of PAIRS pairs, behind one to warm up."""

    def seconds(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    ratios = pd.Series([seconds(call) / seconds(reference) for _ in range(PAIRS + 1)][1:])
    low, high = ratios.quantile(0.25), ratios.quantile(0.75)
    return {"median": ratios.median(), "quarter": low, "three_quarters": high}


PAIRS = 31


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share that is classified right, in eval mode; the mode is as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    right = int((model(x).argmax(dim=1) == y).sum()) / len(y)
    for module, mode in modes.items():
        module.training = mode
    return right
