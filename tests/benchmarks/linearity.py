"""How the price grows: the statistics with the elements they look at, a check with the layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks import paired
from benchmarks.workloads import tanh_chain

WIDTH, DEPTH = 128, 2
# Two decades each, in steps of the cube root of ten.
BATCHES = (512, 1_103, 2_377, 5_120, 11_031, 23_765, 51_200)
DEPTHS = (2, 4, 9, 20, 43, 93, 200)
TOOLS = {"elements": "nndiag statistics", "layers": "nndiag check"}


def compare(*, rounds: int, seconds: float) -> pd.DataFrame:
    """A row for each size: CPU seconds of a step with nndiag, without, and the difference."""
    tables = []
    for batch in BATCHES:
        found = _priced("elements", WIDTH * batch, (WIDTH, DEPTH, batch), rounds, seconds)
        tables.append(found)
    for depth in DEPTHS:
        found = _priced("layers", 2 * depth + 1, (32, depth, 64), rounds, seconds)
        tables.append(found)
    return pd.concat(tables, ignore_index=True)


def _priced(
    what: str, size: int, shape: tuple[int, int, int], rounds: int, seconds: float
) -> pd.DataFrame:
    rows = paired.compare(tanh_chain(*shape), [TOOLS[what]], rounds=rounds, seconds=seconds)
    more = rows["cpu_seconds"] - rows["bare_cpu_seconds"]
    return pd.DataFrame(
        {
            "grows_with": [what],
            "size": [size],
            "tool": [TOOLS[what]],
            "cpu_ms": [1e3 * rows["cpu_seconds"].median()],
            "bare_cpu_ms": [1e3 * rows["bare_cpu_seconds"].median()],
            "extra_ms": [1e3 * more.median()],
            "extra_us_each": [1e6 * more.median() / size],
        }
    )


def exponent(size: pd.Series, cost: pd.Series) -> tuple[float, float, float]:
    """The slope of log cost on log size, and its 95 % confidence interval."""
    fit = stats.linregress(np.log(size), np.log(cost))
    half = stats.t.ppf(0.975, len(size) - 2) * fit.stderr
    return fit.slope, fit.slope - half, fit.slope + half
