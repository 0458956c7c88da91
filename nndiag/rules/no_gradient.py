"""Trainable parameters that get no gradient: they will not change.

What it does
------------

Names the trainable parameters whose gradient is None or exactly zero. None means that the parameter
takes no part in the loss: its module is never called, or its output is detached or not used. The
code is written that way, whatever the values are.

Exactly zero means that the parameter takes part, but changing it does not change the loss:
everything behind it is switched off, or so large that the loss is flat there.

A backward pass that raises leaves the whole model without gradients: an error.

Why it matters
--------------

A parameter without a gradient keeps its initial value. Training does not improve it, and
distributed training waits for gradients that never come.

When it is no fault
-------------------

A gradient that is zero by construction is not reported:

- What lies before a head, a residual branch or a scale that starts at zero learns from the second
  step on (zero-initialised heads, zero-gamma BatchNorm, LoRA). So does what lies before a head
  whose rows start equal.
- A normalisation cancels a bias before it.

Modules of a list that this run skipped while their neighbours ran (LayerDrop, routing) are a note.

Sick::

    torch.manual_seed(0)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 2)
        def forward(self, x):
            return self.head(self.body(x).detach())
    model, batch = Net(), torch.randn(64, 8)

Well::

    model = nn.Sequential(model.body, model.head)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nndiag import flow, graph, ops
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Severity, Thresholds
from nndiag.stats import Layer, Parameter, Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND203",
    name="no-gradient",
    severity="warning",
    about="parameters",
    uses=("gradients",),
    caused_by=(
        "input-missing",
        "non-finite",
        "degenerate-softmax",
        "unreachable-target",
        "symmetry",
        "dead-relu",
        "saturation",
        "vanishing-gradient",
        "no-gradient",
        # Outputs that are so large or so certain that the loss's slope rounds to zero.
        "init-scale",
        "signal-collapse",
    ),
    fixes=(
        advice(
            "If the path is cut by accident, remove the detach, no_grad or .data.",
        ),
        advice(
            "If its output is not used, use it in the loss, or remove the parameter.",
            "Distributed training waits for gradients that never come.",
        ),
        advice("If it should stay fixed, freeze it.", "", "parameter.requires_grad_(False)"),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    if snapshot.backward_error:
        yield RULE.finding(
            "(model)",
            f"The backward pass raises, so no parameter gets a gradient: {snapshot.backward_error}",
            summary="Nothing will learn: the backward pass raises an error.",
            severity="error",
        )
        return
    if not snapshot.has_gradients:
        return
    trainable = [p for p in snapshot.parameters if p.trainable]
    without = [p for p in trainable if _none(p) or _zero(p)]
    if trainable and len(without) == len(trainable):
        yield RULE.finding(
            "(model)",
            f"None of the {len(trainable)} trainable parameters gets a gradient.",
            summary=f"Nothing will learn: none of the {len(trainable)} trainable parameters gets a "
            "gradient.",
            severity="error",
            evidence={"parameters": len(trainable)},
            suspects=() if all(map(_none, trainable)) else None,
        )
        return
    users = _users(snapshot, without)
    blockers = _blockers(snapshot)
    cut = {row.node: row for p in without if _none(p) for row in users[p.name]}
    cut_bits = graph.bits(cut)
    for p in without:
        rows = users[p.name]
        if _none(p):
            stopped = _stops(snapshot, rows, cut, cut_bits) if p.used else "it is never used"
            yield _none_finding(snapshot, p, rows, stopped)
        elif not _by_construction(snapshot, p, rows, blockers):
            yield _zero_finding(p, rows, _cancels(snapshot, p, rows))


def _none_finding(snapshot: Snapshot, p: Parameter, rows: list[Layer], stopped: str) -> Finding:
    severity: Severity = "warning"
    where = ""
    if skipped := _never_called(snapshot, p.name):
        stopped = f"{skipped} was never called"
        if _has_called_sibling(snapshot, skipped):
            severity, where = "note", " in this run; its neighbours in the list were"
        elif snapshot.environment is not None and snapshot.environment.mode == "eval":
            severity, where = "note", " in evaluation mode"
    return RULE.finding(
        p,
        f"Its gradient is None: {stopped}{where}.",
        summary=f"{p.name} will not learn: {stopped}.",
        severity=severity,
        location=_location(rows),
        # None comes from how the code is written. So no finding about values can explain it.
        suspects=(RULE.name,),
    )


def _zero_finding(p: Parameter, rows: list[Layer], cancels: bool) -> Finding:
    entries = p.grad.count if p.grad else 0
    return RULE.finding(
        p,
        f"Its gradient is exactly zero in all {entries:,} entries." + _why_zero(rows, cancels),
        summary=f"{p.name} will not learn: its gradient is exactly zero.",
        severity="note" if cancels else "warning",
        location=_location(rows),
        evidence={"gradient_entries": entries},
    )


def _location(rows: list[Layer]) -> str | None:
    return next((row.location for row in rows if row.location), None)


def _none(p: Parameter) -> bool:
    return p.grad is None


def _zero(p: Parameter) -> bool:
    return p.grad is not None and p.grad.count > 0 and p.grad.zeros == p.grad.total


def _users(snapshot: Snapshot, parameters: list[Parameter]) -> dict[str, list[Layer]]:
    """The rows that use a parameter, by its name.

    For a part of an opaque layer, that layer's row. For a parameter without a layer of its own, the
    first row of its module.
    """
    used: dict[str, list[Layer]] = {}
    for layer in snapshot.layers:
        names = (layer.weight.name, layer.weight.bias) if layer.weight is not None else ()
        for name in names:
            used.setdefault(name or "", []).append(layer)
    for p in parameters:
        owner = p.name
        while p.name not in used and owner and not _never_called(snapshot, p.name):
            owner = owner.rpartition(".")[0]
            if owner in _homes(snapshot):
                used[p.name] = _homes(snapshot)[owner]
    return {p.name: used.get(p.name, []) for p in parameters}


@graph.once
def _homes(snapshot: Snapshot) -> dict[str, list[Layer]]:
    """By the name of a module its own rows, or else the first row inside it."""
    own: dict[str, list[Layer]] = {}
    first = {"": list(snapshot.layers[:1])} if snapshot.layers else {}
    for layer in snapshot.layers:
        own.setdefault(layer.name.partition("@")[0], []).append(layer)
        for end, letter in enumerate(f"{layer.name}."):
            if letter in "./@":
                first.setdefault(layer.name[:end], [layer])
    return {module: own.get(module, rows) for module, rows in first.items()}


def _stops(snapshot: Snapshot, rows: list[Layer], cut: dict[int, Layer], cut_bits: int) -> str:
    """Where the gradient that does not arrive at these rows gets lost."""
    if not rows:
        return "it takes no part in the loss"
    after = graph.bits(row.node for row in rows)
    for row in rows:
        after |= graph.descendant_bits(snapshot)[row.node]
    if not after & graph.bits(snapshot.outputs):
        return "the model's output does not depend on it"
    last = cut[(after & cut_bits).bit_length() - 1].name
    return f"none comes back to {last}, so it is cut off there (detach, no_grad, .data, argmax)"


def _blocking_nodes(snapshot: Snapshot) -> frozenset[int]:
    """Nodes whose own weight lets no gradient pass: zeros in heads, gammas, scales; equal heads.

    The gradients of a softmax sum to zero. Through a head whose rows are equal they cancel.
    """
    zero = {
        p.name
        for p in snapshot.parameters
        if p.value.count and p.value.zeros == p.value.total and not p.name.endswith("bias")
    }
    nodes = {layer.node for layer in snapshot.layers if _is_equal_head(snapshot, layer)}
    for layer in snapshot.layers:
        names = {f"{layer.name.partition('@')[0]}.weight"}
        if layer.weight is not None:
            names = {layer.weight.name}
        if names & zero:
            nodes.add(layer.node)
    nodes |= {i for i, n in enumerate(snapshot.nodes) if n.parameter in zero}
    # What is multiplied by zero gets none either: the output embeddings of word2vec.
    nothing = {n for n in nodes if _is_zero(snapshot.layer_at(n))}
    return frozenset(nodes) | {
        i
        for i, n in enumerate(snapshot.nodes)
        if n.op in ops.PRODUCTS | {"matmul"} and nothing & set(n.inputs)
    }


def _is_equal_head(snapshot: Snapshot, layer: Layer) -> bool:
    if layer.op not in ops.WEIGHTED or layer.weight is None:
        return False
    p = snapshot.parameter.get(layer.weight.name)
    if p is None or p.shape[layer.weight.unit_axis] < 2 or p.value.min != p.value.max:
        return False
    return not flow.leads_on(snapshot, layer)


def _is_zero(layer: Layer | None) -> bool:
    return layer is not None and layer.output.zeros == layer.output.total > 0


@dataclass(frozen=True)
class _Blockers:
    """The nodes whose own weight lets no gradient pass."""

    nodes: frozenset[int]
    reaches_output: list[bool]  # for each node, whether a path leads around them to an output
    faulty: int  # those of them (as bits) that are no head, no scale and no end of a branch


def _blockers(snapshot: Snapshot) -> _Blockers:
    nodes = _blocking_nodes(snapshot)
    faulty = (n for n in nodes if not _is_benign(snapshot, n))
    return _Blockers(nodes, graph.reaches_output(snapshot, nodes), graph.bits(faulty))


def _by_construction(
    snapshot: Snapshot, p: Parameter, rows: list[Layer], blockers: _Blockers
) -> bool:
    """Whether a gradient of zero follows from how the model starts, and will not last."""
    if not rows:
        return False
    nodes = blockers.nodes
    for row in rows:
        is_bias = row.weight is not None and row.weight.bias == p.name
        before_norm = is_bias and any(
            snapshot.nodes[n].op in ops.NORMS for n in flow.users(snapshot, row.node)
        )
        others = len(nodes) - (row.node in nodes)
        starts_at_zero = others > 0 and not blockers.reaches_output[row.node]
        behind_zero = bool(nodes & set(snapshot.nodes[row.node].inputs)) and row.op in ops.NORMS
        if not (before_norm or behind_zero) and not (
            starts_at_zero and not graph.descendant_bits(snapshot)[row.node] & blockers.faulty
        ):
            return False
    return True


def _cancels(snapshot: Snapshot, p: Parameter, rows: list[Layer]) -> bool:
    """A bias whose layer does get a gradient, which sums to zero: the loss ignores a shift."""
    for row in rows:
        if row.weight is None or row.weight.bias != p.name:
            return False
        weight = snapshot.parameter.get(row.weight.name)
        if weight is None or weight.grad is None or _zero(weight):
            return False
    return bool(rows)


def _why_zero(rows: list[Layer], cancels: bool) -> str:
    if cancels:
        return " It cancels over the batch: a constant does not change the loss."
    read = [row.input for row in rows if row.input is not None]
    if rows and len(read) == len(rows) and all(x.zeros == x.total for x in read):
        return " The layer's input is zero on every sample."
    return ""


def _is_benign(snapshot: Snapshot, node: int) -> bool:
    """Whether a zero weight is a head, a scale, or the end of a residual branch.

    Zero weights in a layer that everything passes are symmetry's to report.
    """
    layer = snapshot.layer_at(node)
    if layer is None or layer.op in ops.NORMS:
        return True
    return not (flow.leads_on(snapshot, layer) and graph.only_path(snapshot, node))


def _never_called(snapshot: Snapshot, parameter: str) -> str:
    """The module around it that was never called, of several the first on the list."""
    order = _order_of_never_called(snapshot)
    around = (parameter[:end] for end, letter in enumerate(parameter) if letter == ".")
    return min((module for module in around if module in order), key=order.__getitem__, default="")


@graph.once
def _order_of_never_called(snapshot: Snapshot) -> dict[str, int]:
    return {module: index for index, module in enumerate(snapshot.never_called)}


def _has_called_sibling(snapshot: Snapshot, module: str) -> bool:
    """Whether it is an element of a list another element of which ran: LayerDrop, experts."""
    folder = module.rpartition(".")[0]
    return folder in snapshot.lists and folder in _folders(snapshot)


@graph.once
def _folders(snapshot: Snapshot) -> frozenset[str]:
    """The modules inside which something has a row."""
    return frozenset(
        layer.name[:end]
        for layer in snapshot.layers
        for end, letter in enumerate(layer.name)
        if letter == "."
    )
