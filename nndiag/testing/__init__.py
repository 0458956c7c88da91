"""nndiag in a test suite, beside the fixture ``diagnose``.

``parametrize_with_checks`` makes a test of each model and rule. The batteries check building blocks
of your own, as scikit-learn's ``check_estimator`` does: ``check_activation`` and the like in one
call, ``parametrize_activations`` and the like as a test for each property.
"""

from __future__ import annotations

from nndiag.testing.activations import check_activation, parametrize_activations
from nndiag.testing.initializers import check_initializer, parametrize_initializers
from nndiag.testing.models import parametrize_with_checks
from nndiag.testing.normalizers import check_normalizer, parametrize_normalizers
from nndiag.testing.preprocessors import check_preprocessor, parametrize_preprocessors

__all__ = [
    "check_activation",
    "check_initializer",
    "check_normalizer",
    "check_preprocessor",
    "parametrize_activations",
    "parametrize_initializers",
    "parametrize_normalizers",
    "parametrize_preprocessors",
    "parametrize_with_checks",
]
