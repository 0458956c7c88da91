"""Layers whose outputs hardly depend on the input any more.

What it does
------------

Measures how much the output of each unit varies across samples, and divides it by the standard
deviation over all units and samples pooled. The model's input is measured the same way: where the
inputs barely differ, the outputs need not differ either.

The pooled standard deviation alone does not show this. Units have different means, so it stays
large while the signal fades. A ten-layer sigmoid network with Xavier weights keeps a pooled
standard deviation of 0.12 in every layer. Across samples its last layer varies by 5e-7.

A layer is judged from 8 samples on, and only if everything passes through it. Elsewhere the signal
may pass beside it.

Why it matters
--------------

No layer behind such a layer can tell two inputs apart, whatever it learns.

When it is no fault
-------------------

A signal that a later layer still shows was not lost before it: in one layer a few units of large
bias can outweigh the others in the pooled spread. An output layer alone is not reported: it may be
a zero head, or have large biases. It is, if it reads a recurrent state that is the same for every
sample, as after many steps of padding.

Sick::

    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        layers += [nn.Linear(64, 64), nn.Sigmoid()]
        nn.init.xavier_normal_(layers[-2].weight)
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    batch = torch.randn(256, 64)

Well::

    model = nn.Sequential(*[nn.Tanh() if isinstance(m, nn.Sigmoid) else m for m in model])

References: Schoenholz et al. 2017, "Deep information propagation", section 3; Poole et al. 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from nndiag import flow, graph, ops
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix, advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Severity, Threshold, Thresholds, Unjudged
from nndiag.stats import Layer, Snapshot, TensorStats

__all__ = ["RULE", "SAME", "check"]

# Samples that differ by less are equal: in float64 the mean of equal values is off by rounding.
SAME = 1e-12

RULE = Rule(
    code="ND303",
    name="signal-collapse",
    severity="warning",
    about="activations",
    thresholds={
        "share": Threshold(
            0.01,
            "derived: healthy He networks keep 0.45 of the pooled std across samples at 10 "
            "layers and "
            "0.20 at 30 (arc-cosine kernel, Cho & Saul 2009); sigmoid falls below 0.01 at layer 5",
            0,
            1,
            "share",
        ),
        "gone": Threshold(
            1e-4,
            "derived: differences of 1e-4 of the scale are worth one bit of 13, about what "
            "bfloat16 and float16 can tell apart",
            0,
            1,
            "share",
        ),
        "samples": Threshold(
            8,
            "derived: the relative error of a standard deviation is 1/√(2 (n - 1)), 27 % at n = 8",
            2,
        ),
    },
    caused_by=(
        "training-damage",
        "constant-feature",
        "input-missing",
        "input-scale",
        "input-not-centered",
        "non-finite",
        "symmetry",
        "dead-relu",
        "init-scale",
        "vanishing-gradient",
        "saturation",
        "covariate-shift",
    ),
    fixes=(
        advice(
            "Add normalisation layers between the weights and the activations.",
            "BatchNorm brings each unit's variation back to one.",
            changes="architecture",
        ),
        advice(
            "Use a zero-centred activation with its matching init, or residual connections.",
            "Residual connections keep the input.",
            changes="architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    if snapshot.samples < thresholds.samples:
        yield RULE.unjudged(
            "(model)",
            f"{flow.plural(snapshot.samples, 'sample is', 'samples are')} too few; give "
            f"{thresholds.samples:.0f} or more",
        )
        return
    varying = _varying_inputs(snapshot)
    if not varying:
        if snapshot.inputs and not any(s.nonfinite for s in snapshot.inputs.values()):
            yield RULE.unjudged("(model)", "the samples of this batch do not differ")
        return
    collapsed: list[tuple[Layer, float]] = []
    for layer in snapshot.layers:
        if not (layer.op in ops.LEARNED or flow.is_activation(layer)):
            continue
        share = _share(layer.output)
        if share is None or not graph.inputs_before(snapshot, layer.node) & set(varying):
            continue
        share /= min(varying.values())
        # An output layer alone did not lose the signal: a zero head, or one of large biases.
        if not collapsed and not flow.leads_on(snapshot, layer):
            continue
        if not graph.only_path(snapshot, layer.node):
            continue
        if share < thresholds.share:
            collapsed.append((layer, share))
        elif share > math.sqrt(
            thresholds.share
        ):  # half way back: it was not gone, unless into rounding
            collapsed = [(x, s) for x, s in collapsed if s < thresholds.gone]
    if collapsed:
        yield _finding(snapshot, collapsed, thresholds)
    else:
        yield from _forgotten(snapshot, varying, thresholds)


def _finding(
    snapshot: Snapshot, collapsed: list[tuple[Layer, float]], thresholds: Thresholds
) -> Finding:
    layer, share = collapsed[0]
    least = min(share for _, share in collapsed)
    severity: Severity = "error" if least < thresholds.gone else "warning"
    output = layer.output
    message = (
        f"Its outputs hardly depend on the input: they vary by {output.spread:.2g} across samples "
        f"and by {output.std:.2g} across units and samples."
    )
    if len(collapsed) > 1:
        last = collapsed[-1][0]
        message += (
            f" The same holds for {flow.plural(len(collapsed) - 1, 'layer')} after it, down to "
            f"{last.output.spread:.2g} at {last.name}."
        )
    return RULE.finding(
        layer,
        message,
        summary=f"The output will hardly depend on the input: only {number(share, 'share')} of the "
        f"variation at {layer.name} is between samples.",
        severity=severity,
        against=("share", thresholds),
        fixes=(*_fixes(snapshot, [layer for layer, _ in collapsed]), *RULE.fixes[-1:]),
        evidence={
            "share": share,
            "least_share": least,
            "spread": output.spread,
            "pooled_std": output.std,
            "layers": len(collapsed),
        },
    )


def _forgotten(
    snapshot: Snapshot, varying: dict[int, float], thresholds: Thresholds
) -> Iterator[Finding]:
    """An output layer that reads a recurrent state which is the same for every sample.

    Other output layers are not judged: what they read may be alike at the start, and grow apart.
    """
    for layer in snapshot.layers:
        read, source = layer.input, flow.source_op(snapshot, layer)
        if layer.op not in ops.LEARNED or read is None or not source.startswith(_RECURRENT):
            continue
        if flow.leads_on(snapshot, layer) or not graph.only_path(snapshot, layer.node):
            continue
        if not graph.inputs_before(snapshot, layer.node) & set(varying):
            continue
        if read.nonfinite or not read.rms > 0 or math.isnan(read.spread):
            continue
        share = read.spread / read.rms
        if not share < thresholds.gone:
            continue
        yield RULE.finding(
            layer,
            f"The recurrent state that it reads is the same for every sample: it varies by "
            f"{read.spread:.2g} across samples, and its size is {read.rms:.2g}. The steps that "
            "differ are too long ago.",
            summary=f"The output will not depend on the input: the state that {layer.name} reads "
            "has forgotten where the samples differ.",
            severity="error",
            against=("gone", thresholds),
            fixes=(_LAST_STEP,),
            evidence={"gone": share, "spread": read.spread, "rms": read.rms},
        )


_RECURRENT = ("rnn", "lstm", "gru")
_LAST_STEP = advice(
    "Read the state at the last real step, or the mean over the real steps.",
    "Over many steps of padding a recurrent layer forgets what came before.",
    "packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)",
    "architecture",
)


def _fixes(snapshot: Snapshot, collapsed: list[Layer]) -> Iterator[Fix]:
    weights = [
        row
        for layer in collapsed
        for row in ((layer,) if layer.op in ops.LEARNED else flow.makers(snapshot, layer))
    ]
    drowned = [row for row in weights if _bias_over_signal(snapshot, row)]
    yield from propose.zero_biases(snapshot, drowned)
    yield from propose.reset_norms(snapshot, weights)
    yield from propose.redraw(snapshot, weights, biases=True)
    yield from propose.restart(snapshot)
    yield from propose.normalize(snapshot, weights)


def _bias_over_signal(snapshot: Snapshot, layer: Layer) -> bool:
    bias = snapshot.parameter.get((layer.weight.bias if layer.weight else "") or "")
    return bias is not None and bias.value.std > layer.output.spread


def _share(stats: TensorStats) -> float | None:
    """Across-sample spread over pooled standard deviation; None where either is not known."""
    if stats.nonfinite or stats.probe is None or math.isnan(stats.spread):
        return None
    if stats.spread == 0:
        return 0.0
    return stats.spread / max(stats.std, 1e-3 * abs(stats.mean))


def _varying_inputs(snapshot: Snapshot) -> dict[int, float]:
    """The share of each input of the model that varies at all, by its node, 1 at most."""
    nodes = [i for i, n in enumerate(snapshot.nodes) if n.op == "input"]
    shares = {}
    for node, stats in zip(nodes, snapshot.inputs.values(), strict=False):
        share = _share(stats)
        if share is not None and share > SAME:
            shares[node] = min(share, 1.0)
    return shares
