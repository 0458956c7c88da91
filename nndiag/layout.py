"""How a tensor is laid out: its units, samples, blocks, and a fixed choice of its values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = [
    "BLOCK",
    "MOST_UNITS",
    "PROBES",
    "Axes",
    "Pending",
    "Plan",
    "as_double",
    "blocks_of",
    "grid_of",
    "is_on_cpu",
    "plan_of",
    "readable",
    "sample_positions",
    "sampled_values",
]

PROBES = 512
# Beyond this many units (a vocabulary's logits) per-unit numbers would dwarf the rest of a report.
MOST_UNITS = 16_384
# A CPU takes a larger tensor in blocks of about so many values (half a megabyte).
BLOCK = 131_072


class Axes(NamedTuple):
    """Which axis of a tensor runs over units and which over independent samples.

    ``batch``: the axis that runs over samples, or None; on that axis the sample index is the
    slowest part, so a (N·T, C) view of (N, T, C) has ``batch=0`` and ``samples=N``.
    """

    unit: int | None = None
    batch: int | None = None
    samples: int = 1


@dataclass(frozen=True)
class Pending:
    """Numbers that are still on their device, and a function that reads them on the host."""

    vector: torch.Tensor  # 1-D float64
    read: Callable[[np.ndarray], Any]


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def readable(x: torch.Tensor) -> torch.Tensor:
    """The same values as a dense, real floating-point tensor outside autograd.

    Apple's GPUs know no double precision: what lies there is brought to the CPU at once.
    """
    if x.device.type == "mps":
        x = x.detach().cpu()
    if x.__class__ in _PLAIN and x.dtype == torch.float32 and x.layout == torch.strided:
        return x.detach() if x.requires_grad else x
    x = x.detach()
    if hasattr(x, "full_tensor"):  # a DTensor: sharded over processes
        x = x.full_tensor()
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.is_quantized:
        x = x.dequantize()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if x.dtype in (torch.float64, torch.float32):
        return x
    return x.to(torch.float32 if x.is_floating_point() else torch.float64)


def as_double(x: torch.Tensor) -> torch.Tensor:
    """In double precision where the device has it (Apple's GPUs do not)."""
    return x.float().cpu().double() if x.device.type == "mps" else x.double()


def is_on_cpu(x: torch.Tensor) -> bool:
    """Whether reading a value costs nothing; on any other device the host would wait."""
    return x.device.type == "cpu"


class Plan(NamedTuple):
    """How to split a tensor into units, samples and blocks, from its shape and axes alone."""

    unit: int | None  # the unit axis; None: none, or more than MOST_UNITS units
    grid: tuple[int, int, int]  # before the unit axis, along it, after it
    n: int  # values per unit
    blocks: tuple[int, int] | None  # on a CPU: the axis to cut and the length; None: not cut
    batch: int | None  # the sample axis; None: samples cannot be told apart
    samples: int
    sample: tuple[int, ...] | None  # the shape of one sample
    width: int  # values per sample; all values where samples cannot be told apart
    binned: int  # values per sample that the histogram counts
    units_are_values: bool  # whether a sample has exactly one value per unit


@functools.lru_cache(maxsize=4096)
def plan_of(shape: tuple[int, ...], axes: Axes) -> Plan:
    unit, batch = axes.unit, axes.batch
    if unit is not None and shape[unit] > MOST_UNITS:
        unit = None
    total = math.prod(shape)
    grid = (1, 1, total)
    if unit is not None:
        grid = math.prod(shape[:unit]), shape[unit], math.prod(shape[unit + 1 :])
    blocks: tuple[int, int] | None = None
    if total > BLOCK:
        others = [axis for axis in range(len(shape)) if axis != unit]
        # Along the first axis, since that is the slowest in memory, if it is long enough.
        axis = next((a for a in others if shape[a] >= total // BLOCK), None)
        if axis is None:
            axis = max(others, key=lambda a: shape[a], default=0)
        blocks = axis + 1, max(1, shape[axis] * BLOCK // total)
    sample: tuple[int, ...] | None = None
    if batch is not None and total and shape[batch] % axes.samples == 0:
        steps = shape[batch] // axes.samples
        sample = (*shape[:batch], *shape[batch + 1 :])
        sample = sample if steps == 1 else (steps, *sample)
    width = total if sample is None else math.prod(sample)
    return Plan(
        unit,
        grid,
        grid[0] * grid[2],
        blocks,
        None if sample is None else batch,
        axes.samples,
        sample,
        width,
        _binned(width),
        sample is not None and len(sample) == 1 and unit not in (None, batch),
    )


def blocks_of(v: torch.Tensor, plan: Plan) -> list[torch.Tensor]:
    """Tensors (k, *shape) as grids (k, before, units, after); a large one on a CPU in several."""
    if plan.blocks is None or len(v) > 1:
        return [grid_of(v, plan)]
    axis, length = plan.blocks
    before, units, after = plan.grid
    parts = torch.split(v, length, axis)
    if plan.unit is None:
        return [part.reshape(1, 1, 1, -1) for part in parts]
    if axis <= plan.unit:
        return [part.reshape(1, -1, units, after) for part in parts]
    return [part.reshape(1, before, units, -1) for part in parts]


def grid_of(v: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Tensors (k, *shape) as (k, before, units, after); (k, 1, 1, all) without a unit axis."""
    return v.reshape(len(v), *plan.grid)


def sampled_values(v: torch.Tensor, plan: Plan, most: int) -> torch.Tensor:
    """Up to ``most`` values of each sample of k tensors (k, *shape): (k, samples, values).

    The same positions for the same shape. Where samples cannot be told apart, all values count as
    one sample.
    """
    k, samples = len(v), 1 if plan.sample is None else plan.samples
    if plan.batch:
        v = torch.movedim(v, plan.batch + 1, 1)
    if plan.width <= most:
        return v.reshape(k, samples, plan.width)
    if plan.sample is None or v.is_contiguous():  # several times as fast as an index for each axis
        flat = v.reshape(k, samples, plan.width)
        return flat.index_select(2, sample_positions((plan.width,), most, v.device)[0])
    everything: Any = slice(None)
    by_sample = v.reshape(k, samples, *plan.sample)
    return by_sample[(everything, everything, *sample_positions(plan.sample, most, v.device))]


@functools.lru_cache(maxsize=256)
def sample_positions(
    shape: tuple[int, ...], most: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Up to ``most`` different positions spread over a tensor of this shape: one index per axis.

    They are multiples of a step near 0.618 of the size and coprime to it. An even stride would hit
    the same few channels, or the same head, again and again.
    """
    width = math.prod(shape)
    step = round(0.618 * width)
    while most < width and math.gcd(step, width) != 1:
        step += 1
    flat = np.sort(np.arange(most) * step % width) if most < width else np.arange(width)
    places = np.unravel_index(flat, shape)
    return tuple(torch.from_numpy(i).to(device, non_blocking=True) for i in places)


def _binned(width: int) -> int:
    """How many of a sample's values go into the histogram: a 32nd of them, 16 to 256."""
    return min(256, max(16, width // 32))
