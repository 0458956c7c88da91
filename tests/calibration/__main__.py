"""``make calibration``: judge the corpus and the healthy networks, write reports/calibration."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track

from calibration import judge, labels_file, page
from calibration.build import control
from calibration.cases import Healthy
from calibration.faults import BASES, FAULTS, WHY
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
    for network, seed in track([*_healthy()], "healthy", console=console):
        with silenced():
            sound.append(judge.verdict(network, network.build(seed)))
    healthy = pd.concat([judge.quiet(sound), *_published(folder)])
    curves = judge.curves(cases, verdicts, sound)
    page.publish(table, judge.rules(table, healthy), curves, healthy, WHY, folder)
    if relabel:
        labels_file.write(cases, labels)
    console.print(f"written to {folder}")


def _healthy() -> Iterator[tuple[Healthy, int]]:
    """What the faults were injected into, from three seeds; the healthy half of the corpus."""
    for base in BASES:
        yield from (
            (control(base), seed) for seed in ((0,) if base.state == "trained" else (0, 1, 2))
        )
    if importlib.util.find_spec("calibration.healthy"):
        from calibration.healthy import HEALTHY

        yield from ((network, 0) for network in HEALTHY)


def _published(folder: Path) -> Iterator[pd.DataFrame]:
    """The other seeds of the healthy half, from ``healthy.csv``."""
    path = folder / "healthy.csv"
    if path.exists():
        runs = pd.read_csv(path, keep_default_na=False)
        said = runs["alarms"].map(
            lambda text: " ".join(a.split()[1] for a in text.split("; ") if a)
        )
        yield pd.DataFrame({"network": runs["network"], "rules": said})[runs["seed"] != 0]


if __name__ == "__main__":
    typer.run(main)
