"""Activations whose slope is nearly zero, so that almost no gradient passes.

A sigmoid or tanh far from zero is flat: the gradient that comes back is multiplied by a slope of
nearly nothing, and the weights before it stop learning ("saturated neurons kill the gradients",
CS231n 2017 lecture 6, slides 17-19). A value counts as saturated where the slope is under 5 % of
the activation's steepest slope: that means the same for every activation, while a distance of the
output from its bound does not. For softmax and attention a row counts as one-hot where the slope
of its largest entry is under 5 % of the maximum (p > 0.987); rows with a single visible key are
left out. The gates of nn.LSTM, nn.GRU and nn.RNN are recomputed from their inputs and weights.

Only hidden activations alarm. A gate (an output multiplied into another tensor) may well be open
or shut, and the output of a model may well be sure of itself: both are notes at most. GELU, SiLU
and ELU are not called saturated for being flat on one side, and ReLU's flat side is a matter for
dead-relu. In trained networks up to 60 % of a last tanh layer may be saturated at 97 % accuracy.

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

from nndiag import flow
from nndiag.rule import Finding, Limits, Prescription, Rule, Threshold, Unjudged
from nndiag.stats import Layer, Snapshot

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
        ),
        "rows": Threshold(
            32, "derived: a share of 0.75 of 32 rows has a standard error of 0.077", 1
        ),
    },
    caused_by=("non-finite", "symmetry", "init-scale"),
    cures=(
        Prescription(
            "Bring the pre-activations back to unit scale: Xavier weights and zero bias.",
            "At a standard deviation of 1, 3 % of tanh's and 0.0 % of sigmoid's values saturate.",
            "nn.init.xavier_normal_(layer.weight); nn.init.zeros_(layer.bias)",
        ),
        Prescription(
            "Put a normalisation layer between the weights and the activation.",
            "It keeps the scale through training, whatever the weights do.",
        ),
        Prescription("Use an activation that does not saturate on both sides, such as ReLU."),
    ),
)


def check(snapshot: Snapshot, limit: Limits) -> Iterator[Finding | Unjudged]:
    for layer in snapshot.layers:
        if layer.output.nonfinite:
            continue
        act = flow.act_of(layer)
        if act is not None and act.family == "saturating" and layer.flat is not None:
            yield from _activation(snapshot, layer, limit)
        elif "one_hot_count" in layer.facts:
            yield from _rows(snapshot, layer, limit)
        elif layer.facts.get("gates_count"):
            yield from _gates(layer, limit)


def _activation(snapshot: Snapshot, layer: Layer, limit: Limits) -> Iterator[Finding]:
    flat = layer.flat
    assert flat is not None
    if flat.share < limit.share:
        return
    what = flow.role(snapshot, layer)
    where = {"gate": " (a gate)", "output": " (the model's output)"}.get(what, "")
    units = ""
    if flat.open is not None:
        units = f"; {flat.closed} of {flow.plural(len(flat.open), 'unit')} on every sample"
    std = layer.input.std if layer.input is not None else float("nan")
    yield RULE.finding(
        layer,
        f"{flat.flat:,} of {flat.count:,} values ({flat.share:.0%}) lie where the slope of "
        f"{layer.op} is under 5 % of its maximum{where}{units}; its inputs have std {std:.3g}",
        severity="warning" if what == "hidden" else "note",
        against=("share", limit),
        evidence={
            "share": flat.share,
            "saturated_units": flat.closed,
            "input_std": std,
        },
    )


def _rows(snapshot: Snapshot, layer: Layer, limit: Limits) -> Iterator[Finding]:
    rows, one_hot = layer.facts["rows_count"], layer.facts["one_hot_count"]
    if rows < limit.rows or one_hot / rows < limit.share:
        return
    attends = layer.op not in ("softmax", "softmin", "log_softmax", "gumbel_softmax")
    hidden = attends or flow.role(snapshot, layer) == "attention"
    yield RULE.finding(
        layer,
        f"{one_hot:,.0f} of {rows:,.0f} {'attention ' if hidden else ''}rows are one-hot "
        "(largest entry over 0.987): their softmax passes almost no gradient",
        severity="warning" if hidden else "note",
        against=("share", limit),
        evidence={"share": one_hot / rows, "rows": rows},
    )


def _gates(layer: Layer, limit: Limits) -> Iterator[Finding]:
    total = layer.facts["gates_count"]
    share = layer.facts["saturated_gates_count"] / total
    if share < limit.share:
        return
    each = {
        name.removesuffix("_saturated_count"): value / layer.facts[name.replace("_saturated", "")]
        for name, value in layer.facts.items()
        if name.endswith("_saturated_count")
    }
    parts = ", ".join(f"{name} {value:.0%}" for name, value in each.items())
    yield RULE.finding(
        layer,
        f"{share:.0%} of the gate values of this {layer.kind} lie where their sigmoid or tanh is "
        f"flat ({parts})",
        against=("share", limit),
        evidence={
            "share": share,
            **{f"{name}_saturated": value for name, value in each.items()},
        },
    )
