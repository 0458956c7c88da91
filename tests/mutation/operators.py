"""Mutations that cosmic-ray does not have: ``any`` for ``all``, and a branch never taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Keyword, Name
from parso.tree import NodeOrLeaf

Positions: TypeAlias = Iterator[tuple[tuple[int, int], tuple[int, int]]]
OTHER = {"any": "all", "all": "any"}


class SwapAnyAndAll(Operator):
    """``any(...)`` becomes ``all(...)``, and the reverse; methods of arrays, too."""

    def mutation_positions(self, node: NodeOrLeaf) -> Positions:
        if isinstance(node, Name) and node.value in OTHER:
            follower = node.get_next_leaf()
            if follower is not None and follower.value == "(":
                yield node.start_pos, node.end_pos

    def mutate(self, node: Name, index: int) -> Name:
        node.value = OTHER[node.value]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("any(x)", "all(x)"), Example("x.all()", "x.any()"))


class NeverTakeBranch(Operator):
    """The condition of an ``if`` or ``elif`` becomes ``False``."""

    def mutation_positions(self, node: NodeOrLeaf) -> Positions:
        for place in _conditions(node):
            yield node.children[place].start_pos, node.children[place].end_pos

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        place = _conditions(node)[index]
        never = Keyword("False", node.children[place].start_pos, prefix=" ")
        never.parent = node
        node.children[place] = never
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("if x: pass", "if False: pass"),)


def _conditions(node: NodeOrLeaf) -> list[int]:
    if node.type != "if_stmt":
        return []
    keywords = enumerate(getattr(leaf, "value", "") for leaf in node.children)
    return [place + 1 for place, word in keywords if word in ("if", "elif")]


ADDED = (SwapAnyAndAll, NeverTakeBranch)
