"""Regularisation that outweighs what the data say.

What it does
------------

Splits the gradient into the part that comes through the model's output and the part that does not:
weight decay, and penalties on the weights that the loss adds. For decoupled weight decay (AdamW) it
splits the update. It reports a gradient or update that comes mostly from the regularisation.

Why it matters
--------------

The weights then go to zero, where the penalty is smallest, whatever the data are. The output
becomes constant, and the loss stays at that of a constant output.

When it is no fault
-------------------

Near the end of a training the gradient of the data is small, while the decay stays: a trained
network is not judged. If the loss itself runs layers of the model, or uses parameters together with
the output, that part is not counted as a penalty.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    batch = torch.randn(128, 8), torch.randint(0, 3, (128,))
    loss_fn = F.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=5)

Well::

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=5e-4)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import trained
from nndiag.experiment import Optimizer
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND824",
    name="regularization-too-strong",
    severity="warning",
    about="training",
    needs=("loss", "optimizer"),
    thresholds={
        "share": Threshold(
            0.7,
            "measured: reports/calibration/learning-rates.md: the share of the gradient, or of the "
            "update, that does not come through the output; below 0.7, 120 steps lower the loss; "
            "above 0.9 they hardly do",
            0,
            1,
            "share",
        ),
    },
    caused_by=("non-finite", "no-gradient", "vanishing-gradient", "symmetry", "signal-collapse"),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    optimizer = snapshot.experiment.optimizer
    if optimizer is None or not optimizer.updates:
        return
    if evidence := trained.training(snapshot):
        yield RULE.unjudged("(optimizer)", f"the model was trained: {evidence}")
        return
    gradient, update = _share(optimizer, "rest", "data"), _share(optimizer, "pull", "push")
    share = max(gradient, update)
    if share <= thresholds.share:
        return
    decay = max((g.weight_decay for g in optimizer.groups if g.held), default=0.0)
    named = f"Weight decay ({number(decay)})" if decay > 0 else "A penalty in the loss"
    what = "gradient" if gradient >= update else "update"
    fix = (
        advice(
            "Lower weight_decay: usual values are 0.0005 for SGD and 0.01 to 0.1 for AdamW.",
            "",
            'for group in optimizer.param_groups: group["weight_decay"] = 5e-4',
        )
        if decay > 0
        else advice("Lower the factor of the penalty in the loss a hundredfold, and check again.")
    )
    yield RULE.finding(
        "(optimizer)",
        f"{named} makes up {number(share, 'share')} of the {what}; the data make up the rest.",
        summary=f"The weights will go to zero: {number(share, 'share')} of the {what} is "
        "regularisation.",
        against=("share", thresholds),
        evidence={"share": share, "gradient": gradient, "update": update, "weight_decay": decay},
        fixes=(fix,),
    )


def _share(optimizer: Optimizer, part: str, other: str) -> float:
    """The norm of one part over the sum of the norms of both, over all parameters."""
    a, b = (math.hypot(*(getattr(u, name) for u in optimizer.updates)) for name in (part, other))
    return a / (a + b) if math.isfinite(a + b) and a + b > 0 else 0.0
