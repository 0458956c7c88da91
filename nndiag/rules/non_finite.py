"""NaN or infinity in an output, a gradient, a parameter, the input or the loss.

Reported where it begins: the first layer whose output is not finite while everything it read was,
or the first gradient on the way back. What lies behind is counted, not listed. No other rule judges
a layer whose numbers are not finite.

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
from collections.abc import Generator, Iterator

from nndiag import flow
from nndiag.rule import Finding, Limits, Prescription, Rule
from nndiag.stats import Layer, Snapshot, TensorStats

LARGEST = {"float16": 65_504.0, "bfloat16": 3.39e38, "float32": 3.40e38, "float64": 1.80e308}

RULE = Rule(
    code="ND401",
    name="non-finite",
    severity="error",
    about="activations",
    uses=("gradients",),
    cures=(
        Prescription(
            "Keep the argument of log, sqrt and division away from zero.", "", "x.clamp(min=1e-6)"
        ),
        Prescription(
            "Where values grow towards the end of the number format: a smaller learning rate or "
            "init, or bfloat16 or float32 in place of float16."
        ),
    ),
)


def check(snapshot: Snapshot, limit: Limits) -> Iterator[Finding]:
    origin = yield from _values(snapshot)
    if not origin:
        yield from _gradients(snapshot)


def _values(snapshot: Snapshot) -> Generator[Finding, None, bool]:
    found = False
    for name, stats in snapshot.inputs.items():
        if stats.nonfinite:
            yield RULE.finding(name, f"the input holds {_count(stats)}", evidence=_evidence(stats))
            return True
    for p in snapshot.parameters:
        if p.value.nonfinite:
            found = True
            yield RULE.finding(
                p, f"the parameter holds {_count(p.value)}", evidence=_evidence(p.value)
            )
    sick = {layer.node for layer in snapshot.layers if layer.output.nonfinite}
    if found:
        return True
    for layer in snapshot.layers:
        if layer.output.nonfinite and not flow.ancestors(snapshot, layer.node) & sick:
            found = True
            yield RULE.finding(
                layer, _origin(snapshot, layer, len(sick)), evidence=_evidence(layer.output)
            )
    if not found and not math.isfinite(snapshot.loss.value) and snapshot.loss.kind != "none":
        found = True
        yield RULE.finding(
            "(loss)",
            f"the loss ({snapshot.loss.kind}) is {snapshot.loss.value}, though every layer's "
            "output "
            "is finite",
        )
    return found


def _origin(snapshot: Snapshot, layer: Layer, sick: int) -> str:
    stats = layer.output
    text = f"its output holds {_count(stats)}"
    if stats.count:
        largest = max(abs(stats.min), abs(stats.max))
        end = LARGEST.get(layer.dtype)
        if end and stats.inf and largest > 1e-3 * end:
            text += f"; its largest finite value is {largest:.3g}, {layer.dtype} ends at {end:.3g}"
    op = flow.source_op(snapshot, layer)
    if layer.input is not None and layer.input.nonfinite:
        text += f"; so does what it reads (made by {op.lstrip('?')})"
    elif layer.input is not None:
        text += "; what it reads is finite"
    if sick > 1:
        text += f"; {sick - 1} more layers have it from there or beside it"
    return text


def _gradients(snapshot: Snapshot) -> Iterator[Finding]:
    sick = [layer for layer in snapshot.layers if layer.grad is not None and layer.grad.nonfinite]
    nodes = {layer.node for layer in sick}
    for layer in sick:
        assert layer.grad is not None
        if not flow.descendants(snapshot, layer.node) & nodes:
            yield RULE.finding(
                layer,
                f"the gradient of its output holds {_count(layer.grad)}, though all outputs "
                "are finite",
                evidence=_evidence(layer.grad),
            )
    if sick:
        return
    for p in snapshot.parameters:
        if p.grad is not None and p.grad.nonfinite:
            yield RULE.finding(
                p, f"its gradient holds {_count(p.grad)}", evidence=_evidence(p.grad)
            )


def _count(stats: TensorStats) -> str:
    parts = [f"{n:,} {what}" for n, what in ((stats.nan, "NaN"), (stats.inf, "infinite")) if n]
    return f"{' and '.join(parts)} of {stats.total:,} values"


def _evidence(stats: TensorStats) -> dict[str, float]:
    return {"nan": stats.nan, "inf": stats.inf, "values": stats.total}
