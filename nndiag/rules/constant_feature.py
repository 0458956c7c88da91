"""Columns of the data that have the same value in every sample.

What it does
------------

Counts the columns of the raw input that do not vary. A few are a note. It is a warning if most
columns are constant, or if every sample of the batch is the same.

Why it matters
--------------

A constant column tells nothing: its weights act as a second bias. If most are constant, the data
were probably prepared wrongly: a wrong column was read, values were rounded to one, or one sample
was repeated.

When it is no fault
-------------------

Among many columns, those that are zero are not counted: the corners of images, or words that no
text of the batch uses. An input of zeros only is what some decoders start from: it is reported
where it is the only input and the targets differ. Ids, masks and one-hot columns are not judged.
Without a loss the finding is a note: such a batch may be a stand-in.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    x, loss_fn = torch.randn(128, 8), F.mse_loss
    x[:, 1:7] = 0.5
    batch = x, x[:, :1] + x[:, 7:]

Well::

    x = torch.randn(128, 8)
    batch = x, x[:, :1] + x[:, 7:]

References: Pyle 1999, "Data Preparation for Data Mining", section 4.4.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow
from nndiag.columns import Columns
from nndiag.entrance import entrances
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["MANY", "RULE", "check"]

MANY = 32
"""Columns. Of so many, some that are zero are the corners of an image, or rare words."""

RULE = Rule(
    code="ND605",
    name="constant-feature",
    severity="warning",
    about="input",
    thresholds={
        "share": Threshold(
            0.5, "derived: where most columns are constant, the data are not what is meant", 0, 1,
            "share",
        ),
        "samples": Threshold(
            64, "derived: 0.95^64 < 4 %: a value that 5 % of the samples do not have would show", 2
        ),
    },
    fixes=(
        advice(
            "Look at how these columns are read and prepared, and drop those that are constant.",
            "",
            "x = x[:, x.std(0) > 0]",
        ),
    ),
)  # fmt: skip


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    found = entrances(snapshot)
    for name, (columns, layers) in found.items():
        if not layers or columns.samples < thresholds.samples:
            continue
        still = [
            (at, low)
            for at, low, high in zip(columns.at, columns.min, columns.max, strict=True)
            if high - low <= 1e-6 * max(abs(low), abs(high))
        ]
        every = len(still) == len(columns.at)
        if every and len(columns.at) == columns.columns and _differ(snapshot):
            yield _all_alike(name, columns, layers[0], thresholds)
            continue
        if not columns.numbers or len(columns.shape) > 2:  # channels and positions tell less
            continue
        nonzero = [pair for pair in still if pair[1]]
        many = len(columns.at) > MANY
        if len(columns.at) < 2 or (not nonzero and (every or many or not still)):
            continue
        share = len(nonzero if many else still) / len(columns.at)
        most = share > thresholds.share and len(found) == 1 and snapshot.has_loss
        at = ", ".join(str(k) for k, _ in still[:4]) + (", …" if still[4:] else "")
        of = f"{len(still):,} of {flow.plural(len(columns.at), 'column')}"
        have = "has" if len(still) == 1 else "have"
        yield RULE.finding(
            name,
            f"{of} {have} one value in all {columns.samples:,} samples (at {at})."
            + (" Every sample is the same." if every else ""),
            summary=f"The network has little to learn from: {of} of {name} {have} one value."
            if most
            else f"{of} of {name} {have} one value in every sample.",
            severity="warning" if most else "note",
            against=("share", thresholds),
            location=layers[0].location,
            evidence={"share": share, "constant": len(still), "columns": len(columns.at)},
        )


def _differ(snapshot: Snapshot) -> bool:
    """Whether different answers are expected of a single input: not all targets are the same."""
    if len(snapshot.inputs) != 1:
        return False
    targets = snapshot.experiment.targets.values()
    return any(t.count and t.max - t.min > 1e-6 * max(abs(t.min), abs(t.max)) for t in targets)


def _all_alike(name: str, columns: Columns, layer: Layer, thresholds: Thresholds) -> Finding:
    value = "zeros" if not any(columns.max) and not any(columns.min) else "the same"
    return RULE.finding(
        name,
        f"All {columns.samples:,} samples are {value}, but their targets differ. Every sample is "
        "the same to the network.",
        summary=f"The network can learn but one answer: all samples of {name} are {value}.",
        severity="warning",
        against=("share", thresholds),
        location=layer.location,
        evidence={"share": 1.0, "constant": len(columns.at), "columns": len(columns.at)},
    )
