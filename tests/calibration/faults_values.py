"""Faults of values: not finite, or not what the running statistics were made from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from calibration import labels
from calibration.build import NEAR, Base, Hurt, bases, fault, graded, layer, trained_at, turns
from calibration.cases import Fault, Subject

RUNNING_MEAN, RUNNING_VARIANCE = 2.0, 10.0
MIDDLE = {
    "mlp": 4,
    "cnn": 3,
    "residual": 3,
    "lstm": 1,
    "encoder": 4,
    "decoder": 4,
    "autoencoder": 2,
}

# Each with the same made safe, which is no fault.
OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "log": (torch.log, lambda x: torch.log(x.relu() + 1)),
    "sqrt": (lambda x: torch.sqrt(x - 0.1), lambda x: torch.sqrt(x.relu())),
    "division": (lambda x: x / (x - x), lambda x: x / (x.abs() + 1)),
    "exp": (lambda x: torch.exp(x * 1e4), lambda x: torch.exp(-x.abs())),
    "power": (lambda x: (x - 1e-3) ** 0.3, lambda x: (x.abs() + 1e-3) ** 0.9),
}


def through(k: int, operation: Callable[[Tensor], Tensor]) -> Hurt:
    def hurt(subject: Subject) -> None:
        subject.model.before[k] = operation

    return hurt


def operations() -> Iterator[Fault]:
    names = list(OPERATIONS)
    for n, base in enumerate([*turns(MIDDLE), *turns(["mlp"], 3)]):
        k = MIDDLE[base.architecture]
        where = base.places.where(k) | set(around(base, k))
        for name in (names[n % 5], names[(n + 2) % 5]):
            sick, well = OPERATIONS[name]
            yield fault(f"nan-by-{name}", "non-finite", base, 1, through(k, sick),
                        labels.nonfinite, 0, where)  # fmt: skip
            if base.architecture == "mlp":
                yield fault(f"nan-by-{name}", "non-finite", base, 0, through(k, well),
                            labels.nonfinite, 0, where, sick=False)  # fmt: skip


def around(base: Base, k: int) -> Iterator[str]:
    """Rows of functions called at the k-th place, or the module that reads them."""
    for op in ("log", "sqrt", "div", "exp", "pow", "sub", "mul"):
        yield f"/{op}"
    if base.architecture in ("residual", "encoder", "decoder"):  # normalised first
        block = base.places.places[k].removesuffix(".qkv").rpartition(".")[0]
        yield from (f"{block}.norm", f"{block}.norm1")


def poisoned(name: str, value: float) -> Hurt:
    def hurt(subject: Subject) -> None:
        with torch.no_grad():
            subject.model.get_parameter(name).view(-1)[0] = value

    return hurt


def parameters() -> Iterator[Fault]:
    for n, base in enumerate(turns(MIDDLE, 1)):
        place = base.places.places[MIDDLE[base.architecture]]
        kinds = [name for name, _ in base.places.get_submodule(place).named_parameters()]
        name = f"{place}.{kinds[n % 2]}"
        yield fault("parameter-nan" if n % 2 else "parameter-inf", "non-finite", base, 1,
                    poisoned(name, math.nan if n % 2 else math.inf), labels.nonfinite, 0,
                    {name})  # fmt: skip


def diverged() -> Iterator[Fault]:
    """What too high a learning rate leaves of the parameters."""
    for base in bases("mlp", states=["init"], depth=4):
        names = {name for name, _ in base.places.named_parameters()}
        yield fault("diverged", "non-finite", base, 2, trained_at("sgd", 2, base),
                    labels.nonfinite, 0, names)  # fmt: skip


def dirty(share: float) -> Hurt:
    def hurt(subject: Subject) -> Subject:
        x = subject.batch.clone()
        x.view(-1)[: round(share * x.numel())] = math.nan
        return subject._replace(batch=x)

    return hurt


def inputs() -> Iterator[Fault]:
    for base in turns(["mlp", "cnn", "lstm", "autoencoder"], 2):
        yield from graded("input-nan", "input-missing", base, dirty, labels.nonfinite, 0, {"input"},
                          glaring=(0.01, 1e-4), mild=(0,))  # fmt: skip


def norm_at_zero(k: int, epsilon: float) -> Hurt:
    """A distance whose slope at zero is infinite: the values are fine, the gradients are not."""

    def hurt(subject: Subject) -> None:
        def distance(x: Tensor) -> Tensor:
            some = torch.arange(len(x)) >= 4
            flat = x.flatten(1) * some[:, None]
            size = (flat.square().sum(1) + epsilon).sqrt()
            return x + 0 * size.view(-1, *[1] * (x.dim() - 1))

        subject.model.before[k] = distance

    return hurt


def backward() -> Iterator[Fault]:
    for base in turns(["mlp", "cnn", "autoencoder"], 1):
        k = MIDDLE[base.architecture]
        where = base.places.where(k) | base.places.where(k - 1) | set(around(base, k))
        for epsilon, sick in ((0.0, True), (1e-6, False)):
            yield fault("gradient-nan", "non-finite", base, epsilon, norm_at_zero(k, epsilon),
                        labels.nonfinite, 0, where, sick=sick)  # fmt: skip


def in_half(scale: float) -> Hurt:
    """float16 ends at 65504."""

    def hurt(subject: Subject) -> Subject:
        model = subject.model.half()
        model.before[4] = lambda x: x / x.abs().amax().detach() * scale
        return subject._replace(batch=subject.batch.half())

    return hurt


def halves() -> Iterator[Fault]:
    for base in bases("mlp", states=["init"])[:1]:
        where = base.places.where(4) | set(around(base, 4)) | base.places.where(3)
        for scale, sick in ((1e6, True), (7e4, True), (1.0, False)):
            yield fault("float16-overflow", "non-finite", base, scale, in_half(scale),
                        labels.nonfinite, 0, where, sick=sick)  # fmt: skip


# -- running statistics ----------------------------------------------------------------------------


def used(subject: Subject) -> None:
    """What BatchNorms know after a while of training: the mean of what they saw."""
    for module in subject.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for _ in range(2):
            subject.model.train()(subject.batch)
    subject.model.eval()


def moved(name: str) -> Callable[[float], Hurt]:
    def strong(size: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            used(subject)
            norm = layer(subject, name)
            norm.running_mean += size * norm.running_var.sqrt()

        return hurt

    return strong


def spread(name: str) -> Callable[[float], Hurt]:
    def strong(factor: float) -> Hurt:
        def hurt(subject: Subject) -> None:
            used(subject)
            layer(subject, name).running_var *= factor

        return hurt

    return strong


def prepared(change: Callable[[Tensor, float], Tensor]) -> Callable[[float], Hurt]:
    """Evaluation data prepared in another way than the training data were."""

    def strong(size: float) -> Hurt:
        def hurt(subject: Subject) -> Subject:
            used(subject)
            return subject._replace(batch=change(subject.batch, size))

        return hurt

    return strong


def statistics() -> Iterator[Fault]:
    for base in turns(["mlp", "cnn", "autoencoder"], norm=True):
        # The last one: what is off before others is off behind them.
        name = [n for n, _ in base.places.named_modules() if n.startswith("norms.")][-1]
        where = {name}
        yield from graded(
            "running-mean", "covariate-shift", base, moved(name),
            functools.partial(labels.running_mean_shift, norm=name), RUNNING_MEAN, where,
            glaring=(10,), **NEAR, reach=(0.1, 10),
        )  # fmt: skip
        yield from graded(
            "running-variance", "covariate-shift", base, spread(name),
            functools.partial(labels.running_variance_ratio, norm=name), RUNNING_VARIANCE, where,
            glaring=(1e4,), **NEAR, reach=(1.5, 1e4),
        )  # fmt: skip
    for base in turns(["mlp", "cnn"], 3, norm=True):
        norms = [n for n, _ in base.places.named_modules() if n.startswith("norms.")]
        yield from graded(
            "other-preparation", "covariate-shift", base, prepared(lambda x, s: x * s),
            functools.partial(labels.statistics_off, norms=norms, mean=RUNNING_MEAN,
                              variance=RUNNING_VARIANCE), 1.0,
            norms, glaring=(16,), **NEAR, reach=(1.2, 30),
        )  # fmt: skip


FAULTS: list[Fault] = [
    *operations(), *parameters(), *diverged(), *inputs(), *backward(), *halves(), *statistics(),
]  # fmt: skip
