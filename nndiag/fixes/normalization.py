"""Layers that normalise their input to mean 0 and variance 1: batch, layer and group norm.

All have the formula ``(x - mean) / sqrt(variance + eps)``. They differ in the values of an input
``[N, C, …]`` over which the mean and the variance are taken.

- Batch norm: all samples and positions of a channel. It needs a batch, and keeps running
  statistics.
- Layer norm: the last axes of one sample, such as all features of ``[N, C]``.
- Group norm: all positions of a group of channels of one sample.

The last two are for batches too small for a mean. Ioffe & Szegedy 2015; Ba et al. 2016;
Wu & He 2018; CS231n 2017 lecture 6, slides 54-60. Drop-ins for torch's modules of the same names:
equal in value, gradient and running statistics, and state dicts load both ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from nndiag.batch import describe
from nndiag.errors import FixError
from nndiag.fixes.activations import TorchCall

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "LayerNorm",
    "batch_norm_backward",
    "moments",
    "normalize",
    "scale_and_shift",
]

# --- the formula ---------------------------------------------------------------------------------


def moments(x: torch.Tensor, over: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance over some axes, which stay as axes of size 1.

    Ioffe & Szegedy 2015 algorithm 1: the variance divides by m, not by m - 1.
    """
    mean = x.mean(tuple(over), keepdim=True)
    variance = (x - mean).square().mean(tuple(over), keepdim=True)
    return mean, variance


def normalize(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, eps: float
) -> torch.Tensor:
    """``(x - mean) / sqrt(variance + eps)``: Ioffe & Szegedy 2015 algorithm 1."""
    return (x - mean) / torch.sqrt(variance + eps)


def scale_and_shift(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    shape: Sequence[int],
) -> torch.Tensor:
    """``weight * x + bias`` (γ and β of algorithm 1), both in a ``shape`` that broadcasts."""
    x = x if weight is None else weight.reshape(shape) * x
    return x if bias is None else x + bias.reshape(shape)


def _along_units(x: torch.Tensor) -> tuple[int, ...]:
    """The shape in which a number for each unit broadcasts along axis 1."""
    return (1, -1) + (1,) * (x.dim() - 2)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32: sums need the digits. torch's kernels do the same."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _add_affine(
    module: nn.Module,
    shape: int | tuple[int, ...],
    weight: bool,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    ones = torch.ones(shape, device=device, dtype=dtype)
    module.register_parameter("weight", nn.Parameter(ones) if weight else None)
    module.register_parameter("bias", nn.Parameter(torch.zeros_like(ones)) if bias else None)


# --- batch norm ----------------------------------------------------------------------------------


class BatchNorm(nn.Module):
    """Batch norm over all axes but axis 1, the unit's (Ioffe & Szegedy 2015 algorithms 1 and 2).

    What :class:`BatchNorm1d`, ``2d`` and ``3d`` have in common; they say which shapes are legal.

    In training mode it uses the batch's own mean and variance, and remembers them:
    ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance
    ``m / (m - 1) * variance`` (algorithm 2). With ``momentum=None`` it remembers the plain average
    of all batches. In eval mode it uses what it remembers, so that a sample's output does not
    depend on its neighbours. Without ``track_running_stats`` it always uses the batch.

    A bias just before it does nothing, since the mean is taken out (section 3.2): use
    ``bias=False`` there.

    Raises:
        FixError: an input of another shape; or, where the batch's own statistics are used, fewer
            than 2 values a unit or an ``eps`` that is not positive.
    """

    shapes: tuple[str, ...]
    """Legal inputs, as messages write them; each has as many axes as letters."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    num_batches_tracked: torch.Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = tracks = track_running_stats
        _add_affine(self, num_features, affine, affine, device, dtype)
        zeros = torch.zeros(num_features, device=device, dtype=dtype)
        count = torch.tensor(0, device=device)
        self.register_buffer("running_mean", zeros if tracks else None)
        self.register_buffer("running_var", torch.ones_like(zeros) if tracks else None)
        self.register_buffer("num_batches_tracked", count if tracks else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_shape(x)
        wide, shape = _at_least_float32(x), _along_units(x)
        if self.training or self.running_mean is None or self.running_var is None:
            values = self._check_batch(x)
            mean, variance = moments(wide, over=(0, *range(2, x.dim())))
            if self.training and self.track_running_stats:
                self._update_running_stats(
                    mean.flatten(), variance.flatten() * values / (values - 1)
                )
        else:
            mean, variance = self.running_mean.reshape(shape), self.running_var.reshape(shape)
        y = normalize(wide, mean, variance, self.eps)
        return scale_and_shift(y, self.weight, self.bias, shape).to(x.dtype)

    @torch.no_grad()
    def _update_running_stats(self, mean: torch.Tensor, unbiased: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        rate = self._momentum_now()
        self.running_mean.mul_(1 - rate).add_(rate * mean)
        self.running_var.mul_(1 - rate).add_(rate * unbiased)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def _momentum_now(self) -> float:
        """The share of the next batch in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        return 1 / (1 + int(self.num_batches_tracked or 0))

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, variance 1."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.zero_()

    def _check_shape(self, x: torch.Tensor) -> None:
        dims = [shape.count(",") + 1 for shape in self.shapes]
        if x.dim() not in dims or x.shape[1] != self.num_features:
            legal = " or ".join(self.shapes).replace("C", str(self.num_features))
            raise FixError(
                f"{type(self).__name__}({self.num_features}) got {describe(x)}. It takes {legal}."
            )

    def _check_batch(self, x: torch.Tensor) -> int:
        """How many values each unit has."""
        values = x.shape[0] * math.prod(x.shape[2:])
        name = f"{type(self).__name__}({self.num_features})"
        if values < 2:
            mode = "training mode" if self.training else "eval mode, without running statistics"
            raise FixError(
                f"{name} got {describe(x)} in {mode}: with {values} values a unit there is no "
                "variance, and at least 2 are needed. Give it a larger batch (a DataLoader drops "
                "a last batch of 1 with drop_last=True), or use LayerNorm or GroupNorm, which "
                "need no batch."
            )
        if self.eps <= 0:
            raise FixError(
                f"{name} has eps={self.eps}. Give more than 0: a unit that is constant over "
                "the batch would be divided by 0. The default is 1e-5."
            )
        return values

    def as_torch_call(self, x: torch.Tensor) -> TorchCall:
        remembers = self.track_running_stats or not self.training
        running = (self.running_mean, self.running_var) if remembers else (None, None)
        of_batch = self.training or self.running_mean is None
        settings = (of_batch, self._momentum_now(), self.eps)
        return F.batch_norm, (x, *running, self.weight, self.bias, *settings)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(BatchNorm):
    """Of ``[N, C]`` and ``[N, C, L]``, over N and L; see ``BatchNorm``."""

    shapes = ("[N, C]", "[N, C, L]")


class BatchNorm2d(BatchNorm):
    """Of ``[N, C, H, W]``, over N, H and W; see ``BatchNorm``."""

    shapes = ("[N, C, H, W]",)


class BatchNorm3d(BatchNorm):
    """Of ``[N, C, D, H, W]``, over N, D, H and W; see ``BatchNorm``."""

    shapes = ("[N, C, D, H, W]",)


def batch_norm_backward(
    grad_output: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a loss by the ``x``, weight and bias of a batch norm in training mode.

    The chain rule of Ioffe & Szegedy 2015 section 3, equation by equation, with m values a unit.
    ``grad_output`` and ``x`` are ``[N, C, …]``, ``weight`` is ``[C]`` (None for ones); returned are
    ``[N, C, …]``, ``[C]``, ``[C]``. Nothing here needs it, as autograd finds the same.
    """
    over, shape = (0, *range(2, x.dim())), _along_units(x)
    m = x.shape[0] * math.prod(x.shape[2:])
    mean, variance = moments(x, over)
    centred, std = x - mean, torch.sqrt(variance + eps)

    grad_normal = scale_and_shift(grad_output, weight, None, shape)
    grad_variance = (grad_normal * centred).sum(over, keepdim=True) * (-0.5 * std**-3)
    grad_mean = (-grad_normal / std).sum(over, keepdim=True)
    grad_mean = grad_mean + grad_variance * (-2 * centred).mean(over, keepdim=True)
    grad_x = grad_normal / std + grad_variance * 2 * centred / m + grad_mean / m
    grad_weight = (grad_output * centred / std).sum(over)
    grad_bias = grad_output.sum(over)
    return grad_x, grad_weight, grad_bias


# --- one sample at a time ------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 over the last axes of each sample (Ba et al. 2016 eq. 3).

    ``[*, *normalized_shape]`` to the same; weight and bias have the shape ``normalized_shape``.

    Raises:
        FixError: the input's last axes are not ``normalized_shape``.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(normalized_shape, int):
            normalized_shape = (normalized_shape,)
        self.normalized_shape = tuple(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        with_bias = elementwise_affine and bias
        _add_affine(self, self.normalized_shape, elementwise_affine, with_bias, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = self.normalized_shape
        if tuple(x.shape[-len(shape) :]) != shape:
            legal = ", ".join(str(n) for n in shape)
            raise FixError(
                f"LayerNorm({legal}) got {describe(x)}. It takes [*, {legal}]: its last axes are "
                "normalised together."
            )
        wide = _at_least_float32(x)
        y = normalize(wide, *moments(wide, over=range(-len(shape), 0)), self.eps)
        return scale_and_shift(y, self.weight, self.bias, shape).to(x.dtype)

    def as_torch_call(self, x: torch.Tensor) -> TorchCall:
        return F.layer_norm, (x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class GroupNorm(nn.Module):
    """Mean 0 and variance 1 over each group of channels of each sample (Wu & He 2018).

    ``[N, num_channels, …]`` to the same. One group is a layer norm over the whole sample, as many
    groups as channels an instance norm; weight and bias are one number a channel.

    Raises:
        FixError: channels that do not divide into the groups, or an input without them.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels % num_groups:
            raise FixError(
                f"GroupNorm got num_groups={num_groups} for {num_channels} channels: the groups "
                "are of equal size, so their number divides that of the channels."
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        _add_affine(self, num_channels, affine, affine, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise FixError(
                f"GroupNorm({self.num_groups}, {self.num_channels}) got {describe(x)}. It takes "
                f"[N, {self.num_channels}, …]."
            )
        size = (self.num_channels // self.num_groups, *x.shape[2:])
        groups = _at_least_float32(x).reshape(x.shape[0], self.num_groups, math.prod(size))
        y = normalize(groups, *moments(groups, over=[2]), self.eps).reshape(x.shape)
        return scale_and_shift(y, self.weight, self.bias, _along_units(x)).to(x.dtype)

    def as_torch_call(self, x: torch.Tensor) -> TorchCall:
        return F.group_norm, (x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
