"""nndiag in a test suite: ``parametrize_with_checks``, beside the fixture ``diagnose``."""

from __future__ import annotations

from nndiag.testing.models import parametrize_with_checks

__all__ = ["parametrize_with_checks"]
