"""The scalar that is differentiated: the caller's loss, the model's own, or a random direction."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nndiag.batch import Batch, describe, tensors_in
from nndiag.errors import LossError

__all__ = ["LossMaker"]


@dataclass(frozen=True)
class LossMaker:
    """Computes the scalar that is differentiated, and says which kind it is."""

    loss_fn: Callable[..., Any] | None
    seed: int | None

    def __call__(self, output: Any, batch: Batch) -> tuple[str, torch.Tensor]:
        """The kind of the loss, and the loss: a scalar tensor that depends on the model.

        In this order: ``loss_fn(output, target)``; the output's own ``.loss`` or ``["loss"]``, or
        the sum of an output that is a dict of losses; a scalar output; else the outputs' inner
        product with fixed random directions, seeded. Never the sum of the outputs: after a softmax
        or a normalisation that is a constant.

        Of a tuple that ``loss_fn`` returns, the loss is the first item; of a dict, the one called
        "loss", "total_loss" or "total".

        Raises:
            LossError: no scalar, not a number, or not connected to the model.
        """
        if self.loss_fn is not None:
            returned = _loss_in(self._call_loss_fn(output, batch))
            return "loss_fn", self._scalar(returned, "loss_fn returned")
        own = _own_loss(output)
        if own is not None:
            return "output.loss", self._scalar(own, "the output's own loss is")
        if isinstance(output, torch.Tensor) and output.dim() == 0 and output.is_floating_point():
            return "scalar output", output
        return "random cotangent", self._random_direction(output)

    def _call_loss_fn(self, output: Any, batch: Batch) -> Any:
        assert self.loss_fn is not None
        args: tuple[Any, ...] = (output, batch.target)
        output_is_enough = _accepts(self.loss_fn, 1)
        if batch.target is None and not output_is_enough:
            raise LossError(
                "loss_fn was given but no target. Pass target=…, a batch (inputs, target), or a "
                "loss_fn that takes the output alone."
            )
        if batch.target is None or (output_is_enough and not _accepts(self.loss_fn, 2)):
            args = (output,)
        try:
            return self.loss_fn(*args)
        except Exception as error:
            raise LossError(
                f"loss_fn raised {type(error).__name__}: {error}\n"
                f"  output: {describe(output)}\n  target: {describe(batch.target)}\n"
                f"{_how_to_pick(self.loss_fn, output, batch.target)}"
                "  The model is as it was."
            ) from error

    def _scalar(self, loss: Any, what: str) -> torch.Tensor:
        if isinstance(loss, (int, float)):
            raise LossError(
                f"{what} the Python number {loss:.4g}, through which no gradient can come back. "
                "Return the tensor itself, without .item()."
            )
        if isinstance(loss, Mapping):
            raise LossError(
                f"{what} {describe(loss)}: which of them is the loss? Add them up, for example "
                "loss_fn=lambda output, target: sum(your_loss(output, target).values())."
            )
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or loss.is_complex():
            raise LossError(
                f"{what} {describe(loss)}, but a loss is one real number. "
                "Reduce it, for example with .mean()."
            )
        return loss.reshape(())

    def _random_direction(self, output: Any) -> torch.Tensor:
        tensors = [t for t in tensors_in(output) if t.requires_grad and not t.is_nested]
        if not tensors:
            raise LossError(
                f"the output {describe(output)} holds nothing that can be differentiated. Pass "
                "loss_fn, or a model whose output depends on trainable parameters."
            )
        generator = torch.Generator("cpu").manual_seed(0 if self.seed is None else self.seed)
        total = torch.zeros((), dtype=torch.float32, device=tensors[0].device)
        for t in tensors:
            values = torch.view_as_real(t) if t.is_complex() else t
            direction = torch.randn(
                values.shape, generator=generator, dtype=torch.float32, device="cpu"
            ).to(values.device)
            wide = values.to(torch.promote_types(values.dtype, torch.float32))
            inner = (wide * direction).sum() / math.sqrt(max(values.numel(), 1))
            total = total + inner.to(total.device)
        return total


_LOSS_KEYS = ("loss", "total_loss", "total")


def _loss_in(returned: Any) -> Any:
    """The loss in what a loss function returns: the first of a tuple, a dict's "loss"."""
    if isinstance(returned, (tuple, list)) and returned:
        return returned[0]
    if isinstance(returned, Mapping):
        return next((returned[key] for key in _LOSS_KEYS if key in returned), returned)
    return returned


def _how_to_pick(loss_fn: Any, output: Any, target: Any) -> str:
    """The line to write where the output or the target holds several things."""
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    picked = [_picked(value) for value in (output, target)]
    if not any(picked):
        return ""
    args = ", ".join(a + b for a, b in zip(("output", "target"), picked, strict=True))
    return f"  To pick one of them: loss_fn=lambda output, target: {name}({args})\n"


def _picked(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        keys = [key for key, item in value.items() if isinstance(item, torch.Tensor)]
        preferred = ("logits", "out", "output", "pred", "labels", "label", "target", "y")
        return f"[{next((k for k in preferred if k in keys), next(iter(keys), 0))!r}]"
    if isinstance(value, (tuple, list)) and value:
        return "[0]"
    return ""


def _own_loss(output: Any) -> Any:
    if isinstance(output, Mapping):
        loss = output.get("loss")
        if loss is None and output and all(map(_is_named_loss, output.items())):
            return sum(output.values())  # detection models return a dict of their losses
    else:
        loss = None if isinstance(output, torch.Tensor) else getattr(output, "loss", None)
    return loss if isinstance(loss, torch.Tensor) else None


def _is_named_loss(item: tuple[Any, Any]) -> bool:
    key, value = item
    named = isinstance(key, str) and "loss" in key
    return named and isinstance(value, torch.Tensor) and value.numel() == 1


def _accepts(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with ``count`` positional arguments.

    Where Python cannot say, it is taken to accept two: ``(output, target)``.
    """
    try:
        inspect.signature(getattr(function, "forward", function)).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return count == 2
    return True
