"""Optimisers that do not fit their network: what they hold, how far they step, what they decay."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from calibration.experiments_optimizer import NETS, OPTIMIZERS, Case, Made, made

Hurt = Callable[[Made], "tuple[nn.Module, Any, Any, Any, Any]"]


def case(kind: str, rule: str, net: str, hurt: Hurt, seed: int = 0) -> Case:
    return Case(f"{kind}/{net}", rule, lambda: hurt(made(net, seed)))


# -- what it holds -----------------------------------------------------------------------------


def of_another(m: Made) -> Any:
    return (*m, torch.optim.Adam(copy.deepcopy(m[0]).parameters(), 1e-3))


def assigned(m: Made) -> Any:
    """The weights are loaded over the model's after the optimiser was made."""
    optimizer = torch.optim.SGD(m[0].parameters(), 0.05)
    state = {key: value.clone() for key, value in m[0].state_dict().items()}
    m[0].load_state_dict(state, assign=True)
    return (*m, optimizer)


def same_memory(m: Made) -> Any:
    return (*m, torch.optim.Adam([nn.Parameter(p.data) for p in m[0].parameters()], 1e-3))


def without_last(m: Made) -> Any:
    """The head is forgotten."""
    return (*m, torch.optim.Adam(list(m[0].parameters())[:-2] or [], 1e-3))


def new_head(m: Made) -> Any:
    optimizer = torch.optim.Adam(m[0].parameters(), 1e-3)
    name = next(n for n, x in reversed(list(m[0].named_modules())) if isinstance(x, nn.Linear))
    old = m[0].get_submodule(name)
    m[0].set_submodule(name, nn.Linear(old.in_features, old.out_features))
    return (*m, optimizer)


def without_biases(m: Made) -> Any:
    weights = [p for p in m[0].parameters() if p.dim() > 1]
    return (*m, torch.optim.SGD(weights, 0.05))


def frozen_head(m: Made) -> Any:
    """What is held is frozen, and what trains is not held."""
    head = list(m[0].parameters())[-2:]
    for p in head:
        p.requires_grad_(False)
    return (*m, torch.optim.Adam(head, 1e-3))


def held_twice(m: Made) -> Any:
    everything = list(m[0].parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns, too
        return (*m, torch.optim.SGD([*everything, *everything[-2:]], 0.02))


def coverage() -> Iterator[Case]:
    rule = "optimizer-coverage"
    for net in ("perceptron", "functional", "convolutions", "recurrent", "transformer"):
        yield case("of-another", rule, net, of_another)
    for net in ("batch-norm", "functional", "regression"):
        yield case("assigned", rule, net, assigned)
    for net in ("perceptron", "autoencoder", "transformer"):
        yield case("same-memory", rule, net, same_memory)
    for net in ("convolutions", "regression", "recurrent"):
        yield case("without-last", rule, net, without_last)
    for net in ("perceptron", "batch-norm", "recurrent"):
        yield case("new-head", rule, net, new_head)
    for net in ("perceptron", "convolutions", "functional"):
        yield case("without-biases", rule, net, without_biases)
    for net in ("convolutions", "transformer"):
        yield case("frozen-head", rule, net, frozen_head)
    for net in ("autoencoder", "batch-norm"):
        yield case("held-twice", rule, net, held_twice)


# -- how far it steps --------------------------------------------------------------------------


class Forgetful(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        """Would be here."""


def halved(dtype: torch.dtype, rate: float) -> Hurt:
    def hurt(m: Made) -> Any:
        model, x, y, loss = m
        cast = [t.to(dtype) if t.is_floating_point() else t for t in (x, y)]
        return model.to(dtype), *cast, loss, torch.optim.Adam(model.parameters(), rate, eps=1e-4)

    return hurt


def no_update() -> Iterator[Case]:
    rule = "no-update"
    for net in ("perceptron", "functional", "batch-norm", "recurrent", "transformer"):
        yield case("rate-zero", rule, net, lambda m: (*m, torch.optim.Adam(m[0].parameters(), 0.0)))
    for net in ("regression", "functional", "convolutions"):
        yield case("does-nothing", rule, net, lambda m: (*m, Forgetful(m[0].parameters(), 0.05)))
    for net in ("perceptron", "functional", "transformer", "autoencoder"):
        yield case("bfloat16", rule, net, halved(torch.bfloat16, 1e-5))
    for net in ("perceptron", "regression"):
        yield case("float16", rule, net, halved(torch.float16, 1e-7))


# At these rates 60 steps do not end worse than they began.
TRAINS = ("adamw-1000/functional", "sgd-low-1000/batch-norm")
# Rates at which the first steps lower the loss, and which end in NaN once momentum has gathered.
MISSED = ("momentum-1000/perceptron", "momentum-1000/autoencoder")


def rates() -> Iterator[Case]:
    for rule, factors in (("lr-too-low", (1e-4, 1e-5)), ("lr-too-high", (1e3, 1e4))):
        for n, net in enumerate(NETS):
            names = list(OPTIMIZERS)
            for k, factor in enumerate(factors):
                name = names[(2 * n + k + (2 if rule == "lr-too-high" else 0)) % len(names)]
                if f"{name}-{factor:g}/{net}" in (*TRAINS, *MISSED):
                    continue

                def hurt(m: Made, name: str = name, factor: float = factor) -> Any:
                    return (*m, OPTIMIZERS[name](m[0].parameters(), factor))

                yield case(f"{name}-{factor:g}", rule, net, hurt)


# -- what it decays ----------------------------------------------------------------------------


def decays(make: Callable[..., torch.optim.Optimizer], decay: float) -> Hurt:
    return lambda m: (*m, make(m[0].parameters(), 1e-3, weight_decay=decay))


def penalised(power: int, factor: float) -> Hurt:
    def hurt(m: Made) -> Any:
        model, x, y, loss = m

        def whole(output: Any, target: Any) -> torch.Tensor:
            penalty = sum(p.abs().pow(power).sum() for p in model.parameters())
            return loss(output, target) + factor * penalty

        return model, x, y, whole, torch.optim.Adam(model.parameters(), 1e-3)

    return hurt


def regularization() -> Iterator[Case]:
    rule = "regularization-too-strong"
    for net in ("perceptron", "functional", "convolutions", "recurrent", "autoencoder"):
        yield case("sgd-decay-5", rule, net, decays(torch.optim.SGD, 5.0))
    for net in ("regression", "batch-norm", "perceptron"):
        yield case("adam-decay-5", rule, net, decays(torch.optim.Adam, 5.0))
    for net in ("transformer", "functional"):
        yield case("adamw-decay-300", rule, net, decays(torch.optim.AdamW, 300.0))
    for net in ("perceptron", "recurrent", "regression"):
        yield case("l2-in-the-loss", rule, net, penalised(2, 3.0))
    for net in ("convolutions", "functional", "autoencoder"):
        yield case("l1-in-the-loss", rule, net, penalised(1, 0.3))


FAULTS: list[Case] = [*coverage(), *no_update(), *rates(), *regularization()]


def uncleared(m: Made) -> Any:
    model, x, y, loss = m
    loss(model(x), y).backward()
    return (*m, torch.optim.Adam(model.parameters(), 1e-3))


NOTES: list[Case] = [case("not-cleared", "gradient-not-cleared", net, uncleared) for net in NETS]
