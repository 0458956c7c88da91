"""Frozen weights with trainable ones before and behind.

A layer that does not learn, in the middle of layers that do, is rarely meant: a forgotten
``requires_grad_(False)``, a parameter re-created outside the optimiser's sight. The layers around
it have to adapt to a random projection.

A frozen prefix (a pretrained backbone under a new head), a model frozen whole, or one in which most
layers are frozen (LoRA, adapters) is how fine-tuning is done: a note at most.

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

from nndiag import flow
from nndiag.rule import Finding, Limits, Prescription, Rule, Threshold
from nndiag.stats import Layer, Snapshot

RULE = Rule(
    code="ND204",
    name="frozen-layer",
    severity="warning",
    about="parameters",
    thresholds={
        "frozen_share": Threshold(
            0.5, "derived: where most layers are frozen, freezing is the plan", 0, 1
        ),
        "frozen_values": Threshold(
            2 / 3,
            "derived: one forgotten layer of three equal ones holds a third of the values; under "
            "adapters and LoRA all but a few percent are frozen",
            0,
            1,
        ),
    },
    cures=(
        Prescription("Let it train.", "", "for p in layer.parameters(): p.requires_grad_(True)"),
        Prescription("If it is meant: ignore frozen-layer for this model."),
    ),
)


def check(snapshot: Snapshot, limit: Limits) -> Iterator[Finding]:
    weights = [
        layer
        for layer in snapshot.layers
        if layer.weight and layer.weight.name in snapshot.parameter
    ]
    frozen = [layer for layer in weights if not _trains(snapshot, layer)]
    if not frozen:
        return
    if not any(p.trainable for p in snapshot.parameters):
        yield RULE.finding(
            frozen[0],
            f"every parameter of the model is frozen ({len(snapshot.parameters)})",
            severity="note",
            evidence={
                "frozen_share": len(frozen) / len(weights),
                "frozen_layers": len(frozen),
                "layers": len(weights),
            },
        )
        return
    training = {layer.node for layer in weights if _trains(snapshot, layer)}
    between = [
        layer
        for layer in frozen
        if flow.ancestors(snapshot, layer.node) & training
        and flow.descendants(snapshot, layer.node) & training
    ]
    still = sum(p.value.total for p in snapshot.parameters if not p.trainable)
    values = still / max(sum(p.value.total for p in snapshot.parameters), 1)
    planned = len(frozen) > limit.frozen_share * len(weights) or values > limit.frozen_values
    if between and not planned:
        for layer in between:
            assert layer.weight is not None
            yield RULE.finding(
                layer,
                f"{layer.weight.name} is frozen, with trainable layers before and behind it",
                against=("frozen_share", limit),
                evidence={
                    "frozen_share": len(frozen) / len(weights),
                    "frozen_layers": len(frozen),
                    "layers": len(weights),
                },
            )
        return
    yield RULE.finding(
        frozen[0],
        f"{len(frozen)} of {len(weights)} layers with weights are frozen",
        severity="note",
        against=("frozen_share", limit),
        evidence={
            "frozen_share": len(frozen) / len(weights),
            "frozen_layers": len(frozen),
            "layers": len(weights),
        },
    )


def _trains(snapshot: Snapshot, layer: Layer) -> bool:
    assert layer.weight is not None
    return snapshot.parameter[layer.weight.name].trainable
