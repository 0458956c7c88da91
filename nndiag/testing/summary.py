"""nndiag's section in pytest's summary: failed models, their reports, and what to do next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nndiag.render import story
from nndiag.testing import session

__all__ = ["MOST", "MOST_LINES", "write"]

MOST, MOST_LINES = 20, 3


def write(reporter: Any, diagnoses: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Write the section. Nothing is written if all models pass and no report was asked for.

    ``diagnoses``: the ids of tests, each with one diagnosis as a dict.
    """
    failed: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for nodeid, d in diagnoses:
        if d["failed"]:
            failed.setdefault(d["title"], []).append((nodeid, d))
    written = sorted({d["page"] for _, d in diagnoses if d["written"]})
    folder = session.settings_of(reporter.config).report
    models = len({d["title"] for _, d in diagnoses if not d["written"]})
    reports = any(d["verdict"] for _, d in diagnoses)
    if not failed and not written and (folder is None or not reports):
        return
    reporter.section("nndiag")
    if written:
        reporter.line(f"{story.plural(len(written), 'baseline')} written. Review and commit:")
        for path in written[:MOST]:
            reporter.line(f"  {_short(path)}")
    if not models:
        return
    if failed:
        reporter.line(f"{len(failed)} of {story.plural(models, 'diagnosed model')} failed.")
    else:
        reporter.line(f"{story.plural(models, 'model')} diagnosed, none failed.")
    for failures in list(failed.values())[:MOST]:
        for nodeid, d in failures[:MOST_LINES]:
            reporter.line(f"  {nodeid}")
            reporter.line(f"    {d['line'] or d['verdict']}")
        if len(failures) > MOST_LINES:
            reporter.line(f"    and {story.plural(len(failures) - MOST_LINES, 'more rule')}")
        if page := failures[0][1]["page"]:
            reporter.line(f"    {_short(page)}")
    if len(failed) > MOST:
        reporter.line(f"  and {len(failed) - MOST} more")
    if folder is not None:
        index = folder / "index.html"
        reporter.line(f"Reports: {_short(str(index if index.exists() else folder))}")
    judged = [d for failures in failed.values() for _, d in failures if d["verdict"]]
    rules = [d["leading"] for d in judged if d["leading"]]
    if rules:
        first = max(dict.fromkeys(rules), key=rules.count)
        reporter.line(f"What it means, and when it is no fault: nndiag rule {first}")
    if judged and folder is None:
        reporter.line("To keep all reports: pytest --nndiag-report=DIR")
    if any(not d["verdict"] for failures in failed.values() for _, d in failures):
        reporter.line("To accept an intended change: pytest --nndiag-update-baseline")


def _short(path: str) -> str:
    """The path, relative to the working directory if it lies below it."""
    try:
        short = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return short if not short.startswith("..") else str(Path(path))
