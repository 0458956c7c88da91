"""Gradients that were there before the check began.

What it does
------------

Looks whether parameters hold a gradient other than zero when the check begins, and how large it is
beside the gradient of this batch.

Why it matters
--------------

``backward()`` adds to the gradients that are there. Without ``optimizer.zero_grad()`` each step is
made along the sum of all gradients since the training began. Old ones point where the weights no
longer are, and the sum grows with every step.

When it is no fault
-------------------

A check between ``backward()`` and ``optimizer.step()`` finds the gradients that this step needs. So
does one in the middle of an accumulation over several batches. One look cannot tell these apart: it
is a note.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    batch = torch.randn(128, 8), torch.randint(0, 3, (128,))
    loss_fn = F.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn(model(batch[0]), batch[1]).backward()

Well::

    optimizer.zero_grad()
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag.fixes.fix import advice
from nndiag.flow import plural
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND805",
    name="gradient-not-cleared",
    severity="note",
    about="training",
    needs=("optimizer",),
    fixes=(
        advice(
            "Clear the gradients once for each step, before the backward pass.",
            "",
            "optimizer.zero_grad()\nloss.backward()\noptimizer.step()",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    optimizer = snapshot.experiment.optimizer
    if optimizer is None or not optimizer.filled:
        return
    before = math.hypot(*optimizer.filled.values())
    now = math.hypot(*(p.grad.norm for p in snapshot.parameters if p.grad is not None), 0.0)
    count = len(optimizer.filled)
    ratio = f" It is {number(before / now)} times as large as this batch's." if now > 0 else ""
    yield RULE.finding(
        "(optimizer)",
        f"{plural(count, 'parameter')} of {len(snapshot.parameters)} had a gradient before the "
        f"check began, of norm {number(before)} together.{ratio}",
        summary="The next step will use old gradients, too, unless they are cleared before the "
        "backward pass.",
        evidence={"parameters": count, "norm_before": before, "norm": now},
    )
