"""The package imports in one direction, late imports counted: the picture in the README holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import nndiag
from nndiag.render.formats import FORMATS

PACKAGE = Path(nndiag.__file__).parent
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
DOORS = {"nndiag", "nndiag.cli", "nndiag.__main__"}
"""They load late on purpose, so that ``import nndiag`` and ``nndiag --help`` cost little."""


def modules():
    """Every module of the package by its name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree, known):
    """What a module's code imports when it runs, at once or late; not what only types need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        yield from imported(node, known)


def graph():
    known = modules()
    edges = {
        name: set(imported(ast.parse(path.read_text(encoding="utf-8")), known)) & known.keys()
        for name, path in known.items()
    }
    # The table of formats names its renderers and loads each when it is used.
    edges["nndiag.render.formats"] |= {
        f"nndiag.render.{format.renderer.partition(':')[0]}"
        for formats in FORMATS.values()
        for format in formats.values()
    }
    return {name: targets - DOORS - {name} for name, targets in edges.items() if name not in DOORS}


def cycles(edges):
    """The modules that are left when, again and again, those that import nothing left go."""
    left = dict(edges)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return set(left)


def levels():
    """The README's list: the rooms of the package, those that import less above."""
    section = README.partition("## How it works")[2].partition("\n## ")[0]
    [text] = [t for t in re.findall(r"```\n(.*?)```", section, re.S) if t.startswith("errors")]
    return {room: depth for depth, line in enumerate(text.splitlines()) for room in line.split()}


def room_of(module, rooms):
    """The longest name in the list that the module's name begins with."""
    name = module.removeprefix("nndiag.")
    fitting = [room for room in rooms if name == room or name.startswith(f"{room}.")]
    return max(fitting, key=len, default=None)


def test_no_module_imports_itself_by_way_of_others():
    assert cycles(graph()) == set()


def test_every_module_has_its_place_in_the_readmes_list():
    rooms = levels()

    assert [name for name in graph() if room_of(name, rooms) is None] == []
    assert {room_of(name, rooms) for name in graph()} == set(rooms)


def test_each_module_imports_from_its_room_or_from_a_line_above():
    rooms = levels()
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if (here := room_of(name, rooms)) != (there := room_of(target, rooms))
        and rooms[here] <= rooms[there]
    ]

    assert wrong == []


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ({"a": {"b"}, "b": set()}, set()),
        ({"a": {"b"}, "b": {"a"}}, {"a", "b"}),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, {"a", "b", "c"}),
    ],
)
def test_a_cycle_would_be_seen(edges, expected):
    assert cycles(edges) == expected


def test_a_late_import_would_be_seen():
    tree = ast.parse("def f():\n    from nndiag import report\n    import nndiag.api")

    assert set(imported(tree, modules())) == {"nndiag.report", "nndiag.api"}
