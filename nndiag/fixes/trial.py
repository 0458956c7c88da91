"""Does a repaired model train better? Losses before and after, with equal seeds and data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import nn

from nndiag.batch import Batch
from nndiag.capture.untouched import untouched
from nndiag.errors import LossError, SettingsError
from nndiag.loss import LossMaker

__all__ = [
    "CONFIDENCE",
    "FINAL_SHARE",
    "TIE_SHARE",
    "UNLEARNED_SHARE",
    "Optimizer",
    "Training",
    "Trial",
    "Verdict",
    "checked_optimizer",
    "default_optimizer",
]

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Verdict = Literal["better", "worse", "tie"]

CONFIDENCE = 0.95
FINAL_SHARE = 0.1
"""The final loss is the mean over this share of the steps, the last ones."""
TIE_SHARE = 0.02
"""Final losses that differ by less than this share of the larger are a tie, even if all seeds
agree: nobody would change a network for it."""
UNLEARNED_SHARE = 1e-3
"""Final losses that differ by less than this share of the repaired run's first loss are a tie, too:
both runs have learned all there is, and the rest of the loss is noise."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Losses of a training run from each seed, before and after: arrays (seeds, steps)."""

    seeds: tuple[int, ...]
    before: np.ndarray
    after: np.ndarray

    @property
    def final_before(self) -> np.ndarray:
        """For each seed the mean loss over the last steps; infinite where the run diverged."""
        return _final(self.before)

    @property
    def final_after(self) -> np.ndarray:
        return _final(self.after)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of a paired t-test over the seeds; NaN if it cannot be computed.

        On logarithms, if all losses are positive: losses near zero vary by factors.
        """
        old, new = self._scaled
        if len(old) < 2 or not np.isfinite([old, new]).all():
            return math.nan
        if np.ptp(old - new) == 0:  # nothing is random in either run
            return 1.0 if old[0] == new[0] else 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            return float(stats.ttest_rel(old, new).pvalue)

    @property
    def _scaled(self) -> tuple[np.ndarray, np.ndarray]:
        """The final losses on the scale on which they are compared."""
        old, new = self.final_before, self.final_after
        return (np.log(old), np.log(new)) if min(old.min(), new.min()) > 0 else (old, new)

    @property
    def _is_negligible(self) -> bool:
        """Whether the final losses are so close that the seeds do not matter."""
        both = np.isfinite(self.final_before) & np.isfinite(self.final_after)
        old, new = self.final_before[both], self.final_after[both]
        start = float(np.median(self.after[:, 0]))
        if abs(np.median(old) - np.median(new)) <= UNLEARNED_SHARE * max(start, 0.0) < math.inf:
            return True
        if min(old.min(), new.min()) > 0:  # by their geometric means
            return bool(abs(np.log(old / new).mean()) <= -math.log1p(-TIE_SHARE))
        return bool(abs((old - new).mean()) <= TIE_SHARE * max(abs(old.mean()), abs(new.mean())))

    @property
    def verdict(self) -> Verdict:
        """ "better" or "worse" if the difference is beyond chance and not negligible; else "tie".

        A run that diverges is worse than any run that does not.
        """
        diverged = [int((~np.isfinite(x)).sum()) for x in (self.final_before, self.final_after)]
        if diverged[0] != diverged[1]:
            # Diverging in a few more seeds is no verdict; in more than half of them it is.
            if abs(diverged[0] - diverged[1]) <= len(self.seeds) / 2:
                return "tie"
            return "better" if diverged[0] > diverged[1] else "worse"
        both = np.isfinite(self.final_before) & np.isfinite(self.final_after)
        if not both.any():
            return "tie"
        if self._is_negligible or not self.p_value < 1 - CONFIDENCE:
            return "tie"
        old, new = self._scaled
        return "better" if old[both].mean() > new[both].mean() else "worse"


def _final(losses: np.ndarray) -> np.ndarray:
    final = losses[:, -max(1, round(FINAL_SHARE * losses.shape[1])) :]
    with np.errstate(invalid="ignore", over="ignore"):
        mean: np.ndarray = final.mean(axis=1)
    return np.where(np.isfinite(mean), mean, np.inf)


@dataclass(frozen=True)
class Training:
    """How a trial trains: on these batches, for so many steps, once from each seed.

    Raises:
        SettingsError: no steps, or no seeds.
    """

    batches: Sequence[Batch]
    loss: LossMaker
    optimizer: Optimizer
    steps: int
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.seeds:
            raise SettingsError(
                f"a trial of {self.steps} steps from {len(self.seeds)} seeds: give 1 or more."
            )

    def losses(
        self, make: Callable[[int], nn.Module], tick: Callable[[], object] = lambda: None
    ) -> np.ndarray:
        """The losses of a copy of ``make(seed)``, for each seed: an array (seeds, steps).

        Raises:
            LossError: there is no loss to train on.
        """
        losses = [
            _train(make(s), self.batches, self.loss, self.optimizer, self.steps, s, tick)
            for s in self.seeds
        ]
        return np.array(losses)

    def compare(self, before: np.ndarray, after: np.ndarray) -> Trial:
        return Trial(self.seeds, before, after)


def _train(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: LossMaker,
    optimizer: Optimizer,
    steps: int,
    seed: int,
    tick: Callable[[], object],
) -> list[float]:
    """The loss at each step, NaN once the run has diverged. The order of batches is seeded."""
    order = np.random.default_rng(seed)
    losses: list[float] = []
    queue: list[int] = []
    with untouched(seed):
        trained = copy.deepcopy(model)
        trainer = optimizer([p for p in trained.parameters() if p.requires_grad])
        for _ in range(steps):
            queue = queue or order.permutation(len(batches)).tolist()
            batch = batches[queue.pop()]
            trainer.zero_grad(set_to_none=True)
            kind, value = loss(trained(*batch.args, **batch.kwargs), batch)
            if kind == "random cotangent":
                raise LossError(
                    "a training trial needs a loss: pass loss_fn (and a target), or a model that "
                    "returns its own loss."
                )
            losses.append(float(value.detach()))
            tick()
            if not math.isfinite(losses[-1]):
                break
            value.backward()  # type: ignore[no-untyped-call]
            trainer.step()
    return losses + [math.nan] * (steps - len(losses))


def default_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam at its default learning rate of 1e-3."""
    return torch.optim.Adam(parameters)


def checked_optimizer(optimizer: Any) -> Optimizer:
    """The function that makes the optimiser; Adam's for None.

    Raises:
        SettingsError: not a function from parameters to an optimiser.
    """
    if optimizer is None:
        return default_optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        raise SettingsError(
            f"optimizer is a {type(optimizer).__name__} that holds the parameters of one model, "
            "but a trial trains copies. Give a function: lambda parameters: "
            f"torch.optim.{type(optimizer).__name__}(parameters, lr=…)."
        )
    if not callable(optimizer):
        raise SettingsError(
            f"optimizer is {optimizer!r}: give a function from parameters to an optimiser, such as "
            "lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
        )
    make: Optimizer = optimizer
    return make
