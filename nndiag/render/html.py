"""The report as one page that needs no network, and can be read without its script."""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
from typing import TYPE_CHECKING, Any

from nndiag.render import story, tables
from nndiag.render.page import title_of
from nndiag.render.picture import picture, text_curve

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from nndiag.report import Report

__all__ = ["MOST_LISTED", "fragment", "page", "render", "worst_severity"]

MOST_LISTED = 300
"""Of one rule's findings in one list: nobody reads further, and a page stays small."""


def render(report: Report) -> str:
    """A whole page."""
    snapshot = report.snapshot
    blocks = story.blocks(report.findings)
    leads = bool(blocks) and blocks[0].severity != "note"
    drawn = picture(snapshot)
    drawings = (text_curve(curve["output"]) for curve in drawn["layers"])
    curves = itertools.chain(drawings, itertools.repeat(""))
    layers = [  # the loss's calls come last, and have no curve
        {"layer": row.pop("layer"), "distribution": curve, **row}
        for row, curve in zip(tables.layers(snapshot), curves, strict=False)
    ]
    parameters = tables.parameters(snapshot)
    contents = [
        ("cause", "Cause", leads),
        ("picture", "Picture", layers),
        ("findings", "Findings", len(blocks) > leads),
        ("layers", "Layers", layers),
        ("parameters", "Parameters", parameters),
        ("scope", "What was looked at", True),
        ("again", "Run it again", snapshot.environment),
    ]
    return _render(
        "page.html.j2",
        report,
        lead=blocks[0] if leads else None,
        blocks=blocks[leads:],
        contents=[(id, title) for id, title, there in contents if there],
        picture=drawn,
        layers=layers,
        parameters=parameters,
        anchors={
            **{row["parameter"]: f"P{i}" for i, row in enumerate(parameters)},
            **{row["layer"]: f"L{i}" for i, row in enumerate(layers)},
        },
        passed=[o for o in report.outcomes if o.status == "passed"],
        summary=json.dumps(
            {
                "model": snapshot.model[:200],
                "verdict": report.verdict,
                "severity": worst_severity(report),
            }
        ),
    )


def fragment(report: Report) -> str:
    """The verdict and the findings, to stand inside another page (a notebook)."""
    return _render("fragment.html.j2", report, blocks=story.blocks(report.findings))


def _render(template: str, report: Report, **values: Any) -> str:
    severity = worst_severity(report)
    return page(template, report=report, snapshot=report.snapshot, severity=severity, **values)


def page(template: str, **values: Any) -> str:
    """A template, with what all of them need."""
    common = {
        "story": story,
        "most": MOST_LISTED,
        "script": _script,
        "title_of": title_of,
        "anchors": {},
        "about": tables.ABOUT,
    }
    return _environment().get_template(template).render(common | values)


def worst_severity(report: Report) -> str:
    """The worst severity, or "fine"; "note" where nothing was judged, which is not fine."""
    if report.findings:
        return report.findings[0].severity
    judged = any(o.status == "passed" for o in report.outcomes)
    return "fine" if report.ok and judged else "note"


@functools.cache
def _script(name: str) -> Markup:
    from markupsafe import Markup

    folder = importlib.resources.files("nndiag") / "render"
    return Markup(folder.joinpath(name).read_text(encoding="utf-8"))


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nndiag", "render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["sorted_by"] = _sorted_by
    return environment


def _cell(value: Any) -> str:
    """A table's cell: numbers short, the unknown empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return story.number(value) if isinstance(value, (int, float)) else str(value)


def _sorted_by(value: Any) -> Markup:
    """The attribute that a number's cell is sorted by, where it does not say all of it."""
    from markupsafe import Markup

    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return Markup("")
    whole = repr(float(value)) if isinstance(value, float) else str(value)
    return Markup("") if whole == _cell(value) else Markup(' data-sort="{}"').format(f"{value:.6g}")
