"""One file a rule: its page, its thresholds, and ``check(snapshot, limit)``.

:func:`catalogue` lists them, with those that other packages bring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nndiag.rule import Rule

__all__ = ["catalogue"]


def catalogue() -> dict[str, Rule]:
    """Every rule by its name, in order of code.

    ``list(nndiag.rules.catalogue())`` are the names,
    ``nndiag.rules.catalogue()["dead-relu"].thresholds`` one rule's thresholds.
    """
    from nndiag.rule import discover

    return {name: module.RULE for name, module in discover().items()}
