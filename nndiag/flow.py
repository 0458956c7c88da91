"""The layers of a snapshot along its data flow: chains, what follows a layer, roles, gates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from nndiag import activations, graph, theory
from nndiag.ops import (
    CONTRACTIONS,
    DISTRIBUTIONS,
    GATES,
    LEARNED,
    NORMS,
    ONE_SIDED,
    PRODUCTS,
    TRANSPARENT,
    WEIGHTED,
    WITH_WEIGHTS,
)
from nndiag.stats import Layer, Snapshot

__all__ = [
    "ROOT",
    "Chain",
    "Link",
    "act_of",
    "activation_after",
    "calls",
    "chains",
    "has_weights_before",
    "hidden_activations",
    "is_activation",
    "is_module",
    "leads_on",
    "makers",
    "owner",
    "plural",
    "readers",
    "role",
    "source_nodes",
    "source_op",
    "source_weight",
    "users",
    "width",
]


ROOT = "(root)"  # the row of a model that is a single layer


def is_module(layer: Layer) -> bool:
    """Whether a layer is a module and not a function call."""
    return layer.kind != "function"


def owner(snapshot: Snapshot, layer: Layer) -> str:
    """The name of a layer's module: "act" for "act@2", which is its second call."""
    first = re.sub(r"@\d+$", "", layer.name)
    return "" if first == ROOT else first if first in snapshot.by_name else layer.name


def act_of(layer: Layer) -> theory.Activation | None:
    """The activation that a layer applies; None for any other layer."""
    return activations.named(layer.op, **layer.options)


def is_activation(layer: Layer) -> bool:
    act = act_of(layer)
    return act is not None and act.family != "linear" and layer.input is not None


@dataclass(frozen=True)
class Link:
    """One step of a chain: a weight layer, its activation, and layers that pass values on."""

    layer: Layer
    activation: Layer | None
    between: tuple[Layer, ...]  # layers between the activation and the next weight layer


@dataclass(frozen=True)
class Chain:
    """Weight layers that follow one another with nothing but activations and pooling between.

    It ends at a residual addition, a concatenation, a normalisation, a recurrence, a branching or
    the model's output: ``ends``.
    """

    links: tuple[Link, ...]
    starts: str  # op of the node before the chain
    ends: str  # op of the node after the chain; "output" for the model's output
    repeated: bool  # whether one module is called several times: steps in time, not in depth

    @property
    def hidden(self) -> tuple[Link, ...]:
        """Links whose weight layer is followed by an activation: all but an output layer."""
        return tuple(link for link in self.links if link.activation is not None)


@graph.once
def chains(snapshot: Snapshot) -> tuple[Chain, ...]:
    weights = [layer for layer in snapshot.layers if layer.op in WEIGHTED and layer.weight]
    following = {layer.name: _follow(snapshot, layer) for layer in weights}
    not_first = {after.next_weights.name for after in following.values() if after.next_weights}
    all_chains = []
    for layer in weights:
        if layer.name in not_first:
            continue
        links, visited, weight_names = [], set(), set()
        ends, current = "output", layer
        while True:
            activation, between, next_weights, ends = following[current.name]
            links.append(Link(current, activation, between))
            visited.add(current.name)
            weight_names.add(current.weight.name if current.weight else "")
            if next_weights is None or next_weights.name in visited:
                break
            current = next_weights
        starts = _op_before(snapshot, layer)
        all_chains.append(Chain(tuple(links), starts, ends, len(weight_names) < len(links)))
    return tuple(all_chains)


class _Following(NamedTuple):
    """What comes after a weight layer, up to the next one or the end of the chain."""

    activation: Layer | None
    between: tuple[Layer, ...]
    next_weights: Layer | None
    ends: str  # op of the node where the walk stopped


def _follow(snapshot: Snapshot, layer: Layer) -> _Following:
    activation: Layer | None = None
    between: list[Layer] = []
    node = layer.node
    while True:
        used = snapshot.consumers[node]
        if node in snapshot.outputs and not used:
            return _Following(activation, tuple(between), None, "output")
        if len(used) != 1 or node in snapshot.outputs:
            ends = "output" if not used else "branch"
            return _Following(activation, tuple(between), None, ends)
        node = used[0]
        op = snapshot.nodes[node].op
        row = snapshot.layer_at(node)
        if len(snapshot.nodes[node].inputs) != 1:
            return _Following(activation, tuple(between), None, op)
        if row is not None and row.op in WEIGHTED and row.weight is not None:
            return _Following(activation, tuple(between), row, op)
        if row is not None and activation is None and is_activation(row):
            activation = row
        elif op in TRANSPARENT:
            if row is not None:
                between.append(row)
        else:
            return _Following(activation, tuple(between), None, op)


def activation_after(snapshot: Snapshot, layer: Layer) -> Layer | None:
    """The activation of a layer's output, if only layers that pass values on lie between."""
    return _follow(snapshot, layer).activation


def makers(snapshot: Snapshot, layer: Layer) -> tuple[Layer, ...]:
    """The nearest layers before this one that learn or normalise: they set its input's scale."""
    rows: dict[str, Layer] = {}
    queue, visited = list(snapshot.nodes[layer.node].inputs), set()
    while queue:
        node = queue.pop()
        if node in visited:
            continue
        visited.add(node)
        row = snapshot.layer_at(node)
        if row is not None and row.op in LEARNED | NORMS:
            rows.setdefault(row.name, row)
        else:
            queue += snapshot.nodes[node].inputs
    return tuple(sorted(rows.values(), key=lambda row: row.node))


def _op_before(snapshot: Snapshot, layer: Layer) -> str:
    node = layer.node
    while snapshot.nodes[node].inputs:
        node = snapshot.nodes[node].inputs[0]
        if snapshot.nodes[node].op not in TRANSPARENT:
            return snapshot.nodes[node].op
    return "input"


def role(snapshot: Snapshot, layer: Layer) -> str:
    """What a layer's values are used for: "hidden", "gate", "attention" or "output".

    A gate is multiplied into another tensor; an output reaches the end of the model without
    passing another layer with weights. Of a tanh times a sigmoid the sigmoid is the gate.
    """
    direct = users(snapshot, layer.node)
    ops = {snapshot.nodes[n].op for n in direct}
    if layer.op in DISTRIBUTIONS and ops & (CONTRACTIONS | {"mul"}):
        return "attention"
    if ops & PRODUCTS and not _is_gated(snapshot, layer, direct):
        return "gate"
    return "hidden" if leads_on(snapshot, layer) else "output"


def _is_gated(snapshot: Snapshot, layer: Layer, products: list[int]) -> bool:
    """Whether a gate is applied to it, as to the candidate of a hand-written LSTM or GRU.

    That is a tanh of the output of weights, used only in products with a sigmoid. The tanh of a
    cell's state is none: the state sums up over time and may well saturate.
    """
    if layer.op != "tanh" or not all(snapshot.nodes[n].op == "mul" for n in products):
        return False
    before = _sources(snapshot, layer.node)
    if any(snapshot.nodes[n].op == "add" for n in before):
        before = [m for n in before for m in _sources(snapshot, n)]
    if not any(snapshot.nodes[n].op in WEIGHTED for n in before):
        return False
    return all(
        any(snapshot.nodes[n].op in GATES for n in _sources(snapshot, product))
        for product in products
    )


def _sources(snapshot: Snapshot, node: int) -> list[int]:
    """The nodes whose values a node uses, skipping those that pass values on, and 1 - x."""
    sources = []
    for source in snapshot.nodes[node].inputs:
        while len(snapshot.nodes[source].inputs) == 1 and snapshot.nodes[source].op in ONE_SIDED:
            source = snapshot.nodes[source].inputs[0]
        sources.append(source)
    return sources


def leads_on(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether another layer with weights comes after this one."""
    return bool(graph.descendant_bits(snapshot)[layer.node] & _learned_bits(snapshot))


def has_weights_before(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a layer with weights comes before this one, if only an embedding."""
    return bool(graph.ancestor_bits(snapshot)[layer.node] & _bits_with_weights(snapshot))


def users(snapshot: Snapshot, node: int) -> list[int]:
    """The nodes that use a node's values, skipping nodes that only pass them on."""
    nodes, queue, visited = [], list(snapshot.consumers[node]), set()
    while queue:
        current = queue.pop()
        if current in visited:
            continue
        visited.add(current)
        op = snapshot.nodes[current].op
        if op in TRANSPARENT or (op in ONE_SIDED and len(snapshot.nodes[current].inputs) == 1):
            queue += snapshot.consumers[current]
        else:
            nodes.append(current)
    return nodes


@graph.once
def _learned_bits(snapshot: Snapshot) -> int:
    return graph.bits(index for index, node in enumerate(snapshot.nodes) if node.op in LEARNED)


@graph.once
def _bits_with_weights(snapshot: Snapshot) -> int:
    return graph.bits(index for index, node in enumerate(snapshot.nodes) if node.op in WITH_WEIGHTS)


def source_weight(snapshot: Snapshot, layer: Layer) -> Layer | None:
    """The weight layer before an activation, if only layers that pass values on lie between."""
    node = layer.node
    while len(snapshot.nodes[node].inputs) == 1:
        node = snapshot.nodes[node].inputs[0]
        row = snapshot.layer_at(node)
        if row is not None and row.op in WEIGHTED:
            return row
        if snapshot.nodes[node].op not in TRANSPARENT:
            return None
    return None


@graph.once
def source_nodes(snapshot: Snapshot) -> list[int]:
    """For each node the node it reads, skipping those that pass values on; -1: several or none."""
    sources: list[int] = []
    for node in snapshot.nodes:
        before = node.inputs[0] if len(node.inputs) == 1 else -1
        hands_on = before >= 0 and snapshot.nodes[before].op in TRANSPARENT
        sources.append(sources[before] if hands_on else before)
    return sources


@graph.once
def readers(snapshot: Snapshot) -> dict[int, list[Layer]]:
    """For each node the weight layers that read it, skipping nodes that pass values on."""
    by_source: dict[int, list[Layer]] = {}
    for node, source in enumerate(source_nodes(snapshot)):
        row = snapshot.layer_at(node)
        if row is not None and row.weight is not None:
            by_source.setdefault(source, []).append(row)
    return by_source


def source_op(snapshot: Snapshot, layer: Layer) -> str:
    """The op of the node that an activation reads; "join" if it reads several."""
    inputs = snapshot.nodes[layer.node].inputs
    return snapshot.nodes[inputs[0]].op if len(inputs) == 1 else "join"


def width(layer: Layer) -> int:
    """How many independent inputs a weight layer has: features, or channels.

    The taps of a convolution count as one. For 10 layers of 3x3 with 16 channels, the band of a
    dense network of width 16 held in all of 400 draws; the band for the fan-in failed in 13 %
    (measured: reports/calibration/conv-band.csv).
    """
    fan_in = layer.weight.fan_in if layer.weight is not None else 1
    units = layer.input.units if layer.input is not None else None
    return fan_in if units is None else min(fan_in, len(units))


@graph.once
def calls(snapshot: Snapshot) -> dict[str, frozenset[int]]:
    """For each weight the nodes that multiply with it."""
    nodes_of: dict[str, set[int]] = {}
    for layer in snapshot.layers:
        if layer.weight is not None:
            nodes_of.setdefault(layer.weight.name, set()).add(layer.node)
    return {name: frozenset(nodes) for name, nodes in nodes_of.items()}


def plural(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def hidden_activations(snapshot: Snapshot) -> Iterator[Layer]:
    """Activations that feed further layers and are no gates."""
    return (
        layer
        for layer in snapshot.layers
        if is_activation(layer) and role(snapshot, layer) == "hidden"
    )
