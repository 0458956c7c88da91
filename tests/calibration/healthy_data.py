"""Healthy networks on data that look like a fault and are none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.cases import Subject
from calibration.faults_data import (
    PICTURES,
    SAMPLES,
    TABULAR,
    DataCase,
    housing,
    pictures,
    standardised,
    subject,
    table,
)

Data = Callable[[], tuple[Tensor, Tensor]]


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _classes(count: int = 4) -> Tensor:
    return torch.arange(SAMPLES) % count


def _words(rows: int = SAMPLES, vocabulary: int = 300) -> Tensor:
    rates = 1 / torch.arange(1, vocabulary + 1).float()
    return torch.poisson(30 * rates.expand(rows, -1), torch.Generator().manual_seed(0))


def _student(freedom: int) -> Tensor:
    normal, square = _noise(SAMPLES, 12), _noise(SAMPLES, 12, freedom, seed=1).square().mean(-1)
    return normal / square.sqrt()


TABLES: dict[str, Data] = {
    "wine-standardised": lambda: (standardised(table("wine")[0]), table("wine")[1]),
    "cancer-standardised": lambda: (
        standardised(table("breast_cancer")[0]), table("breast_cancer")[1],
    ),
    "housing-standardised": lambda: (standardised(housing()[0]), housing()[1]),
    "diabetes-small-targets": lambda: (
        standardised(table("diabetes")[0]), table("diabetes")[1][:, None] / 10,
    ),
    "iris-raw": lambda: table("iris"),
    "wine-minmax": lambda: (
        (table("wine")[0] - table("wine")[0].amin(0))
        / (table("wine")[0].amax(0) - table("wine")[0].amin(0)), table("wine")[1],
    ),
    "digits-16": lambda: (pictures(1)[0].flatten(1), pictures(1)[1]),
    "digits-raw": lambda: (pictures(16)[0].flatten(1), pictures(16)[1]),
    "one-hot": lambda: (F.one_hot(_classes(20), 20).float(), _classes()),
    "yes-or-no": lambda: ((_noise(SAMPLES, 16) > 1).float(), _classes()),
    "word-counts": lambda: (_words(), _classes()),
    "word-weights": lambda: (F.normalize(_words().log1p(), dim=1), _classes()),
    "whitened": lambda: (_noise(SAMPLES, 12), _classes()),
    "student-3": lambda: (_student(3), _classes()),
    "lognormal": lambda: (_noise(SAMPLES, 8).exp(), _classes()),
    "rms-13": lambda: (_noise(SAMPLES, 12) * 13, _classes()),
    "one-constant": lambda: (
        torch.cat([_noise(SAMPLES, 9), torch.ones(SAMPLES, 1)], 1), _classes(),
    ),
    "shifted-by-5": lambda: (_noise(SAMPLES, 6) + 5, _classes()),
    "minus-one-for-missing": lambda: (
        _noise(SAMPLES, 8).abs().masked_fill(_noise(SAMPLES, 8, seed=2) > 1.5, -1), _classes(),
    ),
    "mixed-kinds": lambda: (
        torch.cat([_noise(SAMPLES, 4), (_noise(SAMPLES, 4, seed=3) > 0).float()], 1), _classes(),
    ),
}  # fmt: skip


def _image_constants() -> tuple[Tensor, Tensor]:
    x, y = pictures(1, 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None], y


def _spectrogram(log: bool) -> tuple[Tensor, Tensor]:
    wave = _noise(SAMPLES, 1024) * 0.5
    power = torch.stft(wave, 64, 64, window=torch.hann_window(64), return_complex=True).abs()
    return ((power.square() + 1e-6).log() if log else power)[:, None], _classes()


IMAGES: dict[str, Data] = {
    "images-unit": lambda: pictures(1),
    "images-unit-3": lambda: pictures(1, 3),
    "images-constants": _image_constants,
    "images-signed": lambda: (pictures(2)[0] - 1, pictures(2)[1]),
    "spectrogram": lambda: _spectrogram(log=False),
    "log-spectrogram": lambda: _spectrogram(log=True),
}


class Scaled(nn.Module):
    """Brings the data to size 1 itself, by arithmetic."""

    def __init__(self, inner: nn.Module, way: str) -> None:
        super().__init__()
        self.inner, self.way = inner, way
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Any:
        if self.way == "divided":
            return self.inner(x / 255)
        if self.way == "bytes":
            return self.inner(x.float().div(255.0))
        return self.inner((x - self.mean) / self.std)


def _scaled(way: str) -> Subject:
    x, y = pictures(255)
    given = subject(PICTURES["cnn", "module"], x / 255, y)
    model = Scaled(given.model, way)
    if way == "standardised":
        model.mean, model.std = x.mean(), x.std()
    return given._replace(model=model, batch=x.byte() if way == "bytes" else x)


def _normalised(where: str) -> Subject:
    x, y = pictures(255) if where == "behind" else table("wine")
    torch.manual_seed(0)
    if where == "behind":
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        )  # fmt: skip
    else:
        net = nn.Sequential(nn.BatchNorm1d(13), nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    return Subject(net, x, y, F.cross_entropy)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5000, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.table(x.long()).mean(1)))


def _tokens(dtype: torch.dtype) -> Subject:
    torch.manual_seed(0)
    ids = torch.randint(0, 5000, (SAMPLES, 12), generator=torch.Generator().manual_seed(0))
    return Subject(Tokens(), ids.to(dtype), _classes(), F.cross_entropy)


class Prices(nn.Module):
    """Gives its output in the unit of the targets."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way = TABULAR["mlp", "module"](10, 1), way
        self.mean, self.std = 152_000.0, 77_000.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y.exp() * 100_000 if self.way == "exp" else y * self.std + self.mean


def _prices(way: str) -> Subject:
    torch.manual_seed(0)
    x, y = standardised(table("diabetes")[0]), table("diabetes")[1][:, None].float() * 1000
    if way in ("exp", "scaled"):
        return Subject(Prices(way), x, y, F.l1_loss if way == "exp" else F.mse_loss)
    mean, std = y.mean(), y.std()
    net = TABULAR["mlp", "module"](10, 1)
    if way == "in the loss":
        return Subject(net, x, y, lambda out, t: F.mse_loss(out, (t - mean) / std))
    if way == "by hand":
        return Subject(net, x, y, lambda out, t: ((out - (t - mean) / std) ** 2).mean())
    return Subject(net, x, y, lambda out, t: F.mse_loss(out, t.log() - 11.8))


def _labels(way: str) -> Subject:
    torch.manual_seed(0)
    x, rare = _noise(SAMPLES, 10), (torch.arange(SAMPLES) == 7).float()[:, None]
    net = TABULAR["mlp", "module"](10, 1)
    bce = nn.BCEWithLogitsLoss()
    if way == "generator":
        return Subject(net, x, torch.ones(SAMPLES, 1), bce)
    if way == "own-ones":
        return Subject(net, x, None, lambda out: bce(out, torch.ones_like(out)))
    if way == "rare":
        return Subject(net, x, rare, bce)
    if way == "few":
        five = TABULAR["mlp", "module"](10, 5)
        return Subject(five, x[:8], torch.zeros(8, dtype=torch.long), F.cross_entropy)
    if way == "few-of-two":
        return Subject(net, x[:64], torch.zeros(64, 1), bce)
    nn.init.constant_(net[-1].bias, -5.5)  # the log-odds of the rare class
    nn.init.zeros_(net[-1].weight)
    return Subject(net, x, rare, bce)


def _all() -> Iterator[DataCase]:
    for (key, make), (name, data) in itertools.product(TABULAR.items(), TABLES.items()):
        if key[0] == "tanh" and name in ("digits-raw", "rms-13"):
            continue  # 77 and 82 % saturated, which saturation is right to say
        yield DataCase(
            f"{name}/{key[0]}/{key[1]}", "", *key, lambda m=make, d=data: subject(m, *d())
        )
    for (key, make), (name, data) in itertools.product(PICTURES.items(), IMAGES.items()):
        yield DataCase(
            f"{name}/{key[0]}/{key[1]}", "", *key, lambda m=make, d=data: subject(m, *d())
        )
    single: dict[str, tuple[Callable[[Any], Subject], tuple[Any, ...]]] = {
        "scaled": (_scaled, ("divided", "bytes", "standardised")),
        "normalised": (_normalised, ("before", "behind")),
        "tokens": (_tokens, (torch.int64, torch.int32, torch.float32)),
        "prices": (_prices, ("exp", "scaled", "in the loss", "by hand", "log")),
        "labels": (
            _labels, ("generator", "own-ones", "rare", "few", "few-of-two", "prior"),
        ),
    }  # fmt: skip
    for kind, (build, ways) in single.items():
        for way in ways:
            yield DataCase(f"{kind}-{way}", "", kind, "module", lambda b=build, w=way: b(w))


HEALTHY: list[DataCase] = list(_all())
