"""The formats by name: which files a report makes in each, and writing them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nndiag.render import csv, files, html, index, json, junit, lines, markdown, sarif
from nndiag.settings import KEPT

if TYPE_CHECKING:
    from nndiag.report import Report

_RENDERS = {
    "json": ("json", json.render),
    "html": ("html", html.render),
    "markdown": ("md", markdown.render),
    "sarif": ("sarif", sarif.render),
    "junit": ("junit.xml", junit.render),
    "github": ("github.txt", lines.github),
    "concise": ("txt", lines.concise),
}


def texts(report: Report, form: str, name: str = "report") -> dict[str, str]:
    """The text of each file of a format by the file's name."""
    if form == "csv":
        tables = csv.render(report)
        return tables if name == "report" else {f"{name}.{t}": x for t, x in tables.items()}
    if form not in _RENDERS:
        return {}  # it is on the terminal
    ending, render = _RENDERS[form]
    return {f"{name}.{ending}": render(report)}


def save(
    report: Report, folder: Path, formats: Iterable[str] = KEPT, name: str = "report"
) -> list[Path]:
    """Write a report in these formats, all or none, and the folder's index.

    Raises:
        OutputError: one of the files cannot be written.
    """
    made = dict(_all(report, folder, formats, name))
    files.write(made)
    if any(path.suffix == ".html" for path in made):
        index.update(folder)
    return list(made)


def _all(
    report: Report, folder: Path, formats: Iterable[str], name: str
) -> Iterator[tuple[Path, str]]:
    for form in formats:
        for file, text in texts(report, form, name).items():
            yield folder / file, text
