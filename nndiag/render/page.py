"""A rule's page: its docstring under fixed headings, its thresholds, its fixes.

The headings are written in the docstring as reST and Markdown both have them: underlined.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from rich.cells import cell_len

from nndiag.languages import ENGLISH, words
from nndiag.numbers import number
from nndiag.render import story
from nndiag.rule import Rule, Threshold
from nndiag.rules import discover

__all__ = ["HEADINGS", "examples", "page", "pages", "sections", "title", "title_of"]

HEADINGS = ("What it does", "Why it matters", "When it is no fault")
"""Those that each rule's docstring has, in this order."""


def title(module: ModuleType, language: str = ENGLISH) -> str:
    """A rule's title: the first line of its docstring, or its translation if there is one."""
    own = _translated(module, language)
    return str(own["title"]) if own else _docstring(module).partition("\n")[0]


def title_of(name: str) -> str:
    """The title of the rule of that name; "" for one that is not installed here."""
    module = discover().get(name)
    return "" if module is None else title(module)


def sections(module: ModuleType) -> dict[str, str]:
    """The page's parts by heading, without those that are empty.

    "What it does", "Why it matters", "When it is no fault", "Example", "Thresholds", "Fixes",
    "References", in this order.
    """
    rule: Rule = module.RULE
    text, _, references = _docstring(module).partition("\nReferences:")
    text, _, example = text.partition("\nSick::\n")
    # What stands before the first heading, then heading and text in turn.
    before, *parts = re.split(r"^(\S.*)\n-{3,}$", text, flags=re.MULTILINE)
    found = {HEADINGS[0]: before.partition("\n")[2]}  # another package's page without headings
    found |= dict(zip(parts[::2], parts[1::2], strict=True))
    found["Example"] = f"Sick::\n{example}" if example else ""
    found["Thresholds"] = "\n".join(
        f"- {_value(name, t)}\n{textwrap.indent(t.source, '    ')}"
        for name, t in rule.thresholds.items()
    )
    found["Fixes"] = "\n".join(_fixes(rule))
    found["References"] = " ".join(references.split())
    return {heading: text.strip() for heading, text in found.items() if text.strip()}


def page(module: ModuleType, language: str = ENGLISH) -> str:
    """A rule's page as text.

    In another language than English its title, its headings and its first paragraph are
    translated.
    """
    rule: Rule = module.RULE
    lines = [f"{rule.code} {rule.name} ({rule.severity})", "", title(module, language), ""]
    for heading, text in sections(module).items():
        own = _translated(module, language)
        if own and heading == HEADINGS[0]:
            _, *others = text.split("\n\n")
            text = "\n\n".join((own["text"].strip(), words(language)["english"], *others))
        shown = heading if language == ENGLISH else words(language)["headings"][heading]
        lines += [shown, "-" * cell_len(shown), "", text, ""]
    return "\n".join(lines).rstrip() + "\n"


def pages() -> Iterator[tuple[Rule, str]]:
    """Every rule with its page, in order of code."""
    return ((module.RULE, page(module)) for module in discover().values())


def examples(module: ModuleType) -> tuple[str, str]:
    """The code of the page's ``Sick::`` and ``Well::`` blocks."""
    sick, _, well = sections(module).get("Example", "").partition("\nWell::\n")
    return (
        textwrap.dedent(sick.removeprefix("Sick::\n")).strip(),
        textwrap.dedent(well).strip(),
    )


def _translated(module: ModuleType, language: str) -> dict[str, Any]:
    """Its title and first paragraph in another language; nothing for another package's rule."""
    if language == ENGLISH:
        return {}
    found: dict[str, Any] = words(language).get("rules", {}).get(module.RULE.name, {})
    return found


def _docstring(module: ModuleType) -> str:
    return inspect.cleandoc(module.__doc__ or "")


def _value(name: str, threshold: Threshold) -> str:
    """``share = 0.75 (75 %)``: as it is set, and as reports show it."""
    shown = f" ({number(threshold.value, 'share')})" if threshold.unit == "share" else ""
    return f"{name} = {number(threshold.value)}{shown}"


def _fixes(rule: Rule) -> Iterator[str]:
    for fix in rule.fixes:
        safety = story.expectation(fix) or story.CHANGES[fix.changes]
        yield "- " + " ".join(filter(None, (fix.what, fix.why, safety)))
        if code := fix.code() or fix.source:
            yield textwrap.indent(code, "      ")
