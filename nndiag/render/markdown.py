"""The report as a comment on a pull request: worst first, details folded, never too long."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from nndiag.render import story
from nndiag.render.story import Block
from nndiag.stats import Snapshot

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = ["LONGEST", "MOST_BYTES", "escape", "fitting", "render"]

MOST_BYTES = 60_000
"""Comments end at 65,536 characters on GitHub; a template around this one needs some too."""

LONGEST = 500
"""Of any one name or sentence, where the whole would not fit: nobody reads further."""

# Entities are text to every Markdown dialect, wherever they stand; backslashes are not inside
# code, and a fence of backticks is not safe inside a table. "_" within a word is no markup.
_MARKUP = re.compile(r"[\\`*\[\]|~$@#]|(?<![^\W_])_|_(?![^\W_])")


def fitting(lines: Callable[[int], Iterable[str]]) -> str:
    """The text that ``lines(most)`` make, with ``most`` of each list, shortened to MOST_BYTES."""
    most = 200
    while True:
        text = "\n".join(lines(most)) + "\n"
        if len(text.encode("utf-8", "replace")) <= MOST_BYTES or most == 0:
            return text
        most //= 2


def render(report: Report) -> str:
    blocks = story.blocks(report.findings)
    shown = len(blocks)
    while True:
        text = "\n".join(_lines(report, blocks[:shown], blocks[shown:], whole=True)) + "\n"
        if len(text.encode("utf-8", "replace")) <= MOST_BYTES:
            return text
        if shown == 0:
            return "\n".join(_lines(report, [], blocks, whole=False)) + "\n"
        shown //= 2


def escape(text: str) -> str:
    """The text itself, to any Markdown dialect, on one line."""
    safe = html.escape(" ".join(story.printable(text.replace("\n", " ")).split()), quote=False)
    return _MARKUP.sub(lambda found: f"&#{ord(found.group())};", safe)


def _lines(report: Report, shown: list[Block], hidden: list[Block], whole: bool) -> Iterator[str]:
    model, *about = story.subject(report.snapshot)
    yield f"**{escape(report.verdict[: 2 * LONGEST])}**"
    yield ""
    yield escape(story.counts(report))
    yield ""
    yield f"nndiag on {_code(model[:LONGEST])}: {escape(', '.join(about)[:LONGEST])}"
    yield ""
    for block in shown:
        if block.severity != "note":
            yield from _block(block, report.snapshot)
    notes = [block for block in shown if block.severity == "note"]
    if notes:
        count = sum(len(block.findings) for block in notes)
        yield from _folded(story.plural(count, "note"), map(_note, notes))
    if hidden:
        findings = sum(len(b.findings) + len(b.consequences) for b in hidden)
        yield f"{story.plural(findings, 'more finding')} did not fit here. The other formats of "
        yield "the report have all of them."
        yield ""
    if whole:
        yield from _folded(
            f"{escape(story.ledger(report))}",
            [
                f"- {gap.what}: {escape(gap.who)}" + (f" ({escape(gap.why)})" if gap.why else "")
                for gap in story.gaps(report)
            ],
        )


def _block(block: Block, snapshot: Snapshot) -> Iterator[str]:
    worst = block.worst
    name, *place = story.whereabouts(worst, snapshot)
    where = ", ".join([_code(name), *map(escape, place)])
    yield f"**{worst.severity}** {escape(worst.code)} **{escape(worst.rule)}** at {where}"
    yield ""
    yield f"> {escape(worst.message)}"
    yield ""
    details = []
    measure = story.yardstick(worst)
    if measure is not None:
        measured = f"{measure.name} {measure.value_text}, " if measure.value_text else ""
        details.append(f"- {escape(f'{measured}threshold {measure.threshold_text}')}")
        if measure.source:
            details.append(f"- why this threshold: {escape(measure.source)}")
    if worst.cause is not None:
        cause = f"explained by {worst.root.rule} at {worst.root.layer}"
        details.append(f"- {escape(cause)}")
    for fix in worst.fixes[: story.MOST_FIXES]:
        details.append(f"- fix: {escape(fix.what)}" + (f" {escape(fix.why)}" if fix.why else ""))
    for more in (story.consequences(block), story.siblings(block)):
        if more:
            details.append(f"- {escape(more)}")
    others = len(block.findings) + len(block.consequences) - 1
    yield from _folded("Details" + (f" and {others} more" if others else ""), details)


def _note(block: Block) -> str:
    worst, more = block.worst, story.siblings(block)
    after = f" ({escape(more)})" if more else ""
    named = f"{escape(worst.code)} {escape(worst.rule)} at {_code(worst.layer)}"
    return f"- {named}: {escape(worst.message)}{after}"


def _folded(summary: str, lines: Iterable[str]) -> Iterator[str]:
    lines = list(lines)
    if not lines:
        yield from (summary, "")
        return
    # Markdown inside HTML begins after an empty line.
    yield from (f"<details><summary>{summary}</summary>", "", *lines, "", "</details>", "")


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
