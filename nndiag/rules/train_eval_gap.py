"""A loss that is far higher in evaluation mode than in training mode, on the same batch.

What it does
------------

Runs the batch once more in evaluation mode and compares the losses. A third run switches off only
dropout. It shows how much of the difference comes from BatchNorm, which changes from the batch's
own statistics to running averages.

Why it matters
--------------

The network then computes something else in evaluation than it was trained for. Usual causes are
batches too small for BatchNorm, running averages of other data (a new domain, a pretrained
backbone), averages of too few batches, and a momentum that is too low.

When it is no fault
-------------------

With dropout, a lower loss in evaluation mode is normal. BatchNorm layers whose running averages
have seen fewer than ten batches are not judged. A loss of 0.1 or less in evaluation mode is not
reported: the batch is fitted in both modes.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    batch, loss_fn = (torch.randn(128, 8) * 3 + 5, torch.randint(0, 4, (128,))), F.cross_entropy
    for _ in range(60):
        model(torch.randn(32, 8) * 0.01)

Well::

    for _ in range(60):
        model(batch[0])

References: Ioffe & Szegedy 2015, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND504",
    name="train-eval-gap",
    severity="warning",
    about="training",
    needs=("outputs", "loss"),
    uses=("evaluation",),
    thresholds={
        "ratio": Threshold(
            1.5,
            "derived: running averages of the last 1/momentum batches raise the loss by less than "
            "half on data of one kind",
            1,
            unit="factor",
        ),
        "loss": Threshold(0.1, "derived: below it the batch is fitted in either mode", 0),
        "tracked": Threshold(
            10, "derived: with momentum 0.1 the start still weighs 35 % after ten batches", 0
        ),
    },
    caused_by=("bn-small-batch",),
    fixes=(
        advice(
            "Estimate BatchNorm's running averages again on the data that you evaluate on.",
            "They describe other data, or too few batches.",
            "nndiag.fixes.recalibrate_(model, loader)",
            "scale",
        ),
        advice(
            "Train with larger batches, or with GroupNorm or LayerNorm.",
            "Statistics of few samples scatter, and so do their averages.",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    gap = snapshot.experiment.gap
    if gap is None or gap.tracked < thresholds.tracked:
        return
    ratio = gap.evaluation / gap.train if gap.train > 0 else math.inf
    if not math.isfinite(gap.evaluation):
        ratio = math.inf
    if gap.evaluation <= thresholds.loss or ratio <= thresholds.ratio or gap.train <= 0:
        return
    both = gap.evaluation - gap.train
    by_norms = (gap.evaluation - gap.norms_only) / both if both and math.isfinite(both) else 1.0
    if by_norms < 0.5:
        return
    yield RULE.finding(
        "(loss)",
        f"The loss of this batch is {gap.train:.3g} in training mode and {gap.evaluation:.3g} in "
        f"evaluation mode. With dropout off but BatchNorm as in training it is "
        f"{gap.norms_only:.3g}: BatchNorm's running averages do not describe this batch.",
        summary=f"The network will do worse in evaluation than in training: the loss of this batch "
        f"is {gap.evaluation:.3g} instead of {gap.train:.3g}.",
        against=("ratio", thresholds),
        evidence={
            "ratio": ratio,
            "train": gap.train,
            "evaluation": gap.evaluation,
            "norms_only": gap.norms_only,
        },
    )
