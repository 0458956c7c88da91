"""The graph of a snapshot's data flow: which nodes lie before, after and around others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from nndiag.stats import Layer, Snapshot

__all__ = [
    "ancestor_bits",
    "ancestors",
    "bits",
    "bypassed",
    "descendant_bits",
    "descendants",
    "inputs_before",
    "once",
    "only_path",
    "only_path_through_any",
    "reaches_output",
    "related",
]

T = TypeVar("T")


def once(function: Callable[[Snapshot], T]) -> Callable[[Snapshot], T]:
    """Decorator: compute the result once per snapshot; it is freed with the snapshot."""
    known: WeakKeyDictionary[Snapshot, T] = WeakKeyDictionary()

    @wraps(function)
    def cached(snapshot: Snapshot) -> T:
        if snapshot not in known:
            known[snapshot] = function(snapshot)
        return known[snapshot]

    return cached


def bits(nodes: Iterable[int]) -> int:
    """A set of nodes as the bits of a number: unions and intersections take one operation."""
    number = 0
    for node in nodes:
        number |= 1 << node
    return number


def _nodes_of_bits(number: int) -> set[int]:
    members = set()
    while number:
        lowest = number & -number
        members.add(lowest.bit_length() - 1)
        number ^= lowest
    return members


@once
def ancestor_bits(snapshot: Snapshot) -> list[int]:
    """For each node the set of its ancestors, as in :func:`bits`.

    One pass is enough, since nodes come after the nodes they use. As bits, joining the sets of a
    thousand layers takes a thousand operations rather than a million.
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


@once
def _op_bits(snapshot: Snapshot) -> dict[str, int]:
    """For each op the set of its nodes."""
    by_op: dict[str, int] = {}
    for index, node in enumerate(snapshot.nodes):
        by_op[node.op] = by_op.get(node.op, 0) | 1 << index
    return by_op


def ancestors(snapshot: Snapshot, node: int) -> set[int]:
    return _nodes_of_bits(ancestor_bits(snapshot)[node])


def descendants(snapshot: Snapshot, node: int) -> set[int]:
    return _nodes_of_bits(descendant_bits(snapshot)[node])


def related(snapshot: Snapshot, nodes: int) -> int:
    """These nodes and all nodes that share a path with one of them; sets as in :func:`bits`."""
    before, after = ancestor_bits(snapshot), descendant_bits(snapshot)
    joined = nodes
    for node in _nodes_of_bits(nodes):
        joined |= before[node] | after[node]
    return joined


def inputs_before(snapshot: Snapshot, node: int) -> set[int]:
    """The model inputs among a node's ancestors."""
    return _nodes_of_bits(
        (ancestor_bits(snapshot)[node] | 1 << node) & _op_bits(snapshot).get("input", 0)
    )


def only_path(snapshot: Snapshot, node: int) -> bool:
    """Whether every path from the model's inputs to its outputs goes through this node."""
    arriving, leaving, total = _path_counts(snapshot)
    return total > 0 and arriving[node] * leaving[node] == total


@once
def _path_counts(snapshot: Snapshot) -> tuple[list[int], list[int], int]:
    """Numbers of paths: from the inputs to each node, from each node to the outputs, in all."""
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


def only_path_through_any(snapshot: Snapshot, nodes: frozenset[int]) -> bool:
    """Whether every path from the model's inputs to its outputs goes through one of ``nodes``."""
    if len(nodes) == 1:
        return next(iter(nodes)) in _nodes_on_every_path(snapshot)
    inputs = _nodes_of_bits(_op_bits(snapshot).get("input", 0))
    reaching, avoiding = reaches_output(snapshot, frozenset()), reaches_output(snapshot, nodes)
    starts = [n for n in inputs if reaching[n]]
    return bool(starts) and all(n in nodes or not avoiding[n] for n in starts)


@once
def _nodes_on_every_path(snapshot: Snapshot) -> frozenset[int]:
    """The nodes that every path from the model's inputs to its outputs goes through.

    Nodes come after the nodes they use. So a path that avoids a node has one step from a node
    before it to a node after it. A node is on every path if no step of a path passes over it.
    """
    size, outputs = len(snapshot.nodes), set(snapshot.outputs)
    out, reached = reaches_output(snapshot, frozenset()), [False] * len(snapshot.nodes)
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


def reaches_output(snapshot: Snapshot, stops: frozenset[int]) -> list[bool]:
    """For each node, whether a path leads from it to an output without passing ``stops``."""
    out = [False] * len(snapshot.nodes)
    for node in snapshot.outputs:
        out[node] = True
    for node in range(len(snapshot.nodes) - 1, -1, -1):
        if any(out[user] and user not in stops for user in snapshot.consumers[node]):
            out[node] = True
    return out


def bypassed(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether a path leads around a layer and joins its output again: a residual sum, a gate.

    Paths that never join again (two heads, two towers) do not count.
    """
    after, starts = descendant_bits(snapshot), _run_starts(snapshot)
    # Layers just before it, such as its normalisation, may belong to the same branch.
    reached = 0
    for node in snapshot.nodes[layer.node].inputs:
        start = starts[node]
        reached |= after[start] | 1 << start
    # A bypass joins where a later node uses a node that is neither this layer nor after it.
    beside = _feeding_bits(snapshot)[layer.node] & ~(after[layer.node] | 1 << layer.node)
    return bool(reached & beside)


@once
def _run_starts(snapshot: Snapshot) -> list[int]:
    """For each node, the first node of the run of single-input nodes that ends with it."""
    starts: list[int] = []
    for index, node in enumerate(snapshot.nodes):
        starts.append(starts[node.inputs[0]] if len(node.inputs) == 1 else index)
    return starts
