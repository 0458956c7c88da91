"""What a healthy random network should look like, from theory alone.

Every number here is an expectation over a Gaussian pre-activation ``z ~ N(mean, std^2)``: exact
for a unit with Gaussian weights or inputs, and the infinite-width limit otherwise (Poole et al.
2016). Nothing is fitted and no tensor is touched, so a rule can ask "how large should this be?"
before it says that something is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array: TypeAlias = NDArray[np.float64]
Function: TypeAlias = Callable[[Array], Array]
Interval: TypeAlias = tuple[float, float]

SATURATED_SLOPE = 0.05
"""A unit is saturated where its slope is under this share of the activation's steepest slope.

Derived arithmetic: a share of the slope means the same for every activation (sigmoid at 2z is
tanh at z, so both agree), which a distance of the output from its bound does not.
"""

HE = math.sqrt(2.0)
"""He et al. 2015 section 2.2: sqrt(2/fan_in), because half of a rectifier's input is dropped."""

INF = math.inf


# --- activations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """An activation function with everything the theory needs to know of it."""

    name: str
    phi: Function
    slope: Function
    flat: tuple[Interval, ...]
    """Pre-activations whose slope is (nearly) nothing: under SATURATED_SLOPE of the maximum for
    the saturating family, exactly zero for the rectifiers. Empty where no flat side exists."""
    family: str
    """"saturating", "rectifier", "smooth", "linear" or "other"."""
    gain: float
    """Weights of std ``gain / sqrt(fan_in)`` are the reference initialisation."""
    knots: tuple[float, ...] = ()
    """Where quadrature has to cut: kinks, and the scales on which a smooth curve bends."""
    exact: Callable[[float, float], tuple[float, float, float]] | None = None
    """(mean, std) of z -> (mean, variance, E slope^2), where quadrature would not resolve phi."""


def activation(name: str, **options: float) -> Activation | None:
    """The activation called ``name`` (as in ``torch.nn.functional``), or None if it is unknown.

    Options carry torch's names and defaults, e.g. ``activation("leaky_relu", negative_slope=0.2)``.
    """
    if name not in _BUILDERS:
        return None
    return _built(name, tuple(sorted(options.items())))


@lru_cache(maxsize=1024)
def _built(name: str, options: tuple[tuple[str, float], ...]) -> Activation:
    act = _BUILDERS[name](**dict(options))
    return replace(act, gain=gain_forward(act)) if math.isnan(act.gain) else act


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
    return mean + std * t, weight * _density(t)


def _density(t: Array) -> Array:
    density: Array = np.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return density


def _normal_cdf(t: Array) -> Array:
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
        tail = _normal_cdf(-x)
        log_cdf = np.where(x > 0, np.log1p(-np.minimum(tail, 0.5)), np.log(_normal_cdf(x)))
        return float(weight @ (_density(t) * np.exp(n * log_cdf)))


def never_active_bound(units: int, n: int, correlation: float, confidence: float = 0.999) -> int:
    """As many never-active units a healthy layer of ``units`` shows at most, at ``confidence``.

    The binomial quantile at :func:`never_active`: the smallest k with P(count <= k) >= confidence.

    Give the ``correlation`` of the very network, the mean cosine between two inputs of the layer.
    One iterated from :func:`correlation_map` is right on average only: networks scatter about it,
    and their counts with them (twice the binomial deviation at width 500 and depth 10).
    """
    p = never_active(n, correlation)
    if p == 0:
        return 0
    cdf = special.bdtr(np.arange(units + 1), units, p)
    return min(int(np.searchsorted(cdf, confidence)), units)


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


# --- the catalogue -------------------------------------------------------------------------------
#
# One builder per activation: its arguments are torch's options, with torch's defaults. A gain of
# _BY_MOMENT stands for gain_forward, filled in by _built.

_BY_MOMENT = math.nan
_BEND = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, *(2.0**i for i in range(4, 15)))
_SMOOTH = (*(-z for z in reversed(_BEND)), 0.0, *_BEND)
"""Cuts for a curve that bends near zero: close together there, doubling for algebraic tails."""


def _both_sides(edge: float) -> tuple[Interval, Interval]:
    return (-INF, -edge), (edge, INF)


def _sigmoid_of(z: Array) -> Array:
    decay = np.exp(-np.abs(z))
    sigmoid: Array = np.where(z >= 0, 1.0, decay) / (1 + decay)
    return sigmoid


def _sigmoid_slope_of(z: Array) -> Array:
    decay = np.exp(-np.abs(z))
    slope: Array = decay / (1 + decay) ** 2
    return slope


def _tanh_slope_of(z: Array) -> Array:
    return 4 * _sigmoid_slope_of(2 * z)


def _softplus_of(z: Array) -> Array:
    softplus: Array = np.logaddexp(0.0, z)
    return softplus


def _inside(z: Array, low: float, high: float) -> Array:
    return ((z > low) & (z < high)).astype(float)


def _identity() -> Activation:
    return Activation("identity", np.copy, np.ones_like, (), "linear", 1.0)


# Rectifiers: one side is exactly flat.


def _relu() -> Activation:
    return Activation(
        "relu",
        lambda z: np.maximum(z, 0.0),
        lambda z: _inside(z, 0.0, INF),
        ((-INF, 0.0),),
        "rectifier",
        HE,
        (0.0,),
    )


def _relu6() -> Activation:
    return replace(_clamp(0.0, 6.0), name="relu6")


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    return replace(_clamp(min_val, max_val), name="hardtanh")


def _clamp(min: float = -INF, max: float = INF) -> Activation:
    """Saturating if zero lies strictly between two bounds, else a rectifier like ReLU6."""
    low, high = min, max
    if low == -INF and high == INF:
        return replace(_identity(), name="clamp")
    two_sided = -INF < low < 0 < high < INF
    return Activation(
        "clamp",
        lambda z: np.clip(z, low, high),
        lambda z: _inside(z, low, high),
        tuple(side for side in ((-INF, low), (high, INF)) if side[0] != side[1]),
        "saturating" if two_sided else "rectifier",
        1.0 if two_sided else HE,
        tuple(bound for bound in (low, high) if math.isfinite(bound)),
    )


def _threshold(threshold: float, value: float) -> Activation:
    return Activation(
        "threshold",
        lambda z: np.where(z > threshold, z, value),
        lambda z: _inside(z, threshold, INF),
        ((-INF, threshold),),
        "rectifier",
        HE,
        (threshold,),
    )


def _hardswish() -> Activation:
    """He's gain by custom; the second moment at s = 1 would ask for 1.7367."""
    return Activation(
        "hardswish",
        lambda z: z * np.clip(z / 6 + 0.5, 0.0, 1.0),
        lambda z: np.where(z > 3, 1.0, (z / 3 + 0.5) * _inside(z, -3.0, INF)),
        ((-INF, -3.0),),
        "rectifier",
        HE,
        (-3.0, 3.0),
    )


def _hardshrink(lambd: float = 0.5) -> Activation:
    return Activation(
        "hardshrink",
        lambda z: np.where(np.abs(z) > lambd, z, 0.0),
        lambda z: (np.abs(z) > lambd).astype(float),
        ((-lambd, lambd),),
        "rectifier",
        _BY_MOMENT,
        (-lambd, lambd),
    )


def _softshrink(lambd: float = 0.5) -> Activation:
    return replace(
        _hardshrink(lambd),
        name="softshrink",
        phi=lambda z: np.sign(z) * np.maximum(np.abs(z) - lambd, 0.0),
    )


# Saturating: bounded, and the slope dies on both sides.


def _sigmoid() -> Activation:
    return Activation(
        "sigmoid",
        _sigmoid_of,
        _sigmoid_slope_of,
        _both_sides(2 * math.acosh(1 / math.sqrt(SATURATED_SLOPE))),  # 4 s(1-s) = sech^2(z/2)
        "saturating",
        1.0,
        _SMOOTH,
    )


def _tanh() -> Activation:
    return Activation(
        "tanh",
        np.tanh,
        _tanh_slope_of,
        _both_sides(math.acosh(1 / math.sqrt(SATURATED_SLOPE))),  # sech^2
        "saturating",
        1.0,
        _SMOOTH,
    )


def _softsign() -> Activation:
    return Activation(
        "softsign",
        lambda z: z / (1 + np.abs(z)),
        lambda z: (1 + np.abs(z)) ** -2.0,
        _both_sides(1 / math.sqrt(SATURATED_SLOPE) - 1),
        "saturating",
        1.0,
        _SMOOTH,
    )


def _erf_activation() -> Activation:
    return Activation(
        "erf",
        special.erf,
        lambda z: 2 / math.sqrt(math.pi) * np.exp(-z * z),
        _both_sides(math.sqrt(-math.log(SATURATED_SLOPE))),
        "saturating",
        1.0,
        _SMOOTH,
    )


def _hardsigmoid() -> Activation:
    return Activation(
        "hardsigmoid",
        lambda z: np.clip(z / 6 + 0.5, 0.0, 1.0),
        lambda z: _inside(z, -3.0, 3.0) / 6,
        _both_sides(3.0),
        "saturating",
        1.0,
        (-3.0, 3.0),
    )


# Smooth or leaking: no side is flat.


def _leaky(name: str, a: float) -> Activation:
    """He et al. 2015 section 2.2: 1/2 (1 + a^2) n Var W = 1. With a = 0 it is ReLU."""
    return Activation(
        name,
        lambda z: np.where(z > 0, z, a * z),
        lambda z: np.where(z > 0, 1.0, a),
        () if a else ((-INF, 0.0),),
        "smooth" if a else "rectifier",
        math.sqrt(2 / (1 + a * a)),
        (0.0,),
    )


def _leaky_relu(negative_slope: float = 0.01) -> Activation:
    return _leaky("leaky_relu", negative_slope)


def _prelu(weight: float = 0.25) -> Activation:
    return _leaky("prelu", weight)


def _rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Activation:
    """Out of training, where the slope is the mean of its range."""
    return _leaky("rrelu", (lower + upper) / 2)


def _exponential_linear(name: str, alpha: float, reach: float, scale: float) -> Activation:
    """``scale * (z if z > 0 else alpha * (exp(z/reach) - 1))``"""
    return Activation(
        name,
        lambda z: scale * np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0) / reach)),
        lambda z: scale * np.where(z > 0, 1.0, alpha / reach * np.exp(np.minimum(z, 0.0) / reach)),
        (),
        "smooth",
        _BY_MOMENT,
        tuple(reach * z for z in _SMOOTH),
    )


def _elu(alpha: float = 1.0) -> Activation:
    return _exponential_linear("elu", alpha, 1.0, 1.0)


def _celu(alpha: float = 1.0) -> Activation:
    return _exponential_linear("celu", alpha, alpha, 1.0)


def _selu() -> Activation:
    """Klambauer et al. 2017 section 2: constants that make mean 0, variance 1 a fixed point."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return replace(_exponential_linear("selu", alpha, 1.0, scale), gain=1.0)


def _gelu(approximate_tanh: float = 0.0) -> Activation:
    """Hendrycks & Gimpel 2016. He's gain by custom; E phi^2 at s = 1 would ask for 1.5335."""
    if not approximate_tanh:
        return Activation(
            "gelu",
            lambda z: z * _normal_cdf(z),
            lambda z: _normal_cdf(z) + z * _density(z),
            (),
            "smooth",
            HE,
            _SMOOTH,
        )
    # 1/2 (1 + tanh u) is sigmoid(2u), which keeps the digits of the left tail
    a, b = 2 * math.sqrt(2 / math.pi), 0.044715
    return Activation(
        "gelu",
        lambda z: z * _sigmoid_of(a * (z + b * z**3)),
        lambda z: (
            _sigmoid_of(a * (z + b * z**3))
            + z * _sigmoid_slope_of(a * (z + b * z**3)) * a * (1 + 3 * b * z * z)
        ),
        (),
        "smooth",
        HE,
        _SMOOTH,
    )


def _silu() -> Activation:
    """He's gain by custom; the second moment at s = 1 would ask for 1.6765."""
    return Activation(
        "silu",
        lambda z: z * _sigmoid_of(z),
        lambda z: _sigmoid_of(z) + z * _sigmoid_slope_of(z),
        (),
        "smooth",
        HE,
        _SMOOTH,
    )


def _mish() -> Activation:
    """Misra 2019. He's gain by custom; the second moment at s = 1 would ask for 1.4868."""
    return Activation(
        "mish",
        lambda z: z * np.tanh(_softplus_of(z)),
        lambda z: np.tanh(_softplus_of(z)) + z * _tanh_slope_of(_softplus_of(z)) * _sigmoid_of(z),
        (),
        "smooth",
        HE,
        _SMOOTH,
    )


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """Linear from ``beta z > threshold`` on, as in torch."""
    return Activation(
        "softplus",
        lambda z: np.where(beta * z > threshold, z, _softplus_of(beta * z) / beta),
        lambda z: np.where(beta * z > threshold, 1.0, _sigmoid_of(beta * z)),
        (),
        "smooth",
        _BY_MOMENT,
        (*(z / beta for z in _SMOOTH), threshold / beta),
    )


def _logsigmoid() -> Activation:
    return Activation(
        "logsigmoid",
        lambda z: -_softplus_of(-z),
        lambda z: _sigmoid_of(-z),
        (),
        "smooth",
        _BY_MOMENT,
        _SMOOTH,
    )


# Other functions that networks use as activations.


def _tanhshrink() -> Activation:
    def phi(z: Array) -> Array:
        # z - tanh z cancels near zero: z^3/3 - 2 z^5/15 + 17 z^7/315 - 62 z^9/2835 does not
        u = np.minimum(z * z, 0.01)
        series = z * u * (1 / 3 - u * (2 / 15 - u * (17 / 315 - u * 62 / 2835)))
        out: Array = np.where(np.abs(z) < 0.1, series, z - np.tanh(z))
        return out

    return Activation(
        "tanhshrink", phi, lambda z: np.tanh(z) ** 2, (), "other", _BY_MOMENT, _SMOOTH
    )


def _exp() -> Activation:
    def exact(std: float, mean: float) -> tuple[float, float, float]:
        """The log-normal moments: E phi^2 sits 2 std^2 out, beyond any fixed range."""
        variance = np.float64(std) * std
        centre = np.exp(mean + variance / 2)
        second = np.exp(2 * mean + 2 * variance)
        return float(centre), float(centre * centre * np.expm1(variance)), float(second)

    return Activation("exp", np.exp, np.exp, (), "other", _BY_MOMENT, _SMOOTH, exact)


def _wave_variances(std: float, mean: float) -> tuple[float, float, float]:
    """exp(-std^2/2) with the variances of sin z and of cos z.

    1/2 (1 - e)(1 +- e cos 2m) with e = exp(-std^2), written so that nothing cancels.
    """
    variance = std * std
    e, lost = math.exp(-variance), -math.expm1(-variance)
    sine = lost / 2 * (2 * math.cos(mean) ** 2 - lost * math.cos(2 * mean))
    cosine = lost / 2 * (2 * math.sin(mean) ** 2 + lost * math.cos(2 * mean))
    return math.sqrt(e), sine, cosine


def _sin() -> Activation:
    def exact(std: float, mean: float) -> tuple[float, float, float]:
        damped, sine, cosine = _wave_variances(std, mean)
        centre, other = damped * math.sin(mean), damped * math.cos(mean)
        return centre, sine, cosine + other * other

    return Activation("sin", np.sin, np.cos, (), "other", _BY_MOMENT, _SMOOTH, exact)


def _cos() -> Activation:
    def exact(std: float, mean: float) -> tuple[float, float, float]:
        damped, sine, cosine = _wave_variances(std, mean)
        centre, other = damped * math.cos(mean), damped * math.sin(mean)
        return centre, cosine, sine + other * other

    return Activation("cos", np.cos, lambda z: -np.sin(z), (), "other", _BY_MOMENT, _SMOOTH, exact)


def _square() -> Activation:
    return Activation("square", np.square, lambda z: 2 * z, (), "other", _BY_MOMENT)


def _abs() -> Activation:
    return Activation("abs", np.abs, np.sign, (), "other", _BY_MOMENT, (0.0,))


_BUILDERS: dict[str, Callable[..., Activation]] = {
    "abs": _abs,
    "celu": _celu,
    "clamp": _clamp,
    "cos": _cos,
    "elu": _elu,
    "erf": _erf_activation,
    "exp": _exp,
    "gelu": _gelu,
    "hardshrink": _hardshrink,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "hardtanh": _hardtanh,
    "identity": _identity,
    "leaky_relu": _leaky_relu,
    "linear": _identity,
    "logsigmoid": _logsigmoid,
    "mish": _mish,
    "prelu": _prelu,
    "relu": _relu,
    "relu6": _relu6,
    "rrelu": _rrelu,
    "selu": _selu,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "sin": _sin,
    "softplus": _softplus,
    "softshrink": _softshrink,
    "softsign": _softsign,
    "square": _square,
    "tanh": _tanh,
    "tanhshrink": _tanhshrink,
    "threshold": _threshold,
}
