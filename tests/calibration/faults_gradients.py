"""Faults of gradients: vanishing, exploding, cut off, rounded away."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from calibration import labels
from calibration.build import NEAR, Base, Hurt, bases, fault, graded, layer, pick, turns
from calibration.cases import Fault, Subject

TOTAL, ROUNDING = 100.0, 1 / 4


def damped(places: Iterable[int], up: bool = False) -> Callable[[float], Hurt]:
    """A scale between the layers that nobody meant: 1/strength, or strength."""

    def strong(factor: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            scale = factor if up else 1 / factor
            for k in places:
                subject.model.before[k] = lambda x: x * scale

        return hurt

    return strong


def depth_of(base: Base) -> int:
    return len(base.places.places) - 1


def widths(base: Base) -> list[int]:
    model = base.places
    return [model.get_submodule(p).weight.shape[1] for p in model.places[1:-1]]


def everywhere(base: Base) -> frozenset[str]:
    return frozenset().union(*(base.places.where(k) for k in range(depth_of(base))))


def amplified(base: Base) -> Callable[[float], Hurt]:
    """A scale between hidden layers, taken back before the head so that the loss stays sound."""
    inner = depth_of(base) - 1

    def strong(factor: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            damped(range(1, inner + 1), up=True)(factor)(subject)
            damped([inner + 1])(factor**inner)(subject)

        return hurt

    return strong


def scales() -> Iterator[Fault]:
    plain = [*pick(["mlp"]), *turns(["cnn"], 1), *turns(["mlp"], 2, act="leaky_relu")]
    for base in [*plain, *turns(["mlp"], 3, act="tanh")]:
        first, last = base.places.places[0], base.places.places[-2]
        low, high = labels.band(widths(base), base.act)
        yield from graded(
            "damped", "vanishing-gradient", base, damped(range(1, depth_of(base))),
            functools.partial(labels.shrinks, first=first, last=last), TOTAL / low,
            everywhere(base), glaring=(5,), **NEAR, reach=(0.3, 10),
        )  # fmt: skip
        if base.act != "tanh":
            yield from graded(
                "amplified", "exploding-gradient", base, amplified(base),
                functools.partial(labels.grows, first=first, last=last), TOTAL * high,
                everywhere(base), glaring=(5,), **NEAR, reach=(0.3, 10),
            )  # fmt: skip


def one_scale() -> Iterator[Fault]:
    """The whole factor at one place: a forgotten division."""
    for base in [*turns(["mlp", "cnn"], 2), *turns(["mlp"], act="tanh")]:
        first, last = base.places.places[0], base.places.places[-2]
        low, high = labels.band(widths(base), base.act)
        where = base.places.where(3) | base.places.where(4)
        yield from graded(
            "damped-once", "vanishing-gradient", base, damped([4]),
            functools.partial(labels.shrinks, first=first, last=last), TOTAL / low,
            where, glaring=(1e5,), **NEAR, reach=(0.3, 1e5),
        )  # fmt: skip
        if base.act != "tanh":
            yield from graded(
                "amplified-once", "exploding-gradient", base, raised_once,
                functools.partial(labels.grows, first=first, last=last), TOTAL * high,
                where, glaring=(1e5,), **NEAR, reach=(0.3, 1e5),
            )  # fmt: skip


def raised_once(factor: float) -> Hurt:
    def hurt(subject: Subject) -> None:
        head = len(subject.model.places) - 1
        subject.model.before[4] = lambda x: x * factor
        subject.model.before[head] = lambda x: x / factor

    return hurt


def sigmoids() -> Iterator[Fault]:
    for depth in (12, 8, 5):
        for base in bases("mlp", "cnn", states=["init"], act="sigmoid", depth=depth):
            if base.architecture == "cnn" and (depth != 8 or base.form == "module"):
                continue
            first, last = base.places.places[0], base.places.places[-2]
            low, _ = labels.band(widths(base), "sigmoid")
            yield fault("sigmoid-stack", "vanishing-gradient", base, depth, lambda s: None,
                        functools.partial(labels.shrinks, first=first, last=last), TOTAL / low,
                        everywhere(base))  # fmt: skip


def loss_times(factor: float) -> Hurt:
    def hurt(subject: Subject) -> Subject:
        loss_fn = subject.loss_fn
        assert loss_fn is not None
        return subject._replace(loss_fn=lambda output, target: loss_fn(output, target) * factor)

    return hurt


def underflow() -> Iterator[Fault]:
    for base in turns(["mlp", "autoencoder"], 1):
        yield from graded(
            "loss-tiny", "vanishing-gradient", base, lambda s: loss_times(1e-30 / s),
            functools.partial(labels.rounding, places=base.places.places), ROUNDING,
            everywhere(base) | base.places.where(depth_of(base)), above=(2.5, 1.5),
            below=(1 / 1.5,), reach=(1, 1e14),
        )  # fmt: skip


# -- cut -------------------------------------------------------------------------------------------

CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "detached": lambda x: x.detach(),
    "data": lambda x: x.data,
    "rounded": torch.round,
    "through-numpy": lambda x: torch.from_numpy(x.detach().numpy()),
}
MIDDLE = {
    "mlp": 4,
    "cnn": 3,
    "residual": 5,
    "lstm": 1,
    "encoder": 4,
    "decoder": 4,
    "autoencoder": 2,
}


def cut(k: int, how: str) -> Hurt:
    def hurt(subject: Subject) -> None:
        subject.model.before[k] = CUTS[how]

    return hurt


def before(base: Base, k: int) -> frozenset[str]:
    """Everything that comes before the k-th weight layer."""
    names = base.places.places
    if base.architecture in ("residual", "encoder", "decoder"):
        folders = {name.rpartition(".")[0] for name in names[:k]} - {""}
        cut_at = names[k].removesuffix(".self_attn").rpartition(".")[0]
        modules = {"stem", *folders} - {cut_at, names[k].removesuffix(".self_attn.qkv")}
        modules -= {names[k].removesuffix(".self_attn")}
    else:
        modules = {"cell", *names[:k]} if base.architecture == "lstm" else set(names[:k])
    inside = {
        name for name, _ in base.places.named_parameters()
        if name == "position" or any(name.startswith(f"{m}.") for m in modules)
    }  # fmt: skip
    return frozenset(inside | modules)


def cuts() -> Iterator[Fault]:
    for number, base in enumerate([*pick(["mlp"]), *turns([a for a in MIDDLE if a != "mlp"])]):
        k = MIDDLE[base.architecture]
        hows = list(CUTS) if base.architecture == "mlp" else ["detached", list(CUTS)[number % 4]]
        for how in dict.fromkeys(hows):
            yield fault(how, "no-gradient", base, 1, cut(k, how), labels.never_a_gradient, 0,
                        before(base, k))  # fmt: skip


def spare(base: Base) -> Hurt:
    """A layer made and never called."""

    def hurt(subject: Subject) -> None:
        subject.model.spare = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    return hurt


def thrown_away(name: str) -> Hurt:
    """A layer that is called, and its output forgotten."""

    def hurt(subject: Subject) -> None:
        layer(subject, name).register_forward_hook(lambda module, args, out: args[0])

    return hurt


def zeroed(names: Iterable[str]) -> Hurt:
    def hurt(subject: Subject) -> None:
        with torch.no_grad():
            for name in names:
                for p in layer(subject, name).parameters():
                    p.zero_()

    return hurt


def left_out() -> Iterator[Fault]:
    for base in turns(["mlp", "residual", "lstm", "decoder"]):
        yield fault("never-called", "no-gradient", base, 1, spare(base), labels.never_a_gradient, 0,
                    {f"spare.{k}.{p}" for k in (0, 2) for p in ("weight", "bias")})  # fmt: skip
    for base in turns(["mlp", "cnn"], 1):
        name = base.places.places[4]
        yield fault("thrown-away", "no-gradient", base, 1, thrown_away(name),
                    labels.never_a_gradient, 0, base.places.where(4))  # fmt: skip


def by_construction() -> Iterator[Fault]:
    """No gradient yet, or none by arithmetic: no fault."""
    for base in bases("mlp", "residual", "encoder", states=["init"])[::2]:
        yield fault("zero-head", "no-gradient", base, 0, zeroed(["head"]),
                    labels.never_a_gradient, 0, {"head"}, sick=False)  # fmt: skip
    for base in bases("residual", states=["init"]):
        ends = [name for name in base.places.places if name.endswith("down")]
        yield fault("zero-branches", "no-gradient", base, 0, zeroed(ends),
                    labels.never_a_gradient, 0, ends, sick=False)  # fmt: skip


FAULTS: list[Fault] = [
    *scales(), *one_scale(), *sigmoids(), *underflow(), *cuts(), *left_out(), *by_construction(),
]  # fmt: skip
