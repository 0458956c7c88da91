"""Pages and their index as Markdown and HTML, made of the tables and ``page.md`` alone."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from gallery.page import HERE, VERDICTS, Frames, JudgedClaim, Page, number
from nndiag.languages import parsed

INDEX = {"en": "README.md", "zh": "README.zh-CN.md"}


@functools.cache
def words(language: str) -> dict[str, Any]:
    """What the index says in a language."""
    return parsed((HERE / f"{language}.toml").read_text(encoding="utf-8"))


def tally(counts: Mapping[str, int], language: str = "en") -> str:
    """``"4 confirmed, 1 qualified"``, in the words of a language."""
    said = words(language)
    return said["comma"].join(
        said["count"].format(count=counts[v], verdict=said["verdicts"][v])
        for v in VERDICTS
        if counts.get(v)
    )


def page(shown: Page, frames: Frames, run: Mapping[str, Any]) -> str:
    """One page in Markdown.

    Args:
        shown: the page.
        frames: its tables as they were read from CSV.
        run: what is known of the measurement (seconds, date, torch).
    """
    claims = shown.judge(frames)
    return _template("page.md.j2").render(
        page=shown,
        claims=claims,
        amiss=[t for t in claims if t.verdict != "confirmed"],
        summary=tally(Counter(t.verdict for t in claims)),
        tables={title: rows(table) for title, table in shown.experiment.tables(frames).items()},
        verdicts=rows(frames["verdicts"][["network", "verdict", "leading", "message"]]),
        files=sorted(f"{frame}.csv" for frame in frames),
        run=run,
    )


@dataclass(frozen=True)
class Entry:
    """A page's line in the index."""

    page: Page
    claims: Sequence[JudgedClaim]
    frames: Frames

    @property
    def counts(self) -> Counter[str]:
        return Counter(t.verdict for t in self.claims)

    @property
    def sick(self) -> int:
        return int((self.frames["verdicts"].verdict == "sick").sum())

    @property
    def healthy(self) -> int:
        return len(self.frames["verdicts"]) - self.sick


def index(entries: Sequence[Entry], run: Mapping[str, Any], language: str, ending: str) -> str:
    """The gallery's first page, in Markdown.

    Args:
        entries: the pages, in order.
        run: ``seconds``, ``date``, ``torch`` and ``cores`` of the measurement.
        language: ``en`` or ``zh``.
        ending: what the pages' files are called.
    """
    said = words(language)
    return _template("index.md.j2").render(
        entries=[(e, said.get("pages", {}).get(e.page.name, e.page)) for e in entries],
        said=said,
        language=language,
        ending=ending,
        total=sum((e.counts for e in entries), Counter()),
        own=sum(t.claim.source == "nndiag" for e in entries for t in e.claims),
        run=run,
        tally=tally,
    )


def rows(frame: pd.DataFrame) -> list[list[str]]:
    """Headings and cells as text, for a Markdown table."""
    body = [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    return [[cell(name) for name in frame.columns], *body]


def cell(value: object) -> str:
    """Numbers to three digits, what is not known empty, nothing that would end the cell."""
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def html(markdown: str, title: str, language: str = "en") -> str:
    """A page or an index in Markdown as a whole page of HTML."""
    body = _markdown().render(markdown)
    return _template("page.html.j2").render(title=title, language=language, body=body)


@functools.cache
def _markdown() -> MarkdownIt:
    md = MarkdownIt("commonmark").enable("table")
    # A table too wide for a phone is scrolled by itself, by keyboard, too.
    wide = '<div class="wide" tabindex="0" role="group" aria-label="Table"><table>\n'
    md.add_render_rule("table_open", lambda *_: wide)
    md.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return md


@functools.cache
def _template(name: str) -> Any:
    environment = Environment(
        # The report's style sheets, too.
        loader=ChoiceLoader([FileSystemLoader(HERE), PackageLoader("nndiag", "render")]),
        autoescape=False,  # Markdown, and nothing in it is a user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment.get_template(name)
