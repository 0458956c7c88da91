"""The loss of outputs that do not look at the input: the best constant one, zeros, random ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from nndiag.constant_output import baseline_of
from nndiag.experiment import Baseline, LossCall, Made

__all__ = ["MOST", "Outputs", "baseline", "outputs_of"]

MOST = 100_000
"""Larger outputs are not tried: a loss may keep several tensors of their size."""
_STEPS = 24
_BOTTOMLESS = 1e3
_SEED = 0


@dataclass(frozen=True)
class Outputs:
    """A model's only output, outside autograd, and what its last activation is."""

    values: torch.Tensor
    made: Made | None


def outputs_of(output: object, made: Made | None, samples: int) -> Outputs | None:
    """The output of a model, if others can be put in its place: one small real tensor."""
    if type(output) not in (torch.Tensor, torch.nn.Parameter):
        return None
    assert isinstance(output, torch.Tensor)
    if not output.is_floating_point() or output.layout != torch.strided or not output.dim():
        return None
    if not 0 < output.numel() <= MOST or output.is_nested or output.shape[0] != samples:
        return None
    return Outputs(output.detach().clone(), made)


def baseline(
    calls: Sequence[LossCall],
    loss: float,
    outputs: Outputs | None,
    target: object,
    loss_at: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Baseline | None:
    """What a loss is without looking at the input.

    A formula where the loss is one of torch's, else a few evaluations of ``loss_at``.
    """
    if not math.isfinite(loss):
        return None
    called = [call for call in calls if not math.isnan(call.value)]
    found = None
    if len(called) == 1 and math.isclose(called[0].value, loss, rel_tol=1e-5, abs_tol=1e-12):
        found = baseline_of(called[0], loss)
    if found is not None or outputs is None or loss_at is None:
        return found
    try:
        return _tried(loss, outputs, target, loss_at)
    except Exception:  # the loss needs more than an output of this shape
        return None


def _tried(
    loss: float,
    outputs: Outputs,
    target: object,
    loss_at: Callable[[torch.Tensor], torch.Tensor],
) -> Baseline | None:
    own = outputs.values.clone().requires_grad_()
    again = loss_at(own)
    if not math.isclose(float(again.detach()), loss, rel_tol=1e-4, abs_tol=1e-9):
        return None  # it draws random numbers, counts its calls, or reads more than the output
    [slope] = torch.autograd.grad(again, own)
    squashed = _squashing(outputs.made)
    size = outputs.values.shape

    def value(z: torch.Tensor) -> torch.Tensor:
        return loss_at(squashed(z).expand(size))

    zero = torch.zeros((1, *size[1:]), dtype=own.dtype, device=own.device)
    generator = torch.Generator().manual_seed(_SEED)
    draws = torch.randn(size, generator=generator).to(own.device, own.dtype)
    with torch.no_grad():
        at_zero = float(value(zero))
        large = float(value(draws * Baseline.LARGE))
        huge = float(value(draws * Baseline.HUGE))
    starts = [zero]
    if squashed is _as_it_is:
        mean = outputs.values.mean(0, keepdim=True)
        starts = [mean] if not math.isfinite(at_zero) else starts
    constant = min(_least(value, start) for start in starts)
    if constant == math.inf:
        return None
    if constant < -_BOTTOMLESS * (1 + abs(loss) + abs(at_zero)):
        constant = -math.inf
    found = Baseline(loss, constant, at_zero, large, huge, tried=True)
    return replace(found, uphill=_uphill(outputs, target, slope))


def _as_it_is(z: torch.Tensor) -> torch.Tensor:
    return z


def _squashing(made: Made | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """What turns any values into values of the output's kind."""
    if made is None or made.after:
        return _as_it_is
    if made.op in ("softmax", "log_softmax"):
        function = getattr(F, made.op)
        return lambda z: function(z, dim=1 if z.dim() > 1 else 0)
    known = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu,
             "logsigmoid": F.logsigmoid, "softplus": F.softplus}  # fmt: skip
    return known.get(made.op, _as_it_is)


def _least(value: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> float:
    """The least loss over constant outputs, by gradient steps of Barzilai & Borwein's length."""
    z, best, before, step = start, math.inf, None, 0.0
    for _ in range(_STEPS):
        z = z.detach().requires_grad_()
        now = value(z)
        number = float(now.detach())
        if not math.isfinite(number):
            break
        best = min(best, number)
        [slope] = torch.autograd.grad(now, z)
        size = float(slope.norm())
        if not 0 < size < math.inf:
            break
        if before is None:
            step = 1.0 / size
        else:
            moved, bent = z.detach() - before[0], slope - before[1]
            curved = float((moved * bent).sum())
            step = float(moved.square().sum()) / curved if curved > 0 else 2 * step
        before = z.detach(), slope
        z = z.detach() - step * slope
    return best


def _uphill(outputs: Outputs, target: object, slope: torch.Tensor) -> float:
    """The cosine between the loss's gradient and that of a cross-entropy with the same target."""
    values, made = outputs.values, outputs.made
    if not isinstance(target, torch.Tensor) or target.is_complex() or not target.numel():
        return math.nan
    y = target.detach()
    p = values.clone().requires_grad_()
    kind = "" if made is None or made.after else made.op
    if values.dim() == 2 and values.shape[1] > 1 and y.shape == values.shape[:1]:
        if y.is_floating_point() or not 0 <= int(y.min()) <= int(y.max()) < values.shape[1]:
            return math.nan
        if kind not in ("", "softmax", "log_softmax"):
            return math.nan
        logs = p.log() if kind == "softmax" else p if kind else F.log_softmax(p, 1)
        own = F.nll_loss(logs, y.long())
    elif y.shape == values.shape and bool(((y == 0) | (y == 1)).all()):
        if kind not in ("", "sigmoid"):
            return math.nan
        binary = F.binary_cross_entropy if kind else F.binary_cross_entropy_with_logits
        own = binary(p, y.to(values.dtype))
    else:
        return math.nan
    [other] = torch.autograd.grad(own, p)
    return float(F.cosine_similarity(slope.flatten(), other.flatten(), dim=0))
