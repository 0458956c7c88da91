"""NaN, infinities or stand-ins for missing values in the data.

What it does
------------

Reports NaN and infinities in the raw input, if a layer reads them. It also reports values that
stand for "missing", such as -999, -9999 or 1e20, if they repeat in a column and lie far from its
other values.

Why it matters
--------------

One NaN in a batch makes the loss NaN, and one update makes every weight NaN. The network takes a
stand-in for a quantity: an age of -999 outweighs all other features.

When it is no fault
-------------------

NaN that the model replaces before its first layer are not reported. Neither are the infinities of a
mask, ids, zeros, and stand-ins within the range of the other values.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    batch = torch.randn(128, 4)
    batch[::8, 2] = -999

Well::

    known = batch[:, 2] > -999
    batch[~known, 2] = batch[known, 2].mean()

References: van Buuren 2018, "Flexible Imputation of Missing Data", section 1.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import flow
from nndiag.columns import Columns
from nndiag.entrance import entrances, reading
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["RULE", "STAND_INS", "check"]

STAND_INS = frozenset(
    sign * value
    for value in (
        99, 999, 9999, 99999, 999999, 32768, 2147483648, 1e10, 1e20, 1e30, 1e36, 888, 8888, 777,
    )
    for sign in (1, -1)
) | {3.4028234663852886e38, -3.4028234663852886e38}  # fmt: skip

RULE = Rule(
    code="ND604",
    name="input-missing",
    severity="warning",
    about="input",
    thresholds={
        "distance": Threshold(
            3,
            "derived: three times the range of all other values of the column away from them",
            1,
            unit="factor",
        ),
        "repeats": Threshold(2, "derived: a single extreme may be a measurement", 1),
        "share": Threshold(
            0.6, "derived: a value that most rows have is the usual one", 0, 1, "share"
        ),
    },
    fixes=(
        advice(
            "Fill in the missing values, or drop the samples that have some.",
            "A network has no notion of missing: it computes with every number.",
            "known = torch.isfinite(x)\n"
            "mean = x.where(known, 0).sum(0) / known.sum(0)\n"
            "x = x.where(known, mean)",
        ),
        advice("Add a column that is 1 where a value was missing, and 0 elsewhere."),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    for name, (columns, layers) in entrances(snapshot).items():
        stats = snapshot.inputs[name]
        if stats.nonfinite:
            # Infinities beside one other value, such as zero, are a mask.
            if (stats.nan or stats.std > 0) and any(
                (read := reading(x)) is not None and read.nonfinite for x in layers
            ):
                yield _not_finite(name, stats.nan, stats.inf, stats.total, layers[0])
            continue
        yield from _stand_ins(name, columns, layers, thresholds)


def _not_finite(name: str, nan: int, inf: int, total: int, layer: Layer) -> Finding:
    parts = [f"{nan:,} NaN"] if nan else []
    parts += [flow.plural(inf, "infinity", "infinities")] if inf else []
    count = f"{' and '.join(parts)} among {flow.plural(total, 'value')}"
    return RULE.finding(
        name,
        f"The input holds {count}. {layer.name} reads them as they are.",
        summary=f"Training will fail: the input {name} holds {count}.",
        severity="error",
        location=layer.location,
        evidence={"nan": nan, "inf": inf, "values": total},
    )


def _stand_ins(
    name: str, columns: Columns, layers: tuple[Layer, ...], thresholds: Thresholds
) -> Iterator[Finding]:
    if not columns.numbers:
        return
    found: dict[float, list[tuple[int, float]]] = {}
    for k, at in enumerate(columns.at):
        for value, share, near, far in (
            (columns.min[k], columns.lowest[k], columns.inner_min[k], columns.max[k]),
            (columns.max[k], columns.highest[k], columns.inner_max[k], columns.min[k]),
        ):
            away = abs(value - near) / abs(far - near) if far != near else 0.0
            often = share * columns.rows > thresholds.repeats - 0.5 and share <= thresholds.share
            if often and away > thresholds.distance and _is_stand_in(value):
                found.setdefault(value, []).append((at, share))
    for value, places in found.items():
        readers = [x for x in layers if _reads(x, value)]
        if not readers:
            continue
        share = max(share for _, share in places)
        where = ", ".join(str(at) for at, _ in places[:4]) + (", …" if places[4:] else "")
        which = flow.plural(len(places), "column")
        yield RULE.finding(
            name,
            f"{number(value)} is in {which} (at {where}), in up to {number(share, 'share')} of the "
            "rows, and far from all other values there. It looks like a stand-in for missing "
            f"values. {readers[0].name} reads it as a quantity.",
            summary=f"{number(value)} stands for missing values in {which} of {name}, and the "
            "network computes with it.",
            against=("share", thresholds),
            location=readers[0].location,
            fixes=(
                advice(
                    f"Replace {number(value)} by an estimate, such as the column's mean.",
                    RULE.fixes[0].why,
                    f"missing = x == {value:g}\n"
                    "mean = x.where(~missing, 0).sum(0) / (~missing).sum(0)\n"
                    "x = x.where(~missing, mean)",
                ),
                RULE.fixes[1],
            ),
            evidence={"value": value, "share": share, "columns": len(places)},
        )


def _is_stand_in(value: float) -> bool:
    """Up to the rounding of 32-bit numbers."""
    return any(math.isclose(value, known, rel_tol=1e-6) for known in STAND_INS)


def _reads(layer: Layer, value: float) -> bool:
    """Whether a layer reads a value as it is, and not what the model made of it."""
    read = reading(layer)
    if read is None:
        return False
    end = read.min if value < 0 else read.max
    return math.isclose(end, value, rel_tol=1e-3) or abs(end) > abs(value)
