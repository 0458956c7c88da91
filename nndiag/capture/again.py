"""A second look at parameters whose gradient is zero: with other seeds, and after a small step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from nndiag.batch import Batch, detached
from nndiag.capture.backward import without_other_gradients
from nndiag.capture.step import STEP
from nndiag.capture.untouched import SavedState
from nndiag.loss import LossMaker
from nndiag.stats import Parameter

__all__ = ["LATER", "NEVER", "OTHER_SEED", "look_again", "unexplained"]

OTHER_SEED, LATER, NEVER = "other seed", "later step", "never"
_SEEDS = 4  # a branch that is dropped half of the time is dropped in all of five with 3 %
_STEPS = 3  # a head, a branch's end and a scale inside it may each start at zero

_Gradients = Mapping[str, torch.Tensor | None]


def unexplained(
    measured: Mapping[str, Parameter], weight_of: Mapping[str, str], random: bool
) -> frozenset[str]:
    """The trainable parameters whose missing gradient a second look may explain.

    Those that are exactly zero; in a model that draws random numbers also those that got none.
    Not a bias whose weight has a gradient: its own is the sum of the same values. ``weight_of``:
    the weight beside a bias.
    """
    without = {
        name
        for name, p in measured.items()
        if p.trainable and (random if p.grad is None else 0 < p.grad.total == p.grad.zeros)
    }
    return frozenset(
        name for name in without if name not in weight_of or weight_of[name] in without
    )


def look_again(
    model: nn.Module,
    batch: Batch,
    loss: LossMaker,
    names: Collection[str],
    gradients: _Gradients,
    saved: SavedState,
    first_function: int,
    random: bool,
) -> dict[str, str]:
    """For each of these parameters what gives it a gradient: OTHER_SEED, LATER, or NEVER.

    ``gradients``: those of all parameters in the first backward. ``random``: whether the model
    draws random numbers, so that another seed makes a difference.
    """
    named = dict(model.named_parameters())
    found: dict[str, str] = {}

    def gradients_now() -> dict[str, torch.Tensor | None]:
        args, kwargs = detached((batch.args, dict(batch.kwargs)))
        output = model(*args, **kwargs)
        _, value = loss(output, Batch(target=detached(batch.target)))
        with without_other_gradients(value, named.values(), first_function, set()) as foreign:
            torch.autograd.backward(value, retain_graph=foreign)
        return {name: p.grad for name, p in named.items()}

    def note(what: str, now: _Gradients) -> bool:
        """Whether a gradient reached one of those that are still without."""
        waiting = [name for name in names if name not in found]
        reached = [name for name, any_ in zip(waiting, _nonzero(waiting, now), strict=True) if any_]
        found.update(dict.fromkeys(reached, what))
        return bool(reached)

    try:
        for turn in range(_SEEDS if random else 0):
            if len(found) == len(names):
                break
            saved.reset()
            saved.reseed(turn + 1)
            note(OTHER_SEED, gradients_now())
        saved.reset()
        now = gradients
        for _ in range(_STEPS):
            if len(found) == len(names):
                break
            _nudge(named, now)
            saved.start()  # not reset: the steps add up
            now = gradients_now()
            if not note(LATER, now):
                break
    except Exception:  # where the model or its loss fails on other values, nothing more is known
        return found
    finally:
        saved.reset()
    return {name: found.get(name, NEVER) for name in names}


@torch.no_grad()
def _nonzero(names: Iterable[str], gradients: _Gradients) -> list[bool]:
    """Which of these gradients are not all zero; read from the device at once."""
    known = [gradients.get(name) for name in names]
    flags = [g.abs().max() > 0 for g in known if g is not None and g.numel()]
    read = iter(torch.stack([f.to(flags[0].device) for f in flags]).tolist() if flags else ())
    return [next(read) if g is not None and g.numel() else False for g in known]


@torch.no_grad()
def _nudge(named: Mapping[str, nn.Parameter], gradients: _Gradients) -> None:
    """Move each parameter against its gradient, by ``STEP`` of its norm.

    One that is zero moves by as much as one whose values are all of size 1.
    """
    for name, p in named.items():
        grad = gradients[name]
        if grad is None or grad.layout != torch.strided or not p.numel():
            continue
        grad = grad.to(p.dtype)
        tiny = torch.finfo(p.dtype).tiny
        direction = grad / grad.abs().max().clamp(min=tiny)  # squares of tiny values underflow
        direction = direction / torch.linalg.vector_norm(direction).clamp(min=tiny)
        direction = direction.nan_to_num(0.0, 0.0, 0.0)
        norm = torch.linalg.vector_norm(p)
        p.data.sub_(direction * torch.where(norm > 0, norm, p.numel() ** 0.5) * STEP)
