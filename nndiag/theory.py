"""What a healthy random network should look like, from theory alone.

Every number here is an expectation over a Gaussian pre-activation ``z ~ N(mean, std^2)``: exact
for a unit with Gaussian weights or inputs, and the infinite-width limit otherwise (Poole et al.
2016). Nothing is fitted and no tensor is touched, so a rule can ask "how large should this be?"
before it says that something is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

__all__ = [
    "INF",
    "Activation",
    "Array",
    "Function",
    "Interval",
    "Layer",
    "Moments",
    "activity_bound",
    "correlation_map",
    "count_bound",
    "density",
    "fluctuation",
    "gain_backward",
    "gain_forward",
    "gain_variance",
    "log_norm_band",
    "mean_square_condition",
    "moments",
    "never_active",
    "never_active_bound",
    "normal_cdf",
    "probability_bound",
    "recursion",
    "reference_name",
    "sign_coherence",
]

Array: TypeAlias = NDArray[np.float64]
Function: TypeAlias = Callable[[Array], Array]
Interval: TypeAlias = tuple[float, float]

INF = math.inf


# --- activations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """An activation function, with the facts about it that the theory uses."""

    name: str
    phi: Function
    slope: Function
    flat: tuple[Interval, ...]
    """Pre-activations whose slope is (nearly) nothing: under a small share of the maximum for the
    saturating family, exactly zero for the rectifiers. Empty where no flat side exists."""
    family: str
    """"saturating", "rectifier", "smooth", "linear" or "other"."""
    gain: float
    """Weights of std ``gain / sqrt(fan_in)`` are the reference initialisation."""
    knots: tuple[float, ...] = ()
    """Where quadrature has to cut: kinks, and the scales on which a smooth curve bends."""
    exact: Callable[[float, float], tuple[float, float, float]] | None = None
    """(mean, std) of z -> (mean, variance, E slope^2), where quadrature would not resolve phi."""


def reference_name(act: Activation) -> str:
    """Whose initialisation ``act.gain`` is: "Xavier", "He" or "LeCun".

    Xavier keeps the scale of a curve of slope one at zero (Glorot & Bengio 2010 eq. 10; CS231n 2017
    lecture 6 slide 48), LeCun is the same variance where the activation is built to keep it
    (Klambauer et al. 2017 section 2), He allows for what the activation itself takes away (He et
    al. 2015 eq. 10).
    """
    if act.name == "selu":
        return "LeCun"
    return "Xavier" if act.family in ("saturating", "linear") else "He"


# --- Gaussian expectations -----------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Of ``phi(z)`` and ``phi'(z)`` for a Gaussian z."""

    mean: float
    second: float
    """E phi^2"""
    std: float
    slope_second: float
    """E phi'^2"""
    flat_share: float
    """P(z lies where the activation is flat)"""


@lru_cache(maxsize=4096)
def moments(act: Activation, std: float, mean: float = 0.0) -> Moments:
    """Moments of ``phi(z)`` for ``z ~ N(mean, std^2)``; at ``std=0``, of the point ``mean``.

    Gauss-Legendre panels one std wide over +-20 std, cut again at the activation's knots, so that
    neither a kink nor a curve much narrower than std is missed. (Gauss-Hermite converges slowly
    at a kink and steps over a narrow curve.) A std or mean that is not finite gives NaN.
    """
    if std < 0:
        raise ValueError(f"std = {std}: a standard deviation is at least 0.")
    if not (math.isfinite(std) and math.isfinite(mean)):
        return Moments(math.nan, math.nan, math.nan, math.nan, math.nan)

    flat_share = math.fsum(_share(interval, std, mean) for interval in act.flat)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if act.exact is not None and std > 0:
            centre, variance, slope_second = act.exact(std, mean)
            second = variance + centre * centre
        else:
            z, weight = _nodes(act.knots, std, mean)
            out = act.phi(z)
            centre = float(weight @ out)
            # E phi^2 - (E phi)^2 would cancel where phi is nearly constant, as a sigmoid near 0 is
            variance = float(weight @ (out - centre) ** 2)
            second = float(weight @ (out * out))
            slope_second = float(weight @ act.slope(z) ** 2)
    return Moments(centre, second, math.sqrt(variance), slope_second, flat_share)


_LEGENDRE_NODES, _LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(16)
_TAIL = 20.0
_EDGES: Array = np.arange(-_TAIL, _TAIL + 1.0)


def _panels(edges: Array) -> tuple[Array, Array]:
    """Nodes and weights that integrate over the panels between ``edges``."""
    edges = np.sort(edges)
    half = np.diff(edges)[:, None] / 2
    middle = (edges[:-1, None] + edges[1:, None]) / 2
    nodes: Array = (middle + half * _LEGENDRE_NODES).ravel()
    weights: Array = (half * _LEGENDRE_WEIGHTS).ravel()
    return nodes, weights


def _nodes(knots: tuple[float, ...], std: float, mean: float) -> tuple[Array, Array]:
    """Pre-activations and the probability each one stands for."""
    if std == 0:
        return np.array([mean]), np.array([1.0])
    cuts = (np.array(knots) - mean) / std
    t, weight = _panels(np.concatenate([_EDGES, cuts[np.abs(cuts) < _TAIL]]))
    return mean + std * t, weight * density(t)


def density(t: Array) -> Array:
    density: Array = np.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return density


def normal_cdf(t: Array) -> Array:
    cdf: Array = special.ndtr(t)
    return cdf


def _share(interval: Interval, std: float, mean: float) -> float:
    """P(z in the closed interval)."""
    low, high = interval
    if std == 0:
        return float(low <= mean <= high)
    a, b = (low - mean) / std, (high - mean) / std
    if a > 0:  # count from the nearer tail, which keeps small shares exact
        a, b = -b, -a
    return 0.5 * (math.erfc(-b / math.sqrt(2)) - math.erfc(-a / math.sqrt(2)))


def gain_forward(act: Activation) -> float:
    """1/sqrt(E phi(Z)^2): keeps the second moment (He et al. 2015 eq. 9-10, for any phi)."""
    return _inverse(math.sqrt(moments(act, 1.0).second))


def gain_variance(act: Activation) -> float:
    """1/std(phi(Z)): keeps the centred variance, as LSUV does (Mishkin & Matas 2015)."""
    return _inverse(moments(act, 1.0).std)


def gain_backward(act: Activation) -> float:
    """1/sqrt(E phi'(Z)^2): keeps the gradient (He et al. 2015 eq. 14, for any phi)."""
    return _inverse(math.sqrt(moments(act, 1.0).slope_second))


def _inverse(value: float) -> float:
    return 1 / value if value else INF


# --- depth ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One layer of an infinitely wide random network."""

    preactivation: float
    """std of z, which is also its rms: weights and biases have mean zero"""
    output: Moments
    chi: float
    """sigma_w^2 E phi'^2: the mean squared gradient grows by this factor through the layer"""


def recursion(
    act: Activation, weight_gain: float, depth: int, first: float = 1.0, bias_std: float = 0.0
) -> list[Layer]:
    """The layers of a random net: ``q_l = sigma_w^2 E phi(sqrt(q_{l-1}) Z)^2 + sigma_b^2``.

    Poole et al. 2016 eq. 3, and the chi_1 of the same paper, taken at each layer's own q rather
    than at the fixed point. ``weight_gain`` is sigma_w = sqrt(fan_in Var W), ``first`` the rms of
    the network's input. Once a layer overflows, the layers behind it are NaN.
    """
    layers: list[Layer] = []
    incoming = first
    for _ in range(depth):
        std = math.hypot(weight_gain * incoming, bias_std)
        output = moments(act, std)
        layers.append(Layer(std, output, weight_gain * weight_gain * output.slope_second))
        incoming = math.sqrt(output.second)
    return layers


def correlation_map(c: float) -> float:
    """The correlation of two inputs one ReLU layer on: (sqrt(1-c^2) + c (pi - arccos c)) / pi.

    Cho & Saul 2009, arc-cosine kernel of degree 1, for zero bias. It needs no weight scale: ReLU
    is positively homogeneous. Two unrelated inputs (c = 0) grow alike with depth.
    """
    c = min(max(c, -1.0), 1.0)
    return (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi


def fluctuation(act: Activation) -> float:
    """n Var(mean of phi(z)^2 over n units) / (E phi^2)^2 at z ~ N(0, 1); 5 for ReLU.

    The ReLU value is that of Hanin & Nica 2020; for other activations it is the same ratio,
    Var(phi^2) / (E phi^2)^2, by quadrature.
    """
    z, weight = _nodes(act.knots, 1.0, 0.0)
    square = act.phi(z) ** 2
    second = float(weight @ square)
    return float(weight @ (square - second) ** 2) / (second * second) if second else 0.0


def log_norm_band(
    widths: Sequence[int], act: Activation, confidence: float = 0.999
) -> tuple[float, float]:
    """Where ln(rms of the last layer / its rms by :func:`recursion`) lies, by chance alone.

    For one input. ln of the squared ratio is about N(-b/2, b) with
    ``b = fluctuation(act) * sum(1/width)`` (Hanin & Nica 2020), and ln of the rms ratio is half of
    that. Good for widths from about 50; the true spread is 13 % wider at width 20 and depth 10
    (simulated), and the form breaks at 10. For saturating activations, which damp a deviation as
    it travels, the band is wider than it need be.
    """
    b = fluctuation(act) * math.fsum(1 / width for width in widths)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(b) / 2
    return -b / 4 - reach, -b / 4 + reach


# --- activity ------------------------------------------------------------------------------------


def never_active(n: int, correlation: float) -> float:
    """P(a healthy rectifier unit is at or below zero on all of ``n`` inputs).

    ``integral of density(t) * cdf(-t sqrt(c/(1-c)))^n dt`` for inputs whose pre-activations have
    correlation c pairwise: given the share t they have in common, they are independent (derived
    arithmetic; the one-factor form of the Gaussian orthant probability). Without correlation this
    is 2^-n, with full correlation 1/2; a negative correlation counts as none.
    """
    c = min(max(correlation, 0.0), 1.0)
    if c == 0 or n < 1:
        return 0.5**n
    if c == 1:
        return 0.5
    steepness = math.sqrt(c / (1 - c))
    # cdf(-x)^n is a step about one wide near x = -sqrt(2 ln n), however steep: cut on its scale
    cuts = _EDGES / steepness
    t, weight = _panels(np.concatenate([_EDGES, cuts[np.abs(cuts) < _TAIL]]))
    x = -t * steepness
    with np.errstate(divide="ignore", under="ignore"):
        # log1p keeps the digits of a cdf near one, which the power n would magnify
        tail = normal_cdf(-x)
        log_cdf = np.where(x > 0, np.log1p(-np.minimum(tail, 0.5)), np.log(normal_cdf(x)))
        return float(weight @ (density(t) * np.exp(n * log_cdf)))


def never_active_bound(units: int, n: int, correlation: float, confidence: float = 0.999) -> int:
    """As many never-active units a healthy layer of ``units`` shows at most, at ``confidence``.

    The binomial quantile at :func:`never_active`: the smallest k with P(count <= k) >= confidence.

    Give the ``correlation`` of the very network, the mean cosine between two inputs of the layer.
    One iterated from :func:`correlation_map` is right on average only: networks scatter about it,
    and their counts with them (twice the binomial deviation at width 500 and depth 10).
    """
    return count_bound(units, never_active(n, correlation), confidence)


def count_bound(units: int, probability: float, confidence: float) -> int:
    """The binomial quantile: of ``units`` at most so many have what each has by ``probability``."""
    if probability == 0:
        return 0
    cdf = special.bdtr(np.arange(units + 1), units, probability)
    return min(int(np.searchsorted(cdf, confidence)), units)


def probability_bound(hits: int, trials: int, confidence: float = 0.975) -> float:
    """The largest probability that ``hits`` of ``trials`` leave likely (Clopper & Pearson 1934)."""
    if hits >= trials:
        return 1.0
    return float(special.betaincinv(hits + 1, trials - hits, confidence))


def activity_bound(n: int, confidence: float = 0.95) -> float:
    """How active a unit may still be that ``n`` independent inputs never activated.

    Exact one-sided binomial bound ``1 - (1 - confidence)^(1/n)``; about 3/n at 95 %, the "rule of
    three" (Jovanovic & Levy 1997).
    """
    if n < 1:
        return 1.0
    return -math.expm1(math.log1p(-confidence) / n)


# --- centring ------------------------------------------------------------------------------------


def mean_square_condition(k: float, d: int) -> float:
    """Condition number of E[x x^T] for ``d`` independent features with ``k = |mean|/std``.

    1 + d k^2: eigenvalue std^2 + d mean^2 along the common mean, std^2 across it (derived
    arithmetic). It is the curvature ratio that the next layer's weights see.
    """
    return 1 + d * k * k


def sign_coherence(k: float) -> float:
    """The share of a unit's weight gradients that go the same way, over a large batch.

    1/2 + arctan(k)/pi for inputs with ``k = |mean|/std`` and error signals of random sign: 1/2 is
    zero-centred and free to move anywhere, 1 is the zig-zag of CS231n 2017 lecture 6 slides 20-21.
    """
    return 0.5 + math.atan(k) / math.pi
