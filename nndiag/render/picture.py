"""The numbers of a chart of the network along its depth, as the lecture draws for ten tanh layers.

For each layer: the distributions of its output and gradient, mean and standard deviation, the
shares of saturated values and dead units, and the factor by which it changes the gradient. Beside
each number stands what theory expects.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nndiag import flow, gradient_flow, ops, theory
from nndiag.stats import Histogram, Layer, Snapshot, TensorStats

__all__ = [
    "BINS",
    "BLOCKS",
    "TALLEST",
    "Scales",
    "common_scales",
    "dead",
    "expected",
    "picture",
    "plain",
    "saturated",
    "scales",
    "text_curve",
]

BINS = 48
TALLEST = 99
"""The height of the tallest bar; heights are whole numbers, which keeps pages small."""
BLOCKS = "▁▂▃▄▅▆▇█"
"""The characters of a curve in a line of text."""


class Scales(NamedTuple):
    """The axes: activations from -reach to reach, sizes of gradients over these powers of ten."""

    reach: float
    decades: tuple[float, float]


def scales(snapshot: Snapshot) -> Scales:
    """The scales that show nearly all values of all layers."""
    return Scales(_reach(snapshot) or 1.0, _decades(snapshot))


def common_scales(old: Snapshot, new: Snapshot) -> Scales:
    """The scales on which two pictures can be compared.

    The larger reach of the two. If the old network had exploded, the reach of the new one: on the
    scale of an explosion all other curves would be lines.
    """
    was, now = _reach(old), _reach(new)
    reach = was if was is not None and (now is None or now < was < 4 * now) else now
    return Scales(reach or 1.0, _decades(old, new))


def picture(snapshot: Snapshot, on: Scales | None = None) -> dict[str, Any]:
    """Plain data: ``reach`` (activations are drawn from -reach to reach), ``decades`` (of the
    gradients' sizes) and a row for each layer. ``on``: scales other than its own.

    A row's ``expected`` is the mean and standard deviation that theory gives its output, from its
    input: see :func:`expected`. ``factor`` and ``expected_factor`` are the gradient's.
    """
    reach, decades = on or scales(snapshot)
    factors = _factors(snapshot)
    inner = _gains(snapshot)
    return {
        "reach": reach,
        "decades": decades,
        "layers": [
            {
                "name": layer.name,
                "op": layer.op if layer.op != "module" else layer.kind,
                "output": _curve(layer.output, _linear(reach)),
                "mean": plain(layer.output.mean),
                "std": plain(layer.output.std),
                "expected": expected(layer, inner),
                "saturated": plain(saturated(layer)),
                "dead": plain(dead(layer)),
                "grad": None if layer.grad is None else _curve(layer.grad, _sizes(*decades)),
                "grad_rms": None if layer.grad is None else plain(layer.grad.rms),
                "factor": plain(factors.get(layer.name, (math.nan, math.nan))[0]),
                "expected_factor": plain(factors.get(layer.name, (math.nan, math.nan))[1]),
            }
            for layer in snapshot.layers
        ],
    }


def expected(layer: Layer, gains: dict[str, float]) -> list[float] | None:
    """The mean and standard deviation that theory gives a layer's output, from its input.

    Activation: those of φ(z) for a Gaussian z with the mean and deviation of the input. Weight
    layer: 0 and gain · rms(x), which its reference initialisation (std gain / √fan_in) gives for
    any input (He et al. 2015, eq. 6-8). Normalisation: 0 and 1.
    """
    x = layer.input
    act = flow.act_of(layer) if flow.is_activation(layer) else None
    if layer.op in ops.STANDARDIZED:
        return [0.0, 1.0]
    if x is None or not x.count or not math.isfinite(x.mean) or not math.isfinite(x.std):
        return None
    if act is not None:
        output = theory.moments(act, x.std, x.mean)
        pair = [output.mean, output.std]
    elif layer.op in ops.WEIGHTED:
        pair = [0.0, gains.get(layer.name, 1.0) * x.rms]
    else:
        return None
    return [_short(v) for v in pair] if all(map(math.isfinite, pair)) else None


def _gains(snapshot: Snapshot) -> dict[str, float]:
    """The factor by which each weight layer's reference initialisation scales its input."""
    links = [link for chain in flow.chains(snapshot) for link in chain.links]
    acts = {link.layer.name: link.activation for link in links if link.activation is not None}
    known = {name: flow.act_of(row) for name, row in acts.items()}
    return {name: act.gain for name, act in known.items() if act is not None}


def _factors(snapshot: Snapshot) -> dict[str, tuple[float, float]]:
    """For each weight layer, its gradient relative to the next one's: measured and expected."""
    return {
        p.layer.name: (p.factor, p.slope * p.gain)
        for path in gradient_flow.paths(snapshot)
        for p in path.passages
    }


def saturated(layer: Layer) -> float:
    """The share of inputs where a saturating activation is flat; NaN for any other layer."""
    act = flow.act_of(layer) if layer.flat is not None else None
    if layer.flat is None or act is None or act.family != "saturating":
        return math.nan
    return layer.flat.share


def dead(layer: Layer) -> float:
    """The share of a rectifier's units that no sample activated; NaN for any other layer."""
    act = flow.act_of(layer) if layer.flat is not None else None
    if layer.flat is None or layer.flat.open is None or act is None or act.family != "rectifier":
        return math.nan
    return layer.flat.closed / max(len(layer.flat.open), 1)


# -- curves -------------------------------------------------------------------------------------


def _reach(snapshot: Snapshot) -> float | None:
    """The end of the activations' axis, so that nearly all values of all layers fit.

    One layer in twenty is ignored: a single exploded one would turn all others into lines.
    """
    sizes = [
        size
        for layer in snapshot.layers
        if layer.output.histogram is not None
        and math.isfinite(size := layer.output.histogram.magnitude_quantile(0.99))
        and size > 0
    ]
    if not sizes:
        return None
    sizes.sort()
    most = sizes[-1 - len(sizes) // 20]
    return _short(sizes[-1] if sizes[-1] < 4 * most else most)


def _decades(*snapshots: Snapshot) -> tuple[float, float]:
    """The range of the gradients' sizes, in powers of ten."""
    sizes = [
        math.log10(rms)
        for snapshot in snapshots
        for layer in snapshot.layers
        if layer.grad is not None and math.isfinite(rms := layer.grad.rms) and rms > 0
    ]
    low, high = (min(sizes), max(sizes)) if sizes else (-3.0, 0.0)
    return math.floor(low) - 1, math.ceil(high) + 1


def _curve(stats: TensorStats, share: np.ndarray) -> list[int] | None:
    """The heights of the density over the bins, scaled so that the tallest is TALLEST."""
    if stats.histogram is None:
        return None
    heights = np.asarray(stats.histogram.counts) @ share
    top = heights.max()
    return None if not top > 0 else np.rint(heights / top * TALLEST).astype(int).tolist()


def _edges() -> np.ndarray:
    """All edges of a histogram's bins, from the largest negative one to the largest."""
    positive = Histogram.edges()
    return np.concatenate([-positive[::-1], positive])


@functools.lru_cache(maxsize=8)
def _linear(reach: float) -> np.ndarray:
    """The share of each histogram bin (row) in each drawn bin, from -reach to reach.

    Values beyond the reach go into the outermost bins.
    """
    low, high = _edges()[:-1], _edges()[1:]
    return _overlap(low, high, np.linspace(-reach, reach, BINS + 1))


@functools.lru_cache(maxsize=8)
def _sizes(low: float, high: float) -> np.ndarray:
    """The same for the sizes of values, from 10**low to 10**high.

    Smaller values are left out: piled up at the edge, they would flatten the rest.
    """
    sizes = np.log10(Histogram.edges())
    share = _overlap(sizes[:-1], sizes[1:], np.linspace(low, high, BINS + 1))
    share[sizes[1:] <= low] = 0
    nothing = np.zeros((1, BINS))  # zeros have no size
    both: np.ndarray = np.concatenate([share[::-1], nothing, share])
    return both


def _overlap(low: np.ndarray, high: np.ndarray, edges: np.ndarray) -> np.ndarray:
    low, high = (np.clip(x, edges[0], edges[-1])[:, None] for x in (low, high))
    inside = np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])
    width = high - low
    beyond = (width <= 0)[:, 0]
    share: np.ndarray = np.clip(inside, 0, None) / np.where(width > 0, width, 1)
    share[beyond & (low[:, 0] >= edges[-1]), -1] = 1
    share[beyond & (high[:, 0] <= edges[0]), 0] = 1
    return share


def plain(value: float) -> float | None:
    """A number for JSON, to four digits; None if it is not finite."""
    return _short(value) if math.isfinite(value) else None


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def text_curve(heights: Sequence[int] | None, width: int = 12) -> str:
    """A curve in one line of text, where no picture is possible: ``"▁▂▅█▅▂▁"``."""
    if not heights:
        return ""
    parts = [max(part) for part in np.array_split(np.asarray(heights), width)]
    return "".join(BLOCKS[min(7, int(part) * 8 // (TALLEST + 1))] for part in parts)
