"""Parameters and their gradients as plain data, and which units are copies of one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from nndiag.measure import Pending, collect, measure, readable, wide
from nndiag.stats import Layer, Parameter, Weight, merge_parts

# Comparing rows of a weight sorts them: beyond this size it would dominate a check.
MOST_COMPARED = 30_000_000

_ROW_FACTS = ("duplicate_units", "duplicate_kept", "zero_units", "one_sign_rows", "graded_rows")


def measure_parameters(
    named: Mapping[str, nn.Parameter],
    layers: list[Layer],
    known: Mapping[str, Parameter],
    not_observed: dict[str, None],
) -> dict[str, Parameter]:
    """All parameters with this batch's gradients, merged with what is known of earlier batches."""
    use = {layer.weight.name: layer.weight for layer in layers if layer.weight is not None}
    pending: dict[tuple[str, str], Pending] = {}
    for name, p in named.items():
        weight = use.get(name)
        bias = None if weight is None or weight.bias is None else named.get(weight.bias)
        try:
            parts = _parts(p, weight, bias, value=name not in known)
        except Exception as error:  # a subclass of Tensor that knows no arithmetic
            failure = f"nndiag could not measure it ({type(error).__name__}: {error})"
            not_observed[f"{name}: {failure}"] = None
            continue
        pending.update({(name, what): part for what, part in parts.items()})
    numbers = dict(zip(pending, collect(list(pending.values())), strict=True))
    found = dict(known)
    for name, p in named.items():
        value = known[name].value if name in known else numbers.get((name, "value"))
        if value is None:
            continue
        here = Parameter(
            name=name,
            shape=tuple(p.shape),
            dtype=str(p.dtype).removeprefix("torch."),
            trainable=p.requires_grad,
            value=value,
            grad=numbers.get((name, "gradient")),
            **numbers.get((name, "rows"), {}),
        )
        found[name] = _merged(known[name], here) if name in known else here
    return found


def _parts(
    p: nn.Parameter, weight: Weight | None, bias: torch.Tensor | None, *, value: bool
) -> dict[str, Pending]:
    parts = {}
    if value:
        parts["value"] = measure(p, histogram=False)
    if p.grad is not None:
        parts["gradient"] = measure(p.grad, histogram=False)
    if p.dim() >= 2 and 0 < p.numel() <= MOST_COMPARED and p.layout == torch.strided:
        axis = 0 if weight is None else weight.unit_axis
        parts["rows"] = _compare_rows(p, p.grad, axis, bias)
    return parts


def _merged(known: Parameter, here: Parameter) -> Parameter:
    return dataclasses.replace(
        known,
        grad=merge_parts(known.grad, here.grad) or known.grad or here.grad,
        duplicate_kept=min(known.duplicate_kept, here.duplicate_kept),
        one_sign_rows=known.one_sign_rows + here.one_sign_rows,
        graded_rows=known.graded_rows + here.graded_rows,
    )


@torch.no_grad()
def _compare_rows(
    p: torch.Tensor, grad: torch.Tensor | None, axis: int, bias: torch.Tensor | None
) -> Pending:
    """Which units (rows) of a weight are equal, and what their gradients look like.

    Equal rows have equal projections on a fixed direction, so after sorting by it they are
    neighbours; those are then compared exactly.
    """
    rows = _rows(p, axis)
    whole = rows
    if bias is not None and bias.numel() == rows.shape[0]:
        whole = torch.cat([rows, _rows(bias, 0).to(rows.dtype)], 1)
    generator = torch.Generator("cpu").manual_seed(0)
    direction = torch.randn(
        whole.shape[1], generator=generator, dtype=torch.float32, device="cpu"
    ).to(whole.device, whole.dtype)
    order = torch.argsort(whole @ direction, stable=True)
    if grad is not None:
        # Among equal rows, those with equal gradients become neighbours.
        first = torch.argsort(_rows(grad, axis) @ direction[: rows.shape[1]])
        order = first[torch.argsort((whole @ direction)[first], stable=True)]
    ordered = whole[order]
    equal = (ordered[1:] == ordered[:-1]).all(1)
    zero = (rows == 0).all(1).sum()
    kept = one_sign = graded = zero.new_zeros(())
    if grad is not None:
        g = _rows(grad, axis)
        nonzero = (g != 0).any(1)
        one_sign = (nonzero & ((g >= 0).all(1) | (g <= 0).all(1))).sum()
        graded = nonzero.sum()
        ordered = g[order]
        size = torch.linalg.vector_norm(ordered, dim=1)
        gap = torch.linalg.vector_norm(ordered[1:] - ordered[:-1], dim=1)
        kept = _members(equal & (gap <= 1e-4 * torch.maximum(size[1:], size[:-1])))
    counts = torch.stack([_members(equal), kept, zero, one_sign, graded])
    return Pending(wide(counts), lambda v: dict(zip(_ROW_FACTS, map(int, v), strict=True)))


def _rows(x: torch.Tensor, axis: int) -> torch.Tensor:
    return readable(x).movedim(axis, 0).reshape(x.shape[axis], -1)


def _members(equal: torch.Tensor) -> torch.Tensor:
    """How many elements have an equal neighbour."""
    no = equal.new_zeros(1)
    return (torch.cat([equal, no]) | torch.cat([no, equal])).sum()
