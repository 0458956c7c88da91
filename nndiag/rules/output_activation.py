"""An activation at the output that the loss does not expect.

What it does
------------

Follows the network's output into the loss. Cross-entropy and binary cross-entropy on logits apply
their own softmax or sigmoid. A softmax, sigmoid or tanh before them bounds the logits, and the rule
says how low the loss can still get. It covers torch's losses and losses written by hand.

A ReLU before them removes all negative logits. A logarithm of a softmax is a note: log_softmax
computes the same, and is safe from log(0).

Why it matters
--------------

Softmax outputs lie between 0 and 1. Taken as logits of C classes, even the best of them have a loss
of ln(1 + (C - 1)/e): 1.46 for ten classes, where a guess has 2.30. The gradient becomes small long
before the answers are right.

When it is no fault
-------------------

- log_softmax before cross_entropy: a second one changes nothing.
- log_softmax before nll_loss, and probabilities before a loss on probabilities.
- Bounds that are wide enough: logits cut at ±20, or a tanh times 10.
- Probabilities of chosen actions or classes, picked before the logarithm, as in policy gradients.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10), nn.Softmax(1))
    batch = torch.randn(256, 8), torch.arange(256) % 10
    loss_fn = nn.CrossEntropyLoss()

Well::

    model = model[:3]
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import loss_calls, ops
from nndiag.experiment import LossCall, Made, Operand
from nndiag.fixes.fix import advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND701",
    name="output-activation",
    severity="error",
    about="loss",
    needs=("loss",),
    thresholds={
        "loss_left": Threshold(
            0.1,
            "derived: logits within ±2.2 leave two classes a tenth of the loss of a guess, and "
            "within 0..1 (softmax, sigmoid) 45 %",
            0,
            1,
            "share",
        ),
    },
    fixes=(advice("Give the loss the outputs of the last weight layer."),),
)

_BINARY = ("binary_cross_entropy_with_logits", "multilabel_soft_margin_loss")
_SQUASHED = frozenset(("softmax", "gumbel_softmax", "softmin", "sigmoid", "hardsigmoid"))
_STABLE = advice(
    "Compute log_softmax in one call.",
    "A softmax that rounds to zero has the logarithm -inf.",
    "torch.nn.functional.log_softmax(x, dim=1)",
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    told: set[str] = set()
    for call in snapshot.experiment.calls:
        found = _judged(snapshot, call, thresholds)
        if found is not None and found.layer not in told:
            told.add(found.layer)
            yield found


def _judged(snapshot: Snapshot, call: LossCall, thresholds: Thresholds) -> Finding | None:
    operand = loss_calls.output_of(call)
    if operand is None or not operand.size:
        return None
    made = operand.made
    if made is None:
        return _by_values(snapshot, call, operand)
    if "gather" in made.after or made.over in ("one", "samples"):
        return None
    if call.op == "log" or ops.named(call.op).loss is not None:
        cut = _cut_to_probabilities(snapshot, call, made)
        if cut is not None:
            return cut
    if call.op in ("log", "nll_loss", "cross_entropy"):
        unsafe = _log_of_softmax(snapshot, call, operand, made)
        if unsafe is not None:
            return unsafe
    if call.op == "cross_entropy":
        count = loss_calls.classes(call)
        return _bounded(snapshot, call, made, thresholds, count, None)
    if call.op in _BINARY:
        return _bounded(snapshot, call, made, thresholds, 2, _positive(call))
    return _by_hand(snapshot, call, operand, made, thresholds)


def _positive(call: LossCall) -> float:
    """The share of positive targets."""
    target = loss_calls.target_of(call)
    values = None if target is None else target.values
    return 0.5 if values is None or not 0 <= values.mean <= 1 else values.mean


def _by_hand(
    snapshot: Snapshot, call: LossCall, operand: Operand, made: Made, thresholds: Thresholds
) -> Finding | None:
    """A softmax or sigmoid of what had one."""
    negated = made.after == ("neg",)
    softmax = call.op in ("softmax", "log_softmax", "logsumexp") or (
        call.op == "exp" and not negated and len(operand.shape) > 1
    )
    binary = call.op in ("sigmoid", "logsigmoid", "softplus") or (call.op == "exp" and negated)
    if not softmax and not binary:
        return None
    if not loss_calls.in_loss(call):
        layer = snapshot.by_name.get(call.name)
        if layer is None or layer.node not in snapshot.outputs or made.op not in _SQUASHED:
            return None
    elif [op for op in made.after if op != "neg"]:
        return None  # sharpened, or on a scale of its own
    elif made.op not in _SQUASHED and not (operand.direct and softmax and call.op != "exp"):
        return None
    if made.op == "log_softmax":
        return None
    count = int(call.options.get("length", operand.shape[-1])) if softmax else 2
    return _bounded(snapshot, call, made, thresholds, count, None if softmax else 0.5)


def _bounded(
    snapshot: Snapshot,
    call: LossCall,
    made: Made,
    thresholds: Thresholds,
    count: int,
    positive: float | None,
) -> Finding | None:
    """Logits that cannot be far enough apart, or cannot be negative."""
    if count < 2 or made.op == "log_softmax":
        return None
    if positive is None:
        least, guess = loss_calls.lowest_cross_entropy(made, count), math.log(count)
    else:
        least, guess = loss_calls.lowest_binary(made, positive), _guess(positive)
    where, name = loss_calls.place(snapshot, call, made), loss_calls.label(call)
    twice = made.op in _SQUASHED and not made.after
    fixes = (loss_calls.removal(snapshot, made, f"{name} applies its own."), *RULE.fixes)
    if not twice:
        fixes = (loss_calls.removal(snapshot, made, "Logits may be any number."), *RULE.fixes)
    if guess > 0 and least / guess >= thresholds.loss_left:
        bounds = f"between {number(made.low)} and {number(made.high)}"
        if made.high == math.inf:
            bounds = f"never below {number(made.low)}"
        own = ", which applies its own" if twice else ""
        reads = f"{made.op} comes before {name}{own}."
        return RULE.finding(
            where,
            f"{reads[:1].upper()}{reads[1:]} The logits are {bounds}, so the loss cannot fall "
            f"below {number(least)}; a guess without the input has {number(guess)}.",
            summary=f"The loss cannot fall below {number(least)}: {reads}",
            against=("loss_left", thresholds),
            evidence={
                "loss_left": least / guess,
                "lowest_loss": least,
                "loss_of_a_guess": guess,
                "classes": count,
            },
            location=call.location,
            fixes=fixes,
        )
    if ops.named(made.op).zero_below and made.low == 0 and not made.after:
        return RULE.finding(
            where,
            f"{made.op} comes before {name}: no logit can be negative, and a class whose logit "
            "is zero gets no gradient.",
            summary=f"Classes will get no gradient where {made.op} is zero: it comes before "
            f"{name}, which takes any number.",
            severity="warning",
            location=call.location,
            fixes=fixes,
        )
    return None


def _guess(positive: float) -> float:
    return -sum(p * math.log(p) for p in (positive, 1 - positive) if p > 0) or math.log(2)


def _cut_to_probabilities(snapshot: Snapshot, call: LossCall, made: Made) -> Finding | None:
    """Values that were cut to 0..1 to pass as probabilities."""
    if made.op == "clamp" and call.op == "log" and 0 <= made.low <= made.high <= 1:
        return _cut_scores(snapshot, call, made)
    wide = ops.named(made.op).range
    if wide is None or "clamp" not in made.after or 0 <= wide[0] <= wide[1] <= 1:
        return None
    log = call.op == "log" and made.low >= 0 and made.high <= 1
    if not log and call.op != "binary_cross_entropy":
        return None
    return RULE.finding(
        loss_calls.place(snapshot, call, made),
        f"The outputs of {made.op} are cut to 0..1 and taken for probabilities. Where they are "
        "cut, the loss has no gradient.",
        summary=f"Outputs beyond 0..1 will not learn: the outputs of {made.op} are not "
        "probabilities, and the loss cuts them off.",
        location=call.location,
        fixes=(
            loss_calls.removal(snapshot, made, "A sigmoid lies between 0 and 1.", "Sigmoid"),
            *RULE.fixes,
        ),
    )


_MANY = 0.05  # of the values: fewer may be rounding of what was normalised by hand


def _cut_scores(snapshot: Snapshot, call: LossCall, made: Made) -> Finding | None:
    """Scores of a weight layer that the loss cuts to 0..1."""
    cut = next((c for c in snapshot.experiment.calls if c.name == made.layer), None)
    share = 0.0 if cut is None else cut.facts.get("no_probability", 0.0)
    if cut is None or share < _MANY:
        return None
    return RULE.finding(
        cut.name,
        f"The loss takes the logarithm of the outputs as if they were probabilities, but "
        f"{number(share, 'share')} of them lie outside 0..1. They are cut off there, and the loss "
        "has no gradient.",
        summary=f"{number(share, 'share')} of the outputs will not learn: the loss takes them for "
        "probabilities and cuts them off.",
        evidence={"no_probability": share},
        location=call.location,
        fixes=(
            advice(
                "Add a softmax at the output, or for one unit a sigmoid.",
                "",
                "torch.softmax(output, dim=1)",
                "architecture",
            ),
        ),
    )


def _log_of_softmax(
    snapshot: Snapshot, call: LossCall, operand: Operand, made: Made
) -> Finding | None:
    if made.op not in ("softmax", "softmin"):
        return None
    after = made.after if call.op == "log" else made.after[:-1]
    logged = call.op == "log" or made.after[-1:] == ("log",)
    rows = len(operand.shape) > 1 and operand.shape[1] > 1
    if not logged or after or not rows:
        return None
    return RULE.finding(
        loss_calls.place(snapshot, call, made),
        "The loss takes the logarithm of a softmax. Where that rounds to zero, the loss is "
        "infinite and its gradient NaN.",
        summary="The loss will be infinite where the softmax rounds to zero: it takes its "
        "logarithm.",
        severity="note",
        location=call.location,
        fixes=(_STABLE,),
    )


def _by_values(snapshot: Snapshot, call: LossCall, operand: Operand) -> Finding | None:
    """Rows that are probabilities, from a part of the model that is not seen into."""
    values = operand.values
    if call.op != "cross_entropy" or values is None or loss_calls.classes(call) < 2:
        return None
    if values.nonfinite or values.summing < 1 or math.isnan(values.summing) or values.whole:
        return None
    count = loss_calls.classes(call)
    least = loss_calls.lowest_cross_entropy(Made("softmax", "", 0.0, 1.0), count)
    layers = [snapshot.layer_at(node) for node in call.nodes]
    where = next((layer for layer in layers if layer is not None), None)
    return RULE.finding(
        call.name if where is None else where,
        f"Every row that cross_entropy gets is at least zero and sums to one: probabilities, not "
        f"logits. The loss cannot fall below {number(least)}; a guess without the input has "
        f"{number(math.log(count))}.",
        summary=f"The loss cannot fall below {number(least)}: cross_entropy gets probabilities, "
        "and applies its own softmax.",
        evidence={
            "lowest_loss": least,
            "loss_of_a_guess": math.log(count),
            "classes": count,
        },
        location=call.location,
    )
