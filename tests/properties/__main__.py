"""``python -m properties``: which building block has which property. Remakes reports/properties."""

from __future__ import annotations

import datetime
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jinja2
import pandas as pd
import sklearn
import torch
import typer
from rich.progress import track

from nndiag.render import files
from properties.blocks import KINDS

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "reports" / "properties"


def rows() -> Iterator[dict[str, Any]]:
    """One for each block and property."""
    todo = [(kind, name, made) for kind in KINDS for name, made in kind.blocks.items()]
    for kind, name, made in track(todo, "properties"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = kind.battery.results(made(), {}, {})
        for r in results:
            value = "" if r.value is None else _cell(r.value)
            yield {
                "kind": kind.battery.kind, "block": name, "property": r.name, "status": r.status,
                "value": value, "reason": r.reason,
            }  # fmt: skip


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " to ".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def page(table: pd.DataFrame) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    kinds = []
    for kind in KINDS:
        part = table[table.kind == kind.battery.kind]
        measured = part[part.status == "measured"]
        cells = measured.set_index(["block", "property"])["value"].to_dict()
        traits = [n for n in kind.battery.properties if n in set(measured.property)]
        laws = [n for n in kind.battery.properties if n not in traits]
        kinds.append(
            {
                "title": kind.title,
                "blocks": list(kind.blocks),
                "traits": traits,
                "cells": cells,
                "laws": [(n, kind.battery.properties[n].about.splitlines()[0]) for n in laws],
                "broken": part[part.status == "fails"].to_dict("records"),
            }
        )
    return environment.get_template("README.md.j2").render(
        kinds=kinds,
        date=datetime.date.today(), torch=torch.__version__, sklearn=sklearn.__version__,
        python=platform.python_version(),
    )  # fmt: skip


def main(output: Annotated[Path, typer.Option(help="Where they go.")] = OUTPUT) -> None:
    table = pd.DataFrame(rows())
    csv = table.to_csv(index=False, lineterminator="\n")
    files.write({output / "properties.csv": csv, output / "README.md": page(table)})
    print(f"written to {output}")


if __name__ == "__main__":
    typer.run(main)
