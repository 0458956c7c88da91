"""What the corpus is made of: a subject to check, and what is true of it, found without nndiag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn


class Subject(NamedTuple):
    """What ``nndiag.check`` takes."""

    model: nn.Module
    batch: Any
    target: Any = None
    loss_fn: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Fault:
    """A network with one fault in it, or with almost one: a negative, just below the threshold.

    ``measure`` computes the label from the subject's tensors with torch alone; larger is worse, and
    beyond ``limit`` the case is ``sick``. What it gave when the corpus was made is stored beside
    the case, in ``labels.csv``, so that a drifting label shows.
    """

    name: str  # "tanh-bias/mlp-tanh/module/init/8": unique
    kind: str  # what was injected: "tanh-bias", "dead-bias", "zero-all", …
    rule: str  # the rule that should find it, and lead with it
    architecture: str  # "mlp", "cnn", "residual", "lstm", "encoder", "decoder", "autoencoder"
    form: str  # "module" or "functional"
    state: str  # "init" or "trained"
    strength: float  # how strong, in the kind's own unit
    sick: bool
    where: frozenset[str]  # layers and parameters that are the right place
    build: Callable[[], Subject]  # the same every time
    measure: Callable[[Subject], float]
    limit: float
    also: frozenset[str] = frozenset()  # other rules that are right to alarm, if they do


@dataclass(frozen=True)
class Healthy:
    """A network that nothing is wrong with."""

    name: str
    family: str  # "mlp", "cnn", "residual", "recurrent", "transformer", "autoencoder", …
    state: str  # "init" or "trained"
    build: Callable[[int], Subject]  # from a seed
