"""The report as a compiler would print it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from nndiag.fixes.fix import Fix
from nndiag.render import story
from nndiag.render.story import Block
from nndiag.rule import Finding
from nndiag.stats import Snapshot

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = [
    "MOST_CODE",
    "PIPE_WIDTH",
    "SHOW_NOTES",
    "STYLES",
    "Hanging",
    "excerpt",
    "fitting_width",
    "plain",
    "render",
]

STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
PIPE_WIDTH = 100
MOST_CODE = 8
"""Lines of a fix that are shown."""


@dataclass(frozen=True)
class Hanging:
    """A paragraph whose wrapped lines keep their margin.

    Not a ``rich.table.Table.grid``: that pads every line with spaces to the width of the longest.
    """

    margin: Text
    text: Text
    rest: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        margin = max(self.margin.cell_len, self.rest.cell_len)
        width = max(options.max_width - margin, 16)
        lines = self.text.wrap(console, width, justify="left", overflow="fold")
        for index, line in enumerate(lines):
            line.rstrip()
            yield Text.assemble(self.rest if index else self.margin, line, end="\n")


def render(report: Report, notes: bool = False) -> RenderableType:
    """The whole report; notes as one line, or each of them with ``notes``."""
    severe = [f for f in report.findings if f.root.severity != "note"]
    noted = story.blocks([f for f in report.findings if f.root.severity == "note"])
    parts: list[RenderableType] = [*_opening(report), Text()]
    parts += _blocks(story.blocks(severe), report.snapshot)
    if noted and notes:
        parts += [*map(_note, noted), Text()]
    elif noted:
        parts += [_hang("", Text(story.printable(f"{story.noted(noted)}. {SHOW_NOTES}")), indent=4)]
    parts += _ending(report)
    return Group(*parts)


SHOW_NOTES = "For details: --notes, or report.to_text(notes=True)."


def plain(renderable: RenderableType, width: int | None = None) -> str:
    """The same without colour, as wide as the terminal, or as fits a log."""
    out = io.StringIO()
    console = Console(
        file=out, width=width or fitting_width(), color_system=None, force_jupyter=False,
        legacy_windows=False,
    )  # fmt: skip
    console.print(renderable)
    return out.getvalue().rstrip("\n")


def fitting_width() -> int:
    return max(shutil.get_terminal_size((PIPE_WIDTH, 24)).columns, 40)


def excerpt(report: Report, findings: Iterable[Finding]) -> str:
    """Some of a report's findings, with the rules that crashed: what a failing test shows."""
    parts = [
        _subject(report.snapshot),
        Text(),
        *_blocks(story.blocks([*findings]), report.snapshot),
    ]
    parts += [_gap(gap) for gap in story.gaps(report) if gap.what == "crashed"]
    return plain(Group(*parts))


def _opening(report: Report) -> Iterator[RenderableType]:
    """The verdict, then the counts, then what was looked at."""
    style = "bold green" if report.ok and report.outcomes else "bold"
    if report.findings and not report.ok:
        style = STYLES[report.findings[0].severity]
    yield _hang("", Text(story.printable(report.verdict), style=style))
    if report.findings or any(o.status != "passed" for o in report.outcomes):
        yield _hang("", Text(f"{story.ledger(report)}."), indent=4)
    yield _subject(report.snapshot)


def _subject(snapshot: Snapshot) -> RenderableType:
    version = snapshot.environment.nndiag if snapshot.environment is not None else ""
    text = Text(f"nndiag {version}".rstrip())
    text.append("".join(f" · {story.printable(part)}" for part in story.subject(snapshot)))
    return _hang("", text, indent=4)


def _blocks(blocks: Iterable[Block], snapshot: Snapshot) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for block in blocks:
        parts += [*_block(block, snapshot), Text()]
    return parts


def _block(block: Block, snapshot: Snapshot) -> Iterator[RenderableType]:
    worst = block.worst
    name, *place = map(story.printable, story.whereabouts(worst, snapshot))
    yield _headline(block)
    where = Text(name, style="bold").append("".join(f"   {p}" for p in place), style="not bold")
    yield _hang("  --> ", where, dim=True)
    for line in worst.message.splitlines():
        yield _hang("   |  ", Text(story.printable(line)), bar=True)
    measure = story.yardstick(worst)
    if measure is not None:
        yield _hang("   |  ", Text(_against(measure)), bar=True)
    if worst.cause is not None:
        cause = f"explained by {worst.root.rule} at {story.printable(worst.root.layer)}"
        yield _hang("   = ", Text(cause))
    yield from _fix(worst.fixes)
    for more in (story.consequences(block), story.siblings(block)):
        if more:
            yield _hang("   = ", Text(story.printable(more)))


def _headline(block: Block) -> Text:
    head = Text(f"{block.severity}[{block.worst.code}]", style=STYLES.get(block.severity, ""))
    return head.append(f" {story.printable(block.worst.rule)}", style="default")


def _against(measure: story.Yardstick) -> str:
    measured = f"{measure.name} {measure.value_text}, " if measure.value is not None else ""
    # Why a rule has the threshold it has is on its page; what was set for this run is news.
    source = f"   ({measure.source})" if measure.overridden else ""
    return story.printable(f"{measured}threshold {measure.threshold_text}{source}")


def _fix(fixes: Sequence[Fix]) -> Iterator[RenderableType]:
    """The first fix with its lines of code, and how many more there are."""
    if not fixes:
        return
    first, *others = fixes
    what = " ".join(first.what.split())
    yield _hang("   = ", Text.assemble(("fix: ", "green"), story.printable(what)))
    code = story.lines_of_code(first)
    for line in code[:MOST_CODE]:
        yield _hang("    ", Text(story.printable(line)))
    if len(code) > MOST_CODE:
        left = story.plural(len(code) - MOST_CODE, "more line")
        yield _hang("    ", Text(f"# and {left}"))
    if first.runnable and first.source:
        in_words, *lines = first.source.splitlines()
        yield _hang("   = ", Text(story.printable(f"or in the source: {in_words}")))
        for line in lines:
            yield _hang("    ", Text(story.printable(line)))
    if others:
        more = story.plural(len(others), "more fix", "more fixes")
        yield _hang("   = ", Text(f"{more}: see report.fixes, or the HTML report"))


def _note(block: Block) -> RenderableType:
    worst, others = block.worst, len(block.findings) - 1
    where = worst.layer + (f" and {others} more" if others else "")
    after = f" (and {story.consequences(block)})" if block.consequences else ""
    message = " ".join(worst.message.split())
    text = _headline(block).append(story.printable(f"  {where}: {message}{after}"), style="default")
    return _hang("", text, indent=4)


def _ending(report: Report) -> Iterator[RenderableType]:
    yield from map(_gap, story.gaps(report))
    if report.findings:
        rule = story.printable(report.findings[0].rule)
        yield _hang("", Text(f"Why this threshold, and more: `nndiag rule {rule}`."), indent=4)


def _gap(gap: story.Gap) -> RenderableType:
    style = "bold red" if gap.what == "crashed" else "default"
    text = Text(f"{gap.what}: ", style=style)
    text.append(story.printable(gap.who), style="default not bold")
    if gap.why:
        text.append(story.printable(f" ({' '.join(gap.why.split())})"), style="default not bold")
    return _hang("  ", text, indent=4)


def _hang(
    margin: str, text: Text, *, indent: int | None = None, bar: bool = False, dim: bool = False
) -> Hanging:
    rest = margin if bar else " " * (len(margin) if indent is None else indent)
    style = "dim" if bar or dim else ""
    return Hanging(Text(margin, style=style), text, Text(rest, style=style))
