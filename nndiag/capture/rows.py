"""A layer while it is being recorded, and its conversion to plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nndiag.capture.weights import RunningStatistics
from nndiag.stats import Layer, TensorStats, Weight

__all__ = ["Row", "layer_of"]


@dataclass
class Row:
    """A layer while it is being recorded; integers are indices into the meter's results."""

    index: int
    name: str
    kind: str
    location: str | None
    op: str = "module"
    node: int = -1
    shape: tuple[int, ...] = ()
    dtype: str = ""
    options: dict[str, float] = field(default_factory=dict)
    weight: Weight | None = None
    output: int | None = None
    input: int | None = None
    direction: int | None = None
    flat: int | None = None
    grads: list[int] = field(default_factory=list)
    why_no_gradient: str = ""
    facts: list[int] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


def layer_of(
    row: Row, numbers: Sequence[Any], *, gradients: bool
) -> tuple[Layer, RunningStatistics | None]:
    """The finished layer, and the running statistics of a BatchNorm."""
    assert row.output is not None
    grad: TensorStats | None = None
    for g in row.grads if gradients else ():
        grad = numbers[g] if grad is None else grad.merge(numbers[g])
    unseen = list(row.unseen)
    if gradients and grad is None:
        unseen.append(row.why_no_gradient)
    entering: TensorStats | None = None if row.input is None else numbers[row.input]
    if entering is not None and row.direction is not None:
        entering = dataclasses.replace(entering, direction=numbers[row.direction])
    running: RunningStatistics | None = None
    facts: dict[str, float] = {}
    for f in row.facts:
        value = numbers[f]
        if isinstance(value, RunningStatistics):
            running = value
        else:
            facts |= value
    layer = Layer(
        name=row.name,
        kind=row.kind,
        op=row.op,
        shape=row.shape,
        node=row.node,
        output=numbers[row.output],
        input=entering,
        flat=None if row.flat is None else numbers[row.flat],
        grad=grad,
        location=row.location,
        options=row.options,
        weight=row.weight,
        facts=facts,
        unseen=tuple(unseen),
        dtype=row.dtype,
    )
    return layer, running
