"""A page that lists all reports in a folder, from all processes."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from nndiag.render import files

__all__ = ["NAME", "reports", "update"]

NAME = "index.html"
# html.render puts it in the first few kilobytes of a page.
_SUMMARY = re.compile(r'<meta name="nndiag-report" content="([^"]*)">')
_HEAD = 20_000


def update(folder: Path) -> None:
    """Rewrite the folder's index. Processes that write at the same time lose no report.

    Each process saves its report before it lists the folder. After writing the index it lists the
    folder again, until nothing new has appeared.

    Raises:
        OutputError: it cannot be written.
    """
    listed: list[dict[str, Any]] | None = None
    while (current := reports(folder)) != listed:
        listed = current
        files.write({folder / NAME: _render(current)})


def reports(folder: Path) -> list[dict[str, Any]]:
    """The summary of each page in the folder, most severe first."""
    summaries = []
    for path in sorted(folder.glob("*.html")):
        try:
            with path.open(encoding="utf-8") as page:
                match = _SUMMARY.search(page.read(_HEAD))
            summary = None if match is None else json.loads(unescape(match[1]))
        except (OSError, ValueError):  # deleted meanwhile, or not written by nndiag
            continue
        if isinstance(summary, dict) and {"model", "verdict", "severity"} <= summary.keys():
            others = [
                other.name
                for other in sorted(folder.glob(f"{path.stem}.*"))
                if other.suffix in (".json", ".md", ".sarif", ".xml") and other.is_file()
            ]
            summaries.append({"file": path.name, "others": others, **summary})
    order = ("error", "warning", "note", "fine")
    rank = {severity: place for place, severity in enumerate(order)}
    return sorted(summaries, key=lambda page: (rank.get(page["severity"], 0), page["file"]))


def _render(summaries: list[dict[str, Any]]) -> str:
    from nndiag.render.html import page

    return page("index.html.j2", reports=summaries)
