"""How often a unit with random weights is never active on the very inputs that a layer has."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from nndiag.layout import Pending, as_double, is_on_cpu

__all__ = ["MOST_VALUES", "never_active"]

MOST_VALUES = 1 << 18
"""Larger inputs are not looked at: many inputs in many dimensions need no draw."""
_FEWEST, _MOST = 128, 2048
_PRODUCTS = 1 << 25  # multiplications for one layer, most of which the first rows save
_FIRST_ROWS = 32


@torch.no_grad()
def never_active(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, z: torch.Tensor
) -> Pending | None:
    """Of random units that read ``x``, how many there are and how many are never above zero.

    None where every unit of ``z``, the layer's own output, was active: then nobody asks. None also
    where the parameters are no longer in memory, as sharded ones are not once their layer has run.

    The draws are uniform, as torch draws linear layers. Their scale is that of ``weight``; the
    biases are those of ``bias``, but no larger than torch's own, since biases can be what is wrong.
    """
    if is_on_cpu(z) and bool((z.reshape(-1, z.shape[-1]).amax(0) > 0).all()):
        return None
    if not (_is_in_memory(weight) and (bias is None or _is_in_memory(bias))):
        return None
    rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
    features = rows.shape[1]
    units = min(max(_PRODUCTS // max(rows.numel(), 1), _FEWEST), _MOST)
    make = _kept if (features + 1) * units <= _SMALL else _drawn
    draw = make(features + 1, units).to(rows.device, non_blocking=True)
    shift = 0.0 if bias is None else _rms(bias).clamp(max=1 / math.sqrt(3 * features))
    random, shifts = draw[:-1] * _rms(weight), draw[-1] * shift
    if is_on_cpu(rows):  # most units are active on the first rows, and are done with
        off = (rows[:_FIRST_ROWS] @ random + shifts).amax(0) <= 0
        random, shifts = random[:, off], shifts[off]
    closed = ((rows @ random + shifts).amax(0) <= 0).sum()

    def read(values: np.ndarray) -> dict[str, float]:
        return {"random_units_count": float(units), "random_closed_count": float(values[0])}

    return Pending(as_double(closed).reshape(1), read)


def _drawn(features: int, units: int) -> torch.Tensor:
    """Uniform weights with variance 1, the same each time."""
    # A generator of its own, so that the model's random numbers stay what they are.
    generator = torch.Generator("cpu").manual_seed(0)
    draw = torch.rand(features, units, generator=generator, dtype=torch.float32, device="cpu")
    return draw.sub_(0.5).mul_(2 * math.sqrt(3))


_kept = functools.lru_cache(maxsize=4)(_drawn)  # layers of one width follow one another
_SMALL = 1 << 18


def _is_in_memory(x: torch.Tensor) -> bool:
    return x.untyped_storage().nbytes() >= x.numel() * x.element_size()


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32).square().mean().sqrt()
