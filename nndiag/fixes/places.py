"""Where a normalisation can go in a model, and which one."""

from __future__ import annotations

import math

from nndiag import flow, ops
from nndiag.fixes import facts
from nndiag.fixes.actions import Argument
from nndiag.stats import Layer, Snapshot, UnitStats

__all__ = [
    "CHANNELS",
    "GROUPS",
    "ONLY_SIGNS",
    "SMALL_BATCH",
    "Norm",
    "Place",
    "after_activation",
    "after_weights",
]

SMALL_BATCH = 16
"""Samples under which BatchNorm's own noise is a fault (Wu & He 2018, figure 1: from 32 to 16 its
error begins to rise), so GroupNorm or LayerNorm is proposed."""
GROUPS, CHANNELS = 32, 4
"""GroupNorm gets at most 32 groups, each of at least 4 channels where possible (Wu & He 2018, table
3: with one channel per group, which is instance norm, it is worst)."""
ONLY_SIGNS = 2
"""Two values that are normalised together become -1 and 1, whatever they were."""

Norm = tuple[Argument, ...]
"""A class of torch.nn and its arguments: ``("BatchNorm1d", 64)``."""
Place = tuple[str, str, Norm]
"""A verb of ``actions.VERBS``, the module that it changes, and the normalisation."""


def after_weights(snapshot: Snapshot, layer: Layer) -> Place | None:
    """The place of a normalisation between a weight layer and its activation.

    None unless an activation follows directly, without weights, joins or normalisations between. So
    nothing is added inside a residual sum or before another normalisation.
    """
    activation = flow.activation_after(snapshot, layer)
    norm = _norm(snapshot, layer, layer.output.units, layer.op)
    if activation is None or norm is None or _is_repeated(snapshot, layer):
        return None
    if _can_have_norm(snapshot, activation) and _reads_unchanged(snapshot, activation, layer):
        return "insert-before", flow.owner(snapshot, activation), norm
    if facts.is_named(layer):
        return "insert-after", flow.owner(snapshot, layer), norm
    return None


def after_activation(snapshot: Snapshot, activation: Layer) -> Place | None:
    """The place of a normalisation between an activation and the next weights."""
    readers = _readers(snapshot, activation)
    if not readers:
        return None
    op_before = next((row.op for row in flow.makers(snapshot, activation)), "")
    norm = _norm(snapshot, activation, activation.output.units, op_before)
    if norm and _can_have_norm(snapshot, activation) and _has_units_of(activation, op_before):
        return "insert-after", flow.owner(snapshot, activation), norm
    reader = readers[0]
    entering = reader.input.units if reader.input is not None else None
    norm = _norm(snapshot, reader, entering, reader.op)
    if norm and len(readers) == 1 and _can_have_norm(snapshot, reader):
        return "insert-before", flow.owner(snapshot, reader), norm
    return None


def _is_repeated(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a module runs at several places: one normalisation cannot serve them all."""
    return flow.owner(snapshot, layer) != layer.name or f"{layer.name}@2" in snapshot.by_name


def _norm(snapshot: Snapshot, layer: Layer, units: UnitStats | None, op: str) -> Norm | None:
    """The normalisation for values of a layer's shape, with the units of ``op``.

    BatchNorm, but for few samples, and for sequences, where padding would be counted.
    """
    width, shape = len(units) if units is not None else 0, layer.shape
    if op not in ops.WEIGHTED or not width or len(shape) < 2 or "complex" in layer.dtype:
        return None
    few = min(snapshot.samples / max(snapshot.batches, 1), shape[0]) < SMALL_BATCH
    if op.startswith("conv"):
        if len(shape) != int(op[-2]) + 2:
            return None
        if not few:
            return f"BatchNorm{len(shape) - 2}d", width
        groups = max(
            g for g in range(1, GROUPS + 1) if width % g == 0 and (g == 1 or width // g >= CHANNELS)
        )
        enough = width // groups * math.prod(shape[2:]) > ONLY_SIGNS
        return ("GroupNorm", groups, width) if enough else None
    if not few and len(shape) == 2:
        return "BatchNorm1d", width
    return ("LayerNorm", width) if width > ONLY_SIGNS else None


def _can_have_norm(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a module can have a normalisation beside it."""
    return facts.is_named(layer) and not _is_repeated(snapshot, layer)


def _has_units_of(layer: Layer, op: str) -> bool:
    """Whether a layer's units lie on the axis where ``op`` puts them, and on no other."""
    width, axis = len(layer.output.units or ()), 1 if op.startswith("conv") else -1
    return layer.shape[axis] == width and layer.shape[1:].count(width) == 1


def _reads_unchanged(snapshot: Snapshot, activation: Layer, layer: Layer) -> bool:
    """Whether an activation reads a layer's output unchanged: not pooled or reshaped."""
    straight = snapshot.nodes[activation.node].inputs == (layer.node,)
    return straight and activation.shape == layer.shape and _has_units_of(layer, layer.op)


def _readers(snapshot: Snapshot, activation: Layer) -> list[Layer]:
    """The weight layers that read an activation; none if something else reads it too."""
    users = flow.users(snapshot, activation.node)
    rows = [row for node in users if (row := snapshot.layer_at(node)) is not None]
    alone = all(
        row.op in ops.WEIGHTED and len(snapshot.nodes[row.node].inputs) == 1 for row in rows
    )
    is_output = activation.node in snapshot.outputs
    return rows if alone and len(rows) == len(users) and not is_output else []
