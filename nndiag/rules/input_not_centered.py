"""Data whose columns vary little around a large mean.

What it does
------------

Reports an input if most of its columns have a mean of many times their standard deviation. The
first layer must read it unchanged, with no batch normalisation behind it.

Why it matters
--------------

The loss is then steep in one direction, that of the mean. It is flat in all others, and these
distinguish the samples. A learning rate small enough for the steep direction is far too small for
the flat ones.

When it is no fault
-------------------

Pixels and other values from 0 to 1 have means of one to three standard deviations, which costs
little. Ids, one-hot and yes-or-no columns are not judged, nor is an input that the model centres.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    batch = 20 + torch.rand(256, 6)

Well::

    batch = batch - batch.mean(0)

References: LeCun et al. 1998, "Efficient BackProp", section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag.columns import Columns
from nndiag.entrance import consequence, entrances, is_normalised_behind, reading
from nndiag.fixes import propose
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Layer, Snapshot
from nndiag.trained import training

__all__ = ["RULE", "SOURCE", "check"]

SOURCE = "x = (x - mean) / std  # of each column of the training set"

RULE = Rule(
    code="ND602",
    name="input-not-centered",
    severity="warning",
    about="input",
    uses=("gradients",),
    thresholds={
        "times": Threshold(
            10,
            "measured: reports/calibration/data-scale.csv, the mean over the standard deviation "
            "of every column at which networks train worse",
            1,
            unit="factor",
        ),
        "rows": Threshold(
            32, "derived: the standard deviation of 32 values has a standard error of 13 %", 1
        ),
    },
    caused_by=("input-missing", "input-scale", "input-outliers"),
    fixes=(
        advice(
            "Subtract the mean of each column, and divide by its standard deviation.",
            "Then no direction is steeper than the others.",
            SOURCE,
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    for name, (columns, layers) in entrances(snapshot).items():
        if not columns.numbers:
            continue
        times = _times(columns)
        readers = [
            layer
            for layer in layers
            if _times_read(layer) > thresholds.times
            and not is_normalised_behind(snapshot, layer, over_samples=True)
        ]
        if not times > thresholds.times or not readers:
            continue
        if columns.rows < thresholds.rows:
            yield RULE.unjudged(
                name, f"{columns.rows} values in each column; give {thresholds.rows:.0f} or more"
            )
            continue
        harm, evidence = consequence(snapshot, readers)
        if math.isfinite(columns.condition):
            evidence["condition"] = columns.condition
        yield RULE.finding(
            name,
            f"Half of its {len(columns.at):,} columns have a mean of more than {times:.3g} times "
            f"their standard deviation. {readers[0].name} reads them as they are{harm}",
            summary=f"Training will be slow: the columns of {name} have means "
            f"{number(times, 'factor')} as large as their standard deviations.",
            severity="note" if training(snapshot) else "warning",
            against=("times", thresholds),
            location=readers[0].location,
            fixes=(*propose.standardize_input(snapshot, readers, SOURCE),),
            evidence={"times": times, **evidence},
        )


def _times(columns: Columns) -> float:
    """The median over columns of mean over std; columns that are constant do not count."""
    found = sorted(
        abs(mean) / std
        for mean, std in zip(columns.mean, columns.std, strict=True)
        if std > 1e-6 * abs(mean)
    )
    return found[(len(found) - 1) // 2] if len(found) > len(columns.at) / 2 else 0.0


def _times_read(layer: Layer) -> float:
    """The same of what a layer reads."""
    read = reading(layer)
    return read.times if read is not None and not read.nonfinite else 0.0
