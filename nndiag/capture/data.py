"""A look at the raw data of a batch, before the network: numbers about each column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from nndiag.columns import Columns, Kind
from nndiag.entrance import first_layers
from nndiag.stats import Layer, Node

__all__ = [
    "FAR",
    "LEAST_ROWS",
    "MOST_COLUMNS",
    "MOST_FOR_CONDITION",
    "MOST_ROWS",
    "MOST_VALUES",
    "columns",
    "columns_of",
]

MOST_VALUES = 1 << 16
"""So many values of a tensor are looked at: 512 rows of 128 columns."""
MOST_COLUMNS, MOST_ROWS, LEAST_ROWS = 128, 4096, 512
MOST_FOR_CONDITION = 64
"""Columns. With more, such as pixels, the matrix is nearly singular and says little."""
FAR = 10
"""Outliers are more than so many robust standard deviations from the median."""


def columns(
    tensors: Mapping[str, torch.Tensor],
    nodes: Sequence[Node],
    layers: Sequence[Layer],
    samples: int,
) -> dict[str, Columns]:
    """Numbers about the named inputs of a network."""
    starts = [i for i, node in enumerate(nodes) if node.op == "input"]
    known: dict[str, Columns] = {}
    for (name, tensor), start in zip(tensors.items(), starts, strict=False):
        readers = first_layers(nodes, layers, start)
        found = columns_of(tensor, _column_axis(tensor, readers), samples, bool(readers))
        if found is not None:
            known[name] = found
    return known


def _column_axis(tensor: torch.Tensor, readers: Sequence[Layer]) -> int:
    """The axis of the columns: 1 where a convolution reads them or it looks like an image."""
    if tensor.dim() < 3:
        return tensor.dim() - 1
    if readers:
        return 1 if readers[0].op.startswith("conv") else tensor.dim() - 1
    return 1 if tensor.dim() > 3 else tensor.dim() - 1


@torch.no_grad()
def columns_of(tensor: torch.Tensor, axis: int, samples: int, multiplied: bool) -> Columns | None:
    """Numbers about a tensor's columns along an axis; None where its values are not numbers.

    ``multiplied``: whether a layer multiplies it with weights, so that whole numbers are no ids.
    """
    if not tensor.numel() or not tensor.dim() or tensor.is_complex():
        return None
    if tensor.is_nested or tensor.is_meta or tensor.layout != torch.strided:
        return None
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    whole = not tensor.is_floating_point()
    if tensor.dim() == 1:
        tensor, axis = tensor[:, None], 1
    x = tensor.detach().movedim(axis, -1)
    count = x.shape[-1]
    at = np.unique(np.linspace(0, count - 1, min(count, MOST_COLUMNS)).astype(int))
    if whole and not multiplied and tensor.dtype != torch.bool:
        return Columns(shape, dtype, "ids", samples, x.numel() // count, count)
    if len(at) < count:
        x = x[..., torch.as_tensor(at, device=x.device)]
    values = _some(x).to("cpu").double().reshape(-1, len(at)).numpy()
    facts = _facts(values)
    # Columns of an image's corners may be constant: they say nothing about how it is stored.
    kind = _kind(values, facts, shape, axis)
    known = {name: tuple(map(float, numbers)) for name, numbers in facts.items()}
    condition = _condition(values) if count <= MOST_FOR_CONDITION else math.nan
    return Columns(
        shape, dtype, kind, samples, len(values), count, tuple(map(int, at)), **known,
        condition=condition,
    )  # fmt: skip


def _some(x: torch.Tensor) -> torch.Tensor:
    """A regular choice of samples and positions, with few enough values."""
    rows = max(LEAST_ROWS, min(MOST_ROWS, MOST_VALUES // x.shape[-1]))
    too_many = x.numel() / x.shape[-1] / rows
    for dim in range(x.dim() - 2, -1, -1):  # positions first, samples last
        if too_many <= 1:
            break
        others = dim if dim else 1
        step = min(math.ceil(too_many ** (1 / others)), x.shape[dim])
        x = x[(slice(None),) * dim + (slice(None, None, step),)]
        too_many /= step
    return x


def _facts(x: np.ndarray) -> dict[str, np.ndarray]:
    """One number for each column and quantity."""
    finite = np.isfinite(x)
    if not finite.all():
        return _facts_with_gaps(x, finite)
    ordered = np.sort(x, 0)
    low, high, median = ordered[0], ordered[-1], _middle(ordered)
    mean, std = x.mean(0), x.std(0)
    is_low, is_high = x == low, x == high
    distance = np.abs(x - median)
    scale = 1.4826 * _middle(np.sort(distance, 0))
    far = (distance > FAR * scale) & (scale > 0)
    with np.errstate(invalid="ignore"):
        inner_min = np.where(is_low, np.inf, x).min(0)
        inner_max = np.where(is_high, -np.inf, x).max(0)
    inner_std, gap = std, np.ones(len(low))
    if far.any():
        inner_std = np.where(far.any(0), np.std(x, 0, where=~far), std)
        near = np.where(far, 0, distance).max(0)
        gap = np.where(
            far.any(0) & (near > 0),
            np.where(far, distance, np.inf).min(0) / np.maximum(near, 1e-300),
            1,
        )
    return {
        "mean": mean, "std": std, "median": median, "scale": scale, "min": low, "max": high,
        "missing": np.zeros(len(low)), "zeros": (x == 0).mean(0), "lowest": is_low.mean(0),
        "highest": is_high.mean(0),
        "inner_min": np.where(np.isfinite(inner_min), inner_min, low),
        "inner_max": np.where(np.isfinite(inner_max), inner_max, high),
        "outliers": far.mean(0), "inner_std": inner_std, "gap": gap,
    }  # fmt: skip


def _middle(ordered: np.ndarray) -> np.ndarray:
    """The median of sorted columns: numpy's own takes five times as long as the sort."""
    half, odd = divmod(len(ordered), 2)
    middle: np.ndarray = ordered[half] if odd else (ordered[half - 1] + ordered[half]) / 2
    return middle


def _facts_with_gaps(x: np.ndarray, finite: np.ndarray) -> dict[str, np.ndarray]:
    """The same column by column, each over its finite values."""
    parts = []
    for k in range(x.shape[1]):
        known = x[finite[:, k], k]
        one = _facts(known[:, None]) if len(known) else dict.fromkeys(_NAMES, np.array([np.nan]))
        parts.append({**one, "missing": np.array([1 - finite[:, k].mean()])})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_NAMES = tuple(_facts(np.zeros((2, 1))))


def _condition(x: np.ndarray) -> float:
    """Of the mean of x xᵀ: how many times longer gradient descent takes along its last axis."""
    if len(x) < 2 * x.shape[1] or not np.isfinite(x).all():
        return math.nan
    x = x[:, x.any(0)]
    if not x.shape[1]:
        return math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        second = x.T @ x / len(x)
    if not np.isfinite(second).all():
        return math.nan
    values = np.linalg.eigvalsh(second)
    return float(values[-1] / values[0]) if values[0] > values[-1] * 1e-14 else math.inf


def _kind(x: np.ndarray, facts: dict[str, np.ndarray], shape: Sequence[int], axis: int) -> Kind:
    low, high = np.nanmin(facts["min"], initial=np.inf), np.nanmax(facts["max"], initial=-np.inf)
    if not low <= high:
        return "generic"
    if low >= 0 and high <= 1 and ((x == 0) | (x == 1)).all():
        one_hot = x.shape[1] > 1 and (x.sum(1) == 1).mean() > 0.99
        return "one-hot" if one_hot else "binary"
    if low >= 0 and 100 < high <= 255.5 and _is_picture(facts, shape, axis):
        return "bytes"
    if low >= 0 and (x == np.round(x)).all():
        return "counts"
    if low >= -1 and high <= 1:
        return "unit-range"
    centred = np.abs(facts["mean"]) < 0.3
    scaled = (facts["std"] > 0.5) & (facts["std"] < 2)
    return "standardised" if (centred & scaled).mean() > 0.8 else "generic"


def _is_picture(facts: dict[str, np.ndarray], shape: Sequence[int], axis: int) -> bool:
    """Whether it looks like pixels: channels of an image, or many columns of one range."""
    if len(shape) > 3 or (len(shape) == 3 and axis == 2 and min(shape[1:]) > 4):
        return True
    return facts["max"].size >= 49 and float(np.median(facts["max"])) > 60
