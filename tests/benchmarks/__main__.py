"""``python -m benchmarks``: remake reports/benchmarks; its parts can be run alone."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

import nndiag
from benchmarks import cuda, page, paired
from benchmarks import judging as rules
from benchmarks import linearity as lines
from benchmarks import memory as peaks
from benchmarks import plugin as sessions
from benchmarks.tools import TOOLS, version
from benchmarks.workloads import RECIPES, make

REPORT = Path(__file__).parents[2] / "reports" / "benchmarks"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Workloads = Annotated[list[str] | None, typer.Option("--workload", help="Default: all four.")]
Tools = Annotated[list[str] | None, typer.Option("--tool", help="By their beginnings; or all.")]
Rounds = Annotated[int, typer.Option(help="How often each tool is measured.")]
Seconds = Annotated[float, typer.Option(help="The least time of one measurement.")]
Processes = Annotated[int, typer.Option(help="For each tool and workload.")]
Threads = Annotated[int, typer.Option(help="Torch's.")]
Output = Annotated[Path | None, typer.Option(help="Write the table to this folder.")]


@app.callback(invoke_without_command=True)
def everything(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        speed(output=REPORT)
        memory(output=REPORT)
        linearity(output=REPORT)
        judging(output=REPORT)
        plugin(output=REPORT)
        write_page()


@app.command()
def speed(
    workload: Workloads = None,
    tool: Tools = None,
    rounds: Rounds = 11,
    seconds: Seconds = 0.4,
    threads: Threads = 1,
    output: Output = None,
) -> None:
    """Time of a step with each tool, as a ratio to the bare steps beside it."""
    torch.set_num_threads(threads)
    tables = []
    for name in workload or RECIPES:
        rows = paired.compare(make(name), _chosen(tool), rounds=rounds, seconds=seconds)
        table = paired.summary(rows)
        table.insert(0, "workload", name)
        tables.append(table.assign(threads=threads))
        _show(tables[-1], name)
    _write(tables, output, "speed.csv")


@app.command()
def memory(
    workload: Workloads = None,
    tool: Tools = None,
    processes: Processes = 3,
    output: Output = None,
) -> None:
    """Peak memory of a step with each tool, as a ratio to the bare step's."""
    tables = []
    for name in workload or RECIPES:
        table = peaks.compare(name, _chosen(tool), processes=processes)
        table.insert(0, "workload", name)
        tables.append(table.assign(processes=processes))
        _show(tables[-1], name)
    _write(tables, output, "memory.csv")


@app.command()
def linearity(
    rounds: Rounds = 5, seconds: Seconds = 0.3, threads: Threads = 1, output: Output = None
) -> None:
    """How the price grows with elements and layers."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    table = lines.compare(rounds=rounds, seconds=seconds)
    _show(table, "linearity")
    _write([table], output, "linearity.csv")


@app.command()
def judging(
    rounds: Rounds = 3, seconds: Seconds = 0.2, threads: Threads = 1, output: Output = None
) -> None:
    """How the price of judging alone grows with depth."""
    torch.set_num_threads(threads)
    table = rules.compare(rounds=rounds, seconds=seconds)
    _show(table, "judging")
    _write([table], output, "judging.csv")


@app.command()
def plugin(rounds: int = 101, output: Output = None) -> None:
    """What the pytest plugin costs a session that does not use it (not on Windows)."""
    table = sessions.summary(sessions.compare(rounds))
    _show(table, "plugin")
    _write([table], output, "plugin.csv")


@app.command("cuda")
def on_cuda(
    workload: Workloads = None,
    tool: Tools = None,
    rounds: Rounds = 11,
    seconds: Seconds = 0.4,
    output: Output = None,
) -> None:
    """Time and peak memory on a CUDA device."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device here")
    tables = []
    for name in workload or RECIPES:
        table = cuda.compare(name, _chosen(tool), rounds=rounds, seconds=seconds)
        table.insert(0, "workload", name)
        tables.append(table.assign(card=torch.cuda.get_device_name(), cuda=torch.version.cuda))
        _show(tables[-1], name)
    _write(tables, output, "cuda.csv")


@app.command("page")
def write_page() -> None:
    """Write README.md from the tables."""
    (REPORT / "README.md").write_text(page.render(REPORT), encoding="utf-8")


def _chosen(beginnings: list[str] | None) -> list[str]:
    every = [name for name in TOOLS if name != "bare"]
    return [name for name in every if not beginnings or name.startswith(tuple(beginnings))]


def _show(table: pd.DataFrame, title: str) -> None:
    shown = Table(*table.columns, title=title)
    for row in table.map(lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)).values:
        shown.add_row(*row)
    Console(width=160).print(shown)


def _write(tables: list[pd.DataFrame], output: Path | None, name: str) -> None:
    if output is None:
        return
    table = pd.concat(tables, ignore_index=True)
    if "tool" in table:
        table["version"] = [version(TOOLS[tool].package) for tool in table["tool"]]
    table["cpu"], table["cores"] = _cpu(), os.cpu_count()
    table["python"], table["torch"] = platform.python_version(), torch.__version__
    table["nndiag"], table["date"] = nndiag.__version__, date.today().isoformat()
    output.mkdir(parents=True, exist_ok=True)
    table.to_csv(output / name, index=False, float_format="%.4g")


def _cpu() -> str:
    """The processor's name, where the system says it (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


if __name__ == "__main__":
    app()
