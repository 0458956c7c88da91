"""Trainable parameters that get no gradient: they will not change.

What it does
------------

Names the trainable parameters whose gradient is None or exactly zero. None means that the parameter
takes no part in the loss: its module is never called, or its output is detached or not used. The
code is written that way, whatever the values are.

Exactly zero means that the parameter takes part, but nothing it does matters. Everything behind it
is switched off, or so large that the loss is flat there. The finding says where the gradient ends:
at the layer whose output gets a gradient and whose input none, or in the loss.

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

Before a gradient of zero is a warning, the model runs again: with other seeds, then after small
steps of all its parameters. What gets a gradient then is a note. A branch was dropped for the whole
batch, or a factor behind the parameter starts at zero.

These are notes as well:

- Modules of a list that this run skipped while their neighbours ran (LayerDrop, routing).
- Parts of an installed library's model whose other parts learn: a mask token, an unused head.
- Gradients that cancel over the batch, or a loss that is zero already.

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

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypedDict

from nndiag import flow, graph, ops
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix, advice
from nndiag.rule import Finding, Rule, Severity, Thresholds
from nndiag.stats import Layer, Parameter, Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND203",
    name="no-gradient",
    severity="warning",
    about="parameters",
    uses=("gradients", "second look"),
    caused_by=(
        "training-damage",
        "constant-feature",
        "input-missing",
        "non-finite",
        "degenerate-softmax",
        "unreachable-target",
        "symmetry",
        "dead-relu",
        "saturation",
        "vanishing-gradient",
        "no-gradient",
        # Outputs so large, or so sure of themselves, that the loss's slope rounds to zero.
        "init-scale",
        "signal-collapse",
    ),
    fixes=(
        advice(
            "Where the path is cut by accident, take out the detach, no_grad or .data.",
        ),
        advice(
            "Where its output is not used, use it in the loss, or remove the parameter.",
            "Distributed training waits for gradients that never come.",
        ),
        advice("If it is meant to stay fixed, say so.", "", "parameter.requires_grad_(False)"),
    ),
)

# What is wrong about the loss and its last activation explains a zero that arises there.
_ABOUT_THE_LOSS = (
    "degenerate-softmax",
    "unreachable-target",
    "output-activation",
    "loss-mismatch",
)
# What the values in the network can be like without making a loss flat.
_ONLY_INSIDE = ("symmetry", "dead-relu", "saturation", "vanishing-gradient")

_SWITCHED_ON = advice(
    "Find what switches the part behind it off on every sample, and feed or scale that.",
    "It takes part in the loss, but nothing it does matters.",
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
        yield _nothing_learns(snapshot, trainable)
        return
    users = _users(snapshot, without)
    silent = _silence(snapshot)
    cut = {row.node: row for p in without if _none(p) for row in users[p.name]}
    cut_bits = graph.bits(cut)
    learning = {p.library for p in trainable if not _none(p) and not _zero(p)}
    cleared: dict[str, list[Finding]] = {}
    for p in without:
        rows = users[p.name]
        if _none(p):
            finding = _gets_none(p, snapshot, rows, cut, cut_bits, learning)
        elif _by_construction(snapshot, p, rows, silent):
            continue
        else:
            finding = _gets_zero(p, snapshot, rows, learning)
        if p.again in _CLEARED:
            cleared.setdefault(p.again, []).append(finding)
        else:
            yield finding
    for same in cleared.values():
        more = len(same) - 1
        others = f" The same holds for {flow.plural(more, 'more parameter')}." if more else ""
        yield replace(same[0], message=same[0].message + others)


def _nothing_learns(snapshot: Snapshot, trainable: list[Parameter]) -> Finding:
    count = len(trainable)
    users = _users(snapshot, trainable)
    if _fits_perfectly(snapshot) or all(
        _zero(p) and _cancels(snapshot, p, users[p.name]) for p in trainable
    ):
        return RULE.finding(
            "(model)",
            f"The gradients of all {count} trainable parameters are exactly zero: the loss is at a "
            "minimum on this batch.",
            summary="Nothing is left to learn from this batch: the loss is at a minimum.",
            severity="note",
            evidence={"parameters": count},
            fixes=(),
        )
    whole = f"None of the {count} trainable parameters gets a gradient"
    if all(map(_none, trainable)):
        return RULE.finding(
            "(model)",
            f"{whole}.",
            summary=f"Nothing will learn: none of the {count} trainable parameters gets a "
            "gradient.",
            severity="error",
            evidence={"parameters": count},
            suspects=(),
        )
    rows = [row for row in snapshot.layers if row.weight is not None][-1:]
    end = _end(snapshot, rows)
    where = f". {end.text}" if end is not None else ""
    because = end.short if end is not None else f"n{whole[1:]}"
    return RULE.finding(
        "(model)",
        f"{whole}{where}.",
        summary=f"Nothing will learn: {because}.",
        severity="error",
        evidence={"parameters": count},
        **_explained_by(end),
    )


def _gets_none(
    p: Parameter,
    snapshot: Snapshot,
    rows: list[Layer],
    cut: dict[int, Layer],
    cut_bits: int,
    learning: set[str | None],
) -> Finding:
    severity: Severity = "warning"
    skipped = _never_called(snapshot, p.name)
    if skipped:
        stopped = because = f"{skipped} was never called"
        if _has_called_sibling(snapshot, skipped):
            severity, because = "note", stopped + " in this run; its neighbours in the list were"
        elif snapshot.environment is not None and snapshot.environment.mode == "eval":
            severity, because = "note", stopped + " in evaluation mode"
    else:
        stopped = because = _stops(snapshot, rows, cut, cut_bits) if p.used else "it is never used"
    known = _known_reason(p, learning)
    # Values make gradients zero; None is how the program is written.
    return RULE.finding(
        p,
        f"Its gradient is None: {because}.{known}",
        summary=f"{p.name} will not learn: {stopped}.",
        severity="note" if known else severity,
        location=next((row.location for row in rows if row.location), None),
        suspects=(RULE.name,),
    )


def _gets_zero(
    p: Parameter, snapshot: Snapshot, rows: list[Layer], learning: set[str | None]
) -> Finding:
    cancels, known = _cancels(snapshot, p, rows), _known_reason(p, learning)
    reads_zeros = _reads_zeros(rows)
    end = None if cancels or reads_zeros else _end(snapshot, rows)
    why = (
        " It cancels over the batch: a constant does not change the loss."
        if cancels
        else " The layer's input is zero on every sample."
        if reads_zeros
        else f" {end.text}."
        if end is not None
        else ""
    )
    because = f": {end.short}" if end is not None else ": its gradient is exactly zero"
    return RULE.finding(
        p,
        f"Its gradient is exactly zero in all {p.grad.count if p.grad else 0:,} entries."
        + why
        + known,
        summary=f"{p.name} will not learn{because}.",
        severity="note" if cancels or known else "warning",
        location=next((row.location for row in rows if row.location), None),
        evidence={"gradient_entries": p.grad.count if p.grad else 0},
        **_explained_by(end),
    )


_CLEARED = {
    "later step": " After one small step it gets one: a factor behind it starts at zero.",
    "other seed": " With another seed it gets one: its branch was dropped for this whole batch.",
}


def _known_reason(p: Parameter, learning: set[str | None]) -> str:
    """Why a missing gradient is no fault: what a second look saw, or how a library is built."""
    if p.again in _CLEARED:
        return _CLEARED[p.again]
    if p.library is not None and p.library in learning:
        return (
            f" Other parameters of {p.library or 'the model'} learn: its library builds it for an "
            "input or an output that is not used here."
        )
    return ""


# -- where a gradient ends -------------------------------------------------------------------------


@dataclass(frozen=True)
class _End:
    """Where the gradient that comes back from the loss ends.

    ``layer``: its output gets a gradient and its input none; None if the outputs get none.
    ``fixed``: it is so whatever the values before it are.
    """

    layer: Layer | None
    short: str
    text: str
    fixes: tuple[Fix, ...]
    fixed: bool = False


def _explained_by(end: _End | None) -> _Because:
    """What can explain the finding: what lies at the end of the gradient comes first."""
    if end is None:
        return {"suspects": (*_ABOUT_THE_LOSS, *RULE.caused_by), "fixes": (_SWITCHED_ON,)}
    if end.layer is None:
        inside = tuple(name for name in RULE.caused_by if name not in _ONLY_INSIDE)
        return {"suspects": (*_ABOUT_THE_LOSS, *inside), "fixes": end.fixes}
    everything = (*_ABOUT_THE_LOSS, *RULE.caused_by)
    return {
        "origin": end.layer.name,
        "suspects_there": everything,
        "suspects": () if end.fixed else everything,
        "fixes": end.fixes,
    }


class _Because(TypedDict, total=False):
    suspects: tuple[str, ...]
    suspects_there: tuple[str, ...]
    origin: str
    fixes: tuple[Fix, ...]


def _end(snapshot: Snapshot, rows: list[Layer]) -> _End | None:
    """Where the gradient ends that should come to these rows; None where it is not known."""
    if not rows or not all(_is_silent(row) for row in rows):
        return None
    queue, visited = [row.node for row in rows], set[int]()
    ends: list[int] = []
    at_output = False
    while queue:
        node = queue.pop()
        if node in visited:
            continue
        visited.add(node)
        at_output |= node in snapshot.outputs
        for user in snapshot.consumers[node]:
            row = snapshot.layer_at(user)
            if row is not None and row.grad is not None and not _is_silent(row):
                ends.append(user)
            else:
                queue.append(user)
    if ends:
        layer = snapshot.layer_at(min(ends))
        assert layer is not None
        return _end_at(snapshot, layer)
    return _end_at_loss(snapshot) if at_output else None


def _is_silent(layer: Layer) -> bool:
    return layer.grad is not None and layer.grad.total == layer.grad.zeros


def _end_at(snapshot: Snapshot, layer: Layer) -> _End:
    is_output = layer.node in snapshot.outputs
    name = f"the output {layer.kind}" if is_output and flow.is_module(layer) else layer.name
    act, flat = flow.act_of(layer), layer.flat
    p = snapshot.parameter.get(layer.weight.name) if layer.weight is not None else None
    if layer.options.get("length") == 1:
        short = f"{layer.op} over one unit at {layer.name}"
        says = f"The gradient ends at a {short}: of one value it is constant"
        return _End(layer, short, says, (*_over_one(snapshot, layer, is_output),), fixed=True)
    if act is not None and flat is not None and flat.flat and act.family == "rectifier":
        off = (
            f"{flat.samples:,} of {flow.plural(flat.samples, 'sample')}"
            if flat.flat == flat.count
            else f"{flat.flat:,} of {flow.plural(flat.count, 'value')}, on all that get a gradient"
        )
        short = f"{name} is off on {off}"
        says = f"The gradient ends at {layer.name}: {short}"
        return _End(layer, short, says + _zero_rows(snapshot), (*_off(snapshot, layer, is_output),))
    if p is not None and p.value.total == p.value.zeros:
        short = f"the weights of {layer.name} are all zero"
        fixes = (*propose.redraw(snapshot, [layer]),) or (_SWITCHED_ON,)
        return _End(layer, short, f"The gradient ends there: {short}", fixes)
    says = f"The gradient ends before {layer.name}: its output gets one, its input none"
    if act is not None and act.family == "saturating":
        says = f"The gradient ends at {layer.name}: {layer.op} is so saturated that its slope is 0"
    return _End(layer, f"its gradient ends at {layer.name}", says, (_SWITCHED_ON,))


def _end_at_loss(snapshot: Snapshot) -> _End:
    rows, zero = snapshot.experiment.output_rows, snapshot.experiment.output_zero_rows
    short = "the loss gives the model's output no gradient"
    if rows and zero == rows:
        short = f"dL/doutput is zero on all {flow.plural(rows, 'row')}"
    fixes = (
        advice(
            "Look at how the loss uses the output: a clamp, a rounding, or values so large that "
            "the loss is flat there.",
            "The output is reached, but the loss does not change with it.",
        ),
    )
    return _End(None, short, f"The gradient ends in the loss: {short}", fixes)


def _zero_rows(snapshot: Snapshot) -> str:
    rows, zero = snapshot.experiment.output_rows, snapshot.experiment.output_zero_rows
    if not zero:
        return ""
    return f". dL/doutput is zero on {zero:,} of {flow.plural(rows, 'row')}"


def _over_one(snapshot: Snapshot, layer: Layer, is_output: bool) -> Iterator[Fix]:
    if not is_output:
        yield advice(
            "Take the softmax over the axis of what is compared (dim=…), not over one of length 1.",
            "Over one value it is a constant.",
            changes="architecture",
        )
        return
    scores = any(call.op in _READ_PROBABILITIES for call in snapshot.experiment.calls)
    if scores:
        yield from propose.replace(
            snapshot, layer, "Sigmoid", "torch.sigmoid(x)",
            "One unit for two classes is a sigmoid's.", "the output is a probability that can move",
        )  # fmt: skip
    else:
        yield from propose.replace(
            snapshot, layer, "Identity", "x", "A number that is predicted needs no activation.",
            "the output can take any value",
        )  # fmt: skip


_READ_PROBABILITIES = ("binary_cross_entropy",)


def _off(snapshot: Snapshot, layer: Layer, is_output: bool) -> Iterator[Fix]:
    if is_output:
        yield from propose.replace(
            snapshot, layer, "Identity", "x",
            "It cannot give values below zero, and where it is off nothing learns.",
            "the output can take any value, and always passes the gradient on",
        )  # fmt: skip
        return
    makers = flow.makers(snapshot, layer)
    weights = [row for row in makers if row.op in ops.LEARNED]
    yield from propose.zero_biases(snapshot, weights)
    yield from propose.redraw(snapshot, weights, biases=True)
    yield from propose.swap(
        snapshot, [layer], ("LeakyReLU", 0.01), "F.leaky_relu(x, 0.01)",
        "A unit on the negative side keeps learning.", "a slope of 0.01 where a unit is off",
    )  # fmt: skip


_DISTANCES = frozenset(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"))


def _fits_perfectly(snapshot: Snapshot) -> bool:
    """Whether every loss is a distance, and zero."""
    calls = [c for c in snapshot.experiment.calls if not math.isnan(c.value)]
    return bool(calls) and all(c.op in _DISTANCES and c.value == 0 for c in calls)


# -- which parameters ------------------------------------------------------------------------------


def _none(p: Parameter) -> bool:
    return p.grad is None


def _zero(p: Parameter) -> bool:
    return p.grad is not None and p.grad.count > 0 and p.grad.zeros == p.grad.total


def _users(snapshot: Snapshot, parameters: list[Parameter]) -> dict[str, list[Layer]]:
    """The rows that use a parameter, by its name.

    For a part of an opaque layer that layer's; for a bare parameter the first row of its module.
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


def _silent(snapshot: Snapshot) -> frozenset[int]:
    """Nodes whose own weight lets no gradient pass: zeros in heads, gammas, scales; equal heads.

    The softmax's gradients sum to zero: through a head whose rows are equal they cancel.
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
class _Silence:
    """Nodes whose own weight lets no gradient pass."""

    stops: frozenset[int]
    reaches_output: list[bool]  # for each node, whether a way leads past them to an output
    sick: int  # those of them (as bits) that are no head, no scale and no end of a branch


def _silence(snapshot: Snapshot) -> _Silence:
    stops = _silent(snapshot)
    sick = (n for n in stops if not _is_benign(snapshot, n))
    return _Silence(stops, graph.reaches_output(snapshot, stops), graph.bits(sick))


def _by_construction(snapshot: Snapshot, p: Parameter, rows: list[Layer], silent: _Silence) -> bool:
    if not rows:
        return False
    stops = silent.stops
    for row in rows:
        is_bias = row.weight is not None and row.weight.bias == p.name
        before_norm = is_bias and any(
            snapshot.nodes[n].op in ops.NORMS for n in flow.users(snapshot, row.node)
        )
        others = len(stops) - (row.node in stops)
        starts_at_zero = others > 0 and not silent.reaches_output[row.node]
        behind_zero = bool(stops & set(snapshot.nodes[row.node].inputs)) and row.op in ops.NORMS
        if not (before_norm or behind_zero) and not (
            starts_at_zero and not graph.descendant_bits(snapshot)[row.node] & silent.sick
        ):
            return False
    return True


def _cancels(snapshot: Snapshot, p: Parameter, rows: list[Layer]) -> bool:
    """Whether its layer gets a gradient that sums to zero over the batch.

    A bias whose weight does learn: the loss ignores a shift. Or a weight and a bias at a minimum.
    """
    for row in rows:
        if row.weight is None:
            return False
        is_bias = row.weight.bias == p.name
        weight = snapshot.parameter.get(row.weight.name)
        if is_bias and weight is not None and weight.grad is not None and not _zero(weight):
            continue
        arrives = row.grad is not None and not _is_silent(row) and not row.grad.nonfinite
        reads = row.input is not None and row.input.zeros < row.input.total
        if not (arrives and reads):
            return False
    return bool(rows)


def _reads_zeros(rows: list[Layer]) -> bool:
    read = [row.input for row in rows if row.input is not None]
    return bool(rows) and len(read) == len(rows) and all(x.zeros == x.total for x in read)


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
