"""Gradients that were there before the check began.

What it does
------------

Looks whether parameters already hold a non-zero gradient when the check begins, and compares its
size with that of this batch's gradient.

Why it matters
--------------

``backward()`` adds to the gradients that are there. Without ``optimizer.zero_grad()`` each step
follows the sum of all gradients since training began. Old gradients belong to weights that have
changed since, and the sum grows with every step.

When it is no fault
-------------------

A check between ``backward()`` and ``optimizer.step()`` finds the gradients that this step needs. So
does a check in the middle of an accumulation over several batches. One check cannot tell these
cases apart, so the finding is a note.

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
    ratio = f", {number(before / now)} times that of this batch's gradient" if now > 0 else ""
    yield RULE.finding(
        "(optimizer)",
        f"{count} of {plural(len(snapshot.parameters), 'parameter')} had a gradient before the "
        f"check began. Its norm is {number(before)}{ratio}.",
        summary="The next step will use old gradients, too, unless they are cleared before the "
        "backward pass.",
        evidence={"parameters": count, "norm_before": before, "norm": now},
    )
