"""Faults of the data: each a network that is well, on data that are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.cases import Subject

SAMPLES = 256


class DataCase(NamedTuple):
    """A network, its data and the rule that should lead; "" for a healthy one."""

    name: str
    rule: str
    architecture: str
    form: str
    build: Callable[[], Subject]


# -- networks --------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Two hidden layers, by functions."""

    def __init__(self, d: int, out: int, act: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(d, 32), nn.Linear(32, 32), nn.Linear(32, out)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(F.linear(x, self.a.weight, self.a.bias))
        return self.c(self.act(self.b(x)))


class ByHand(nn.Module):
    """One hidden layer, of matrix products."""

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(d, 32) * (2 / d) ** 0.5)
        self.b = nn.Parameter(torch.zeros(32))
        self.v = nn.Parameter(torch.randn(32, out) * 32**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w + self.b).clamp(min=0) @ self.v


class Residual(nn.Module):
    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(d, 32), nn.Linear(32, 32), nn.Linear(32, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.inner(F.relu(x))))


class Columns1d(nn.Module):
    """A convolution over the columns."""

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 8, 3, padding=1), nn.Linear(8 * d, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x.unsqueeze(1))).flatten(1))


class Recurrent(nn.Module):
    """The columns at each of several steps."""

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(d, 24, batch_first=True), nn.Linear(24, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[:, None].expand(-1, 3, -1))[0][:, -1])


def module(d: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(d, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, out)
    )


def tanh(d: int, out: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(d, 32), nn.Tanh(), nn.Linear(32, out))
    nn.init.xavier_uniform_(net[0].weight)
    return net


def cnn(channels: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.LazyLinear(out),
    )  # fmt: skip


class FunctionalCNN(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(channels, 8, 3), nn.Linear(8, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.a.weight, self.a.bias))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


TABULAR: dict[tuple[str, str], Callable[[int, int], nn.Module]] = {
    ("mlp", "module"): module,
    ("mlp", "functional"): Functional,
    ("mlp", "by hand"): ByHand,
    ("tanh", "module"): tanh,
    ("residual", "functional"): Residual,
    ("conv1d", "functional"): Columns1d,
    ("gru", "module"): Recurrent,
}
PICTURES: dict[tuple[str, str], Callable[[int, int], nn.Module]] = {
    ("cnn", "module"): cnn,
    ("cnn", "functional"): FunctionalCNN,
}


# -- data ------------------------------------------------------------------------------------------


def table(name: str) -> tuple[Tensor, Tensor]:
    """A data set of scikit-learn as it comes, shuffled."""
    given = getattr(sklearn.datasets, f"load_{name}")(
        **({"scaled": False} if name == "diabetes" else {})
    )
    order = np.random.RandomState(0).permutation(len(given.data))[:SAMPLES]
    return torch.tensor(given.data[order]).float(), torch.tensor(given.target[order])


def housing() -> tuple[Tensor, Tensor]:
    """Columns like those of California's houses, and prices in units of 100,000."""
    r = np.random.RandomState(0)
    x = np.stack([
        r.lognormal(1.2, 0.5, SAMPLES), r.uniform(1, 52, SAMPLES), r.normal(5.4, 1, SAMPLES),
        r.normal(1.1, 0.1, SAMPLES), r.lognormal(7, 0.6, SAMPLES), r.normal(3, 0.5, SAMPLES),
        r.uniform(32, 42, SAMPLES), r.uniform(-124, -114, SAMPLES),
    ], 1)  # fmt: skip
    return torch.tensor(x).float(), torch.tensor(x[:, :1] * 0.5 + r.normal(0, 0.3, (SAMPLES, 1)))


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def pictures(scale: float, channels: int = 1) -> tuple[Tensor, Tensor]:
    given = sklearn.datasets.load_digits()
    order = np.random.RandomState(0).permutation(len(given.images))[:SAMPLES]
    x = torch.tensor(given.images[order]).float()[:, None] / 16 * scale
    return x.expand(-1, channels, -1, -1).contiguous(), torch.tensor(given.target[order])


def subject(
    make: Callable[[int, int], nn.Module], x: Tensor, y: Tensor, loss_fn: Any = None
) -> Subject:
    """A network for these data, from a seed; cross-entropy for whole numbers, else an error."""
    torch.manual_seed(0)
    classes = not y.is_floating_point()
    if not classes:
        y = (y if y.dim() > 1 else y[:, None]).float()
    net = make(x.shape[1], int(y.max()) + 1 if classes else y.shape[1])
    with torch.no_grad():
        net(x[:2])  # lazy layers
    return Subject(net, x, y, loss_fn or (F.cross_entropy if classes else F.mse_loss))


# -- faults ----------------------------------------------------------------------------------------

Made = Iterator[DataCase]


def _case(rule: str, kind: str, key: tuple[str, str], build: Callable[[], Subject]) -> DataCase:
    return DataCase(f"{kind}/{key[0]}/{key[1]}", rule, *key, build)


def scales() -> Made:
    raw = {
        "wine": lambda: table("wine"),
        "breast-cancer": lambda: table("breast_cancer"),
        "diabetes": lambda: (table("diabetes")[0], standardised(table("diabetes")[1][:, None])),
        "housing": housing,
    }
    for (key, make), (name, data) in itertools.product(TABULAR.items(), raw.items()):
        yield _case("input-scale", f"raw-{name}", key, lambda m=make, d=data: subject(m, *d()))
    for key, make in PICTURES.items():
        for channels in (1, 3):
            yield _case(
                "input-scale", f"bytes-{channels}", key,
                lambda m=make, c=channels: subject(m, *pictures(255, c)),
            )  # fmt: skip
        yield _case(
            "input-scale", "divided-twice", key, lambda m=make: subject(m, *pictures(1 / 255))
        )
    for key, make in TABULAR.items():
        yield _case(
            "input-scale", "pixels", key,
            lambda m=make: subject(m, pictures(255)[0].flatten(1), pictures(255)[1]),
        )  # fmt: skip


def _wine(change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    x, y = table("wine")
    return change(standardised(x)), y


def centres() -> Made:
    for (key, make), shift in itertools.product(TABULAR.items(), (22.0, -25.0)):
        yield _case(
            "input-not-centered", f"shift{shift:g}", key,
            lambda m=make, s=shift: subject(m, *_wine(lambda x: x + s)),
        )  # fmt: skip


def _spoiled(x: Tensor, column: int, rows: slice, value: float) -> Tensor:
    x = x.clone()
    x[rows, column] = value
    return x


def outliers() -> Made:
    for (key, make), value in itertools.product(TABULAR.items(), (500.0, -3210.0)):
        yield _case(
            "input-outliers", f"one{value:g}", key,
            lambda m=make, v=value: subject(m, *_wine(lambda x: _spoiled(x, 3, slice(5, 6), v))),
        )  # fmt: skip


def gaps() -> Made:
    values = (float("nan"), float("inf"), -999.0, -9999.0, 1e20)
    for (key, make), value in itertools.product(TABULAR.items(), values):
        yield _case(
            "input-missing", f"gap{value:g}", key,
            lambda m=make, v=value: subject(
                m, *_wine(lambda x: _spoiled(x, 2, slice(0, None, 9), v))
            ),
        )  # fmt: skip


def constants() -> Made:
    for (key, make), value in itertools.product(TABULAR.items(), (1.0, -0.5)):
        yield _case(
            "constant-feature", f"most{value:g}", key,
            lambda m=make, v=value: subject(
                m, *_wine(lambda x: torch.cat([x[:, :3], torch.full((len(x), 10), v)], 1))
            ),
        )  # fmt: skip


def by_hand(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean()


def targets() -> Made:
    losses = {"mse": nn.MSELoss(), "l1": F.l1_loss, "by hand": by_hand}
    for (key, make), (name, loss) in itertools.product(TABULAR.items(), losses.items()):
        yield _case(
            "target-scale", f"prices-{name}", key,
            lambda m=make, f=loss: subject(
                m, standardised(table("diabetes")[0]), table("diabetes")[1][:, None] * 1000, f
            ),
        )  # fmt: skip


def labels() -> Made:
    def zeros(make: Callable[[int, int], nn.Module], way: str) -> Subject:
        x, y = pictures(1)
        given = subject(make, x.flatten(1) if make in TABULAR.values() else x, y)
        none = torch.zeros_like(y)
        if way == "one-hot":
            return given._replace(target=F.one_hot(none, 10).float())
        if way == "log-softmax":
            return given._replace(
                target=none, loss_fn=lambda out, t: F.nll_loss(F.log_softmax(out, 1), t)
            )
        return given._replace(target=none, loss_fn=nn.CrossEntropyLoss())

    for (key, make), way in itertools.product(
        (TABULAR | PICTURES).items(), ("indices", "one-hot", "log-softmax")
    ):
        yield _case("label-imbalance", way, key, lambda m=make, w=way: zeros(m, w))


FAULTS: list[DataCase] = [
    *scales(), *centres(), *outliers(), *gaps(), *constants(), *targets(), *labels(),
]  # fmt: skip
