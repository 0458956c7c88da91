"""Activations whose slope is nearly zero, so almost no gradient passes.

What it does
------------

Counts the values at which the slope of an activation is under 5 % of its steepest slope. A layer
is reported if three quarters of its values are there, or if many of its units are there on every
sample.

A slope means the same for every activation. The distance of an output from its bound does not.

For softmax and attention, rows are counted. A row is one-hot where the slope at its largest entry
is under 5 % of the maximum (p > 0.987). Rows with a single visible key are left out. The inputs of
the gates of nn.LSTM, nn.GRU and nn.RNN are recomputed from the layer's inputs and weights.

Of ReLU6, only the share of active values that lie at 6 counts here. The flat side of ReLU is
dead-relu's subject.

Why it matters
--------------

A sigmoid or tanh is flat far from zero. The gradient that comes back is multiplied by a slope near
zero, and the weights before the activation stop learning ("saturated neurons kill the gradients",
CS231n 2017 lecture 6, slides 17-19).

When it is no fault
-------------------

Only hidden activations give a warning. Two others give a note at most: a gate (an output that is
multiplied into another tensor), which may be fully open or shut, and the output of a model, which
may be certain.

The candidate of a recurrent cell is a hidden activation, also in a cell written out by hand. If
the tanh of a weight layer's output is multiplied by a sigmoid, the sigmoid is the gate.

GELU, SiLU and ELU are flat on one side only. They do not count as saturated there. In trained
networks up to 60 % of the values of a last tanh layer may be saturated at 97 % accuracy.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    nn.init.uniform_(model[0].bias, 4, 5)
    batch = torch.randn(256, 64)

Well::

    nn.init.zeros_(model[0].bias)

References: CS231n 2017 lecture 6 slides 17-19 and 47; Glorot & Bengio 2010, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow, ops
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix, advice
from nndiag.numbers import number
from nndiag.rule import Finding, Rule, Threshold, Thresholds, Unjudged
from nndiag.stats import Layer, Snapshot

__all__ = ["CANDIDATES", "RULE", "SOFTMAX_FIXES", "check"]

CANDIDATES = ("candidate", "hidden")

SOFTMAX_FIXES = (
    advice(
        "Divide the scores by the root of their width before the softmax.",
        "A dot product of d unit-scale values has a standard deviation of √d (Vaswani et al. 2017, "
        "section 3.2.1).",
        "scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])",
        "architecture",
    ),
    advice(
        "Normalise queries and keys, or start their projections smaller.", changes="architecture"
    ),
)

RULE = Rule(
    code="ND101",
    name="saturation",
    severity="warning",
    about="activations",
    thresholds={
        "share": Threshold(
            0.75,
            "derived: a tanh or sigmoid layer whose pre-activations are N(0, s²) has 75 % of its "
            "values saturated at s = 6.8 and s = 13.7, seven times what Xavier gives; trained "
            "tanh layers that classify well reach 60 %",
            0,
            1,
            "share",
        ),
        "units": Threshold(
            0.40,
            "derived: the share of dead-relu; a unit saturated on every sample learns as little "
            "as a dead one",
            0,
            1,
            "share",
        ),
        "samples": Threshold(
            59, "derived: 0.95^59 < 5 %, so a unit unsaturated on 5 % of inputs is spared", 1
        ),
        "values": Threshold(
            32, "derived: a share of 0.75 of 32 values or rows has a standard error of 0.077", 1
        ),
    },
    caused_by=(
        "training-damage",
        "input-missing",
        "input-scale",
        "input-outliers",
        "symmetry",
        "init-scale",
        "covariate-shift",
    ),
    fixes=(
        advice(
            "Re-initialise the weights before it (Xavier), biases at zero.",
            "At inputs of standard deviation 1, 3 % of a tanh's values saturate and hardly any of "
            "a sigmoid's.",
            "nn.init.xavier_normal_(layer.weight)\nnn.init.zeros_(layer.bias)",
            "weights",
        ),
        advice(
            "Add a normalisation layer between the weights and the activation.",
            "It keeps the scale through training, whatever the weights do.",
            changes="architecture",
        ),
        advice(
            "Replace the activation by one that does not saturate on both sides, such as ReLU.",
            changes="architecture",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    for layer in snapshot.layers:
        act = flow.act_of(layer)
        two_sided = act is not None and len(act.flat) == 2
        attends = "one_hot_count" in layer.facts
        if layer.output.nonfinite and (two_sided or attends or "gates_count" in layer.facts):
            yield RULE.unjudged(layer, "its outputs are not finite")
        elif two_sided:
            yield from _activation(snapshot, layer, thresholds)
        elif attends:
            yield from _rows(snapshot, layer, thresholds)
        elif layer.facts.get("gates_count"):
            yield from _gates(snapshot, layer, thresholds)


def _activation(
    snapshot: Snapshot, layer: Layer, thresholds: Thresholds
) -> Iterator[Finding | Unjudged]:
    flat, act = layer.flat, flow.act_of(layer)
    assert act is not None
    if flat is None or not flat.count:
        return
    count, saturated = flat.count, flat.flat
    if act.family == "rectifier":  # dead-relu judges its zeros; here only its upper side counts
        count, saturated = count - layer.output.zeros, saturated - layer.output.zeros
        if act.flat[0][1] != 0:
            return
    units = 0 if flat.open is None or act.family == "rectifier" else len(flat.open)
    share = saturated / max(count, 1)
    closed = flat.closed / units if units and flat.samples >= thresholds.samples else 0.0
    if share < thresholds.share and closed <= thresholds.units:
        return
    if count < thresholds.values:
        few = flow.plural(count, "value is too few", "values are too few")
        yield RULE.unjudged(layer, f"{few}; give {thresholds.values:.0f} or more")
        return
    what = flow.role(snapshot, layer) if flow.has_weights_before(snapshot, layer) else "input"
    message = (
        f"{saturated:,} of {count:,} values ({number(share, 'share')}) are saturated: the slope of "
        f"{layer.op} is under 5 % of its maximum there."
    )
    if units:
        are = "is" if flat.closed == 1 else "are"
        message += f" {flat.closed:,} of {flow.plural(units, 'unit')} {are} saturated on " + (
            "the only sample." if flat.samples == 1 else f"all {flat.samples:,} samples."
        )
    std = layer.input.std if layer.input is not None else float("nan")
    message += f" Its inputs have std {std:.3g}."
    message += {
        "gate": " It is a gate.",
        "output": " It is the model's output.",
        "input": " No weights come before it.",
    }.get(what, "")
    if what != "hidden":
        summary = f"Hardly any gradient passes {layer.name}: "
    else:
        summary = f"The weights before {layer.name} will hardly learn: "
    if share >= thresholds.share:
        summary += f"{number(share, 'share')} of its values are saturated."
    else:
        summary += f"{number(closed, 'share')} of its units are saturated on every sample."
    yield RULE.finding(
        layer,
        message,
        summary=summary,
        severity="warning" if what == "hidden" else "note",
        against=("share" if share >= thresholds.share else "units", thresholds),
        fixes=(*_fixes(snapshot, layer),) if what == "hidden" else RULE.fixes,
        evidence={"share": share, "units": closed, "input_std": std},
    )


def _fixes(snapshot: Snapshot, layer: Layer) -> Iterator[Fix]:
    makers = flow.makers(snapshot, layer)
    weights = [row for row in makers if row.op in ops.LEARNED]
    if any(_shifted(snapshot, row) for row in weights):
        yield from propose.zero_biases(snapshot, weights)
    yield from propose.reset_norms(snapshot, makers)
    yield from propose.redraw(snapshot, weights, biases=True)
    yield from propose.rescale(snapshot, weights)
    yield from propose.lsuv(snapshot, weights)
    yield from propose.restart(snapshot)
    yield from propose.normalize(snapshot, weights)
    yield from propose.swap(
        snapshot,
        [layer],
        ("ReLU",),
        "F.relu(x)",
        "It does not saturate on the positive side (CS231n 2017 lecture 6 slide 24).",
        "slope 1 wherever the unit is active",
        redrawn=weights,
    )


def _shifted(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether its biases are larger than what its weights make vary."""
    bias = snapshot.parameter.get((layer.weight.bias if layer.weight else "") or "")
    units = layer.output.units
    if bias is None or units is None:
        return False
    return bias.value.second_moment > float(units.variance.mean())


def _rows(snapshot: Snapshot, layer: Layer, thresholds: Thresholds) -> Iterator[Finding | Unjudged]:
    rows, one_hot = layer.facts["rows_count"], layer.facts["one_hot_count"]
    if not rows or one_hot / rows < thresholds.share:
        return
    if rows < thresholds.values:
        few = flow.plural(int(rows), "row is too few", "rows are too few")
        yield RULE.unjudged(layer, f"{few}; give {thresholds.values:.0f} or more")
        return
    users = {snapshot.nodes[n].op for n in flow.users(snapshot, layer.node)}
    attention = layer.op not in ops.SOFTMAXES or users & ops.CONTRACTIONS
    # A softmax whose rows are only multiplied is a gate. A random softmax is one-hot on purpose.
    hidden = (attention or users & ops.LEARNED) and layer.op != "gumbel_softmax"
    yield RULE.finding(
        layer,
        f"{one_hot:,.0f} of {rows:,.0f} {'attention ' if attention else ''}rows are one-hot: their "
        "largest entry is over 0.987. Their softmax passes almost no gradient.",
        summary=f"Hardly any gradient will pass the softmax of {layer.name}: "
        f"{number(one_hot / rows, 'share')} of its rows are one-hot.",
        severity="warning" if hidden else "note",
        against=("share", thresholds),
        fixes=(*_softer(snapshot, layer), *SOFTMAX_FIXES),
        evidence={"share": one_hot / rows, "rows": rows},
    )


def _softer(snapshot: Snapshot, layer: Layer) -> Iterator[Fix]:
    inside = layer.op in ops.LEARNED
    projections = [layer] if inside else flow.makers(snapshot, layer)
    yield from propose.rescale(snapshot, projections)
    yield from propose.redraw(snapshot, projections, biases=True)


def _gates(snapshot: Snapshot, layer: Layer, thresholds: Thresholds) -> Iterator[Finding]:
    """The candidate (in nn.RNN the state itself) is a hidden activation, the others are gates."""
    shares = {
        name.removesuffix("_saturated_count"): value / layer.facts[name.replace("_saturated", "")]
        for name, value in layer.facts.items()
        if name.endswith("_saturated_count")
    }
    name = max(shares, key=lambda n: (n in CANDIDATES and shares[n] >= thresholds.share, shares[n]))
    if shares[name] < thresholds.share:
        return
    each = ", ".join(f"{n} {number(share, 'share')}" for n, share in shares.items())
    saturated = f"{number(shares[name], 'share')} of the {name} values"
    if name in CANDIDATES:
        summary = f"Hardly any gradient will pass {layer.name}: {saturated} are saturated."
    else:
        summary = f"A gate of {layer.name} is always open or shut: {saturated} are saturated."
    yield RULE.finding(
        layer,
        f"{saturated} of this {layer.kind} are saturated: the slope of their "
        f"{'tanh' if name in CANDIDATES else 'sigmoid (a gate)'} is under 5 % of its maximum "
        f"there. Shares by gate: {each}.",
        summary=summary,
        severity="warning" if name in CANDIDATES else "note",
        against=("share", thresholds),
        fixes=(
            *propose.zero_biases(snapshot, [layer]),
            *propose.redraw(snapshot, [layer], biases=True),
        )
        or RULE.fixes,
        evidence={"share": shares[name], **{f"{n}_saturated": s for n, s in shares.items()}},
    )
