"""Units that are never active, so that no gradient reaches their weights.

Where a ReLU's output is zero its slope is zero too. A unit that is off on every sample passes no
gradient, its weights do not move, and it stays off: the layer is narrower than it was written
(CS231n 2017 lecture 6, slides 26-28). Causes are a learning rate that threw the unit off the data
and a large negative bias.

Never active in n samples proves little for small n: it bounds the unit's activity by 1 -
0.05^(1/n) at 95 % confidence. And healthy deep networks have such units from the start, because
the inputs of deep layers resemble each other: a ten-layer He network shows 9 % on a thousand
samples. So the count is held against what a random layer of this width would show whose inputs
are as alike as those measured here (mean pairwise cosine), at the 99.9 % binomial bound. It is
the unit that counts, over all samples and positions: half of a ReLU's values being zero is its
purpose. Leaky ReLU, ELU and GELU do not die. Layers that are sparse by design, such as routers,
are no fault.

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

from nndiag import flow, theory
from nndiag.rule import Finding, Limits, Prescription, Rule, Threshold, Unjudged
from nndiag.stats import Layer, Snapshot

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
        ),
        "confidence": Threshold(
            0.999, "derived: one false alarm in a thousand layers of a random network", 0.5, 1
        ),
        "samples": Threshold(
            59, "derived: 0.95^59 < 5 %, so a unit active on 5 % of inputs is spared", 1
        ),
    },
    caused_by=("non-finite", "symmetry", "init-scale"),
    cures=(
        Prescription(
            "Lower the learning rate, or warm it up, and start again from He weights and zero "
            "bias.",
            "A dead unit gets no gradient and does not come back by training on.",
            "nn.init.kaiming_normal_(layer.weight, nonlinearity='relu'); "
            "nn.init.zeros_(layer.bias)",
        ),
        Prescription(
            "Use an activation with a slope on both sides: LeakyReLU, ELU or GELU.",
            "A unit on the negative side keeps learning.",
        ),
    ),
)


def check(snapshot: Snapshot, limit: Limits) -> Iterator[Finding | Unjudged]:
    healthy: list[Finding] = []
    for layer in snapshot.layers:
        act = flow.act_of(layer)
        if act is None or act.family != "rectifier" or layer.flat is None:
            continue
        if layer.output.nonfinite:
            yield RULE.unjudged(layer, "its outputs are not finite")
        elif layer.flat.open is None:
            yield RULE.unjudged(layer, next(iter(layer.unseen), "its unit axis is not known"))
        elif layer.flat.samples < limit.samples:
            bound = theory.activity_bound(layer.flat.samples)
            yield RULE.unjudged(
                layer,
                f"{layer.flat.samples} samples are too few: never active on all of them would only "
                f"show an activity below {bound:.1%}; give {limit.samples:.0f} or more",
            )
        elif layer.flat.closed:
            found = _judge(snapshot, layer, limit)
            if found.evidence["dead_units"] <= found.evidence["healthy_bound"]:
                healthy.append(found)
            else:
                yield found
    if healthy:
        worst = max(healthy, key=lambda f: f.evidence["share"])
        more = f" ({len(healthy) - 1} more layers likewise)" if len(healthy) > 1 else ""
        yield replace(worst, message=worst.message + more)


def _judge(snapshot: Snapshot, layer: Layer, limit: Limits) -> Finding:
    flat = layer.flat
    assert flat is not None
    assert flat.open is not None
    units, dead, samples = len(flat.open), flat.closed, flat.samples
    cosine = _likeness(snapshot, layer)
    known = not math.isnan(cosine)
    healthy = (
        theory.never_active_bound(units, samples, cosine, limit.confidence) if known else units
    )
    share = dead / units
    on_only_path = flow.only_path(snapshot, layer.node)
    severity = "note"
    if dead == units and on_only_path:
        severity = "error"
    elif share > limit.share and (dead > healthy or dead == units):
        severity = "warning"
    message = (
        f"{dead:,} of {flow.plural(units, 'unit')} {'was' if dead == 1 else 'were'} never "
        "active on "
        f"{samples:,} samples (at 95 % confidence: active on less than "
        f"{theory.activity_bound(samples):.2g} of inputs)"
    )
    if known and healthy < units:
        message += f"; a random layer of this width has at most {healthy:,}"
    elif not known:
        message += "; how many a healthy layer would have is not known here"
    if severity == "error":
        message += "; nothing but its bias reaches the layers after it"
    return RULE.finding(
        layer,
        message,
        severity=severity,  # type: ignore[arg-type]
        against=("share", limit),
        evidence={
            "share": share,
            "dead_units": dead,
            "healthy_bound": healthy,
            "input_cosine": cosine,
        },
    )


def _likeness(snapshot: Snapshot, layer: Layer) -> float:
    """Mean pairwise cosine of the inputs of the weights before the activation.

    With a normalisation in between, units are centred on the batch and none is off on all of it by
    chance: 0.
    """
    source = flow.source_weight(snapshot, layer)
    if source is None:
        return 0.0 if flow.source_op(snapshot, layer) in flow.NORMS else math.nan
    if source.input is None or source.input.direction is None:
        return math.nan
    return source.input.direction.mean_cosine
