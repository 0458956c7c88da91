"""``python -m gallery``: measure pages, keep their tables, and make the pages of what was kept.

Run by ``make gallery``, with ``reports`` on the path. Exit status 1 if what was measured does not
show what a page claims.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gallery import figures, render
from gallery.lab import Lab
from gallery.page import HERE, PAGES, csv, every, load, read
from nndiag.demo import one_thread
from nndiag.progress import Progress

CLAIMS, RUNS = "claims.csv", "pages.csv"
"""Every claim with its verdict; and when and how each page was measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gallery", description=__doc__.partition("\n\n")[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"all if left out: {PAGES}")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: make the pages")
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.redraw and options.pages:
        parser.error("--redraw makes all pages that were measured: leave out it, or the pages")
    names = [word.replace("-", "_") for word in options.pages] or list(PAGES)
    if unknown := sorted({*names} - {*PAGES}):
        parser.error(f"there is no page {unknown[0]}. The pages are {', '.join(PAGES)}.")
    if not options.redraw:
        with Progress("gallery") as progress:
            measure(names, options.output, progress)
    claims = draw(options.output)
    for name, verdicts in claims.groupby("page", sort=False).verdict:
        print(f"{name:16}", render.tally(verdicts.value_counts()))
    missing = claims[claims.verdict == "not shown"]
    for row in missing.itertuples():
        print(f"not shown on {row.page}: {row.statement} Measured {row.measured}, "
              f"expected {row.expected}.")  # fmt: skip
    print(f"To click through: {options.output / 'index.html'}")
    return int(len(missing) > 0)


def measured(name: str, lab: Lab) -> dict[str, pd.DataFrame]:
    """A page's tables, measured now; torch's random state and threads are left as they were."""
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(lab.first)
        return load(name).experiment.measure(lab) | {"verdicts": lab.verdicts}


def measure(names: Sequence[str], output: Path, progress: Progress) -> None:
    """Measure pages and write ``PAGE/*.csv``, and a line for each in ``pages.csv``.

    Each page is written when it is measured: stopped half way, the others are as they were.
    """
    for place, name in enumerate(names):

        def update(share: float, text: str, place: int = place, name: str = name) -> None:
            progress.update(place + share, len(names), f"{name} {text}")

        update(0.0, "")
        began = time.perf_counter()
        # Measured before the folder is made: an experiment that fails leaves nothing.
        frames = measured(name, Lab(update))
        known = runs(output) | {
            name: {
                "page": name, "seconds": round(time.perf_counter() - began),
                "date": datetime.date.today().isoformat(),
                "torch": torch.__version__.partition("+")[0], "cores": os.cpu_count(),
            }
        }  # fmt: skip
        (output / name).mkdir(parents=True, exist_ok=True)
        for frame, rows in frames.items():
            (output / name / f"{frame}.csv").write_text(csv(rows), encoding="utf-8")
        listed = pd.DataFrame([known[page] for page in PAGES if page in known])
        (output / RUNS).write_text(csv(listed), encoding="utf-8")


def runs(output: Path) -> dict[str, dict[str, Any]]:
    """When and how each page in a folder was measured, by its name."""
    if not (output / RUNS).exists():
        return {}
    table = pd.read_csv(output / RUNS, dtype={"torch": str})
    return {row["page"]: row for row in table.to_dict("records")}


def draw(output: Path) -> pd.DataFrame:
    """Make the pages and the indexes of the tables in a folder: Markdown, SVG and HTML.

    Returns:
        every claim with its verdict, as ``claims.csv`` has it.
    """
    for name, run in runs(output).items():
        frames, folder = read(output / name), output / name
        text = render.page(load(name), frames, run)
        (folder / "README.md").write_text(text, encoding="utf-8")
        (folder / "index.html").write_text(render.html(text, load(name).title), encoding="utf-8")
        (folder / "figure.svg").write_text(figures.svg(load(name), frames), encoding="utf-8")
    texts, claims = indexes(output)
    for file, text in texts.items():
        (output / file).write_text(text, encoding="utf-8")
    (output / CLAIMS).write_text(csv(claims), encoding="utf-8")
    return claims


def indexes(output: Path) -> tuple[dict[str, str], pd.DataFrame]:
    """The gallery's first page by file name, in each language as Markdown and HTML; the claims."""
    known = runs(output)
    pages = [(page, read(output / name)) for name, page in every().items() if name in known]
    if not pages:
        sys.exit(f"{output} holds no measured page. Measure them first: leave out --redraw.")
    entries = [render.Entry(page, page.judge(frames), frames) for page, frames in pages]
    newest = max(known.values(), key=lambda run: run["date"])
    run = newest | {"seconds": sum(run["seconds"] for run in known.values())}
    texts = {}
    for language, name in render.INDEX.items():
        texts[name] = render.index(entries, run, language, "README.md")
        linked = render.index(entries, run, language, "index.html")
        for other in render.INDEX.values():
            linked = linked.replace(f"({other})", f"({_as_html(other)})")
        title = render.words(language)["title"]
        texts[_as_html(name)] = render.html(linked, title, language)
    claims = pd.DataFrame(
        {
            "page": entry.page.name, "number": entry.page.number, "title": entry.page.title,
            "claim": t.claim.name, "statement": t.claim.statement, "source": t.claim.source,
            "says": t.claim.says, "measured": t.judged.measured, "expected": t.judged.expected,
            "verdict": t.verdict,
        }
        for entry in entries for t in entry.claims
    )  # fmt: skip
    return texts, claims


def _as_html(name: str) -> str:
    return name.replace("README", "index").replace(".md", ".html")


if __name__ == "__main__":
    sys.exit(main())
