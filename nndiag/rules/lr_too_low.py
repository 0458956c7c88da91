"""A learning rate at which the loss hardly changes.

What it does
------------

Makes one step of the optimiser on this batch and compares the loss before and after it. Then it
tries a step a hundred times as long. Everything is undone. It reports a step that changes the loss
by less than 0.0015 %, if the step a hundred times as long still lowers the loss.

Why it matters
--------------

At such a rate, training needs tens of thousands of steps for what a thousand could do. The loss
looks flat, as if the network could not learn.

When it is no fault
-------------------

- A schedule that begins low: the highest rate that it has set in the optimiser counts
  (``initial_lr``, ``max_lr``).
- A trained network: fine-tuning uses small rates, and near a minimum every step changes little. It
  is a note.
- A gradient that is itself small, as in a network whose signal vanishes. A higher rate does not
  help there, so it is not judged here.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    batch = torch.randn(128, 8), torch.randint(0, 3, (128,))
    loss_fn = F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-7)

Well::

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import rates, trained
from nndiag.experiment import Optimizer
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Snapshot

__all__ = ["FAR", "RULE", "check"]

FAR = 1000
"""The farthest multiple of the step that is tried."""

RULE = Rule(
    code="ND803",
    name="lr-too-low",
    severity="warning",
    about="training",
    needs=("loss", "optimizer"),
    thresholds={
        "change": Threshold(
            1.5e-5,
            "measured: reports/calibration/learning-rates.md: the change of the loss, as a share "
            "of it; with Adam at 0.0001 every new network has at least twice that",
            0,
            1,
            "share",
        ),
        "multiple": Threshold(
            100,
            "cited: Kalra et al. 2026, arXiv 2601.16979 (critical sharpness): how many times its "
            "own length a step may have before the loss rises; at usual rates 4 to 32, in the "
            "middle of a training",
            1,
            unit="factor",
        ),
        "gradient": Threshold(
            0.1,
            "measured: reports/calibration/learning-rates.md: gradient norm times weight norm, as "
            "a share of the loss; below it the gradient is small, not the rate",
        ),
        "update": Threshold(
            1e-5,
            "measured: reports/calibration/learning-rates.md: SGD's update as a share of the "
            "weights, by their norms, over the gradient's size where that is below 1; where SGD at "
            "0.01 changes the loss of a fresh network by less than 1.5e-5, it is 1.8e-5 and more",
            0,
            1,
            "share",
        ),
    },
    caused_by=(
        "output-activation",
        "degenerate-softmax",
        "unreachable-target",
        "input-scale",
        "non-finite",
        "optimizer-coverage",
        "no-update",
        "no-gradient",
        "vanishing-gradient",
        "symmetry",
        "signal-collapse",
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    optimizer = snapshot.experiment.optimizer
    if optimizer is None:
        return
    if reason := _cannot_tell(optimizer, thresholds):
        yield RULE.unjudged("(optimizer)", reason)
        return
    before, share = optimizer.before, _scale(optimizer)
    change = abs(optimizer.change / before) * share
    lower = [times for times, loss in optimizer.losses if loss <= before + optimizer.noise]
    farthest = max(lower, default=0.0)
    update = _norm(optimizer, "move") / max(_norm(optimizer, "value"), 1e-30) * share
    # A short update may be the gradient's doing: as if that had its usual size.
    update /= min(max(_gradient(optimizer), 1e-30), 1.0)
    if farthest < thresholds.multiple:
        return
    if _is_proportional(optimizer):
        tiny = change < thresholds.change and update < thresholds.update
        if not tiny and (update >= thresholds.update / 3 or farthest < FAR):
            return
    elif change >= thresholds.change:
        return
    evidence_of_training = trained.training(snapshot)
    moving = [group for group in optimizer.groups if group.held and group.peak_lr > 0]
    rate = max(group.peak_lr for group in moving)
    yield RULE.finding(
        "(optimizer)",
        f"A step of {optimizer.name} at rate {number(rate)} changes the loss of this batch, "
        f"{number(before)}, by {number(change, 'share')} of itself. A step {number(farthest)} "
        "times as long would still lower it.",
        summary=f"The loss will hardly move: at rate {number(rate)}, a step changes it by "
        f"{number(change, 'share')}.",
        severity="note" if evidence_of_training else None,
        against=("change", thresholds),
        evidence={
            "change": change,
            "multiple": farthest,
            "update": update,
            "rate": rate,
            "loss": before,
            "gradient": _gradient(optimizer),
        },
        fixes=(
            advice(
                f"Raise the rate at least a hundredfold, to {number(100 * rate)}. "
                f"{rates.usual(moving)}",
                "",
                'for group in optimizer.param_groups: group["lr"] *= 100',
            ),
        ),
    )


def _cannot_tell(optimizer: Optimizer, thresholds: Thresholds) -> str:
    """Why the rate cannot be judged; "" where it can."""
    if because := optimizer.no_step_because or optimizer.no_loss_because:
        return because
    moving = [g for g in optimizer.groups if g.held and g.peak_lr > 0]
    if not moving or not optimizer.updates or optimizer.stuck:
        return "the step moves nothing"
    if all(g.lr == 0 for g in moving):
        return "a schedule begins at a rate of zero"
    if not (math.isfinite(optimizer.after) and optimizer.before != 0):
        return "the loss after the step is not finite, or zero before it"
    if _gradient(optimizer) < thresholds.gradient:
        return "the gradient is small itself"
    return ""


def _scale(optimizer: Optimizer) -> float:
    """How many times this step a step will be: at a schedule's peak, and once it is under way."""
    moving = [g for g in optimizer.groups if g.held and g.lr > 0]
    return max((g.peak_lr / g.lr * g.later for g in moving), default=1.0)


def _gradient(optimizer: Optimizer) -> float:
    """Gradient norm times weight norm over the loss: its change if all weights went along it."""
    return _norm(optimizer, "grad") * _norm(optimizer, "value") / abs(optimizer.before)


def _is_proportional(optimizer: Optimizer) -> bool:
    """Whether the update grows and shrinks with the gradient."""
    return all(group.optimizer in ("SGD", "ASGD") for group in optimizer.groups if group.held)


def _norm(optimizer: Optimizer, part: str) -> float:
    return math.hypot(*(getattr(u, part) for u in optimizer.updates))
