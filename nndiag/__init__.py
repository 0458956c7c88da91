"""Tells what is wrong inside a torch neural network.

``nndiag.check(model, batch)`` runs the model once, measures its activations and gradients, and
returns a :class:`Report` of findings, each with its cause. The model is left as it was found.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nndiag.errors import (
    BatchError,
    CaptureError,
    CureError,
    FindingsError,
    LossError,
    MissingPackageError,
    ModelError,
    NNDiagError,
    OutputError,
    ReportError,
    SettingsError,
    TargetError,
    UnknownRuleError,
)

if TYPE_CHECKING:
    from nndiag.api import check
    from nndiag.batch import Batch
    from nndiag.fixes.repair import Repair, repair
    from nndiag.report import Report
    from nndiag.rule import Finding, Prescription

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchError",
    "CaptureError",
    "CureError",
    "Finding",
    "FindingsError",
    "LossError",
    "MissingPackageError",
    "ModelError",
    "NNDiagError",
    "OutputError",
    "Prescription",
    "Repair",
    "Report",
    "ReportError",
    "SettingsError",
    "TargetError",
    "UnknownRuleError",
    "check",
    "repair",
]

# Resolved on first use: torch takes seconds to import, and a pytest plugin is imported by every
# session of everybody who has nndiag installed.
_LAZY = {
    "check": "nndiag.api",
    "repair": "nndiag.fixes.repair",
    "Repair": "nndiag.fixes.repair",
    "Prescription": "nndiag.rule",
    "Batch": "nndiag.batch",
    "Report": "nndiag.report",
    "Finding": "nndiag.rule",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
