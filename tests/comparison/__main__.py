"""``python -m comparison``: how often two runs of one network compare as different, and how often
a change is seen. Remakes ``reports/comparison``.
"""

from __future__ import annotations

import datetime
import multiprocessing
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jinja2
import pandas as pd
import torch
import typer
from rich.progress import track
from scipy.stats import binomtest

from comparison.pairs import EDITS, RECIPES, STAGES, Asked, job
from nndiag.render import files

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "reports" / "comparison"


def jobs(pairs: int, edited: int) -> Iterator[Asked]:
    for number in range(pairs):
        for name in RECIPES:
            for stage in STAGES:
                yield name, stage, number, "none"
                if number < edited:
                    yield from ((name, stage, number, change) for change in EDITS)


def main(pairs: int = 40, edited: int = 2, output: Path = OUTPUT, processes: int = 2) -> None:
    todo = list(jobs(pairs, edited))
    # Spawned, not forked: a fork would not have torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        done = pool.map(job, todo, chunksize=4)
        rows = [row for row in track(done, "pairs", total=len(todo)) if row is not None]
    write(pd.DataFrame(rows).sort_values(["change", "network", "steps", "pair"]), output)
    print(f"written to {output}")


def write(rows: pd.DataFrame, output: Path) -> None:
    alike, changed = rows[rows.change == "none"], rows[rows.change != "none"]
    wrong = int((~alike.same).sum())
    interval = binomtest(wrong, len(alike)).proportion_ci(0.95, "exact")
    bound = binomtest(wrong, len(alike), alternative="less").proportion_ci(0.95, "exact").high
    seen = [
        {
            "change": change,
            "pairs": len(group),
            "seen": int((~group.same).sum()),
            "low": binomtest(int((~group.same).sum()), len(group)).proportion_ci(0.95).low,
        }
        for change, group in changed.groupby("change", sort=False)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    text = environment.get_template("README.md.j2").render(
        pairs=len(alike), wrong=wrong, low=interval.low, high=interval.high, bound=bound, seen=seen,
        networks=alike.network.nunique(), stages=STAGES,
        mistaken=alike[~alike.same].to_dict("records"),
        missed=changed[changed.same].to_dict("records"),
        date=datetime.date.today(), torch=torch.__version__, python=platform.python_version(),
    )  # fmt: skip
    cells = rows.groupby(["change", "network", "steps"], sort=False).same.agg(["size", "sum"])
    cells.columns = ["pairs", "same"]
    files.write(
        {output / "README.md": text, output / "pairs.csv": cells.reset_index().to_csv(index=False)}
    )


if __name__ == "__main__":
    typer.run(main)
