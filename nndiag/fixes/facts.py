"""What fixes need to know of layers: their parameters, activation and names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from nndiag import activations, flow, graph, ops, theory
from nndiag.fixes import code
from nndiag.stats import Layer, Parameter, Snapshot

__all__ = [
    "HE",
    "MOST_NAMES",
    "activation",
    "biases",
    "each",
    "gain",
    "is_hidden",
    "is_named",
    "is_opaque",
    "listing",
    "names",
    "parameters",
    "unique",
    "weight",
    "whole_modules",
]

HE = math.sqrt(2)
MOST_NAMES = 3
"""As many names are listed one by one; of more, only the first and the last."""


def unique(layers: Iterable[Layer]) -> list[Layer]:
    return list({layer.name: layer for layer in layers}.values())


def is_named(layer: Layer) -> bool:
    """Whether it is a module, and not the model itself."""
    return flow.is_module(layer) and layer.name != flow.ROOT


def is_opaque(layer: Layer) -> bool:
    """Whether it is a module with several weights inside: recurrent layers, attention."""
    return flow.is_module(layer) and layer.weight is None and layer.op in ops.LEARNED


def parameters(snapshot: Snapshot, layer: Layer) -> Sequence[Parameter]:
    """The parameters of a layer's module, and of modules inside an opaque layer."""
    owner = flow.owner(snapshot, layer)
    if is_opaque(layer):
        return snapshot.parameters_in.get(owner, ()) if owner else snapshot.parameters
    home = layer.weight.name.rpartition(".")[0] if layer.weight is not None else owner
    return snapshot.parameters_of.get(home, ())


def whole_modules(snapshot: Snapshot, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The outermost modules of which all parameters are in ``names``, and the remaining names."""
    wanted = Counter(prefix for name in set(names) for prefix in _modules_around(name))
    inside = {"": snapshot.parameters} | {m: snapshot.parameters_in.get(m, ()) for m in wanted if m}
    modules: dict[str, None] = {}
    rest: list[str] = []
    for name in names:
        whole = next((m for m in _modules_around(name) if wanted[m] == len(inside[m])), None)
        if whole is None:
            rest.append(name)
        else:
            modules[whole] = None
    return list(modules), rest


def _modules_around(name: str) -> list[str]:
    """The names of the modules around a parameter, outermost first; "" is the model."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:k]) for k in range(len(parts) + 1)]


def is_hidden(snapshot: Snapshot, activation: Layer) -> bool:
    """Whether a module is neither a gate nor the model's output, wherever it runs."""
    return flow.owner(snapshot, activation) not in _modules_with_other_roles(snapshot)


@graph.once
def _modules_with_other_roles(snapshot: Snapshot) -> frozenset[str]:
    """Modules one of whose calls is a gate, attention or the model's output."""
    return frozenset(
        flow.owner(snapshot, row)
        for row in snapshot.layers
        if flow.is_module(row) and flow.role(snapshot, row) != "hidden"
    )


def weight(snapshot: Snapshot, layer: Layer) -> Parameter | None:
    return snapshot.parameter.get(layer.weight.name) if layer.weight is not None else None


def activation(snapshot: Snapshot, layer: Layer, relu: bool = False) -> theory.Activation:
    row = flow.activation_after(snapshot, layer)
    act = flow.act_of(row) if row is not None else None
    if act is not None and relu:
        act = activations.named("relu")
    if act is None or not math.isfinite(act.gain):  # a PReLU whose slope is NaN
        act = activations.named("identity")
    assert act is not None
    return act


def gain(act: theory.Activation) -> float:
    """The gain to six digits, as written in code."""
    return HE if abs(act.gain - HE) < 1e-12 else float(f"{act.gain:.6g}")


def biases(snapshot: Snapshot, layers: Iterable[Layer]) -> list[str]:
    names: list[str] = []
    for layer in layers:
        if layer.weight is not None and layer.weight.bias in snapshot.parameter:
            names.append(layer.weight.bias or "")
        elif is_opaque(layer):
            names += [p.name for p in parameters(snapshot, layer) if len(p.shape) == 1]
    return names


# -- names in sentences ----------------------------------------------------------------------------


def names(layers: Sequence[Layer]) -> str:
    return listing([layer.name for layer in layers])


def each(layers: Sequence[Layer]) -> str:
    return f"each of {names(layers)}" if len(layers) > 1 else names(layers)


def listing(names: Sequence[str]) -> str:
    """``a, b and c``; for many names ``first … last``, with the count if it is not obvious."""
    shown = [name if name.isprintable() else repr(name) for name in names]
    if len(shown) <= MOST_NAMES:
        return " and ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)
    numbers = code.counts_up(names)
    count = "" if numbers is not None and numbers.step == 1 else f" ({len(shown)} in all)"
    return f"{shown[0]} … {shown[-1]}{count}"
