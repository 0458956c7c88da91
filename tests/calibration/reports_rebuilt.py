"""Faults as people report them and as research benchmarks publish them, each with its mended twin.

Small networks with Keras' inits and Keras' losses on probabilities, data of scikit-learn, made
tables, and made text. A pair is one function: what it builds with the fault, and without it. The
rule is the true cause's; ``also`` are rules that say the same thing of that experiment.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

from calibration.experiments_optimizer import Case

SEEN = 256  # samples that a check gets

Score = Callable[[nn.Module, Any, Tensor], float]
Made = tuple[nn.Module, Any, Tensor, Any, torch.optim.Optimizer]


@dataclass(frozen=True)
class Pair:
    """A fault and its twin. ``steps`` of ``batch`` samples show which of the two learns."""

    name: str
    rule: str
    make: Callable[[bool], Made]
    also: tuple[str, ...] = ()
    steps: int = 300
    batch: int = 64
    score: Score | None = None
    good: float = 0.8
    seen: int = SEEN

    def build(self, bad: bool) -> Made:
        torch.manual_seed(0)
        model, x, y, loss, optimizer = self.make(bad)
        return model, sliced(x, slice(self.seen)), y[: self.seen], loss, optimizer


PAIRS: list[Pair] = []


def pair(rule: str, *also: str, **how: Any) -> Callable[[Callable[[bool], Made]], Any]:
    def add(make: Callable[[bool], Made]) -> Callable[[bool], Made]:
        PAIRS.append(Pair(make.__name__.replace("_", " "), rule, make, also, **how))
        return make

    return add


def cases() -> tuple[list[Case], list[Case]]:
    """The faults, and the twins (rule ``""``)."""
    return (
        [Case(p.name, p.rule, lambda p=p: p.build(True)) for p in PAIRS],
        [Case(f"{p.name}, mended", "", lambda p=p: p.build(False)) for p in PAIRS],
    )


# --- data ---------------------------------------------------------------------------------------


def sliced(x: Any, rows: Any) -> Any:
    return tuple(part[rows] for part in x) if isinstance(x, tuple) else x[rows]


def shuffled(x: Tensor, y: Tensor, n: int | None = None) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:n]
    return x[order], y[order]


def digits(flat: bool = True, n: int = 1024) -> tuple[Tensor, Tensor]:
    d = datasets.load_digits()
    x, y = shuffled(
        torch.tensor(d.images, dtype=torch.float32)[:, None] / 16, torch.tensor(d.target)
    )
    return (x.flatten(1) if flat else x)[:n], y[:n]


def table(load: Any) -> tuple[Tensor, Tensor]:
    d = load()
    return shuffled(torch.tensor(d.data, dtype=torch.float32), torch.tensor(d.target))


def wine() -> tuple[Tensor, Tensor]:
    return table(datasets.load_wine)


def cancer() -> tuple[Tensor, Tensor]:
    x, y = table(datasets.load_breast_cancer)
    return x, y.float()[:, None]


def iris() -> tuple[Tensor, Tensor]:
    return table(datasets.load_iris)


def diabetes() -> tuple[Tensor, Tensor]:
    x, y = table(datasets.load_diabetes)
    return scaled(x), y.float()[:, None]


def circles() -> tuple[Tensor, Tensor]:
    x, y = datasets.make_circles(700, noise=0.08, factor=0.5, random_state=1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]


def blobs() -> tuple[Tensor, Tensor]:
    x, y = datasets.make_blobs(700, centers=3, n_features=2, cluster_std=1.5, random_state=2)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(n: int = 800, length: int = 20, words: int = 50) -> tuple[Tensor, Tensor]:
    """Sentences; the class is whether more of the words come from the upper half."""
    g = torch.Generator().manual_seed(4)
    y = torch.randint(0, 2, (n,), generator=g)
    low = torch.randint(1, words, (n, length), generator=g)
    upper = torch.rand(n, length, generator=g) < torch.where(y == 1, 0.65, 0.35)[:, None]
    half = words // 2
    return torch.where(upper, half + low % half, 1 + low % (half - 1)), y


def waves(n: int = 512, length: int = 16) -> tuple[Tensor, Tensor]:
    """Sequences of three channels in four frequencies."""
    y = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(5))
    rate = torch.tensor([0.3, 0.8, 1.4, 2.2])[y][:, None, None]
    t = torch.arange(length)[None, :, None] + normal(n, 1, 1).abs() * 5
    shift = torch.tensor([0.0, 1.0, 2.0])
    return torch.sin(t * rate + shift) + 0.2 * normal(n, length, 3), y


def scaled(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-9)


# --- networks -----------------------------------------------------------------------------------


def dense(i: int, o: int, init: str = "glorot") -> nn.Linear:
    """Keras' Dense: Glorot uniform, no bias at the start."""
    layer = nn.Linear(i, o)
    nn.init.zeros_(layer.bias)
    if init == "glorot":
        nn.init.xavier_uniform_(layer.weight)
    elif init == "he":
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    elif init == "normal":
        nn.init.normal_(layer.weight, 0, 0.05)
    elif init == "unit":
        nn.init.normal_(layer.weight)
    elif init == "zeros":
        nn.init.zeros_(layer.weight)
    else:
        nn.init.constant_(layer.weight, float(init))
    return layer


def mlp(
    *sizes: int, act: Any = nn.ReLU, last: nn.Module | None = None, init: str = "glorot"
) -> Any:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [dense(i, o, init), act()]
    return nn.Sequential(*layers[:-1], *([last] if last else []))


def adam(m: nn.Module, lr: float = 1e-3, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr, **more)


def sgd(m: nn.Module, lr: float = 0.05, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr, **more)


def keras_cce(p: Tensor, y: Tensor) -> Tensor:
    p = (p / p.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return -p.log().gather(1, y[:, None]).mean()


def keras_bce(p: Tensor, y: Tensor) -> Tensor:
    p = p.clamp(1e-7, 1 - 1e-7)
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


# --- how well it learnt ---------------------------------------------------------------------------


def outputs(m: nn.Module, x: Any) -> Tensor:
    with torch.no_grad():
        return m(*x) if isinstance(x, tuple) else m(x)


def accuracy(m: nn.Module, x: Any, y: Tensor) -> float:
    return float((outputs(m, x).argmax(1) == y).float().mean())


def at_half(m: nn.Module, x: Any, y: Tensor) -> float:
    return float(((outputs(m, x) > 0.5).flatten() == (y > 0.5).flatten()).float().mean())


def at_zero(m: nn.Module, x: Any, y: Tensor) -> float:
    return float(((outputs(m, x) > 0).flatten() == (y > 0.5).flatten()).float().mean())


def r2(m: nn.Module, x: Any, y: Tensor) -> float:
    p, y = outputs(m, x).flatten(), y.flatten().float()
    return float(1 - ((p - y) ** 2).mean() / ((y - y.mean()) ** 2).mean())


def on_cancer(m: nn.Module, x: Any, y: Tensor) -> float:
    x, y = cancer()
    return at_zero(m, scaled(x), y)


def one_by_one(m: nn.Module, x: Any, y: Tensor) -> float:
    """What a user sees in production: a sample at a time."""
    return accuracy_of(torch.cat([outputs(m, row[None]) for row in x[:128]]), y[:128])


def accuracy_of(o: Tensor, y: Tensor) -> float:
    return float((o.argmax(1) == y).float().mean())


def on_fresh(m: nn.Module, x: Any, y: Tensor) -> float:
    x, y = digits()
    return accuracy(m, x, y)


# --- the loss and the output ----------------------------------------------------------------------


@pair("output-activation", steps=150, score=accuracy, good=0.9)
def softmax_before_cross_entropy(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 64, 32, 10, last=nn.Softmax(-1) if bad else None)
    return m, x, y, nn.CrossEntropyLoss(), sgd(m, 0.3)


@pair("output-activation", steps=150, score=accuracy, good=0.9)
def sigmoid_on_ten_classes(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(64, 50), nn.Linear(50, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc2(torch.sigmoid(self.fc1(x)))
            return torch.sigmoid(x) if bad else x

    x, y = digits()
    m = Net()
    return m, x, y, F.cross_entropy, sgd(m, 0.9)


@pair("output-activation", steps=300, score=at_zero, good=0.9)
def sigmoid_and_logits_loss(bad: bool) -> Made:
    x, y = cancer()
    m = mlp(30, 16, 8, 1, last=nn.Sigmoid() if bad else None)
    return m, scaled(x), y, nn.BCEWithLogitsLoss(), adam(m)


@pair("output-activation", "unreachable-target", steps=200, score=accuracy, good=0.9)
def relu_on_the_logits(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 24, 3)
            self.fc = nn.Linear(96, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.c2(F.relu(self.c1(x)))), 2)
            x = self.fc(x.flatten(1))
            return F.relu(x) if bad else x

    x, y = digits(flat=False)
    m = Net()
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-3)


@pair("degenerate-softmax", "batch-mixing", steps=200, score=one_by_one, good=0.9)
def log_softmax_over_the_batch(bad: bool) -> Made:
    x, y = wine()
    m = mlp(13, 24, 3, last=nn.LogSoftmax(0 if bad else 1))
    return m, scaled(x), y, nn.NLLLoss(), adam(m, 1e-2)


@pair("loss-mismatch", "output-activation", steps=150, score=accuracy, good=0.9)
def softmax_into_nll(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10, last=nn.Softmax(1) if bad else nn.LogSoftmax(1))
    return m, x, y, nn.NLLLoss(), sgd(m, 0.1)


@pair("loss-mismatch", "output-activation", steps=150, score=accuracy, good=0.9)
def logits_into_nll(bad: bool) -> Made:
    x, y = iris()
    m = mlp(4, 16, 3, last=None if bad else nn.LogSoftmax(1))
    return m, scaled(x), y, F.nll_loss, adam(m, 2e-2)


@pair("output-activation", "loss-mismatch", steps=200, score=accuracy, good=0.85)
def no_softmax_before_a_loss_on_probabilities(bad: bool) -> Made:
    x, y = digits(flat=False)
    m = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), dense(72, 32), nn.ReLU(),
        dense(32, 10), *([] if bad else [nn.Softmax(1)]),
    )  # fmt: skip
    return m, x, y, keras_cce, adam(m)


@pair(
    "output-activation", "unreachable-target", "loss-mismatch", steps=300, score=at_half, good=0.9
)
def relu_before_binary_cross_entropy(bad: bool) -> Made:
    x, y = cancer()
    m = mlp(30, 12, 8, 1, init="normal", last=nn.ReLU() if bad else nn.Sigmoid())
    return m, scaled(x), y, keras_bce, adam(m)


@pair("output-activation", "loss-mismatch")
def linear_before_binary_cross_entropy(bad: bool) -> Made:
    x, y = cancer()
    m = mlp(30, 16, 16, 1, last=None if bad else nn.Sigmoid())
    return m, scaled(x), y, keras_bce, sgd(m, 0.1)


@pair("unreachable-target", "output-activation", "target-scale", steps=800, score=r2)
def tanh_output_for_temperatures(bad: bool) -> Made:
    x = normal(512, 4)
    y = 20 + 8 * x[:, :1] + 3 * x[:, 1:2] ** 2
    m = mlp(4, 32, 1, last=nn.Tanh() if bad else None)
    return m, x, (y if bad else (y - y.mean()) / y.std()), nn.MSELoss(), adam(m, 3e-3)


@pair("unreachable-target", "output-activation", steps=400, score=r2, good=0.7)
def sigmoid_output_for_standardised_targets(bad: bool) -> Made:
    x = normal(512, 8)
    y = torch.sin(x[:, :1]) + x[:, 1:2]
    m = mlp(8, 32, 16, 1, last=nn.Sigmoid() if bad else None)
    return m, x, scaled(y), nn.L1Loss(), adam(m, 3e-3)


@pair("unreachable-target", "output-activation", steps=400, score=r2, good=0.7)
def relu_output_for_returns(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(1, 24, batch_first=True), nn.Linear(24, 1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.fc(self.lstm(x)[0][:, -1])
            return out.relu() if bad else out

    x = normal(512, 10, 1)
    m = Net()
    return m, x, x[:, -3:].mean(1), F.mse_loss, adam(m, 5e-3)


@pair("degenerate-softmax", "output-activation", steps=200, score=at_half, good=0.9)
def softmax_over_one_unit(bad: bool) -> Made:
    x, y = cancer()
    m = mlp(30, 20, 1, last=nn.Softmax(1) if bad else nn.Sigmoid())
    return m, scaled(x), y, nn.BCELoss(), adam(m, 3e-3)


@pair("loss-mismatch", "unreachable-target", steps=300, score=on_cancer, good=0.9)
def labels_one_and_two(bad: bool) -> Made:
    x, y = cancer()
    m = mlp(30, 16, 1)
    return m, scaled(x), y + 1 if bad else y, nn.BCEWithLogitsLoss(), adam(m, 3e-3)


@pair("loss-mismatch", "unreachable-target", steps=300, score=at_half, good=0.95)
def labels_minus_one_and_one(bad: bool) -> Made:
    x, y = circles()
    m = mlp(2, 24, 1, last=nn.Sigmoid())
    return m, x, (2 * y - 1 if bad else y), keras_bce, adam(m, 2e-2)


@pair("loss-mismatch", "unreachable-target", steps=300, score=accuracy, good=0.9)
def one_sigmoid_for_three_classes(bad: bool) -> Made:
    x, y = iris()
    m = mlp(4, 16, 1 if bad else 3, last=nn.Sigmoid() if bad else None)
    return m, scaled(x), (y.float()[:, None] if bad else y), (
        keras_bce if bad else nn.CrossEntropyLoss()), adam(m, 2e-2)  # fmt: skip


def all_right(m: nn.Module, x: Any, y: Tensor) -> float:
    return float(((outputs(m, x) > 0) == (y > 0.5)).float().mean())


@pair("loss-mismatch", steps=300, score=all_right, good=0.9)
def several_labels_under_cross_entropy(bad: bool) -> Made:
    x = normal(512, 16)
    y = (x @ normal(16, 6, seed=8) > 0).float()
    m = mlp(16, 32, 6)
    return m, x, y, nn.CrossEntropyLoss() if bad else nn.BCEWithLogitsLoss(), adam(m, 1e-2)


@pair(
    "vanishing-gradient", "signal-collapse", "saturation", "lr-too-low", steps=300, score=accuracy
)
def softmax_as_hidden_activation(bad: bool) -> Made:
    x, y = digits()

    def act() -> nn.Module:
        return nn.Softmax(1) if bad else nn.ReLU()

    m = nn.Sequential(dense(64, 128), act(), dense(128, 128), act(), dense(128, 10), nn.Softmax(1))
    return m, x, y, keras_cce, sgd(m, 0.1)


@pair("target-shape", steps=300, score=r2, good=0.7)
def huber_of_a_column_and_a_row(bad: bool) -> Made:
    x = normal(512, 6)
    y = x[:, 0] * 2 + x[:, 1].abs()
    m = mlp(6, 32, 1)
    return m, x, (y if bad else y[:, None]), nn.SmoothL1Loss(), adam(m, 5e-3)


@pair("target-shape", steps=300, score=r2, good=0.4)
def own_error_of_a_row_and_a_column(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(10, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).squeeze(1) if bad else self.body(x)

    x, y = diabetes()
    m = Net()
    return m, x, scaled(y), lambda o, t: ((o - t) ** 2).mean(), adam(m, 3e-3)


class Attention(nn.Module):
    def __init__(self, dim: int, words: int = 50, width: int = 24) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Embedding(words, width)
        self.score = nn.Linear(width, 1)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.out((F.softmax(self.score(torch.tanh(h)), self.dim) * h).sum(1))


@pair("degenerate-softmax", "batch-mixing")
def attention_over_the_batch(bad: bool) -> Made:
    x, y = tokens()
    m = Attention(0 if bad else 1)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-2)


def weights_spread(m: Any, x: Tensor, y: Tensor) -> float:
    """How unequal the attention is; 0 where it cannot choose."""
    with torch.no_grad():
        return float(F.softmax(m.score(torch.tanh(m.embed(x))), m.dim).std(1).mean())


@pair("degenerate-softmax", steps=200, score=weights_spread, good=0.005)
def attention_over_its_one_score(bad: bool) -> Made:
    x, y = tokens()
    m = Attention(2 if bad else 1)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-2)


@pair("loss-mismatch", "output-activation", steps=200, score=accuracy, good=0.9)
def probabilities_into_kl_divergence(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10, last=nn.Softmax(1) if bad else nn.LogSoftmax(1))

    def loss(o: Tensor, t: Tensor) -> Tensor:
        return F.kl_div(o, F.one_hot(t, 10).float() * 0.9 + 0.01, reduction="batchmean")

    return m, x, y, loss, sgd(m, 0.1)


def foreground(m: nn.Module, x: Any, y: Tensor) -> float:
    p = outputs(m, x) > 0
    return float(2 * (p & (y > 0.5)).sum() / (p.sum() + y.sum()).clamp_min(1))


@pair("label-imbalance", steps=300, batch=32, score=foreground, good=0.2)
def a_rare_foreground(bad: bool) -> Made:
    x = normal(256, 1, 24, 24) * 0.5
    y = torch.zeros(256, 1, 24, 24)
    g = torch.Generator().manual_seed(2)
    for i in range(256):
        r, c = torch.randint(0, 22, (2,), generator=g)
        y[i, 0, r : r + 2, c : c + 1] = 1
    x = x + y * 1.5
    m = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 1, 1),
    )  # fmt: skip
    weight = None if bad else torch.tensor(100.0)
    return m, x, y, nn.BCEWithLogitsLoss(pos_weight=weight), sgd(m, 0.1)


@pair("unreachable-target", "loss-mismatch", "output-activation", steps=300, score=r2, good=0.6)
def autoencoder_with_sigmoid_on_standardised_pixels(bad: bool) -> Made:
    x, _ = digits()
    x = (x - x.mean()) / x.std()
    m = mlp(64, 32, 16, 32, 64, last=nn.Sigmoid() if bad else None)
    return m, x, x, nn.MSELoss(), adam(m, 3e-3)


@pair("unreachable-target", "input-scale", "output-activation", steps=300, score=r2, good=0.3)
def autoencoder_on_bytes(bad: bool) -> Made:
    x, _ = digits()
    x = (x * 255).round() if bad else x
    m = mlp(64, 32, 16, 32, 64, last=nn.Sigmoid())
    return m, x, x, F.mse_loss, adam(m, 3e-3)


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.mu, self.logvar = nn.Linear(64, 48), nn.Linear(48, 8), nn.Linear(48, 8)
        self.dec = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.enc(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        return self.dec(z), mu, logvar


def rebuilt(m: nn.Module, x: Any, y: Tensor) -> float:
    m.eval()
    with torch.no_grad():
        p = m(x)[0]
    y = (y - y.min()) / (y.max() - y.min())
    return float(1 - ((p - y) ** 2).mean() / ((y - y.mean(0)) ** 2).mean())


@pair("loss-mismatch", "unreachable-target", steps=600, score=rebuilt, good=0.3)
def vae_on_normalised_images(bad: bool) -> Made:
    x, _ = digits()
    x = (x - 0.3) / 0.37 if bad else x

    def loss(o: Any, t: Tensor) -> Tensor:
        p, mu, logvar = o
        own = -(t * p.clamp_min(1e-7).log() + (1 - t) * (1 - p).clamp_min(1e-7).log()).sum()
        return (own - 0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()) / len(t)

    m = Vae()
    return m, x, x, loss, adam(m, 3e-3)


@pair("output-activation", steps=200, score=at_zero, good=0.85)
def discriminator_with_sigmoid_and_logits_loss(bad: bool) -> Made:
    real, _ = digits(n=400)
    fake = torch.rand(400, 64, generator=torch.Generator().manual_seed(0))
    x, y = shuffled(
        torch.cat([real, fake]) * 2 - 1, torch.cat([torch.ones(400, 1), torch.zeros(400, 1)])
    )
    m = nn.Sequential(
        nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(64, 32), nn.LeakyReLU(0.2),
        nn.Linear(32, 1), *([nn.Sigmoid()] if bad else []),
    )  # fmt: skip
    return m, x, y, nn.BCEWithLogitsLoss(), adam(m, 2e-4, betas=(0.5, 0.999))


# --- the data -------------------------------------------------------------------------------------


@pair("input-scale", "saturation", steps=200, score=accuracy, good=0.95)
def bytes_into_sigmoids(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 64, 32, 10, act=nn.Sigmoid)
    return m, x * 255 if bad else x * 2 - 1, y, nn.CrossEntropyLoss(), adam(m, 1e-2)


@pair("input-scale", steps=300, score=accuracy, good=0.9)
def wine_as_it_comes(bad: bool) -> Made:
    x, y = wine()
    m = mlp(13, 32, 3)
    return m, (x if bad else scaled(x)), y, nn.CrossEntropyLoss(), sgd(m, 0.01, momentum=0.9)


@pair("input-scale", "target-scale", steps=400, score=r2, good=0.6)
def houses_with_populations(bad: bool) -> Made:
    z = normal(600, 6)
    x = z * torch.tensor([1.9, 12.0, 2.0, 1100.0, 2.0, 2.0])
    x = x + torch.tensor([3.9, 28.0, 5.0, 1400.0, 35.0, -119.0])
    y = 2 + z[:, :1] * 0.8 + 0.4 * z[:, 4:5] * z[:, 5:6].sign()
    m = mlp(6, 32, 16, 1)
    return m, (x if bad else scaled(x)), y, nn.MSELoss(), sgd(m, 1e-2)


@pair("input-scale", "input-not-centered", steps=300, score=at_zero, good=0.8)
def a_timestamp_among_the_features(bad: bool) -> Made:
    z = normal(512, 5)
    x = torch.cat([1.6e9 + 1e6 * normal(512, 1, seed=9), z], 1)
    y = (z[:, :1] + z[:, 1:2] > 0).float()
    m = mlp(6, 24, 1)
    return m, (x if bad else scaled(x)), y, nn.BCEWithLogitsLoss(), adam(m, 1e-2)


@pair("input-scale", steps=80, batch=32, score=accuracy, good=0.85)
def bytes_into_convolutions(bad: bool) -> Made:
    x, y = digits(flat=False)
    m = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    return m, (x * 255).round() if bad else x, y, nn.CrossEntropyLoss(), sgd(m, 0.05, momentum=0.9)


@pair("input-missing", "non-finite", steps=200, score=accuracy, good=0.9)
def missing_values_in_a_table(bad: bool) -> Made:
    x, y = wine()
    x = scaled(x)
    x[::9, 4] = float("nan") if bad else 0.0
    m = mlp(13, 24, 3)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 5e-3)


@pair("input-missing", "input-scale", "input-outliers", steps=150, score=r2, good=0.6)
def a_code_for_missing_values(bad: bool) -> Made:
    x = normal(512, 8)
    y = x[:, :1] + x[:, 1:2] - x[:, 2:3]
    x = x.clone()
    x[::7, 5] = -999.0 if bad else 0.0
    x[3::11, 6] = -999.0 if bad else 0.0
    m = mlp(8, 32, 1)
    return m, x, y, nn.MSELoss(), sgd(m, 0.02)


@pair("target-scale", "lr-too-high", steps=300, score=r2, good=0.4)
def diabetes_targets_as_they_come(bad: bool) -> Made:
    x, y = diabetes()
    m = mlp(10, 32, 1)
    return m, x, (y if bad else scaled(y)), nn.MSELoss(), sgd(m, 0.03)


@pair("target-scale", steps=600, score=r2, good=0.7)
def prices_in_dollars(bad: bool) -> Made:
    x = normal(512, 5)
    y = (3e5 + 9e4 * x[:, 0] + 5e4 * x[:, 1].relu())[:, None]
    m = mlp(5, 64, 64, 1)
    return m, x, (y if bad else scaled(y)), nn.L1Loss(), adam(m, 1e-3)


@pair("input-scale", "lr-too-low", steps=300, score=accuracy, good=0.8)
def divided_by_255_twice(bad: bool) -> Made:
    x, y = digits(flat=False)
    m = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip
    return m, (x / 255 if bad else x), y, nn.CrossEntropyLoss(), sgd(m, 0.1)


@pair("label-imbalance", steps=150, score=on_fresh, good=0.8)
def sorted_and_not_shuffled(bad: bool) -> Made:
    x, y = digits()
    order = y.argsort() if bad else torch.arange(len(y))
    m = mlp(64, 48, 10)
    keep = slice(64) if bad else slice(None)
    return m, x[order][keep], y[order][keep], nn.CrossEntropyLoss(), adam(m, 5e-3)


@pair("label-imbalance", steps=150, score=on_cancer, good=0.9)
def labels_compared_with_a_string(bad: bool) -> Made:
    x, y = cancer()
    m = mlp(30, 16, 1)
    return m, scaled(x), torch.zeros_like(y) if bad else y, nn.BCEWithLogitsLoss(), adam(m, 5e-3)


@pair(
    "constant-feature", "signal-collapse", "input-scale", "input-missing", steps=200, score=accuracy
)
def every_sample_normalised_to_nothing(bad: bool) -> Made:
    x, y = iris()
    x = scaled(x)[:, 2:3] + 0.0
    x = x - x.mean(1, keepdim=True) if bad else x
    m = mlp(1, 16, 3)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 2e-2)


@pair("input-scale", "input-outliers", steps=200, score=at_zero, good=0.92)
def incomes_with_a_long_tail(bad: bool) -> Made:
    z = normal(512, 4)
    x = torch.cat([(2.5 * z[:, :2]).exp(), z[:, 2:]], 1)
    y = (z[:, :1] + z[:, 2:3] > 0).float()
    m = mlp(4, 24, 1)
    return m, (x if bad else z), y, nn.BCEWithLogitsLoss(), sgd(m, 0.05)


@pair("input-scale", "input-not-centered", steps=300, score=at_zero, good=0.85)
def readings_around_a_hundred(bad: bool) -> Made:
    z = normal(512, 6)
    y = (z[:, :1] - z[:, 1:2] > 0).float()
    m = mlp(6, 24, 1, act=nn.Tanh)
    return m, (z + 100 if bad else z), y, nn.BCEWithLogitsLoss(), adam(m, 3e-3)


# --- how the network is written -------------------------------------------------------------------


@pair("missing-activation", steps=400, score=at_half, good=0.9)
def circles_without_an_activation(bad: bool) -> Made:
    x, y = circles()
    m = mlp(2, 32, 32, 1, act=nn.Identity if bad else nn.ReLU, last=nn.Sigmoid())
    return m, x, y, nn.BCELoss(), adam(m, 1e-2)


@pair("vanishing-gradient", "signal-collapse", "saturation", steps=300, score=accuracy)
def twelve_sigmoid_layers(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, *[48] * (12 if bad else 1), 10, act=nn.Sigmoid)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 3e-3)


@pair("init-scale", "saturation", steps=150, score=accuracy, good=0.9)
def tanh_layers_drawn_too_large(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 128, 128, 128, 10, act=nn.Tanh, init="unit" if bad else "glorot")
    return m, x * 2 - 1, y, nn.CrossEntropyLoss(), sgd(m, 0.05)


@pair("symmetry", "no-gradient", "init-scale", steps=200, score=accuracy, good=0.9)
def all_weights_zero(bad: bool) -> Made:
    x, y = wine()
    m = mlp(13, 24, 24, 3, init="zeros" if bad else "glorot")
    return m, scaled(x), y, nn.CrossEntropyLoss(), sgd(m, 0.1)


@pair("symmetry", "init-scale", steps=200, score=accuracy, good=0.85)
def all_weights_equal(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 32, 10, act=nn.Sigmoid, init="0.1" if bad else "glorot")
    return m, x, y, nn.CrossEntropyLoss(), sgd(m, 0.5)


@pair("init-scale", "exploding-gradient", steps=100, score=accuracy, good=0.85)
def relu_layers_drawn_from_a_unit_normal(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 128, 128, 64, 10, init="unit" if bad else "he")
    return m, x, y, nn.CrossEntropyLoss(), sgd(m, 0.05)


@pair("dead-relu", "init-scale", "no-gradient", steps=200, score=accuracy, good=0.85)
def biases_far_below_zero(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 64, 32, 10)
    if bad:
        for layer in (m[0], m[2]):
            nn.init.constant_(layer.bias, -10.0)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-3)


class Listed(nn.Module):
    def __init__(self, bad: bool) -> None:
        super().__init__()
        convs = [nn.Conv2d(1 if not i else 12, 12, 3, padding=1) for i in range(3)]
        self.convs = convs if bad else nn.ModuleList(convs)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.fc(x.mean((2, 3)))


@pair("unregistered-parameter", steps=300, score=accuracy, good=0.6)
def convolutions_in_a_list(bad: bool) -> Made:
    x, y = digits(flat=False)
    m = Listed(bad)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-2)


@pair("unregistered-parameter", steps=200, score=accuracy, good=0.85)
def a_layer_made_in_forward(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(64, 32)
            if not bad:
                self.fc = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.body(x))
            return nn.Linear(32, 10)(h) if bad else self.fc(h)

    x, y = digits()
    m = Net()
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 3e-3)


class Cut(nn.Module):
    """An encoder, and something between it and the head."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.encoder = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2), nn.Tanh())
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.encoder(x)))


@pair("no-gradient", steps=600, score=at_zero, good=0.9)
def a_detach_between_two_parts(bad: bool) -> Made:
    x, y = circles()
    m = Cut((lambda h: h.detach()) if bad else (lambda h: h))
    return m, x, y, nn.BCEWithLogitsLoss(), adam(m, 2e-2)


@pair("no-gradient", steps=600, score=at_zero, good=0.9)
def through_numpy_and_back(bad: bool) -> Made:
    x, y = circles()
    m = Cut((lambda h: torch.from_numpy(h.detach().numpy())) if bad else (lambda h: h))
    return m, x, y, nn.BCEWithLogitsLoss(), adam(m, 2e-2)


@pair("no-gradient", steps=600, score=at_zero, good=0.9)
def a_rounded_code(bad: bool) -> Made:
    x, y = circles()
    m = Cut(torch.round if bad else (lambda h: h))
    return m, x, y, nn.BCEWithLogitsLoss(), adam(m, 2e-2)


@pair("unreachable-target", "no-gradient", steps=300, score=r2, good=0.7)
def the_output_clamped(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(6, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x)
            return out.clamp(0, 1) if bad else out

    x = normal(512, 6)
    m = Net()
    return m, x, 5 + 2 * x[:, :1] - x[:, 1:2], nn.MSELoss(), adam(m, 2e-2)


@pair("frozen-layer", "optimizer-coverage", "no-gradient", steps=200, score=accuracy, good=0.8)
def a_new_head_frozen_with_the_rest(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 128, 64, 10)
    for p in (m if bad else m[:-1]).parameters():
        p.requires_grad_(False)
    if bad:
        m[0].bias.requires_grad_(True)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-2)


class Recurrent(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.lstm = nn.LSTM(3, 32, batch_first=how == "batch_first")
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "view":
            return self.fc(self.lstm(x.reshape(x.shape[1], x.shape[0], -1))[0][-1])
        if self.how == "transpose":
            return self.fc(self.lstm(x.transpose(0, 1))[0][-1])
        return self.fc(self.lstm(x)[0][:, -1])


@pair("batch-mixing", steps=300, score=accuracy, good=0.8)
def a_view_for_a_transpose(bad: bool) -> Made:
    x, y = waves()
    m = Recurrent("view" if bad else "transpose")
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-2)


@pair("batch-mixing", steps=300, score=one_by_one, good=0.8)
def batch_first_forgotten(bad: bool) -> Made:
    x, y = waves()
    m = Recurrent("" if bad else "batch_first")
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-2)


def in_eval(m: nn.Module, x: Any, y: Tensor) -> float:
    m.eval()
    return accuracy(m, x, y)


@pair("train-eval-gap", "bn-small-batch", steps=100, score=in_eval, good=0.8)
def running_statistics_never_updated(bad: bool) -> Made:
    x, y = digits(flat=False)
    momentum = 0.0 if bad else 0.1
    m = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12, momentum=momentum), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16, momentum=momentum), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 10),
    )  # fmt: skip
    optimizer = adam(m, 1e-2)
    for i in range(0, 960, 32):
        optimizer.zero_grad()
        F.cross_entropy(m(x[i : i + 32] * 6), y[i : i + 32]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return m, x * 6, y, nn.CrossEntropyLoss(), optimizer


@pair("bn-small-batch", "train-eval-gap", steps=300, batch=2, score=accuracy, good=0.8, seen=2)
def batch_norm_on_two_samples(bad: bool) -> Made:
    x, y = digits()

    def norm() -> nn.Module:
        return nn.BatchNorm1d(64) if bad else nn.LayerNorm(64)

    m = nn.Sequential(nn.Linear(64, 64), norm(), nn.ReLU(), nn.Linear(64, 64), norm(), nn.ReLU(),
                      nn.Linear(64, 10))  # fmt: skip
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 3e-3)


@pair("dropout-too-high", steps=150, score=accuracy, good=0.85)
def keep_probability_as_dropout(bad: bool) -> Made:
    x, y = digits()
    p = 0.95 if bad else 0.05
    m = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 64), nn.ReLU(),
                      nn.Dropout(p), nn.Linear(64, 10))  # fmt: skip
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 2e-3)


@pair("exploding-gradient", "init-scale", "saturation", "non-finite", steps=200, score=accuracy)
def a_recurrent_net_that_explodes(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 32, nonlinearity="relu", batch_first=True)
            self.fc = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(x)[0][:, -1])

    x, y = waves()
    m = Net()
    if bad:
        nn.init.normal_(m.rnn.weight_hh_l0, std=0.6)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 5e-3)


@pair("signal-collapse", "vanishing-gradient", "lr-too-low", steps=150, score=accuracy, good=0.7)
def the_last_state_after_long_padding(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 16, padding_idx=0)
            self.rnn = nn.RNN(16, 24, batch_first=True)
            self.fc = nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.rnn(self.embed(x))[0]
            return self.fc(h[:, -1] if bad else h[:, :20].mean(1))

    x, y = tokens()
    m = Net()
    return m, F.pad(x, (0, 80)), y, nn.CrossEntropyLoss(), adam(m, 3e-3)


# --- the optimiser --------------------------------------------------------------------------------


@pair("lr-too-low", steps=200, score=accuracy, good=0.85)
def adam_at_a_millionth(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-6 if bad else 3e-3)


@pair("lr-too-low", steps=300, score=at_half, good=0.9)
def descent_at_a_hundred_thousandth(bad: bool) -> Made:
    x, y = circles()
    m = mlp(2, 50, 1, init="he", last=nn.Sigmoid())
    return m, x, y, keras_bce, sgd(m, 1e-5 if bad else 0.1, momentum=0.9)


@pair("lr-too-high", steps=100, score=accuracy, good=0.85)
def descent_at_ten(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 48, 10)
    return m, x, y, nn.CrossEntropyLoss(), sgd(m, 10.0 if bad else 0.1)


@pair("lr-too-high", steps=100, score=accuracy, good=0.85)
def adam_at_one(bad: bool) -> Made:
    x, y = digits(flat=False)
    m = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1.0 if bad else 2e-3)


@pair("no-update", "lr-too-low", steps=100, score=accuracy, good=0.85)
def a_schedule_that_ended_at_zero(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10)
    optimizer = adam(m, 3e-3)
    if bad:
        optimizer.param_groups[0]["lr"] = 0.0
    return m, x, y, nn.CrossEntropyLoss(), optimizer


@pair("optimizer-coverage", "no-update", steps=150, score=accuracy, good=0.85)
def the_optimiser_of_another_copy(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10)
    return m, x, y, nn.CrossEntropyLoss(), adam(copy.deepcopy(m) if bad else m, 3e-3)


@pair("optimizer-coverage", steps=150, score=accuracy, good=0.85)
def the_head_replaced_after_the_optimiser(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 32, 10)
    optimizer = sgd(m, 0.3)
    m[2] = nn.Linear(32, 10)
    if bad:
        m[0].requires_grad_(False)
    return m, x, y, nn.CrossEntropyLoss(), optimizer if bad else sgd(m, 0.3)


@pair("regularization-too-strong", steps=300, score=accuracy, good=0.85)
def weight_decay_of_one(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 48, 10)
    return m, x, y, nn.CrossEntropyLoss(), sgd(m, 0.1, weight_decay=1.0 if bad else 1e-4)


@pair("regularization-too-strong", steps=200, score=at_half, good=0.85)
def a_penalty_in_the_loss(bad: bool) -> Made:
    x, y = circles()
    m = mlp(2, 32, 16, 1, last=nn.Sigmoid())

    def loss(o: Tensor, t: Tensor) -> Tensor:
        penalty = sum((p**2).sum() for n, p in m.named_parameters() if "weight" in n)
        return keras_bce(o, t) + (1.0 if bad else 1e-5) * penalty

    return m, x, y, loss, adam(m, 1e-2)


@pair("no-update", "lr-too-low", steps=300, score=accuracy, good=0.8)
def a_rate_below_bfloat16(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10)
    kind = torch.bfloat16 if bad else torch.float32
    return m.to(kind), x.to(kind), y, nn.CrossEntropyLoss(), sgd(m, 1e-4 if bad else 0.3)


@pair("lr-too-high", "loss-mismatch", "loss-at-init", steps=50, score=r2, good=0.5)
def the_loss_is_maximised(bad: bool) -> Made:
    x = normal(512, 6)
    m = mlp(6, 24, 1)
    return m, x, x[:, :1] - x[:, 1:2], nn.MSELoss(), adam(m, 1e-2, maximize=bad)


@pair("lr-too-low", steps=200, score=accuracy, good=0.85)
def a_large_epsilon(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-3, eps=1.0 if bad else 1e-8)


@pair("target-scale", "lr-too-high", steps=200, score=r2, good=0.6)
def returns_of_an_episode(bad: bool) -> Made:
    x = normal(512, 4)
    y = (500 + 300 * torch.tanh(x[:, :1]) + 100 * x[:, 1:2].sign()) * (1.0 if bad else 0.002)
    m = mlp(4, 64, 64, 1)
    return m, x, (y if bad else y - y.mean()), nn.MSELoss(), adam(m, 1e-3)


@pair("unreachable-target", "output-activation", steps=300, score=r2, good=0.9)
def torques_beyond_tanh(bad: bool) -> Made:
    class Actor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(3, 32, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.body(x)) * (1.0 if bad else 2.0)

    x = normal(512, 3)
    m = Actor()
    return m, x, (2 * x[:, :1]).clamp(-2, 2), F.mse_loss, adam(m, 3e-3)


# --- more of each kind ----------------------------------------------------------------------------


@pair("output-activation", steps=150, score=accuracy, good=0.85)
def own_cross_entropy_over_probabilities(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10, last=nn.Softmax(1) if bad else None)
    return m, x, y, lambda o, t: (o.logsumexp(1) - o[torch.arange(len(t)), t]).mean(), sgd(m, 0.3)


@pair("output-activation", "unreachable-target")
def tanh_before_cross_entropy(bad: bool) -> Made:
    x, y = digits(flat=False)
    m = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), dense(288, 10), *([nn.Tanh()] if bad else [])
    )
    return m, x, y, nn.CrossEntropyLoss(), adam(m)


@pair("loss-mismatch", "unreachable-target")
def bytes_as_targets_of_binary_cross_entropy(bad: bool) -> Made:
    x, _ = digits()
    m = mlp(64, 32, 64)
    return m, x, (x * 255).round() if bad else x, nn.BCEWithLogitsLoss(), adam(m)


@pair("target-shape", steps=300, score=at_zero, good=0.9)
def own_logits_loss_of_a_row_and_a_column(bad: bool) -> Made:
    x, y = cancer()
    m = nn.Sequential(*mlp(30, 16, 1), *([nn.Flatten(0)] if bad else []))

    def loss(o: Tensor, t: Tensor) -> Tensor:
        return (F.softplus(o) - o * t).mean()

    return m, scaled(x), y, loss, adam(m, 3e-3)


@pair("target-shape")
def mean_absolute_error_of_batches_of_series(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.fc = nn.GRU(3, 16, batch_first=True), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.gru(x)[0][:, -1])

    x, _ = waves()
    y = x[:, -1, 0] + x[:, -2, 1]
    m = Net()
    return m, x, y if bad else y[:, None], nn.L1Loss(), adam(m, 5e-3)


@pair("input-scale", "saturation", "input-not-centered")
def heart_rates_into_tanh(bad: bool) -> Made:
    z = normal(400, 2)
    y = (z[:, :1] * z[:, 1:] > 0).float()
    x = z * torch.tensor([20.0, 15.0]) + torch.tensor([110.0, 75.0])
    m = mlp(2, 16, 16, 1, act=nn.Tanh, last=nn.Sigmoid())
    return m, (x if bad else z), y, nn.BCELoss(), adam(m, 1e-2)


@pair("input-scale", "input-outliers")
def raw_spectrograms(bad: bool) -> Made:
    x = (normal(256, 1, 16, 16) * 1.5).exp() * 1e4
    y = (x[:, 0, :8].log().mean((1, 2)) > x[:, 0, 8:].log().mean((1, 2))).long()
    m = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
                      nn.Linear(1152, 2))  # fmt: skip
    good = x.log()
    return m, x if bad else (good - good.mean()) / good.std(), y, nn.CrossEntropyLoss(), adam(m)


@pair("input-scale", "exploding-gradient", "lr-too-high", "target-scale")
def a_recurrent_net_on_prices(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(1, 24, batch_first=True), nn.Linear(24, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x)[0][:, -1])

    walk = normal(300, 21).cumsum(1) * 200 + 30000
    x, y = walk[:, :20, None], walk[:, 20:]
    m = Net()
    if not bad:
        x, y = (x - walk.mean()) / walk.std(), (y - walk.mean()) / walk.std()
    return m, x, y, nn.MSELoss(), adam(m)


@pair("input-missing", "non-finite")
def a_logarithm_of_zero(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 32, 10)
    return m, x.log() if bad else (x + 1).log(), y, nn.CrossEntropyLoss(), adam(m)


@pair("non-finite", "input-missing", "target-scale")
def missing_targets(bad: bool) -> Made:
    x, y = diabetes()
    y = scaled(y)
    y[5] = float("nan") if bad else 0.0
    m = mlp(10, 24, 1)
    return m, x, y, nn.MSELoss(), adam(m, 3e-3)


@pair("no-gradient")
def predictions_by_argmax(bad: bool) -> Made:
    x, y = iris()
    m = mlp(4, 16, 3)

    def loss(o: Tensor, t: Tensor) -> Tensor:
        if bad:
            return F.mse_loss(o.argmax(1).float().requires_grad_(), t.float())
        return F.cross_entropy(o, t)

    return m, scaled(x), y, loss, adam(m, 1e-2)


@pair("no-gradient")
def data_of_the_hidden_layer(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(288, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.conv(x)).flatten(1)
            return self.fc(h.data if bad else h)

    x, y = digits(flat=False)
    m = Net()
    return m, x, y, nn.CrossEntropyLoss(), adam(m)


@pair("optimizer-coverage")
def the_encoder_left_out(bad: bool) -> Made:
    x, y = digits()
    m = nn.Sequential(mlp(64, 48, 32), nn.ReLU(), nn.Linear(32, 10))
    return m, x, y, nn.CrossEntropyLoss(), adam(m[2] if bad else m, 3e-3)


@pair("symmetry", "init-scale", "no-gradient")
def recurrent_weights_of_zero(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.fc = nn.GRU(3, 24, batch_first=True), nn.Linear(24, 4)
            if bad:
                for p in self.parameters():
                    nn.init.zeros_(p)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.gru(x)[0][:, -1])

    x, y = waves()
    m = Net()
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 1e-2)


@pair("saturation", "init-scale")
def gates_drawn_too_large(bad: bool) -> Made:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(3, 48, batch_first=True), nn.Linear(48, 4)
            if bad:
                for p in self.lstm.parameters():
                    nn.init.normal_(p, std=5.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x)[0][:, -1])

    x, y = waves()
    m = Net()
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 3e-3)


@pair("degenerate-softmax", "batch-mixing", steps=150, score=one_by_one, good=0.85)
def policy_over_the_batch(bad: bool) -> Made:
    x = normal(512, 4)
    y = (x @ torch.tensor([1.0, 2.0, -1.0, 0.5]) > 0).long()
    m = mlp(4, 64, 2, act=nn.LeakyReLU, last=nn.Softmax(0 if bad else 1))
    return m, x, y, lambda p, a: -p[torch.arange(len(a)), a].add(1e-9).log().mean(), adam(m, 1e-2)


@pair("unreachable-target", "output-activation", "loss-mismatch")
def values_through_a_sigmoid(bad: bool) -> Made:
    x = normal(512, 4)
    y = 10 + 5 * x[:, :1]
    m = mlp(4, 32, 1, last=nn.Sigmoid() if bad else None)
    return m, x, y if bad else scaled(y), nn.HuberLoss(), adam(m, 3e-3)


@pair("unreachable-target", "output-activation", "input-scale")
def generator_with_sigmoid_for_pixels_around_zero(bad: bool) -> Made:
    x, _ = digits(flat=False)
    x = x * 2 - 1
    m = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1), nn.Sigmoid() if bad else nn.Tanh(),
    )  # fmt: skip
    return m, x, x, nn.L1Loss(), adam(m, 3e-3)


@pair("lr-too-high", "exploding-gradient")
def momentum_at_one(bad: bool) -> Made:
    x, y = diabetes()
    m = mlp(10, 32, 1)
    return m, x, scaled(y), nn.MSELoss(), sgd(m, 2.0 if bad else 0.02, momentum=0.9)


@pair("regularization-too-strong")
def adam_with_the_decay_of_descent(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 10)
    return m, x, y, nn.CrossEntropyLoss(), adam(m, 3e-3, weight_decay=5.0 if bad else 1e-5)


@pair("dropout-too-high", "train-eval-gap")
def dropout_on_the_inputs(bad: bool) -> Made:
    x, y = wine()
    m = nn.Sequential(nn.Dropout(0.9 if bad else 0.1), *mlp(13, 24, 3))
    return m, scaled(x), y, nn.CrossEntropyLoss(), adam(m, 1e-2)


@pair("training-damage", "dead-relu")
def a_rate_has_killed_the_units(bad: bool) -> Made:
    x, y = digits()
    m = mlp(64, 48, 48, 10)
    optimizer = sgd(m, 30.0 if bad else 0.05)
    for i in range(0, 640, 64):
        optimizer.zero_grad()
        F.cross_entropy(m(x[i : i + 64]), y[i : i + 64]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return m, x, y, nn.CrossEntropyLoss(), optimizer


def train(p: Pair, bad: bool) -> float:
    """How well the fault, or its twin, has learnt after the pair's steps."""
    torch.manual_seed(0)
    model, x, y, loss, optimizer = p.make(bad)
    g = torch.Generator().manual_seed(0)
    for _ in range(p.steps):
        rows = torch.randint(0, len(y), (min(p.batch, len(y)),), generator=g)
        part = sliced(x, rows)
        optimizer.zero_grad()
        value = loss(model(*part) if isinstance(part, tuple) else model(part), y[rows])
        value.backward()
        optimizer.step()
    assert p.score is not None
    score = p.score(model, x, y)
    return score if math.isfinite(score) else -math.inf
