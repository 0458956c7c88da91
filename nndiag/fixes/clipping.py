"""Gradient clipping: one batch with very large gradients must not ruin the weights.

Call between ``loss.backward()`` and ``optimizer.step()``. Clipping by norm shortens the step and
keeps its direction; clipping by value changes both.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from nndiag.batch import describe
from nndiag.errors import FixError

__all__ = ["clip_grad_norm_", "clip_grad_value_"]


@torch.no_grad()
def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
) -> torch.Tensor:
    """Scale all gradients together, in place, so that their norm is at most ``max_norm``.

    Pascanu et al. 2013 algorithm 1: where the norm of all gradients, taken as one long vector, is
    over the threshold, ``grad *= max_norm / norm``. torch divides by ``norm + 1e-6``, and so
    shrinks gradients just below the threshold, too.

    Args:
        parameters: one or several; those whose ``grad`` is None are left out.
        max_norm: the threshold, more than 0. Pascanu et al. trained well with half to ten times the
            average norm of a run; ``math.inf`` only measures.
        norm_type: p of the p-norm, more than 0; ``math.inf`` for the largest absolute value.

    Returns:
        The norm before clipping, a scalar: in float32 for float16 and bfloat16, 0 for no gradients.

    Raises:
        FixError: ``max_norm`` or ``norm_type`` is out of range; or the norm is not finite, which
            for large gradients in float32 includes the sum of their squares. Nothing is changed
            then. torch would multiply by ``max_norm / norm`` all the same: one NaN becomes NaN
            everywhere, one infinity makes all other gradients 0.
    """
    _check_positive("clip_grad_norm_", "max_norm", max_norm)
    _check_positive("clip_grad_norm_", "norm_type", norm_type)
    grads = _gradients(parameters)
    if not grads:
        return torch.tensor(0.0)
    norms = [_norm(grad, norm_type) for grad in grads]
    total = _norm(torch.stack([norm.to(norms[0].device) for norm in norms]), norm_type)
    if not total.isfinite():
        raise FixError(_not_finite_text(total, grads, norms))
    # Not torch's way, a factor of at most 1 for all: that never waits for the device, but it cannot
    # raise for a NaN.
    if total > max_norm:
        for grad in grads:
            grad.mul_((max_norm / total).to(grad.device))
    return total


@torch.no_grad()
def clip_grad_value_(parameters: torch.Tensor | Iterable[torch.Tensor], clip_value: float) -> None:
    """Cut every entry of the gradients, in place, to ``[-clip_value, clip_value]``.

    Large entries shrink and small ones stay, so the step points elsewhere: towards a diagonal. An
    infinity becomes ``clip_value`` with its sign; NaN has none and stays NaN.

    Raises:
        FixError: ``clip_value`` is not more than 0. Nothing is changed then.
    """
    _check_positive("clip_grad_value_", "clip_value", clip_value)
    for grad in _gradients(parameters):
        grad.clamp_(-clip_value, clip_value)


def _gradients(parameters: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients that are not None; a parameter given twice counts once."""
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    return [p.grad for p in dict.fromkeys(parameters) if p.grad is not None]


def _norm(x: torch.Tensor, norm_type: float) -> torch.Tensor:
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    norm: torch.Tensor = torch.linalg.vector_norm(x, norm_type, dtype=wide)
    return norm


def _check_positive(where: str, name: str, value: float) -> None:
    if not value > 0:
        raise FixError(f"{where} got {name}={value}: give a number above 0.")


def _not_finite_text(
    total: torch.Tensor, grads: list[torch.Tensor], norms: list[torch.Tensor]
) -> str:
    bad = [
        f"number {index} ({describe(grad)}): {float(norm)}"
        for index, (grad, norm) in enumerate(zip(grads, norms, strict=True))
        if not norm.isfinite()
    ]
    which = (
        f" {len(bad)} of {len(grads)} gradients have a norm that is not finite, first {bad[0]}."
        if bad
        else ""
    )
    return (
        f"clip_grad_norm_: the norm of the gradients is {float(total)}.{which} Nothing was "
        "changed: scaling would make the other gradients wrong, too. Skip this step "
        "(optimizer.zero_grad()), and find the first layer with such values by nndiag.check. With "
        "a GradScaler, call scaler.unscale_(optimizer) first."
    )
