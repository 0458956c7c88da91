"""Activations whose units cannot die, written as formulas: leaky ReLU, PReLU, ELU, SELU, maxout.

CS231n 2017 lecture 6, slides 29-32. Drop-ins for torch's modules of the same names: equal in value
and gradient, dtype and shape kept, state dicts load both ways. ``inplace`` is not offered.

Each formula has two sides, and ``torch.where`` differentiates both of them: the side that was not
taken gets a gradient of zero, and zero times an infinite slope is NaN. So the side for ``x <= 0``
is computed from :func:`nonpositive`, which holds nothing that could overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from scipy import integrate, special
from torch import nn
from torch.nn import functional as F

from nndiag.batch import describe
from nndiag.errors import FixError

__all__ = [
    "ELU",
    "SELU",
    "LeakyReLU",
    "Maxout",
    "PReLU",
    "TorchCall",
    "exp_minus_one",
    "maxout_gain",
    "nonpositive",
]

TorchCall: TypeAlias = tuple[Callable[..., torch.Tensor], tuple[Any, ...]]
"""A function of torch and its arguments: what ``as_torch_call`` of a module returns.

A module with such a method promises that its forward equals that one call. ``nndiag.check`` then
treats it like torch's own module: one row, of that activation or normalisation.
"""


def nonpositive(x: torch.Tensor) -> torch.Tensor:
    """``x`` where it is at most zero (or NaN), 0 where it is positive; so is its gradient."""
    return x.masked_fill(x > 0, 0.0)


# --- one input, one output -----------------------------------------------------------------------


class LeakyReLU(nn.Module):
    """``x`` for ``x > 0``, else ``negative_slope * x`` (Maas et al. 2013).

    Not ``max(x, negative_slope * x)``: that is the mirror image for a slope over 1, and it would
    share the gradient between the sides at 0.
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, self.negative_slope * nonpositive(x))

    def as_torch_call(self, x: torch.Tensor) -> TorchCall:
        return F.leaky_relu, (x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(nn.Module):
    """``x`` for ``x > 0``, else ``weight * x`` with a learned slope (He et al. 2015 eq. 1).

    One slope for all, or one a unit: ``num_parameters`` is 1 or the size of axis 1. He et al. start
    from 0.25 and keep weight decay off the slopes.

    Raises:
        FixError: the input has no axis 1 of that size.
    """

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_parameters = num_parameters
        self.init = init
        self.weight = nn.Parameter(torch.full((num_parameters,), init, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, self._slopes(x) * nonpositive(x))

    def _slopes(self, x: torch.Tensor) -> torch.Tensor:
        """The weight in a shape that broadcasts along axis 1."""
        weight = self.weight.to(x.dtype)
        if self.num_parameters == 1:
            return weight.reshape(())
        if x.dim() < 2 or x.shape[1] != self.num_parameters:
            raise FixError(
                f"PReLU has {self.num_parameters} slopes but got {describe(x)}: it needs an input "
                f"[N, {self.num_parameters}, …], one unit of axis 1 for each slope. Use "
                "num_parameters=1 for one slope that all units share."
            )
        return weight.reshape(-1, *[1] * (x.dim() - 2))

    def as_torch_call(self, x: torch.Tensor) -> TorchCall:
        return F.prelu, (x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class ELU(nn.Module):
    """``x`` for ``x > 0``, else ``alpha * (exp(x) - 1)`` (Clevert et al. 2015 section 3)."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, self.alpha * exp_minus_one(nonpositive(x)))

    def as_torch_call(self, x: torch.Tensor) -> TorchCall:
        return F.elu, (x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class SELU(nn.Module):
    """``scale`` times the ELU of that ``alpha`` (Klambauer et al. 2017 eq. 2).

    The two constants (section 2 there) make mean 0 and variance 1 a fixed point of a layer with
    weights of mean 0 and variance 1/fan_in.
    """

    __constants__ = ("alpha", "scale")  # so that it can be scripted

    alpha = 1.6732632423543772848170429916717
    scale = 1.0507009873554804934193349852946

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.alpha * exp_minus_one(nonpositive(x))
        return self.scale * torch.where(x > 0, x, left)

    def as_torch_call(self, x: torch.Tensor) -> TorchCall:
        return F.selu, (x,)


def exp_minus_one(x: torch.Tensor) -> torch.Tensor:
    """``exp(x) - 1`` for ``x <= 0``: precise near 0, and far from it in its slope ``exp(x)``, too.

    ``torch.expm1`` alone takes the slope from its result, as ``1 + expm1(x)``: in float32 that is
    nothing below -17, where ``exp(x)`` lasts to -103. An ELU would be dead there too early.
    """
    return torch.where(x > -0.5, torch.expm1(x), torch.exp(x) - 1)


# --- the largest of several layers ---------------------------------------------------------------


class Maxout(nn.Module):
    """The largest of ``pieces`` outputs of a layer: ``h_i = max_j z_ij``, ``z_ij = x W_ij + b_ij``.

    Goodfellow et al. 2013, "Description of maxout". It is layer and activation in one: convex and
    piecewise linear in ``x``, flat only where a piece of it is, at ``pieces`` times the parameters.
    ReLU is the pair (w, 0), leaky ReLU the pair (w, a w).

    ``Maxout.of(nn.Linear(64, 32), pieces=2)`` takes the place of the layer it is given and of the
    activation behind it. ``Maxout(layer, pieces)`` takes the maximum over what any linear layer or
    convolution of yours puts out, whose units lie beside each other piece by piece:

    - ``nn.Linear``: ``[…, units * pieces]`` to ``[…, units]``
    - ``nn.Conv1d``, ``2d``, ``3d``: ``[N, units * pieces, *size]`` to ``[N, units, *size]``

    Raises:
        FixError: a layer of another kind, fewer than 1 piece, or outputs that do not divide into
            ``pieces``.
    """

    def __init__(self, layer: nn.Module, pieces: int) -> None:
        super().__init__()
        self.axis, outputs = _units(layer)
        if pieces < 1 or outputs % pieces:
            raise FixError(
                f"Maxout got pieces={pieces} for a {type(layer).__name__} of {outputs} outputs: "
                "these must divide into units of as many pieces, at least 1. "
                "Maxout.of(layer, pieces) makes the layer wider instead."
            )
        self.layer = layer
        self.pieces = pieces

    @classmethod
    def of(cls, layer: nn.Module, pieces: int = 2) -> Maxout:
        """A maxout with as many outputs as ``layer``, which keeps its options, device and dtype.

        The weights are drawn anew, with std ``maxout_gain(pieces) / sqrt(fan_in)`` and zero biases:
        ``pieces`` copies of the layer would have no other maximum than itself.

        Raises:
            FixError: ``layer`` is none of exactly nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d (a
                subclass may compute anything), or fewer than 1 piece.
        """
        if type(layer) not in _LAYERS:
            raise FixError(_not_a_layer("Maxout.of", layer))
        gain = maxout_gain(pieces)
        wider = _with_more_outputs(layer, pieces).train(layer.training)
        nn.init.normal_(wider.weight, std=gain / math.sqrt(wider.weight[0].numel()))
        if wider.bias is not None:
            nn.init.zeros_(wider.bias)
        return cls(wider, pieces)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.layer(x).unflatten(self.axis, (-1, self.pieces))
        # Not max(): of equal pieces it trains the first alone, so their order would matter.
        return z.amax(self.axis)

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _units(layer: nn.Module) -> tuple[int, int]:
    """The axis of a layer's units, counted from the end, and how many units there are."""
    if isinstance(layer, nn.Linear):
        return -1, layer.out_features
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return -1 - len(layer.kernel_size), layer.out_channels
    raise FixError(_not_a_layer("Maxout", layer))


def _not_a_layer(where: str, layer: object) -> str:
    return (
        f"{where} got a {type(layer).__qualname__}. It takes nn.Linear, nn.Conv1d, nn.Conv2d or "
        "nn.Conv3d."
    )


def _with_more_outputs(layer: Any, pieces: int) -> Any:
    """A fresh layer with the same options and ``pieces`` times the outputs."""
    options = {
        "bias": layer.bias is not None,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, pieces * layer.out_features, **options)
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
        options[name] = getattr(layer, name)
    return type(layer)(layer.in_channels, pieces * layer.out_channels, **options)


@lru_cache(maxsize=128)
def maxout_gain(pieces: int) -> float:
    """1/sqrt(E max_j(Z_j)^2) for ``pieces`` independent Z_j ~ N(0, 1).

    The condition of He et al. 2015 eq. 9-10 with a maxout in the place of the rectifier: weights of
    std ``gain / sqrt(fan_in)`` keep the second moment from layer to layer. The maximum of k has
    density ``k pdf(z) cdf(z)^(k-1)``, integrated numerically here. One piece and two give 1: of
    two, max^2 + min^2 = Z_1^2 + Z_2^2, and by symmetry both expectations are the same. Three give
    0.8854.

    Raises:
        FixError: fewer than 1 piece.
    """
    if pieces < 1:
        raise FixError(f"pieces={pieces}: give 1 or more.")

    def integrand(z: float) -> float:
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return float(z * z * pieces * density * special.ndtr(z) ** (pieces - 1))

    second, _ = integrate.quad(
        integrand, -40, 40, points=[-10.0, 0.0, 10.0], epsabs=0, epsrel=1e-12
    )
    return 1 / math.sqrt(second)
