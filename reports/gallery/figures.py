"""Figures: one look for all pages, and the same bytes for the same numbers."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import pandas as pd
from cycler import cycler
from matplotlib.figure import Figure

from gallery.page import Frames, Page

COLORS = (
    "#0b5fa5", "#d1495b", "#2e8b57", "#e8a33d", "#6b4ea0",
    "#20a4b8", "#8c564b", "#5f6b7a", "#c2569b", "#7a9a01",
)  # fmt: skip
MEASURED, THEORY, BAD, GOOD, QUIET = "#0b5fa5", "#e8a33d", "#d1495b", "#2e8b57", "#8a939d"

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#57606a",
    "axes.grid": True,
    "grid.color": "#e5e9ed",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Text stays text, and ids do not depend on the run.
    "svg.fonttype": "none",
    "svg.hashsalt": "nndiag",
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
}


def svg(page: Page, frames: Frames) -> str:
    """A page's figure."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained")
        page.experiment.draw(frames, figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": "nndiag"})
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def band(axes: Any, x: str, y: str, rows: pd.DataFrame, **style: Any) -> None:
    """The mean over seeds as a line, the smallest and the largest as a band around it."""
    found = rows.groupby(x, sort=False)[y]
    mean = found.mean().dropna()
    [line] = axes.plot(mean.index, mean, **style)
    low, high = found.min()[mean.index], found.max()[mean.index]
    axes.fill_between(mean.index, low, high, color=line.get_color(), alpha=0.15, lw=0)
