"""What is public says so: ``__all__`` in each module, and a leading underscore elsewhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nndiag

PACKAGE = Path(nndiag.__file__).parent


def modules():
    """By dotted name, those without a leading underscore."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if not any(part.startswith("_") for part in name.split(".")):
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def listed(tree):
    """The names in ``__all__``; None where there is none."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            return ast.literal_eval(node.value)
    return None


def defined(tree):
    """The names that a module's own functions, classes and values have."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "TypeVar":
                continue
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                stored = (part for part in ast.walk(target) if isinstance(part, ast.Name))
                names |= {part.id for part in stored if isinstance(part.ctx, ast.Store)}
    return names


def imported(tree):
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }


@pytest.mark.parametrize("name", MODULES)
def test_a_module_lists_what_it_offers_and_hides_the_rest(name):
    tree = MODULES[name]
    names = listed(tree)

    assert names is not None, "it has no __all__"
    assert len(set(names)) == len(names)
    assert set(names) <= defined(tree) | imported(tree)
    assert {n for n in defined(tree) if not n.startswith("_")} <= set(names)
    assert [n for n in names if n.startswith("_")] == []
