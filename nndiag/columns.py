"""Plain numbers about the columns of the data that a network is given. No torch.

A column is a feature of ``(N, d)``, a channel of an image, and the last axis of a sequence.
``Experiment.inputs`` holds them, by the name of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["KINDS", "Columns", "Kind"]

Kind = Literal[
    "ids", "one-hot", "binary", "bytes", "counts", "unit-range", "standardised", "generic"
]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Columns:
    """What the values of an input tensor are like, column by column.

    ``rows``: the values that were looked at in each column: samples, and positions of an image or a
    sequence. ``samples``: independent samples. ``columns``: how many there are; of very many, only
    some are looked at, and ``at`` holds their numbers.

    The rest is one value for each of these. Moments, extremes, ``median`` and ``scale`` (1.4826
    times the median distance from the median, the standard deviation of normal data) are over
    finite values. ``missing``: share of NaN and infinities. ``zeros``: share of zeros. ``lowest``
    and ``highest``: share of values equal to the least and the largest. ``inner_min`` and
    ``inner_max``: the least and the largest of the others. ``outliers``: share of values more than
    ten ``scale`` from the median; ``inner_std``: the standard deviation of the others; ``gap``: how
    many times farther from the median the nearest of them is than the farthest of the others.

    ``condition``: of the matrix E[x xᵀ], for few columns; NaN where it is not known.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    samples: int
    rows: int
    columns: int
    at: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    median: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    min: tuple[float, ...] = ()
    max: tuple[float, ...] = ()
    missing: tuple[float, ...] = ()
    zeros: tuple[float, ...] = ()
    lowest: tuple[float, ...] = ()
    highest: tuple[float, ...] = ()
    inner_min: tuple[float, ...] = ()
    inner_max: tuple[float, ...] = ()
    outliers: tuple[float, ...] = ()
    inner_std: tuple[float, ...] = ()
    gap: tuple[float, ...] = ()
    condition: float = math.nan

    @property
    def rms(self) -> float:
        """Root mean square of all finite values."""
        sizes = [math.hypot(m, s) for m, s in zip(self.mean, self.std, strict=True)]
        known = [size for size in sizes if math.isfinite(size)]
        return math.hypot(*known) / math.sqrt(len(known)) if known else math.nan

    @property
    def zero_share(self) -> float:
        return sum(self.zeros) / len(self.zeros) if self.zeros else math.nan

    @property
    def numbers(self) -> bool:
        """Whether its values are quantities: not ids, one-hot or yes and no."""
        return self.kind not in ("ids", "one-hot", "binary")
