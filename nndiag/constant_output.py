"""What torch's losses are for outputs that do not look at the input, from the target alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

from nndiag.experiment import Baseline, LossCall, Values

__all__ = ["baseline_of", "softplus"]

_SPREAD = math.sqrt(2 / math.pi)  # mean size of a standard normal value


def baseline_of(call: LossCall, loss: float) -> Baseline | None:
    """The baseline of a loss that is this one call; None where no formula is known."""
    formula = _FORMULAS.get(call.op)
    if formula is None or len(call.operands) < 2 or not math.isfinite(call.value):
        return None
    target = call.operands[1].values
    if target is None or target.nonfinite or not target.count:
        return None
    found = formula(call, target)
    if found is None:
        return None
    constant, zero, at = found
    if call.options.get("reduction", 1.0) not in (0.0, 1.0):
        summed = _terms(call, target)
        constant, zero = constant * summed, zero * summed
        large, huge = at(Baseline.LARGE) * summed, at(Baseline.HUGE) * summed
    else:
        large, huge = at(Baseline.LARGE), at(Baseline.HUGE)
    return Baseline(loss, constant, zero, large, huge)


_Found = tuple[float, float, Callable[[float], float]]


def _terms(call: LossCall, target: Values) -> float:
    """How many terms a sum adds up."""
    if call.op in ("cross_entropy", "nll_loss"):
        output, classes = call.operands[0], _classes(call)
        if target.counts and target.shape != output.shape:
            return float(sum(n for c, n in target.counts.items() if 0 <= c < classes))
        return output.size / classes
    return float(target.count)


def _classes(call: LossCall) -> int:
    shape = call.operands[0].shape
    return shape[1] if len(shape) > 1 else shape[0] if shape else 1


def _cross_entropy(call: LossCall, target: Values) -> _Found | None:
    classes = _classes(call)
    if classes < 2 or call.options.get("weight") or call.options.get("label_smoothing"):
        return None
    if target.shape == call.operands[0].shape:  # probabilities
        shares = list(target.column_means)
        if len(shares) != classes or target.summing < 1:
            return None
    else:
        ignored = call.options.get("ignore_index", -100.0)
        counted = {c: n for c, n in target.counts.items() if c != ignored}
        total = sum(counted.values())
        if not total or min(counted) < 0:
            return None
        shares = [n / total for n in counted.values()]
    # Of C normal values the largest, by Blom's approximation.
    largest = NormalDist().inv_cdf((classes - 0.375) / (classes + 0.25))

    def at(scale: float) -> float:
        return math.log(classes) + max(0.0, scale * largest - 1)

    return _entropy(shares), math.log(classes), at


def _entropy(shares: list[float]) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


def _binary(call: LossCall, target: Values) -> _Found | None:
    if call.options.get("weight") or call.options.get("pos_weight"):
        return None
    if call.operands[0].shape != target.shape or target.min < 0 or target.max > 1:
        return None
    means = target.column_means or (target.mean,)
    constant = sum(_entropy([p, 1 - p]) for p in means) / len(means)
    return constant, math.log(2), lambda scale: math.log(2) + scale * _SPREAD / 2


def _squared(call: LossCall, target: Values) -> _Found | None:
    if call.operands[0].shape != target.shape or call.options.get("weight"):
        return None
    variances = target.column_variances or (target.std**2,)
    rms = target.rms**2
    return sum(variances) / len(variances), rms, lambda scale: rms + scale**2


def _absolute(call: LossCall, target: Values) -> _Found | None:
    if call.operands[0].shape != target.shape or call.options.get("weight"):
        return None
    if len(target.column_means) > 1 or math.isnan(target.deviation):
        return None
    size = target.size
    return target.deviation, size, lambda scale: size + scale * _SPREAD


_FORMULAS: Mapping[str, Callable[[LossCall, Values], _Found | None]] = {
    "cross_entropy": _cross_entropy,
    "nll_loss": _cross_entropy,
    "binary_cross_entropy": _binary,
    "binary_cross_entropy_with_logits": _binary,
    "mse_loss": _squared,
    "l1_loss": _absolute,
}


def softplus(x: float) -> float:
    """ln(1 + exp(x)), which is the logistic loss of a logit -x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
