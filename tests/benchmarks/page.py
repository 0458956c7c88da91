"""The page reports/benchmarks/README.md, from the tables beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from benchmarks import linearity
from benchmarks.tools import TOOLS
from benchmarks.workloads import GOALS, RECIPES

STATISTICS, CHECK = "nndiag statistics", "nndiag check"


@dataclass(frozen=True)
class Verdict:
    """One goal and what was measured."""

    workload: str
    what: str
    goal: str
    measured: str
    met: bool


def render(folder: Path) -> str:
    speed = pd.read_csv(folder / "speed.csv")
    memory = pd.read_csv(folder / "memory.csv")
    growth = dict(iter(pd.read_csv(folder / "linearity.csv").groupby("grows_with")))
    verdicts = list(judge(speed, memory))
    judging = dict(iter(pd.read_csv(folder / "judging.csv").groupby("network", sort=False)))
    narrow = memory.set_index(["workload", "tool"]).loc[("narrow", STATISTICS)]
    away = folder / "cuda.csv"
    cuda = pd.read_csv(away) if away.exists() else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("README.md.j2").render(
        verdicts=verdicts,
        missed=[v for v in verdicts if not v.met],
        workloads=list(RECIPES),
        tools={name: tool for name, tool in TOOLS.items() if name != "bare"},
        time=_cells(speed, _time),
        bare_ms=speed.groupby("workload")["bare_cpu_ms"].median(),
        peak=_cells(memory, _peak),
        bare_mib=memory.groupby("workload")["bare_mib"].median(),
        added_narrow=narrow["peak_mib"] - narrow["bare_mib"],
        parameters=memory.groupby("workload")["parameters_mib"].first(),
        gaps=_gaps(speed) | _gaps(memory),
        growth=growth,
        exponents={what: _exponent(rows) for what, rows in growth.items()},
        upper={what: _exponent(rows.tail(4)) for what, rows in growth.items()},
        judging=judging,
        judging_exponents={
            name: linearity.exponent(rows["layers"], rows["judging_cpu_ms"])
            for name, rows in judging.items()
        },
        machine=speed.iloc[0],
        plugin=pd.read_csv(folder / "plugin.csv").iloc[0],
        cuda=None if cuda is None else _on_cuda(cuda),
        cuda_tools=() if cuda is None else cuda["tool"].unique(),
        card=None if cuda is None else cuda.iloc[0],
        rounds=speed["rounds"].max(),
        processes=memory["processes"].max(),
        versions=speed.groupby("tool", sort=False)["version"].first().dropna(),
    )


def judge(speed: pd.DataFrame, memory: pd.DataFrame) -> Iterator[Verdict]:
    times = speed.set_index(["workload", "tool"])["cpu_ratio"]
    peaks = memory.set_index(["workload", "tool"])
    for name, goal in GOALS.items():
        looked, checked = times[name, STATISTICS], times[name, CHECK]
        yield _ratio(name, "statistics, time", goal.statistics, looked)
        yield _ratio(name, "whole check, time", goal.check, checked)
        yield _ratio(name, "statistics, peak memory", goal.memory, peaks["ratio"][name, STATISTICS])
        # What the statistics may take, and one copy of the parameters.
        check = peaks.loc[(name, CHECK)]
        most, peak = goal.memory * check["bare_mib"] + check["parameters_mib"], check["peak_mib"]
        what = "whole check, peak memory"
        yield Verdict(name, what, f"≤ {most:.1f} MiB", f"{peak:.1f} MiB", bool(peak <= most))


def _exponent(rows: pd.DataFrame) -> tuple[float, float, float]:
    return linearity.exponent(rows["size"], rows["extra_ms"])


def _ratio(workload: str, what: str, most: float, found: float) -> Verdict:
    return Verdict(workload, what, f"≤ {most:.2f} ×", f"{found:.2f} ×", bool(found <= most))


def _cells(table: pd.DataFrame, cell: Callable[[Any], str]) -> dict[tuple[str, str], str]:
    return {(row.tool, row.workload): cell(row) for row in table.itertuples()}


def _time(row: Any) -> str:
    if pd.isna(row.cpu_ratio):
        return ""
    return f"{row.cpu_ratio:.2f} ({row.cpu_quartile_1:.2f}–{row.cpu_quartile_3:.2f})"


def _peak(row: Any) -> str:
    return "" if pd.isna(row.ratio) else f"{row.ratio:.2f} ({row.peak_mib:.1f} MiB)"


def _on_cuda(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in table.itertuples():
        quartiles = f"{row.wall_quartile_1:.2f}–{row.wall_quartile_3:.2f}"
        whole = f", {row.wall_ratio * row.bare_wall_ms:.0f} ms"
        cells[row.tool, row.workload] = {
            "time": f"{row.wall_ratio:.2f} ({quartiles}){whole}",
            "peak": f"{row.peak_mib / row.bare_mib:.2f} ({row.peak_mib:.1f} MiB)",
        }
    for workload, rows in table.groupby("workload"):
        cells["bare", str(workload)] = {
            "ms": rows["bare_wall_ms"].median(),
            "mib": rows["bare_mib"].median(),
        }
    return cells


def _gaps(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {
        (row.tool, row.workload): row.why_not
        for row in table.itertuples()
        if not pd.isna(row.why_not)
    }
