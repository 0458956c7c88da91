"""A loss that does not fit these outputs or these targets.

What it does
------------

Compares each loss with what it is made for:

- nll_loss, kl_div and ctc_loss need log-probabilities: in each row, the exponentials sum to one.
- Binary cross-entropy, torch's or written by hand, needs targets between 0 and 1.
- cross_entropy takes one class a sample. It needs more than one unit, and at most one label.
- A cross-entropy or squared error is never negative. If it is, its sign is wrong, and it rewards
  wrong answers.

Squared or absolute error on class labels is a note.

Why it matters
--------------

Such a loss falls without end, or stops above the value that right answers have. Its curve looks
normal, but its lowest value does not belong to the right answers.

When it is no fault
-------------------

- Log-probabilities divided by a temperature, or weighted by a reward.
- One padding value in a loss without a reduction, which a mask leaves out.
- Losses that may be negative: densities, policy gradients.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10))
    batch = torch.randn(256, 8), torch.arange(256) % 10
    loss_fn = nn.NLLLoss()

Well::

    loss_fn = nn.CrossEntropyLoss()
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import loss_calls, ops
from nndiag.experiment import TARGET, Baseline, LossCall, Operand, Values
from nndiag.fixes.fix import Fix, advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND702",
    name="loss-mismatch",
    severity="error",
    about="loss",
    needs=("loss",),
    thresholds={
        "several": Threshold(
            0.02,
            "derived: below that, a second label may be a mistake in the data",
            0,
            1,
            "share",
        ),
        "opposite": Threshold(
            0.99,
            "derived: the cosine of a gradient and itself is 1, whatever its scale; a reward for "
            "each sample turns it",
        ),
    },
    caused_by=("non-finite", "degenerate-softmax"),
    fixes=(advice("Use the loss that fits these outputs and targets."),),
)

_LOGGED = advice(
    "Use cross_entropy, which applies log_softmax itself.",
    "nll_loss only picks the value of the right class and changes its sign.",
    "loss_fn = nn.CrossEntropyLoss()",
)
_BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    told: set[str] = set()
    for call in snapshot.experiment.calls:
        if not call.operands or call.op in told:
            continue
        found = next(_judged(snapshot, call, thresholds), None)
        if found is not None:
            told.add(call.op)
            yield found
    if not told:
        by_hand = list(_outside_by_hand(snapshot))
        yield from by_hand or _wrong_sign(snapshot, thresholds)


def _judged(snapshot: Snapshot, call: LossCall, thresholds: Thresholds) -> Iterator[Finding]:
    if call.op in ("nll_loss", "kl_div", "ctc_loss"):
        yield from _no_log_probabilities(snapshot, call)
    if call.op in _BINARY:
        yield from _outside(call)
    if call.op == "cross_entropy":
        yield from _one_unit(call)
        yield from _several_labels(call, thresholds)
    if call.op == "binary_cross_entropy":
        yield from _several_under_softmax(snapshot, call, thresholds)
    if call.op in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
        yield from _class_labels(call)


# -- outputs -----------------------------------------------------------------------------------


def _no_log_probabilities(snapshot: Snapshot, call: LossCall) -> Iterator[Finding]:
    output = call.operands[0]
    values, made = output.values, output.made
    if values is None or values.nonfinite or not output.sources or TARGET in output.sources:
        return
    plain = made is not None and made.op == "log_softmax" and not made.after
    if plain and output.direct and call.op == "nll_loss" and values.normalized < 0.5:
        yield _wrong_axis(snapshot, call)
        return
    if _has_logarithm(snapshot, call):
        return
    probabilities = made is not None and ops.named(made.op).makes == ops.PROBABILITIES
    if call.op == "nll_loss":
        share = 1 - values.normalized
        if math.isnan(share) or share <= 0 or loss_calls.classes(call) < 2:
            return
        what = f"In {number(share, 'share')} of the rows the exponentials do not sum to one"
        fixes: tuple[Fix, ...] = (_LOGGED,)
    elif values.max > 1e-3:
        share = 1.0
        what = f"The largest value is {number(values.max)}, and no logarithm of a probability is "
        what += "above zero"
        fixes = (advice("Apply log_softmax before the loss.", "",
                        "loss_fn(torch.log_softmax(output, dim=-1), target)"),)  # fmt: skip
    else:
        return
    gets = "probabilities" if probabilities else "scores"
    if probabilities and made is not None and call.op == "nll_loss":
        why = "The loss takes logarithms of probabilities."
        instead = "LogSoftmax" if made.op == "softmax" else "LogSigmoid"
        fixes = (loss_calls.removal(snapshot, made, why, instead), _LOGGED)
    yield RULE.finding(
        loss_calls.place(snapshot, call, made) if probabilities else call.name,
        f"The call of {call.op} needs log-probabilities, but gets {gets}. {what}.",
        summary=f"The loss will fall, but the answers will not improve: {call.op} gets {gets}, "
        "not log-probabilities.",
        evidence={"rows": share},
        location=call.location,
        fixes=fixes,
    )


def _wrong_axis(snapshot: Snapshot, call: LossCall) -> Finding:
    made = call.operands[0].made
    return RULE.finding(
        loss_calls.place(snapshot, call, made),
        "The log_softmax runs along another axis than the classes, which nll_loss reads from axis "
        "1: there the exponentials do not sum to one.",
        summary="The classes of a sample will not compete: the log_softmax runs along another "
        "axis than nll_loss reads.",
        evidence={"rows": 1 - call.operands[0].values.normalized if call.operands[0].values else 1},
        location=call.location,
        fixes=(advice("Run the log_softmax along axis 1.", "", "torch.log_softmax(x, dim=1)"),),
    )


def _has_logarithm(snapshot: Snapshot, call: LossCall) -> bool:
    """Whether a logarithm comes just before: log-probabilities on a scale, or with a weight."""
    made = call.operands[0].made
    known = ("log_softmax", "logsigmoid", "log")
    if made is not None and (made.op in known or "log" in made.after):
        return True
    if any(other.op in known for other in snapshot.experiment.calls if other is not call):
        return True
    return any(snapshot.nodes[n].op in (*known, "logsumexp") for n in call.nodes)


# -- targets -----------------------------------------------------------------------------------


def _outside(call: LossCall) -> Iterator[Finding]:
    target = loss_calls.target_of(call)
    values = None if target is None else target.values
    if values is None or not values.count or (values.min >= -1e-6 and values.max <= 1 + 1e-6):
        return
    masked = call.options.get("reduction") == 0 or call.options.get("weight")
    if masked and _one_marker(values):
        return
    yield _beyond(call.name, f"The call of {call.op}", call.op, call.location, values)


def _beyond(where: str, what: str, name: str, location: str | None, values: Values) -> Finding:
    fixes: tuple[Fix, ...] = RULE.fixes
    if values.whole and values.min >= 0:
        count = int(values.max) + 1
        fixes = (advice(f"For {count} classes, use {count} units and cross_entropy.", "",
                        "loss_fn = nn.CrossEntropyLoss()"),)  # fmt: skip
    elif values.whole and set(values.counts) == {-1, 1}:
        fixes = (advice("Turn -1 and 1 into 0 and 1.", "", "target = (target + 1) / 2"),)
    return RULE.finding(
        where,
        f"{what} needs targets from 0 to 1, but these lie between "
        f"{number(values.min)} and {number(values.max)}. Beyond 0 and 1 it falls without end.",
        summary=f"The loss will fall without end: {name} gets targets from "
        f"{number(values.min)} to {number(values.max)}.",
        evidence={"low": values.min, "high": values.max},
        location=location,
        fixes=fixes,
    )


_PADDING = 255.0


def _outside_by_hand(snapshot: Snapshot) -> Iterator[Finding]:
    """Targets outside 0..1 in a loss of log(p) and log(1 - p)."""
    if len(snapshot.experiment.targets) != 1:
        return
    [values] = snapshot.experiment.targets.values()
    marked = _one_marker(values) and (values.min < 0 or values.max == _PADDING)
    if not values.count or values.nonfinite or marked:
        return
    if values.min >= -1e-6 and values.max <= 1 + 1e-6:
        return
    logs = [
        (call, operand.made, operand.shape)
        for call in snapshot.experiment.calls
        if call.op == "log" and loss_calls.in_loss(call)
        and (operand := loss_calls.output_of(call)) is not None
        and operand.made is not None and 0 <= operand.made.low <= operand.made.high <= 1.001
        and math.prod(operand.shape) == values.count
    ]  # fmt: skip
    for call, made, shape in logs:
        rest = [m for _, m, s in logs if s == shape and m.layer == made.layer and "sub" in m.after]
        if "sub" in made.after or not rest:
            continue
        if _is_binary_at_zero(snapshot.experiment.baseline, values) or _is_input(snapshot, values):
            what = "A binary cross-entropy, written as log(p) and log(1 - p),"
            yield _beyond(call.name, what, "a binary cross-entropy", call.location, values)
        return


def _is_binary_at_zero(baseline: Baseline | None, values: Values) -> bool:
    """Whether p = 1/2 costs ln 2 a target, whatever these are: nothing else weights them."""
    if baseline is None or not baseline.tried or not math.isfinite(baseline.zero):
        return False
    columns = math.prod(values.shape[1:])
    sums = {1, columns, values.count, values.count // columns}
    return any(math.isclose(baseline.zero, k * math.log(2), rel_tol=1e-3) for k in sums)


def _is_input(snapshot: Snapshot, values: Values) -> bool:
    """Whether the target is what went in, as an autoencoder's is."""
    return any(
        stats.total == values.count
        and all(
            math.isclose(getattr(stats, name), getattr(values, name), rel_tol=1e-4, abs_tol=1e-6)
            for name in ("mean", "std", "min", "max")
        )
        for stats in snapshot.inputs.values()
    )


def _one_marker(values: Values) -> bool:
    """Whether a single value outside 0..1 stands for "no target"."""
    outside = [v for v in values.counts if not 0 <= v <= 1]
    return len(outside) == 1 and {0, 1} <= set(values.counts)


def _one_unit(call: LossCall) -> Iterator[Finding]:
    if loss_calls.classes(call) != 1 or not call.operands[0].shape:
        return
    shape = ", ".join(map(str, call.operands[0].shape))
    yield RULE.finding(
        call.name,
        f"The outputs have the shape ({shape}): one unit, so one class with probability 1. "
        "The loss does not depend on the output.",
        summary="Nothing will learn: cross_entropy over one unit is zero for every output.",
        evidence={"classes": 1},
        location=call.location,
        fixes=(
            advice(
                "For two classes, use binary_cross_entropy_with_logits.",
                "",
                "loss_fn = nn.BCEWithLogitsLoss()",
            ),
            advice("Give the last layer one unit for each class."),
        ),
    )


def _several_labels(call: LossCall, thresholds: Thresholds) -> Iterator[Finding]:
    target = loss_calls.target_of(call)
    values = None if target is None else target.values
    if values is None or values.shape != call.operands[0].shape:
        return
    if not _is_multi_label(values, thresholds):
        return
    yield RULE.finding(
        call.name,
        f"{number(values.several, 'share')} of the samples have several labels, but cross_entropy "
        "makes the probabilities of all classes sum to one.",
        summary="Several labels of a sample cannot all become likely: under cross_entropy their "
        "probabilities sum to one.",
        severity="warning",
        against=("several", thresholds),
        evidence={"several": values.several},
        location=call.location,
        fixes=(
            advice(
                "Treat each label separately, with binary_cross_entropy_with_logits.",
                "",
                "loss_fn = nn.BCEWithLogitsLoss()",
            ),
        ),
    )


def _is_multi_label(values: Values, thresholds: Thresholds) -> bool:
    """Whether rows of 0 and 1 hold more than one 1."""
    return values.whole and set(values.counts) == {0, 1} and values.several > thresholds.several


def _several_under_softmax(
    snapshot: Snapshot, call: LossCall, thresholds: Thresholds
) -> Iterator[Finding]:
    output, target = loss_calls.output_of(call), loss_calls.target_of(call)
    made = None if output is None else output.made
    values = None if target is None else target.values
    if made is None or made.op != "softmax" or made.over in ("one", "samples") or values is None:
        return
    if not _is_multi_label(values, thresholds):
        return
    why = "Each label has a probability of its own."
    yield RULE.finding(
        loss_calls.place(snapshot, call, made),
        f"{number(values.several, 'share')} of the samples have several labels, but the softmax "
        "makes their probabilities sum to one.",
        summary="Several labels of a sample cannot all become likely: their softmax sums to one.",
        severity="warning",
        against=("several", thresholds),
        evidence={"several": values.several},
        location=call.location,
        fixes=(loss_calls.removal(snapshot, made, why, "Sigmoid"),),
    )


def _class_labels(call: LossCall) -> Iterator[Finding]:
    output, target = loss_calls.output_of(call), loss_calls.target_of(call)
    values = None if target is None else target.values
    if output is None or values is None or not values.whole or not _are_classes(values, output):
        return
    yield RULE.finding(
        call.name,
        f"The targets are class labels, and {call.op} measures distances between numbers.",
        summary=f"Training may be slow: {call.op} on class labels has small gradients where the "
        "answer is wrong.",
        severity="note",
        evidence={"classes": values.distinct},
        location=call.location,
        fixes=(advice("Use cross_entropy, or for one unit binary_cross_entropy_with_logits."),),
    )


def _are_classes(values: Values, output: Operand) -> bool:
    """Classes from 0 on in one column, or one-hot rows."""
    columns = values.shape[1] if len(values.shape) > 1 else 1
    if len(values.shape) > 2 or len(values.counts) < 2:
        return False
    if columns > 1:
        return set(values.counts) == {0, 1} and values.summing == 1
    few = set(values.counts) == set(range(len(values.counts))) and len(values.counts) <= _MOST
    even = min(values.counts.values()) * 4 * len(values.counts) >= values.count
    return few and (even or len(values.counts) == 2 or "int" in values.dtype)


_MOST = 20


# -- the sign ----------------------------------------------------------------------------------


def _wrong_sign(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    experiment = snapshot.experiment
    baseline = experiment.baseline
    if baseline is None:
        return
    if baseline.constant == -math.inf and baseline.uphill > _DOWNHILL and not _logs(snapshot):
        yield _without_end(baseline)
        return
    if not baseline.loss < 0:
        return
    for call, _, _ in loss_calls.pairs(snapshot, *_NEVER_NEGATIVE):
        if call.value > 0 and math.isclose(baseline.loss, -call.value, rel_tol=1e-4):
            yield _rewards_errors(call.name, call.location, baseline, call.op)
            return
    if baseline.uphill <= -thresholds.opposite:
        yield _rewards_errors("(loss)", None, baseline, "cross-entropy")


_DOWNHILL = 0.5  # it does lead to the right answers
_LOGARITHMS = ("log", "log_softmax", "logsigmoid", "softplus", "logsumexp")


def _logs(snapshot: Snapshot) -> bool:
    """Whether a logarithm is part of the loss, or of what the network does last."""
    calls = snapshot.experiment.calls
    if any(call.op in _LOGARITHMS for call in calls):
        return True
    return any(snapshot.nodes[node].op in _LOGARITHMS for node in snapshot.outputs)


def _without_end(baseline: Baseline) -> Finding:
    return RULE.finding(
        "(loss)",
        f"The loss is {number(baseline.loss)} and has no lowest value: it falls for ever as the "
        "scores of the right classes grow. These scores are not log-probabilities.",
        summary="The loss will fall without end: it takes scores for log-probabilities.",
        evidence={"loss": baseline.loss},
        fixes=(_LOGGED,),
    )


_NEVER_NEGATIVE = ("cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits",
                   "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")  # fmt: skip


def _rewards_errors(where: str, location: str | None, baseline: Baseline, what: str) -> Finding:
    return RULE.finding(
        where,
        f"The loss is {number(baseline.loss)}, and a {what} cannot be negative. It falls as the "
        "right answers become less likely: its sign is wrong.",
        summary="Training will make the right answers less likely: the sign of the loss is wrong.",
        evidence={"loss": baseline.loss},
        location=location,
        fixes=(advice("Change the sign of the loss.", "", "loss = -loss"),),
    )
