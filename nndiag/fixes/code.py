"""Names of parameters and modules, and lists of them, written as Python.

Names that are no identifiers are written as strings. A number in a name is never written as an
index: ``model[3]`` works for a Sequential or a ModuleList, but not for a traced copy or
a ModuleDict.
"""

from __future__ import annotations

import keyword
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Literal

__all__ = [
    "WIDE",
    "Of",
    "counts_up",
    "for_each",
    "for_each_name",
    "listed",
    "module",
    "parameter",
    "quoted",
    "without_gradients",
]

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
    """Whether a word can be an attribute in code; "ﬁ" cannot, since Python reads it as "fi"."""
    normal = unicodedata.normalize("NFKC", word)
    return word.isidentifier() and not keyword.iskeyword(word) and word == normal


def quoted(name: str) -> str:
    return f'"{name}"' if name.isprintable() and not set('"\\') & set(name) else repr(name)


def listed(names: Sequence[str]) -> str:
    """Code of a list of names: a comprehension where only a number in them counts up."""
    comprehension = _comprehension(names)
    if comprehension:
        return comprehension
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
    """The numbers of names that differ only in a number that counts up; None for other names."""
    pattern_and_numbers = _pattern_and_numbers(names)
    return pattern_and_numbers[1] if pattern_and_numbers is not None else None


def _pattern_and_numbers(names: Sequence[str]) -> tuple[str, range] | None:
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
    expected = range(numbers[0], numbers[0] + step * len(names), step)
    if list(expected) != numbers or [str(n) for n in numbers] != [parts[k] for parts in split]:
        return None
    return "".join(first[:k]) + "{i}" + "".join(first[k + 1 :]), expected


def _comprehension(names: Sequence[str]) -> str:
    """``[f"encoder.{i}" for i in range(4)]``; "" where the names do not count up."""
    pattern_and_numbers = _pattern_and_numbers(names)
    if pattern_and_numbers is None:
        return ""
    pattern, numbers = pattern_and_numbers
    start, step = numbers.start, numbers.step
    span = [str(start)] if start or step > 1 else []
    span += [str(numbers[-1] + 1)] + ([str(step)] if step > 1 else [])
    if pattern == "{i}":
        return f"map(str, range({', '.join(span)}))"
    return f'[f"{pattern}" for i in range({", ".join(span)})]'


def for_each(names: Sequence[str], lines: str, of: Of) -> str:
    """``lines``, with ``{}`` for the parameter or module: once for one name, a loop for several."""
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
