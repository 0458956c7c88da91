"""A repair in all formats: its steps, what they changed, before and after side by side."""

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
from nndiag.render.html import page, worst_severity
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

__all__ = [
    "MOST_LINES",
    "MOST_ROWS",
    "NO_PATCH",
    "RUN_IT",
    "Code",
    "asides",
    "brief",
    "fragment",
    "held_out",
    "html",
    "line",
    "markdown",
    "place",
    "refusals",
    "refused",
    "remaining",
    "summary",
    "terminal",
    "verdict",
]

MOST_LINES = 12
"""The longest list in a terminal; the page has all."""
MOST_ROWS = 50
"""The most layers in a comment."""

RUN_IT = (
    "Run this on the original model, before you create the optimiser. An optimiser keeps the "
    "parameters that it was created with."
)
NO_PATCH = "No step was taken, so there is nothing to run."


# -- in words -----------------------------------------------------------------------------------


def verdict(repair: Repair) -> str:
    """The repair in one sentence. It claims no more than the rules that ran have shown."""
    was, left = repair.before.at_least("warning"), repair.after.at_least("warning")
    if not was:
        return _nothing_to_fix(repair.before)
    if not repair.taken:
        tried = any(step.tried for step in repair.steps)
        opening = "No fix helped" if tried else "No fix was tried"
        return f"{opening}: {_are(left, 'left')}."
    if not left:
        gone = _are(was, "gone", "finding")
        if repair.after.crashed:
            return f"Better: {gone}, but {_crashed(repair.after)}."
        notes = repair.after.findings
        rest = f"only {_are(notes, 'left')}" if notes else "none is left"
        return f"Repaired: {gone}, {rest}."
    if len(left) < len(was):
        return f"Better: {_are(was[len(left) :], 'gone', 'finding')}, {_are(left, 'left')}."
    before, now = story.tally(was), story.tally(left)
    if before == now:
        return f"Better: still {now}, but less pronounced."
    return f"Better: {before} before, {now} now."


def _nothing_to_fix(report: Report) -> str:
    if report.crashed:
        return f"Nothing to fix was found, but {_crashed(report)}."
    if not any(o.status in ("passed", "found") for o in report.outcomes):
        return "No rule could run, so nothing can be fixed."
    return "Nothing to fix."


def _crashed(report: Report) -> str:
    """``"1 rule crashed, so its findings are missing"``."""
    count = len(report.crashed)
    whose = "its" if count == 1 else "their"
    return f"{story.plural(count, 'rule')} crashed, so {whose} findings are missing"


def _are(findings: Sequence[Finding], what: str, noun: str = "") -> str:
    """``"3 findings are gone"``, ``"1 warning is left"``."""
    count = story.plural(len(findings), noun) if noun else story.tally(findings)
    return f"{count} {'is' if len(findings) == 1 else 'are'} {what}"


def asides(repair: Repair) -> list[str]:
    """Sentences beside the verdict: how training went, and how many fixes were not tried."""
    sentences = [losses.SHORTLY[repair.trial.verdict]] if repair.trial is not None else []
    untried = sum(not steps[0].tried for steps in _alike(repair.refused))
    if untried:
        fixes = story.plural(untried, "fix", "fixes")
        verb, them = ("was", "it") if untried == 1 else ("were", "them")
        sentences.append(f'{fixes} {verb} not tried. allow="all" (--allow all) tries {them}.')
    return sentences


def place(names: Sequence[str]) -> str:
    """``"encoder.1"``, ``"encoder.1 and 2 others"``."""
    if len(names) < 3:
        return " and ".join(names)
    return f"{names[0]} and {len(names) - 1} others"


def refusals(repair: Repair) -> dict[str, list[str]]:
    """The fixes not taken, by reason. A fix tried at several places, then at each, counts once."""
    refusals_by_reason: dict[str, list[str]] = {}
    for steps in _alike(repair.refused):
        first = steps[0]
        more = f" ({len(steps) - 1} more like it)" if len(steps) > 1 else ""
        text = f"{first.rule} at {place(first.layers)}: {first.fix.what}{more}"
        refusals_by_reason.setdefault(first.reason, []).append(text)
    return refusals_by_reason


def refused(repair: Repair) -> str:
    """``"2 did not help, 8 not tried"``, counted as in :func:`refusals`."""
    tried = [steps[0].tried for steps in _alike(repair.refused)]
    counts = {"did not help": sum(tried), "not tried": len(tried) - sum(tried)}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _alike(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps of one rule, one kind of fix and one reason, together."""
    groups: dict[tuple[str, str, str], list[Step]] = {}
    for step in steps:
        groups.setdefault((step.rule, step.fix.kind, step.reason), []).append(step)
    return list(groups.values())


def summary(report: Report) -> str:
    """Counts, and the first finding."""
    severe = report.at_least("warning")
    return story.counts(report) + (f" First: {line(severe[0])}" if severe else "")


def line(finding: Finding) -> str:
    message = " ".join(finding.message.split())
    return f"{finding.severity} {finding.code} {finding.rule} at {finding.layer}: {message}"


def remaining(report: Report) -> list[str]:
    """The errors and warnings that are left, one line a rule."""
    lines = []
    for block in story.blocks(report.at_least("warning")):
        more = [text for text in (story.siblings(block), story.consequences(block)) if text]
        lines.append(line(block.worst) + (f" ({'; '.join(more)})" if more else ""))
    return lines


def held_out(repair: Repair) -> str:
    if repair.held_out is None:
        return ""
    before, after = map(story.counts, repair.held_out)
    return f"Held-out batch, before: {before} After: {after}"


# -- formats ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """Python, coloured in a terminal; a long comment is wrapped into several."""

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
    steps = story.plural(len(repair.taken), "step")
    return f"Repair of {repair.before.snapshot.model}: {steps} taken"


def terminal(repair: Repair) -> RenderableType:
    parts: list[RenderableType] = [
        _hang("", f"nndiag repair · {repair.before.snapshot.model}", indent=4, style="bold"),
        _hang("", verdict(repair), indent=2, style=_style(repair)),
        *(_hang("", aside, indent=2) for aside in asides(repair)),
        Text(),
        _hang("before  ", summary(repair.before)),
        _hang("after   ", summary(repair.after) if repair.taken else "no change"),
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
        parts += [_title("Fixes not taken", refused(repair)), *_refusals(repair), Text()]
    left = remaining(repair.after)
    if left:
        parts.append(Text("Findings left", style="bold"))
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
    severity = _severity(repair)
    return "bold green" if severity == "fine" else STYLES[severity]


def _hang(margin: str, text: str, indent: int | None = None, style: str = "") -> RenderableType:
    rest = " " * (len(margin) if indent is None else indent)
    body = Text(story.printable(text), style=style)
    return Hanging(Text(margin, style="dim"), body, Text(rest))


def _title(title: str, more: str) -> RenderableType:
    return Text.assemble((title, "bold"), f" ({more})")


def _more(count: int) -> list[RenderableType]:
    return [Text(f"  and {count - MOST_LINES} more", style="dim")] if count > MOST_LINES else []


def _table(rows: list[Row]) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for name in ("layer", *NUMBERS):
        table.add_column(name, overflow="fold", justify="left" if name == "layer" else "right")
    for row in rows[:MOST_LINES]:
        table.add_row(*(Text(story.printable(cell)) for cell in row.cells))
    hidden = len(rows) - MOST_LINES
    more = [Text(f"and {story.plural(hidden, 'more layer')}", style="dim")] if hidden > 0 else []
    return Group(table, *more)


def _step(number: int, step: Step) -> Iterator[RenderableType]:
    yield _hang(f"  {number}. ", f"{step.rule} at {place(step.layers)}")
    for text in (*_explained(step), *_source_code(step)):
        yield _hang("     ", text)
    yield _hang("     = ", step.reason)


def _explained(step: Step) -> list[str]:
    """What was done, why, what to expect, and the same change in the source in words."""
    fix = step.fix
    in_words, *_ = fix.source.split("\n")
    source = f"The same in the source: {in_words}" if in_words else ""
    return [text for text in (fix.what, fix.why, story.expectation(fix), source) if text]


def _source_code(step: Step) -> list[str]:
    """The lines of code behind the words."""
    return step.fix.source.split("\n")[1:]


def _refusals(repair: Repair) -> Iterator[RenderableType]:
    room = MOST_LINES
    by_reason = refusals(repair)
    for reason, texts in by_reason.items():
        if room > 0:
            yield _hang("  ", f"{reason}:", indent=4)
            yield from (_hang("    ", text, indent=6) for text in texts[:room])
            room -= len(texts)
    yield from _more(sum(map(len, by_reason.values())))


def markdown(repair: Repair) -> str:
    """A comment of at most MOST_BYTES, however long the repair."""
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
    layers = rows(_pairs(repair))
    if layers:
        head = [f"| layer | {' | '.join(NUMBERS)} |", "| --- | ---: | ---: | ---: |"]
        shown = [_markdown_row(row) for row in layers[: min(most, MOST_ROWS)]]
        hidden = len(layers) - len(shown)
        more = ["", f"and {hidden} more"] if hidden else []
        yield from _folded("Layers, side by side", [*head, *shown, *more])
    if repair.taken:
        yield "**Steps taken**"
        yield ""
        for number, step in enumerate(repair.taken[:most], 1):
            yield from _markdown_step(number, step)
        yield ""
    if repair.refused:
        texts = [
            f"- {escape(reason[:LONGEST])}: {escape(text[:LONGEST])}"
            for reason, texts in refusals(repair).items()
            for text in texts
        ]
        yield from _folded(f"Fixes not taken: {refused(repair)}", _some(texts, most))
    left = [f"- {escape(text[: 2 * LONGEST])}" for text in remaining(repair.after)]
    if left:
        yield from ("**Findings left**", "", *_some(left, most), "")
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
    severe = [report.at_least("warning") for report in both]
    first = [escape(line(findings[0])[:LONGEST]) if findings else "—" for findings in severe]
    yield f"| first | {' | '.join(first)} |"


def _markdown_row(row: Row) -> str:
    return f"| {' | '.join(escape(cell[:LONGEST]) for cell in row.cells)} |"


def _markdown_step(number: int, step: Step) -> Iterator[str]:
    where = escape(f"{step.rule} at {place(step.layers)}"[:LONGEST])
    text = escape(" ".join(_explained(step))[: 2 * LONGEST])
    yield f"{number}. {where}: {text} **{escape(step.reason[:LONGEST])}**"
    yield from (f"   - {escape(line[:LONGEST])}" for line in _source_code(step))


def _some(lines: list[str], most: int) -> list[str]:
    more = [f"- and {len(lines) - most} more, in the page"] if len(lines) > most else []
    return lines[:most] + more


def _folded(summary: str, lines: Iterable[str]) -> Iterator[str]:
    # Markdown inside HTML begins after an empty line.
    yield from (f"<details><summary>{summary}</summary>", "", *lines, "", "</details>", "")


def _fenced(code: str, most: int) -> Iterator[str]:
    if len(code) > 100 * most:  # half a patch does not run
        yield from ("The patch is too long for a comment: see the page or print(repair.patch).", "")
        return
    ticks = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, ticks + 1)
    yield from (f"{fence}python", code, fence, "")


def html(repair: Repair) -> str:
    """The whole page."""
    pairs = _pairs(repair)
    changed = rows(pairs)
    anchors = {id(row.pair): f"L{place}" for place, row in enumerate(changed)}
    sides = [
        _side("before", repair, repair.before, [(p.old, anchors[id(p)]) for p in pairs]),
        _side("after", repair, repair.after, [(p.new, anchors[id(p)]) for p in pairs]),
    ]
    contents = [
        ("sides", "Before and after", True),
        ("layers", "Layers", changed),
        ("steps", "Steps", repair.steps),
        ("left", "Findings left", repair.after.findings),
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
        layers=[_cells_of_page(row, sides) for row in changed],
        chart=None if repair.trial is None else losses.chart(repair.trial),
    )


def fragment(repair: Repair) -> str:
    """The verdict, the steps and the patch, for use inside another page (a notebook)."""
    return page("repair-fragment.html.j2", **_common(repair))


def _common(repair: Repair) -> dict[str, Any]:
    trial = repair.trial
    return {
        "repair": repair,
        "title": repair.before.snapshot.model,
        "verdict": verdict(repair),
        "severity": _severity(repair),
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


def _severity(repair: Repair) -> str:
    """The severity that colours the verdict: by what is left, and by the training trial."""
    if not repair.after.ok:
        return worst_severity(repair.after)
    if repair.trial is not None and repair.trial.verdict == "worse":
        return "warning"
    return "fine" if repair.after.findings else worst_severity(repair.after)


def _side(
    name: str, repair: Repair, report: Report, lines: Sequence[tuple[Layer | None, str]]
) -> dict[str, Any]:
    """One column of the page: the data of its picture, whose lines match the other column's.

    ``lines``: for each line its layer, if any, and the table row that it links to.
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
        "severity": worst_severity(report),
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
