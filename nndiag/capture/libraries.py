"""Which parameters lie in modules that an installed library defines."""

from __future__ import annotations

import functools
import re
import sys

from torch import nn

__all__ = ["of_libraries"]

_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")


def of_libraries(model: nn.Module) -> dict[str, str | None]:
    """For each parameter the outermost module of an installed library around it.

    None where the nearest module with a class of its own is the user's. Torch's layers and
    containers belong to who made them: they change nothing.
    """
    found: dict[str, str | None] = {}
    queue: list[tuple[nn.Module, str, str | None]] = [(model, "", None)]
    visited: set[int] = set()
    while queue:
        module, name, around = queue.pop()
        if id(module) in visited:
            continue
        visited.add(id(module))
        kind = type(module)
        whose = _whose(kind.__module__)
        if whose != "torch":
            around = None if whose == "user" else name if around is None else around
        prefix = f"{name}." if name else ""
        # By items: those of a ScriptModule cannot be iterated over.
        found.update((f"{prefix}{p}", around) for p, _ in module._parameters.items())
        for child, inner in module._modules.items():
            if inner is not None:
                queue.append((inner, f"{prefix}{child}", around))
    return found


@functools.lru_cache(maxsize=1024)
def _whose(module: str) -> str:
    """Whose code a Python module is: "torch", "library" or "user"."""
    package = module.partition(".")[0]
    if package in ("torch", "nndiag"):  # what nndiag brings are examples and tests
        return "torch" if package == "torch" else "user"
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "library" if _INSTALLED.search(file) else "user"
