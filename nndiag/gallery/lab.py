"""What the experiments share: seeds, progress, nndiag's verdict on a network, and real data."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import nndiag
from nndiag.demo import leading, verdict
from nndiag.errors import MissingPackageError

T = TypeVar("T")


class Lab:
    """Where a page measures.

    Args:
        told: is handed the share of the page that is done, from 0 to 1, and what is done now.
    """

    def __init__(self, told: Callable[[float, str], None] = lambda share, text: None) -> None:
        self._told = told
        self._verdicts: list[dict[str, object]] = []
        self._depth = 0

    def track(self, items: Iterable[T], text: str = "") -> Iterator[T]:
        """The same items; the outermost loop of a page moves its progress bar."""
        listed = list(items)
        self._depth += 1
        for place, item in enumerate(listed):
            if self._depth == 1:
                self._told(place / len(listed), f"{text} {item if isinstance(item, str) else ''}")
            yield item
        self._depth -= 1

    def check(self, name: str, model: nn.Module, *batch: Any, **options: Any) -> nndiag.Report:
        """``nndiag.check``, its verdict kept for the page under ``name``."""
        report = nndiag.check(model, *batch, config=False, **options)
        grave = report.at_least("warning")
        self._verdicts.append(
            {
                "network": name,
                "verdict": verdict(report),
                "errors": sum(f.severity == "error" for f in grave),
                "warnings": sum(f.severity == "warning" for f in grave),
                "leading": leading(report),
                "message": grave[0].message if grave else "",
            }
        )
        return report

    @property
    def verdicts(self) -> pd.DataFrame:
        columns = ["network", "verdict", "errors", "warnings", "leading", "message"]
        return pd.DataFrame(self._verdicts, columns=columns)


# -- data ----------------------------------------------------------------------------------------


def _datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingPackageError(
            "the gallery measures on data that come with scikit-learn, which is not installed. "
            "Install it with: pip install 'nndiag[gallery]'"
        ) from error
    return datasets


@functools.cache
def _table(name: str) -> tuple[np.ndarray, np.ndarray]:
    load = {"wine": "load_wine", "cancer": "load_breast_cancer", "digits": "load_digits"}[name]
    x, y = getattr(_datasets(), load)(return_X_y=True)
    return x, y


def table(name: str) -> tuple[Tensor, Tensor]:
    """Real data, as they are, in an order shuffled once and for all.

    Args:
        name: ``digits`` (1797 x 64 pixels from 0 to 16, ten classes), ``wine`` (178 x 13
            measurements, three classes) or ``cancer`` (569 x 30 measurements, two classes).
    """
    x, y = _table(name)
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
    return np.stack(_datasets().load_sample_images().images)


# -- networks ------------------------------------------------------------------------------------


def mlp(
    widths: Sequence[int],
    activation: Callable[[], nn.Module],
    init: Callable[[nn.Linear], object] | None = None,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """Linear layers of these widths, input first; a norm and an activation behind all but the last.

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
    return nn.Sequential(*layers)


def normal(std: Callable[[int], float]) -> Callable[[nn.Linear], None]:
    """An init for ``mlp``: weights from N(0, std(fan_in)²), biases zero."""

    def draw(linear: nn.Linear) -> None:
        nn.init.normal_(linear.weight, std=std(linear.in_features))
        nn.init.zeros_(linear.bias)

    return draw


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int,
    batch: int = 64,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    each: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> list[float]:
    """Train in place on random batches drawn by ``seed``; the loss of each step.

    ``each`` is called behind every step. Training ends early where the loss is no longer finite.
    """
    draws = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=draws)
        value = loss(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value.item())
        each(step, value)
        if not np.isfinite(losses[-1]):
            break
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share that is classified right, in eval mode; the mode is as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    right = int((model(x).argmax(dim=1) == y).sum()) / len(y)
    for module, mode in modes.items():
        module.training = mode
    return right
