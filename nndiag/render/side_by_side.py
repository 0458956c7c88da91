"""The layers of a network before and after a repair, in pairs, with their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nndiag import flow
from nndiag.numbers import Unit
from nndiag.pairing import SLACK, Pair, paired
from nndiag.render import story
from nndiag.render.picture import dead, saturated

if TYPE_CHECKING:
    from nndiag.stats import Layer, Snapshot

__all__ = ["NUMBERS", "Row", "lined_up", "op", "rows"]

NUMBERS = ("std", "gradient rms", "saturated or dead")


@dataclass(frozen=True)
class Row:
    """One layer's numbers before and after: std, gradient rms, saturated or dead share."""

    pair: Pair[Layer]
    before: tuple[float, float, float]
    after: tuple[float, float, float]

    @property
    def name(self) -> str:
        old, new = self.pair.old, self.pair.new
        return _change(old.name, new.name) if old and new else self.pair.name

    @property
    def op(self) -> str:
        old, new = op(self.pair.old), op(self.pair.new)
        if self.pair.old is None:
            return f"{new} (new)"
        return f"{old} (gone)" if self.pair.new is None else _change(old, new)

    @property
    def cells(self) -> list[str]:
        """The layer and its numbers as text, old → new."""
        numbers = []
        for name, *values in zip(NUMBERS, self.before, self.after, strict=True):
            unit: Unit = "share" if name == "saturated or dead" else ""
            old, new = ("—" if math.isnan(v) else story.number(v, unit) for v in values)
            numbers.append(_change(old, new))
        return [f"{self.name} {self.op}", *numbers]

    @property
    def moved(self) -> float:
        """How much its numbers changed, in multiples of the smallest change that counts."""
        if self.pair.old is None or self.pair.new is None:
            return 0.0
        std, grad = (_ratio(self.before[k], self.after[k]) for k in (0, 1))
        share = abs(self.after[2] - self.before[2])
        return max(
            std / SLACK["activation"],
            grad / SLACK["gradient"],
            0.0 if math.isnan(share) else share / SLACK["share"],
        )


def rows(pairs: Iterable[Pair[Layer]]) -> list[Row]:
    """A row for each pair: those that changed most first, new and removed layers last."""
    unsorted = [Row(pair, _numbers(pair.old), _numbers(pair.new)) for pair in pairs]
    return sorted(unsorted, key=lambda row: -row.moved)


def _numbers(layer: Layer | None) -> tuple[float, float, float]:
    if layer is None:
        return math.nan, math.nan, math.nan
    flat = [share for share in (saturated(layer), dead(layer)) if not math.isnan(share)]
    return (
        layer.output.std,
        math.nan if layer.grad is None else layer.grad.rms,
        flat[0] if flat else math.nan,
    )


def _ratio(a: float, b: float) -> float:
    """|ln(b/a)|: infinite where one is zero or not finite and the other is not."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (a > 0 and b > 0 and math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(math.log(b / a))


def op(layer: Layer | None) -> str:
    """What a layer computes, or its class."""
    return "" if layer is None else layer.op if layer.op != "module" else layer.kind


def _change(old: str, new: str) -> str:
    return old if old == new else f"{old} → {new}"


def lined_up(old: Snapshot, new: Snapshot) -> list[Pair[Layer]]:
    """Layers before and after in pairs, in network order; a removed layer keeps its place.

    A layer that was replaced by several (an activation by an ``nn.Sequential`` of a normalisation
    and another activation) is paired with the one that does its work.
    """
    pairs = _rejoined(paired(old, new))
    pair_of = {pair.old.name: pair for pair in pairs if pair.old is not None}
    removed: dict[str | None, list[Pair[Layer]]] = {}  # by the layer before them
    last = None
    for layer in old.layers:
        pair = pair_of[layer.name]
        if pair.new is None:
            removed.setdefault(last, []).append(pair)
        else:
            last = pair.new.name
    ordered = removed.get(None, [])
    for pair in pairs:
        if pair.new is not None:
            ordered += [pair, *removed.get(pair.new.name, [])]
    return ordered


def _rejoined(pairs: Sequence[Pair[Layer]]) -> list[Pair[Layer]]:
    inside: dict[str, list[Layer]] = {}  # new layers by the name of each module around them
    for pair in pairs:
        if pair.old is None and pair.new is not None:
            parts = pair.new.name.split(".")
            for k in range(1, len(parts)):
                inside.setdefault(".".join(parts[:k]), []).append(pair.new)
    replaced: dict[str, Layer] = {}  # old layers by the name of the new one
    for pair in pairs:
        if pair.old is not None and pair.new is None:
            for layer in inside.get(pair.old.name, []):
                if flow.is_activation(layer) == flow.is_activation(pair.old):
                    replaced.setdefault(layer.name, pair.old)
                    break
    rejoined = {layer.name for layer in replaced.values()}
    return [
        Pair(replaced[pair.name], pair.new) if pair.old is None and pair.name in replaced else pair
        for pair in pairs
        if pair.new is not None or pair.name not in rejoined
    ]
