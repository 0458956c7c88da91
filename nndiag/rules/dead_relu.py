"""Units that are never active, so no gradient reaches their weights.

What it does
------------

Counts the units of a ReLU, or of another activation with a flat side, that are inactive on all
samples and positions. It is a warning if they are more than 40 % of a layer and more than chance
explains.

Chance is what a random layer of the same width would show, with biases no larger than nn.Linear's.
Behind a small linear layer, random units are drawn and given the very inputs of this batch: with
two features, a quarter of all healthy units is off on inputs that are never negative. Elsewhere the
share follows from how similar the inputs are to each other (mean pairwise cosine). The bound is the
binomial one at 99.9 %. Healthy deep networks have such units from the start, because the inputs
of deep layers resemble each other: a ten-layer He network shows 9 % on a thousand samples.

A unit that was never active in n samples is active on less than 1 - 0.05^(1/n) of all inputs, at
95 % confidence. For small n this proves little, so a layer is not judged on too few samples.

Why it matters
--------------

Where the output of a ReLU is zero, its slope is zero too. A unit that is off on every sample passes
no gradient. Its weights do not change, so it stays off. The layer is narrower than designed (CS231n
2017 lecture 6, slides 26-28).

Usual causes are a learning rate so large that an update moved the unit away from the data, and a
large negative bias.

When it is no fault
-------------------

Half of the values of a ReLU are zero by design. That is why whole units are counted, not values.
Leaky ReLU, ELU and GELU do not die. Layers that are sparse by design, such as routers, are no
fault.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    nn.init.constant_(model[0].bias[:40], -20.0)
    batch = torch.randn(256, 16)

Well::

    nn.init.zeros_(model[0].bias)

References: CS231n 2017 lecture 6 slides 26-28; Lu et al. 2019, "Dying ReLU and initialization".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from nndiag import flow, graph, ops, theory
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix, advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Severity, Threshold, Thresholds, Unjudged
from nndiag.stats import Layer, Snapshot

__all__ = ["RATE", "RULE", "check"]

RATE = advice(
    "Lower the learning rate, or warm it up.",
    "A step that is too large can switch a unit off for all data. It then gets no gradient and "
    "does not come back.",
)

RULE = Rule(
    code="ND103",
    name="dead-relu",
    severity="warning",
    about="activations",
    thresholds={
        "share": Threshold(
            0.40,
            'cited: CS231n course notes, neural-networks-1, "as much as 40 % of your network '
            "can be "
            'dead"; trained networks with 13 to 15 % of dead units still classify 99 % correctly',
            0,
            1,
            "share",
        ),
        "confidence": Threshold(
            0.999,
            "derived: one false alarm in a thousand random networks; shared out over a network's "
            "layers (Bonferroni)",
            0.5,
            1,
            "share",
        ),
        "samples": Threshold(
            59, "derived: 0.95^59 < 5 %, so a unit active on 5 % of inputs is spared", 1
        ),
    },
    caused_by=(
        "training-damage",
        "constant-feature",
        "input-missing",
        "input-scale",
        "input-outliers",
        "input-not-centered",
        "unreachable-target",
        "symmetry",
        "init-scale",
        "covariate-shift",
    ),
    fixes=(
        advice(
            "Re-initialise the weights (He), biases at zero, and lower the learning rate.",
            "A dead unit gets no gradient and does not come back by training on.",
            'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")\n'
            "nn.init.zeros_(layer.bias)",
            "weights",
        ),
        advice(
            "Replace ReLU by an activation with a slope on both sides: LeakyReLU, ELU or GELU.",
            "A unit on the negative side keeps learning.",
            changes="architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    healthy: list[Finding] = []
    constant = 0  # nodes, as bits, behind which nothing depends on the input any more
    rows = [layer for layer in snapshot.layers if _can_die(snapshot, layer)]
    confidence = 1 - (1 - thresholds.confidence) / max(len(rows), 1)
    for layer in rows:
        flat = layer.flat
        if layer.output.nonfinite:
            yield RULE.unjudged(layer, "its outputs are not finite")
        elif flat is None or flat.open is None:
            yield RULE.unjudged(
                layer, next(iter(layer.unseen), "which of its axes holds the units is not known")
            )
        elif not flat.closed:
            continue  # every unit was active once, which few samples show as well as many
        elif flat.samples < thresholds.samples:
            bound = theory.activity_bound(flat.samples)
            yield RULE.unjudged(
                layer,
                f"{flow.plural(flat.closed, 'unit was', 'units were')} never active, but with "
                f"{flow.plural(flat.samples, 'sample')} this only shows an activity below "
                f"{number(bound, 'share')}; give {thresholds.samples:.0f} samples or more",
            )
        else:
            finding = _judge(snapshot, layer, thresholds, confidence)
            if constant & graph.related(snapshot, 1 << layer.node):
                finding = replace(finding, suspects=(*finding.suspects, RULE.name))
            if finding.severity == "error":
                constant |= 1 << layer.node
            by_chance = finding.evidence["dead_units"] <= finding.evidence["healthy_bound"]
            if finding.severity == "note" and by_chance:
                healthy.append(finding)
            else:
                yield finding
    if healthy:
        worst = max(healthy, key=lambda f: f.evidence["share"])
        more = len(healthy) - 1
        others = f" The same holds for {flow.plural(more, 'more layer')}." if more else ""
        yield replace(worst, message=worst.message + others)


def _can_die(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether it has a flat side, and weights before it that can lose their gradient to it."""
    act = flow.act_of(layer)
    if act is None or act.family != "rectifier" or layer.flat is None:
        return False
    return flow.has_weights_before(snapshot, layer)


def _judge(snapshot: Snapshot, layer: Layer, thresholds: Thresholds, confidence: float) -> Finding:
    flat = layer.flat
    assert flat is not None
    assert flat.open is not None
    units, dead, samples = len(flat.open), flat.closed, flat.samples
    seen = flow.plural(samples, "sample")
    correlation = _input_correlation(snapshot, layer)
    drawn, off = (int(layer.facts.get(f"random_{n}_count", 0)) for n in ("units", "closed"))
    known = drawn > 0 or not math.isnan(correlation)
    if off:
        healthy = theory.count_bound(units, theory.probability_bound(off, drawn), confidence)
    else:  # too rare for the draw to show: the theory is good to the last digit
        pairwise = 1.0 if math.isnan(correlation) else correlation
        healthy = theory.never_active_bound(units, samples, pairwise, confidence)
    share = dead / units
    severity: Severity = "note"
    if dead == units and graph.only_path(snapshot, layer.node):
        severity = "error"
    elif share > thresholds.share and dead > healthy:
        severity = "warning"
    stuck = layer.output.units is not None and layer.output.units.mean[~flat.open].any()
    never = f"never where {layer.op} has a slope" if stuck else "never active"
    which = f"{dead:,} of {flow.plural(units, 'unit')}"
    they = "it is" if dead == 1 else "they are"
    message = (
        f"{which} {'was' if dead == 1 else 'were'} {never} on {seen}. At 95 % "
        f"confidence {they} active on less than {number(theory.activity_bound(samples), 'share')} "
        f"of inputs. A random layer of this width has at most {healthy:,} such units"
        + ("." if known else ", however similar its inputs are.")
    )
    bias, spread = _bias_against_spread(snapshot, layer)
    if bias < -2 * spread:
        message += f" The biases before it average {bias:.2g}; the values they shift have std "
        message += f"{spread:.2g}."
    summary = f"{which} of {layer.name} will not learn: never active on {seen}."
    if severity == "error":
        message += " The layers after it no longer depend on the input."
        summary = f"The output will not depend on the input: all units of {layer.name} are dead."
    elif severity == "note":
        summary = f"{which} of {layer.name} may not learn: never active on {seen}."
    return RULE.finding(
        layer,
        message,
        summary=summary,
        severity=severity,
        against=("share", thresholds),
        fixes=RULE.fixes if severity == "note" else (*_fixes(snapshot, layer), RATE),
        evidence={
            "share": share,
            "dead_units": dead,
            "healthy_bound": healthy,
            "input_correlation": correlation,
        },
    )


def _fixes(snapshot: Snapshot, layer: Layer) -> Iterator[Fix]:
    makers = flow.makers(snapshot, layer)
    weights = [row for row in makers if row.op in ops.LEARNED]
    bias, spread = _bias_against_spread(snapshot, layer)
    if bias < -spread:
        yield from propose.zero_biases(snapshot, weights)
    yield from propose.reset_norms(snapshot, makers)
    yield from propose.redraw(snapshot, weights, biases=True)
    yield from propose.restart(snapshot)
    yield from propose.swap(
        snapshot,
        [layer],
        ("LeakyReLU", 0.01),
        "F.leaky_relu(x, 0.01)",
        "A unit on the negative side keeps learning (CS231n 2017 lecture 6 slide 30).",
        "a slope of 0.01 where a unit is off: no unit can die",
    )


def _bias_against_spread(snapshot: Snapshot, layer: Layer) -> tuple[float, float]:
    """The mean bias of the weights before it, and how much their output varies within a unit."""
    source = flow.source_weight(snapshot, layer)
    bias = snapshot.parameter.get((source.weight.bias if source and source.weight else "") or "")
    if source is None or bias is None or source.output.units is None:
        return 0.0, 1.0
    return bias.value.mean, math.sqrt(float(source.output.units.variance.mean()))


def _input_correlation(snapshot: Snapshot, layer: Layer) -> float:
    """Correlation of a unit's pre-activations on two inputs, were its weights random; NaN: unknown.

    A normalisation over the batch centres each unit, so that none is off on all of it by chance;
    one over the units of a sample, or with running statistics, changes little.
    """
    node = snapshot.nodes[layer.node]
    while len(node.inputs) == 1:
        row = snapshot.layer_at(node.inputs[0])
        node = snapshot.nodes[node.inputs[0]]
        if row is not None and node.op in ops.WEIGHTED:
            return _of_random_weights(snapshot, row)
        if node.op == "instance_norm" or (row is not None and row.options.get("training")):
            return 0.0
        if node.op not in ops.TRANSPARENT | ops.NORMS:
            break
    return math.nan


def _of_random_weights(snapshot: Snapshot, layer: Layer) -> float:
    """Mean pairwise cosine of the inputs, and what biases no larger than nn.Linear's add to it."""
    weight, given = layer.weight, layer.input
    if weight is None or given is None or given.direction is None:
        return math.nan
    parameter = snapshot.parameter.get(weight.name)
    bias = snapshot.parameter.get(weight.bias or "")
    if parameter is None or bias is None:
        return given.direction.mean_cosine
    varying = weight.fan_in * parameter.value.second_moment * given.second_moment
    fixed = min(bias.value.second_moment, 1 / (3 * weight.fan_in))  # U(±1/√fan_in)
    return (varying * given.direction.mean_cosine + fixed) / max(varying + fixed, 1e-300)
