"""The catalogue of activations: the curve of each, its slope, its flat sides and its gain.

One builder an activation: its arguments are torch's options, with torch's defaults. What follows
from a curve is worked out in :mod:`nndiag.theory`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy import special

from nndiag.theory import INF, Activation, Array, Interval, density, gain_forward, normal_cdf

__all__ = ["BUILDERS", "HE", "SATURATED_SLOPE", "named"]

SATURATED_SLOPE = 0.05
"""A unit is saturated where its slope is under this share of the activation's steepest slope.

Derived arithmetic: a share of the slope means the same for every activation (sigmoid at 2z is
tanh at z, so both agree), which a distance of the output from its bound does not.
"""

HE = math.sqrt(2.0)
"""He et al. 2015 section 2.2: sqrt(2/fan_in), because half of a rectifier's input is dropped."""

# A placeholder: _built replaces it by gain_forward.
_BY_MOMENT = math.nan
_BEND = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, *(2.0**i for i in range(4, 15)))
_SMOOTH = (*(-z for z in reversed(_BEND)), 0.0, *_BEND)
"""Cuts for a curve that bends near zero: close together there, doubling for algebraic tails."""


def named(name: str, **options: float) -> Activation | None:
    """The activation called ``name`` (as in ``torch.nn.functional``), or None if it is unknown.

    Options carry torch's names and defaults, e.g. ``named("leaky_relu", negative_slope=0.2)``.
    """
    if name not in BUILDERS:
        return None
    return _built(name, tuple(sorted(options.items())))


@lru_cache(maxsize=1024)
def _built(name: str, options: tuple[tuple[str, float], ...]) -> Activation:
    act = BUILDERS[name](**dict(options))
    return replace(act, gain=gain_forward(act)) if math.isnan(act.gain) else act


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


# Saturating: bounded, and the slope goes to zero on both sides.


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
            lambda z: z * normal_cdf(z),
            lambda z: normal_cdf(z) + z * density(z),
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


BUILDERS: dict[str, Callable[..., Activation]] = {
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
