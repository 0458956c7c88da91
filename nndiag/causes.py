"""Which finding explains which, and in which order they are reported."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nndiag import graph
from nndiag.stats import Snapshot

if TYPE_CHECKING:
    from nndiag.rule import Finding

__all__ = ["EVERYWHERE", "explain"]


def explain(
    findings: Sequence[Finding], snapshot: Snapshot, rank: Callable[[Finding], tuple[int, ...]]
) -> list[Finding]:
    """Set each finding's ``cause``, and sort the findings for the report.

    The cause of a finding is a finding of a rule in its ``suspects`` (the first one named wins)
    that shares a path with it. If it has an ``origin``, a finding of ``suspects_there`` that lies
    at the origin comes before those: nothing before a layer explains a zero that arises behind it.
    A note can only be the cause of notes. Findings without a cause come first, by ``rank``, then by
    depth; the others follow in the same order.
    """
    places = _Places(snapshot)
    ordered = sorted(findings, key=lambda f: (*rank(f), places.depth(f.layer)))
    all_by_rule, without_notes = (
        _by_rule(ordered, places, notes=True),
        _by_rule(ordered, places, notes=False),
    )
    explained: dict[int, Finding] = {}

    def cause_of(index: int, seen: frozenset[int]) -> int | None:
        finding = ordered[index]
        candidates = all_by_rule if finding.severity == "note" else without_notes
        searched = [(places.path(finding.layer), finding.suspects)]
        if finding.origin:
            searched.insert(0, (places.only(finding.origin), finding.suspects_there))
        for path, suspects in searched:
            for name in suspects:
                if name in candidates:
                    # Of its own rule only earlier findings, so that causes form no circle.
                    end = index if name == finding.rule else len(ordered)
                    cause = candidates[name].first(path, end, seen)
                    if cause is not None:
                        return cause
        return None

    def resolve(index: int, seen: frozenset[int]) -> Finding:
        if index not in explained:
            cause = cause_of(index, seen | {index})
            root = None if cause is None else resolve(cause, seen | {index})
            explained[index] = replace(ordered[index], cause=root)
        return explained[index]

    resolved = [resolve(index, frozenset()) for index in range(len(ordered))]
    return sorted(resolved, key=lambda f: f.cause is not None)


def _by_rule(ordered: Sequence[Finding], places: _Places, notes: bool) -> dict[str, _Candidates]:
    indices: dict[str, list[int]] = {}
    for index, finding in enumerate(ordered):
        if notes or finding.severity != "note":
            indices.setdefault(finding.rule, []).append(index)
    return {
        rule: _Candidates(own, [places.of(ordered[index]) for index in own])
        for rule, own in indices.items()
    }


class _Candidates:
    """One rule's findings in order, in a binary tree that finds the first one on a path.

    Without it, a thousand findings and a thousand possible causes would be a million comparisons.
    """

    def __init__(self, indices: list[int], places: list[int]) -> None:
        self._indices = indices
        self._leaves = 1 << (len(places) - 1).bit_length()
        # A binary tree in a list: node k has the children 2k and 2k + 1, and holds their union.
        self._tree = [0] * self._leaves + places + [0] * (self._leaves - len(places))
        for k in range(self._leaves - 1, 0, -1):
            self._tree[k] = self._tree[2 * k] | self._tree[2 * k + 1]

    def first(self, path: int, before: int, excluded: frozenset[int]) -> int | None:
        """The first index below ``before``, not ``excluded``, whose place lies on the path."""
        end, start = bisect_left(self._indices, before), 0
        while (position := self._search(1, self._leaves, path, start, end)) is not None:
            if self._indices[position] not in excluded:
                return self._indices[position]
            start = position + 1
        return None

    def _search(self, k: int, leaves: int, path: int, start: int, end: int) -> int | None:
        """The first leaf on the path below node k, from ``start`` up to ``end``."""
        if end <= 0 or start >= leaves or not self._tree[k] & path:
            return None
        if leaves == 1:
            return 0
        half = leaves // 2
        position = self._search(2 * k, half, path, start, end)
        if position is not None:
            return position
        position = self._search(2 * k + 1, half, path, start - half, end - half)
        return None if position is None else position + half


EVERYWHERE = -1  # as bits: all of them


class _Places:
    """Where findings lie in the data flow, and which share a path.

    A place is a set of nodes, as the bits of a number (``graph.bits``). A parameter lies at the
    nodes of its layer; without a layer of its own, at those of the nearest module around it. A bare
    parameter of the model itself lies everywhere. A parameter of a module that never ran lies at no
    node: such modules get bits of their own, above those of the nodes.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._nodes: dict[str, int] = {}
        around: dict[str, int] = {}
        for layer in snapshot.layers:
            bit = 1 << layer.node
            used = (layer.weight.name, layer.weight.bias) if layer.weight is not None else ()
            for name in {layer.name, *used} - {None}:
                self._nodes[name] = self._nodes.get(name, 0) | bit
            for prefix in _prefixes(layer.name.partition("/")[0].partition("@")[0]):
                around[prefix] = around.get(prefix, 0) | bit
        self._ran, never = frozenset(around), frozenset(snapshot.never_called)
        for parameter in snapshot.parameters:
            if parameter.name not in self._nodes:
                modules = _prefixes(parameter.name)[1:]
                if never.isdisjoint(modules):
                    homes = (around[m] for m in modules if m in around)
                    self._nodes[parameter.name] = next(homes, 0 if modules else EVERYWHERE)
        for call in snapshot.experiment.calls:  # where the values that it reads come from
            self._nodes.setdefault(call.name, graph.bits(call.nodes) or EVERYWHERE)
        for name in snapshot.experiment.targets:
            self._nodes.setdefault(name, EVERYWHERE)
        input_nodes = graph.bits(i for i, node in enumerate(snapshot.nodes) if node.op == "input")
        for name in snapshot.inputs:
            self._nodes[name] = self._nodes.get(name, 0) | input_nodes
        # Every place has the first bit and every path the second. So what lies everywhere shares
        # a path with all others, even with what lies at no node.
        self._somewhere = 1 << len(snapshot.nodes)
        self._always = 2 << len(snapshot.nodes)
        self._idle: dict[str, int] = {}

    def depth(self, name: str) -> float:
        bits = self._at(name)
        return (bits & -bits).bit_length() if bits not in (0, EVERYWHERE) else math.inf

    def at(self, name: str) -> int:
        """The place of a name. Two names share a path if one's place meets the other's path."""
        return (self._at(name) or self._never_ran(name)) | self._somewhere

    def of(self, finding: Finding) -> int:
        """The place of a finding: of its layer, and of where it arises."""
        return self.at(finding.layer) | (self._at(finding.origin) if finding.origin else 0)

    def only(self, name: str) -> int:
        """The path that consists of a name's own place."""
        return self._at(name) | self._always

    def path(self, name: str) -> int:
        """The place of a name, with everything before and after it."""
        nodes = self._at(name)
        if nodes == EVERYWHERE:
            return EVERYWHERE
        related = graph.related(self._snapshot, nodes) if nodes else self._never_ran(name)
        return related | self._always

    def _at(self, name: str) -> int:
        """The nodes of a name; ``(model)``, ``(loss)`` and ``(optimizer)`` lie everywhere."""
        return self._nodes.get(name, EVERYWHERE if name.startswith("(") else 0)

    def _never_ran(self, name: str) -> int:
        """A bit for each module around a name that never ran."""
        bits = 0
        for prefix in _prefixes(name):
            if prefix not in self._ran:
                bits |= self._idle.setdefault(prefix, self._always << 1 + len(self._idle))
        return bits


def _prefixes(name: str) -> list[str]:
    """``a.b.c``, ``a.b``, ``a``."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
