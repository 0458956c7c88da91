"""Tells what is wrong inside a torch neural network.

``nndiag.check(model, batch)`` runs the model once, measures its activations and gradients, and
returns a :class:`Report` of findings, each with its cause. The model is left as it was found.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nndiag import errors
from nndiag.errors import (
    BatchError,
    CaptureError,
    FindingsError,
    FixError,
    LossError,
    MissingPackageError,
    ModelError,
    NNDiagError,
    OptimizerError,
    OutputError,
    ReportError,
    SettingsError,
    TargetError,
    UnknownRuleError,
)

if TYPE_CHECKING:
    from nndiag import fixes, rules, testing
    from nndiag.api import check
    from nndiag.batch import Batch
    from nndiag.fixes.fix import Fix
    from nndiag.fixes.repair import repair
    from nndiag.fixes.result import Repair
    from nndiag.report import NotJudged, Report
    from nndiag.rule import Finding, Outcome, Rule, Threshold, Unjudged
    from nndiag.stats import Snapshot, TensorStats

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BatchError",
    "CaptureError",
    "Finding",
    "FindingsError",
    "Fix",
    "FixError",
    "LossError",
    "MissingPackageError",
    "ModelError",
    "NNDiagError",
    "NotJudged",
    "OptimizerError",
    "Outcome",
    "OutputError",
    "Repair",
    "Report",
    "ReportError",
    "Rule",
    "SettingsError",
    "Snapshot",
    "TargetError",
    "TensorStats",
    "Threshold",
    "Unjudged",
    "UnknownRuleError",
    "check",
    "errors",
    "fixes",
    "repair",
    "rules",
    "testing",
]

# Resolved on first use: torch takes seconds to import, and a pytest plugin is imported by every
# session of everybody who has nndiag installed.
_LAZY = {
    "check": "nndiag.api",
    "repair": "nndiag.fixes.repair",
    "Repair": "nndiag.fixes.result",
    "Fix": "nndiag.fixes.fix",
    "Batch": "nndiag.batch",
    "NotJudged": "nndiag.report",
    "Report": "nndiag.report",
    "Finding": "nndiag.rule",
    "Outcome": "nndiag.rule",
    "Rule": "nndiag.rule",
    "Threshold": "nndiag.rule",
    "Unjudged": "nndiag.rule",
    "Snapshot": "nndiag.stats",
    "TensorStats": "nndiag.stats",
}
_LAZY_MODULES = ("fixes", "rules", "testing")


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
