"""One page that lists all reports in a folder, whoever wrote them."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from nndiag.render import files

__all__ = ["NAME", "reports", "update"]

NAME = "index.html"
# Within the first few kilobytes of a page: html.render puts it there.
_SUMMARY = re.compile(r'<meta name="nndiag-report" content="([^"]*)">')
_HEAD = 20_000


def update(folder: Path) -> None:
    """Write the folder's index anew. Processes that write side by side need not know of another.

    Each has put its report there before it looks; and whoever writes the index last looks once
    more, and finds what it had not seen.

    Raises:
        OutputError: it cannot be written.
    """
    listed: list[dict[str, Any]] | None = None
    while (found := reports(folder)) != listed:
        listed = found
        files.write({folder / NAME: _render(found)})


def reports(folder: Path) -> list[dict[str, Any]]:
    """What each page in the folder says of itself, gravest first."""
    found = []
    for path in sorted(folder.glob("*.html")):
        try:
            with path.open(encoding="utf-8") as page:
                match = _SUMMARY.search(page.read(_HEAD))
            told = None if match is None else json.loads(unescape(match[1]))
        except (OSError, ValueError):  # gone again, or nothing of ours
            continue
        if isinstance(told, dict) and {"model", "verdict", "grade"} <= told.keys():
            others = [
                other.name
                for other in sorted(folder.glob(f"{path.stem}.*"))
                if other.suffix in (".json", ".md", ".sarif", ".xml") and other.is_file()
            ]
            found.append({"file": path.name, "others": others, **told})
    order = ("error", "warning", "note", "fine")
    rank = {grade: place for place, grade in enumerate(order)}
    return sorted(found, key=lambda told: (rank.get(told["grade"], 0), told["file"]))


def _render(found: list[dict[str, Any]]) -> str:
    from nndiag.render.html import page

    return page("index.html.j2", reports=found)
