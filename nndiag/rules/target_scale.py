"""Targets far larger than the outputs of a new network.

What it does
------------

Compares the root mean square of a regression's targets with that of the model's outputs. It covers
squared, absolute and Huber errors, from torch or written by hand. Only untrained networks are
judged.

Why it matters
--------------

An output layer starts with values near 1. To reach prices of 250,000, its weights have to grow a
hundred-thousand-fold. Adam at a rate of 0.001 moves each weight by about 0.001 a step. Under plain
gradient descent the gradients are too large by the same factor, and training diverges.

When it is no fault
-------------------

Class labels and targets of moderate size are not judged: a bias soon learns a mean of 20. Neither
is a model that scales its output to the targets' unit or ends in an exponential. For a bounded
output, unreachable-target judges the targets.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    x = torch.randn(256, 8)
    batch, loss_fn = (x, 250_000 + 80_000 * x[:, :1]), nn.MSELoss()

Well::

    batch = x, x[:, :1]

References: LeCun et al. 1998, "Efficient BackProp", section 4.5; Bishop 1995, section 8.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import ops
from nndiag.experiment import OUTPUT, TARGET, LossCall, Values
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Layer, Snapshot
from nndiag.trained import training

__all__ = ["ALIKE", "ERRORS", "RULE", "STANDARDISE", "check"]

ERRORS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
ALIKE = 1.5
"""A hand-written loss is an error of the targets if it is so near to their size or its square."""

STANDARDISE = "mean, std = y.mean(0), y.std(0)  # of the training set\ny = (y - mean) / std"

RULE = Rule(
    code="ND606",
    name="target-scale",
    severity="warning",
    about="input",
    needs=("outputs", "loss"),
    thresholds={
        "ratio": Threshold(
            100,
            "measured: reports/calibration/data-scale.csv, targets a hundred times larger than "
            "outputs of size 1 are learned worse",
            1,
            unit="factor",
        ),
        "rms": Threshold(
            100,
            "measured: reports/calibration/data-scale.csv, the rms of targets that networks still "
            "learn",
            0,
        ),
        "samples": Threshold(
            16, "derived: the rms of 16 numbers has a standard error of 18 % and less", 1
        ),
    },
    fixes=(
        Fix(
            "advice",
            "Standardise the targets, and multiply predictions back.",
            "The output layer starts with values near 1.",
            source=STANDARDISE,
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    if training(snapshot):
        return
    for name, target, output_rms, call in _pairs(snapshot):
        rms = target.rms
        if not (rms > thresholds.rms and output_rms > 0 and math.isfinite(output_rms)):
            continue
        if rms / output_rms <= thresholds.ratio:
            continue
        if snapshot.first_samples < thresholds.samples:
            yield RULE.unjudged(
                name, f"{snapshot.first_samples} samples; give {thresholds.samples:.0f} or more"
            )
            continue
        yield RULE.finding(
            name,
            f"The targets have an rms of {number(rms)} (mean {number(target.mean)}, standard "
            f"deviation {number(target.std)}). The outputs of this new network have an rms of "
            f"{output_rms:.3g}. The targets are {number(rms / output_rms, 'factor')} as large.",
            summary="Training will take very long or diverge: the targets are "
            f"{number(rms / output_rms, 'factor')} as large as the network's outputs.",
            against=("ratio", thresholds),
            location=None if call is None else call.location,
            fixes=(*RULE.fixes, *_scaled(snapshot, target)),
            evidence={"ratio": rms / output_rms, "target_rms": rms, "output_rms": output_rms},
        )
        return


def _pairs(snapshot: Snapshot) -> Iterator[tuple[str, Values, float, LossCall | None]]:
    """The targets that are compared with outputs: name, numbers, the output's rms, the call."""
    experiment = snapshot.experiment
    names = list(experiment.targets) or ["(loss)"]
    known = False
    for call in experiment.calls:
        if call.op not in _LOSSES or len(call.operands) < 2:
            continue
        known = True
        output, target = call.operands[:2]
        if OUTPUT not in output.sources or TARGET not in target.sources or OUTPUT in target.sources:
            continue
        if call.op not in ERRORS or output.values is None or target.values is None:
            continue
        made = output.made
        if made is not None and math.isfinite(made.high):
            continue
        if any(_grows(snapshot.nodes[n].op) for n in call.nodes if n < len(snapshot.nodes)):
            continue
        same = [n for n in names if experiment.targets.get(n) == target.values]
        yield (same or names)[0], target.values, output.values.rms, call
    if known or len(experiment.targets) != 1 or snapshot.loss.kind != "loss_fn":
        return
    [(name, target_values)] = experiment.targets.items()
    row = _output(snapshot)
    if row is None or not target_values.dtype.startswith(("float", "bfloat")):
        return
    if row.op not in ops.WEIGHTED or row.output.nonfinite or target_values.nonfinite:
        return
    if _is_an_error_of(snapshot.loss.value, target_values):
        yield name, target_values, row.output.rms, None


def _grows(op: str) -> bool:
    """Whether an operation may give large values of small ones: an exponential, an unknown one."""
    return op.startswith("?") or op in ("exp", "expm1", "exp2", "square", "pow")


_LOSSES = frozenset(op.name for op in ops.OPS.values() if op.loss is not None)


def _is_an_error_of(loss: float, target: Values) -> bool:
    """Whether a loss is as large as the mean square, half of it, or the mean size of targets."""
    square, size = target.rms**2, target.rms
    if not (math.isfinite(loss) and loss > 0 and math.isfinite(square)):
        return False
    wanted = [square, square / 2, size, abs(target.mean)]
    wanted += [each * target.count for each in wanted] + [each * target.shape[0] for each in wanted]
    return any(w > 0 and 1 / ALIKE < loss / w < ALIKE for w in wanted)


def _output(snapshot: Snapshot) -> Layer | None:
    if len(snapshot.outputs) != 1:
        return None
    return snapshot.layer_at(snapshot.outputs[0])


def _scaled(snapshot: Snapshot, target: Values) -> Iterator[Fix]:
    row = _output(snapshot)
    if row is not None and row.op in ops.WEIGHTED:
        yield from propose.scale_output(snapshot, row, target.mean, target.std or 1.0)
