"""Reading the data flow of a snapshot: what follows what, chains, gates, the only path."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from nndiag import activations, theory
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

T = TypeVar("T")


def once(function: Callable[[Snapshot], T]) -> Callable[[Snapshot], T]:
    """Computed once for each snapshot, and forgotten with it."""
    known: WeakKeyDictionary[Snapshot, T] = WeakKeyDictionary()

    @wraps(function)
    def cached(snapshot: Snapshot) -> T:
        if snapshot not in known:
            known[snapshot] = function(snapshot)
        return known[snapshot]

    return cached


ROOT = "(root)"  # the row of a model that is a single layer


def is_module(layer: Layer) -> bool:
    """Whether a row is a module, and not a call."""
    return layer.kind != "function"


def owner(snapshot: Snapshot, layer: Layer) -> str:
    """The name of a row's module: that of the second call of "act" is "act@2"."""
    first = re.sub(r"@\d+$", "", layer.name)
    return "" if first == ROOT else first if first in snapshot.by_name else layer.name


def act_of(layer: Layer) -> theory.Activation | None:
    """The activation a row applies, or None for anything else."""
    return activations.named(layer.op, **layer.options)


def is_activation(layer: Layer) -> bool:
    act = act_of(layer)
    return act is not None and act.family != "linear" and layer.input is not None


@dataclass(frozen=True)
class Link:
    """One step of a chain: a weight layer, the activation after it, and what only hands on."""

    layer: Layer
    activation: Layer | None
    between: tuple[Layer, ...]  # rows between the activation and the next weight layer


@dataclass(frozen=True)
class Chain:
    """Weight layers that follow one another with nothing but activations and pooling between.

    It ends at a residual addition, a concatenation, a normalisation, a recurrence, a branching or
    the model's output: ``ends``.
    """

    links: tuple[Link, ...]
    starts: str  # op of the node the chain begins after
    ends: str  # op of the node it ends before; "output" for the model's output
    repeated: bool  # one module at several places: time, not depth

    @property
    def hidden(self) -> tuple[Link, ...]:
        """Links whose weight layer is followed by an activation: all but an output layer."""
        return tuple(link for link in self.links if link.activation is not None)


@once
def chains(snapshot: Snapshot) -> tuple[Chain, ...]:
    weights = [layer for layer in snapshot.layers if layer.op in WEIGHTED and layer.weight]
    followed = {layer.name: _next(snapshot, layer) for layer in weights}
    has_before = {step.layer.name for _, _, step, _ in followed.values() if step is not None}
    by_name = {layer.name: layer for layer in weights}
    found = []
    for layer in weights:
        if layer.name in has_before:
            continue
        links, seen, names = [], set(), set()
        ends, current = "output", layer
        while True:
            activation, between, step, ends = followed[current.name]
            links.append(Link(current, activation, between))
            seen.add(current.name)
            names.add(current.weight.name if current.weight else "")
            if step is None or step.layer.name in seen:
                break
            current = by_name[step.layer.name]
        starts = _op_before(snapshot, layer)
        found.append(Chain(tuple(links), starts, ends, len(names) < len(links)))
    return tuple(found)


@dataclass(frozen=True)
class _Step:
    layer: Layer


def _next(
    snapshot: Snapshot, layer: Layer
) -> tuple[Layer | None, tuple[Layer, ...], _Step | None, str]:
    """The activation after a weight layer, rows on the way, the next weight layer, what ends it."""
    activation: Layer | None = None
    between: list[Layer] = []
    node = layer.node
    while True:
        used = snapshot.consumers[node]
        if node in snapshot.outputs and not used:
            return activation, tuple(between), None, "output"
        if len(used) != 1 or node in snapshot.outputs:
            return activation, tuple(between), None, "output" if not used else "branch"
        node = used[0]
        op = snapshot.nodes[node].op
        row = snapshot.layer_at(node)
        if len(snapshot.nodes[node].inputs) != 1:
            return activation, tuple(between), None, op
        if row is not None and row.op in WEIGHTED and row.weight is not None:
            return activation, tuple(between), _Step(row), op
        if row is not None and activation is None and is_activation(row):
            activation = row
        elif op in TRANSPARENT:
            if row is not None:
                between.append(row)
        else:
            return activation, tuple(between), None, op


def activation_after(snapshot: Snapshot, layer: Layer) -> Layer | None:
    """The activation that works on what a layer gives, with nothing but hand-ons between."""
    return _next(snapshot, layer)[0]


def makers(snapshot: Snapshot, layer: Layer) -> tuple[Layer, ...]:
    """The nearest rows before a layer that learn, or normalise: whose doing its input is."""
    found: dict[str, Layer] = {}
    todo, seen = list(snapshot.nodes[layer.node].inputs), set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        row = snapshot.layer_at(node)
        if row is not None and row.op in LEARNED | NORMS:
            found.setdefault(row.name, row)
        else:
            todo += snapshot.nodes[node].inputs
    return tuple(sorted(found.values(), key=lambda row: row.node))


def _op_before(snapshot: Snapshot, layer: Layer) -> str:
    node = layer.node
    while snapshot.nodes[node].inputs:
        node = snapshot.nodes[node].inputs[0]
        if snapshot.nodes[node].op not in TRANSPARENT:
            return snapshot.nodes[node].op
    return "input"


def role(snapshot: Snapshot, layer: Layer) -> str:
    """What a row's values are used for: "hidden", "gate", "attention" or "output".

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
    """Whether it is what a gate lets through: an LSTM's or GRU's candidate, written out.

    A tanh of what weights made, and all it is used for is products with a sigmoid. The tanh of a
    cell's state, which sums up over time, is not made by weights alone and may well be sure.
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
    """The nodes whose values a node uses, looking through what hands on, and 1 - x."""
    found = []
    for source in snapshot.nodes[node].inputs:
        while len(snapshot.nodes[source].inputs) == 1 and snapshot.nodes[source].op in ONE_SIDED:
            source = snapshot.nodes[source].inputs[0]
        found.append(source)
    return found


def leads_on(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether another layer with weights comes after this one."""
    return bool(descendant_bits(snapshot)[layer.node] & _learned_bits(snapshot))


def has_weights_before(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a layer with weights comes before this one, if only an embedding."""
    return bool(ancestor_bits(snapshot)[layer.node] & _bits_with_weights(snapshot))


def users(snapshot: Snapshot, node: int) -> list[int]:
    """The nodes that use a node's values, looking through rows that only hand them on."""
    found, todo, seen = [], list(snapshot.consumers[node]), set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        op = snapshot.nodes[current].op
        if op in TRANSPARENT or (op in ONE_SIDED and len(snapshot.nodes[current].inputs) == 1):
            todo += snapshot.consumers[current]
        else:
            found.append(current)
    return found


def descendants(snapshot: Snapshot, node: int) -> set[int]:
    return _members(descendant_bits(snapshot)[node])


def ancestors(snapshot: Snapshot, node: int) -> set[int]:
    return _members(ancestor_bits(snapshot)[node])


def related(snapshot: Snapshot, nodes: int) -> int:
    """These nodes (as bits) and all that lie on a path with one of them."""
    before, after = ancestor_bits(snapshot), descendant_bits(snapshot)
    found = nodes
    for node in _members(nodes):
        found |= before[node] | after[node]
    return found


@once
def ancestor_bits(snapshot: Snapshot) -> list[int]:
    """For each node the set of its ancestors, as the bits of a number.

    Nodes come after the nodes they use, so one pass is enough, and a thousand layers cost a
    thousand numbers of a thousand bits rather than a million steps.
    """
    before: list[int] = []
    for node in snapshot.nodes:
        own = 0
        for source in node.inputs:
            own |= before[source] | 1 << source
        before.append(own)
    return before


@once
def descendant_bits(snapshot: Snapshot) -> list[int]:
    """For each node the set of its descendants."""
    after = [0] * len(snapshot.nodes)
    for index in range(len(snapshot.nodes) - 1, -1, -1):
        for user in snapshot.consumers[index]:
            after[index] |= after[user] | 1 << user
    return after


@once
def _feeding_bits(snapshot: Snapshot) -> list[int]:
    """For each node the set of nodes that its descendants use."""
    feeding = [0] * len(snapshot.nodes)
    for index in range(len(snapshot.nodes) - 1, -1, -1):
        for user in snapshot.consumers[index]:
            feeding[index] |= feeding[user] | bits(snapshot.nodes[user].inputs)
    return feeding


def bits(nodes: Iterable[int]) -> int:
    """A set of nodes as the bits of a number: thousands are joined or met in one step."""
    found = 0
    for node in nodes:
        found |= 1 << node
    return found


def _members(found: int) -> set[int]:
    members = set()
    while found:
        lowest = found & -found
        members.add(lowest.bit_length() - 1)
        found ^= lowest
    return members


@once
def _op_bits(snapshot: Snapshot) -> dict[str, int]:
    """For each op the set of its nodes."""
    found: dict[str, int] = {}
    for index, node in enumerate(snapshot.nodes):
        found[node.op] = found.get(node.op, 0) | 1 << index
    return found


@once
def _learned_bits(snapshot: Snapshot) -> int:
    return bits(index for index, node in enumerate(snapshot.nodes) if node.op in LEARNED)


@once
def _bits_with_weights(snapshot: Snapshot) -> int:
    return bits(index for index, node in enumerate(snapshot.nodes) if node.op in WITH_WEIGHTS)


def inputs_before(snapshot: Snapshot, node: int) -> set[int]:
    """The model inputs among a node's ancestors."""
    return _members(
        (ancestor_bits(snapshot)[node] | 1 << node) & _op_bits(snapshot).get("input", 0)
    )


def only_path(snapshot: Snapshot, node: int) -> bool:
    """Whether every way from the model's inputs to its outputs goes through this node."""
    arriving, leaving, total = _path_counts(snapshot)
    return total > 0 and arriving[node] * leaving[node] == total


@once
def _path_counts(snapshot: Snapshot) -> tuple[list[int], list[int], int]:
    """How many paths lead from the inputs to each node, from each node to the outputs, in all."""
    outputs = set(snapshot.outputs) or {n for n, used in enumerate(snapshot.consumers) if not used}
    arriving: list[int] = []
    for node in snapshot.nodes:
        arriving.append((node.op == "input") + sum(arriving[i] for i in node.inputs))
    leaving = [0] * len(snapshot.nodes)
    for index in range(len(snapshot.nodes) - 1, -1, -1):
        onward = sum(leaving[user] for user in snapshot.consumers[index])
        leaving[index] = (index in outputs) + onward
    total = sum(leaving[i] for i, n in enumerate(snapshot.nodes) if n.op == "input")
    return arriving, leaving, total


def only_way(snapshot: Snapshot, nodes: frozenset[int]) -> bool:
    """Whether every way from the model's inputs to its outputs goes through one of these nodes."""
    if len(nodes) == 1:
        return next(iter(nodes)) in _only_ways(snapshot)
    inputs = _members(_op_bits(snapshot).get("input", 0))
    out, past = ways_out(snapshot, frozenset()), ways_out(snapshot, nodes)
    lead_out = [n for n in inputs if out[n]]
    return bool(lead_out) and all(n in nodes or not past[n] for n in lead_out)


@once
def _only_ways(snapshot: Snapshot) -> frozenset[int]:
    """The nodes that every way from the model's inputs to its outputs goes through.

    Nodes come after the nodes they use, so a way past a node has one step from before it to
    behind it: of the steps that are part of a way, none may pass over the node.
    """
    size, outputs = len(snapshot.nodes), set(snapshot.outputs)
    out, reached = ways_out(snapshot, frozenset()), [False] * len(snapshot.nodes)
    passed = [0] * (size + 1)  # how many steps more pass over this node than over the one before

    def step(start: int, end: int) -> None:
        passed[start + 1] += 1
        passed[end] -= 1

    for index, node in enumerate(snapshot.nodes):
        reached[index] = node.op == "input" or any(reached[i] for i in node.inputs)
        if not (reached[index] and out[index]):
            continue
        if node.op == "input":
            step(-1, index)
        for source in set(node.inputs):
            if reached[source]:
                step(source, index)
        if index in outputs:
            step(index, size)
    over = itertools.accumulate(passed)
    return frozenset(
        n
        for n, count in zip(range(size), over, strict=False)
        if not count and reached[n] and out[n]
    )


def ways_out(snapshot: Snapshot, stops: frozenset[int]) -> list[bool]:
    """For each node, whether a way leads from it to an output without passing one of ``stops``."""
    out = [False] * len(snapshot.nodes)
    for node in snapshot.outputs:
        out[node] = True
    for node in range(len(snapshot.nodes) - 1, -1, -1):
        if any(out[user] and user not in stops for user in snapshot.consumers[node]):
            out[node] = True
    return out


def bypassed(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether the values a layer reads also get behind it without it: a residual sum, a gate.

    Paths that part for good (two heads, two towers) are no bypass: they have to join again.
    """
    after, starts = descendant_bits(snapshot), _run_starts(snapshot)
    # What lies before it in a row (its normalisation, say) may belong to the same branch.
    reached = 0
    for node in snapshot.nodes[layer.node].inputs:
        start = starts[node]
        reached |= after[start] | 1 << start
    # A bypass joins where a node behind the layer uses one that is neither it nor behind it.
    beside = _feeding_bits(snapshot)[layer.node] & ~(after[layer.node] | 1 << layer.node)
    return bool(reached & beside)


@once
def _run_starts(snapshot: Snapshot) -> list[int]:
    """For each node where the row of nodes with a single input begins that ends with it."""
    starts: list[int] = []
    for index, node in enumerate(snapshot.nodes):
        starts.append(starts[node.inputs[0]] if len(node.inputs) == 1 else index)
    return starts


def source_weight(snapshot: Snapshot, layer: Layer) -> Layer | None:
    """The weight layer whose output an activation works on, with nothing but hand-ons between."""
    node = layer.node
    while len(snapshot.nodes[node].inputs) == 1:
        node = snapshot.nodes[node].inputs[0]
        row = snapshot.layer_at(node)
        if row is not None and row.op in WEIGHTED:
            return row
        if snapshot.nodes[node].op not in TRANSPARENT:
            return None
    return None


@once
def source_nodes(snapshot: Snapshot) -> list[int]:
    """For each node the one it reads, looking through rows that only hand values on.

    -1 for several or none.
    """
    sources: list[int] = []
    for node in snapshot.nodes:
        before = node.inputs[0] if len(node.inputs) == 1 else -1
        hands_on = before >= 0 and snapshot.nodes[before].op in TRANSPARENT
        sources.append(sources[before] if hands_on else before)
    return sources


@once
def readers(snapshot: Snapshot) -> dict[int, list[Layer]]:
    """For each node the weight layers that read it, looking through what hands on."""
    found: dict[int, list[Layer]] = {}
    for node, source in enumerate(source_nodes(snapshot)):
        row = snapshot.layer_at(node)
        if row is not None and row.weight is not None:
            found.setdefault(source, []).append(row)
    return found


def source_op(snapshot: Snapshot, layer: Layer) -> str:
    """The op of whatever an activation works on."""
    inputs = snapshot.nodes[layer.node].inputs
    return snapshot.nodes[inputs[0]].op if len(inputs) == 1 else "join"


def width(layer: Layer) -> int:
    """How many independent inputs a weight layer's signal has: features, or channels.

    For the scatter of random networks the taps of a convolution count as one: between 16 channels
    and 10 layers of 3x3 the band of as many dense units held in all of 400 draws, that of the
    fan-in failed in 13 % (measured: reports/calibration/conv-band.csv).
    """
    fan_in = layer.weight.fan_in if layer.weight is not None else 1
    units = layer.input.units if layer.input is not None else None
    return fan_in if units is None else min(fan_in, len(units))


@once
def calls(snapshot: Snapshot) -> dict[str, frozenset[int]]:
    """For each weight the nodes that multiply with it."""
    found: dict[str, set[int]] = {}
    for layer in snapshot.layers:
        if layer.weight is not None:
            found.setdefault(layer.weight.name, set()).add(layer.node)
    return {name: frozenset(nodes) for name, nodes in found.items()}


def plural(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def hidden_activations(snapshot: Snapshot) -> Iterator[Layer]:
    """Rows of activations that feed further layers and are no gates."""
    return (
        layer
        for layer in snapshot.layers
        if is_activation(layer) and role(snapshot, layer) == "hidden"
    )
