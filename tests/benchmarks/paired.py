"""Time ratios of tools against the bare step, taken side by side in one process.

A machine's speed drifts by more than many a tool costs. So each measurement of a tool stands
between two of the bare step on the very same model and is divided by their mean; the tools' order
is drawn anew each round. What is reported is the median of the rounds and their quartiles.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import torch

from benchmarks.tools import TOOLS, version
from benchmarks.workloads import Workload


@dataclass(frozen=True)
class Spent:
    """Seconds for one step."""

    cpu: float
    wall: float


def spend(tool: str, work: Workload, repeats: int) -> Spent:
    """Attach the tool, take one step to warm up, and time the next ones."""
    finish = torch.cuda.synchronize if work.x.is_cuda else _nothing
    with TOOLS[tool].attach(work) as step:
        step()
        gc.collect()
        finish()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            step()
        gc.collect(1)  # putting garbage off is no saving
        finish()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Spent(cpu / repeats, wall / repeats)


def _nothing() -> None:
    """On the CPU a step is over when it returns."""


def compare(
    work: Workload, tools: list[str], *, rounds: int, seconds: float, seed: int = 0
) -> pd.DataFrame:
    """A row for each tool and round; ``seconds`` is how long one measurement takes at least.

    A tool that cannot be had or fails has one row that says why.
    """
    draw = random.Random(seed)
    lost: dict[str, str] = {}
    repeats: dict[str, int] = {}
    for tool in ["bare", *tools]:
        try:
            repeats[tool] = max(1, round(seconds / spend(tool, work, 1).wall))
        except Exception as error:
            lost[tool] = reason(tool, error)
    order = [tool for tool in tools if tool not in lost]
    rows = []
    gc.collect()
    gc.freeze()  # what the libraries hold is no tool's work to look through
    try:
        for turn in range(rounds):
            draw.shuffle(order)
            before = spend("bare", work, repeats["bare"])
            for tool in order:
                spent = spend(tool, work, repeats[tool])
                after = spend("bare", work, repeats["bare"])
                cpu, wall = (before.cpu + after.cpu) / 2, (before.wall + after.wall) / 2
                ratios = spent.cpu / cpu, spent.wall / wall
                rows.append((tool, turn, *ratios, spent.cpu, cpu, wall))
                before = after
    finally:
        gc.unfreeze()
    columns = [
        "tool", "round", "cpu_ratio", "wall_ratio",
        "cpu_seconds", "bare_cpu_seconds", "bare_wall_seconds",
    ]  # fmt: skip
    found = pd.DataFrame(rows, columns=columns)
    missing = pd.DataFrame(lost.items(), columns=["tool", "why_not"])
    together = pd.concat([found, missing], ignore_index=True)
    return together.sort_values("tool", key=lambda names: names.map(tools.index), kind="stable")


def reason(name: str, error: Exception) -> str:
    package = TOOLS[name].package
    if version(package) is None:
        return f"{package} is not installed"
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def summary(rows: pd.DataFrame, by: Iterable[str] = ("tool",)) -> pd.DataFrame:
    """Median and quartiles over the rounds."""
    groups = rows.groupby(list(by), sort=False)
    table = groups.agg(
        rounds=("round", "count"),
        cpu_ratio=("cpu_ratio", "median"),
        cpu_quartile_1=("cpu_ratio", lambda ratios: ratios.quantile(0.25)),
        cpu_quartile_3=("cpu_ratio", lambda ratios: ratios.quantile(0.75)),
        wall_ratio=("wall_ratio", "median"),
        cpu_ms=("cpu_seconds", lambda seconds: seconds.median() * 1000),
        bare_cpu_ms=("bare_cpu_seconds", lambda seconds: seconds.median() * 1000),
    )
    if "why_not" in rows:
        table["why_not"] = groups["why_not"].first()
    return table.reset_index()
