"""What the gallery keeps, under which names, and how it counts: known without torch."""

from __future__ import annotations

from collections.abc import Mapping

from nndiag.languages import ENGLISH, words

CLAIMS, PAGES = "claims.csv", "pages.csv"
"""Of the whole gallery: every claim with its verdict, and when and how each page was measured."""

PAGE, FIGURE = "README.md", "figure.svg"
"""In each page's folder."""

VERDICTS = ("confirmed", "qualified", "contradicted", "not shown")
"""Of what a source says: so it is; so it is in part, or on a condition; so it is not; and this
measurement does not show what the page claims."""


def tally(counts: Mapping[str, int], language: str = ENGLISH) -> str:
    """``"4 confirmed, 1 qualified"``, in the words of a language."""
    said = words(language)["gallery"]
    told = [
        said["count"].format(count=counts[v], verdict=said["verdicts"][v])
        for v in VERDICTS
        if counts.get(v)
    ]
    return str(said["comma"].join(told))
