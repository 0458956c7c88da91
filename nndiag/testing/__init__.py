"""nndiag in a test suite, besides the fixture ``diagnose``.

``parametrize_with_checks`` makes one test for each model and rule. The batteries check your own
building blocks, as scikit-learn's ``check_estimator`` checks estimators: ``check_activation`` and
the like in one call, ``parametrize_activations`` and the like with one test for each property.
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
