"""Where data enter a network: the first layers with weights, and what they read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nndiag import graph, ops
from nndiag.columns import Columns
from nndiag.stats import Layer, Node, Snapshot

__all__ = ["entrances", "first_layers", "is_normalised_behind"]


def first_layers(nodes: Sequence[Node], layers: Sequence[Layer], start: int) -> list[Layer]:
    """The layers with weights that read the values of a node, not normalised on the way.

    An activation or a pooling on the way changes nothing: what counts is what the layer reads.
    """
    users: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        for source in node.inputs:
            users.setdefault(source, []).append(index)
    found: dict[str, Layer] = {}
    todo, seen = list(users.get(start, ())), set[int]()
    while todo:
        index = todo.pop()
        if index in seen:
            continue
        seen.add(index)
        node = nodes[index]
        row = layers[node.layer] if node.layer >= 0 else None
        if row is not None and row.op in ops.LEARNED:
            found[row.name] = row
        elif node.op not in ops.NORMS and node.op not in ops.WITH_WEIGHTS:
            todo += users.get(index, ())
    return sorted(found.values(), key=lambda row: row.node)


@graph.once
def entrances(snapshot: Snapshot) -> dict[str, tuple[Columns, tuple[Layer, ...]]]:
    """For each input that was looked at, its columns and the layers that read it."""
    starts = [i for i, node in enumerate(snapshot.nodes) if node.op == "input"]
    known = snapshot.experiment.inputs
    return {
        name: (known[name], tuple(first_layers(snapshot.nodes, snapshot.layers, start)))
        for name, start in zip(snapshot.inputs, starts, strict=False)
        if name in known
    }


def is_normalised_behind(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a layer's output is normalised before anything else uses it."""
    return bool(users := list(_users(snapshot, layer.node))) and all(
        op in ops.NORMS for op in users
    )


def _users(snapshot: Snapshot, node: int) -> Iterator[str]:
    for index in snapshot.consumers[node]:
        op = snapshot.nodes[index].op
        if op in ops.TRANSPARENT:
            yield from _users(snapshot, index)
        else:
            yield op
