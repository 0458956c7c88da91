"""Pages and their index as Markdown and HTML, all of it made from the tables alone."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import pandas as pd

from nndiag.gallery.kept import PAGE, tally
from nndiag.gallery.page import Claim, Frames, Judged, Page, PageModule, Verdict, claims
from nndiag.languages import CHINESE, ENGLISH, words

if TYPE_CHECKING:
    from jinja2 import Environment
    from markdown_it import MarkdownIt

INDEX = {ENGLISH: "README.md", CHINESE: "README.zh-CN.md"}


@dataclass(frozen=True)
class Told:
    """A claim, judged on a page's tables."""

    claim: Claim
    judged: Judged

    @property
    def verdict(self) -> Verdict:
        return self.claim.verdict(self.judged)


def tell(module: PageModule, frames: Frames) -> list[Told]:
    """All claims of a page, judged."""
    return [Told(claim, claim.judge(frames)) for claim in claims(module)]


def page(name: str, module: PageModule, frames: Frames, run: Mapping[str, Any]) -> str:
    """One page in Markdown.

    Args:
        name: the page's, which is also its folder's.
        module: the page.
        frames: its tables as they were read from CSV.
        run: what is known of the measurement (seconds, date, versions).
    """
    told = tell(module, frames)
    return (
        _environment()
        .get_template("page.md.j2")
        .render(
            name=name,
            page=module.PAGE,
            prose=cleandoc(module.__doc__).partition("\n\n")[2],
            told=told,
            amiss=[t for t in told if t.verdict != "confirmed"],
            summary=tally(Counter(t.verdict for t in told)),
            tables={title: rows(frame) for title, frame in module.tables(frames).items()},
            verdicts=rows(frames["verdicts"][["network", "verdict", "leading", "message"]]),
            files=sorted(f"{frame}.csv" for frame in frames),
            run=run,
        )
    )


@dataclass(frozen=True)
class Entry:
    """A page's line in the index; its title and claim in the index's language."""

    name: str
    page: Page
    counts: Mapping[str, int]
    sick: int
    healthy: int
    own: int
    """How many of its claims are about nndiag itself."""
    title: str = ""
    claim: str = ""


def index(
    entries: Sequence[Entry], run: Mapping[str, Any], language: str = ENGLISH, ending: str = PAGE
) -> str:
    """The gallery's first page, in Markdown.

    Args:
        entries: the pages, in order.
        run: ``seconds``, ``date``, ``torch`` and ``cores`` of the measurement.
        language: ``en`` or ``zh``.
        ending: what the pages' files are called.
    """
    said = words(language)["gallery"]
    titled = []
    for entry in entries:
        own = said.get("pages", {}).get(entry.name, vars(entry.page))
        titled.append(replace(entry, title=own["title"], claim=own["claim"]))
    total: Counter[str] = Counter()
    for entry in entries:
        total.update(entry.counts)
    template = _environment().get_template("index.md.j2")
    return template.render(
        entries=titled, said=said, language=language, ending=ending, total=total, run=run,
        own=sum(entry.own for entry in entries), tally=tally,
    )  # fmt: skip


def rows(frame: pd.DataFrame) -> list[list[str]]:
    """Headings and cells as text, for a Markdown table."""
    body = [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    return [[cell(name) for name in frame.columns], *body]


def cell(value: object) -> str:
    """Numbers to three digits, what is not known empty, nothing that would end the cell."""
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def number(value: float) -> str:
    """Three digits: ``0.213``, ``1.34e-06``, ``12,300``."""
    size = abs(value)
    if size != 0 and math.isfinite(value) and (size < 1e-3 or size >= 1e6):
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.3g}"


def spread(values: Sequence[float] | pd.Series[float]) -> str:
    """Mean, and the smallest and the largest over the seeds: ``0.213 (0.212 to 0.214)``."""
    listed = [float(v) for v in values]
    mean, low, high = (
        number(v) for v in (math.fsum(listed) / len(listed), min(listed), max(listed))
    )
    return mean if low == high else f"{mean} ({low} to {high})"


def html(markdown: str, title: str, language: str = ENGLISH) -> str:
    """A page or an index in Markdown as a whole page of HTML."""
    from markupsafe import Markup

    from nndiag.render.html import page as filled

    body = Markup(_markdown().render(markdown))
    return filled("gallery.html.j2", title=title, language=language, body=body)


@functools.cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    md = MarkdownIt("commonmark").enable("table")
    # A table too wide for a phone is scrolled by itself, by keyboard, too.
    wide = '<div class="wide" tabindex="0" role="group" aria-label="Table"><table>\n'
    md.add_render_rule("table_open", lambda *_: wide)
    md.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return md


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nndiag.gallery", "."),
        autoescape=False,  # Markdown, and nothing in it is a user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment
