"""NaN or infinity in an output, a gradient, a parameter, the input or the loss.

What it does
------------

Reports where NaN or infinity begins: the first layer whose output is not finite while everything it
read was, or the first such gradient on the way back. The layers behind it are counted, not listed.

No other rule judges a layer whose numbers are not finite.

Why it matters
--------------

Every operation on NaN gives NaN. One NaN makes the loss NaN, and after one update every weight.

When it is no fault
-------------------

Infinities that no later layer takes over, such as those of an attention mask, are a note. So are
gradients that go no further, such as those of sqrt(relu(x)) at zero.

Sick::

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)
        def forward(self, x):
            return self.b(torch.sqrt(self.a(x)))
    torch.manual_seed(0)
    model, batch = Net(), torch.randn(64, 8)

Well::

    model = nn.Sequential(model.a, nn.Softplus(), model.b)

References: IEEE 754-2019, sections 6.1 and 6.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from nndiag import flow, graph, ops
from nndiag.fixes import propose
from nndiag.fixes.fix import Fix, advice
from nndiag.rule import Finding, Rule, Thresholds
from nndiag.stats import Layer, Parameter, Snapshot, TensorStats

__all__ = ["BACKWARD", "CLEAN", "LARGEST", "MASKED", "RELOAD", "RULE", "STOPPED", "check"]

LARGEST = {"float16": 65_504.0, "bfloat16": 3.39e38, "float32": 3.40e38, "float64": 1.80e308}

CLEAN = (
    advice(
        "Clean the data: find the samples, then fill in or drop them.",
        "One NaN in a batch makes the loss NaN, and after one update every weight.",
        "bad = ~torch.isfinite(x).flatten(1).all(1)",
    ),
)
RELOAD = (
    advice(
        "Load the last checkpoint whose parameters are finite.",
        "A parameter that is NaN stays NaN in training. The run diverged earlier.",
    ),
    advice(
        "Run it again with a smaller learning rate, and clip the gradient's norm.",
        "",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
    ),
)
BACKWARD = (
    advice(
        "Add a small number under roots, norms and distances.",
        "Their slope at zero is infinite, and infinity times zero is NaN.",
        "(x.square().sum(-1) + 1e-12).sqrt()",
    ),
    advice("In float16, scale the loss (torch.amp.GradScaler), or use bfloat16."),
)
RULE = Rule(
    code="ND401",
    name="non-finite",
    severity="error",
    about="activations",
    uses=("gradients",),
    caused_by=("training-damage", "input-missing", "input-scale"),
    fixes=(
        advice(
            "Keep the argument of log, sqrt and division away from zero.", "", "x.clamp(min=1e-6)"
        ),
        advice(
            "Lower the learning rate or the init, or use bfloat16 or float32 for float16.",
            "Values that keep growing exceed the largest number of the format.",
        ),
    ),
)
STOPPED = " It goes no further, as at the zeros of a ReLU: no parameter's gradient has it."
MASKED = " It reaches no later layer, so it looks like a mask."


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    findings = list(_values(snapshot))
    yield from findings
    if not any(f.severity == "error" for f in findings):
        yield from _gradients(snapshot)


def _values(snapshot: Snapshot) -> Iterator[Finding]:
    sick = graph.bits(layer.node for layer in snapshot.layers if layer.output.nonfinite)
    lost = snapshot.loss.kind != "none" and not math.isfinite(snapshot.loss.value)
    blamed = False
    for name, stats in snapshot.inputs.items():
        if stats.nonfinite:
            harm = _spreads(snapshot, name, sick) or (lost and not sick)
            blamed |= harm
            yield RULE.finding(
                name,
                f"The input holds {_count(stats)}." + ("" if harm else MASKED),
                summary=_summary(f"the input {name} holds", stats, bool(harm)),
                severity="error" if harm else "note",
                fixes=CLEAN if harm else (),
                evidence=_evidence(stats),
            )
    parameters = [p for p in snapshot.parameters if p.value.nonfinite]
    if parameters and not blamed:
        fixes = (
            RELOAD[0],
            *propose.fill_in(parameters),
            *propose.reset(snapshot, parameters),
            *RELOAD[1:],
        )
        yield _parameters(parameters, "The parameter holds", lambda p: p.value, fixes)
    if blamed or parameters:
        return
    origins = [
        layer
        for layer in snapshot.layers
        if layer.output.nonfinite
        and not graph.ancestor_bits(snapshot)[layer.node] & sick
        and not _is_reported_within(snapshot, layer)
    ]
    for layer in origins:
        behind = graph.descendant_bits(snapshot)[layer.node] & sick
        masks = layer.op not in ops.LEARNED and layer.op not in ops.NORMS
        harm = not masks or bool(behind) or lost or any(_sick_gradients(snapshot))
        yield RULE.finding(
            layer,
            _origin(snapshot, layer, sick.bit_count()) + ("" if harm else MASKED),
            summary=_summary(f"the output of {layer.name} holds", layer.output, harm),
            severity="error" if harm else "note",
            fixes=RULE.fixes if harm else (),
            evidence=_evidence(layer.output),
        )
    if lost and not origins:
        yield RULE.finding(
            "(loss)",
            f"The loss ({snapshot.loss.kind}) is {snapshot.loss.value}, although every layer's "
            "output is finite.",
            summary=f"Training will fail: the loss is {snapshot.loss.value}.",
        )


def _is_reported_within(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether it is a module around the call that made it: that has a row of its own."""
    call = snapshot.layer_at(layer.node)
    return call is not None and call is not layer and call.output.nonfinite > 0


def _spreads(snapshot: Snapshot, name: str, sick: int) -> bool:
    """Whether a layer has what an input holds, with no layer of finite outputs between them."""
    inputs = [i for i, node in enumerate(snapshot.nodes) if node.op == "input"]
    start = dict(zip(snapshot.inputs, inputs, strict=False)).get(name)
    todo = list(snapshot.consumers[start]) if start is not None else []
    seen: set[int] = set()
    while todo:
        node = todo.pop()
        if sick >> node & 1:
            return True
        if node not in seen and snapshot.nodes[node].layer < 0:
            todo += snapshot.consumers[node]
        seen.add(node)
    return False


def _origin(snapshot: Snapshot, layer: Layer, sick: int) -> str:
    stats = layer.output
    text = f"Its output holds {_count(stats)}."
    if stats.count:
        largest = max(abs(stats.min), abs(stats.max))
        end = LARGEST.get(layer.dtype)
        if end and stats.inf and largest > 1e-3 * end:
            text += (
                f" Its largest finite value is {largest:.3g}; the largest that {layer.dtype} can "
                f"hold is {end:.3g}."
            )
    op = flow.source_op(snapshot, layer)
    if layer.input is not None and layer.input.nonfinite:
        text += f" Its input is not finite either (made by {op.lstrip('?')})."
    else:
        text += " Everything before it is finite."
    if sick > 1:
        more = flow.plural(sick - 1, "more layer is", "more layers are")
        text += f" {more} not finite either."
    return text


def _sick_gradients(snapshot: Snapshot) -> Iterator[Layer]:
    return (x for x in snapshot.layers if x.grad is not None and x.grad.nonfinite)


def _gradients(snapshot: Snapshot) -> Iterator[Finding]:
    sick = list(_sick_gradients(snapshot))
    nodes = graph.bits(layer.node for layer in sick)
    parameters = [p for p in snapshot.parameters if p.grad is not None and p.grad.nonfinite]
    for layer in sick:
        assert layer.grad is not None
        if not graph.descendant_bits(snapshot)[layer.node] & nodes:
            harm = parameters or graph.ancestor_bits(snapshot)[layer.node] & nodes
            yield RULE.finding(
                layer,
                f"The gradient of its output holds {_count(layer.grad)}, although all outputs "
                "are finite." + ("" if harm else STOPPED),
                summary=_summary(f"the gradient at {layer.name} holds", layer.grad, bool(harm)),
                severity="error" if harm else "note",
                fixes=BACKWARD if harm else (),
                evidence=_evidence(layer.grad),
            )
    if parameters and not sick:
        yield _parameters(parameters[::-1], "Its gradient holds", lambda p: p.grad, BACKWARD)


def _parameters(
    sick: list[Parameter],
    what: str,
    of: Callable[[Parameter], TensorStats | None],
    fixes: tuple[Fix, ...],
) -> Finding:
    stats = of(sick[0])
    assert stats is not None
    others = flow.plural(len(sick) - 1, "more parameter")
    more = f" The same holds for {others}." if sick[1:] else ""
    whose = sick[0].name if stats is sick[0].value else f"the gradient of {sick[0].name}"
    return RULE.finding(
        sick[0],
        f"{what} {_count(stats)}.{more}",
        summary=_summary(f"{whose} holds", stats, True),
        fixes=fixes,
        evidence=_evidence(stats),
    )


def _summary(what: str, stats: TensorStats, harm: bool) -> str:
    if harm:
        return f"Training will fail: {what} {_count(stats)}."
    return f"{what[0].upper()}{what[1:]} {_count(stats)}; they go no further."


def _count(stats: TensorStats) -> str:
    parts = [f"{stats.nan:,} NaN"] if stats.nan else []
    parts += [flow.plural(stats.inf, "infinity", "infinities")] if stats.inf else []
    return f"{' and '.join(parts)} among {flow.plural(stats.total, 'value')}"


def _evidence(stats: TensorStats) -> dict[str, float]:
    return {"nan": stats.nan, "inf": stats.inf, "values": stats.total}
