"""nndiag in a test suite, beside the fixture ``diagnose``.

``parametrize_with_checks`` makes a test of each model and rule. The batteries check building blocks
of your own, as scikit-learn's ``check_estimator`` does: ``check_activation`` and the like in one
call, ``parametrize_activations`` and the like as a test for each property.
"""

from __future__ import annotations

from nndiag.testing.activations import check_activation, parametrize_activations
from nndiag.testing.models import parametrize_with_checks

__all__ = ["check_activation", "parametrize_activations", "parametrize_with_checks"]
