"""pytest's summary: which models failed, where their reports are, and what to do next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nndiag.render import story
from nndiag.testing import session

MOST = 20


def tell(reporter: Any, told: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Nothing, where all models are well and no report was asked for."""
    failed = {d["title"]: (nodeid, d) for nodeid, d in told if d["failed"]}
    written = sorted({d["page"] for _, d in told if d["written"]})
    folder = session.settings_of(reporter.config).report
    models = len({d["title"] for _, d in told if not d["written"]})
    if not failed and not written and (folder is None or not models):
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
    for nodeid, d in list(failed.values())[:MOST]:
        reporter.line(f"  {nodeid}")
        reporter.line(f"    {d['line'] or d['verdict']}")
        if d["page"]:
            reporter.line(f"    {_near(d['page'])}")
    if len(failed) > MOST:
        reporter.line(f"  and {len(failed) - MOST} more")
    if folder is not None:
        there = folder / "index.html"
        reporter.line(f"Reports: {_near(str(there if there.exists() else folder))}")
    diagnoses = [d for _, d in failed.values() if d["verdict"]]
    rules = [d["leading"] for d in diagnoses if d["leading"]]
    if rules:
        first = max(dict.fromkeys(rules), key=rules.count)
        reporter.line(f"Read what that means, and when it is no fault: nndiag rule {first}")
    if diagnoses and folder is None:
        reporter.line("Keep all reports: pytest --nndiag-report=DIR")
    if len(diagnoses) < len(failed):
        reporter.line("If what differs is meant: pytest --nndiag-update-baseline")


def _near(path: str) -> str:
    """As short as it can be said from here."""
    try:
        short = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return short if not short.startswith("..") else str(Path(path))
