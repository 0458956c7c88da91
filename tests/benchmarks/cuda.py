"""The same ratios on a CUDA device: wall time, and the peak that torch's allocator counts."""

from __future__ import annotations

import statistics

import pandas as pd
import torch

from benchmarks import paired
from benchmarks.tools import TOOLS, Step
from benchmarks.workloads import Workload, make

MIB = 2**20
REPEATS = 5


def compare(workload: str, tools: list[str], *, rounds: int, seconds: float) -> pd.DataFrame:
    """A row for each tool: medians over the rounds, and the peak of a step."""
    work = make(workload).to("cuda")
    rows = paired.compare(work, tools, rounds=rounds, seconds=seconds)
    table = rows.groupby("tool", sort=False).agg(
        rounds=("round", "count"),
        wall_ratio=("wall_ratio", "median"),
        wall_quartile_1=("wall_ratio", lambda ratios: ratios.quantile(0.25)),
        wall_quartile_3=("wall_ratio", lambda ratios: ratios.quantile(0.75)),
        bare_wall_ms=("bare_wall_seconds", lambda seconds: seconds.median() * 1000),
    )
    table["peak_mib"] = [peak(tool, work) for tool in table.index]
    table["bare_mib"] = peak("bare", work)
    table["parameters_mib"] = sum(p.nbytes for p in work.model.parameters()) / MIB
    return table.reset_index()


def peak(tool: str, work: Workload) -> float:
    """MiB of a step above what was there before it."""
    with TOOLS[tool].attach(work) as step:
        step()
        return statistics.median(_peak_of(step) for _ in range(REPEATS))


def _peak_of(step: Step) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB
