"""Where data enter a network: the first layers with weights, and what they read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nndiag import flow, graph, ops
from nndiag.columns import Columns
from nndiag.numbers import number
from nndiag.stats import Layer, Node, Snapshot

__all__ = [
    "Reading",
    "consequence",
    "entrances",
    "first_layers",
    "is_normalised_behind",
    "reading",
]


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


class Reading(NamedTuple):
    """What a first layer reads. ``times``: the median over columns of |mean| over std.

    ``least_std``, ``most_std``: of its columns, without those that are constant.
    """

    rms: float
    min: float
    max: float
    nonfinite: int
    times: float
    least_std: float
    most_std: float


def reading(layer: Layer) -> Reading | None:
    """What a layer reads, as far as it was measured; of a recurrent layer, a sample."""
    facts, stats = layer.facts, layer.input
    if stats is None or not stats.total:
        names = [f"read_{name}" for name in Reading._fields if name != "nonfinite"]
        if not all(name in facts for name in names):
            return None
        lost = int(facts["read_nonfinite_count"])
        return Reading(
            nonfinite=lost, **{name.removeprefix("read_"): facts[name] for name in names}
        )
    means, stds = [stats.mean], [stats.std]
    if stats.units is not None:
        means, stds = stats.units.mean.tolist(), stats.units.std.tolist()
    varied = [(m, s) for m, s in zip(means, stds, strict=True) if s > 1e-6 * abs(m)]
    times = sorted(abs(m) / s for m, s in varied)
    return Reading(
        stats.rms,
        stats.min,
        stats.max,
        stats.nonfinite,
        times[(len(times) - 1) // 2] if times else 0.0,
        min((s for _, s in varied), default=math.nan),
        max((s for _, s in varied), default=math.nan),
    )


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


def is_normalised_behind(snapshot: Snapshot, layer: Layer, over_samples: bool = False) -> bool:
    """Whether a layer's output is normalised before anything else uses it.

    ``over_samples``: by each unit's own mean over samples, as batch normalisation does.
    """
    norms = ops.UNIT_CENTRED if over_samples else ops.NORMS
    users = list(_users(snapshot, layer.node))
    return bool(users) and all(op in norms for op in users)


def _users(snapshot: Snapshot, node: int) -> Iterator[str]:
    for index in snapshot.consumers[node]:
        op = snapshot.nodes[index].op
        if op in ops.TRANSPARENT:
            yield from _users(snapshot, index)
        else:
            yield op


def consequence(snapshot: Snapshot, layers: Sequence[Layer]) -> tuple[str, dict[str, float]]:
    """What the data do to the layers that read them: the end of a sentence, and its numbers."""
    evidence: dict[str, float] = {}
    parts: list[str] = []
    shares = [
        (row.flat.share, row)
        for layer in layers
        if (row := flow.activation_after(snapshot, layer)) is not None
        and row.flat is not None
        and (act := flow.act_of(row)) is not None
        and len(act.flat) == 2
        and act.family != "rectifier"
    ]
    if shares:
        share, row = max(shares, key=lambda pair: pair[0])
        evidence["saturated"] = share
        parts.append(f"{number(share, 'share')} of the values of {row.name} are saturated")
    else:
        size = max(layer.output.rms for layer in layers)
        parts.append(f"its outputs have an rms of {size:.3g}")
    evidence["output_rms"] = max(layer.output.rms for layer in layers)
    weights = [
        snapshot.parameter[layer.weight.name]
        for layer in layers
        if layer.weight is not None and layer.weight.name in snapshot.parameter
    ]
    graded = sum(p.graded_rows for p in weights)
    if graded:
        one_sign = sum(p.one_sign_rows for p in weights)
        evidence["one_sign"] = one_sign / graded
        if one_sign > graded / 2:
            parts.append(
                f"the weight gradients of {one_sign:,} of its {flow.plural(graded, 'unit')} all "
                "have one sign"
            )
    return f": {' and '.join(parts)}.", evidence
