"""A repair: what was tried, what it did, before and after side by side."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from nndiag.render import losses, story
from nndiag.render.html import grade, page
from nndiag.render.losses import curves as curves
from nndiag.render.markdown import LONGEST, escape, fitting
from nndiag.render.picture import common_scales, picture, text_curve
from nndiag.render.side_by_side import NUMBERS, Row, lined_up, op, rows
from nndiag.render.terminal import STYLES, Hanging

if TYPE_CHECKING:
    from nndiag.fixes.result import Repair, Step
    from nndiag.pairing import Pair
    from nndiag.report import Report
    from nndiag.rule import Finding
    from nndiag.stats import Layer

MOST_LINES = 12
"""Of one list in a terminal; the page has all."""
MOST_ROWS = 50
"""Layers in a comment."""

RUN_IT = (
    "Run this on the model as it was, before its optimiser is made: an optimiser holds the "
    "parameters that it was given."
)
NO_PATCH = "No step was kept, so there is nothing to run."


# -- in words -----------------------------------------------------------------------------------


def verdict(repair: Repair) -> str:
    """The repair in one sentence, and not a better one than was seen."""
    was, left = repair.before.at_least("warning"), repair.after.at_least("warning")
    if not was:
        return _nothing_to_fix(repair.before)
    if not repair.taken:
        opening = (
            "Nothing helped" if any(step.tried for step in repair.steps) else "Nothing was tried"
        )
        return f"{opening}: {_are(left, 'left')}."
    if not left:
        gone = _are(was, "gone", "finding")
        if repair.after.crashed:
            rules = story.plural(len(repair.after.crashed), "rule")
            return f"Better: {gone}, but {rules} crashed, so this is not the whole story."
        notes = repair.after.findings
        rest = f"only {_are(notes, 'left')}" if notes else "none is left"
        return f"Repaired: {gone}, {rest}."
    if len(left) < len(was):
        return f"Better: {_are(was[len(left) :], 'gone', 'finding')}, {_are(left, 'left')}."
    before, now = story.tally(was), story.tally(left)
    if before == now:
        return f"Better: {now} as before, but milder."
    return f"Better: {before} before, {now} now."


def _nothing_to_fix(report: Report) -> str:
    if report.crashed:
        rules = story.plural(len(report.crashed), "rule")
        return f"Nothing to fix was found, but {rules} crashed, so this is not the whole story."
    if not any(o.status in ("passed", "found") for o in report.outcomes):
        return "Nothing was judged, so there is nothing to fix."
    return "Nothing to fix."


def _are(findings: Sequence[Finding], what: str, noun: str = "") -> str:
    """``"3 findings are gone"``, ``"1 warning is left"``."""
    told = story.plural(len(findings), noun) if noun else story.tally(findings)
    return f"{told} {'is' if len(findings) == 1 else 'are'} {what}"


def asides(repair: Repair) -> list[str]:
    """What has to be said along with the verdict: what was not tried, and how training went."""
    told = [losses.SHORTLY[repair.trial.verdict]] if repair.trial is not None else []
    untried = sum(not steps[0].tried for steps in _alike(repair.refused))
    if untried:
        fixes = story.plural(untried, "fix", "fixes")
        verb, them = ("was", "it") if untried == 1 else ("were", "them")
        told.append(f'{fixes} {verb} not tried: allow="all" (--allow all) would try {them}.')
    return told


def place(names: Sequence[str]) -> str:
    """``"encoder.1"``, ``"encoder.1 and 2 others"``."""
    if len(names) < 3:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} others"


def refusals(repair: Repair) -> dict[str, list[str]]:
    """What was not taken, by reason. A fix tried at several places, and then at each, is one."""
    found: dict[str, list[str]] = {}
    for steps in _alike(repair.refused):
        first = steps[0]
        more = f" ({len(steps) - 1} more like it)" if len(steps) > 1 else ""
        text = f"{first.rule} at {place(first.layers)}: {first.fix.what}{more}"
        found.setdefault(first.reason, []).append(text)
    return found


def refused(repair: Repair) -> str:
    """``"2 tried in vain, 8 not tried"``, of those that :func:`refusals` tells."""
    tried = [steps[0].tried for steps in _alike(repair.refused)]
    counts = {"tried in vain": sum(tried), "not tried": len(tried) - sum(tried)}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _alike(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps of one fix for one rule's findings that came to the same."""
    found: dict[tuple[str, str, str], list[Step]] = {}
    for step in steps:
        found.setdefault((step.rule, step.fix.kind, step.reason), []).append(step)
    return list(found.values())


def summary(report: Report) -> str:
    """Counts, and the finding that leads."""
    grave = report.at_least("warning")
    return story.counts(report) + (f" First: {line(grave[0])}" if grave else "")


def line(finding: Finding) -> str:
    message = " ".join(finding.message.split())
    return f"{finding.severity} {finding.code} {finding.rule} at {finding.layer}: {message}"


def remaining(report: Report) -> list[str]:
    """The errors and warnings that are left, those of one rule on one line."""
    told = []
    for block in story.blocks(report.at_least("warning")):
        more = [text for text in (story.siblings(block), story.consequences(block)) if text]
        told.append(line(block.worst) + (f" ({'; '.join(more)})" if more else ""))
    return told


def held_out(repair: Repair) -> str:
    if repair.held_out is None:
        return ""
    before, after = map(story.counts, repair.held_out)
    return f"On the held-out batch, before: {before} After: {after}"


# -- formats ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """Python, coloured in a terminal; a comment that is too long is wrapped to more comments."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        for line in self.text.splitlines():
            whole = [line]
            if line.startswith("#"):
                whole = textwrap.wrap(line, width, subsequent_indent="#    ")
            for text in map(_highlighted if console.is_terminal else Text, whole):
                for part in text.wrap(console, width, justify="left", overflow="fold"):
                    part.rstrip()
                    yield part


def _highlighted(line: str) -> Text:
    text = Syntax("", "python", theme="ansi_dark").highlight(line)
    text.rstrip()
    return text


def _pairs(repair: Repair) -> list[Pair[Layer]]:
    return lined_up(repair.before.snapshot, repair.after.snapshot)


def _patch(repair: Repair) -> str:
    return "\n".join(map(story.printable, repair.patch.splitlines()))


def brief(repair: Repair) -> str:
    """The repair in a few words, as ``repr`` shows it."""
    done = story.plural(len(repair.taken), "step")
    return f"Repair of {repair.before.snapshot.model}: {done} taken"


def terminal(repair: Repair) -> RenderableType:
    parts: list[RenderableType] = [
        _hang("", f"nndiag repair · {repair.before.snapshot.model}", indent=4, style="bold"),
        _hang("", verdict(repair), indent=2, style=_style(repair)),
        *(_hang("", aside, indent=2) for aside in asides(repair)),
        Text(),
        _hang("before  ", summary(repair.before)),
        _hang("after   ", summary(repair.after) if repair.taken else "as before"),
        Text(),
    ]
    if repair.taken and repair.after.snapshot.layers:
        parts += [_table(rows(_pairs(repair))), Text()]
    if repair.taken:
        parts.append(Text("Steps taken", style="bold"))
        for number, step in enumerate(repair.taken, 1):
            parts += _step(number, step)
        parts.append(Text())
    if repair.refused:
        parts += [_title("Not taken", refused(repair)), *_refusals(repair), Text()]
    left = remaining(repair.after)
    if left:
        parts.append(Text("What is left", style="bold"))
        parts += [_hang("  ", text, indent=4) for text in left[:MOST_LINES]]
        parts += [*_more(len(left)), Text()]
    if repair.trial is not None:
        steps = story.plural(repair.trial.before.shape[1], "step")
        parts.append(_title("Training trial", steps))
        parts.append(_hang("  ", losses.verdict(repair.trial)))
        for name, curve in zip(("before", "after"), curves(repair.trial, 28), strict=True):
            parts.append(Text(f"  {name:8}{curve}"))
        parts.append(Text())
    if repair.taken:
        parts += [Text("Patch", style="bold"), _hang("  ", RUN_IT), Text()]
        parts += [Code(_patch(repair)), Text()]
    parts += [_hang("note: ", note, indent=2) for note in repair.notes]
    parts += [_hang("", held_out(repair), indent=2)] if repair.held_out is not None else []
    return Group(*parts)


def _style(repair: Repair) -> str:
    return "bold green" if _grade(repair) == "fine" else STYLES[_grade(repair)]


def _hang(margin: str, text: str, indent: int | None = None, style: str = "") -> RenderableType:
    rest = " " * (len(margin) if indent is None else indent)
    told = Text(story.printable(text), style=style)
    return Hanging(Text(margin, style="dim"), told, Text(rest))


def _title(title: str, more: str) -> RenderableType:
    return Text.assemble((title, "bold"), f" ({more})")


def _more(count: int) -> list[RenderableType]:
    return [Text(f"  and {count - MOST_LINES} more", style="dim")] if count > MOST_LINES else []


def _table(found: list[Row]) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for name in ("layer", *NUMBERS):
        table.add_column(name, overflow="fold", justify="left" if name == "layer" else "right")
    for row in found[:MOST_LINES]:
        table.add_row(*(Text(story.printable(cell)) for cell in row.cells))
    hidden = len(found) - MOST_LINES
    more = [Text(f"and {story.plural(hidden, 'layer')} more", style="dim")] if hidden > 0 else []
    return Group(table, *more)


def _step(number: int, step: Step) -> Iterator[RenderableType]:
    yield _hang(f"  {number}. ", f"{step.rule} at {place(step.layers)}")
    for text in _told(step):
        yield _hang("     ", text)
    yield _hang("     = ", step.reason)


def _told(step: Step) -> list[str]:
    """What was done, why, what to expect, and the change of the source that does the same."""
    fix = step.fix
    source = f"The same in the source: {fix.source}" if fix.source else ""
    return [text for text in (fix.what, fix.why, story.expectation(fix), source) if text]


def _refusals(repair: Repair) -> Iterator[RenderableType]:
    room = MOST_LINES
    found = refusals(repair)
    for reason, texts in found.items():
        if room > 0:
            yield _hang("  ", f"{reason}:", indent=4)
            yield from (_hang("    ", text, indent=6) for text in texts[:room])
            room -= len(texts)
    yield from _more(sum(map(len, found.values())))


def markdown(repair: Repair) -> str:
    """At most MOST_BYTES, whatever was repaired."""
    return fitting(lambda most: _markdown(repair, most))


def _markdown(repair: Repair, most: int) -> Iterator[str]:
    yield f"### nndiag repair: {escape(repair.before.snapshot.model[:LONGEST])}"
    yield ""
    yield f"**{escape(verdict(repair))}** {escape(' '.join(asides(repair)))}".rstrip()
    yield ""
    yield "| | before | after |"
    yield "| --- | --- | --- |"
    yield from _counts(repair)
    yield ""
    found = rows(_pairs(repair))
    if found:
        head = [f"| layer | {' | '.join(NUMBERS)} |", "| --- | ---: | ---: | ---: |"]
        shown = [_markdown_row(row) for row in found[: min(most, MOST_ROWS)]]
        hidden = len(found) - len(shown)
        more = ["", f"and {hidden} more"] if hidden else []
        yield from _folded("Layers, side by side", [*head, *shown, *more])
    if repair.taken:
        yield "**Steps taken**"
        yield ""
        for number, step in enumerate(repair.taken[:most], 1):
            yield _markdown_step(number, step)
        yield ""
    if repair.refused:
        texts = [
            f"- {escape(reason[:LONGEST])}: {escape(text[:LONGEST])}"
            for reason, texts in refusals(repair).items()
            for text in texts
        ]
        yield from _folded(f"Not taken: {refused(repair)}", _some(texts, most))
    left = [f"- {escape(text[: 2 * LONGEST])}" for text in remaining(repair.after)]
    if left:
        yield from ("**What is left**", "", *_some(left, most), "")
    if repair.trial is not None:
        before, after = curves(repair.trial)
        yield "**Training trial**"
        yield ""
        yield escape(losses.verdict(repair.trial))
        yield ""
        yield from ("```text", f"before {before}", f"after  {after}", "```", "")
    if repair.taken:
        yield "**Patch**"
        yield ""
        yield escape(RUN_IT)
        yield ""
        yield from _fenced(_patch(repair), most)
    yield from (f"- {escape(note[:LONGEST])}" for note in repair.notes)
    if repair.held_out is not None:
        yield from ("", escape(held_out(repair)))


def _counts(repair: Repair) -> Iterator[str]:
    both = (repair.before, repair.after)
    yield f"| findings | {' | '.join(escape(story.counts(report)) for report in both)} |"
    grave = [report.at_least("warning") for report in both]
    first = [escape(line(found[0])[:LONGEST]) if found else "—" for found in grave]
    yield f"| first | {' | '.join(first)} |"


def _markdown_row(row: Row) -> str:
    return f"| {' | '.join(escape(cell[:LONGEST]) for cell in row.cells)} |"


def _markdown_step(number: int, step: Step) -> str:
    where = escape(f"{step.rule} at {place(step.layers)}"[:LONGEST])
    told = " ".join(_told(step))
    return f"{number}. {where}: {escape(told[: 2 * LONGEST])} **{escape(step.reason[:LONGEST])}**"


def _some(lines: list[str], most: int) -> list[str]:
    more = [f"- and {len(lines) - most} more, in the page"] if len(lines) > most else []
    return lines[:most] + more


def _folded(summary: str, lines: Iterable[str]) -> Iterator[str]:
    # Markdown inside HTML begins after an empty line.
    yield from (f"<details><summary>{summary}</summary>", "", *lines, "", "</details>", "")


def _fenced(code: str, most: int) -> Iterator[str]:
    if len(code) > 100 * most:  # cut code is no code
        yield from ("It is too long for a comment: see the page, or print(repair.patch).", "")
        return
    ticks = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, ticks + 1)
    yield from (f"{fence}python", code, fence, "")


def html(repair: Repair) -> str:
    """The whole page."""
    pairs = _pairs(repair)
    found = rows(pairs)
    anchors = {id(row.pair): f"L{place}" for place, row in enumerate(found)}
    sides = [
        _side("before", repair, repair.before, [(p.old, anchors[id(p)]) for p in pairs]),
        _side("after", repair, repair.after, [(p.new, anchors[id(p)]) for p in pairs]),
    ]
    contents = [
        ("sides", "Before and after", True),
        ("layers", "Layers", found),
        ("steps", "Steps", repair.steps),
        ("left", "What is left", repair.after.findings),
        ("trial", "Training trial", repair.trial),
        ("patch", "Patch", True),
        ("scope", "What was looked at", True),
    ]
    return page(
        "repair.html.j2",
        **_common(repair),
        contents=[(id, title) for id, title, there in contents if there],
        sides=sides,
        anchors=sides[1]["anchors"],
        blocks=story.blocks(repair.after.findings),
        layers=[_cells_of_page(row, sides) for row in found],
        chart=None if repair.trial is None else losses.chart(repair.trial),
    )


def fragment(repair: Repair) -> str:
    """The verdict, the steps and the patch, to stand inside another page (a notebook)."""
    return page("repair-fragment.html.j2", **_common(repair))


def _common(repair: Repair) -> dict[str, Any]:
    trial = repair.trial
    return {
        "repair": repair,
        "title": repair.before.snapshot.model,
        "verdict": verdict(repair),
        "grade": _grade(repair),
        "asides": asides(repair),
        "place": place,
        "summary": summary,
        "refused": refused(repair),
        "refusals": refusals(repair),
        "held_out": held_out(repair),
        "run_it": RUN_IT if repair.taken else NO_PATCH,
        "patch": _patch(repair) if repair.taken else "",
        "trained": "" if trial is None else losses.verdict(trial),
        "ends": [] if trial is None else losses.finals(trial),
        "curves": [] if trial is None else curves(trial, 16),
    }


def _grade(repair: Repair) -> str:
    """How the verdict is coloured: by what is left, notes aside, and by how it trains."""
    if not repair.after.ok:
        return grade(repair.after)
    if repair.trial is not None and repair.trial.verdict == "worse":
        return "warning"
    return "fine" if repair.after.findings else grade(repair.after)


def _side(
    name: str, repair: Repair, report: Report, lines: Sequence[tuple[Layer | None, str]]
) -> dict[str, Any]:
    """One column of the page: what its picture is drawn from, line by line beside the other's.

    ``lines``: for each line the layer that has it, if any, and the table's row to link to.
    """
    before, after = repair.before.snapshot, repair.after.snapshot
    drawn = picture(report.snapshot, common_scales(before, after))
    layers = {layer["name"]: layer for layer in drawn["layers"]}
    anchors = {}
    for line, (layer, anchor) in enumerate(lines):
        if layer is not None:
            anchors[layer.name] = anchor
            layers[layer.name] |= {"row": line, "anchor": anchor}
    named = [len(f"{row.name} {op(row)}") for row in (*before.layers, *after.layers)]
    return {
        "id": name,
        "title": name.title(),
        "report": report,
        "grade": grade(report),
        "blocks": story.blocks(report.findings),
        "anchors": anchors,
        "layers": layers,
        "picture": drawn | {"brief": True, "rows": len(lines), "longest": max(named, default=0)},
    }


def _cells_of_page(row: Row, sides: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cells: dict[str, Any] = {"layer": row.name, "op": row.op}
    for name, before, after in zip(NUMBERS, row.before, row.after, strict=True):
        cells |= {f"{name}, before": before, f"{name}, after": after}
    for layer, side in zip((row.pair.old, row.pair.new), sides, strict=True):
        curve = None if layer is None else side["layers"][layer.name]["output"]
        cells[f"distribution, {side['id']}"] = text_curve(curve)
    return cells
