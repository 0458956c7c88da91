"""Parameters and their gradients as plain data, and which units are equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from nndiag.layout import Pending, as_double, readable
from nndiag.measure import Meter, is_small
from nndiag.stats import Layer, Parameter, Weight, merge_parts

__all__ = ["MOST_COMPARED", "measure_parameters"]

# In values. Rows are compared by sorting; of larger weights that would take most of a check.
MOST_COMPARED = 30_000_000

_ROW_FACTS = ("duplicate_units", "duplicate_kept", "zero_units", "one_sign_rows", "graded_rows")


def measure_parameters(
    named: Mapping[str, nn.Parameter],
    layers: list[Layer],
    known: Mapping[str, Parameter],
    not_observed: dict[str, None],
    samples: int,
    most: int,
) -> dict[str, Parameter]:
    """All parameters with this batch's gradients, merged with what is known of earlier batches.

    ``samples`` is how many this batch has, ``most`` what the largest of the earlier ones had.
    """
    use = {layer.weight.name: layer.weight for layer in layers if layer.weight is not None}
    meter = Meter()
    places: dict[tuple[str, str], int] = {}
    for name, p in named.items():
        weight = use.get(name)
        bias = None if weight is None or weight.bias is None else named.get(weight.bias)
        try:
            parts = _start_measuring(meter, p, weight, bias, value=name not in known)
        except Exception as error:  # a subclass of Tensor that knows no arithmetic
            failure = f"nndiag could not measure it ({type(error).__name__}: {error})"
            not_observed[f"{name}: {failure}"] = None
            continue
        places.update({(name, what): place for what, place in parts.items()})
    results = meter.collect()
    numbers = {key: results[place] for key, place in places.items()}
    parameters = dict(known)
    for name, p in named.items():
        value = known[name].value if name in known else numbers.get((name, "value"))
        if value is None:
            continue
        current = Parameter(
            name=name,
            shape=tuple(p.shape),
            dtype=str(p.dtype).removeprefix("torch."),
            trainable=p.requires_grad,
            value=value,
            grad=numbers.get((name, "gradient")),
            **numbers.get((name, "rows"), {}),
        )
        parameters[name] = (
            _merged(known[name], current, samples - most) if name in known else current
        )
    return parameters


def _start_measuring(
    meter: Meter,
    p: nn.Parameter,
    weight: Weight | None,
    bias: torch.Tensor | None,
    *,
    value: bool,
) -> dict[str, int]:
    parts = {}
    if value:
        parts["value"] = meter.stats(p, histogram=False)
    if p.grad is not None:
        parts["gradient"] = meter.stats(p.grad, histogram=False)
    if p.dim() >= 2 and 0 < p.numel() <= MOST_COMPARED and p.layout == torch.strided:
        axis = 0 if weight is None else weight.unit_axis
        parts["rows"] = _compare_rows(meter, p, p.grad, axis, bias)
    return parts


def _merged(known: Parameter, current: Parameter, larger: int) -> Parameter:
    """Merge a parameter with its earlier batches.

    ``larger``: by how many samples this batch is larger than any before. The signs of a gradient
    are counted over the largest batches only: with few samples all signs agree by chance, and a
    last batch of one sample would count like a full one.
    """
    counts = {}
    for name in ("one_sign_rows", "graded_rows"):
        before, now = getattr(known, name), getattr(current, name)
        counts[name] = now if larger > 0 else before if larger < 0 else before + now
    return dataclasses.replace(
        known,
        grad=merge_parts(known.grad, current.grad) or known.grad or current.grad,
        duplicate_kept=min(known.duplicate_kept, current.duplicate_kept),
        **counts,
    )


@torch.no_grad()
def _compare_rows(
    meter: Meter, p: torch.Tensor, grad: torch.Tensor | None, axis: int, bias: torch.Tensor | None
) -> int:
    """The index of the facts about a weight's units (rows): equal ones, signs of gradients."""
    parts = [_rows(p, axis)]
    if bias is not None and bias.numel() == len(parts[0]):
        parts.append(_rows(bias, 0).to(parts[0].dtype))
    has_grad = grad is not None
    if grad is not None:
        parts.append(_rows(grad, axis).to(parts[0].dtype))
    widths = [part.shape[1] for part in parts]

    def compare(*parts: torch.Tensor) -> Pending:
        rows, *rest = parts
        grads = rest.pop() if has_grad else None
        return _compared(rows, rest[0] if rest else None, grads)

    if not is_small(len(parts[0]) * sum(widths), parts[0].device):
        return meter.add_measured(compare(*(part[None] for part in parts)))
    kind = ("rows", has_grad, *widths)
    return meter.measure_small(
        torch.cat(parts, 1), kind, lambda v: compare(*torch.split(v, widths, 2))
    )


def _compared(rows: torch.Tensor, bias: torch.Tensor | None, grads: torch.Tensor | None) -> Pending:
    """Of k weights: rows (k, units, fan_in), biases (k, units, 1), gradients of the rows.

    Equal rows have equal projections on a fixed direction, so after sorting by it they are
    neighbours; those are then compared exactly.
    """
    k, _, width = rows.shape
    generator = torch.Generator("cpu").manual_seed(0)
    direction = torch.randn(width + 1, generator=generator, dtype=torch.float32, device="cpu")
    direction = direction.to(rows.device, rows.dtype, non_blocking=True)
    key = rows @ direction[:-1]
    if bias is not None:
        key = key + bias[:, :, 0] * direction[-1]
    order = key.argsort(dim=1, stable=True)
    if grads is not None:
        # Among equal rows, those with equal gradients become neighbours.
        first = (grads @ direction[:-1]).argsort(dim=1)
        order = first.gather(1, key.gather(1, first).argsort(dim=1, stable=True))
    sorted_key = key.gather(1, order)
    # A tolerance, since projections of equal rows may differ in their last bits.
    candidates = sorted_key.diff(dim=1) <= 1e-5 * key.abs().amax(1, keepdim=True)
    if rows.device.type != "cpu":  # reading which would make the host wait: compare all
        candidates = torch.ones_like(candidates)
        weight_index, position = (torch.arange(n, device=rows.device) for n in candidates.shape)
        weight_index, position = (
            weight_index.repeat_interleave(len(position)),
            position.repeat(len(weight_index)),
        )
    else:
        weight_index, position = candidates.nonzero(as_tuple=True)
    one, other = order[weight_index, position], order[weight_index, position + 1]
    equal = (rows[weight_index, one] == rows[weight_index, other]).all(1)
    if bias is not None:
        equal &= bias[weight_index, one, 0] == bias[weight_index, other, 0]
    zero = ((rows.amin(2) == 0) & (rows.amax(2) == 0)).sum(1)
    same_gradient = one_sign = with_gradient = torch.zeros_like(zero)
    if grads is not None:
        low, high = grads.amin(2), grads.amax(2)
        nonzero = ~((low == 0) & (high == 0))  # NaN is not zero
        one_sign = (nonzero & ((low >= 0) | (high <= 0))).sum(1)
        with_gradient = nonzero.sum(1)
        # Scaled by the largest value: squares of a vanished gradient would all be zero.
        largest = torch.maximum(-low.amin(1), high.amax(1)).clamp(min=torch.finfo(low.dtype).tiny)
        a, b = (grads[weight_index, unit] / largest[weight_index, None] for unit in (one, other))
        size = torch.maximum(*(torch.linalg.vector_norm(g, dim=1) for g in (a, b)))
        alike = torch.linalg.vector_norm(a - b, dim=1) <= 1e-4 * size
        same_gradient = _with_equal_neighbour(candidates, weight_index, position, equal & alike)
    counts = torch.stack(
        [
            _with_equal_neighbour(candidates, weight_index, position, equal),
            same_gradient,
            zero,
            one_sign,
            with_gradient,
        ],
        1,
    )

    def read(values: np.ndarray) -> list[dict[str, int]]:
        return [dict(zip(_ROW_FACTS, map(int, row), strict=True)) for row in values.reshape(k, -1)]

    return Pending(as_double(counts).reshape(-1), read)


def _rows(x: torch.Tensor, axis: int) -> torch.Tensor:
    return readable(x).movedim(axis, 0).reshape(x.shape[axis], -1)


def _with_equal_neighbour(
    like: torch.Tensor, weight_index: torch.Tensor, position: torch.Tensor, equal: torch.Tensor
) -> torch.Tensor:
    """For each of k orders, how many elements have an equal neighbour.

    ``equal``: whether the elements at ``position`` and ``position + 1`` of the order
    ``weight_index`` are equal.
    """
    pairs = torch.zeros_like(like)
    pairs[weight_index, position] = equal
    no = pairs.new_zeros(len(pairs), 1)
    return (torch.cat([pairs, no], 1) | torch.cat([no, pairs], 1)).sum(1)
