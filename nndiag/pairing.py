"""Pair the layers and parameters of two reports, and say how far apart their numbers may be."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Generic, Literal, TypeVar

from nndiag.stats import Layer, Parameter, Snapshot

__all__ = [
    "SLACK",
    "SLACK_OF_LEARNED",
    "Kind",
    "Outline",
    "Pair",
    "new_names",
    "outline",
    "outlined",
    "paired",
    "paired_outlines",
    "paired_parameters",
    "units",
]

Thing = TypeVar("Thing", Layer, Parameter, "Outline")
Kind = Literal["structure", "input", "parameter", "activation", "gradient", "share"]

# A change up to this never counts (ln of a ratio, standard deviations, shares). Weights × 1.5
# (ln 1.5 = 0.41) are seen from about 600 values on.
SLACK: Mapping[Kind, float] = {
    "parameter": 0.2, "input": 0.25, "activation": 1.5, "gradient": 1.5, "share": 0.25,
}  # fmt: skip
SLACK_OF_LEARNED = 0.8
"""For parameters whose values all come from training: early on, they differ widely between seeds.
The sign of their mean is random, so that means are not compared."""


@dataclass(frozen=True)
class Pair(Generic[Thing]):
    """The same layer or parameter in both reports; None where one does not have it."""

    old: Thing | None
    new: Thing | None

    @property
    def name(self) -> str:
        known = self.new if self.new is not None else self.old
        assert known is not None
        return known.name

    @property
    def renamed(self) -> bool:
        return self.old is not None and self.new is not None and self.old.name != self.new.name


def paired(old: Snapshot, new: Snapshot) -> tuple[Pair[Layer], ...]:
    """Pair layers even if renamed: in the order of the new network, removed layers last."""
    return _paired(old.layers, new.layers, _layer_key)


def paired_parameters(
    old: Snapshot, new: Snapshot, layers: Sequence[Pair[Layer]]
) -> tuple[Pair[Parameter], ...]:
    """Pair parameters: those of paired layers belong together."""
    return _paired(old.parameters, new.parameters, _parameter_key, _renamed(layers))


def _paired(
    old: Sequence[Thing],
    new: Sequence[Thing],
    key: Callable[[Thing], Hashable],
    known: Mapping[str, str] | None = None,
) -> tuple[Pair[Thing], ...]:
    """Pair by name or by position, whichever matches more things; then the rest the other way.

    By position because removing a layer from a Sequential renames all layers after it. The result
    is in the order of the new network.
    """
    was = {now: before for before, now in (known or {}).items()}
    names = {thing.name for thing in old}
    by_name = {now: before for now, before in was.items() if before in names}
    claimed = set(by_name.values())
    for thing in new:
        if thing.name not in by_name and thing.name in names - claimed:
            by_name[thing.name] = thing.name
    by_place = _aligned(old, new, key)
    keys_of_old = {thing.name: key(thing) for thing in old}
    matches = sum(keys_of_old.get(by_name.get(t.name, "")) == key(t) for t in new)
    first, second = (by_name, by_place) if matches >= len(by_place) else (by_place, by_name)
    partner = dict(first)
    taken = set(first.values())
    if first is by_name:
        rest = [t for t in old if t.name not in taken], [t for t in new if t.name not in partner]
        second = _aligned(*rest, key)
    for now, before in second.items():
        if now not in partner and before not in taken:
            partner[now] = before
            taken.add(before)
    things = {thing.name: thing for thing in old}
    pairs: list[Pair[Thing]] = []
    for thing in new:
        pairs.append(Pair(things.get(partner.get(thing.name, "")), thing))
    for thing in old:
        if thing.name not in taken:
            pairs.append(Pair(thing, None))
    return tuple(pairs)


def new_names(pairs: Sequence[Pair[Thing]]) -> dict[str, str]:
    """New names by old ones; a removed ``x`` becomes ``x (gone)``, which no new layer is called."""
    return {
        pair.old.name: f"{pair.old.name} (gone)" if pair.new is None else pair.new.name
        for pair in pairs
        if pair.old is not None
    }


def _aligned(
    old: Sequence[Thing], new: Sequence[Thing], key: Callable[[Thing], Hashable]
) -> dict[str, str]:
    """Old names by new ones, from the longest runs of equal keys."""
    keys = [key(thing) for thing in old], [key(thing) for thing in new]
    # autojunk would ignore frequent keys, and layers repeat.
    blocks = SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks()
    return {new[b + i].name: old[a + i].name for a, b, size in blocks for i in range(size)}


def _layer_key(layer: Layer) -> Hashable:
    return layer.op, layer.kind, units(layer)


def _parameter_key(parameter: Parameter) -> Hashable:
    return parameter.name.rpartition(".")[2], parameter.shape


def _renamed(layers: Sequence[Pair[Layer]]) -> dict[str, str]:
    """Old and new names of the parameters that belong to layers with a new name."""
    renamed = {}
    for pair in layers:
        before = pair.old.weight if pair.old is not None else None
        after = pair.new.weight if pair.new is not None else None
        if before is not None and after is not None:
            renamed[before.name] = after.name
            if before.bias is not None and after.bias is not None:
                renamed[before.bias] = after.bias
    return renamed


@dataclass(frozen=True)
class Outline:
    """The facts of a layer or parameter that do not depend on seed or batch."""

    name: str
    facts: Mapping[str, str]

    @property
    def called(self) -> str:
        return self.facts.get("op", "")


def outline(thing: Layer | Parameter) -> Outline:
    if isinstance(thing, Parameter):
        facts = {what: str(getattr(thing, what)) for what in ("shape", "dtype", "trainable")}
        return Outline(thing.name, facts)
    facts = {
        "op": thing.op if thing.op != "module" else thing.kind,
        "units": str(units(thing)),
        "dtype": thing.dtype,
        "options": _options(thing),
    }
    return Outline(thing.name, facts)


def paired_outlines(old: Sequence[Outline], new: Sequence[Outline]) -> tuple[Pair[Outline], ...]:
    """Pair outlines as :func:`paired` does."""
    return _paired(old, new, lambda o: tuple(o.facts.values()))


def outlined(pairs: Sequence[Pair[Layer]] | Sequence[Pair[Parameter]]) -> list[Pair[Outline]]:
    return [
        Pair(None if p.old is None else outline(p.old), None if p.new is None else outline(p.new))
        for p in pairs
    ]


def units(layer: Layer) -> int | None:
    """The number of units. Not the shape, which depends on the batch."""
    return None if layer.output.units is None else len(layer.output.units)


def _options(layer: Layer) -> str:
    """The options of an activation, without what is learned (PReLU's slope)."""
    fixed = {k: v for k, v in layer.options.items() if layer.op != "prelu"}
    return ", ".join(f"{name}={value:g}" for name, value in fixed.items()) or "none"
