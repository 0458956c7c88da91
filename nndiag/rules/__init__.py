"""One file a rule: its page, its thresholds, and ``check(snapshot, limit)``.

Nothing registers a rule: :func:`discover` walks this folder, and the entry-point group
``nndiag.rules`` for those of other packages. :func:`catalogue` lists them all.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import re
from collections.abc import Mapping, Sequence
from types import ModuleType

from nndiag.rule import ABOUT, SEVERITIES, Rule

__all__ = ["catalogue", "discover", "not_loaded"]


def catalogue() -> dict[str, Rule]:
    """Every rule by its name, in order of code.

    ``list(nndiag.rules.catalogue())`` are the names,
    ``nndiag.rules.catalogue()["dead-relu"].thresholds`` one rule's thresholds.
    """
    return {name: module.RULE for name, module in discover().items()}


@functools.cache
def discover() -> Mapping[str, ModuleType]:
    """Every rule's module by the rule's name, in order of code."""
    return _load()[0]


@functools.cache
def not_loaded() -> Mapping[str, str]:
    """Rules of other packages that cannot be used: the module's name, and why not."""
    return _load()[1]


@functools.cache
def _load() -> tuple[Mapping[str, ModuleType], Mapping[str, str]]:
    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    ]
    broken: dict[str, str] = {}
    entries = importlib.metadata.entry_points(group="nndiag.rules")
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        try:
            module = entry.load()
            fault = _fault(module, modules)
        except Exception as error:  # one broken rule must not cost the others
            first, *_ = str(error).splitlines() or [""]
            fault = f"{type(error).__name__}: {first}"
        if fault:
            package = f" from {entry.dist.name} {entry.dist.version}" if entry.dist else ""
            broken[entry.value] = f"could not be loaded{package}: {fault}"
        else:
            modules.append(module)
    return {m.RULE.name: m for m in sorted(modules, key=lambda m: m.RULE.code)}, broken


_CODE = re.compile(r"[A-Z]{2,}\d+")


def _fault(module: object, known: Sequence[ModuleType]) -> str:
    """Why a module from outside is no rule beside the known ones; "" where it is one."""
    rule = getattr(module, "RULE", None)
    if not isinstance(rule, Rule):
        return "it has no RULE = nndiag.Rule(...)"
    if not callable(getattr(module, "check", None)):
        return "it has no function check(snapshot, limit)"
    if not (getattr(module, "__doc__", None) or "").strip():
        return "it has no docstring, which is the rule's page"
    if not _CODE.fullmatch(rule.code):
        return f"its code {rule.code!r} is not capital letters and digits, such as MY101"
    for value, legal in ((rule.severity, SEVERITIES), (rule.about, ABOUT)):
        if value not in legal:
            return f"{value!r} is not one of {', '.join(map(repr, legal))}"
    for other in known:
        for what in ("name", "code"):
            if getattr(rule, what) == getattr(other.RULE, what):
                return f"its {what} {getattr(rule, what)!r} is that of {other.__name__}"
    return ""
