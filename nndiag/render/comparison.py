"""A comparison of two reports in a terminal, as a page and as a Markdown comment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nndiag.numbers import Unit
from nndiag.render import story
from nndiag.render.html import page
from nndiag.render.markdown import LONGEST, escape, fitting

if TYPE_CHECKING:
    from nndiag.compare import Change, Comparison, Difference
    from nndiag.pairing import Pair
    from nndiag.stats import Layer, Parameter, TensorStats

__all__ = [
    "HEADINGS",
    "MOST_LINES",
    "SIDES",
    "brief",
    "change_text",
    "difference_text",
    "differences",
    "fragment",
    "groups",
    "html",
    "layer_rows",
    "markdown",
    "parameter_rows",
    "sides",
    "terminal",
    "verdict",
]

MOST_LINES = 12
"""The longest list shown in a terminal or a comment; the page and the JSON report have all."""

HEADINGS = {
    "appeared": "appeared", "vanished": "vanished",
    "worse": "got worse", "better": "got better",
}  # fmt: skip
_MARKS = {"appeared": "+", "vanished": "-", "worse": "▲", "better": "▼"}
_STYLES = {"appeared": "bold red", "vanished": "bold green", "worse": "red", "better": "green"}


def verdict(comparison: Comparison) -> str:
    """The comparison in one sentence."""
    if comparison.same:
        ignored = " and ".join(_counts(comparison, lambda change: not change.counts))
        why = "a note or within chance of its threshold"
        aside = f" (not counted: {ignored}; {why})" if ignored else ""
        return f"No difference beyond chance{aside}."
    parts = _counts(comparison, lambda change: change.counts)
    structural = sum(d.kind == "structure" for d in comparison.differences)
    if structural:
        parts.append(story.plural(structural, "structural change"))
    if moved := len(comparison.differences) - structural:
        parts.append(f"{story.plural(moved, 'number')} changed beyond chance")
    return f"Different: {', '.join(parts)}."


def _counts(comparison: Comparison, chosen: Callable[[Change], bool]) -> list[str]:
    """``["2 findings appeared", "1 finding vanished"]``, of those that are chosen."""
    numbers = {
        "appeared": sum(map(chosen, comparison.appeared)),
        "vanished": sum(map(chosen, comparison.vanished)),
    }
    return [f"{story.plural(n, 'finding')} {word}" for word, n in numbers.items() if n]


def groups(comparison: Comparison) -> Iterator[tuple[str, tuple[Change, ...]]]:
    for word in _MARKS:
        changes: tuple[Change, ...] = getattr(comparison, word)
        if changes:
            yield word, changes


def change_text(change: Change) -> str:
    f = change.finding
    text = f"{f.severity} {f.code} {f.rule} at {f.layer}: {f.message}"
    if change.old is not None and change.new is not None:
        a, b = (story.yardstick(x) for x in (change.old, change.new))
        if change.old.severity != change.new.severity:
            text += f" (severity was {change.old.severity}, is {change.new.severity})"
        elif a is not None and b is not None:
            text += f" ({b.name} was {a.value_text}, is {b.value_text})"
    return text + (" [may be chance]" if change.borderline else "")


def difference_text(difference: Difference) -> str:
    d = difference
    if d.text:
        return d.text
    unit: Unit = "share" if d.kind == "share" else ""
    old, new = (story.number(x, unit) for x in (d.old, d.new))
    what = d.what if d.kind == "share" else f"{d.kind} {d.what}"
    text = f"{d.name}: {what} was {old}, is {new}"
    if d.what == "scale" and d.old and d.new:
        ratio, most = story.number(d.new / d.old), story.number(math.exp(d.band))
        return f"{text} (× {ratio}; chance explains up to × {most} either way)"
    if d.what == "scale" or not d.size > 0:  # all zero in one run: no ratio
        return text
    most = story.number(abs(d.new - d.old) / d.size * d.band, unit)
    return f"{text} (chance explains a change of up to {most})"


def differences(comparison: Comparison) -> list[tuple[str, list[Difference]]]:
    """The differences by kind, causes before their consequences."""
    kinds = {
        "structure": "Structure", "input": "Inputs", "parameter": "Parameters",
        "activation": "Activations", "share": "Shares", "gradient": "Gradients",
    }  # fmt: skip
    by_title = {
        title: [d for d in comparison.differences if d.kind == kind]
        for kind, title in kinds.items()
    }
    return [(title, ds) for title, ds in by_title.items() if ds]


# -- the tables ---------------------------------------------------------------------------------


def layer_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for pair in comparison.layers:
        a, b = pair.old, pair.new
        rows.append(
            {
                "layer": pair.name,
                **_status(comparison, pair),
                "op": _change(_op(a), _op(b)),
                **_both("mean", _of(a, "output"), _of(b, "output")),
                **_both("std", _of(a, "output"), _of(b, "output")),
                **_both("rms", _of(a, "grad"), _of(b, "grad"), "gradient rms"),
                "flat share, old": math.nan if a is None or a.flat is None else a.flat.share,
                "flat share, new": math.nan if b is None or b.flat is None else b.flat.share,
            }
        )
    return rows


SIDES = ("layer", "std", "gradient rms", "flat share")


def sides(comparison: Comparison, most: int) -> list[tuple[str, ...]]:
    """Numbers of at most so many layers, old → new, in network order; changed layers go first."""
    rows = layer_rows(comparison)
    chosen = [row for row in rows if row["differs"]][:most]
    chosen += [row for row in rows if not row["differs"]][: most - len(chosen)]
    places = {id(row): place for place, row in enumerate(rows)}
    return [
        (
            row["layer"],
            *(
                _change(*(_shown(row[f"{name}, {when}"]) for when in ("old", "new")))
                for name in SIDES[1:]
            ),
        )
        for row in sorted(chosen, key=lambda row: places[id(row)])
    ]


def _shown(value: float) -> str:
    return "—" if math.isnan(value) else story.number(value)


def parameter_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for pair in comparison.parameters:
        a, b = pair.old, pair.new
        rows.append(
            {
                "parameter": pair.name,
                **_status(comparison, pair),
                "shape": _change(_shape(a), _shape(b)),
                **_both("mean", _of(a, "value"), _of(b, "value")),
                **_both("rms", _of(a, "value"), _of(b, "value")),
                **_both("rms", _of(a, "grad"), _of(b, "grad"), "gradient rms"),
            }
        )
    return rows


def _status(comparison: Comparison, pair: Pair[Any]) -> dict[str, str]:
    """Whether a layer or parameter is new, gone or changed, and its old name."""
    if pair.old is None or pair.new is None:
        return {"was called": "", "differs": "new" if pair.old is None else "gone"}
    named = {d.name for d in comparison.differences if d.what not in ("layer", "parameter")}
    return {
        "was called": pair.old.name if pair.renamed else "",
        "differs": "yes" if pair.name in named else "",
    }


def _of(thing: Layer | Parameter | None, what: str) -> TensorStats | None:
    return None if thing is None else getattr(thing, what)


def _both(
    what: str, a: TensorStats | None, b: TensorStats | None, title: str = ""
) -> dict[str, float]:
    title = title or what
    return {
        f"{title}, old": math.nan if a is None else getattr(a, what),
        f"{title}, new": math.nan if b is None else getattr(b, what),
    }


def _op(layer: Layer | None) -> str:
    return "—" if layer is None else layer.op if layer.op != "module" else layer.kind


def _shape(parameter: Parameter | None) -> str:
    return "—" if parameter is None else str(tuple(parameter.shape))


def _change(old: str, new: str) -> str:
    return old if old == new else f"{old} → {new}"


# -- formats ------------------------------------------------------------------------------------


def terminal(comparison: Comparison) -> RenderableType:
    parts: list[RenderableType] = [
        Text(f"nndiag compare · {story.printable(comparison.new.snapshot.model)}", style="bold"),
        Text(),
    ]
    for word, changes in groups(comparison):
        for change in changes[:MOST_LINES]:
            mark = Text(f"{_MARKS[word]} {word} ", style=_STYLES[word])
            parts.append(mark.append(story.printable(change_text(change)), style="default"))
        parts += _more(len(changes))
    if any(True for _ in groups(comparison)):
        parts.append(Text())
    for title, changed in differences(comparison):
        parts.append(Text(title, style="bold"))
        parts += [Text(f"  {story.printable(difference_text(d))}") for d in changed[:MOST_LINES]]
        parts += _more(len(changed))
    if comparison.differences:
        parts.append(Text())
    if comparison.layers and not comparison.same:
        parts += [_table(comparison), Text()]
    style = "bold green" if comparison.same else "bold"
    parts.append(Text(verdict(comparison), style=style))
    return Group(*parts)


def _table(comparison: Comparison) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for name in SIDES:
        table.add_column(name, overflow="fold", justify="left" if name == "layer" else "right")
    for row in sides(comparison, MOST_LINES):
        table.add_row(*(Text(story.printable(cell)) for cell in row))
    hidden = len(comparison.layers) - MOST_LINES
    more = [Text(f"and {story.plural(hidden, 'other layer')}", style="dim")] if hidden > 0 else []
    return Group(table, *more)


def _more(count: int) -> list[RenderableType]:
    return [Text(f"  and {count - MOST_LINES} more", style="dim")] if count > MOST_LINES else []


def markdown(comparison: Comparison) -> str:
    """A comment of at most MOST_BYTES, however much differs."""
    return fitting(lambda most: _markdown(comparison, most))


def _markdown(comparison: Comparison, most: int) -> Iterator[str]:
    yield f"### nndiag compare: {escape(comparison.new.snapshot.model[:LONGEST])}"
    yield ""
    yield f"**{escape(verdict(comparison))}**"
    yield ""
    for word, changes in groups(comparison):
        counted = [change for change in changes if change.counts] or list(changes)
        yield f"**Findings that {HEADINGS[word]}**"
        yield ""
        yield from _list(map(change_text, counted), most)
        yield ""
    for title, changed in differences(comparison):
        yield f"<details><summary>{title}: {len(changed)}</summary>"
        yield ""
        yield from _list(map(difference_text, changed), most)
        yield ""
        yield "</details>"
        yield ""
    rows = sides(comparison, min(most, 50))
    if rows:
        yield "<details><summary>Layers, side by side</summary>"
        yield ""
        yield f"| {' | '.join(SIDES)} |"
        yield "| --- | ---: | ---: | ---: |"
        for row in rows:
            yield f"| {' | '.join(escape(cell[:LONGEST]) for cell in row)} |"
        yield ""
        yield "</details>"


def _list(texts: Iterable[str], most: int) -> Iterator[str]:
    items = list(texts)
    for text in items[:most]:
        yield f"- {escape(text)[: 2 * LONGEST]}"
    if len(items) > most:
        yield f"- and {len(items) - most} more, in the page and the JSON reports"


def brief(comparison: Comparison) -> str:
    """The comparison in a few words, as ``repr`` shows it."""
    return f"Comparison: {verdict(comparison)}"


def html(comparison: Comparison) -> str:
    """The whole page."""
    return _page("comparison.html.j2", comparison)


def fragment(comparison: Comparison) -> str:
    """The verdict and the differences, for use inside another page (a notebook)."""
    return _page("comparison-fragment.html.j2", comparison)


def _page(template: str, comparison: Comparison) -> str:
    return page(
        template,
        comparison=comparison,
        title=comparison.new.snapshot.model,
        verdict=verdict(comparison),
        groups=list(groups(comparison)),
        headings=HEADINGS,
        differences=differences(comparison),
        change_text=change_text,
        difference_text=difference_text,
        layers=layer_rows(comparison),
        parameters=parameter_rows(comparison),
    )
