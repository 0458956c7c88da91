"""Initialisation of weights and biases: the lecture's two failures, and the schemes against them.

Each function draws the weights of a tensor, a layer, or all layers of a model, in place, and
returns it. Only weights are drawn and biases left alone, as in ``torch.nn.init``, unless the
docstring says otherwise. The same seed gives the same values in any memory format; float16 and
bfloat16 are drawn in float32 and rounded. :func:`matrices` defines the fans of a layer, and raises
the errors that all functions here share.

Which to take (CS231n 2017 lecture 6 slides 48-52): He for ReLU and its kin, Xavier for tanh, LeCun
for SELU. With a constant weight, zero included, all units are equal and stay equal (slide 41).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import nn

from nndiag import activations, theory
from nndiag.errors import FixError, did_you_mean
from nndiag.fixes.matrix import (
    CONVOLUTIONS,
    TRANSPOSED,
    Matrix,
    bias_of,
    layers,
    matrices,
    recurrences,
    write,
)

__all__ = [
    "ASYMMETRIC_STD",
    "Generator",
    "Matrix",
    "asymmetric_",
    "forget_bias_",
    "gain",
    "haar",
    "he_normal_",
    "he_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "matrices",
    "orthogonal_",
    "positive_bias_",
    "small_normal_",
    "unit_normal_",
    "xavier_normal_",
    "xavier_uniform_",
]

Target = TypeVar("Target", bound=torch.Tensor | nn.Module)
Generator = torch.Generator | None

# --- failures ------------------------------------------------------------------------------------


def small_normal_(target: Target, std: float = 0.01, *, generator: Generator = None) -> Target:
    """N(0, std²) whatever the fans: too small for a deep network (lecture slides 44-45).

    Through ten tanh layers of 500 units a signal of std 1 comes out at 3e-7: each layer multiplies
    it by std·√fan_in, here 0.22, and the gradient with it.

    Raises:
        FixError: std is not a positive number; or as :func:`matrices`.
    """
    _check_positive("std", std)
    return _normal(target, lambda m: std, generator)


def unit_normal_(target: Target, *, generator: Generator = None) -> Target:
    """N(0, 1) whatever the fans: too large (lecture slide 47).

    Pre-activations get a std of √fan_in: 92 % of tanh units saturate for 500 inputs, and the
    gradient through a typical one is almost nothing. For an embedding, whose fan_in is 1, it is the
    usual choice.

    Raises:
        FixError: as :func:`matrices`.
    """
    return _normal(target, lambda m: 1.0, generator)


# --- schemes -------------------------------------------------------------------------------------


def xavier_normal_(target: Target, gain: float = 1.0, *, generator: Generator = None) -> Target:
    """std = gain · √(2 / (fan_in + fan_out)): Glorot & Bengio 2010 eq. 12.

    The compromise between a signal that keeps its variance, fan_in · Var W = 1, and a gradient that
    does, fan_out · Var W = 1, where the activation has slope 1 at zero. The lecture's Xavier
    (slide 48) is the first condition alone: :func:`lecun_normal_`.

    Raises:
        FixError: gain is not a positive number; or as :func:`matrices`.
    """
    _check_positive("gain", gain)
    return _normal(target, lambda m: gain * math.sqrt(2 / (m.fan_in + m.fan_out)), generator)


def xavier_uniform_(target: Target, gain: float = 1.0, *, generator: Generator = None) -> Target:
    """U(-b, b) with b = gain · √(6 / (fan_in + fan_out)): Glorot & Bengio 2010 eq. 16.

    Raises:
        FixError: gain is not a positive number; or as :func:`matrices`.
    """
    _check_positive("gain", gain)
    return _uniform(target, lambda m: gain * math.sqrt(2 / (m.fan_in + m.fan_out)), generator)


def he_normal_(
    target: Target,
    activation: str = "relu",
    *,
    fan: Literal["fan_in", "fan_out"] = "fan_in",
    generator: Generator = None,
    **options: float,
) -> Target:
    """std = gain / √fan: He et al. 2015 eq. 10 (``fan_in``) and eq. 14 (``fan_out``).

    With fan_in the signal keeps its second moment, with fan_out the gradient; for ReLU the gain is
    √2 either way, and one of the two suffices. For any other activation it is :func:`gain`, with
    ``options`` as there: ``he_normal_(layer, "leaky_relu", negative_slope=0.2)``.

    Raises:
        FixError: the activation, one of its options or the fan is unknown; or as :func:`matrices`.
    """
    return _normal(target, _he(activation, fan, options), generator)


def he_uniform_(
    target: Target,
    activation: str = "relu",
    *,
    fan: Literal["fan_in", "fan_out"] = "fan_in",
    generator: Generator = None,
    **options: float,
) -> Target:
    """U(-b, b) with b = gain · √(3 / fan), the std of :func:`he_normal_`.

    Raises:
        FixError: as :func:`he_normal_`.
    """
    return _uniform(target, _he(activation, fan, options), generator)


def lecun_normal_(target: Target, *, generator: Generator = None) -> Target:
    """std = 1 / √fan_in: LeCun et al. 1998 section 4.6, and slide 48.

    The signal keeps its variance where the activation does: exactly so for SELU, which is made for
    these weights (Klambauer et al. 2017 section 2), and nearly for tanh on small signals.

    Raises:
        FixError: as :func:`matrices`.
    """
    return _normal(target, lambda m: 1 / math.sqrt(m.fan_in), generator)


def lecun_uniform_(target: Target, *, generator: Generator = None) -> Target:
    """U(-b, b) with b = √(3 / fan_in), the std of :func:`lecun_normal_`.

    Not torch's default for ``nn.Linear``, which is U(±1/√fan_in) and has a third of its variance
    (Glorot & Bengio 2010 eq. 15).

    Raises:
        FixError: as :func:`matrices`.
    """
    return _uniform(target, lambda m: 1 / math.sqrt(m.fan_in), generator)


def orthogonal_(target: Target, gain: float = 1.0, *, generator: Generator = None) -> Target:
    """Every singular value = gain: Saxe et al. 2013.

    Rows or, if there are fewer of them, columns are orthonormal, so that a deep linear network
    neither stretches nor shrinks any direction; a Gaussian matrix has singular values from 0 to 2.
    Drawn from the Haar distribution, which QR gives once the signs of R's diagonal are taken out
    (Mezzadri 2007). A convolution's matrix takes a patch to a pixel, a transposed one's a pixel to
    a patch, both for each group; gates and projections are drawn one by one.

    Raises:
        FixError: gain is not a positive number; or as :func:`matrices`.
    """
    _check_positive("gain", gain)
    write(matrices(target), lambda m: gain * haar(m, generator))
    return target


def haar(matrix: Matrix, generator: Generator = None) -> torch.Tensor:
    """Orthonormal values for ``matrix``, from the Haar distribution, in the shape of its value."""
    rows = matrix.value.shape[0] // matrix.groups
    random = _empty(matrix, (matrix.groups, rows, matrix.value[0].numel()), generator)
    random.normal_(generator=generator)
    wide = random.shape[-2] < random.shape[-1]
    q, r = torch.linalg.qr(random.mT if wide else random)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    values: torch.Tensor = (q.mT if wide else q).reshape(matrix.value.shape)
    return values


ASYMMETRIC_STD = -2 * math.sqrt(2) / (3 * math.sqrt(math.pi)) + math.sqrt(1 + 8 / (9 * math.pi))
"""σ_w = 0.6007 of :func:`asymmetric_`, the positive root of σ² + 4√2/(3√π)·σ = 1."""


def asymmetric_(target: Target, *, generator: Generator = None) -> Target:
    """Randomised asymmetric initialisation for ReLU: Lu et al. 2019 section 4. Draws biases, too.

    Of each unit's weights and bias [w, b], one chosen at random is positive, drawn from Beta(2, 1),
    and the others are N(0, σ_w²/fan_in). Symmetric weights switch each unit off with probability
    1/2, so a deep and narrow network is often born dead, its output the same for every input: ten
    layers of two units nine times in ten, and one time in four if drawn like this. Wide networks
    need it less. Where there is no bias, one of the weights is chosen.

    σ_w: let h ≥ 0 be the n outputs below and p ~ Beta(2, 1), so E p = 2/3 and E p² = 1/2. A
    pre-activation is m + s·Z with m = p·h_k for a random k, s² = σ_w²·‖h‖²/n and Z ~ N(0, 1), and

        E relu(m + sZ)² = (m² + s²) Φ(m/s) + m s φ(m/s) ≤ s²/2 + 2 m s φ(0) + m².

    With E h_k ≤ ‖h‖/√n and E h_k² = ‖h‖²/n, the sum over n such units is at most

        ‖h‖² · (σ_w²/2 + 4 σ_w / (3 √(2π)) + 1/2),

    so the bracket = 1 keeps the second moment from growing. (Wide layers stay below the bound.)

    Raises:
        FixError: as :func:`matrices`.
    """
    biases: list[tuple[torch.Tensor, torch.Tensor]] = []

    def draw(matrix: Matrix) -> torch.Tensor:
        inputs = matrix.value.numel() // matrix.units
        rows = _empty(matrix, (matrix.units, inputs + (matrix.bias is not None)), generator)
        rows.normal_(0, ASYMMETRIC_STD / math.sqrt(matrix.fan_in), generator=generator)
        chosen = torch.randint(
            rows.shape[1], (matrix.units, 1), device=rows.device, generator=generator
        )
        # Beta(2, 1) has the distribution function p², so the root of a uniform number follows it.
        rows.scatter_(
            1, chosen, rows.new_empty(matrix.units, 1).uniform_(generator=generator).sqrt_()
        )
        if matrix.bias is not None:
            biases.append((matrix.bias, rows[:, -1]))
        return matrix.arranged(rows[:, :inputs])

    write(matrices(target), draw)
    for bias, values in biases:
        bias.copy_(values)
    return target


# --- gains ---------------------------------------------------------------------------------------


def gain(
    activation: str,
    *,
    keep: Literal["signal", "variance", "gradient"] = "signal",
    **options: float,
) -> float:
    """σ_w such that weights of std σ_w/√fan keep something of z ~ N(0, 1) through φ.

    ``signal``: the second moment, 1/√(E φ²) (He et al. 2015 eq. 10). ``variance``: the variance,
    1/std φ, for outputs that are centred (LSUV, Mishkin & Matas 2015). ``gradient``: that of the
    squared gradient, 1/√(E φ'²) (He et al. 2015 eq. 14), then with fan_out. For φ(z) = z and the
    ReLUs this is ``torch.nn.init.calculate_gain``, which has none for GELU, SiLU, ELU or softplus
    and a rule of thumb for tanh (5/3). Its 3/4 for SELU contradicts what makes that
    self-normalising, a gain of 1 (Klambauer et al. 2017 section 2).

    Options carry torch's names: ``gain("leaky_relu", negative_slope=0.2)``.

    Raises:
        FixError: the activation, an option or ``keep`` is unknown; or nothing can be kept, as
            where the activation is flat.
    """
    gains = {
        "signal": theory.gain_forward,
        "variance": theory.gain_variance,
        "gradient": theory.gain_backward,
    }
    if keep not in gains:
        raise FixError(
            f"keep = {keep!r} is unknown: a gain keeps {', '.join(map(repr, gains))}."
            f"{did_you_mean(str(keep), gains)}"
        )
    value = gains[keep](_activation(activation, options))
    if not 0 < value < math.inf:
        raise FixError(
            f"{activation} with {options} has no gain that keeps the {keep}: of N(0, 1) it leaves "
            "nothing, or nothing finite. Check its options."
        )
    return value


def _activation(name: str, options: dict[str, float]) -> theory.Activation:
    known = activations.BUILDERS
    if not isinstance(name, str) or name not in known:
        hint = did_you_mean(name, known) if isinstance(name, str) else ""
        raise FixError(
            f"the activation {name!r} is unknown.{hint} Known are, as torch.nn.functional calls "
            f"them: {', '.join(known)}."
        )
    legal = inspect.signature(known[name]).parameters
    unknown = [option for option in options if option not in legal]
    if unknown:
        raise FixError(
            f"{name} has no option {unknown[0]!r}.{did_you_mean(unknown[0], legal)} "
            f"It has: {', '.join(legal) or 'none'}."
        )
    act = activations.named(name, **options)
    assert act is not None
    return act


def _he(activation: str, fan: str, options: dict[str, float]) -> Callable[[Matrix], float]:
    if fan == "fan_in":
        factor = gain(activation, keep="signal", **options)
        return lambda m: factor / math.sqrt(m.fan_in)
    if fan == "fan_out":
        factor = gain(activation, keep="gradient", **options)
        return lambda m: factor / math.sqrt(m.fan_out)
    raise FixError(
        f"fan = {fan!r} is unknown: 'fan_in' keeps the signal, 'fan_out' the gradient."
        f"{did_you_mean(str(fan), ('fan_in', 'fan_out'))}"
    )


# --- biases --------------------------------------------------------------------------------------


def positive_bias_(target: nn.Module, value: float = 0.01) -> nn.Module:
    """Set the biases of linear layers and convolutions to a small positive number (slide 28).

    So that ReLU units fire, and pass a gradient, from the start. Some people like to; the course
    notes find it unclear that it helps consistently, as some results even got worse, and keep to
    zero. A unit whose input outweighs 0.01 is dead all the same.

    Raises:
        FixError: there is no such bias, it cannot be set, or the value is negative or no number.
    """
    if not 0 <= value < math.inf:
        raise FixError(f"value = {value} is not a small positive number, such as 0.01.")
    kinds = (nn.Linear, nn.Bilinear, *CONVOLUTIONS, *TRANSPOSED)
    biases = [bias_of(name, layer) for name, layer in layers(target) if isinstance(layer, kinds)]
    _fill([bias for bias in biases if bias is not None], value, target, "linear or convolution")
    return target


def forget_bias_(target: nn.Module, value: float = 1.0) -> nn.Module:
    """Set the biases of LSTMs' forget gates: Jozefowicz et al. 2015, who recommend 1.

    At zero the gate starts half open, and a cell forgets half of what it holds at each step. torch
    adds two bias vectors; their sum is what counts, so one gets ``value`` and the other 0. Of every
    layer and direction, in nn.LSTM and nn.LSTMCell; the other gates' biases are left alone.

    Raises:
        FixError: there is no LSTM with biases, they cannot be set, or the value is not finite.
    """
    if not math.isfinite(value):
        raise FixError(f"value = {value} is not a finite number, such as 1.0.")
    gate_biases_by_kind: dict[str, list[torch.Tensor]] = {"ih": [], "hh": []}
    for name, layer in layers(target):
        ends = [""] if isinstance(layer, nn.LSTMCell) else []
        if isinstance(layer, nn.LSTM):
            ends = [f"_{end}" for end in recurrences(layer)]
        for end in ends:
            for kind, gate_biases in gate_biases_by_kind.items():
                bias = bias_of(name, layer, f"bias_{kind}{end}")
                if bias is not None:
                    gate_biases.append(bias.chunk(4)[1])  # input, forget, cell, output
    _fill(gate_biases_by_kind["ih"], value, target, "LSTM")
    _fill(gate_biases_by_kind["hh"], 0.0, target, "LSTM")
    return target


def _fill(biases: list[torch.Tensor], value: float, target: nn.Module, kind: str) -> None:
    if not biases:
        raise FixError(
            f"{type(target).__name__} has no {kind} layer with a bias. Create it with bias=True."
        )
    for bias in biases:
        bias.fill_(value)


# --- drawing -------------------------------------------------------------------------------------


def _check_positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise FixError(f"{what} = {value} is not a positive number.")


def _normal(target: Target, std: Callable[[Matrix], float], generator: Generator) -> Target:
    def draw(matrix: Matrix) -> torch.Tensor:
        values = _empty(matrix, matrix.value.shape, generator)
        return values.normal_(0, std(matrix), generator=generator)

    write(matrices(target), draw)
    return target


def _uniform(target: Target, std: Callable[[Matrix], float], generator: Generator) -> Target:
    def draw(matrix: Matrix) -> torch.Tensor:
        bound = math.sqrt(3) * std(matrix)
        values = _empty(matrix, matrix.value.shape, generator)
        return values.uniform_(-bound, bound, generator=generator)

    write(matrices(target), draw)
    return target


def _empty(matrix: Matrix, shape: tuple[int, ...], generator: Generator) -> torch.Tensor:
    """A contiguous tensor to draw into: at least float32, on the generator's device."""
    device = matrix.value.device if generator is None else generator.device
    dtype = torch.promote_types(matrix.value.dtype, torch.float32)
    return torch.empty(shape, dtype=dtype, device=device)
