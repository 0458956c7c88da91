"""What the tests of several batteries say of a broken block."""

from __future__ import annotations

from typing import Any

import pytest

from nndiag.errors import FindingsError
from nndiag.testing.battery import Battery, Result, raise_for


def assert_caught(of: Battery[Any], result: Result, text: str) -> None:
    """That it fails, and that what a user reads says so in these words (a pattern)."""
    assert result.status == "fails", result
    with pytest.raises(FindingsError, match=text):
        raise_for("it", of, [result])
