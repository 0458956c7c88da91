"""From a healthy base and something that hurts it to a case with a label."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

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

    @functools.cached_property
    def places(self) -> nets.Net:
        """A net of this shape, for the names of its layers only."""
        return nets.net(self.architecture, self.form, act=self.act, source=self.source,
                        **dict(self.options))  # fmt: skip

    def build(self) -> Subject:
        model = nets.net(self.architecture, self.form, self.state, act=self.act,
                         source=self.source, **dict(self.options))  # fmt: skip
        return nets.subject(model, self.architecture, self.source, self.samples)


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
) -> Fault:
    def build() -> Subject:
        subject = base.build()
        return hurt(subject) or subject

    name = f"{kind}/{base.short}/{base.form}/{base.state}/{strength:g}"
    return Fault(name, kind, rule, base.architecture, base.form, base.state, strength, sick,
                 frozenset(where), build, measure, limit)  # fmt: skip


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
            hurt = functools.partial(aim, base.build, strong, measure, ratio * limit, reach)
            near = fault(kind, rule, base, ratio, hurt, measure, limit, where, sick=sick)
            yield replace(near, name=near.name.rpartition("/")[0] + f"/{ratio:g} of the limit")


def aim(
    build: Callable[[], Subject],
    strong: Callable[[float], Hurt],
    measure: Callable[[Subject], float],
    label: float,
    reach: tuple[float, float],
    subject: Subject,
) -> Subject | None:
    """Hurt it as strongly as gives this label: bisection, over the logarithm of the strength."""

    def measured(log: float) -> float:
        trial = build()
        return measure(strong(math.exp(log))(trial) or trial)

    low, high = sorted(map(math.log, reach), key=measured)
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if measured(middle) < label else (low, middle)
    return strong(math.exp((low + high) / 2))(subject)


def control(base: Base) -> Healthy:
    """The base itself, unhurt, from a seed (where it is not trained)."""
    family = {"lstm": "recurrent", "encoder": "transformer", "decoder": "transformer"}

    def build(seed: int) -> Subject:
        if base.state == "trained":
            return base.build()
        model = nets.net(base.architecture, base.form, act=base.act, source=base.source,
                         seed=seed, **dict(base.options))  # fmt: skip
        return nets.subject(model, base.architecture, base.source, base.samples)

    name = f"{base.short}/{base.form}/{base.state}"
    return Healthy(name, family.get(base.architecture, base.architecture), base.state, build)
