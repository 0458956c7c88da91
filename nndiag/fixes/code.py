"""Names of parameters and modules, and lists of them, written as Python.

What is not an identifier is written as a string. A number in a name means the name, never a
position: only a Sequential or a ModuleList can be asked for ``model[3]``, not a traced copy of it,
nor a ModuleDict.
"""

from __future__ import annotations

import keyword
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Literal

Of = Literal["parameter", "module"]

WIDE = 96
"""Characters of a line at most, where the names allow it."""


def parameter(name: str) -> str:
    """``model.head.weight``, or ``model.get_parameter("3.weight")``."""
    return _attribute(name) or f"model.get_parameter({quoted(name)})"


def module(name: str) -> str:
    """``model.head``, ``model.get_submodule("3")``, or ``model`` for no name."""
    return (_attribute(name) or f"model.get_submodule({quoted(name)})") if name else "model"


def _attribute(name: str) -> str:
    """``model.encoder.weight``; "" where a part of the name is no identifier."""
    parts = name.split(".")
    return ".".join(["model", *parts]) if all(map(_is_attribute, parts)) else ""


def _is_attribute(word: str) -> bool:
    """Python reads identifiers by their normal form: "ﬁ" is an attribute that nobody has."""
    normal = unicodedata.normalize("NFKC", word)
    return word.isidentifier() and not keyword.iskeyword(word) and word == normal


def quoted(name: str) -> str:
    return f'"{name}"' if name.isprintable() and not set('"\\') & set(name) else repr(name)


def listed(names: Sequence[str]) -> str:
    """Python for a list of names, short where only a number in them counts up."""
    counted = _counting(names)
    if counted:
        return counted
    text = f"[{', '.join(map(quoted, names))}]"
    if len(text) <= WIDE - 16:
        return text
    lines: list[str] = []
    for item in map(quoted, names):
        if lines and len(lines[-1]) + len(item) <= WIDE - 6:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{item},")
    return "[\n" + textwrap.indent("\n".join(lines), "    ") + "\n]"


def counts_up(names: Sequence[str]) -> range | None:
    """The numbers that differ between names that are otherwise the same, where they count up."""
    found = _counted(names)
    return found[1] if found is not None else None


def _counted(names: Sequence[str]) -> tuple[str, range] | None:
    """The names with ``{i}`` for the number in them, and the numbers; None for other names."""
    if len(names) < 3:
        return None
    split = [re.split(r"(?<![^.])(\d+)(?![^.])", name) for name in names]
    first = split[0]
    plain = all(name.isprintable() and not set('"\\{}') & set(name) for name in names)
    if not plain or any(len(parts) != len(first) for parts in split):
        return None
    moving = [k for k in range(len(first)) if len({parts[k] for parts in split}) > 1]
    if len(moving) != 1 or moving[0] % 2 == 0:
        return None
    [k] = moving
    numbers = [int(parts[k]) for parts in split]
    step = numbers[1] - numbers[0]
    if step < 1:
        return None
    counted = range(numbers[0], numbers[0] + step * len(names), step)
    if list(counted) != numbers or [str(n) for n in numbers] != [parts[k] for parts in split]:
        return None
    return "".join(first[:k]) + "{i}" + "".join(first[k + 1 :]), counted


def _counting(names: Sequence[str]) -> str:
    """``[f"encoder.{i}" for i in range(4)]``; "" where the names do not count up."""
    found = _counted(names)
    if found is None:
        return ""
    written, numbers = found
    start, step = numbers.start, numbers.step
    span = [str(start)] if start or step > 1 else []
    span += [str(numbers[-1] + 1)] + ([str(step)] if step > 1 else [])
    if written == "{i}":
        return f"map(str, range({', '.join(span)}))"
    return f'[f"{written}" for i in range({", ".join(span)})]'


def for_each(names: Sequence[str], lines: str, of: Of) -> str:
    """``lines`` (with ``{}`` for the thing) for one name as it is, for several in a loop."""
    names = list(dict.fromkeys(names))
    written = parameter if of == "parameter" else module
    if len(names) == 1:
        return lines.format(written(names[0]))
    getter = "get_parameter" if of == "parameter" else "get_submodule"
    return _loop(names, lines.format(f"model.{getter}(name)"))


def for_each_name(names: Sequence[str], line: str) -> str:
    """``line`` (with ``{}`` for the name, as a string) for one name, or in a loop for several."""
    names = list(dict.fromkeys(names))
    if len(names) == 1:
        return line.format(quoted(names[0]))
    return _loop(names, line.format("name"))


def _loop(names: Sequence[str], body: str) -> str:
    return f"for name in {listed(names)}:\n{textwrap.indent(body, '    ')}"


def without_gradients(lines: str) -> str:
    return "with torch.no_grad():\n" + textwrap.indent(lines, "    ")
