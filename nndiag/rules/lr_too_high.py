"""A learning rate at which the first steps drive the loss up.

What it does
------------

Makes one step of the optimiser on this batch. If the step raises the loss, it makes a second one
with the new gradients, and looks whether the loss comes back. Everything is undone. It reports a
loss that stays far above both its start and that of a constant output, or that becomes NaN or
infinite.

Why it matters
--------------

Along a step the loss first falls and then rises: a rate above 2 divided by the curvature raises it.
A few such steps leave weights many times too large, dead or saturated units, or NaN. Training such
a network on at a lower rate does not work well either.

When it is no fault
-------------------

- One step that raises the loss. Adam's first step is as long as the rate allows, whatever the
  gradient, and the next steps bring the loss back.
- A trained network: a new optimiser first has to find its scale. It is a note, unless the loss
  becomes NaN or infinite.
- A training loop that clips gradients can use higher rates. The check does not see the clipping.

A rate that is too high only after many steps is not found: with momentum, steps grow tenfold over
the first twenty.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    batch = torch.randn(128, 8), torch.randint(0, 3, (128,))
    loss_fn = F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=10)

Well::

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import rates, trained
from nndiag.experiment import Optimizer
from nndiag.fixes.fix import Fix, advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND804",
    name="lr-too-high",
    severity="error",
    about="training",
    needs=("loss", "optimizer"),
    thresholds={
        "rise": Threshold(
            3,
            "measured: reports/calibration/learning-rates.md: the loss after one step and after "
            "two, over the larger of the loss before and a constant output's; at ten times the "
            "usual rates one of both stays below",
            1,
            unit="factor",
        ),
        "rising": Threshold(
            2,
            "measured: reports/calibration/learning-rates.md: the loss after one step, over the "
            "larger of the loss before and a constant output's, if a second step raises it further",
            1,
            unit="factor",
        ),
        "runaway": Threshold(
            100,
            "measured: reports/calibration/learning-rates.md: the loss after two steps, over the "
            "larger of the loss before and a constant output's, however little the first raises it",
            1,
            unit="factor",
        ),
        "random": Threshold(
            3,
            "derived: the loss after the second step, over that of random outputs of size 10: "
            "three times as wrong as outputs that know nothing and are sure",
            1,
            unit="factor",
        ),
    },
    caused_by=(
        "input-missing",
        "input-scale",
        "input-outliers",
        "target-scale",
        "non-finite",
        "exploding-gradient",
        "init-scale",
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    optimizer = snapshot.experiment.optimizer
    if optimizer is None:
        return
    if because := optimizer.no_step_because:
        yield RULE.unjudged("(optimizer)", because)
        return
    if not optimizer.losses or not math.isfinite(optimizer.before):
        return
    rate = max((group.lr for group in optimizer.groups if group.held), default=0.0)
    constant = 0.0 if math.isnan(optimizer.constant) else abs(optimizer.constant)
    usual = max(abs(optimizer.before), constant, 1e-30)
    steps = (optimizer.after, *optimizer.again)
    worst = next((loss for loss in steps if not math.isfinite(loss)), None)
    rises = [(loss - optimizer.before) / usual + 1 for loss in steps]
    random = _over_random(snapshot, optimizer)
    against = "rise" if worst is not None else _measure(optimizer, rises, random, thresholds)
    if not against:
        return
    if worst is not None:
        after = f"{number(worst)} after {'one' if worst is steps[0] else 'two'} of them"
    else:
        after = f"{number(steps[0])} after one and {number(steps[-1])} after two"
    yield RULE.finding(
        "(optimizer)",
        f"Steps of {optimizer.name} at rate {number(rate)} take the loss of this batch from "
        f"{number(optimizer.before)} to {after}.",
        summary=f"The loss will run away: at rate {number(rate)}, its first steps take it from "
        f"{number(optimizer.before)} to {number(steps[-1] if worst is None else worst)}.",
        severity="note" if trained.training(snapshot) and worst is None else None,
        against=(against, thresholds),
        evidence={
            "rise": math.inf if worst is not None else min(rises),
            "rising": rises[0],
            "runaway": rises[-1],
            "random": random,
            "rate": rate,
            "loss": optimizer.before,
            "after_one": steps[0],
            "after_two": steps[-1],
            "constant": optimizer.constant,
        },
        fixes=(_lower(optimizer, rate),),
    )


def _over_random(snapshot: Snapshot, optimizer: Optimizer) -> float:
    """The loss after two steps that both raise it, over the loss of random outputs of size 10.

    Zero where that is not known.
    """
    baseline = snapshot.experiment.baseline
    if baseline is None or not optimizer.again or not 0 < baseline.huge < math.inf:
        return 0.0
    if not optimizer.before < optimizer.after < optimizer.again[0]:
        return 0.0
    return optimizer.again[0] / max(baseline.huge, optimizer.before)


def _measure(
    optimizer: Optimizer, rises: list[float], random: float, thresholds: Thresholds
) -> str:
    """The threshold that the rises after one and after two steps are beyond; "" if none."""
    if len(rises) < 2:
        return ""
    first, second = rises
    # RMSprop and Adagrad make a first step that is much longer than those after it.
    allowed = 2 if any(g.held and g.later < 1 for g in optimizer.groups) else 1
    if min(first, second) > thresholds.rise * allowed:
        return "rise"
    if first > thresholds.rising * allowed and second >= first:
        return "rising"
    if random > thresholds.random * allowed:
        return "random"
    return "runaway" if second > thresholds.runaway else ""


def _lower(optimizer: Optimizer, rate: float) -> Fix:
    """A rate at which the step lowers the loss, as far as that was tried."""
    lower = [m for m, loss in optimizer.losses if m < 1 and loss < optimizer.before]
    factor = max(lower, default=0.001)
    common = rates.usual(group for group in optimizer.groups if group.held)
    return advice(
        f"Lower the rate to {number(rate * factor)}{'' if lower else ' or less'}. {common}",
        f"A step of {number(factor, 'share')} of this length lowers the loss of this batch."
        if lower
        else "A step of a hundredth of this length raises the loss, too.",
        f'for group in optimizer.param_groups: group["lr"] *= {factor:g}',
    )
