"""Mutants by cosmic-ray: where the code can be changed, and a sample of such changes."""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

from mutation.operators import ADDED

# Where text for people is made. What it says has other tests; a verdict does not hang on it.
TEXTS = {"message", "text", "summary", "why", "others", "more", "each", "few", "they", "hint"}
# Small numbers and words that are equal are one object, too.
SAME_HERE = ("_Eq_Is", "_NotEq_IsNot")
CACHES = {"once", "cache", "lru_cache", "cached_property"}  # without one it is only slower


@dataclass(frozen=True)
class Mutant:
    module: str  # its file below the package: "rules/symmetry.py"
    operator: str
    occurrence: int
    line: int
    was: str  # the line as it is,
    now: str  # and as the mutant has it
    code: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The same after an edit elsewhere in the file."""
        return self.module, self.was, self.now


def sample(package: Path, modules: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """So many mutants, no two at one place or with one key, drawn from each module in turn."""
    drawn = [_drawn(package, module, random.Random(f"{seed} {module}")) for module in modules]
    return list(islice(_in_turn(drawn), count))


def _in_turn(drawn: list[Iterator[Mutant]]) -> Iterator[Mutant]:
    while drawn:
        for mutants in list(drawn):
            mutant = next(mutants, None)
            if mutant is None:
                drawn.remove(mutants)
            else:
                yield mutant


def _drawn(package: Path, module: str, chance: random.Random) -> Iterator[Mutant]:
    source = (package / module).read_text()
    places = sorted(_places(source).items())
    chance.shuffle(places)
    seen: set[tuple[str, str, str]] = set()
    for (line, _), ways in places:
        chance.shuffle(ways)
        for name, occurrence in ways:
            mutant = _mutant(module, source, name, occurrence, line)
            if mutant is not None and mutant.key not in seen:
                seen.add(mutant.key)
                yield mutant
                break


def _mutant(module: str, source: str, name: str, occurrence: int, line: int) -> Mutant | None:
    """``None`` where the change is none, or gives no program."""
    code = mutate_code(source, OPERATORS[name](), occurrence)
    try:
        if code is None or ast.dump(ast.parse(code)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    # Two lines of header, and one that says where.
    lines = list(difflib.unified_diff(source.splitlines(), code.splitlines(), n=0, lineterm=""))[3:]
    was, now = (" ".join(x[1:].strip() for x in lines if x.startswith(side)) for side in "-+")
    return Mutant(module, name, occurrence, line, was, now, code)


def _operators() -> dict[str, type[Operator]]:
    """Those that need no arguments, by their name in the table."""
    known = {name.partition("/")[2]: get_operator(name) for name in operator_names()}
    known |= {operator.__name__: operator for operator in ADDED}
    return {
        name: operator
        for name, operator in known.items()
        if not operator.arguments() and not name.endswith(SAME_HERE)
    }


OPERATORS = _operators()


def _places(source: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """By line and column, the operators that can change the code there, and which occurrence."""
    nodes, left_out = list(ast_nodes(get_ast(source))), list(_left_out(ast.parse(source)))
    places: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name, operator in OPERATORS.items():
        found = (start for node in nodes for start, _ in operator().mutation_positions(node))
        for occurrence, place in enumerate(found):
            if not any(start <= place < end for start, end in left_out):
                places.setdefault(place, []).append((name, occurrence))
    return places


def _left_out(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """From where to where no verdict can change: annotations, texts, what narrows types."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        match node:
            case ast.JoinedStr() | ast.Assert() | ast.Raise() | ast.Import() | ast.ImportFrom():
                parts = [node]
            case ast.arg():
                parts = [node.annotation]
            case ast.AnnAssign():
                parts = [node.annotation]
                if "Annotated" in ast.unparse(node):
                    parts = [node]
            case ast.FunctionDef():
                parts = [node.returns, *(d for d in node.decorator_list if _name(d) in CACHES)]
            case ast.ClassDef():
                parts = [*node.decorator_list]
            case ast.keyword() if node.arg in TEXTS:
                parts = [node]
            case ast.Assign() | ast.AugAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
                if names and names <= TEXTS | {"__all__"}:
                    parts = [node]
            case ast.If() if _name(node.test) == "TYPE_CHECKING":
                parts = [node]
        for part in parts:
            if part is not None:
                # A decorator's "@" lies before it.
                at = isinstance(node, (ast.FunctionDef, ast.ClassDef))
                start = (part.lineno, part.col_offset - at)  # type: ignore[attr-defined]  # no Module
                yield start, (part.end_lineno, part.end_col_offset)  # type: ignore[attr-defined]  # so


def _name(node: ast.expr) -> str:
    inner = node.func if isinstance(node, ast.Call) else node
    return inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
