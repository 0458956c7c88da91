"""How far data may be off before small networks train worse: the table behind the data thresholds.

Each network is trained on standardised data and on the same data made worse by a known amount, by
the optimisers and rates that are usual. ``PYTHONPATH=tests python -m calibration.data_scale``
writes ``reports/calibration/data-scale.csv``, a line for each amount.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits, load_wine
from torch import Tensor, nn

PATH = Path(__file__).parents[2] / "reports" / "calibration" / "data-scale.csv"
STEPS, BATCH = 200, 32
# A network is hurt if it explains less than this share of what it explains on standardised data.
HURT = 0.9


class Data(NamedTuple):
    x: Tensor
    y: Tensor
    classes: int  # 0: numbers


def standardised(x: Any) -> Tensor:
    x = torch.as_tensor(np.asarray(x), dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def sets() -> dict[str, Data]:
    digits, wine, diabetes = load_digits(), load_wine(), load_diabetes()
    return {
        "digits": Data(standardised(digits.data), torch.tensor(digits.target), 10),
        "wine": Data(standardised(wine.data), torch.tensor(wine.target), 3),
        "diabetes": Data(standardised(diabetes.data), standardised(diabetes.target[:, None]), 0),
    }


def mlp(d: int, out: int, act: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Module:
    first = [nn.Linear(d, 64), nn.BatchNorm1d(64)] if norm else [nn.Linear(d, 64)]
    return nn.Sequential(*first, act(), nn.Linear(64, 64), act(), nn.Linear(64, out))


def xavier(d: int, out: int) -> nn.Module:
    model = mlp(d, out, nn.Tanh)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


class Conv(nn.Module):
    """Over the columns, as a sequence of one channel."""

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * d, out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        return self.layers(x[:, None])


NETS: dict[str, Callable[[int, int], nn.Module]] = {
    "relu": mlp,
    "tanh-xavier": xavier,
    "sigmoid": lambda d, out: mlp(d, out, nn.Sigmoid),
    "conv": Conv,
    "batch-norm": lambda d, out: mlp(d, out, norm=True),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd-0.01": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "sgd-0.1": lambda p: torch.optim.SGD(p, 0.1),
    "adam-0.001": lambda p: torch.optim.Adam(p, 0.001),
}


def explained(data: Data, net: str, optimizer: str, seed: int) -> float:
    """The share of the best constant's loss that training takes away, on samples held out."""
    torch.manual_seed(seed)
    model = NETS[net](data.x.shape[1], data.classes or 1)
    loss_fn = nn.CrossEntropyLoss() if data.classes else nn.MSELoss()
    opt = OPTIMIZERS[optimizer](model.parameters())
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(2))
    seen, held_out = order[::2], order[1::2]
    for _ in range(STEPS):
        rows = seen[torch.randint(0, len(seen), (BATCH,), generator=generator)]
        opt.zero_grad()
        loss_fn(model(data.x[rows]), data.y[rows]).backward()
        opt.step()
    data = data._replace(x=data.x[held_out], y=data.y[held_out])
    model.eval()
    with torch.no_grad():
        out = model(data.x)
        if data.classes:
            counts = torch.bincount(data.y).float() / len(data.y)
            right = float((out.argmax(1) == data.y).float().mean())
            base = float(counts.max())
            return (right - base) / (1 - base)
        left = float(((out - data.y) ** 2).mean() / data.y.var(correction=0))
    return 1 - left if math.isfinite(left) else -math.inf


def unequal(x: Tensor, ratio: float) -> Tensor:
    """Columns whose scales go from 1 to ``ratio``, in a fixed mixed order, and shrunk to rms 1."""
    exponents = torch.linspace(0, 1, x.shape[1])[
        torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(1))
    ]
    scaled = x * ratio**exponents
    return scaled / scaled.square().mean().sqrt()


WAYS: dict[str, tuple[Callable[[Data, float], Data], tuple[float, ...]]] = {
    "rms of the input": (
        lambda d, s: d._replace(x=d.x * s), (3e-3, 0.01, 0.1, 10, 20, 30, 50, 100, 300),
    ),
    "ratio of the columns' scales, at rms 1": (
        lambda d, s: d._replace(x=unequal(d.x, s)), (10, 100, 1000),
    ),
    "ratio of the columns' scales, at rms 10": (
        lambda d, s: d._replace(x=10 * unequal(d.x, s)), (10, 100, 1000),
    ),
    "mean over std of every column": (
        lambda d, s: d._replace(x=d.x + s), (2, 5, 10, 20, 30),
    ),
    "mean over std of every column, at rms 1": (
        lambda d, s: d._replace(x=(d.x + s) / (1 + s * s) ** 0.5), (2, 5, 10, 20, 30),
    ),
    "rms of the target, centred": (
        lambda d, s: d._replace(y=d.y * s), (10, 30, 100, 300, 1000, 1e4),
    ),
    "rms of the target, its mean twice its std": (
        lambda d, s: d._replace(y=(d.y + 2) * s / 5**0.5), (10, 30, 100, 300, 1000, 1e4),
    ),
}  # fmt: skip


def rows() -> Iterator[dict[str, Any]]:
    known = sets()
    base = {
        key: explained(known[key[0]], *key[1:], 0)
        for key in itertools.product(known, NETS, OPTIMIZERS)
    }
    for way, (change, amounts) in WAYS.items():
        for amount in amounts:
            results = {}
            for key in itertools.product(known, NETS, OPTIMIZERS):
                name, net, optimizer = key
                if base[key] < 0.3 or ("target" in way and known[name].classes):
                    continue  # it does not train on standardised data either
                results[key] = explained(change(known[name], amount), net, optimizer, 0)
            for net, optimizer in itertools.product(NETS, OPTIMIZERS):
                own = {k: v for k, v in results.items() if k[1:] == (net, optimizer)}
                if own:
                    hurt = sum(not v >= HURT * base[k] for k, v in own.items())
                    yield {
                        "what": way, "amount": f"{amount:g}", "network": net,
                        "optimizer": optimizer, "sets": len(own), "hurt": hurt,
                        "explained": f"{np.mean([max(v, -1) for v in own.values()]):.3f}",
                        "standardised": f"{np.mean([base[k] for k in own]):.3f}",
                    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    with PATH.open("w", newline="") as file:
        writer = None
        for row in rows():
            writer = writer or csv.DictWriter(file, list(row), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            file.flush()


if __name__ == "__main__":
    main()
