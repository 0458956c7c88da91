"""A few values of the data that are far from all others of their column.

What it does
------------

Reports columns of the raw input in which a few values lie more than ten robust standard deviations
from the median, and more than double the column's standard deviation. It is a warning if they reach
the first layer as large numbers and lie far apart from all other values. Otherwise it is a note.

The robust standard deviation is 1.4826 times the median distance from the median; outliers hardly
change it.

Why it matters
--------------

One sample with a value of a thousand decides the gradient of the whole batch. Dividing the column
by its standard deviation, or by its largest value, squeezes all other values together.

When it is no fault
-------------------

Counts, prices and sizes often have heavy tails, whose values are rarely errors: a note. Columns in
which most values are equal are not judged: their robust standard deviation is zero.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    batch = torch.randn(256, 4)
    batch[7, 1] = 3000

Well::

    batch = batch.clamp(-5, 5)

References: Huber & Ronchetti 2009, "Robust Statistics", section 1.1.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow
from nndiag.entrance import entrances, is_normalised_behind, reading
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND603",
    name="input-outliers",
    severity="warning",
    about="input",
    thresholds={
        "growth": Threshold(
            2, "derived: the values more than ten robust standard deviations away hold three "
            "quarters of the column's variance", 1, unit="factor",
        ),
        "distance": Threshold(
            100, "derived: the error of one unit for another, such as metres for centimetres; the "
            "largest of 1,000 values of Student's t with 2 degrees of freedom is 39 away", 10,
        ),
        "gap": Threshold(
            3,
            "derived: the values of a heavy tail lie close together, with none three times as far "
            "as the next",
            1,
            unit="factor",
        ),
        "large": Threshold(30, "derived: the threshold of input-scale", 0),
        "share": Threshold(
            0.02, "derived: where more values are far away, they are a group and not a few", 0, 1,
            "share",
        ),
        "rows": Threshold(64, "derived: the median distance of 64 values has an error of 20 %", 1),
    },
    caused_by=("input-missing",),
    fixes=(
        advice(
            "Look at these samples. Correct them, drop them, or clip the column.",
            "",
            "low, high = x.quantile(0.001, 0), x.quantile(0.999, 0)\nx = x.clamp(low, high)",
        ),
        advice(
            "For a heavy tail, take the logarithm of the column.", "", "x = torch.log1p(x)"
        ),
    ),
)  # fmt: skip


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    for name, (columns, layers) in entrances(snapshot).items():
        if not columns.numbers or columns.kind == "bytes" or not layers:
            continue
        places = []
        for k, at in enumerate(columns.at):
            scale, inner = columns.scale[k], columns.inner_std[k]
            if scale > 0 and inner > 0 and 0 < columns.outliers[k] <= thresholds.share:
                growth = columns.std[k] / inner
                ends = columns.min[k], columns.max[k]
                end = max(ends, key=lambda v: abs(v - columns.median[k]))
                if growth > thresholds.growth:
                    distance = abs(end - columns.median[k]) / scale
                    apart = columns.gap[k] > thresholds.gap
                    places.append((apart, growth, distance, end, at, columns.outliers[k]))
        if not places:
            continue
        if columns.rows < thresholds.rows:
            yield RULE.unjudged(
                name, f"{columns.rows} values in each column; give {thresholds.rows:.0f} or more"
            )
            continue
        apart, growth, distance, end, at, share = max(places)
        harmed = [
            x
            for x in layers
            if (read := reading(x)) is not None
            and max(abs(read.min), abs(read.max)) > thresholds.large
            and not is_normalised_behind(snapshot, x)
        ]
        rest = max(columns.inner_std)
        harm = (
            bool(harmed) and apart and distance > thresholds.distance and rest <= thresholds.large
        )
        more = f" The same holds for {flow.plural(len(places) - 1, 'more column')}."
        yield RULE.finding(
            name,
            f"{number(share, 'share')} of the values of column {at} are more than 10 robust "
            f"standard deviations from its median; the farthest, {number(end)}, is "
            f"{number(distance)} of them away. These values make the column's standard deviation "
            f"{number(growth, 'factor')} as large."
            + (more if places[1:] else ""),
            summary=f"A few values of {name} outweigh all others: {number(end)} in column {at} "
            f"is {number(distance)} robust standard deviations from the median.",
            severity="warning" if harm else "note",
            against=("growth", thresholds),
            location=layers[0].location,
            evidence={
                "growth": growth, "distance": distance, "value": end, "share": share,
                "columns": len(places),
            },
        )  # fmt: skip
