"""What a page is, how its tables are read, and how its claims are judged on them."""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import pandas as pd

HERE = Path(__file__).parent
PAGES = (
    "activations", "zigzag", "dead_relu", "weight_init", "depth", "batch_norm", "preprocessing",
    "babysitting", "maxout", "robustness", "regularization",
)  # fmt: skip
"""The folders, in the order of the lecture: the first is page 1."""

Frames = Mapping[str, pd.DataFrame]
Verdict = Literal["confirmed", "qualified", "contradicted", "not shown"]
VERDICTS = ("confirmed", "qualified", "contradicted", "not shown")
"""Of what a source says: it holds; it holds in part, or on a condition; it does not hold; and the
measurement does not show what the page claims."""


@dataclass(frozen=True)
class Judged:
    """Whether the tables bear a claim out, by which numbers."""

    holds: bool
    measured: str
    expected: str
    """By theory or by the source's own numbers; what else would have been, if neither has any."""


@dataclass(frozen=True)
class Claim:
    """A sentence that the page's tables can refute, and how its source stands if they do not."""

    name: str
    statement: str
    source: str
    says: str
    stands: Verdict
    but: str
    """Where it is not simply confirmed: what the source leaves out, or has wrong."""


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, and how it was judged on a page's tables."""

    claim: Claim
    judged: Judged

    @property
    def verdict(self) -> Verdict:
        return self.claim.stands if self.judged.holds else "not shown"


@dataclass(frozen=True)
class Page:
    """What ``page.md`` says."""

    name: str
    title: str
    claim: str
    """What the lecture says, in a sentence or two."""
    sources: str
    caption: str
    """What the figure shows and how to read it; its alternative text, too."""
    prose: str
    claims: tuple[Claim, ...]

    @property
    def number(self) -> int:
        return PAGES.index(self.name) + 1

    @property
    def experiment(self) -> ModuleType:
        """``measure(lab)`` gives the tables by name; ``tables(frames)`` those that are shown, by
        title; ``draw(frames, figure)`` the figure; and a function of each claim's name judges it.
        """
        return importlib.import_module(f"gallery.{self.name}.experiment")

    def judge(self, frames: Frames) -> list[JudgedClaim]:
        """All claims, each judged by the experiment's function of its name."""
        return [JudgedClaim(c, getattr(self.experiment, c.name)(frames)) for c in self.claims]


_PAGE = re.compile(
    r"# (?P<title>.+)\n\n> (?P<claim>.+)\n\nSources: (?P<sources>.+)\n\nFigure: (?P<caption>.+)\n\n"
    r"## What was done\n\n(?P<prose>.+?)\n\n## What it shows\n\n(?P<claims>.+)",
    re.S,
)
_CLAIM = re.compile(
    r"### (?P<name>\w+)\n(?P<statement>.+)\n- \*\*(?P<source>.+?)\*\*: (?P<says>.+)\n"
    r"(?:- \*(?P<stands>\w+)\*: (?P<but>.+)\n)?(?:\n|$)"
)


def _claims(text: str) -> tuple[Claim, ...]:
    found = [m.groupdict() for m in _CLAIM.finditer(text)]
    return tuple(Claim(**c | {"stands": c["stands"] or "confirmed", "but": c["but"] or ""})
                 for c in found)  # fmt: skip


@functools.cache
def load(name: str) -> Page:
    found = _PAGE.fullmatch((HERE / name / "page.md").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{name}/page.md has not the parts that a page has")
    return Page(name, **found.groupdict() | {"claims": _claims(found["claims"])})


def every() -> dict[str, Page]:
    """All pages by name, in the order of the lecture."""
    return {name: load(name) for name in PAGES}


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """A page's tables as they were kept."""
    return {
        path.stem: pd.read_csv(path, keep_default_na=False, na_values=["nan"])
        for path in sorted(folder.glob("*.csv"))
    }


def csv(frame: pd.DataFrame) -> str:
    """A table as it is kept: six digits, which all that is made of it is made of."""
    return frame.to_csv(index=False, float_format="%.6g", na_rep="nan", lineterminator="\n")


# -- what experiments judge and tell by ----------------------------------------------------------


def where(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows in which each of these columns has this value."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def number(value: float) -> str:
    """Three digits: ``0.213``, ``1.34e-06``, ``12,300``."""
    size = abs(value)
    if size != 0 and math.isfinite(value) and (size < 1e-3 or size >= 1e6):
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.3g}"


def spread(values: Sequence[float] | pd.Series[float]) -> str:
    """Mean, and the smallest and the largest over the seeds: ``0.213 (0.212 to 0.214)``."""
    listed = [float(v) for v in values]
    mean, low, high = map(number, (math.fsum(listed) / len(listed), min(listed), max(listed)))
    return mean if low == high else f"{mean} ({low} to {high})"


def summary(rows: pd.DataFrame, by: Headed, columns: Headed) -> pd.DataFrame:
    """A row for each group of rows that are alike in ``by``: the spread of each column.

    Args:
        by: columns to group by, each with its heading if that is another.
        columns: columns to spread, likewise; of what is not known nothing is said.
    """
    made = []
    for key, group in rows.groupby(list(by), sort=False):
        row: dict[str, object] = dict(zip(_headings(by), key, strict=True))
        for column, heading in zip(columns, _headings(columns), strict=True):
            known = group[column].dropna()
            row[heading] = spread(known) if len(known) else ""
        made.append(row)
    return pd.DataFrame(made)


Headed = Sequence[str] | Mapping[str, str]


def _headings(columns: Headed) -> list[str]:
    if isinstance(columns, Mapping):
        return list(columns.values())
    return [column.replace("_", " ") for column in columns]


def sick(frames: Frames) -> dict[str, str]:
    """The networks that nndiag calls sick, each with the rule that leads its report."""
    found = where(frames["verdicts"], verdict="sick")
    return dict(zip(found.network, found.leading.str.partition(" ")[0], strict=True))


def leads(frames: Frames) -> str:
    """What leads nndiag's report on each network of the page."""
    rows = frames["verdicts"]
    return "; ".join(f"{n}: {led}" for n, led in zip(rows.network, rows.leading, strict=True))
