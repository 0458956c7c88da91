"""Frozen weights between layers that train.

What it does
------------

Looks for layers whose weights are frozen (``requires_grad=False``) while layers before and after
them train.

Why it matters
--------------

A layer that does not learn, between layers that do, is rarely intended. Usual causes are a
forgotten ``requires_grad_(False)``, and a parameter that was created again where the optimiser does
not see it. The layers around it have to adapt to a random projection.

When it is no fault
-------------------

Fine-tuning freezes layers on purpose. These are a note at most:

- a frozen prefix, such as a pretrained backbone under a new head;
- a model that is frozen whole;
- a model in which most layers are frozen (LoRA, adapters).

Sick::

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    model[2].weight.requires_grad_(False)
    batch = torch.randn(128, 8)

Well::

    model[2].weight.requires_grad_(True)
"""

from __future__ import annotations

from collections.abc import Iterator

from nndiag import graph, ops
from nndiag.fixes import propose
from nndiag.fixes.fix import advice
from nndiag.rule import Finding, Rule, Threshold, Thresholds
from nndiag.stats import Layer, Snapshot

__all__ = ["RULE", "check"]

RULE = Rule(
    code="ND204",
    name="frozen-layer",
    severity="warning",
    about="parameters",
    thresholds={
        "frozen_share": Threshold(
            0.5, "derived: where most layers are frozen, freezing is the plan", 0, 1, "share"
        ),
        "frozen_values": Threshold(
            2 / 3,
            "derived: one forgotten layer of three equal ones holds a third of the values; under "
            "adapters and LoRA all but a few percent are frozen",
            0,
            1,
            "share",
        ),
    },
    caused_by=("frozen-layer",),
    fixes=(
        advice("Let it train.", "", "layer.requires_grad_(True)"),
        advice("If it is intended, ignore frozen-layer for this model."),
    ),
)


def check(snapshot: Snapshot, thresholds: Thresholds) -> Iterator[Finding]:
    holders = {name: layer for layer in reversed(snapshot.layers) for name in _own(snapshot, layer)}
    layers = sorted({id(x): x for x in holders.values()}.values(), key=lambda x: x.node)
    training = graph.bits(x.node for x in layers if _trains(snapshot, x))
    frozen = [x for x in layers if not training >> x.node & 1]
    if not frozen:
        return
    evidence = {
        "frozen_share": len(frozen) / len(layers),
        "frozen_layers": len(frozen),
        "layers": len(layers),
    }
    if not any(p.trainable for p in snapshot.parameters):
        yield RULE.finding(
            frozen[0],
            f"All {len(snapshot.parameters)} parameters of the model are frozen.",
            summary=f"Nothing will learn: all {len(snapshot.parameters)} parameters are frozen.",
            severity="note",
            evidence=evidence,
        )
        return
    still = sum(p.value.total for p in snapshot.parameters if not p.trainable)
    values = still / max(sum(p.value.total for p in snapshot.parameters), 1)
    most = (
        values > thresholds.frozen_values and len(frozen) > 1
    )  # one may be large and yet forgotten
    planned = most or len(frozen) > thresholds.frozen_share * len(layers)
    between = [
        x
        for x in frozen
        if graph.ancestor_bits(snapshot)[x.node] & training
        and graph.descendant_bits(snapshot)[x.node] & training
    ]
    for layer in () if planned else between:
        what = layer.weight.name if layer.weight is not None else layer.name
        yield RULE.finding(
            layer,
            f"{what} is frozen, but layers before and after it train.",
            summary=f"{layer.name} will not learn: it is frozen, but layers before and after it "
            "train.",
            against=("frozen_share", thresholds),
            fixes=(*propose.unfreeze(snapshot, [layer]), *RULE.fixes[-1:]),
            evidence=evidence,
        )
    if planned or not between:
        yield RULE.finding(
            frozen[0],
            f"{len(frozen)} of {len(layers)} layers with weights are frozen.",
            summary=f"{len(frozen)} of {len(layers)} layers with weights will not learn: they are "
            "frozen.",
            severity="note",
            against=("frozen_share", thresholds),
            evidence=evidence,
        )


def _own(snapshot: Snapshot, layer: Layer) -> list[str]:
    """The names of the weights a row works with; of all matrices inside for an opaque one."""
    if layer.weight is not None:
        return [layer.weight.name] if layer.weight.name in snapshot.parameter else []
    if layer.op not in ops.LEARNED:
        return []
    owner = layer.name.partition("@")[0]
    inside = snapshot.parameters_in.get(owner, ())
    return [p.name for p in inside if len(p.shape) > 1]


def _trains(snapshot: Snapshot, layer: Layer) -> bool:
    return any(snapshot.parameter[name].trainable for name in _own(snapshot, layer))
