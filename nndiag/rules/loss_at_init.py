"""A loss far above or below that of a constant output.

What it does
------------

Compares the loss with that of the best constant output: the classes' shares for a cross-entropy,
the mean for a squared error. For torch's losses it is computed from the targets. A loss written by
hand is tried on a few constant outputs.

A new network knows nothing yet, and its outputs are about 1 in size. A loss above that of random
outputs of size 3 is a note, and one above that of size 10 a warning. A loss below half of the best
constant's is a note too: a new network cannot know the answers.

A trained network is compared with constant outputs alone.

Why it matters
--------------

A loss that starts far too high says that outputs, targets or weights are on the wrong scale. The
first steps then only correct the scale, and they are large. A trained network whose loss is no
better than that of a constant has learned nothing useful.

When it is no fault
-------------------

- The classes are not equally frequent, and the last bias starts at zero. This is a note at most.
- A pretrained network with a new head starts at the loss of a guess.
- Inputs that are larger than usual make outputs that are. This is a note, unless the loss is larger
  than that explains.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10))
    x = torch.randn(256, 8)
    batch = x, torch.arange(256) % 10
    loss_fn = lambda output, target: nn.functional.cross_entropy(output * 1e4, target)

Well::

    loss_fn = nn.functional.cross_entropy
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import loss_calls
from nndiag.entrance import entrances, reading
from nndiag.experiment import Baseline
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Snapshot
from nndiag.trained import training

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND706",
    name="loss-at-init",
    severity="warning",
    about="loss",
    needs=("loss",),
    thresholds={
        "too_low": Threshold(
            0.5,
            "derived: an output that does not know the target is no better than the best constant, "
            "up to the luck of a small batch",
            0,
            1,
            "share",
        ),
        "worse": Threshold(
            2.0,
            "derived: a new head on a trained body has less than twice the loss of a guess; so has "
            "any output under a loss with an upper bound",
            1,
            unit="factor",
        ),
        "uneven": Threshold(
            3.0,
            "derived: the loss of zeros is three times that of the best constant where the "
            "targets' mean square is three times their variance",
            1,
            unit="factor",
        ),
    },
    caused_by=(
        "training-damage",
        "input-missing",
        "input-scale",
        "input-outliers",
        "target-scale",
        "non-finite",
        "output-activation",
        "loss-mismatch",
        "unreachable-target",
        "target-shape",
        "degenerate-softmax",
        "init-scale",
        "exploding-gradient",
    ),
    fixes=(
        advice("Check the scale of inputs, targets and outputs, and how the loss is reduced."),
        advice(
            "Start the last layer small.",
            "Its outputs are then near zero, and the loss near that of a guess.",
            "nn.init.normal_(head.weight, std=0.01); nn.init.zeros_(head.bias)",
            "weights",
        ),
    ),
)

_BIAS = advice(
    "Start the last bias at the mean of the targets, or at the logarithms of the class shares.",
    "The first steps then need not learn it.",
    "head.bias.data = target.mean(0)",
    "scale",
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    base = snapshot.experiment.baseline
    if base is None or not math.isfinite(base.loss) or not math.isfinite(base.constant):
        return
    if training(snapshot):
        yield from _trained(base, thresholds)
    else:
        yield from _new(snapshot, base, thresholds)


def _size_read(snapshot: Snapshot) -> float:
    """The rms of what the first layers read, at least 1: a sound init passes that size on.

    Whether it is too large is for input-scale to say.
    """
    layers = [layer for _, readers in entrances(snapshot).values() for layer in readers]
    sizes = [found.rms for layer in layers if (found := reading(layer)) is not None]
    return max(1.0, *(size for size in sizes if math.isfinite(size)), 1.0)


def _new(snapshot: Snapshot, base: Baseline, thresholds: Thresholds) -> Iterator[Finding]:
    evidence = {"loss": base.loss, "constant": base.constant, "zero": base.zero}
    best = f"The best constant output has a loss of {number(base.constant)}"
    guess = max(base.constant, base.zero)
    if guess > 0 and base.loss > max(base.large, thresholds.worse * guess):
        far = base.loss > max(base.huge * _size_read(snapshot), thresholds.worse * guess)
        size = Baseline.HUGE if far else Baseline.LARGE
        yield RULE.finding(
            "(loss)",
            f"The loss of this new network is {number(base.loss)}. {best}, and random outputs of "
            f"size {number(size)} have {number(base.huge if far else base.large)}.",
            summary=f"The first steps will only correct the scale: the loss starts at "
            f"{number(base.loss)}, and a constant output has {number(base.constant)}.",
            severity="warning" if far else "note",
            evidence=evidence | {"large": base.large, "huge": base.huge},
        )
    elif (
        base.constant > 0
        and base.loss < thresholds.too_low * base.constant
        and _has_answers(snapshot)
    ):
        yield RULE.finding(
            "(loss)",
            f"The loss is {number(base.loss)}, though the network looks new. {best}. Either the "
            "input holds the answers, or the loss does not measure them.",
            summary=f"The loss starts at {number(base.loss)}, below the {number(base.constant)} "
            "of the best constant output.",
            severity="note",
            against=("too_low", thresholds),
            evidence=evidence | {"too_low": base.loss / base.constant},
            fixes=(advice("Check that the input does not hold the target."),),
        )
    elif 0 < base.constant * thresholds.uneven < min(base.zero, base.loss):
        yield RULE.finding(
            "(loss)",
            f"The loss starts at {number(base.loss)}. {best}, so most of it is a constant that "
            "the last bias has to learn.",
            summary=f"The first steps will only learn a constant: it alone brings the loss from "
            f"{number(base.loss)} to {number(base.constant)}.",
            severity="note",
            against=("uneven", thresholds),
            evidence=evidence | {"uneven": base.loss / base.constant},
            fixes=(_BIAS,),
        )


def _has_answers(snapshot: Snapshot) -> bool:
    """Whether the loss compares with a target, and not the outputs with one another."""
    calls = snapshot.experiment.calls
    return any(loss_calls.target_of(call) is not None for call in calls)


def _trained(base: Baseline, thresholds: Thresholds) -> Iterator[Finding]:
    if base.constant < 0 or base.loss < base.constant * (1 + 1e-6):
        return
    worse = base.loss / max(base.constant, base.zero, 1e-12)
    far = worse > thresholds.worse
    told = "The network looks trained, but does not know the answers on this batch"
    if far:
        told = "What the network learned does not help on this batch"
    yield RULE.finding(
        "(loss)",
        f"The network looks trained, but its loss is {number(base.loss)} on this batch. The best "
        f"constant output has a loss of {number(base.constant)}.",
        summary=f"{told}: its loss is {number(base.loss)}, and a constant output has "
        f"{number(base.constant)}.",
        severity="warning" if far else "note",
        against=("worse", thresholds),
        evidence={
            "loss": base.loss,
            "constant": base.constant,
            "zero": base.zero,
            "worse": worse,
        },
        fixes=(
            advice("Check that the data are prepared as they were for training."),
            advice("Train it again, at a lower learning rate.", changes="weights"),
        ),
    )
