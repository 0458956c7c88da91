"""The errors that nndiag raises on purpose.

::

    NNDiagError
    ├── ModelError           (TypeError)       not a module, or one that cannot run yet
    ├── FixError             (ValueError)      a fix that is unknown or does not fit
    ├── BatchError           (ValueError)      a batch that is empty or does not fit ``forward``
    ├── LossError            (ValueError)      no scalar loss that depends on the model
    ├── OptimizerError       (ValueError)      no torch optimiser, or one over no parameter
    ├── CaptureError         (RuntimeError)    the model raised while it was watched
    ├── UnknownRuleError     (KeyError)        a rule or threshold that does not exist
    ├── SettingsError        (ValueError)      a setting outside its range
    ├── TargetError          (ImportError)     ``package.module:attr`` that cannot be loaded
    ├── ReportError          (ValueError)      a saved report that cannot be read
    ├── OutputError          (OSError)         a report that cannot be written
    ├── MissingPackageError  (ImportError)     a package that only the demo needs
    └── FindingsError        (AssertionError)  findings, a missed baseline or a broken law

Each is also the builtin exception in brackets. When one reaches the caller, nndiag has already
restored the model (buffers, gradients, modes, hooks) and every random generator.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BatchError",
    "CaptureError",
    "FindingsError",
    "FixError",
    "LossError",
    "MissingPackageError",
    "ModelError",
    "NNDiagError",
    "OptimizerError",
    "OutputError",
    "ReportError",
    "SettingsError",
    "TargetError",
    "UnknownRuleError",
    "did_you_mean",
]


class NNDiagError(Exception):
    """Root of everything nndiag raises on purpose."""


class ModelError(NNDiagError, TypeError):
    """The model is not a torch module, or it cannot run yet."""


class FixError(NNDiagError, ValueError):
    """A fix that does not exist, or that does not fit the module or tensor it is applied to."""


class BatchError(NNDiagError, ValueError):
    """The batch is empty or does not fit the model's ``forward``."""


class LossError(NNDiagError, ValueError):
    """There is no scalar loss that depends on the model's parameters."""


class OptimizerError(NNDiagError, ValueError):
    """What was given as the optimiser is none, or holds no parameter."""


class CaptureError(NNDiagError, RuntimeError):
    """The model itself raised while nndiag was watching it."""


class UnknownRuleError(NNDiagError, KeyError):
    """A named rule or threshold does not exist."""

    # KeyError prints the repr of its argument: a message in quotes, its newlines escaped.
    __str__ = Exception.__str__


class SettingsError(NNDiagError, ValueError):
    """A setting has a value outside its legal range."""


class TargetError(NNDiagError, ImportError):
    """``package.module:attr`` or ``file.py:attr`` could not be loaded."""


class ReportError(NNDiagError, ValueError):
    """A saved report could not be read back."""


class OutputError(NNDiagError, OSError):
    """A report could not be written."""


class MissingPackageError(NNDiagError, ImportError):
    """An optional package is not installed."""


class FindingsError(NNDiagError, AssertionError):
    """A model, its numbers or a building block fails an assertion."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'dead-relu'?"`` for the nearest known word, or nothing."""
    nearest = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
