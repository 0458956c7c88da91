"""The report as one page that needs neither network nor script."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from nndiag.render import story, tables

if TYPE_CHECKING:
    from jinja2 import Environment

    from nndiag.report import Report


def render(report: Report) -> str:
    """A whole page."""
    return _render("page.html.j2", report)


def fragment(report: Report) -> str:
    """The verdict and the findings, to stand inside another page (a notebook)."""
    return _render("fragment.html.j2", report)


def _render(template: str, report: Report) -> str:
    return (
        _environment()
        .get_template(template)
        .render(
            report=report,
            snapshot=report.snapshot,
            story=story,
            blocks=story.blocks(report.findings),
            layers=tables.layers(report.snapshot),
            parameters=tables.parameters(report.snapshot),
            passed=[o for o in report.outcomes if o.status == "passed"],
        )
    )


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
    return environment


def _cell(value: Any) -> str:
    """A table's cell: numbers short, the unknown empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return story.number(value) if isinstance(value, (int, float)) else str(value)
