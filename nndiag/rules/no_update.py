"""A step of the optimiser that does not change the weights.

What it does
------------

Makes one step of the optimiser on the gradients of this batch and counts the values that it
changes, among those whose gradient is not zero. The step is undone.

Why it matters
--------------

A weight that does not move does not learn, and no error says so. Three faults do this. The learning
rate is zero. The update is smaller than the gaps between the numbers of a half-precision format:
near 0.05 these are 0.00024 in bfloat16, so an update of 0.0001 is rounded away. Or the step itself
does nothing: one that is overridden, or that writes to a copy.

When it is no fault
-------------------

- A schedule that begins at a rate of zero: the highest rate that it has set in the optimiser
  counts.
- A rate of zero for some parameters freezes them: a note.
- A converged network has gradients too small to move its weights.
- Half-precision weights are right if the optimiser keeps its own copy in float32. Pass that
  optimiser with the parameters that it holds.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3)).to(torch.bfloat16)
    batch = torch.randn(128, 8, dtype=torch.bfloat16), torch.randint(0, 3, (128,))
    loss_fn = F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

Well::

    model, batch = model.float(), (batch[0].float(), batch[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag.experiment import Optimizer
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

_RATE = advice(
    "Give a learning rate above zero.",
    "",
    "optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)",
)
_WIDE = advice(
    "Keep the weights in float32, and compute in half precision under autocast.",
    "Then small updates add up.",
    'model.float()\nwith torch.autocast("cuda", dtype=torch.bfloat16):\n'
    "    loss = loss_fn(model(x), y)",
)
_STEP = advice(
    "Look at the optimiser's step: it runs, and leaves every parameter as it is.",
    "A subclass may override the step, or the step writes to copies of the parameters.",
)

RULE = Rule(
    code="ND802",
    name="no-update",
    severity="error",
    about="training",
    needs=("optimizer",),
    uses=("loss",),
    thresholds={
        "unmoved": Threshold(
            0.5,
            "derived: above it, more values stay than move",
            0,
            1,
            "share",
        ),
    },
    caused_by=("non-finite", "no-gradient", "vanishing-gradient"),
    fixes=(_RATE, _WIDE, _STEP),
)

_HALF = frozenset(("bfloat16", "float16"))


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    optimizer = snapshot.experiment.optimizer
    if optimizer is None:
        return
    groups = [group for group in optimizer.groups if group.held]
    still = [group for group in groups if group.peak_lr == 0]
    if still:
        held = sum(len(group.held) for group in still)
        whole = len(still) == len(groups)
        yield RULE.finding(
            "(optimizer)",
            f"The learning rate is 0 for {held} of {sum(len(g.held) for g in groups)} parameters.",
            summary="Nothing will learn: the learning rate is 0."
            if whole
            else f"{held} parameters will not learn: their learning rate is 0.",
            severity="error" if whole else "note",
            evidence={"parameters": held},
            fixes=(_RATE,),
        )
        if whole:
            return
    graded = sum(u.graded for u in optimizer.updates)
    if optimizer.stuck and graded and any(group.lr > 0 for group in groups):
        yield RULE.finding(
            "(optimizer)",
            f"A step of {optimizer.name} changes none of the values, though "
            f"{graded:,} of them have a gradient. A rate a million times as high changes none "
            "either.",
            summary="Nothing will learn: the optimiser's step changes no weight.",
            evidence={"graded": graded},
            fixes=(_STEP,),
        )
        return
    yield from _rounded_away(snapshot, optimizer, thresholds)


def _rounded_away(
    snapshot: Snapshot, optimizer: Optimizer, thresholds: Thresholds
) -> Iterator[Finding]:
    """Updates that half-precision weights are too coarse for."""
    moving = {name for group in optimizer.groups if group.lr > 0 for name in group.held}
    half = [
        u
        for u in optimizer.updates
        if u.name in moving and snapshot.parameter[u.name].dtype in _HALF
    ]
    graded, moved = sum(u.graded for u in half), sum(u.moved for u in half)
    if not graded:
        return
    unmoved = 1 - moved / graded
    if unmoved <= thresholds.unmoved:
        return
    dtype = snapshot.parameter[half[0].name].dtype
    yield RULE.finding(
        "(optimizer)",
        f"A step of {optimizer.name} leaves {number(unmoved, 'share')} of {graded:,} values in "
        f"{dtype} as they are: their update is rounded away.",
        summary=f"Most weights will not learn: {dtype} is too coarse for their updates.",
        severity="warning",
        evidence={"unmoved": unmoved, "graded": graded},
        against=("unmoved", thresholds),
        fixes=(_WIDE,),
    )
