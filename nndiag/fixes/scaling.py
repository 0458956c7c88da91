"""Fixed scalings as layers: inputs to mean 0 and standard deviation 1, outputs to the targets'.

They do in the model what is better done to the data, with numbers that training does not change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nndiag.batch import batches, detached
from nndiag.capture.untouched import untouched
from nndiag.errors import FixError
from nndiag.fixes.matrix import CONVOLUTIONS, TRANSPOSED
from nndiag.fixes.surgery import insert_after, insert_before

__all__ = ["ScaleOutput", "Standardize", "scale_output_", "standardize_input_"]


class Standardize(nn.Module):
    """``(x - mean) / std``, with a mean and a std for each feature or channel that stay fixed.

    A column that is constant in the data is only centred. Integers, such as the bytes of images,
    become floating-point numbers.

    Args:
        mean, std: a value for each column.
        axis: the axis of the columns: 1 for channels, -1 for features.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, axis: int = -1) -> None:
        super().__init__()
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        if mean.shape != std.shape or mean.dim() != 1:
            raise FixError(
                f"Standardize: the mean has the shape {list(mean.shape)} and the std "
                f"{list(std.shape)}, but each needs one value for every column."
            )
        self.axis = axis
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    @classmethod
    def fit(cls, x: torch.Tensor, axis: int = -1) -> Standardize:
        """The mean and std of a tensor's columns, over samples and positions, of finite values."""
        values = x.detach().double().movedim(axis, -1).flatten(0, -2)
        known = values.isfinite()
        count = known.sum(0).clamp_min(1)
        mean = values.where(known, 0.0).sum(0) / count
        std = ((values - mean).square().where(known, 0.0).sum(0) / count).sqrt()
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return cls(mean.to(dtype), std.to(dtype), axis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return (x - self.mean.view(shape)) / self.std.view(shape)

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, axis={self.axis}"


class ScaleOutput(nn.Module):
    """``y * std + mean``: a network's output of scale 1, in the units of its targets."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y * self.std + self.mean


def standardize_input_(
    model: nn.Module, batch: Any, layers: Iterable[str]
) -> dict[str, Standardize]:
    """Put a :class:`Standardize` before each of these layers, fitted on what they read.

    The layers are the first ones with weights. The numbers come from the first batch and stay as
    they are in training; scaling the data themselves by those of the whole training set is better.

    Args:
        batch: what a DataLoader yields, as for :func:`nndiag.check`.

    Returns:
        What was put in, by name of the layer.

    Raises:
        FixError: a layer does not run, reads no tensor, or cannot have another before it.
        BatchError: the batch does not fit the model.
    """
    names = list(layers)
    seen: dict[str, torch.Tensor] = {}

    def reads(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            if given:
                seen.setdefault(name, given[0].detach())

        return hook

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(reads(name), with_kwargs=True)
        for name in names
    ]
    try:
        one = next(iter(batches(batch, model)))
        with untouched(None, model), torch.no_grad():
            model(*detached(one.args), **detached(dict(one.kwargs)))
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in seen or seen[name].dim() < 2]
    if missing:
        raise FixError(f"standardize_input_: {', '.join(missing)} read no tensor on this batch.")
    made: dict[str, Standardize] = {}
    for name in names:
        module = model.get_submodule(name)
        axis = 1 if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) else -1
        made[name] = Standardize.fit(seen[name], axis)
        insert_before(model, name, made[name])
    return made


def scale_output_(model: nn.Module, layer: str, mean: float, std: float) -> None:
    """Put ``y * std + mean`` behind the output layer: it starts at the scale of the targets."""
    insert_after(model, layer, ScaleOutput(mean, std))
