"""The one table of formats, and what every document gets from it: ``to_*`` and ``_repr_*``.

A renderer is loaded when something is written with it: the page needs jinja, JSON pydantic, and
most who print a report need neither.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nndiag.render import files
from nndiag.settings import KEPT

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from nndiag.report import Report

__all__ = ["FORMATS", "Document", "Format", "Kind", "PathLike", "save", "texts"]

PathLike = str | os.PathLike[str]
Kind = Literal["report", "repair", "comparison"]


@dataclass(frozen=True)
class Format:
    """One way to show a document: a function in ``nndiag.render``, and the ending of its file."""

    renderer: str  # "module:function"
    ending: str = ""

    @property
    def render(self) -> Callable[[Any], Any]:
        module, _, function = self.renderer.partition(":")
        renderer: Callable[[Any], Any] = getattr(
            importlib.import_module(f"nndiag.render.{module}"), function
        )
        return renderer


FORMATS: Mapping[Kind, Mapping[str, Format]] = {
    "report": {
        "terminal": Format("terminal:render"),
        "repr": Format("story:brief"),
        "notebook": Format("html:fragment"),
        "json": Format("json:render", "json"),
        "html": Format("html:render", "html"),
        "markdown": Format("markdown:render", "md"),
        "csv": Format("csv:render", "csv"),  # a file for each table
        "sarif": Format("sarif:render", "sarif"),
        "junit": Format("junit:render", "junit.xml"),
        "github": Format("lines:github", "github.txt"),
        "concise": Format("lines:concise", "txt"),
    },
    "repair": {
        "terminal": Format("repair:terminal"),
        "repr": Format("repair:brief"),
        "notebook": Format("repair:fragment"),
        "html": Format("repair:html", "html"),
        "markdown": Format("repair:markdown", "md"),
    },
    "comparison": {
        "terminal": Format("comparison:terminal"),
        "repr": Format("comparison:brief"),
        "notebook": Format("comparison:fragment"),
        "html": Format("comparison:html", "html"),
        "markdown": Format("comparison:markdown", "md"),
    },
}


class Document:
    """What is printed, shown in a notebook and written to files, each in the table's way."""

    _kind: ClassVar[Kind]

    def _rendered(self, form: str) -> Any:
        return FORMATS[self._kind][form].render(self)

    def _write(self, form: str, path: PathLike) -> None:
        files.write({Path(path): self._rendered(form)})

    def to_html(self, path: PathLike) -> None:
        """One page that needs no network, to open in a browser.

        Raises:
            OutputError: it cannot be written.
        """
        self._write("html", path)

    def to_markdown(self, path: PathLike | None = None) -> str:
        """Text for a pull request's comment, short enough for one; also into a file.

        Raises:
            OutputError: the file cannot be written.
        """
        text: str = self._rendered("markdown")
        if path is not None:
            files.write({Path(path): text})
        return text

    def __str__(self) -> str:
        from nndiag.render.terminal import plain

        return plain(self._rendered("terminal"))

    def __repr__(self) -> str:
        return f"<{self._rendered('repr')}; print() shows it>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown: RenderableType = self._rendered("terminal")
        yield shown

    def _repr_html_(self) -> str:
        page: str = self._rendered("notebook")
        return page

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """IPython's terminal takes the text, Jupyter the HTML."""
        return {"text/plain": str(self), "text/html": self._repr_html_()}


def texts(report: Report, form: str, name: str = "report") -> dict[str, str]:
    """The text of each file of a format by the file's name."""
    format = FORMATS["report"][form]
    if not format.ending:
        return {}  # it is on the terminal
    made = format.render(report)
    if isinstance(made, str):
        return {f"{name}.{format.ending}": made}
    return made if name == "report" else {f"{name}.{table}": text for table, text in made.items()}


def save(
    report: Report, folder: Path, formats: Iterable[str] = KEPT, name: str = "report"
) -> list[Path]:
    """Write a report in these formats, all or none, and the folder's index.

    Raises:
        OutputError: one of the files cannot be written.
    """
    from nndiag.render import index

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
