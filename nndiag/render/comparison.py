"""Two reports held against each other, in a terminal, as a page and as a comment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nndiag.render import story
from nndiag.render.html import page
from nndiag.render.markdown import LONGEST, escape, fitting

if TYPE_CHECKING:
    from nndiag.compare import Change, Comparison, Difference
    from nndiag.pairing import Pair
    from nndiag.stats import Layer, Parameter, TensorStats

MOST_LINES = 12
"""Of one list in a terminal or a comment; the page and the data have all."""

_MARKS = {"appeared": "+", "vanished": "-", "worse": "▲", "better": "▼"}
_STYLES = {"appeared": "bold red", "vanished": "bold green", "worse": "red", "better": "green"}


def verdict(comparison: Comparison) -> str:
    """The comparison in one sentence."""
    if comparison.same:
        quiet = [
            story.plural(len(changes), f"finding that {word}")
            for word, changes in (
                ("came", comparison.appeared), ("went", comparison.vanished)
            )
            if changes
        ]  # fmt: skip
        told = f" ({' and '.join(quiet)} may be chance, or only a note)" if quiet else ""
        return f"The same, as far as chance allows to say{told}."
    came = sum(change.counts for change in comparison.appeared)
    went = sum(change.counts for change in comparison.vanished)
    parts = []
    if came:
        parts.append(f"{story.plural(came, 'finding')} appeared")
    if went:
        parts.append(f"{story.plural(went, 'finding')} vanished")
    if comparison.differences:
        count = len(comparison.differences)
        parts.append(
            "1 number or part differs" if count == 1 else f"{count:,} numbers or parts differ"
        )
    return f"Not the same: {', '.join(parts)}."


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
            text += f" (was {change.old.severity}, is {change.new.severity})"
        elif a is not None and b is not None:
            text += f" ({b.name} was {a.measured}, is {b.measured})"
    return text + (" [may be chance]" if change.borderline else "")


def difference_text(difference: Difference) -> str:
    d = difference
    if d.text:
        return d.text
    old, new = (story.number(x, "share" if d.kind == "share" else "") for x in (d.old, d.new))
    text = f"{d.name}: {d.what} of the {d.kind} was {old}, is {new}"
    if d.kind == "share":
        text = f"{d.name}: {d.what} was {old}, is {new}"
    if d.what == "scale" and d.old and d.new:
        ratio = d.new / d.old
        allowed = math.exp(d.band)
        text += f" (× {story.number(ratio)}; chance allows × {story.number(allowed)} either way)"
    return text


def differences(comparison: Comparison) -> list[tuple[str, list[Difference]]]:
    """By kind, causes before what follows from them."""
    kinds = {
        "structure": "Structure", "input": "Inputs", "parameter": "Parameters",
        "activation": "Activations", "share": "Shares", "gradient": "Gradients",
    }  # fmt: skip
    found = {
        title: [d for d in comparison.differences if d.kind == kind]
        for kind, title in kinds.items()
    }
    return [(title, ds) for title, ds in found.items() if ds]


# -- the tables ---------------------------------------------------------------------------------


def layer_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for pair in comparison.layers:
        a, b = pair.old, pair.new
        rows.append(
            {
                "layer": pair.name,
                **_fate(comparison, pair),
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
    """A few layers' numbers, old → new, in the order of the network; what differs comes first."""
    rows = layer_rows(comparison)
    chosen = [row for row in rows if row["differs"]][:most]
    chosen += [row for row in rows if not row["differs"]][: most - len(chosen)]
    places = {id(row): place for place, row in enumerate(rows)}
    return [
        (
            row["layer"],
            *(
                _change(*(_told(row[f"{name}, {when}"]) for when in ("old", "new")))
                for name in SIDES[1:]
            ),
        )
        for row in sorted(chosen, key=lambda row: places[id(row)])
    ]


def _told(value: float) -> str:
    return "—" if math.isnan(value) else story.number(value)


def parameter_rows(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for pair in comparison.parameters:
        a, b = pair.old, pair.new
        rows.append(
            {
                "parameter": pair.name,
                **_fate(comparison, pair),
                "shape": _change(_shape(a), _shape(b)),
                **_both("mean", _of(a, "value"), _of(b, "value")),
                **_both("rms", _of(a, "value"), _of(b, "value")),
                **_both("rms", _of(a, "grad"), _of(b, "grad"), "gradient rms"),
            }
        )
    return rows


def _fate(comparison: Comparison, pair: Pair[Any]) -> dict[str, str]:
    """What became of one thing, and how it was called."""
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
    for title, found in differences(comparison):
        parts.append(Text(title, style="bold"))
        parts += [Text(f"  {story.printable(difference_text(d))}") for d in found[:MOST_LINES]]
        parts += _more(len(found))
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
    """At most MOST_BYTES, whatever was compared."""
    return fitting(lambda most: _markdown(comparison, most))


def _markdown(comparison: Comparison, most: int) -> Iterator[str]:
    yield f"### nndiag compare: {escape(comparison.new.snapshot.model[:LONGEST])}"
    yield ""
    yield f"**{escape(verdict(comparison))}**"
    yield ""
    for word, changes in groups(comparison):
        counted = [change for change in changes if change.counts] or list(changes)
        yield f"**{word}**"
        yield ""
        yield from _list(map(change_text, counted), most)
        yield ""
    for title, found in differences(comparison):
        yield f"<details><summary>{title}: {len(found)}</summary>"
        yield ""
        yield from _list(map(difference_text, found), most)
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
    told = list(texts)
    for text in told[:most]:
        yield f"- {escape(text)[: 2 * LONGEST]}"
    if len(told) > most:
        yield f"- and {len(told) - most} more, in the page and the JSON reports"


def brief(comparison: Comparison) -> str:
    """The comparison in a few words, as ``repr`` shows it."""
    return f"Comparison: {verdict(comparison)}"


def html(comparison: Comparison) -> str:
    """The whole page."""
    return _page("comparison.html.j2", comparison)


def fragment(comparison: Comparison) -> str:
    """The verdict and what differs, to stand inside another page (a notebook)."""
    return _page("comparison-fragment.html.j2", comparison)


def _page(template: str, comparison: Comparison) -> str:
    return page(
        template,
        comparison=comparison,
        title=comparison.new.snapshot.model,
        verdict=verdict(comparison),
        groups=list(groups(comparison)),
        differences=differences(comparison),
        change_text=change_text,
        difference_text=difference_text,
        layers=layer_rows(comparison),
        parameters=parameter_rows(comparison),
    )
