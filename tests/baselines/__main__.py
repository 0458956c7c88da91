"""``python -m baselines``: how often a baseline fails where nothing was changed, and how often it
sees a change. Remakes ``reports/baselines``.

``keep DIR`` writes baselines and ``hold DIR`` holds this environment's runs against them: the one
with one version of torch, the other with another.
"""

from __future__ import annotations

import datetime
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import jinja2
import pandas as pd
import torch
import typer
from rich.progress import track
from scipy.stats import binomtest

from baselines import runs as measured
from nndiag.render import files
from nndiag.testing.baseline import RATE, SEEDS, Baseline

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "reports" / "baselines"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Output = Annotated[Path, typer.Option(help="Where the tables and the page are.")]


@app.callback(invoke_without_command=True)
def everything(
    context: typer.Context,
    runs: int = 40,
    changed: int = 2,
    output: Output = OUTPUT,
    processes: int = 2,
) -> None:
    if context.invoked_subcommand is not None:
        return
    todo = [(name, o, runs, changed) for name in measured.RECIPES for o in measured.ORIGINS]
    # Spawned, not forked: a fork would not have torch's threads.
    context_of_processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context_of_processes) as pool:
        done = pool.map(measured.job, todo)
        rows = [row for some in track(done, "baselines", total=len(todo)) for row in some]
    files.write({output / "runs.csv": _csv(pd.DataFrame(rows))})
    page(output)


@app.command()
def keep(folder: Path) -> None:
    """Write a baseline of each network."""
    for name, recipe in track(list(measured.RECIPES.items()), "keep"):
        made = measured.made(recipe, "drawn")
        files.write({folder / f"{name}.json": made.dumps(), folder / "torch": torch.__version__})


@app.command()
def hold(folder: Path, output: Output = OUTPUT, runs: int = 4) -> None:
    """Hold runs of this environment against baselines of another, and note how many fail."""
    rows = []
    for name, recipe in track(list(measured.RECIPES.items()), "hold"):
        path = folder / f"{name}.json"
        known = Baseline.loads(path.read_text("utf-8"), str(path))
        for number in range(runs):
            why = measured.held(known, recipe, number)
            rows.append({"network": name, "met": not why, "why": why})
    found = pd.DataFrame(rows)
    print(found[~found["met"]].to_string())
    row = {
        "made with": (folder / "torch").read_text("utf-8"),
        "held with": torch.__version__,
        "python": platform.python_version(),
        "runs": len(found),
        "failed": int((~found["met"]).sum()),
    }
    table = output / "versions.csv"
    before = pd.read_csv(table) if table.exists() else pd.DataFrame(columns=list(row))
    before = before[before["held with"] != row["held with"]]
    files.write({table: _csv(pd.concat([before, pd.DataFrame([row])], ignore_index=True))})


@app.command()
def page(output: Output = OUTPUT) -> None:
    """Write README.md from the tables."""
    rows = pd.read_csv(output / "runs.csv", keep_default_na=False)
    alike, changed = rows[rows.change == "none"], rows[rows.change != "none"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    versions = output / "versions.csv"
    text = environment.get_template("README.md.j2").render(
        groups=[("all", alike), *alike.groupby("batches", sort=False)],
        rate=_rate, goal=RATE, seeds=SEEDS,
        seen=[(change, group) for change, group in changed.groupby("change", sort=False)],
        low=lambda seen, of: binomtest(seen, of).proportion_ci(0.95, "exact").low,
        networks=alike.network.nunique(), numbers=alike.numbers, bytes=alike.bytes,
        failed=alike[~alike.met].to_dict("records"),
        missed=changed[changed.met].groupby(["change", "network"]).size().reset_index(name="n"),
        versions=pd.read_csv(versions).to_dict("records") if versions.exists() else [],
        date=datetime.date.today(), torch=torch.__version__, python=platform.python_version(),
    )  # fmt: skip
    files.write({output / "README.md": text})


def _rate(group: pd.DataFrame) -> tuple[int, float]:
    wrong = int((~group.met).sum())
    bound = binomtest(wrong, len(group), alternative="less").proportion_ci(0.95, "exact").high
    return wrong, bound


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")


if __name__ == "__main__":
    app()
