"""Measuring pages, keeping their tables, and making the pages of what was kept."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nndiag.errors import NNDiagError, ReportError, UnknownClaimError, did_you_mean
from nndiag.gallery import plots, render
from nndiag.gallery.explain import listing
from nndiag.gallery.kept import CLAIMS, FIGURE, PAGE, PAGES
from nndiag.gallery.page import Frames, PageModule, claims, discover
from nndiag.languages import words
from nndiag.render import files

if TYPE_CHECKING:
    from rich.table import Table

    from nndiag.progress import Progress


def chosen(names: Iterable[str]) -> dict[str, PageModule]:
    """Pages by name or number, all if none is named.

    Raises:
        UnknownClaimError: there is no such page.
    """
    pages, found = discover(), {}
    numbers = {str(module.PAGE.number): name for name, module in pages.items()}
    for word in names:
        name = numbers.get(word, word.lower().replace("_", "-"))
        if name not in pages:
            raise UnknownClaimError(
                f"the gallery has no page {word!r}.{did_you_mean(word, pages)} "
                f"Its pages are {', '.join(pages)}."
            )
        found[name] = pages[name]
    return found or dict(pages)


def measure(names: Iterable[str], output: Path, progress: Progress) -> None:
    """Measure pages and write their tables: ``PAGE/*.csv``, and their lines in ``pages.csv``.

    Each page is written when it is measured: stopped half way, the others are as they were.

    Raises:
        UnknownClaimError: there is no such page.
        MissingPackageError: scikit-learn or matplotlib is not installed.
        ReportError: the list of pages there is not the gallery's.
        OutputError: a file cannot be written.
    """
    import torch

    from nndiag.demo import one_thread
    from nndiag.gallery.lab import Lab

    pages = chosen(names)
    # Before minutes are spent: the list can be added to, and the pages drawn.
    runs(output)
    plots.require()
    for place, (name, module) in enumerate(pages.items()):

        def told(share: float, text: str, place: int = place, name: str = name) -> None:
            progress.update(place + share, len(pages), f"{name} {text}")

        told(0.0, "")
        began, lab = time.perf_counter(), Lab(told)
        with torch.random.fork_rng(), one_thread():
            torch.manual_seed(0)
            frames = module.measure(lab)
        frames["verdicts"] = lab.verdicts
        run = {
            "page": name,
            "seconds": round(time.perf_counter() - began),
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__.partition("+")[0],
            "cores": os.cpu_count(),
        }
        known = runs(output)
        known[name] = run
        texts = {output / name / f"{frame}.csv": csv(table) for frame, table in frames.items()}
        order = [known[page] for page in discover() if page in known]
        files.write({**texts, output / PAGES: csv(pd.DataFrame(order))})


def csv(frame: pd.DataFrame) -> str:
    """A table as it is kept: six digits, which all that is made of it is made of."""
    return frame.to_csv(index=False, float_format="%.6g", na_rep="nan", lineterminator="\n")


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """A page's tables as they were kept.

    Raises:
        ReportError: there are none, or one cannot be read.
    """
    found = {}
    for path in sorted(folder.glob("*.csv")):
        try:
            found[path.stem] = pd.read_csv(path, keep_default_na=False, na_values=["nan"])
        except (OSError, ValueError) as error:  # ValueError: what pandas raises of a broken file
            raise ReportError(f"{path} cannot be read: {error}. {_again(folder)}") from error
    if "verdicts" not in found:
        raise ReportError(f"{folder} holds no measured page. {_again(folder)}")
    return found


def _again(folder: Path) -> str:
    return (
        "Nothing was written. Measure the page again with: "
        f"nndiag gallery {folder.name} --output {folder.parent}"
    )


COLUMNS = ("page", "seconds", "date", "torch", "cores")


def runs(output: Path) -> dict[str, dict[str, Any]]:
    """When and how each page in a folder was measured, by its name.

    Raises:
        ReportError: the list of them cannot be read.
    """
    path = output / PAGES
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype={"page": str, "torch": str, "date": str})
        if missing := [name for name in COLUMNS if name not in table]:
            raise ValueError(f"it has no column {missing[0]}")
        found = {
            str(row["page"]): {
                "page": str(row["page"]), "seconds": int(row["seconds"]),
                "date": str(row["date"]), "torch": str(row["torch"]), "cores": int(row["cores"]),
            }
            for row in table.to_dict("records")
        }  # fmt: skip
        if unknown := sorted(found.keys() - discover().keys()):
            raise ValueError(f"it names {', '.join(unknown)}, which is no page")
    except (OSError, ValueError) as error:
        raise ReportError(
            f"{path} is not what the gallery wrote: {error}. Nothing was written. Its pages are "
            f"{', '.join(discover())}. Move the file away and measure again with: "
            f"nndiag gallery --output {output}"
        ) from error
    return found


@dataclass(frozen=True)
class Drawn:
    """What the pages came to."""

    entries: list[render.Entry]
    claims: pd.DataFrame
    run: dict[str, Any]

    @property
    def not_shown(self) -> pd.DataFrame:
        """The claims that what was measured does not bear out."""
        return self.claims[self.claims.verdict == "not shown"]

    def amiss(self) -> list[str]:
        """A line for each of these."""
        return [
            f"not shown on {row.page}: {row.statement} Measured {row.measured}, expected "
            f"{row.expected}."
            for row in self.not_shown.itertuples()
        ]

    def table(self, language: str) -> Table:
        """All pages with what they came to."""
        return listing(self.claims, language)

    def indexes(self) -> dict[str, str]:
        """The gallery's first page by file name, in Markdown and HTML and in each language."""
        made = {}
        for language, name in render.INDEX.items():
            made[name] = render.index(self.entries, self.run, language)
            linked = render.index(self.entries, self.run, language, "index.html")
            for other in render.INDEX.values():
                linked = linked.replace(f"({other})", f"({_as_html(other)})")
            title = words(language)["gallery"]["title"]
            made[_as_html(name)] = render.html(linked, title, language)
        return made


def _as_html(name: str) -> str:
    return name.replace("README", "index").replace(".md", ".html")


def drawn(output: Path) -> Drawn:
    """What the tables in a folder come to; nothing is written.

    Raises:
        ReportError: no page was measured there.
    """
    known = _measured(output)
    entries, listed = [], []
    for name, module in discover().items():
        if name in known:
            with _of_its_own(output / name) as frames:
                told = render.tell(module, frames)
                listed += [_row(name, module, t) for t in told]
                entries.append(_entry(name, module, told, frames))
    newest = max(known.values(), key=lambda run: str(run["date"]))
    seconds = sum(int(run["seconds"]) for run in known.values())
    return Drawn(entries, pd.DataFrame(listed), {**newest, "seconds": seconds})


def draw(output: Path) -> Drawn:
    """Make the pages and the indexes of the tables in a folder, as Markdown, SVG and HTML.

    Raises:
        ReportError: no page was measured there.
        MissingPackageError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    known = _measured(output)
    texts: dict[Path, str | bytes] = {}
    for name, module in discover().items():
        if name in known:
            with _of_its_own(output / name) as frames:
                text = render.page(name, module, frames, known[name])
                texts[output / name / PAGE] = text
                texts[output / name / "index.html"] = render.html(text, module.PAGE.title)
                texts[output / name / FIGURE] = plots.svg(module, frames)
    made = drawn(output)
    texts[output / CLAIMS] = csv(made.claims)
    texts.update({output / name: text for name, text in made.indexes().items()})
    files.write(texts)
    return made


@contextlib.contextmanager
def _of_its_own(folder: Path) -> Iterator[dict[str, pd.DataFrame]]:
    """A page's tables, to be made something of; a failure is theirs: the code was not changed."""
    try:
        yield read(folder)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, NNDiagError):
            raise
        raise ReportError(
            f"the tables in {folder} are not those that its page makes "
            f"({type(error).__name__}: {error}). {_again(folder)}"
        ) from error


def _measured(output: Path) -> dict[str, dict[str, Any]]:
    if known := runs(output):
        return known
    raise ReportError(
        f"{output} holds no measured page. Measure them with: nndiag gallery --output {output}"
    )


def _row(name: str, module: PageModule, told: render.Told) -> dict[str, object]:
    claim, judged = told.claim, told.judged
    return {
        "page": name, "number": module.PAGE.number, "title": module.PAGE.title,
        "claim": claim.name, "statement": claim.statement, "source": claim.source,
        "says": claim.says, "measured": judged.measured, "expected": judged.expected,
        "verdict": told.verdict,
    }  # fmt: skip


def _entry(
    name: str, module: PageModule, told: Iterable[render.Told], frames: Frames
) -> render.Entry:
    sick = int((frames["verdicts"].verdict == "sick").sum())
    counts: Counter[str] = Counter(t.verdict for t in told)
    healthy = len(frames["verdicts"]) - sick
    own = sum(claim.source == "nndiag" for claim in claims(module))
    return render.Entry(name, module.PAGE, counts, sick, healthy, own)
