"""Numbers as a person would say them, a value and its threshold alike."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["Unit", "number"]

Unit = Literal["share", "factor", ""]
"""A share of a whole is written as a percentage, a factor with a times sign."""


def number(value: float, unit: Unit = "") -> str:
    """524,288, 0.0123 or 6.53e-12; a share as 61 % or 0.0001 %; a factor as 2.4×."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if unit == "share" and 0 <= value <= 1:
        return _percent(value)
    return _plain(value) + ("×" if unit == "factor" else "")


def _percent(share: float) -> str:
    percent = share * 100
    if 1e-4 <= percent < 1e-3:  # as far as a reader counts zeros
        return f"{percent:.4f} %"
    shown = f"{percent:.3g}"
    return "over 99.9 %" if shown == "100" and share < 1 else f"{shown} %"


def _plain(value: float) -> str:
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
