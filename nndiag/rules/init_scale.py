"""Weights whose scale does not fit their fan-in and activation: signals fade or blow up.

What it does
------------

Compares the standard deviation of each layer's weights with the one that fits its fan-in and its
activation: Xavier's for tanh, He's for ReLU.

Each layer is predicted from its own measured input, zero padding included. Both the weights and
their measured effect must be off, in the same direction. What a bias adds is taken out. What chance
alone does in a narrow network is allowed for.

The severity follows the accumulated factor at the worst layer of a chain. Up to 16 it is a note,
beyond 16 a warning, beyond 1000 an error. So torch's default nn.Linear init with ReLU (2.4 times
too small) is a note up to four hidden layers. Layers that saturate because of the size of their
weights, not because of their biases, are a warning.

Why it matters
--------------

For inputs of second moment q, weights of standard deviation σ and fan-in n, pre-activations have
variance n σ² q. Xavier (σ = 1/√n) keeps the scale of a tanh network. He (σ = √(2/n)) makes up for
the half that a ReLU drops.

A factor in one layer becomes a power of it over many layers. The lecture's 0.01·N(0, 1) loses a
factor 4.5 in each of ten layers.

When it is no fault
-------------------

Unusual weights through which signals pass well, as in trained networks, are a note at most.

The scale does not accumulate where a normalisation follows, or where the signal also passes beside
the layers, as in a residual sum or a gate: a note at most. The scale of an output layer is a
choice.

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

References: Glorot & Bengio 2010, eq. 5-12; He et al. 2015, section 2.2; Hanin & Nica 2020; CS231n
2017 lecture 6 slides 44-50.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nndiag import activations, flow, graph, ops, theory
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix, advice
from nndiag.numbers import number
from nndiag.rule import SEVERITIES, Finding, Rule, Severity, Threshold, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["ALIKE", "LARGEST", "RULE", "Z", "check"]

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
            unit="factor",
        ),
        "accumulated": Threshold(
            16,
            "derived: between torch's default init with ReLU over four hidden layers, off by 2.45³ "
            "= 14.7, which trains, and Xavier with ReLU over ten, off by 1.41⁹ = 22.6",
            1,
            unit="factor",
        ),
        "stall": Threshold(
            1000,
            "cited: He et al. 2015, section 2.2: off by 2^11 over 22 layers still converges with "
            "care, 2^15 over 30 does not; CS231n 2017 lecture 6 slide 45",
            1,
            unit="factor",
        ),
        "saturated": Threshold(0.75, "derived: the threshold of saturation", 0, 1, "share"),
    },
    caused_by=(
        "training-damage",
        "input-scale",
        "symmetry",
    ),
    fixes=(
        advice(
            "Re-initialise the weights: He before ReLU, Xavier before tanh.",
            "Then pre-activations keep their scale from layer to layer.",
            'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
            "weights",
        ),
        advice(
            "Add a normalisation layer before the activation.",
            "Then the scale of the weights has no effect.",
            changes="architecture",
        ),
    ),
)


Z = 3.29  # two-sided 99.9 % of a normal distribution
ALIKE = 0.67  # of the worst layer's ln: layers that are as far off as it is
LARGEST = 700.0  # e to this power is still a number


@dataclass(frozen=True)
class _Step:
    link: flow.Link
    act: theory.Activation
    off: float  # ln of how far off, where weights and what they do agree on the direction; else 0
    counts: float  # the part of it that weighs: all, but for an output layer
    values: int
    weight_std: float
    reference_std: float
    slope: float
    saturated: float  # share of the activation's values
    saturated_by_weights: float  # what the weights would make it without the biases
    saturated_anyway: float  # what it would be with the reference weights

    @property
    def saturating(self) -> bool:
        return self.act.family == "saturating"


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    notes: list[Finding] = []
    for chain in flow.chains(snapshot):
        finding = None if chain.repeated else _judge(snapshot, chain, thresholds)
        if finding is not None and finding.severity == "note":
            notes.append(finding)
        elif finding is not None:
            yield finding
    if notes:
        worst = max(notes, key=lambda f: f.evidence["times"])
        more = flow.plural(len(notes) - 1, "more place")
        others = f" The same holds for {more}." if notes[1:] else ""
        yield replace(worst, message=worst.message + others)


def _steps(snapshot: Snapshot, chain: flow.Chain) -> list[_Step]:
    steps: list[_Step] = []
    # What has no activation is judged where another layer follows; the last one is an output.
    for link in (*chain.links[:-1], *(x for x in chain.links[-1:] if x.activation is not None)):
        step = _step(snapshot, link, first=not steps)
        if step is None:
            break
        steps.append(step)
    if steps and not flow.leads_on(snapshot, steps[-1].link.layer):
        # How large a head starts is a choice. It looks like one more hidden layer if it ends in
        # a ReLU and is off as those are.
        hidden = [abs(s.off) for s in steps[:-1] if not steps[-1].saturating]
        most = max(hidden, default=0.0)
        steps[-1] = replace(steps[-1], counts=max(-most, min(most, steps[-1].off)))
    return steps


def _step(snapshot: Snapshot, link: flow.Link, first: bool) -> _Step | None:
    layer, activation, weight = link.layer, link.activation, link.layer.weight
    act = activations.named("identity") if activation is None else flow.act_of(activation)
    parameter = snapshot.parameter.get(weight.name) if weight is not None else None
    if act is None or weight is None or parameter is None:
        return None
    if layer.input is None or layer.output.nonfinite or not layer.output.count:
        return None
    arriving = layer.input.second_moment * weight.coverage
    reference = act.gain / math.sqrt(weight.fan_in)
    made = _made_by_weights(snapshot, layer)
    if not all(0 < size < math.inf for size in (arriving, parameter.value.rms, made)):
        return None  # symmetry reports weights of zero, signal-collapse inputs of zero
    logs = [
        math.log(parameter.value.rms / reference),
        math.log(made / (act.gain * math.sqrt(arriving))),
    ]
    if first:
        # Small weights after large inputs are sound: what counts is what comes out.
        logs.append(math.log(made / act.gain))
    agree = all(x > 0 for x in logs) or all(x < 0 for x in logs)
    off = min(logs, key=abs) if agree else 0.0
    z, slope = activation.input if activation is not None else None, 1.0
    if z is not None:
        slope = math.sqrt(max(theory.moments(act, z.std, z.mean).slope_second, 0.0))
    return _Step(
        link,
        act,
        off,
        off,
        parameter.value.count,
        parameter.value.rms,
        reference,
        slope,
        activation.flat.share if activation is not None and activation.flat is not None else 0.0,
        theory.moments(act, made).flat_share,
        theory.moments(act, act.gain * math.sqrt(arriving)).flat_share,
    )


def _made_by_weights(snapshot: Snapshot, layer: Layer) -> float:
    """Standard deviation of the output without what its biases add.

    At least what varies within units: a bias is the same on all samples.
    """
    assert layer.weight is not None
    bias = snapshot.parameter.get(layer.weight.bias or "")
    if bias is None:
        return layer.output.std
    units = layer.output.units
    within = float(units.variance.mean()) if units is not None else 0.0
    return math.sqrt(max(layer.output.variance - bias.value.variance, within, 0.0))


def _judge(snapshot: Snapshot, chain: flow.Chain, thresholds: Thresholds) -> Finding | None:
    steps = _steps(snapshot, chain)
    both = [_judge_direction(snapshot, chain, steps, sign, thresholds) for sign in (1, -1)]
    findings = [f for f in both if f is not None]
    # One large layer among small ones does not make up for them, nor the other way round.
    return max(
        findings, key=lambda f: (-SEVERITIES.index(f.severity), f.evidence["times"]), default=None
    )


def _judge_direction(
    snapshot: Snapshot, chain: flow.Chain, steps: list[_Step], sign: int, thresholds: Thresholds
) -> Finding | None:
    """Weights that are too large (``sign`` = 1) or too small (-1)."""
    worst = max((s.off * sign for s in steps), default=0.0)
    if worst <= 0:
        return None
    accumulated = _accumulated(steps, sign)
    if math.exp(worst) <= thresholds.times and accumulated <= thresholds.accumulated:
        return None
    off = [s for s in steps if s.off * sign > ALIKE * worst]
    saturated = max(
        s.saturated
        if s.saturating
        and s.counts == s.off
        and s.saturated_anyway < thresholds.saturated
        and s.saturated_by_weights > s.saturated / 2  # else biases do most of it
        else 0.0
        for s in off
    )
    severity: Severity = "note"
    measure = "times"
    beside = chain.ends in ("add", "sub") or graph.bypassed(snapshot, chain.links[0].layer)
    if chain.ends not in ops.NORMS and not beside:
        if _beyond_chance(accumulated, thresholds.stall, steps):
            severity, measure = "error", "accumulated"
        elif _beyond_chance(accumulated, thresholds.accumulated, steps):
            severity, measure = "warning", "accumulated"
        elif sign > 0 and saturated >= thresholds.saturated:
            severity, measure = "warning", "saturated"
    first = off[0]
    too_saturated = saturated if measure == "saturated" else 0.0
    slopes = sum(abs(math.log(max(s.slope, 1e-30))) for s in steps)
    by_slope = sign < 0 and slopes > sum(abs(s.off) for s in steps)
    return RULE.finding(
        first.link.layer,
        _message(off, steps, sign, accumulated, too_saturated),
        summary=_summary(off, sign, severity, too_saturated),
        severity=severity,
        against=(measure, thresholds),
        fixes=(*_fixes(snapshot, off, chain, sign * ALIKE * worst),),
        suspects=_suspects(by_slope, sign),
        evidence={
            "times": math.exp(abs(first.off)),
            "weight_std": first.weight_std,
            "reference_std": first.reference_std,
            "accumulated": accumulated,
            "saturated": saturated,
            "layers": len(off),
        },
    )


def _message(
    off: list[_Step], steps: list[_Step], sign: int, accumulated: float, saturated: float
) -> str:
    """What was measured; ``saturated``: the share to name, 0 if another number decides."""
    first = off[0]
    weight = first.link.layer.weight
    assert weight is not None
    reference = theory.reference_name(first.act)
    what = first.act.name if first.link.activation is not None else "a layer without activation"
    message = (
        f"The weights {weight.name} are {_times(math.exp(abs(first.off)))} too "
        f"{'large' if sign > 0 else 'small'} for {what}: std {first.weight_std:#.3g}, "
        f"{reference} gives {first.reference_std:#.3g}."
    )
    if len(off) > 1:
        message += f" The same holds for {len(off) - 1} more of {len(steps)} layers."
    if saturated:
        message += f" {number(saturated, 'share')} of the activation's values saturate."
    elif sign > 0 and first.saturating and accumulated > 1:
        message += (
            " The inputs of the activations, or the gradients, are "
            f"{number(accumulated, 'factor')} too large."
        )
    elif len(steps) > 1 and accumulated > 1:
        grow = "gradients or signals grow" if sign > 0 else "the signal shrinks"
        message += f" Over this chain {grow} {number(accumulated)}-fold."
    return message


def _summary(off: list[_Step], sign: int, severity: Severity, saturated: float) -> str:
    first = off[0]
    times = _times(math.exp(abs(first.off)))
    weights = (
        f"the weights of {first.link.layer.name}"
        if len(off) == 1
        else f"the weights of {len(off)} layers"
    )
    verb = "may" if severity == "note" else "will"
    if saturated:
        harm = f"{number(saturated, 'share')} of the activation's values {verb} saturate"
    elif sign > 0:
        harm = f"Signals or gradients {verb} blow up"
    else:
        harm = f"The signal {verb} fade"
    return f"{harm}: {weights} are {times} too {'large' if sign > 0 else 'small'}."


def _accumulated(steps: list[_Step], sign: int) -> float:
    """The factor by which the chain is off at its worst layer.

    From the first pre-activation on: where a chain starts, its input's scale is given. A bounded
    activation does not pass a large scale on; there the gradient's factor accumulates.
    """
    large = sign > 0
    if large and steps[0].saturating:
        backward = sum(
            math.log(max(before.slope, 1e-30)) + math.log(after.weight_std / after.reference_std)
            for before, after in itertools.pairwise(steps)
        )
        return math.exp(min(max(backward, *(s.counts for s in steps), 0.0), LARGEST))
    total, reached = 0.0, max(sign * steps[0].counts, 0.0)
    for step in steps[1:]:
        total += sign * step.counts
        reached = max(reached, total)
    return math.exp(reached)


def _beyond_chance(accumulated: float, threshold: float, steps: list[_Step]) -> bool:
    """Whether a factor is over a threshold, and neither drawing the weights nor width explains it.

    The std of k random weights varies by 1/√(2k); the signal by the band of Hanin & Nica 2020, for
    convolutions with their channels for a width (measured: reports/calibration/conv-band.csv).
    """
    drawn = Z * math.sqrt(sum(1 / (2 * s.values) for s in steps))
    widths = [flow.width(s.link.layer) for s in steps[1:]]  # an input's width is not drawn
    low, high = theory.log_norm_band(widths, steps[0].act)
    return math.log(accumulated) > max(math.log(threshold) + drawn, high, -low)


def _suspects(by_slope: bool, sign: int) -> tuple[str, ...]:
    """The rules that may explain it: vanishing-gradient if slopes shrink more than weights do.

    Weights that are too large may also be explained by non-finite, where something overflowed.
    """
    if by_slope:
        return (*RULE.caused_by, "vanishing-gradient")
    return ("non-finite", *RULE.caused_by) if sign > 0 else RULE.caused_by


def _fixes(snapshot: Snapshot, off: list[_Step], chain: flow.Chain, least: float) -> Iterator[Fix]:
    layers = [step.link.layer for step in off]
    head = chain.links[-1]
    if head.activation is None and _weights_off(snapshot, head.layer) / least > 1:
        layers.append(head.layer)  # no fault by itself, but off as the others are
    yield from propose.redraw(snapshot, layers)
    yield from propose.rescale(snapshot, layers)
    yield from propose.lsuv(snapshot, [link.layer for link in chain.links])
    yield from propose.restart(snapshot)
    yield from propose.normalize(snapshot, [link.layer for link in chain.hidden])


def _weights_off(snapshot: Snapshot, layer: Layer) -> float:
    """ln of how far the weights of a layer without activation are off Xavier's."""
    weight = layer.weight
    parameter = snapshot.parameter.get(weight.name) if weight is not None else None
    if weight is None or parameter is None or not 0 < parameter.value.rms < math.inf:
        return 0.0
    return math.log(parameter.value.rms * math.sqrt(weight.fan_in))


def _times(ratio: float) -> str:
    return f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.3g}×"
