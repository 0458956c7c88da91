"""``python -m mutation``: runs the tests on mutants. Remakes ``reports/mutation``."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import jinja2
import typer

from mutation import draw, run
from mutation.draw import Mutant

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "reports" / "mutation"
OTHERS = ("causes.py", "stats.py", "theory.py")
COLUMNS = ("module", "line", "operator", "was", "now", "outcome", "reason")

Row = dict[str, str]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    count: int = 150,
    seed: int = 0,
    only: Annotated[str, typer.Option(help="Modules whose path has this in it.")] = "",
    resume: Annotated[
        bool, typer.Option(help="Keep what the table has; run what survived or is missing.")
    ] = False,
    processes: int = os.cpu_count() or 1,
    minutes: Annotated[float, typer.Option(help="Start no mutant after so many.")] = 60.0,
    output: Annotated[Path, typer.Option(help="Where the table and the page are.")] = OUTPUT,
) -> None:
    rules = sorted((ROOT / "nndiag" / "rules").glob("*.py"))
    modules = [name for name in (*(f"rules/{p.name}" for p in rules), *OTHERS) if only in name]
    mutants = draw.sample(ROOT / "nndiag", modules, count, seed)
    table = output / "mutants.csv"
    known = {_key(row): row for row in _read(table)} if resume else {}
    due = [m for m in mutants if known.get(m.key, {}).get("outcome", "survived") == "survived"]
    output.mkdir(parents=True, exist_ok=True)
    for mutant, outcome in run.outcomes(ROOT, due, processes, minutes):
        known[mutant.key] = _row(mutant, outcome)
        print(
            f"{outcome}: {mutant.module}:{mutant.line}: {mutant.was}  ->  {mutant.now}", flush=True
        )
        _write(table, [known[m.key] for m in mutants if m.key in known])
    _page(output, [known[m.key] for m in mutants if m.key in known], len(mutants), seed)


def _key(row: Row) -> tuple[str, str, str]:
    return row["module"], row["was"], row["now"]


def _row(mutant: Mutant, outcome: str) -> Row:
    values = (mutant.module, str(mutant.line), mutant.operator, mutant.was, mutant.now, outcome, "")
    return dict(zip(COLUMNS, values, strict=True))


def _equivalent() -> dict[tuple[str, str, str], str]:
    entries = tomllib.loads((HERE / "equivalent.toml").read_text()).get("mutant", [])
    return {_key(entry): entry["why"] for entry in entries}


def _read(table: Path) -> list[Row]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(table: Path, rows: list[Row]) -> None:
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _page(output: Path, rows: list[Row], drawn: int, seed: int) -> None:
    reasons = _equivalent()
    for row in rows:
        if row["outcome"] == "survived" and _key(row) in reasons:
            row |= {"outcome": "equivalent", "reason": reasons[_key(row)]}
    _write(output / "mutants.csv", rows)
    counts = {
        module: Counter(row["outcome"] for row in rows if row["module"] == module)
        for module in dict.fromkeys(row["module"] for row in rows)
    }
    total = Counter(row["outcome"] for row in rows)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    text = environment.from_string((HERE / "README.md.j2").read_text()).render(
        run=len(rows),
        drawn=drawn,
        modules=len(counts),
        seed=seed,
        version=importlib.metadata.version("cosmic-ray"),
        **{name: total[name] for name in ("killed", "timeout", "survived", "equivalent")},
        rows=[
            {
                "module": module,
                "run": sum(count.values()),
                "killed": count["killed"] + count["timeout"],
                "survived": count["survived"],
                "equivalent": count["equivalent"],
            }
            for module, count in counts.items()
        ],
    )
    (output / "README.md").write_text(text)


if __name__ == "__main__":
    app()
