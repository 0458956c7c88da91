"""Time ratios of tools against the bare step, taken side by side in one process.

A machine's speed drifts by more than many a tool costs. So each measurement of a tool stands
between two of the bare step and is divided by their mean; the tools' order is drawn anew each
round. What is reported is the median of the rounds and their quartiles.
"""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.tools import TOOLS, Step, version
from benchmarks.workloads import make

WARM_UP = 2


@dataclass(frozen=True)
class Spent:
    """Seconds for one step."""

    cpu: float
    wall: float


def spend(step: Step, repeats: int) -> Spent:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Spent(cpu / repeats, wall / repeats)


def compare(
    workload: str, tools: Sequence[str], *, rounds: int, seconds: float, seed: int = 0
) -> pd.DataFrame:
    """A row for each tool and round; ``seconds`` is how long one measurement takes at least.

    A tool that cannot be had or fails has one row that says why.
    """
    draw = random.Random(seed)
    failed: list[tuple[str, str]] = []
    rows = []
    with contextlib.ExitStack() as open_tools:
        steps: dict[str, Step] = {}
        for name in ["bare", *(t for t in tools if t != "bare")]:
            try:
                steps[name] = _ready(name, workload, open_tools)
            except Exception as error:
                failed.append((name, _reason(name, error)))
        repeats = {name: _repeats(step, seconds) for name, step in steps.items()}
        bare = steps.pop("bare")
        gc.collect()
        gc.freeze()  # what the libraries hold is no tool's work to look through
        try:
            for turn in range(rounds):
                order = list(steps)
                draw.shuffle(order)
                before = spend(bare, repeats["bare"])
                for name in order:
                    spent = spend(steps[name], repeats[name])
                    after = spend(bare, repeats["bare"])
                    cpu, wall = (before.cpu + after.cpu) / 2, (before.wall + after.wall) / 2
                    rows.append((name, turn, spent.cpu / cpu, spent.wall / wall, spent.cpu, cpu))
                    before = after
        finally:
            gc.unfreeze()
    columns = ["tool", "round", "cpu_ratio", "wall_ratio", "cpu_seconds", "bare_cpu_seconds"]
    found = pd.DataFrame(rows, columns=columns)
    lost = pd.DataFrame(failed, columns=["tool", "why_not"])
    together = pd.concat([found, lost], ignore_index=True)
    together.insert(0, "workload", workload)
    return together


def _ready(name: str, workload: str, open_tools: contextlib.ExitStack) -> Step:
    """The tool's own copy of the workload, warmed up."""
    with contextlib.ExitStack() as attaching:
        step = attaching.enter_context(TOOLS[name].attach(make(workload)))
        for _ in range(WARM_UP):
            step()
        open_tools.push(attaching.pop_all())
    return step


def _repeats(step: Step, seconds: float) -> int:
    once = spend(step, 1).wall
    return max(1, round(seconds / once))


def _reason(name: str, error: Exception) -> str:
    package = TOOLS[name].package
    if version(package) is None:
        return f"{package} is not installed"
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def summary(rows: pd.DataFrame, by: Iterable[str] = ("workload", "tool")) -> pd.DataFrame:
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
