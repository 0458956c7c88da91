"""Units that compute the same and will go on doing so.

Two units with the same weights and bias give the same output; if their gradients are the same too,
every update keeps them equal and the layer has one unit for the price of two. All-zero or constant
weights are the extreme: no unit ever differs from another (CS231n 2017 lecture 6, slide 41). Random
weights break the symmetry; zero biases are fine.

Whether the gradients keep units equal is measured. A zero-initialised head or the zero end of a
residual branch is no fault: its units get different gradients at once.

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    for layer in model[::2]:
        nn.init.constant_(layer.weight, 0.05)
        nn.init.zeros_(layer.bias)
    batch = torch.randn(128, 16)

Well::

    for layer in model[::2]:
        nn.init.xavier_normal_(layer.weight)

References: CS231n 2017 lecture 6 slide 41; CS231n course notes, neural-networks-2.
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import flow
from nndiag.rule import Finding, Limits, Prescription, Rule, Severity, Threshold
from nndiag.stats import Layer, Parameter, Snapshot

RULE = Rule(
    code="ND302",
    name="symmetry",
    severity="warning",
    about="parameters",
    uses=("gradients",),
    thresholds={
        "share": Threshold(
            0.1, "derived: a tenth of a layer's units lost; a stray pair is a note", 0, 1
        ),
    },
    caused_by=("non-finite", "symmetry"),
    cures=(
        Prescription(
            "Draw the weights at random; only biases may start equal.",
            "",
            "nn.init.kaiming_normal_(layer.weight)",
        ),
    ),
)


def check(snapshot: Snapshot, limit: Limits) -> Iterator[Finding]:
    seen: set[str] = set()
    for layer in snapshot.layers:
        if layer.weight is None or layer.op not in flow.WEIGHTED or layer.weight.name in seen:
            continue
        seen.add(layer.weight.name)
        p = snapshot.parameter.get(layer.weight.name)
        if p is None or p.duplicate_units < 2:
            continue
        units = p.shape[layer.weight.unit_axis]
        yield from _judge(snapshot, layer, p, units, limit)


def _ends_branch(snapshot: Snapshot, layer: Layer) -> bool:
    return any(
        snapshot.nodes[n].op == "add" and len(snapshot.nodes[n].inputs) > 1
        for n in flow.users(snapshot, layer.node)
    )


def _judge(
    snapshot: Snapshot, layer: Layer, p: Parameter, units: int, limit: Limits
) -> Iterator[Finding]:
    same = p.duplicate_units
    known = snapshot.has_gradients and p.grad is not None
    kept = p.duplicate_kept if known else 0
    what = "all zero" if p.zero_units == same else "the same"
    text = f"{same} of {flow.plural(units, 'unit')} have {what} weights and bias"
    if p.zero_units == same:
        text = f"{same} of {flow.plural(units, 'unit')} have all-zero weights"
    severity: Severity = "note"
    hidden = flow.leads_on(snapshot, layer)
    if known and p.grad is not None and not p.grad.rms and _ends_branch(snapshot, layer):
        return  # the zero end of a residual branch, behind a zero head: equal for one step only
    if not known:
        text += "; whether gradients keep them equal was not seen"
    elif kept < 2:
        text += "; their gradients differ, so the first update tells them apart"
    else:
        text += f", and the same gradients: {kept} of them stay equal for ever"
        if hidden and kept == units:
            severity = "error"
        elif hidden and kept >= limit.share * units and p.zero_units < same:
            severity = "warning"
    if severity == "note" and not hidden:
        return  # equal units at the output start equal in every zero-initialised head
    yield RULE.finding(
        layer,
        text,
        severity=severity,
        against=("share", limit),
        evidence={
            "share": same / units,
            "equal_units": same,
            "kept_equal": kept,
            "units": units,
            "zero_units": p.zero_units,
        },
    )
