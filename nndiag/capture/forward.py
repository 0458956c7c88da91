"""One forward of a model under a recorder, and the error if it raises."""

from __future__ import annotations

from typing import Any

from torch import nn

from nndiag.batch import Batch, argument_names, describe, detached, length
from nndiag.capture.locate import raised_at
from nndiag.capture.modules import has_layers, is_script
from nndiag.capture.recorder import ROOT, Recorder
from nndiag.errors import BatchError, CaptureError

__all__ = ["forward"]


def forward(
    model: nn.Module, batch: Batch, recorder: Recorder
) -> tuple[Any, dict[str, int | None]]:
    args, kwargs = detached((batch.args, dict(batch.kwargs)))
    given = Batch(args, kwargs)
    samples = length(given, recorder.paths.axis)
    inputs = {
        name: recorder.add_input(name, tensor, samples)
        for name, tensor in argument_names(given, model).items()
    }
    for module in recorder.names:
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            # Its replicas would run in other threads, which are not recorded.
            module.device_ids = module.device_ids[:1]
    try:
        with recorder.watching():
            output = model(*given.args, **given.kwargs)
    except Exception as error:
        raise _model_raised(error, model, batch, recorder) from error
    return output, inputs


def _model_raised(
    error: Exception, model: nn.Module, batch: Batch, recorder: Recorder
) -> CaptureError | BatchError:
    mismatch = _device_mismatch(model, batch)
    if mismatch is not None:
        return BatchError(mismatch)
    leaves = {m for m in recorder.names if is_script(m) or not has_layers(m)}
    where = type(model).__name__
    if recorder.failed is not None and recorder.failed[0] is error:
        scope = recorder.failed[1]
        where = f"{scope.name or ROOT} ({type(scope.module).__name__})"
    return CaptureError(
        f"the model raised in {where}, after {len(leaves & recorder.finished)} of {len(leaves)} "
        f"layers.\n"
        f"  {type(error).__name__}: {error}\n"
        + (f"  at {place}\n" if (place := raised_at(error)) else "")
        + f"  batch: {describe(batch)}\n"
        "  Hooks are removed and the model is as you passed it."
    )


def _device_mismatch(model: nn.Module, batch: Batch) -> str | None:
    """The message if the model and a tensor of the batch are on different devices; else None."""
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(devices) != 1:
        return None
    device = devices.pop()
    for name, tensor in argument_names(batch, model).items():
        if tensor.dim() > 0 and tensor.device != device:
            return (
                f"the model is on {device} but {name} is on {tensor.device}. Move one of them: "
                f"batch.to({str(device)!r}) or model.to({str(tensor.device)!r})."
            )
    return None
