"""Faults of activations: saturated, dead, off zero, depending on nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from calibration import labels
from calibration.build import (
    NEAR,
    Base,
    Hurt,
    bases,
    fault,
    graded,
    layer,
    pick,
    trained_at,
    turns,
)
from calibration.cases import Fault, Subject

SATURATED, SATURATED_UNITS, DEAD, ONE_SIGN = 0.75, 0.40, 0.40, 0.5
COLLAPSED = 1 / 0.01


# -- saturated -------------------------------------------------------------------------------------


def bias_of_size(name: str) -> Callable[[float], Hurt]:
    """Half the units pushed up, half down, as biases learned at too high a rate are."""

    def strong(size: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            with torch.no_grad():
                bias = layer(subject, name).bias
                bias.copy_(size * (1 - 2 * (torch.arange(len(bias)) % 2)))

        return hurt

    return strong


def biases() -> Iterator[Fault]:
    places = {"cnn": 3, "residual": 3, "lstm": 1, "encoder": 5, "autoencoder": 2}
    for base in [*bases("mlp", act="tanh"), *turns(places, act="tanh")]:
        k = places.get(base.architecture, 3)
        name = base.places.places[k]
        # Where pre-activations hardly vary, so large a bias is a collapse, below this limit or not.
        below = () if base.architecture in ("cnn", "lstm") else NEAR["below"]
        yield from graded(
            "tanh-bias", "saturation", base, bias_of_size(name),
            functools.partial(labels.saturated_share, place=name), SATURATED,
            base.places.where(k), glaring=(20,), above=NEAR["above"], below=below, reach=(0.3, 20),
        )  # fmt: skip
    for base in pick(["mlp"], act="sigmoid", depth=2):
        name = base.places.places[1]
        yield from graded(
            "sigmoid-bias", "saturation", base, bias_of_size(name),
            functools.partial(labels.saturated_share, place=name, kind="sigmoid"), SATURATED,
            base.places.where(1), glaring=(20,), above=NEAR["above"], reach=(0.3, 40),
        )  # fmt: skip


def units_out(name: str) -> Callable[[float], Hurt]:
    """A share of the units far out on one side or the other."""

    def strong(share: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            with torch.no_grad():
                bias = layer(subject, name).bias
                out = round(share * len(bias))
                bias[:out] = 30.0 * (1 - 2 * (torch.arange(out) % 2))

        return hurt

    return strong


def units() -> Iterator[Fault]:
    for base in [*pick(["mlp"], act="tanh"), *turns(["cnn", "autoencoder"], 1, act="tanh")]:
        k = 0 if base.architecture == "autoencoder" else 3
        name = base.places.places[k]
        yield from graded(
            "tanh-units", "saturation", base, units_out(name),
            functools.partial(labels.saturated_units, place=name), SATURATED_UNITS,
            base.places.where(k), glaring=(0.7, 0.47), mild=(0.34,),
        )  # fmt: skip


def scaled_inputs(k: int) -> Callable[[float], Hurt]:
    """What a layer reads arrives unscaled, its weights being right."""

    def strong(factor: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            subject.model.before[k] = lambda x: x * factor

        return hurt

    return strong


def unscaled() -> Iterator[Fault]:
    for base in [*pick(["mlp"], act="tanh"), *turns(["cnn", "autoencoder"], 3, act="tanh")]:
        k = 2 if base.architecture == "autoencoder" else 3
        name = base.places.places[k]
        yield from graded(
            "unscaled-hidden", "saturation", base, scaled_inputs(k),
            functools.partial(labels.saturated_share, place=name), SATURATED,
            base.places.where(k), glaring=(255,), **NEAR, reach=(0.5, 255),
        )  # fmt: skip


def sharpened(name: str, form: str) -> Callable[[float], Hurt]:
    def strong(factor: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            module = layer(subject, name)
            weight = module.qkv.weight if form == "functional" else module.in_proj_weight
            with torch.no_grad():
                weight[: 2 * len(weight) // 3] *= factor

        return hurt

    return strong


def attention() -> Iterator[Fault]:
    few = bases("encoder", "decoder", samples=64)
    for base in (b for b in few if b.form == "module" or b.state == "init"):
        place = base.places.places[4]
        causal = base.architecture == "decoder"
        yield from graded(
            "attention-sharp", "saturation", base, sharpened("layers.1.self_attn", base.form),
            functools.partial(labels.one_hot_rows, place=place, heads=4, causal=causal), SATURATED,
            base.places.where(4), glaring=(30,), **NEAR, reach=(0.5, 60),
        )  # fmt: skip


def candidate_bias(subject: Subject) -> tuple[Tensor, slice]:
    model = subject.model
    bias = model.cell.x.bias if model.functional else model.lstm.bias_ih_l0
    return bias, slice(2 * model.width, 3 * model.width)


def gates_pushed(size: float) -> Hurt:
    def hurt(subject: Subject) -> None:
        bias, part = candidate_bias(subject)
        with torch.no_grad():
            bias[part] = size * (1 - 2 * (torch.arange(subject.model.width) % 2))

    return hurt


def gates_scaled(factor: float) -> Hurt:
    def hurt(subject: Subject) -> None:
        model = subject.model
        with torch.no_grad():
            (model.cell.x.weight if model.functional else model.lstm.weight_ih_l0).mul_(factor)

    return hurt


def gates() -> Iterator[Fault]:
    lstms = bases("lstm", samples=128)
    module_init, functional_init, module_trained, functional_trained = lstms
    for kind, strong, top, chosen in (
        ("gate-bias", gates_pushed, 30, (module_init, functional_trained)),
        ("gate-weights", gates_scaled, 100, (functional_init, module_trained)),
    ):
        for base in chosen:
            place = base.places.places[0]
            yield from graded(
                kind, "saturation", base, strong,
                functools.partial(labels.candidate_saturated, place=place), SATURATED,
                base.places.where(0), glaring=(top,), **NEAR, reach=(0.3, top),
            )  # fmt: skip


# -- off zero --------------------------------------------------------------------------------------


def off_zero() -> Iterator[Fault]:
    """Sigmoids in a row, few enough that gradients pass."""
    for depth in (2, 3):
        for base in bases("mlp", states=["init"], act="sigmoid", depth=depth):
            yield fault(
                "sigmoid-hidden", "non-zero-centered", base, depth, lambda subject: None,
                functools.partial(labels.one_sign_share, after=base.places.places[depth]), ONE_SIGN,
                set().union(*(base.places.where(k) for k in range(depth))),
            )  # fmt: skip


def recentred(left: float) -> Hurt:
    """A constant taken off the sigmoids: of the last ones' mean, a half, this share is left."""

    def hurt(subject: Subject) -> None:
        subject.model.before[1] = lambda x: x - 0.5
        subject.model.before[2] = lambda x: x - 0.5 * (1 - left)

    return hurt


def shifted() -> Iterator[Fault]:
    for base in bases("mlp", states=["init"], act="sigmoid", depth=2):
        yield from graded(
            "sigmoid-shifted", "non-zero-centered", base, recentred,
            functools.partial(labels.one_sign_share, after="head"), ONE_SIGN,
            base.places.where(1), glaring=(1, 0.75), mild=(0.5, 0.35),
        )  # fmt: skip


# -- dead ------------------------------------------------------------------------------------------


def silence(name: str, speaks: str = "") -> Callable[[float], Hurt]:
    """A share of the units pushed out of reach, those dead already among them."""

    def strong(share: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            z = labels.look(subject, speaks or name, backward=False).all_of(speaks or name)
            with torch.no_grad():
                bias = layer(subject, name).bias
                least = z.amax(0).argsort()
                bias[least[: round(share * len(bias))]] = -100.0

        return hurt

    return strong


HIDDEN = {
    "mlp": 3,
    "cnn": 3,
    "residual": 3,
    "lstm": 1,
    "encoder": 5,
    "decoder": 5,
    "autoencoder": 0,
}


def dead() -> Iterator[Fault]:
    rest = {a: k for a, k in HIDDEN.items() if a not in ("mlp", "cnn")}
    cancer = turns(["mlp"], 2, source="cancer", depth=3)
    for base in [*pick(["mlp", "cnn"]), *turns(rest), *cancer]:
        k = 1 if base.source == "cancer" else HIDDEN[base.architecture]
        name = base.places.places[k]
        yield from graded(
            "dead-bias", "dead-relu", base, silence(name),
            functools.partial(labels.dead_share, place=name), DEAD,
            base.places.where(k), glaring=(1, 0.47), mild=(0.34,),
        )  # fmt: skip
    for base in turns(["mlp", "cnn"], 2, norm=True):
        name = "norms.3"
        yield from graded(
            "dead-beta", "dead-relu", base, silence(name),
            functools.partial(labels.dead_share, place=name), DEAD,
            base.places.where(3) | {name, f"{name}.bias"}, glaring=(1, 0.47), mild=(0.34,),
        )  # fmt: skip


def turned_negative(name: str) -> Callable[[float], Hurt]:
    """All weights of a share of the units below zero, behind inputs above it."""

    def strong(share: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            z = labels.look(subject, name, backward=False).all_of(name)
            module = layer(subject, name)
            least = z.amax(0).argsort()[: round(share * len(module.weight))]
            with torch.no_grad():
                module.weight[least] = -module.weight[least].abs()
                module.bias[least] = -module.bias[least].abs()

        return hurt

    return strong


def negative() -> Iterator[Fault]:
    for base in turns(["mlp", "cnn"], 1):
        name = base.places.places[3]
        yield from graded(
            "dead-sign", "dead-relu", base, turned_negative(name),
            functools.partial(labels.dead_share, place=name), DEAD,
            base.places.where(3), glaring=(0.8, 0.5), mild=(0.34,),
        )  # fmt: skip


def thrown() -> Iterator[Fault]:
    """Healthy networks that too high a learning rate threw off their data."""
    mlps, (_, cnn) = bases("mlp", states=["init"], depth=4), bases("cnn", states=["init"], depth=4)
    lstm = bases("lstm", states=["init"])[0]
    for base, rate in ((mlps[0], 0.3), (mlps[1], 0.1), (cnn, 0.1), (lstm, 0.3)):
        hidden = [1] if base.architecture == "lstm" else range(4)
        names = [base.places.places[k] for k in hidden]
        yield fault(
            "dead-by-rate", "dead-relu", base, rate, trained_at("adam", rate, base),
            functools.partial(most_dead, places=names), DEAD,
            frozenset().union(*(base.places.where(k) for k in hidden)),
            also=("init-scale", "saturation"),  # it throws the weights far, too
        )  # fmt: skip


def most_dead(subject: Subject, places: list[str]) -> float:
    return max(labels.dead_share(subject, place) for place in places)


# -- depending on nothing --------------------------------------------------------------------------


def mixed(k: int) -> Callable[[float], Hurt]:
    """Samples of a batch blended: only 1/strength of what tells them apart is left."""

    def strong(strength: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            def blend(x: Tensor) -> Tensor:
                mean = x.mean(0, keepdim=True)
                return mean + (x - mean) / strength

            subject.model.before[k] = blend

        return hurt

    return strong


def one_for_all(k: int) -> Hurt:
    def hurt(subject: Subject) -> None:
        subject.model.before[k] = lambda x: x[:1].expand_as(x)

    return hurt


def drown(name: str) -> Callable[[float], Hurt]:
    """Biases so large that what the input adds is lost in them."""

    def strong(size: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            bias = layer(subject, name).bias
            with torch.no_grad():
                noise = torch.randn(len(bias), generator=torch.Generator().manual_seed(0))
                bias.copy_(size * noise)

        return hurt

    return strong


def collapsed() -> Iterator[Fault]:
    for base in turns(["mlp", "cnn", "autoencoder"]):
        k = 1 if base.architecture == "autoencoder" else 3
        name = base.places.places[k]
        yield from graded("batch-blended", "signal-collapse", base, mixed(k), drowned(base, k),
                          COLLAPSED, base.places.where(k), glaring=(1e6,), **NEAR,
                          reach=(1, 1e4))  # fmt: skip
        if base.architecture != "autoencoder":
            yield fault("one-for-all", "signal-collapse", base, 1, one_for_all(k),
                        drowned(base, k), COLLAPSED, base.places.where(k))  # fmt: skip
    for base in [*pick(["mlp"], act="leaky_relu"), *turns(["autoencoder"], 1)]:
        k = 1 if base.architecture == "autoencoder" else 3
        name = base.places.places[k]
        here, anywhere = functools.partial(labels.drowned, places=[name]), drowned(base, k)
        for measure, strengths in (
            (here, {"glaring": (1e3,), "above": (1.15,)}),
            (anywhere, {"below": (1 / 1.15,)}),
        ):
            yield from graded(
                "drowned-by-bias", "signal-collapse", base, drown(name), measure, COLLAPSED,
                base.places.where(k), reach=(0.1, 1e4), **strengths,
            )  # fmt: skip


def drowned(base: Base, k: int) -> Callable[[Subject], float]:
    """At the worst of this layer and those behind it, the head apart."""
    return functools.partial(labels.drowned, places=base.places.places[k:-1])


FAULTS: list[Fault] = [
    *biases(), *units(), *unscaled(), *attention(), *gates(), *off_zero(), *shifted(), *dead(),
    *negative(), *thrown(), *collapsed(),
]  # fmt: skip
