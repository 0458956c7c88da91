"""Weights whose scale does not fit their fan-in and activation, so that signals fade or blow up.

For inputs of second moment q, weights of standard deviation σ and fan-in n, pre-activations have
variance n σ² q. Xavier (σ = 1/√n) keeps a tanh network's scale, He (σ = √(2/n)) makes up for the
half a ReLU drops. What is off by a factor in one layer is off by its power after many: the
lecture's 0.01·N(0, 1) loses a factor 4.5 in each of ten layers.

Each layer is predicted from its own measured input, zero padding included, and both the weights and
what they measurably do must be off, in the same direction: sound propagation with unusual weights,
as in trained networks, is at most a note. The severity follows the accumulated factor at the worst
layer of a chain: up to 16 a note, beyond it a warning, beyond 1000 an error. So torch's default
nn.Linear init with ReLU (2.4 times too small) is a note up to four hidden layers. Layers that
saturate for the size of their weights are a warning. In branches that end in a residual sum or a
normalisation the scale does not accumulate: a note at most.

Sick::

    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        layers += [nn.Linear(128, 128), nn.Tanh()]
        nn.init.normal_(layers[-2].weight, std=0.01)
        nn.init.zeros_(layers[-2].bias)
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    batch = torch.randn(256, 128)

Well::

    for layer in model[:-1:2]:
        nn.init.xavier_normal_(layer.weight)

References: Glorot & Bengio 2010, eq. 5-12; He et al. 2015, section 2.2; CS231n 2017 lecture 6
slides 44-50.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nndiag import flow, theory
from nndiag.rule import Finding, Limits, Prescription, Rule, Severity, Threshold
from nndiag.stats import Snapshot

RULE = Rule(
    code="ND301",
    name="init-scale",
    severity="warning",
    about="parameters",
    thresholds={
        "times": Threshold(
            1.5,
            "derived: Xavier in place of He is off by √2 = 1.41, torch's default nn.Linear by √3 = "
            "1.73 (tanh) and √6 = 2.45 (ReLU)",
            1,
        ),
        "accumulated": Threshold(
            16,
            "derived: torch's default init with ReLU loses 2.45³ = 14.7 over four hidden layers, "
            "which train, and Xavier with ReLU 1.41⁹ = 22.6 over ten",
            1,
        ),
        "stall": Threshold(
            1000,
            "cited: He et al. 2015, section 2.2: off by 2^11 over 22 layers still converges with "
            "care, 2^15 over 30 does not; CS231n 2017 lecture 6 slide 45",
            1,
        ),
        "saturated": Threshold(0.75, "derived: the threshold of saturation", 0, 1),
    },
    caused_by=("non-finite", "symmetry"),
)


@dataclass(frozen=True)
class _Step:
    link: flow.Link
    ratio: float  # how far off, in the direction in which weights and effect agree; 1: not off
    weight_std: float
    reference_std: float
    reference: str
    activation: str
    slope: float
    saturated: float
    saturating: bool


def check(snapshot: Snapshot, limit: Limits) -> Iterator[Finding]:
    notes: list[Finding] = []
    for chain in flow.chains(snapshot):
        if chain.repeated:
            continue
        steps = []
        for index, link in enumerate(chain.hidden):
            step = _step(snapshot, link, first=index == 0)
            if step is None:
                break
            steps.append(step)
        for found in _judge(chain, steps, limit) if steps else ():
            if found.severity == "note":
                notes.append(found)
            else:
                yield found
    if notes:
        worst = max(notes, key=lambda f: f.evidence["times"])
        more = f" ({len(notes) - 1} more places likewise)" if len(notes) > 1 else ""
        yield replace(worst, message=worst.message + more)


def _step(snapshot: Snapshot, link: flow.Link, first: bool) -> _Step | None:
    layer, activation = link.layer, link.activation
    act = flow.act_of(activation) if activation is not None else None
    weight = layer.weight
    parameter = snapshot.parameter.get(weight.name) if weight is not None else None
    if act is None or activation is None or weight is None or parameter is None:
        return None
    if layer.input is None or layer.output.nonfinite or not layer.output.count:
        return None
    arriving = layer.input.second_moment * weight.coverage
    reference = act.gain / math.sqrt(weight.fan_in)
    if not arriving > 0 or not parameter.value.rms > 0 or not layer.output.std > 0:
        return (
            None  # nothing arrives, or weights of zero: symmetry and signal-collapse speak of that
        )
    logs = [
        math.log(parameter.value.rms / reference),
        math.log(layer.output.std / (act.gain * math.sqrt(arriving))),
    ]
    if first:
        # Small weights after large inputs are sound: what counts is what comes out.
        logs.append(math.log(layer.output.std / act.gain))
    agree = all(x > 0 for x in logs) or all(x < 0 for x in logs)
    off = min(logs, key=abs) if agree else 0.0
    z = activation.input
    slope = 1.0
    if z is not None:
        slope = math.sqrt(max(theory.moments(act, z.std, z.mean).slope_second, 0.0))
    return _Step(
        link,
        math.exp(off),
        parameter.value.rms,
        reference,
        theory.reference_name(act),
        act.name,
        slope,
        activation.flat.share if activation.flat is not None else 0.0,
        act.family == "saturating",
    )


def _judge(chain: flow.Chain, steps: list[_Step], limit: Limits) -> Iterator[Finding]:
    logs = [math.log(s.ratio) for s in steps]
    worst = max(logs, key=abs)
    accumulated = _accumulated(steps, logs, worst > 0)
    if math.exp(abs(worst)) <= limit.times and accumulated <= limit.accumulated:
        return
    sign = 1 if worst > 0 else -1
    off = [s for s, x in zip(steps, logs, strict=True) if x * sign > 0.67 * abs(worst)]
    first = off[0]
    saturates = any(s.saturating and s.saturated >= limit.saturated for s in off) and sign > 0
    severity: Severity = "note"
    if chain.ends not in ("add", "sub") and chain.ends not in flow.NORMS:
        if accumulated > limit.stall:
            severity = "error"
        elif accumulated > limit.accumulated or saturates:
            severity = "warning"
    measure = "times" if severity == "note" else "accumulated"
    if severity != "note" and accumulated <= limit.accumulated:
        measure = "saturated"
    times = max(first.ratio, 1 / first.ratio)
    weight = first.link.layer.weight
    assert weight is not None
    message = (
        f"weights of {weight.name} are {_times(times)} too {'large' if sign > 0 else 'small'} for "
        f"{first.activation}: std {first.weight_std:.3g}, {first.reference} gives "
        f"{first.reference_std:.3g}"
    )
    if len(off) > 1:
        message += f"; so are {len(off) - 1} more of {len(steps)} layers"
    if measure == "saturated":
        message += f"; {max(s.saturated for s in off):.0%} of the activation's values saturate"
    elif len(steps) > 1:
        message += (
            f"; over this chain "
            f"{'gradients or signals grow' if sign > 0 else 'the signal shrinks'} "
            f"{accumulated:.3g} times"
        )
    slopes = sum(abs(math.log(max(s.slope, 1e-30))) for s in steps)
    by_slope = slopes > sum(abs(x) for x in logs) and sign < 0
    init = {"He": "kaiming_normal_", "Xavier": "xavier_normal_", "LeCun": "normal_"}[
        first.reference
    ]
    yield RULE.finding(
        first.link.layer,
        message,
        severity=severity,
        against=(measure, limit),
        cures=(
            Prescription(
                f"Start from {first.reference} weights: std {first.reference_std:.3g} for a "
                "fan-in of "
                f"{weight.fan_in}.",
                "Then pre-activations keep their scale from layer to layer.",
                f"nn.init.{init}({weight.name}"
                + (f", std={first.reference_std:.3g})" if init == "normal_" else ")"),
            ),
            Prescription(
                "Put a normalisation layer before the activation; it takes the scale out."
            ),
        ),
        suspects=("non-finite", "symmetry", "vanishing-gradient") if by_slope else RULE.caused_by,
        evidence={
            "times": times,
            "weight_std": first.weight_std,
            "reference_std": first.reference_std,
            "accumulated": accumulated,
            "saturated": max(s.saturated for s in off),
            "layers": len(off),
        },
    )


def _accumulated(steps: list[_Step], logs: list[float], large: bool) -> float:
    """The factor by which the chain is off at its worst layer.

    From the first pre-activation on: where a chain starts, its input's scale is given. A bounded
    activation does not pass a large scale on; there the gradient's factor accumulates.
    """
    first = abs(logs[0])
    if large and steps[0].saturating:
        backward = sum(
            math.log(max(before.slope * after.weight_std / after.reference_std, 1e-30))
            for before, after in itertools.pairwise(steps)
        )
        return math.exp(max(backward, *(abs(x) for x in logs)))
    total, reached = 0.0, first
    for x in logs[1:]:
        total += x
        reached = max(reached, total if large else -total)
    return math.exp(reached)


def _times(ratio: float) -> str:
    return f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.3g}×"
