"""pytest's summary: which models failed, where their reports are, and what to do next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nndiag.render import story
from nndiag.testing import session

__all__ = ["MOST", "MOST_LINES", "tell"]

MOST, MOST_LINES = 20, 3


def tell(reporter: Any, told: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Nothing, where all models are well and no report was asked for."""
    failed: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for nodeid, d in told:
        if d["failed"]:
            failed.setdefault(d["title"], []).append((nodeid, d))
    written = sorted({d["page"] for _, d in told if d["written"]})
    folder = session.settings_of(reporter.config).report
    models = len({d["title"] for _, d in told if not d["written"]})
    reports = any(d["verdict"] for _, d in told)
    if not failed and not written and (folder is None or not reports):
        return
    reporter.section("nndiag")
    if written:
        reporter.line(f"{story.plural(len(written), 'baseline')} written. Look, and commit:")
        for path in written[:MOST]:
            reporter.line(f"  {_near(path)}")
    if not models:
        return
    if failed:
        reporter.line(f"{len(failed)} of {story.plural(models, 'diagnosed model')} failed.")
    else:
        reporter.line(f"{story.plural(models, 'model')} diagnosed, none failed.")
    for parts in list(failed.values())[:MOST]:
        for nodeid, d in parts[:MOST_LINES]:
            reporter.line(f"  {nodeid}")
            reporter.line(f"    {d['line'] or d['verdict']}")
        if len(parts) > MOST_LINES:
            reporter.line(f"    and {len(parts) - MOST_LINES} rules more")
        if page := parts[0][1]["page"]:
            reporter.line(f"    {_near(page)}")
    if len(failed) > MOST:
        reporter.line(f"  and {len(failed) - MOST} more")
    if folder is not None:
        there = folder / "index.html"
        reporter.line(f"Reports: {_near(str(there if there.exists() else folder))}")
    diagnoses = [d for parts in failed.values() for _, d in parts if d["verdict"]]
    rules = [d["leading"] for d in diagnoses if d["leading"]]
    if rules:
        first = max(dict.fromkeys(rules), key=rules.count)
        reporter.line(f"Read what that means, and when it is no fault: nndiag rule {first}")
    if diagnoses and folder is None:
        reporter.line("Keep all reports: pytest --nndiag-report=DIR")
    if any(not d["verdict"] for parts in failed.values() for _, d in parts):
        reporter.line("Write the baselines that are meant anew: pytest --nndiag-update-baseline")


def _near(path: str) -> str:
    """As short as it can be said from here."""
    try:
        short = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return short if not short.startswith("..") else str(Path(path))
