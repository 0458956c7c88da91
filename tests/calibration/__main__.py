"""``make calibration``: judge the corpus and the healthy networks, write reports/calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track

from calibration import judge, page
from calibration.build import control
from calibration.faults import BASES, FAULTS, WHY
from calibration.labels_file import LABELS, write
from nndiag.progress import silenced


def main(
    folder: Annotated[Path, typer.Option(help="Where the tables and the page go.")] = page.FOLDER,
    relabel: Annotated[bool, typer.Option(help="Also write labels.csv anew.")] = False,
    only: Annotated[str, typer.Option(help="Cases whose name holds this; writes nothing.")] = "",
) -> None:
    """Judge every case and publish how often nndiag was right."""
    torch.set_num_threads(1)
    console = Console(stderr=True)
    cases = [case for case in FAULTS if only in case.name]
    verdicts, labels = [], {}
    for case in track(cases, "faults", console=console):
        with silenced():
            subject = case.build()
            verdicts.append(judge.verdict(case, subject))
            labels[case.name] = float(case.measure(subject))  # a check leaves it as it was
    table = judge.table(cases, verdicts, labels)
    if only:
        console.print(table.drop(columns=["kind", "rule"]).to_string())
        return
    sound = []
    for base in track(BASES, "healthy bases", console=console):
        for seed in (0, 1, 2) if base.state == "init" else (0,):
            with silenced():
                case = control(base)
                sound.append(judge.verdict(case, case.build(seed)))
    healthy = pd.DataFrame(
        {"network": v.name, "rules": " ".join({a.rule for a in v.alarms})} for v in sound
    )
    page.publish(
        table, judge.rules(table, healthy), judge.curves(cases, verdicts, sound), healthy, WHY, folder
    )  # fmt: skip
    if relabel:
        write(cases, labels, LABELS)
    console.print(f"written to {folder}")


if __name__ == "__main__":
    typer.run(main)
