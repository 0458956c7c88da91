"""Units that compute the same value and will continue to do so.

What it does
------------

Counts the units of a layer that have the same weights and bias as another unit. It measures whether
their gradients are the same, too, so that updates keep them equal.

If the gradients differ, constant weights still give a warning in a layer that everything passes, in
any of its calls. All its units compute the same value for now, and different biases change little
about that. If the weights are zero, nothing passes the layer, forward or backward.

Why it matters
--------------

Two units with the same weights and bias give the same output. If their gradients are the same, too,
every update keeps them equal: two units cost time and memory, and work as one.

All-zero or constant weights are the extreme: no unit ever differs from another (CS231n 2017 lecture
6, slide 41). Random weights break the symmetry.

When it is no fault
-------------------

Biases may all be zero. A zero-initialised head and the zero end of a residual branch are no fault,
because their units get different gradients at once.

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
from dataclasses import replace

from nndiag import flow, graph, ops
from nndiag.fixes import propose
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Severity, Threshold, Thresholds
from nndiag.stats import Layer, Parameter, Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND302",
    name="symmetry",
    severity="warning",
    about="parameters",
    uses=("gradients",),
    thresholds={
        "share": Threshold(
            0.1, "derived: a tenth of a layer's units lost; a stray pair is a note", 0, 1, "share"
        ),
    },
    caused_by=("non-finite", "symmetry"),
    fixes=(
        advice(
            "Re-initialise the weights at random; only biases may start equal.",
            "",
            "nn.init.kaiming_normal_(layer.weight)",
            "weights",
        ),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    findings = list(_all(snapshot, thresholds))
    yield from (f for f in findings if f.severity != "note")
    notes = [f for f in findings if f.severity == "note"]
    if notes:
        worst = max(notes, key=lambda f: f.evidence["share"])
        more = flow.plural(len(notes) - 1, "more layer")
        others = f" The same holds for {more}." if notes[1:] else ""
        yield replace(worst, message=worst.message + others)


def _all(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    seen: set[str] = set()
    for layer in snapshot.layers:
        name = layer.weight.name if layer.weight is not None else layer.name.partition("@")[0]
        tokens = layer.op.startswith("embedding")
        if name in seen or not (tokens or layer.op in ops.LEARNED):
            continue
        seen.add(name)
        if tokens:
            yield from _tokens(snapshot, layer, thresholds)
        elif layer.op not in ops.WEIGHTED:
            yield from _inside(snapshot, layer, thresholds)
        elif (p := snapshot.parameter.get(name)) is not None:
            yield from _weights(snapshot, layer, p, thresholds)


def _weights(
    snapshot: Snapshot, layer: Layer, p: Parameter, thresholds: Thresholds
) -> Iterator[Finding]:
    assert layer.weight is not None
    units = p.shape[layer.weight.unit_axis]
    constant = _constant(p) and layer.weight.fan_in > 1
    same = units if constant else p.duplicate_units
    if units < 2 or same < 2 or not flow.leads_on(snapshot, layer):
        return  # equal units at the output start equal in every zero-initialised head
    known = snapshot.has_gradients and p.grad is not None
    if known and p.grad is not None and not p.grad.rms and _ends_branch(snapshot, layer):
        return  # the zero end of a residual branch, behind a zero head: equal for one step only
    text = f"{same} of {flow.plural(units, 'unit')} have "
    if p.zero_units == same:
        text += "all-zero weights"
    elif same > p.duplicate_units:
        text += f"the same weights, all {p.value.min:.3g}; only their biases differ"
    else:
        text += "the same weights and bias" + ("" if constant else " as another unit")
    text += "."
    kept = p.duplicate_kept if known else 0
    lost = kept >= max(thresholds.share * units, 2) and p.zero_units < same
    one = (
        constant
        and not _grouped(layer, p)
        and graph.only_path_through_any(snapshot, flow.calls(snapshot)[p.name])
    )
    severity: Severity = "error" if kept == units else "warning" if lost or one else "note"
    summary = f"{same} of {flow.plural(units, 'unit')} of {layer.name} start equal."
    if not known:
        text += " No gradients were measured that would show whether they stay equal."
    elif kept >= 2:
        text += f" The gradients of {kept} of them are the same, too, so they will stay equal."
        summary = f"{kept} of {flow.plural(units, 'unit')} of {layer.name} will stay equal."
    elif severity == "note":
        text += " Their gradients differ, so the first update makes them differ."
    elif p.zero_units == units:
        text += " Their gradients differ, but for now nothing passes the layer."
    else:
        text += " Their gradients differ, but for now all of them compute the same value"
        text += ", apart from their bias." if same > p.duplicate_units else "."
    if severity != "note" and kept < 2:
        summary = f"{layer.name} works as one unit for now: its {units} units start equal."
        if p.zero_units == units:
            summary = f"Nothing will pass {layer.name} for now: all its weights are zero."
    yield _finding(
        snapshot, layer, text, summary, severity, same, kept, units, p.zero_units, thresholds
    )


def _tokens(snapshot: Snapshot, layer: Layer, thresholds: Thresholds) -> Iterator[Finding]:
    p = snapshot.parameter.get(layer.weight.name if layer.weight is not None else "")
    if p is not None and _constant(p) and graph.only_path(snapshot, layer.node):
        text = f"Its weights are all {p.value.min:.3g}, so every token has the same vector."
        summary = f"{layer.name} cannot tell tokens apart: its weights are all {p.value.min:.3g}."
        yield _finding(
            snapshot,
            layer,
            text,
            summary,
            "warning",
            p.shape[0],
            0,
            p.shape[0],
            p.zero_units,
            thresholds,
        )


def _inside(snapshot: Snapshot, layer: Layer, thresholds: Thresholds) -> Iterator[Finding]:
    """Recurrent layers and attention: only where every matrix inside is constant."""
    owner = layer.name.partition("@")[0]
    matrices = [p for p in snapshot.parameters_in.get(owner, ()) if len(p.shape) > 1]
    if not matrices or not all(_constant(p) for p in matrices):
        return
    if not flow.leads_on(snapshot, layer):
        return
    rows = sum(p.shape[0] for p in matrices)
    kept = sum(p.duplicate_kept for p in matrices if p.grad is not None)
    zero = sum(p.zero_units for p in matrices)
    text = f"All {len(matrices)} of its weight matrices are constant"
    if kept == rows:
        text += ", and so are their gradients: its units will stay equal."
        summary = f"All units of {layer.name} will stay equal: its weights are constant."
        yield _finding(snapshot, layer, text, summary, "error", rows, kept, rows, zero, thresholds)
    elif graph.only_path(snapshot, layer.node):
        text += ": all its units compute the same value for now."
        summary = f"{layer.name} works as one unit for now: its weights are constant."
        yield _finding(
            snapshot, layer, text, summary, "warning", rows, kept, rows, zero, thresholds
        )


def _finding(
    snapshot: Snapshot,
    layer: Layer,
    text: str,
    summary: str,
    severity: Severity,
    same: int,
    kept: int,
    units: int,
    zero: int,
    thresholds: Thresholds,
) -> Finding:
    return RULE.finding(
        layer,
        text,
        summary=summary,
        severity=severity,
        against=("share", thresholds),
        fixes=RULE.fixes if severity == "note" else (*propose.redraw(snapshot, [layer]),),
        evidence={
            "share": same / units,
            "equal_units": same,
            "kept_equal": kept,
            "units": units,
            "zero_units": zero,
        },
    )


def _constant(p: Parameter) -> bool:
    return p.value.total > 1 and not p.value.nonfinite and p.value.min == p.value.max


def _ends_branch(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether what comes out is added to something before another layer with weights reads it."""
    todo = list(snapshot.consumers[layer.node])
    while todo:
        node = snapshot.nodes[todo[-1]]
        following = snapshot.consumers[todo.pop()]
        if node.op == "add" and len(node.inputs) > 1:
            return True
        if len(node.inputs) == 1 and node.op not in ops.LEARNED:
            todo += following
    return False


def _grouped(layer: Layer, p: Parameter) -> bool:
    """Units of a grouped convolution see different inputs: equal weights make no equal units."""
    if not layer.op.startswith("conv") or layer.input is None or layer.input.units is None:
        return False
    return len(layer.input.units) != p.shape[0 if layer.op.startswith("conv_tr") else 1]
