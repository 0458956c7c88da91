"""What a page is: its claim, its measurement, its figure, and what of the lecture it bears out."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from nndiag.gallery.lab import Lab

Frames = Mapping[str, "pd.DataFrame"]
Standing = Literal["confirmed", "qualified", "contradicted"]
Verdict = Literal["confirmed", "qualified", "contradicted", "not shown"]


@dataclass(frozen=True)
class Page:
    """What a page says of itself, before anything is measured."""

    number: int
    title: str
    claim: str
    """What the lecture says, in a sentence or two."""
    sources: tuple[str, ...]
    caption: str
    """What the figure shows and how to read it; its alternative text, too."""


@dataclass(frozen=True)
class Judged:
    """Whether the tables bear a claim out, by which numbers."""

    holds: bool
    measured: str
    expected: str
    """By theory or by the source's own numbers; what else would have been, if neither has any."""


@dataclass(frozen=True)
class Claim:
    """A sentence that the page's tables can refute, and how a source stands if they do not."""

    name: str
    statement: str
    source: str
    says: str
    stands: Standing
    but: str
    """Where it is not simply confirmed: what the source leaves out, or has wrong."""
    judge: Callable[[Frames], Judged]

    def verdict(self, judged: Judged) -> Verdict:
        return self.stands if judged.holds else "not shown"


class PageModule(Protocol):
    """A file in ``pages``; its docstring says what was done, for the reader."""

    __doc__: str
    PAGE: Page

    def measure(self, lab: Lab) -> dict[str, pd.DataFrame]:
        """Run the experiment: tables by name, which become ``NAME.csv``."""

    def tables(self, frames: Frames) -> dict[str, pd.DataFrame]:
        """What the page shows of them, by title."""

    def draw(self, frames: Frames, figure: Figure) -> None:
        """The page's figure."""


def claim(
    source: str, says: str, *, stands: Standing = "confirmed", but: str = ""
) -> Callable[[Callable[[Frames], Judged]], Claim]:
    """Make a function of the tables a claim: named as it, its docstring the sentence.

    Args:
        source: where it is said ("slide 47").
        says: what is said there, in its words or in a paraphrase.
        stands: how the source fares if the claim holds.
        but: where it is qualified or contradicted, what it leaves out or has wrong.
    """

    def made(judge: Callable[[Frames], Judged]) -> Claim:
        statement = " ".join((judge.__doc__ or "").split())
        return Claim(judge.__name__, statement, source, says, stands, but, judge)

    return made


@functools.cache
def discover() -> Mapping[str, PageModule]:
    """All pages by name, in order of their numbers."""
    package = importlib.import_module("nndiag.gallery.pages")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found[info.name.replace("_", "-")] = cast(PageModule, module)
    return dict(sorted(found.items(), key=lambda item: item[1].PAGE.number))


def claims(module: PageModule) -> list[Claim]:
    """A page's claims, in the order in which its file has them."""
    return [v for v in vars(cast(ModuleType, module)).values() if isinstance(v, Claim)]


def where(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows in which each of these columns has this value."""
    kept = frame
    for column, value in values.items():
        kept = kept[kept[column] == value]
    return kept
