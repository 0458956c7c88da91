"""Where one more draw may fall, by sampling theory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from gallery.page import HERE as GALLERY
from gallery.page import read
from scipy import stats

CHANCE = 1e-6
"""Of a false alarm, in each comparison."""


def committed(page: str) -> dict[str, pd.DataFrame]:
    """The tables of a page as they are in the repository."""
    return read(GALLERY / page)


def band(values: Sequence[float], *, log: bool = False) -> tuple[float, float]:
    """The prediction interval of Student's t for one more draw beside these.

    mean ± t(1 - chance/2, n - 1) · s · √(1 + 1/n); on the logarithms where ``log``.
    """
    x = np.log(values) if log else np.asarray(values, dtype=float)
    n = len(x)
    half = stats.t.ppf(1 - CHANCE / 2, n - 1) * x.std(ddof=1) * math.sqrt(1 + 1 / n)
    low, high = x.mean() - half, x.mean() + half
    return (math.exp(low), math.exp(high)) if log else (low, high)


def share_band(share: float, n: int) -> tuple[float, float]:
    """Where an observed share of n independent draws lies, if ``share`` is its probability."""
    low, high = stats.binom.interval(1 - CHANCE, n, share)
    return low / n, high / n
