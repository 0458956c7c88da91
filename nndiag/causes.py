"""Which finding explains which, and the order in which a reader should meet them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nndiag import flow
from nndiag.stats import Snapshot

if TYPE_CHECKING:
    from nndiag.rule import Finding

__all__ = ["EVERYWHERE", "explain"]


def explain(
    findings: Sequence[Finding], snapshot: Snapshot, rank: Callable[[Finding], tuple[int, ...]]
) -> list[Finding]:
    """Set each finding's ``cause`` and put the list in the order a reader should meet it.

    A finding is explained by one of a rule it suspects (the earliest named first), if that one
    lies on a common path with it and is no mere note (a note explains only notes). Roots come
    first, by ``rank``, then depth; the explained ones follow in the same order.
    """
    places = _Places(snapshot)
    ordered = sorted(findings, key=lambda f: (*rank(f), places.depth(f.layer)))
    every, alarms = _by_rule(ordered, places, notes=True), _by_rule(ordered, places, notes=False)
    explained: dict[int, Finding] = {}

    def cause_of(index: int, seen: frozenset[int]) -> int | None:
        finding = ordered[index]
        candidates = every if finding.severity == "note" else alarms
        path = places.path(finding.layer)
        for name in finding.suspects:
            if name in candidates:
                # Of its own rule only what comes before it, so that there is no circle.
                end = index if name == finding.rule else len(ordered)
                found = candidates[name].first(path, end, seen)
                if found is not None:
                    return found
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
        rule: _Candidates(own, [places.at(ordered[index].layer) for index in own])
        for rule, own in indices.items()
    }


class _Candidates:
    """One rule's findings in order, searched by halving for the first one on a path.

    A thousand findings that each look for the first of a thousand causes would otherwise compare a
    million pairs.
    """

    def __init__(self, indices: list[int], places: list[int]) -> None:
        self._indices = indices
        self._leaves = 1 << (len(places) - 1).bit_length()
        # A binary tree in a list: below k lie 2k and 2k + 1, and k holds the places of both.
        self._tree = [0] * self._leaves + places + [0] * (self._leaves - len(places))
        for k in range(self._leaves - 1, 0, -1):
            self._tree[k] = self._tree[2 * k] | self._tree[2 * k + 1]

    def first(self, path: int, before: int, without: frozenset[int]) -> int | None:
        """The first index under ``before`` whose place lies on the path."""
        end, start = bisect_left(self._indices, before), 0
        while (found := self._search(1, self._leaves, path, start, end)) is not None:
            if self._indices[found] not in without:
                return self._indices[found]
            start = found + 1
        return None

    def _search(self, k: int, leaves: int, path: int, start: int, end: int) -> int | None:
        """Among the ``leaves`` below k, of which those from ``start`` to ``end`` count."""
        if end <= 0 or start >= leaves or not self._tree[k] & path:
            return None
        if leaves == 1:
            return 0
        half = leaves // 2
        found = self._search(2 * k, half, path, start, end)
        if found is not None:
            return found
        found = self._search(2 * k + 1, half, path, start - half, end - half)
        return None if found is None else found + half


EVERYWHERE = -1  # as bits: all of them


class _Places:
    """Where findings lie in the data flow, and which lie on a common path.

    A place is a set of nodes, as the bits of a number. A parameter lies where its row is; one
    without a row of its own (a part of an opaque layer) where the nearest module around it has
    rows; a bare parameter of the model itself everywhere; one of a module that never ran nowhere.
    Parts of one module that never ran have a bit of it in common, behind those of the nodes.
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
        read = flow.bits(i for i, node in enumerate(snapshot.nodes) if node.op == "input")
        for name in snapshot.inputs:
            self._nodes[name] = self._nodes.get(name, 0) | read
        # Every place has the first of these bits, and every path the second: what is everywhere
        # lies on a path with all, even with what is nowhere.
        self._somewhere = 1 << len(snapshot.nodes)
        self._always = 2 << len(snapshot.nodes)
        self._idle: dict[str, int] = {}

    def depth(self, name: str) -> float:
        bits = self._at(name)
        return (bits & -bits).bit_length() if bits not in (0, EVERYWHERE) else math.inf

    def at(self, name: str) -> int:
        """Its place; two names lie on a common path if one's place and the other's path meet."""
        return (self._at(name) or self._never_ran(name)) | self._somewhere

    def path(self, name: str) -> int:
        """Its place and all that lies before or behind it."""
        nodes = self._at(name)
        if nodes == EVERYWHERE:
            return EVERYWHERE
        related = flow.related(self._snapshot, nodes) if nodes else self._never_ran(name)
        return related | self._always

    def _at(self, name: str) -> int:
        """``(model)`` and ``(loss)`` are everywhere."""
        return self._nodes.get(name, EVERYWHERE if name.startswith("(") else 0)

    def _never_ran(self, name: str) -> int:
        """A bit for each module around it that never ran."""
        found = 0
        for prefix in _prefixes(name):
            if prefix not in self._ran:
                found |= self._idle.setdefault(prefix, self._always << 1 + len(self._idle))
        return found


def _prefixes(name: str) -> list[str]:
    """``a.b.c``, ``a.b``, ``a``."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
