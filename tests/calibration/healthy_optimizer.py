"""Optimisers that fit their network, though they look like ones that do not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from calibration.experiments_optimizer import NETS, OPTIMIZERS, Case, Made, fit, made

Made5 = Callable[[Made], Any]


def case(kind: str, net: str, change: Made5) -> Case:
    return Case(f"{kind}/{net}", "", lambda: change(made(net)))


def usual() -> Iterator[Case]:
    """Fresh networks at usual rates, and at ten times and a tenth of them by turns."""
    for n, net in enumerate(NETS):
        for k, name in enumerate(OPTIMIZERS):
            factor = (1.0, 10.0, 1.0)[(n + k) % 3] if name in ("adam", "adamw", "rmsprop") else 1.0
            yield case(f"{name}-{factor:g}", net, lambda m, name=name, factor=factor: (
                *m, OPTIMIZERS[name](m[0].parameters(), factor)))  # fmt: skip


def in_training() -> Iterator[Case]:
    """After some training: with the optimiser's state, with a new one, and with a small rate."""
    for n, net in enumerate(NETS):
        name = list(OPTIMIZERS)[n % len(OPTIMIZERS)]

        def resumed(m: Made, name: str = name) -> Any:
            optimizer = OPTIMIZERS[name](m[0].parameters())
            fit(m, optimizer, 40)
            return (*m, optimizer)

        def anew(m: Made) -> Any:
            fit(m, torch.optim.Adam(m[0].parameters(), 3e-3), 60)
            return (*m, torch.optim.Adam(m[0].parameters(), 1e-3))

        def tuned(m: Made) -> Any:
            fit(m, torch.optim.Adam(m[0].parameters(), 3e-3), 60)
            return (*m, torch.optim.AdamW(m[0].parameters(), 2e-5, weight_decay=0.01))

        yield case(f"resumed-{name}", net, resumed)
        yield case("new-optimiser", net, anew)
        yield case("fine-tuned", net, tuned)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda o: lr_scheduler.LinearLR(o, 1e-4),
    "lambda-from-zero": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(step / 100, 1.0)),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=1000, div_factor=1e5),
    "warm-up-then-cosine": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 1e-6), lr_scheduler.CosineAnnealingLR(o, 100)], [10]
    ),
}


def schedules() -> Iterator[Case]:
    for (name, schedule), net in zip(SCHEDULES.items(), NETS, strict=False):

        def warm(m: Made, schedule: Any = schedule) -> Any:
            optimizer = torch.optim.Adam(m[0].parameters(), 1e-3)
            schedule(optimizer)
            return (*m, optimizer)

        yield case(f"schedule-{name}", net, warm)


def head_only(m: Made) -> Any:
    return (*m, torch.optim.Adam(list(m[0].parameters())[-2:], 1e-3))


def frozen_backbone(m: Made, held: bool = False) -> Any:
    for p in list(m[0].parameters())[:-2]:
        p.requires_grad_(False)
    kept = [p for p in m[0].parameters() if held or p.requires_grad]
    return (*m, torch.optim.Adam(kept, 1e-3))


def in_two(m: Made) -> Any:
    """One optimiser for each half, as a generator and a discriminator have."""
    everything = list(m[0].parameters())
    half = len(everything) // 2
    return (
        *m,
        [torch.optim.Adam(everything[:half], 1e-3), torch.optim.SGD(everything[half:], 0.05)],
    )


def with_others(m: Made) -> Any:
    """The loss has a parameter of its own, which the optimiser holds, too."""
    model, x, y, loss = m
    scale = nn.Parameter(torch.zeros(()))

    def weighted(output: Any, target: Any) -> torch.Tensor:
        return loss(output, target) * torch.exp(-scale) + scale

    return model, x, y, weighted, torch.optim.Adam([*model.parameters(), scale], 1e-3)


def centred(m: Made) -> Any:
    """The loss compares rows of a layer's weights with the output: no penalty."""
    model, x, y, loss = m
    weight = next(p for p in model.parameters() if p.dim() > 1)

    def pulled(output: Any, target: Any) -> torch.Tensor:
        return loss(output, target) + 3 * (output.mean() * weight.mean()).square()

    return model, x, y, pulled, torch.optim.Adam(model.parameters(), 1e-3)


def lightly_penalised(m: Made) -> Any:
    model, x, y, loss = m

    def whole(output: Any, target: Any) -> torch.Tensor:
        return loss(output, target) + 1e-4 * sum(p.square().sum() for p in model.parameters())

    return model, x, y, whole, torch.optim.Adam(model.parameters(), 1e-3)


def replayed(m: Made) -> Any:
    """A loss that runs the model itself, on points of its own."""
    model, x, y, loss = m
    points = torch.randn_like(x) if x.is_floating_point() else x.flip(0)

    def physics(output: Any, target: Any) -> torch.Tensor:
        return 0.01 * loss(output, target) + model(points).square().mean()

    return model, x, y, physics, torch.optim.Adam(model.parameters(), 1e-3)


def overfit(m: Made) -> Any:
    """Trained until nothing is left to learn, with weight decay."""
    optimizer = torch.optim.AdamW(m[0].parameters(), 5e-3, weight_decay=0.1)
    fit(m, optimizer, 200)
    return (*m, torch.optim.SGD(m[0].parameters(), 0.05, momentum=0.9, weight_decay=5e-4))


def in_bfloat16(m: Made) -> Any:
    model, x, y, loss = m
    cast = [t.to(torch.bfloat16) if t.is_floating_point() else t for t in (x, y)]
    return model.to(torch.bfloat16), *cast, loss, torch.optim.SGD(model.parameters(), 0.1)


def in_groups(m: Made) -> Any:
    """No decay for biases, a tenth of the rate for the first layers."""
    everything = list(m[0].parameters())
    groups = [
        {"params": [p for p in everything if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in everything if p.dim() < 2], "weight_decay": 0.0, "lr": 1e-4},
    ]
    return (*m, torch.optim.AdamW([g for g in groups if g["params"]], 1e-3))


def compiled(m: Made) -> Any:
    optimizer = torch.optim.Adam(m[0].parameters(), 1e-3)
    return torch.compile(m[0], backend="eager"), *m[1:], optimizer


def copied_after(m: Made) -> Any:
    """A moving average beside the model, which no optimiser holds and no loss uses."""
    optimizer = torch.optim.Adam(m[0].parameters(), 1e-3)
    copy.deepcopy(m[0])
    return (*m, optimizer)


ALIKE: list[Made5] = [
    head_only, frozen_backbone, lambda m: frozen_backbone(m, held=True), in_two, with_others,
    centred, lightly_penalised, replayed, overfit, in_groups, compiled, copied_after,
]  # fmt: skip


def look_alikes() -> Iterator[Case]:
    nets = list(NETS)
    for n, change in enumerate(ALIKE):
        name = getattr(change, "__name__", "").replace("<lambda>", "frozen_backbone_held")
        for net in (nets[n % len(nets)], nets[(n + 3) % len(nets)]):
            yield case(name.replace("_", "-"), net, change)
    for net in ("perceptron", "autoencoder"):
        yield case("in-bfloat16", net, in_bfloat16)


HEALTHY: list[Case] = [*usual(), *in_training(), *schedules(), *look_alikes()]
