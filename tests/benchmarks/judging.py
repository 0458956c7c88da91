"""How judging grows with depth: the rules alone, over a snapshot that is there already."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nndiag
from benchmarks.paired import spend
from benchmarks.workloads import CLASSES, Workload
from nndiag import theory
from nndiag.judge import judge
from nndiag.stats import Snapshot

WIDTH, BATCH = 32, 64
DEPTHS = (50, 105, 220, 460, 960, 2_000)  # hidden layers, in steps of about 2.1


def _he(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _below_zero(bias: Tensor) -> None:
    bias.data.fill_(-100.0)


# What they are called -> activation, weights, biases.
NETWORKS: dict[
    str, tuple[Callable[[], nn.Module], Callable[[Tensor], object], Callable[[Tensor], object]]
]
NETWORKS = {
    "ReLU": (nn.ReLU, _he, nn.init.zeros_),
    "tanh": (nn.Tanh, nn.init.xavier_normal_, nn.init.zeros_),
    "ReLU, every unit dead": (nn.ReLU, _he, _below_zero),
    "tanh, every layer saturated": (nn.Tanh, nn.init.normal_, nn.init.normal_),
}


def make(name: str, depth: int) -> Workload:
    torch.manual_seed(0)
    activation, weights, biases = NETWORKS[name]
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(WIDTH, WIDTH)
        weights(linear.weight)
        biases(linear.bias)
        layers += [linear, activation()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
    target = torch.randint(0, CLASSES, (BATCH,))
    return Workload(model, torch.randn(BATCH, WIDTH), target, F.cross_entropy, unit=1)


def compare(*, rounds: int, seconds: float, depths: tuple[int, ...] = DEPTHS) -> pd.DataFrame:
    """A row for each network and depth: medians over the rounds."""
    rows = []
    for name in NETWORKS:
        for depth in depths:
            work = make(name, depth)
            report = nndiag.check(work.model, work.x, work.target, work.loss_fn, config=False)
            measured = pd.DataFrame(_rounds(work, report.snapshot, rounds, seconds))
            middle = measured.median()
            rows.append(
                {
                    "network": name,
                    "layers": depth,
                    "findings": len(report.findings),
                    "rounds": rounds,
                    "judging_cpu_ms": 1e3 * middle["judging"],
                    "bare_cpu_ms": 1e3 * middle["bare"],
                    "ratio": middle["ratio"],
                    "ms_a_layer": 1e3 * middle["judging"] / depth,
                }
            )
    return pd.DataFrame(rows)


def _rounds(
    work: Workload, snapshot: Snapshot, rounds: int, seconds: float
) -> Iterator[dict[str, float]]:
    """CPU seconds of judging between two measurements of the bare step, and their ratio."""
    steps = max(1, round(seconds / spend("bare", work, 1).wall))
    times = max(1, round(seconds / _judged(snapshot, 1)))
    before = spend("bare", work, steps).cpu
    for _ in range(rounds):
        judging = _judged(snapshot, times)
        after = spend("bare", work, steps).cpu
        bare = (before + after) / 2
        yield {"judging": judging, "bare": bare, "ratio": judging / bare}
        before = after


def _judged(snapshot: Snapshot, times: int) -> float:
    """CPU seconds of judging a snapshot of which nothing is known yet."""
    gc.collect()
    spent = 0.0
    for _ in range(times):
        # It keeps 4,096 values: those of a shallow network, but not those of a deep one.
        theory.moments.cache_clear()
        anew, start = dataclasses.replace(snapshot), time.process_time()
        judge(anew)
        spent += time.process_time() - start
    return spent / times
