"""Targets beyond what the last activation can give.

What it does
------------

Looks at losses that compare the output with a target: torch's mean squared, absolute and Huber
errors, and differences in a loss written by hand. It counts the targets outside the range of the
output's last activation, with any later scaling or shift taken into account.

Why it matters
--------------

A sigmoid gives 0 to 1, a tanh -1 to 1, a ReLU nothing below 0. Targets outside that range cannot be
reached. Training drives the outputs to the bound, where the activation has no slope. A ReLU at the
output becomes 0 on every sample, and then nothing learns.

When it is no fault
-------------------

- Targets on the bound: a sigmoid comes arbitrarily close to 0 and 1.
- One padding value (-1, -100) in a loss that can leave it out.
- A few targets just outside the range, as from measurement errors: a note.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
    x = torch.randn(256, 8)
    batch = x, 5 * x[:, :1]
    loss_fn = nn.MSELoss()

Well::

    model = model[:3]
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import loss_calls
from nndiag.experiment import LossCall, Made
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND703",
    name="unreachable-target",
    severity="error",
    about="loss",
    needs=("loss",),
    thresholds={
        "share": Threshold(
            0.05,
            "derived: 5 % of the targets are more than measurement errors; as much of a normal "
            "distribution lies beyond two standard deviations",
            0,
            1,
            "share",
        ),
        "few": Threshold(
            0.01, "derived: one target in a hundred may be an outlier of the data", 0, 1, "share"
        ),
    },
    caused_by=("unreachable-target",),
    fixes=(
        advice(
            "Scale the targets into the range of the output.",
            "Then the last activation may stay.",
            "target = (target - low) / (high - low)",
        ),
    ),
)

_PADDING = 255.0
_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "sub")


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    told: set[str] = set()
    for call in snapshot.experiment.calls:
        output = loss_calls.output_of(call)
        if call.op not in _LOSSES or not call.facts or output is None or output.made is None:
            continue
        made = output.made
        if made.layer in told or not call.facts["outside"] or _is_padding(call):
            continue
        if made.over == "one":
            continue  # a constant: degenerate-softmax says so
        told.add(made.layer)
        yield _finding(snapshot, call, made, thresholds)


def _is_padding(call: LossCall) -> bool:
    """Whether one value stands for "no target", in a loss that may leave it out."""
    facts = call.facts
    by_hand = call.op == "sub" or call.options.get("reduction") == 0
    value = facts["first_outside"]
    marker = value == int(value) and (value < 0 or value == _PADDING) if math.isfinite(value) else 0
    return bool(by_hand and marker and facts["outside_values"] < 2 <= facts["inside_values"])


def _finding(snapshot: Snapshot, call: LossCall, made: Made, thresholds: Thresholds) -> Finding:
    share = call.facts["outside"]
    left, what = call.facts["square_left"], "squared error"
    if call.op == "l1_loss":
        left, what = call.facts["absolute_left"], "absolute error"
    variance = call.facts["variance"]
    bounds = f"{number(made.low)} to {number(made.high)}"
    if made.high == math.inf:
        bounds = f"{number(made.low)} or more"
    elif made.low == -math.inf:
        bounds = f"{number(made.high)} or less"
    part = number(share, "share")
    severe = share >= thresholds.share or (left > 0 and left >= thresholds.share * variance)
    return RULE.finding(
        loss_calls.place(snapshot, call, made),
        f"{part} of the targets lie beyond what the {made.op} at the output can give ({bounds}). "
        f"Even the best outputs have a mean {what} of {number(left)}.",
        summary=f"{part} of the targets cannot be reached: the {made.op} at the output gives "
        f"{bounds}.",
        severity="error" if severe else "warning" if share >= thresholds.few else "note",
        against=("share", thresholds),
        evidence={
            "share": share,
            "lowest_loss": left,
            "low": made.low,
            "high": made.high,
        },
        location=call.location,
        fixes=(
            loss_calls.removal(snapshot, made, "A linear output gives any number."),
            *RULE.fixes,
        ),
    )
