"""Faults of activations: saturated, dead, off zero, depending on nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from calibration import labels
from calibration.build import Base, Hurt, bases, graded
from calibration.cases import Fault, Subject

LIMITS = {"saturation.share": 0.75, "saturation.units": 0.40, "dead-relu.share": 0.40}
NEAR = {"above": (1.15,), "below": (1 / 1.15,)}


def layer(subject: Subject, name: str) -> torch.nn.Module:
    return subject.model.get_submodule(name)


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


def tanh_bias() -> Iterator[Fault]:
    for base in bases("mlp", act="tanh"):
        name = base.places.places[3]
        yield from graded(
            "tanh-bias", "saturation", base, bias_of_size(name),
            functools.partial(labels.saturated_share, place=name), LIMITS["saturation.share"],
            base.places.where(3), glaring=(8,), **NEAR, reach=(0.1, 8),
        )  # fmt: skip


# -- dead ------------------------------------------------------------------------------------------


def silence(name: str) -> Callable[[float], Hurt]:
    """A share of the units pushed out of reach, those dead already among them."""

    def strong(share: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            z = labels.look(subject, name, backward=False).all_of(name)
            with torch.no_grad():
                bias = layer(subject, name).bias
                least = z.amax(0).argsort()
                bias[least[: round(share * len(bias))]] = -100.0

        return hurt

    return strong


def dead_bias() -> Iterator[Fault]:
    for base in bases("mlp", "cnn"):
        name = base.places.places[3]
        yield from graded(
            "dead-bias", "dead-relu", base, silence(name),
            functools.partial(labels.dead_share, place=name), LIMITS["dead-relu.share"],
            base.places.where(3), glaring=(1, 0.47), mild=(0.34,),
        )  # fmt: skip


FAULTS: list[Fault] = [*tanh_bias(), *dead_bias()]
BASES: list[Base] = [*bases("mlp", act="tanh"), *bases("mlp", "cnn")]
