"""Fourteen faults around a network, of its loss, data and output: what a check says of each.

``python -m calibration.around`` prints the table of ``reports/calibration/published-tools.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import nndiag

Fault = tuple[str, nn.Module, tuple[torch.Tensor, torch.Tensor], Callable[..., torch.Tensor]]


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """256 images from 0 to 1, and their classes."""
    data = load_digits()
    x = torch.tensor(data.data[:256] / 16, dtype=torch.float32)
    return x, torch.tensor(data.target[:256])


def mlp(units: int = 10, *last: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, units)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, *last)


class Detached(nn.Module):
    """A network whose middle is cut out of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.body(x).detach()))


def faults() -> Iterator[Fault]:
    x, y = digits()
    cross, square = F.cross_entropy, F.mse_loss
    one_hot, column = F.one_hot(y, 10).float(), y[:, None].float()
    yield "none", mlp(), (x, y), cross
    yield "softmax in the model, then cross-entropy", mlp(10, nn.Softmax(1)), (x, y), cross
    yield (
        "softmax in the loss, then cross-entropy", mlp(), (x, y),
        lambda output, target: cross(output.softmax(1), target),
    )  # fmt: skip
    yield (
        "sigmoid, then BCEWithLogitsLoss", mlp(10, nn.Sigmoid()), (x, one_hot),
        nn.BCEWithLogitsLoss(),
    )  # fmt: skip
    yield "NLLLoss on scores", mlp(), (x, y), nn.NLLLoss()
    yield (
        "output (n, 1) against target (n,)", mlp(1), (x, y / 9),
        lambda output, target: ((output - target) ** 2).mean(),
    )  # fmt: skip
    yield "ReLU at the output, negative targets", mlp(1, nn.ReLU()), (x, column / 4.5 - 1), square
    yield "sigmoid at the output, targets 0 to 9", mlp(1, nn.Sigmoid()), (x, column), square
    yield "sign of the loss", mlp(), (x, y), lambda output, target: -cross(output, target)
    yield (
        "softmax over the batch", mlp(10, nn.Softmax(0)), (x, y),
        lambda output, target: F.nll_loss(output.log(), target),
    )  # fmt: skip
    yield "inputs 0 to 280", mlp(), (280 * x, y), cross
    yield "one feature 10,000 times as large", mlp(), (_stretched(x), y), cross
    yield "each sample has the next one's label", mlp(), (x, y.roll(1)), cross
    yield "one class", mlp(), (x, torch.zeros_like(y)), cross
    yield "detached graph", Detached(), (x, y), cross


def _stretched(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, 20] *= 1e4
    return x


def main() -> None:
    print("| fault | first finding | severity |\n|---|---|---|")
    for name, model, batch, loss_fn in faults():
        report = nndiag.check(model, batch, loss_fn=loss_fn, config=False, seed=0)
        loud = [f for f in report.findings if f.severity != "note"]
        said = (loud[0].rule, loud[0].severity) if loud else ("none", "–")
        print(f"| {name} | {said[0]} | {said[1]} |")


if __name__ == "__main__":
    main()
