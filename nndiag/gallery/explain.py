"""Pages and claims on a terminal, as they were measured; torch is not needed to read them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from nndiag.errors import ReportError, UnknownClaimError, did_you_mean
from nndiag.gallery.kept import CLAIMS, PAGE, tally
from nndiag.languages import CHINESE, ENGLISH, words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def folder() -> Path:
    """Where the measured pages are: within an installed package, or in the repository beside it.

    Raises:
        UnknownClaimError: they are in neither place.
    """
    here = Path(__file__)
    places = (here.parent / "measured", here.parents[2] / "reports" / "gallery")
    for place in places:
        if (place / CLAIMS).exists():
            return place
    raise UnknownClaimError(
        "the gallery's pages are not part of this installation. Install nndiag from a wheel or a "
        "whole clone, or measure them: nndiag gallery"
    )


def listing(claims: pd.DataFrame, language: str = ENGLISH) -> Table:
    """The pages of these claims, with what they came to."""
    from rich.table import Table

    said = words(language)["gallery"]
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", said["page"], said["verdict"]):
        table.add_column(heading, overflow="fold")
    for (number, name), rows in claims.groupby(["number", "page"]):
        counts = tally(Counter(rows.verdict), language)
        own = said.get("pages", {}).get(name, {"title": rows["title"].iloc[0]})
        table.add_row(str(number), str(name), own["title"], counts)
    return table


def listed(language: str = ENGLISH) -> Table:
    """All pages of the gallery."""
    return listing(_claims(), language)


def _claims() -> pd.DataFrame:
    path = folder() / CLAIMS
    try:
        claims = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {error}. {REMAKE}") from error
    if not len(claims) or {"page", "number", "title", "claim", "verdict"} - {*claims.columns}:
        raise ReportError(f"{path} is not the gallery's list of claims. {REMAKE}")
    return claims


REMAKE = "Install nndiag again, or remake the pages with: nndiag gallery --redraw --output DIR"


def explain(asked: str, language: str = ENGLISH) -> Iterator[RenderableType]:
    """What to print of a page (by name or number) or of a claim (by name, words or a part of it).

    Raises:
        UnknownClaimError: there is none, or several claims match.
        ReportError: the kept pages cannot be read.
    """
    from rich.markdown import Markdown

    claims = _claims()
    page, row = _page(asked, claims), None
    if page is None:
        row = _claim(asked, claims)
        page = str(row["page"])
    if row is not None:
        yield Markdown(_told(row, language))
    if language != ENGLISH:
        own = words(language)["gallery"]["pages"][page]
        yield Markdown(f"# {own['title']}\n\n> {own['claim']}\n\n{words(language)['english']}")
    path = folder() / page / PAGE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {error}. {REMAKE}") from error
    yield _folding(_IMAGE.sub("", text))


def _folding(text: str) -> RenderableType:
    """Markdown whose tables break a number that has no room, and do not cut it."""
    from rich.markdown import Markdown, TableElement
    from rich.table import Table

    class Folding(TableElement):
        def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
            for made in super().__rich_console__(console, options):
                if isinstance(made, Table):
                    for column in made.columns:
                        column.overflow = "fold"
                yield made

    class Folded(Markdown):
        elements: ClassVar = {**Markdown.elements, "table_open": Folding}

    return Folded(text)


MOST = 8
"""Of claims that an error lists."""

_IMAGE = re.compile(r"^!\[.*\]\(.*\)\n\n", re.M)


def _told(row: pd.Series[str], language: str) -> str:
    said = words(language)["gallery"]
    return "\n".join(
        (
            f"**{row['statement']}** {said['verdicts'][row['verdict']]}",
            "",
            f"- {said['measured']}: {row['measured']}",
            f"- {said['expected']}: {row['expected']}",
            f"- {row['source']}: {row['says']}",
            "",
            "---",
        )
    )


def _page(asked: str, claims: pd.DataFrame) -> str | None:
    word = re.sub(r"^(page\b|#)?[\s#]*0*(?=\d)", "", asked.strip().lower())
    word = re.sub(r"[\s_-]+", "-", word)
    known = {str(name): str(name) for name in claims.page}
    known |= {str(n): str(name) for n, name in zip(claims.number, claims.page, strict=True)}
    for name, own in words(CHINESE)["gallery"]["pages"].items():
        known[own["title"].lower()] = name
    return known.get(word)


def _claim(asked: str, claims: pd.DataFrame) -> pd.Series[str]:
    word = re.sub(r"[\s-]+", "_", asked.strip().lower()).removeprefix("test_")
    exact = claims[claims.claim == word]
    found = exact if len(exact) else claims[claims.claim.str.contains(word, regex=False)]
    if word and len(found) == 1:
        return found.iloc[0]
    pages = list(dict.fromkeys(claims.page))
    if word and len(found) > 1:
        some = found.claim.iloc[:MOST]
        others = f" and {len(found) - len(some)} others" if len(found) > len(some) else ""
        raise UnknownClaimError(
            f"{len(found)} claims have {asked!r} in their names: {', '.join(some)}{others}. "
            "Say more of the one that is meant."
        )
    raise UnknownClaimError(
        f"the gallery has no page or claim {asked!r}.{did_you_mean(asked, [*pages, *claims.claim])}"
        f" Its pages are {', '.join(pages)}; `nndiag explain PAGE` shows a page's claims, "
        "`nndiag rule NAME` explains a rule."
    )
