"""What the healthy networks are trained with: a loss and an optimiser at its usual rate.

Most bring their loss. The others get here what their papers minimise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.cases import Subject

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMISERS: dict[str, Make] = {
    "SGD 0.01": lambda p: torch.optim.SGD(p, lr=0.01),
    "SGD 0.01, momentum 0.9": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adam 0.001": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW 0.001": lambda p: torch.optim.AdamW(p, lr=1e-3),
}

# Where the turn would give one that nobody uses there: the reason, and what is taken instead.
UNUSUAL = {
    # All in bfloat16, SGD's updates at this rate are rounded away, which is reported.
    "mlp-bfloat16": ("Adam 0.001", "AdamW 0.001"),
    # Adam and AdamW refuse sparse gradients.
    "embedding-bag-sparse": ("SGD 0.01", "SGD 0.01, momentum 0.9"),
}


def optimiser(network: str, turn: int) -> tuple[str, Make]:
    """The optimiser whose turn it is, by its name in the tables and as a function."""
    names = UNUSUAL.get(network, tuple(OPTIMISERS))
    name = names[turn % len(names)]
    return name, OPTIMISERS[name]


def named(make: Make) -> str:
    """How the tables call an optimiser: its class, rate and momentum."""
    made = make([nn.Parameter(torch.zeros(1))])
    [group] = made.param_groups
    momentum = f", momentum {group['momentum']:g}" if group.get("momentum") else ""
    return f"{type(made).__name__} {group['lr']:g}{momentum}"


def _itself(output: Tensor, _: Tensor) -> Tensor:
    """The loss of a model that returns it."""
    return output


def _logits(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits, target)


class Fooling:
    """The generator's loss of Goodfellow et al. 2014, against a critic with random weights."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.critic = nn.Sequential(
                nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1),
                nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1),
            ).requires_grad_(False)  # fmt: skip

    def __call__(self, pictures: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.critic(pictures), target)


_RETURNS_ITS_LOSS = [
    "vector-quantised",
    "skip-gram",
    "momentum-contrast",
    "bootstrap-your-own-latent",
    "siamese-triplet",
    "physics-informed",
]
_GENERATORS = ["dcgan-generator", "residual-gan-generator", "style-generator"]


def with_loss(network: str, subject: Subject) -> Subject:
    """The subject with a target and a loss, where its recipe brings none."""
    if network in _RETURNS_ITS_LOSS:
        return subject._replace(target=torch.zeros(1), loss_fn=_itself)
    if network in _GENERATORS:
        return subject._replace(target=torch.ones(len(subject.batch), 1), loss_fn=Fooling())
    if network == "deit":
        classes = torch.arange(len(subject.batch["pixel_values"])) % 2
        return subject._replace(target=classes, loss_fn=_logits)
    return subject
