"""What each activation costs against ReLU: forward and backward, one thread, paired in one run.

Remade by ``python -m tests.benchmarks.activation_cost``; writes
``reports/benchmarks/activation-cost.csv``. Each round times ReLU and the activation one after the
other, so a machine that changes its speed changes both; quoted is the median of the rounds' ratios
with its quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

REPORT = Path(__file__).parents[2] / "reports" / "benchmarks" / "activation-cost.csv"
VALUES = 256 * 1024
ROUNDS = 41

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "mish": F.mish,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
}


def once(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, g: torch.Tensor
) -> float:
    x.grad = None
    start = time.process_time_ns()
    function(x).backward(g)
    return time.process_time_ns() - start


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, g = torch.randn(VALUES, requires_grad=True), torch.randn(VALUES)
    rows = []
    for name, function in ACTIVATIONS.items():
        for _ in range(3):
            once(function, x, g), once(F.relu, x, g)
        ratios = [once(function, x, g) / once(F.relu, x, g) for _ in range(ROUNDS)]
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append((name, round(median, 2), round(low, 2), round(high, 2)))
    table = pd.DataFrame(rows, columns=["activation", "times_relu", "quartile_1", "quartile_3"])
    table["values"], table["rounds"] = VALUES, ROUNDS
    table["torch"], table["date"] = torch.__version__, date.today().isoformat()
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(REPORT, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
