"""``python -m benchmarks.speed``: what looking on costs in time, as ratios to the bare step."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import paired
from benchmarks.tools import TOOLS
from benchmarks.workloads import RECIPES, make


def main(
    workload: Annotated[list[str] | None, typer.Option(help="Default: all four.")] = None,
    tool: Annotated[
        list[str] | None, typer.Option(help="Names or beginnings; default: all.")
    ] = None,
    rounds: int = 11,
    seconds: Annotated[float, typer.Option(help="The least time of one measurement.")] = 0.4,
    threads: int = 1,
) -> None:
    torch.set_num_threads(threads)
    chosen = [t for t in TOOLS if t != "bare" and (not tool or t.startswith(tuple(tool)))]
    for name in workload or RECIPES:
        rows = paired.compare(make(name), chosen, rounds=rounds, seconds=seconds)
        show(name, paired.summary(rows))


def show(name: str, found: pd.DataFrame) -> None:
    table = Table("tool", "CPU / bare", "quartiles", "wall / bare", "CPU ms", "bare", title=name)
    for row in found.itertuples():
        if row.rounds == 0:
            table.add_row(row.tool, row.why_not)
            continue
        table.add_row(
            row.tool,
            f"{row.cpu_ratio:.2f}",
            f"{row.cpu_quartile_1:.2f}–{row.cpu_quartile_3:.2f}",
            f"{row.wall_ratio:.2f}",
            f"{row.cpu_ms:.1f}",
            f"{row.bare_cpu_ms:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
