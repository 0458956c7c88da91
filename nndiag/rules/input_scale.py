"""Data whose scale is far from what the first layer is made for.

What it does
------------

Measures the raw input, and what the first layers with weights read of it. It reports:

- values far above 1, such as pixels from 0 to 255, prices or port numbers, with no normalisation
  before the first weights or right after them;
- values far below 1, such as pixels that were divided by 255 twice;
- columns whose scales differ by a large factor, if the largest is far above 1.

Each finding says what follows in this network: how much of the first activation is saturated, or
how large the first layer's outputs are, and how many of its units have weight gradients of one
sign.

Why it matters
--------------

Initialisations and the usual learning rates expect inputs near 1. Inputs a hundred times as large
saturate a tanh or sigmoid and let a softmax start at 0 or 1. Each step of the first layer is then a
hundred times too large. If columns have very different scales, only the largest are learned.

When it is no fault
-------------------

Token ids, one-hot and yes-or-no columns are never judged. Neither is an input that the model
normalises itself, by a layer or by arithmetic such as x / 255. In a trained network the finding is
a note, unless the first activation is saturated.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    batch = 100 + 40 * torch.randn(256, 4)

Well::

    batch = (batch - batch.mean(0)) / batch.std(0)

References: LeCun et al. 1998, "Efficient BackProp", section 4.3; CS231n 2017 lecture 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from nndiag import flow, ops
from nndiag.columns import Columns
from nndiag.entrance import consequence, entrances, is_normalised_behind, reading
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix, advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Severity, Threshold, Thresholds, Unjudged
from nndiag.stats import Layer, Snapshot
from nndiag.trained import training

__all__ = ["RULE", "STANDARDISE", "check"]

STANDARDISE = "x = (x - mean) / std  # of each column of the training set"

RULE = Rule(
    code="ND601",
    name="input-scale",
    severity="warning",
    about="input",
    uses=("gradients",),
    thresholds={
        "rms": Threshold(
            30,
            "measured: reports/calibration/data-scale.csv, the root mean square at which networks "
            "without a normalisation begin to train worse",
            1,
        ),
        "least_rms": Threshold(
            0.003,
            "measured: reports/calibration/data-scale.csv, where networks without a normalisation "
            "explain nothing after 200 steps",
            0,
        ),
        "ratio": Threshold(
            100,
            "measured: reports/calibration/data-scale.csv, the ratio of the largest and the "
            "smallest column's scale at which the small ones are not learned",
            1,
            unit="factor",
        ),
        "large": Threshold(
            10, "derived: a third of the rms that is too large; where no column is larger, a "
            "small one may be intended", 0,
        ),
        "saturated": Threshold(0.75, "derived: the threshold of saturation", 0, 1, "share"),
        "rows": Threshold(
            32, "derived: the rms of 32 values has a standard error of 12 % and less", 1
        ),
    },
    caused_by=("input-missing", "input-outliers"),
    fixes=(
        advice(
            "Standardise the input: mean 0 and standard deviation 1 in every column.",
            "Usual initialisations and learning rates are made for such columns.",
            STANDARDISE,
        ),
        advice("For images, divide the bytes by 255.", "", "x = x / 255"),
    ),
)  # fmt: skip


class _Off(NamedTuple):
    """What is wrong with an input: the name of the threshold, what was measured, in words."""

    measure: str
    value: float
    text: str
    layers: tuple[Layer, ...]


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    for name, (columns, layers) in entrances(snapshot).items():
        readers = tuple(layer for layer in layers if _is_read(layer))
        if not readers or not columns.numbers:
            continue
        off = _off(snapshot, columns, readers, thresholds)
        if off is None:
            continue
        if columns.rows < thresholds.rows:
            few = flow.plural(columns.rows, "value", "values")
            yield RULE.unjudged(name, f"{few} in each column; give {thresholds.rows:.0f} or more")
            continue
        yield _finding(snapshot, name, columns, off, thresholds)


def _is_read(layer: Layer) -> bool:
    """Whether what a layer reads was measured and is finite."""
    read = reading(layer)
    return read is not None and not read.nonfinite


def _off(
    snapshot: Snapshot, columns: Columns, layers: tuple[Layer, ...], thresholds: Thresholds
) -> _Off | None:
    free = tuple(layer for layer in layers if not is_normalised_behind(snapshot, layer))
    raw = columns.rms
    large = tuple(layer for layer in free if _rms(layer) > thresholds.rms)
    if raw > thresholds.rms and large:
        return _Off("rms", max(map(_rms, large)), f"Its values have an rms of {raw:.3g}", large)
    ratio, least, most = _ratio(columns)
    if ratio > thresholds.ratio and most > thresholds.large and len(columns.shape) == 2:
        uneven = tuple(layer for layer in layers if _read_ratio(layer) > thresholds.ratio)
        if uneven:
            text = f"The standard deviations of its columns go from {least:.3g} to {most:.3g}"
            return _Off("ratio", ratio, text, uneven)
    filled = 1 - columns.zero_share
    size = raw / math.sqrt(filled) if filled > 0 else 0.0
    small = tuple(layer for layer in free if 0 < _rms(layer) <= 1.5 * size)
    if 0 < size < thresholds.least_rms and small:
        return _Off("least_rms", size, f"Its values have an rms of only {size:.3g}", small)
    return None


def _rms(layer: Layer) -> float:
    read = reading(layer)
    return read.rms if read is not None else math.nan


def _ratio(columns: Columns) -> tuple[float, float, float]:
    """The ratio of the largest and the smallest scale of its columns of numbers, and both.

    Pixels and counts differ in scale by what they show, and are of one unit.
    """
    if columns.kind in ("bytes", "counts", "unit-range"):
        return 1.0, math.nan, math.nan
    scales = [
        std
        for std, low, high, lowest, highest in zip(
            columns.inner_std, columns.min, columns.max, columns.lowest, columns.highest,
            strict=True,
        )
        if lowest + highest < 0.999 and std > 1e-6 * max(abs(low), abs(high))
    ]  # fmt: skip
    if len(scales) < 2:
        return 1.0, math.nan, math.nan
    return max(scales) / min(scales), min(scales), max(scales)


def _read_ratio(layer: Layer) -> float:
    """The same of what a layer reads."""
    read = reading(layer)
    return read.most_std / read.least_std if read is not None and read.least_std > 0 else 1.0


def _finding(
    snapshot: Snapshot, name: str, columns: Columns, off: _Off, thresholds: Thresholds
) -> Finding:
    harm, evidence = consequence(snapshot, off.layers)
    is_trained = training(snapshot) and not evidence.get("saturated", 0) >= thresholds.saturated
    severity: Severity = "note" if is_trained else "warning"
    low, high = min(columns.min), max(columns.max)
    what = " (image bytes)" if columns.kind == "bytes" else ""
    text = (
        f"{off.text}, from {number(low)} to {number(high)}{what}. {off.layers[0].name} reads them "
        f"{'as they are' if off.measure == 'ratio' else 'without a normalisation'}{harm}"
    )
    if is_trained:
        summary = f"The network was trained on data of a scale that slows training: {off.text}."
    elif off.measure == "ratio":
        summary = f"Only the largest features of {name} will be learned: {_lower(off.text)}."
    elif off.measure == "rms":
        summary = f"Training will be slow or fail: the values of {name} have an rms of " + (
            f"{off.value:.3g}, not near 1."
        )
    else:
        summary = f"The network will hardly see {name}: {_lower(off.text)}."
    return RULE.finding(
        name,
        text,
        summary=summary,
        severity=severity,
        against=(off.measure, thresholds),
        location=off.layers[0].location,
        fixes=(*_fixes(snapshot, columns, off),),
        evidence={off.measure: off.value, "raw_rms": columns.rms, **evidence},
    )


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _fixes(snapshot: Snapshot, columns: Columns, off: _Off) -> Iterator[Fix]:
    source = STANDARDISE
    if columns.kind == "bytes" and off.measure == "rms":
        source = f"x = x / 255\nOr: {STANDARDISE}"
    yield from propose.standardize_input(snapshot, off.layers, source)
    yield from propose.normalize(
        snapshot, [layer for layer in off.layers if layer.op in ops.WEIGHTED]
    )
