"""The virtual update: one small gradient step, and how far the layers' inputs move by it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from nndiag.batch import Batch
from nndiag.capture.forward import forward
from nndiag.capture.recorder import Recorder
from nndiag.errors import CaptureError
from nndiag.stats import Layer, Parameter, Shift, TensorStats

__all__ = ["STEP", "shifts", "step"]

# The step moves every parameter by this share of its own norm.
STEP = 0.01


@torch.no_grad()
def step(
    named: Mapping[str, nn.Parameter],
    gradients: Mapping[str, torch.Tensor | None],
    measured: Mapping[str, Parameter],
) -> None:
    """Move every parameter by ``STEP`` of its norm against its gradient."""
    for name, p in named.items():
        grad, move = gradients[name], _step_along(measured.get(name))
        if grad is None or grad.layout != torch.strided or move is None:
            continue
        largest, share = move
        grad = grad.to(p.dtype)
        if share / torch.finfo(p.dtype).max < largest / 2:
            p.data.add_(grad, alpha=-share / largest)
        else:  # a vanished gradient: in two steps, since the single factor would overflow
            p.data.add_(grad / largest, alpha=-share)


def shifts(
    model: nn.Module, batch: Batch, recorder: Recorder, layers: Mapping[str, Layer]
) -> tuple[dict[str, Shift], str]:
    """How far each layer's input has moved; or the reason why that is not known."""
    try:
        with torch.no_grad():
            forward(model, batch, recorder)
        after = recorder.inputs()
    except CaptureError as error:
        return {}, f"the model raised after the virtual update: {error.__cause__}"
    finally:
        recorder.close()
    moved = {name: _shift(layer.input, after.get(name)) for name, layer in layers.items()}
    return {name: shift for name, shift in moved.items() if shift is not None}, ""


def _step_along(parameter: Parameter | None) -> tuple[float, float] | None:
    """The step along a gradient as (divisor, factor); None if there is no finite step."""
    if parameter is None or parameter.grad is None or not 0 < parameter.grad.norm < math.inf:
        return None
    largest = max(abs(parameter.grad.min), abs(parameter.grad.max))
    share = STEP * parameter.value.norm * (largest / parameter.grad.norm)
    return (largest, share) if math.isfinite(share) else None


def _shift(before: TensorStats | None, after: TensorStats | None) -> Shift | None:
    if before is None or after is None:
        return None
    old, new = before.units, after.units
    if old is None or new is None or len(old) != len(new):
        return None
    varied = old.std > 1e-6 * max(before.rms, 1e-30)
    if not varied.any():
        return None
    # Ratios of sums: in a sum of ratios one nearly dead unit outweighs all others.
    before_variance, after_variance = old.variance[varied].mean(), new.variance[varied].mean()
    moved = ((new.mean - old.mean)[varied] ** 2).mean()
    if not (np.isfinite(moved) and np.isfinite(after_variance)):
        return None
    return Shift(
        mean=math.sqrt(moved / before_variance),
        scale=0.5 * math.log(max(after_variance / before_variance, 1e-30)),
        units=int(varied.sum()),
    )
