"""Short forwards beside the recorded one: does a sample see its neighbours, does evaluation differ.

They run without a recorder and without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.dropout import _DropoutNd as Dropout

from nndiag.batch import Batch, detached, length, tensors_in
from nndiag.experiment import Mixing, TrainEvalGap

__all__ = ["PROBED", "gap", "mixing"]

PROBED = 5
"""Samples of the batch that a probe runs: enough to see one changed among others."""


def mixing(model: nn.Module, batch: Batch, axis: int, reset: Callable[[], None]) -> Mixing:
    """Replace one sample by another one and see whether other outputs change.

    In evaluation mode, so that BatchNorm does not look at the batch. The replaced sample is a copy
    of the next one, so that the inputs stay valid whatever they mean. ``axis``: that of the
    samples, as the model's layers take it. Where the output has its samples elsewhere, that counts:
    such layers mix them.
    """
    try:
        if axis:
            shapes = [x.shape for x in _outputs(model, batch, reset)]
            along, across = length(batch, axis), length(batch)
            if any(len(s) > axis and s[axis] == along for s in shapes):
                return Mixing()  # time first, in and out
            axis = 0 if along != across and any(s and s[0] == across for s in shapes) else axis
        samples = length(batch, axis)
        if samples < 3:
            return Mixing(error=f"needs 3 samples, and the batch has {samples}")
        for count in (min(PROBED, samples), 3):
            part = _part(batch, samples, axis, count)
            moved = _with_a_copy(part, count, axis)
            if moved is None:
                return Mixing(error="the first samples are all the same")
            before, after = (_outputs(model, b, reset) for b in (part, moved))
            apart = _one_a_sample(before, count)
            if apart is not None:
                return _compare(before, after, apart, count)
    except Exception as error:  # the model needs the batch as it is
        return Mixing(error=f"the model raised on {PROBED} samples: {type(error).__name__}")
    return Mixing(error="the output has no axis of samples")


def _part(batch: Batch, samples: int, axis: int, count: int) -> Batch:
    """The first samples of a batch."""

    def cut(x: torch.Tensor) -> torch.Tensor:
        there = x.dim() > axis and x.shape[axis] == samples
        return x.narrow(axis, 0, count) if there else x

    args, kwargs = _mapped((batch.args, dict(batch.kwargs)), cut)
    return Batch(args, kwargs)


def _with_a_copy(batch: Batch, count: int, axis: int) -> Batch | None:
    """The batch with sample 1 a copy of sample 2; None if that changes nothing."""
    differs = False

    def moved(x: torch.Tensor) -> torch.Tensor:
        nonlocal differs
        if x.dim() <= axis or x.shape[axis] != count:
            return x
        copied = x.detach().clone()
        copied.select(axis, 1).copy_(x.select(axis, 2))
        differs |= not torch.equal(copied, x)
        return copied

    args, kwargs = _mapped((batch.args, dict(batch.kwargs)), moved)
    return Batch(args, kwargs) if differs else None


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A nest of tuples, lists and dicts with each of its tensors changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def _outputs(model: nn.Module, batch: Batch, reset: Callable[[], None]) -> list[torch.Tensor]:
    reset()
    model.eval()
    args, kwargs = detached((batch.args, dict(batch.kwargs)))
    with torch.no_grad():
        output = model(*args, **kwargs)
    return [x.detach().clone() for x in tensors_in(output) if x.is_floating_point()]


def _one_a_sample(outputs: list[torch.Tensor], count: int) -> list[int] | None:
    """The outputs whose first axis, and no other, has a place for each sample."""
    by_sample = [k for k, x in enumerate(outputs) if x.dim() > 0 and x.shape[0] == count]
    plain = [k for k in by_sample if list(outputs[k].shape).count(count) == 1]
    return plain or None


def _compare(
    before: list[torch.Tensor], after: list[torch.Tensor], places: list[int], count: int
) -> Mixing:
    changed, most = 0, 0.0
    others = [k for k in range(count) if k != 1]
    for place in places:
        x, y = before[place].double(), after[place].double()
        scale = float(x.square().mean().sqrt()) or 1.0
        moves = (x - y)[others].abs().reshape(len(others), -1).amax(1) / scale
        if not bool(torch.isfinite(moves).all()):
            return Mixing(error="the outputs are not finite")
        # Rounding differs by what else a kernel computes: far less than this.
        changed = max(changed, int((moves > _ROUNDING).sum()))
        most = max(most, float(moves.max()))
    return Mixing(len(others), changed, most)


_ROUNDING = 1e-3


def gap(
    model: nn.Module, train_loss: float, loss: Callable[[], float], reset: Callable[[], None]
) -> TrainEvalGap | None:
    """The loss in evaluation mode; None where the modes cannot differ for this model.

    ``loss`` runs the model on the batch as it is. BatchNorm's running averages must have seen
    batches: those of a new layer say nothing yet.
    """
    if not math.isfinite(train_loss) or not any(isinstance(m, BatchNorm) for m in model.modules()):
        return None
    reset()  # the counts as they were before the check's own forward
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.training]
    counts = [c for m in norms if (c := m.num_batches_tracked) is not None]
    if not counts:
        return None
    # At once: each number read is a wait for the device.
    tracked = float(torch.stack([c for c in counts if c.device == counts[0].device]).amin())
    if tracked < 1:
        return None
    values = []
    with torch.no_grad():
        for kinds in ((nn.Module,), (Dropout,)):
            reset()
            for module in model.modules():
                if isinstance(module, kinds):
                    module.training = False
            values.append(loss())
    evaluation, norms_only = values
    return TrainEvalGap(train_loss, evaluation, norms_only, tracked)
