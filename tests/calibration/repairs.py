"""``python -m calibration.repairs``: repair the corpus, and publish how often that helped."""

from __future__ import annotations

import datetime
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import jinja2
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track
from scipy import stats

from calibration import repaired
from calibration.faults import FAULTS
from nndiag.render import files

FOLDER = Path(__file__).parents[2] / "reports" / "calibration"


# A loss (of cross-entropy over ten classes, mostly) at which a network has learned its task.
LEARNED = 0.05


def level(table: pd.DataFrame) -> int:
    """In how many of the ties both networks have learned their task."""
    good = table["silent"] & (table["new"] == "") & (table["trial"] == "tie")
    losses = table.loc[good, ["loss_before", "loss_after"]]
    return int((losses < LEARNED).all(axis=1).sum())


def bound(hits: int, of: int) -> float:
    """Lower end of the exact 95 % interval (Clopper & Pearson 1934) of a share."""
    return float(stats.binomtest(hits, of).proportion_ci(0.95, "exact").low) if of else 0.0


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "repairs.csv", keep_default_na=False, na_values={"p": [""]})


def publish(table: pd.DataFrame, folder: Path) -> None:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(Path(__file__).with_name("repairs.md.j2").read_text("utf-8"))
    text = template.render(
        all=repaired.summary(table),
        states=[(state, repaired.summary(part)) for state, part in table.groupby("state")],
        kinds=list(repaired.rows(table)),
        failed=table[~table["silent"] | (table["new"] != "")].to_dict("records"),
        undecided=table[table["trial"] != "better"].to_dict("records"),
        level=level(table),
        learned=LEARNED,
        in_forward=int(table["kind"].isin(repaired.IN_FORWARD).sum()),
        elsewhere=repaired.ELSEWHERE,
        faults=sum(case.sick for case in FAULTS),
        bound=bound,
        steps=repaired.STEPS,
        seeds=repaired.SEEDS,
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
    )
    csv = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    files.write({folder / "repairs.csv": csv, folder / "repairs.md": text})


def main(
    folder: Annotated[Path, typer.Option(help="Where the table and the page go.")] = FOLDER,
    only: Annotated[str, typer.Option(help="Cases whose name holds this; writes nothing.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    page: Annotated[bool, typer.Option(help="Only the page, from the table there is.")] = False,
) -> None:
    """Repair the corpus and publish how often that helped."""
    console = Console(stderr=True)
    if page:
        publish(read(folder), folder)
        return
    names = [case.name for case in repaired.mendable() if only in case.name]
    spawn = multiprocessing.get_context("spawn")
    found = []
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        for row in track(
            pool.map(repaired.row, names), "repairs", total=len(names), console=console
        ):
            console.print(" ".join(f"{key}={value}" for key, value in row.items()), markup=False)
            found.append(row)
    table = pd.DataFrame(found)
    if only:
        console.print(table.to_string())
        return
    publish(table, folder)
    console.print(f"written to {folder}")


if __name__ == "__main__":
    typer.run(main)
