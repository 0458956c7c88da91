"""Faults of weights: wrong scales, units that are the same, frozen layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from calibration import labels
from calibration.build import NEAR, Base, Hurt, bases, fault, graded, layer, pick, turns
from calibration.cases import Fault, Subject

ACCUMULATED, SATURATED, EQUAL = 16.0, 0.75, 0.1


# -- scale -----------------------------------------------------------------------------------------


def hidden(base: Base) -> list[str]:
    """The weight layers of the chain, without the head."""
    return [name for name in base.places.places if name != "head"]


def gain(act: str) -> float:
    if act == "leaky_relu":
        return math.sqrt(2 / (1 + 0.2**2))
    return labels.HE if act == "relu" else 1.0


def off(base: Base, layers: Sequence[str], small: bool) -> Callable[[Subject], float]:
    measure = labels.too_small if small else labels.too_large
    return functools.partial(measure, layers=layers, gain=gain(base.act))


def chance(base: Base, layers: Sequence[str]) -> float:
    """The limit: over what drawing the weights and the width of the network explain."""
    shapes = [base.places.get_submodule(name).weight.shape for name in layers]
    low, high = labels.band([shape[1] for shape in shapes[1:]], base.act)
    return max(ACCUMULATED * labels.drawn([math.prod(s) for s in shapes]), high, 1 / low)


def times(names: Sequence[str], shrink: bool) -> Callable[[float], Hurt]:
    def strong(factor: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            with torch.no_grad():
                for name in names:
                    weight = layer(subject, name).weight
                    weight.mul_(1 / factor if shrink else factor)

        return hurt

    return strong


def one_layer() -> Iterator[Fault]:
    """One layer's weights too small or too large."""
    relu = {"mlp": 3, "cnn": 3, "lstm": 1}
    wine = turns(["mlp"], 3, source="wine", depth=3)
    for base in [*pick(["mlp"]), *turns(["cnn", "lstm"], 1), *wine]:
        k = 1 if base.source == "wine" else relu[base.architecture]
        name = base.places.places[k]
        layers = ["fc"] if base.architecture == "lstm" else hidden(base)
        # What an LSTM gives is small, so that weights behind it may be larger.
        glaring = 1000 if base.architecture == "lstm" else 100
        for kind, small in (("weights-small", True), ("weights-large", False)):
            yield from graded(
                kind, "init-scale", base, times([name], small), off(base, layers, small),
                chance(base, layers), base.places.where(k), glaring=(glaring,), **NEAR,
                reach=(1, 1000),
            )  # fmt: skip


def drawn_with(std: Callable[[nn.Module], float], names: Sequence[str]) -> Hurt:
    def hurt(subject: Subject) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name in names:
                module = layer(subject, name)
                nn.init.normal_(module.weight, std=std(module))
                nn.init.zeros_(module.bias)

    return hurt


def as_torch_does(names: Sequence[str]) -> Hurt:
    def hurt(subject: Subject) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name in names:
                layer(subject, name).reset_parameters()

    return hurt


def fan_in(module: nn.Module) -> int:
    return module.weight[0].numel()


def every_layer() -> Iterator[Fault]:
    """All layers drawn with the wrong scale, as people do."""
    modules, functions = bases("mlp", states=["init"])
    cnn, cnn_functions = bases("cnn", states=["init"])
    tanh = bases("mlp", states=["init"], act="tanh")
    leaky = bases("mlp", states=["init"], act="leaky_relu")
    for base in (modules, functions, cnn, *tanh, leaky[1]):
        yield from _all(base, "normal-0.01", 0.01, lambda m: 0.01, True)
    for base in (modules, cnn_functions, leaky[0]):
        yield from _all(base, "normal-1", 1, lambda m: 1.0, False)
    for base in (functions, cnn):  # 2 / n in place of its root
        yield from _all(base, "he-without-root", 1, lambda m: 2 / fan_in(m), True)
    for base in (modules, functions, cnn):  # 2^7, 2^5
        yield from _all(base, "gain-doubled", 2, lambda m: 2 * labels.HE * fan_in(m) ** -0.5,
                        False)  # fmt: skip
    for depth, sick in ((12, True), (10, True), (8, False)):
        for base in bases("mlp", states=["init"], forms=["module"], depth=depth):
            yield from _all(base, "xavier-for-relu", depth, lambda m: fan_in(m) ** -0.5,
                            True, sick)  # fmt: skip
    for depth, sick in ((10, True), (6, True), (5, True), (4, False), (3, False)):
        form = "module" if depth % 2 else "functional"
        for base in bases("mlp", states=["init"], forms=[form], depth=depth):
            yield fault("torch-default", "init-scale", base, depth, as_torch_does(hidden(base)),
                        off(base, hidden(base), True), chance(base, hidden(base)),
                        everywhere(base), sick=sick)  # fmt: skip


def _all(
    base: Base,
    kind: str,
    strength: float,
    std: Callable[[nn.Module], float],
    small: bool,
    sick: bool = True,
) -> Iterator[Fault]:
    yield fault(
        kind, "init-scale", base, strength, drawn_with(std, hidden(base)),
        off(base, hidden(base), small), chance(base, hidden(base)), everywhere(base), sick=sick,
    )  # fmt: skip


def everywhere(base: Base) -> frozenset[str]:
    places = range(len(base.places.places) - 1)
    return frozenset().union(*(base.places.where(k) for k in places))


def tanh_large() -> Iterator[Fault]:
    for base in bases("mlp", act="tanh"):
        name = base.places.places[3]
        yield from graded(
            "tanh-weights-large", "init-scale", base, times([name], False),
            functools.partial(labels.saturated_share, place=name), SATURATED,
            base.places.where(3), glaring=(50,), **NEAR, reach=(0.5, 50),
        )  # fmt: skip
    for base in bases("mlp", act="tanh", states=["init"]):
        yield fault(
            "tanh-normal-1", "init-scale", base, 1, drawn_with(lambda m: 1.0, hidden(base)),
            functools.partial(labels.saturated_share, place=base.places.places[3]), SATURATED,
            everywhere(base),
        )  # fmt: skip


# -- symmetry --------------------------------------------------------------------------------------


def filled(value: float, names: Sequence[str]) -> Hurt:
    def hurt(subject: Subject) -> None:
        with torch.no_grad():
            for name in names:
                module = layer(subject, name)
                for p in module.parameters():
                    p.fill_(value if p.dim() > 1 else 0.0)

    return hurt


def constant() -> Iterator[Fault]:
    mlps, cnns = bases("mlp", states=["init"]), bases("cnn", states=["init"])
    for base in (*mlps, cnns[0], bases("mlp", states=["init"], act="tanh")[1]):
        names = base.places.places
        weights = [f"{name}.weight" for name in names]
        for kind, value in (("constant-all", 0.05), ("zero-all", 0.0)):
            yield fault(kind, "symmetry", base, value, filled(value, names),
                        functools.partial(labels.constant_share, names=weights), 0.99,
                        everywhere(base) | base.places.where(len(names) - 1))  # fmt: skip
    places = {"mlp": 3, "cnn": 3, "autoencoder": 1, "lstm": 1}
    for base in [*turns(places), *turns(["autoencoder", "mlp"], 1)]:
        k = places[base.architecture]
        name = base.places.places[k]
        for kind, value in (("constant-layer", 0.05), ("zero-layer", 0.0)):
            yield fault(kind, "symmetry", base, value, filled(value, [name]),
                        functools.partial(labels.constant_share, names=[f"{name}.weight"]), 0.99,
                        base.places.where(k))  # fmt: skip
    for base in pick({"lstm": 0}):
        names = ["cell.x", "cell.h"] if base.form == "functional" else ["lstm"]
        matrices = ["cell.x.weight", "cell.h.weight"]
        if base.form == "module":
            matrices = ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
        where = base.places.where(0) | set(matrices)
        for kind, value in (("constant-lstm", 0.1), ("zero-lstm", 0.0)):
            yield fault(kind, "symmetry", base, value, filled(value, names),
                        functools.partial(labels.constant_share, names=matrices), 0.99,
                        where)  # fmt: skip
    for base in bases("decoder", states=["init"]):
        yield fault("constant-embedding", "symmetry", base, 0.1, filled(0.1, ["stem"]),
                    functools.partial(labels.constant_share, names=["stem.weight"]), 0.99,
                    base.places.where(0))  # fmt: skip


TWINS = {"mlp": (3, 4), "cnn": (3, 4), "residual": (3, 4), "encoder": (5, 6), "decoder": (5, 6),
         "autoencoder": (0, 1)}  # fmt: skip


def twinned(first: str, second: str) -> Callable[[float], Hurt]:
    """A share of the units are copies of the one before, and are read in the same way."""

    def strong(share: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            one, two = layer(subject, first), layer(subject, second)
            pairs = round(share * len(one.weight)) // 2
            copy = torch.arange(pairs) * 2
            with torch.no_grad():
                one.weight[copy + 1] = one.weight[copy]
                one.bias[copy + 1] = one.bias[copy]
                two.weight[:, copy + 1] = two.weight[:, copy]

        return hurt

    return strong


def read_apart(name: str) -> Hurt:
    """All units in pairs, but what reads them tells them apart: one update does the rest."""

    def hurt(subject: Subject) -> None:
        module = layer(subject, name)
        with torch.no_grad():
            module.weight[1::2] = module.weight[::2]
            module.bias[1::2] = module.bias[::2]

    return hurt


def twins() -> Iterator[Fault]:
    for base in [*pick(["mlp"]), *turns([a for a in TWINS if a != "mlp"])]:
        first, second = TWINS[base.architecture]
        names = base.places.places
        measure = functools.partial(labels.kept_equal, place=names[first])
        yield from graded(
            "units-in-pairs", "symmetry", base, twinned(names[first], names[second]), measure,
            EQUAL, base.places.where(first), glaring=(1, 0.13), mild=(0.09,),
        )  # fmt: skip
    for base in bases("mlp", "cnn", states=["init"], forms=["functional"]):
        name = base.places.places[3]
        yield fault("pairs-read-apart", "symmetry", base, 1, read_apart(name),
                    functools.partial(labels.kept_equal, place=name), EQUAL,
                    base.places.where(3), sick=False)  # fmt: skip


# -- frozen ----------------------------------------------------------------------------------------


def frozen(names: Sequence[str]) -> Hurt:
    def hurt(subject: Subject) -> None:
        for name in names:
            layer(subject, name).requires_grad_(False)

    return hurt


def blocks(base: Base) -> list[str]:
    """The weight layers, an LSTM written out as one."""
    return ["cell" if name == "cell.x" else name for name in base.places.places]


def matrices(base: Base) -> list[str]:
    """The weights of the layers, in order."""
    found = []
    for place in blocks(base):
        module = base.places.get_submodule(place)
        found += [f"{place}.{n}" for n, p in module.named_parameters() if p.dim() > 1]
    return found


def forgotten() -> Iterator[Fault]:
    middle = {"mlp": [3], "cnn": [3], "residual": [3, 4], "lstm": [1], "encoder": [4, 5, 6],
              "decoder": [4, 5, 6], "autoencoder": [1]}  # fmt: skip
    for base in pick(middle):
        names = blocks(base)
        chosen = middle[base.architecture]
        measure = functools.partial(labels.frozen_between, layers=matrices(base))
        where = base.places.where(chosen[0])
        if base.form == "functional" and base.architecture in ("encoder", "decoder"):
            where |= base.places.where(chosen[1])
        yield fault("frozen", "frozen-layer", base, len(chosen),
                    frozen([names[k] for k in chosen]), measure, 0, where)  # fmt: skip
        if base.state == "init":
            yield fault("frozen-backbone", "frozen-layer", base, len(names) - 1,
                        frozen(names[:-1]), measure, 0, where, sick=False)  # fmt: skip
    for base in bases("mlp", states=["init"], forms=["functional"]):
        names = base.places.places
        measure = functools.partial(labels.frozen_between, layers=matrices(base))
        for count, sick in ((2, True), (3, True), (4, True), (5, False), (7, False)):
            yield fault("frozen-several", "frozen-layer", base, count,
                        frozen(names[1 : 1 + count]), measure, 0, base.places.where(1),
                        sick=sick)  # fmt: skip


FAULTS: list[Fault] = [
    *one_layer(), *every_layer(), *tanh_large(), *constant(), *twins(), *forgotten(),
]  # fmt: skip
