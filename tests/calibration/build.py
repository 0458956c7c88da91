"""From a healthy base and something that hurts it to a case with a label."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from calibration import nets
from calibration.cases import Fault, Healthy, Subject

Hurt = Callable[[Subject], "Subject | None"]  # in place, or what is to be checked instead


@dataclass(frozen=True)
class Base:
    """A healthy network and its data."""

    architecture: str
    form: str = "module"
    state: str = "init"
    act: str = "relu"
    source: str = "digits"
    options: tuple[tuple[str, Any], ...] = ()
    samples: int = nets.SAMPLES

    @property
    def short(self) -> str:
        parts = [self.architecture]
        parts += [self.act] if self.act != "relu" else []
        parts += [self.source] if self.source != "digits" else []
        parts += [name if value is True else f"{name}{value}" for name, value in self.options]
        return "-".join(parts)

    @property
    def places(self) -> nets.Net:
        """A net of this shape, for the names of its layers only."""
        return _shape(replace(self, state="init", samples=0))

    def net(self, seed: int = 0) -> nets.Net:
        return nets.net(self.architecture, self.form, self.state, act=self.act,
                        source=self.source, seed=seed, **dict(self.options))  # fmt: skip

    def build(self, seed: int = 0) -> Subject:
        return nets.subject(self.net(seed), self.architecture, self.source, self.samples)


@functools.cache
def _shape(base: Base) -> nets.Net:
    return base.net()


def bases(
    *architectures: str,
    forms: Sequence[str] = ("module", "functional"),
    states: Sequence[str] = ("init", "trained"),
    act: str = "relu",
    source: str = "digits",
    samples: int = nets.SAMPLES,
    **options: Any,
) -> list[Base]:
    return [
        Base(a, form, state, act, source, tuple(options.items()), samples)
        for a, state, form in product(architectures, states, forms)
    ]


def pick(architectures: Iterable[str], **options: Any) -> list[Base]:
    """Two bases of each: in one form as initialised, in the other trained; by turns."""
    found = []
    for n, architecture in enumerate(architectures):
        forms = ("module", "functional")
        for k, state in enumerate(("init", "trained")):
            found += bases(architecture, forms=[forms[(n + k) % 2]], states=[state], **options)
    return found


def turns(architectures: Iterable[str], start: int = 0, **options: Any) -> list[Base]:
    """One base of each, going round the forms and states."""
    return [
        bases(architecture, **options)[(start + n) % 4]
        for n, architecture in enumerate(architectures)
    ]


def layer(subject: Subject, name: str) -> Any:
    return subject.model.get_submodule(name)


def trained_at(optimiser: str, rate: float, base: Base, epochs: int = 2) -> Hurt:
    """Training for a while, at this learning rate."""

    def hurt(subject: Subject) -> None:
        subject.model.load_state_dict(_at_rate(optimiser, rate, base, epochs))

    return hurt


@functools.cache
def _at_rate(optimiser: str, rate: float, base: Base, epochs: int) -> dict[str, Tensor]:
    model = base.net()
    make = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimiser]
    opt = make(model.parameters(), rate)
    nets.train(model, base.architecture, base.source, epochs=epochs, optimiser=opt)
    return model.state_dict()


USED: dict[Base, None] = {}
NEAR: Any = {"above": (1.15,), "below": (1 / 1.15,)}


def fault(
    kind: str,
    rule: str,
    base: Base,
    strength: float,
    hurt: Hurt,
    measure: Callable[[Subject], float],
    limit: float,
    where: Iterable[str],
    *,
    sick: bool = True,
    also: Iterable[str] = (),
) -> Fault:
    def build() -> Subject:
        subject = base.build()
        return hurt(subject) or subject

    # What the base was, for the healthy networks: see faults.BASES.
    USED.setdefault(base)
    name = f"{kind}/{base.short}/{base.form}/{base.state}/{strength:g}"
    return Fault(name, kind, rule, base.architecture, base.form, base.state, strength, sick,
                 frozenset(where), build, measure, limit, frozenset(also))  # fmt: skip


def graded(
    kind: str,
    rule: str,
    base: Base,
    strong: Callable[[float], Hurt],
    measure: Callable[[Subject], float],
    limit: float,
    where: Iterable[str],
    *,
    glaring: Sequence[float] = (),
    above: Sequence[float] = (),
    below: Sequence[float] = (),
    mild: Sequence[float] = (),
    reach: tuple[float, float] | None = None,
) -> Iterator[Fault]:
    """One kind in several strengths, in its own unit: faults, and negatives.

    ``above`` and ``below`` are labels over the limit, to be aimed at by a strength within
    ``reach``; ``glaring`` and ``mild`` are strengths.
    """
    where = frozenset(where)
    for strengths, sick in ((glaring, True), (mild, False)):
        for s in strengths:
            yield fault(kind, rule, base, s, strong(s), measure, limit, where, sick=sick)
    for ratios, sick in ((above, True), (below, False)):
        for ratio in ratios:
            assert reach is not None
            hurt = _aimed(base, strong, measure, ratio * limit, reach)
            near = fault(kind, rule, base, ratio, hurt, measure, limit, where, sick=sick)
            yield replace(near, name=near.name.rpartition("/")[0] + f"/{ratio:.2f} of the limit")


def _aimed(
    base: Base,
    strong: Callable[[float], Hurt],
    measure: Callable[[Subject], float],
    label: float,
    reach: tuple[float, float],
) -> Hurt:
    """Hurt as strongly as gives this label: bisection, over the logarithm of the strength."""

    @functools.cache
    def strength() -> float:
        def measured(log: float) -> float:
            trial = base.build()
            return measure(strong(math.exp(log))(trial) or trial)

        low, high = map(math.log, reach)
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if measured(middle) < label else (low, middle)
        return math.exp((low + high) / 2)

    return lambda subject: strong(strength())(subject)


def control(base: Base) -> Healthy:
    """The base itself, unhurt, from a seed (where it is not trained)."""
    family = {"lstm": "recurrent", "encoder": "transformer", "decoder": "transformer"}

    name = f"{base.short}/{base.form}/{base.state}"
    return Healthy(name, family.get(base.architecture, base.architecture), base.state, base.build)
