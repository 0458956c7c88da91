"""Faults in how a network is written or was trained: each with the rule that should lead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.experiments_optimizer import NETS, Case, Made, fit, made

Change = Callable[[Made], Any]


def case(kind: str, rule: str, net: str, change: Change, seed: int = 0) -> Case:
    return Case(f"{kind}/{net}", rule, lambda: (*change(made(net, seed)), None))


# -- weights that the model does not list ----------------------------------------------------------


class Wrapped(nn.Module):
    """A network before which stands something that the model does not know."""

    def __init__(
        self, net: nn.Module, before: Callable[[Any, Tensor], Tensor], **held: Any
    ) -> None:
        super().__init__()
        self.net, self.before = net, before
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.before(self, x))


def _extra(x: Tensor) -> nn.Linear:
    torch.manual_seed(3)
    layer = nn.Linear(x.shape[-1], x.shape[-1])
    with torch.no_grad():
        layer.weight.copy_(torch.eye(x.shape[-1]) + 0.05 * torch.randn(x.shape[-1], x.shape[-1]))
    return layer


def in_list(m: Made) -> Any:
    model, x, y, loss = m
    return Wrapped(model, lambda s, z: s.layers[0](z), layers=[_extra(x)]), x, y, loss


def in_dict(m: Made) -> Any:
    model, x, y, loss = m
    return Wrapped(model, lambda s, z: s.layers["in"](z), layers={"in": _extra(x)}), x, y, loss


def bare(m: Made) -> Any:
    model, x, y, loss = m
    scale = torch.ones(x.shape[-1], requires_grad=True)
    return Wrapped(model, lambda s, z: z * s.scale, scale=scale), x, y, loss


def created(m: Made) -> Any:
    model, x, y, loss = m
    return Wrapped(model, lambda _, z: _extra(z)(z)), x, y, loss


# Tokens are no numbers that a layer could stand before.
NUMBERS = [name for name in NETS if name != "recurrent"]


def unregistered() -> Iterator[Case]:
    for change in (in_list, in_dict, bare, created):
        for net in NUMBERS[:5]:
            yield case(change.__name__, "unregistered-parameter", net, change)


# -- samples that see one another ------------------------------------------------------------------


def centred_over_batch(m: Made) -> Any:
    model, x, y, loss = m
    return Wrapped(model, lambda _, z: z - z.mean(0)), x, y, loss


def dealt_out(m: Made) -> Any:
    """A reshape in the place of a transpose."""
    model, x, y, loss = m
    return Wrapped(model, lambda _, z: z.reshape(*_first_two(z)).transpose(0, 1)
                   .reshape(z.shape)), x, y, loss  # fmt: skip


def _first_two(z: Tensor) -> tuple[int, ...]:
    return (z.shape[-1], z.numel() // z.shape[-1])


def attending(m: Made) -> Any:
    """Attention over the samples."""
    model, x, y, loss = m

    def before(_: Any, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        return z + 0.3 * (F.softmax(flat @ flat.T / flat.shape[1] ** 0.5, 1) @ flat).view_as(z)

    return Wrapped(model, before), x, y, loss


def mixing() -> Iterator[Case]:
    for change in (centred_over_batch, dealt_out, attending):
        for net in NUMBERS[:5]:
            yield case(change.__name__, "batch-mixing", net, change)


# -- BatchNorm and dropout -------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self, norm: nn.Module, net: nn.Module, functional: bool = False) -> None:
        super().__init__()
        self.norm, self.net, self.functional = norm, net, functional

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            return self.net(F.batch_norm(x, None, None, training=True))
        return self.net(self.norm(x))


def _norm_for(x: Tensor) -> nn.Module:
    return nn.BatchNorm2d(x.shape[1]) if x.dim() == 4 else nn.BatchNorm1d(x.shape[1])


def alone(functional: bool) -> Change:
    """One sample, where the layer has positions to take its statistics over."""

    def change(m: Made) -> Any:
        model, x, y, loss = m
        return Normed(_norm_for(x), model, functional), x[:1], y[:1], loss

    return change


PICTURES = ("convolutions", "batch-norm", "transformer")


def small_batches() -> Iterator[Case]:
    for net in PICTURES:
        for functional in (False, True):
            kind = "alone-functional" if functional else "alone"
            for seed in range(2):
                yield case(f"{kind}-{seed}", "bn-small-batch", net, alone(functional), seed)


def dropped(p: float, form: str) -> Change:
    def change(m: Made) -> Any:
        model, x, y, loss = m
        if form == "module":
            return nn.Sequential(nn.Dropout(p), model), x, y, loss
        if form == "functional":
            return Wrapped(model, lambda s, z: F.dropout(z, p, s.training)), x, y, loss
        return nn.Sequential(nn.AlphaDropout(p), model), x, y, loss

    return change


def dropouts() -> Iterator[Case]:
    for n, net in enumerate(NUMBERS[:5]):
        for form in ("module", "functional", "alpha"):
            yield case(f"dropout-{form}", "dropout-too-high", net, dropped(0.85 + n * 0.03, form))


# -- training --------------------------------------------------------------------------------------


def other_data(m: Made) -> Any:
    """BatchNorm's averages are of data that are shifted and hardly spread."""
    model, x, y, loss = m
    normed = Normed(_norm_for(x), model)
    with torch.no_grad():
        for _ in range(60):
            normed(x * 0.01 + 3)
    return normed, x, y, loss


def gaps() -> Iterator[Case]:
    for seed in range(3):
        for net in ("perceptron", "functional", "convolutions", "transformer", "batch-norm"):
            yield case(f"other-data-{seed}", "train-eval-gap", net, other_data, seed)


def overshot(rate: float) -> Change:
    def change(m: Made) -> Any:
        fit(m, torch.optim.SGD(m[0].parameters(), rate), 8)
        return m

    return change


def damages() -> Iterator[Case]:
    for net in ("perceptron", "convolutions", "autoencoder", "regression"):
        for rate in (30.0, 100.0, 300.0):
            yield case(f"rate-{rate:g}", "training-damage", net, overshot(rate))


def faults() -> list[Case]:
    return [*unregistered(), *mixing(), *small_batches(), *dropouts(), *gaps(), *damages()]


# -- what only looks like them ---------------------------------------------------------------------


def registered(m: Made) -> Any:
    model, x, y, loss = m
    return (
        Wrapped(model, lambda s, z: s.layers[0](z), layers=nn.ModuleList([_extra(x)])),
        x,
        y,
        loss,
    )


def teacher(m: Made) -> Any:
    model, x, y, loss = m

    @torch.no_grad()
    def before(s: Any, z: Tensor) -> Tensor:
        return s.layers[0](z)

    return Wrapped(model, before, layers=[_extra(x)]), x, y, loss


def frozen_constant(m: Made) -> Any:
    model, x, y, loss = m
    scale = torch.full((x.shape[-1],), 0.9)
    return Wrapped(model, lambda s, z: z * s.scale, scale=scale), x, y, loss


def turned_twice(m: Made) -> Any:
    model, x, y, loss = m
    return Wrapped(model, lambda _, z: z.transpose(0, 1).contiguous().transpose(0, 1)), x, y, loss


def folded(m: Made) -> Any:
    model, x, y, loss = m
    return Wrapped(model, lambda _, z: z.reshape(-1, z.shape[-1]).reshape(z.shape)), x, y, loss


def running_mean_by_hand(m: Made) -> Any:
    model, x, y, loss = m

    def before(s: Any, z: Tensor) -> Tensor:
        return z - (z.mean(0) if s.training else x.mean(0))

    return Wrapped(model, before), x, y, loss


def many(m: Made) -> Any:
    model, x, y, loss = m
    return Normed(_norm_for(x), model), x, y, loss


def other_norm(m: Made) -> Any:
    model, x, y, loss = m
    norm = nn.GroupNorm(1, x.shape[1]) if x.dim() == 4 else nn.LayerNorm(x.shape[-1])
    return Normed(norm, model), x[:1] if x.dim() == 4 else x, y[:1] if x.dim() == 4 else y, loss


def usual_dropout(m: Made) -> Any:
    return dropped(0.2, "functional")(m)


def dropout_off(m: Made) -> Any:
    model, *rest = dropped(0.95, "module")(m)
    return (model.eval(), *rest)


def same_data(m: Made) -> Any:
    model, x, y, loss = m
    normed = Normed(_norm_for(x), model)
    with torch.no_grad():
        for _ in range(60):
            normed(x)
    return normed, x, y, loss


def learned(m: Made) -> Any:
    fit(m, torch.optim.Adam(m[0].parameters(), 3e-3), 60)
    return m


ALIKE: dict[Change, tuple[str, ...]] = {
    registered: tuple(NUMBERS),
    teacher: tuple(NUMBERS),
    frozen_constant: tuple(NUMBERS),
    turned_twice: tuple(NUMBERS),
    folded: tuple(NUMBERS),
    running_mean_by_hand: tuple(NUMBERS),
    many: tuple(NUMBERS),
    other_norm: ("convolutions", "transformer", "perceptron", "functional"),
    usual_dropout: tuple(NUMBERS),
    dropout_off: tuple(NUMBERS),
    same_data: ("perceptron", "functional", "convolutions", "transformer", "batch-norm"),
    learned: tuple(NETS),
}


def look_alikes() -> list[Case]:
    return [
        case(change.__name__.replace("_", "-"), "", net, change)
        for change, nets in ALIKE.items()
        for net in nets
    ]
