"""A training trial: its verdict in words, the final losses, and the curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nndiag.render import story
from nndiag.render.picture import BLOCKS, plain

if TYPE_CHECKING:
    from nndiag.fixes.trial import Trial

__all__ = [
    "DIVERGED",
    "MOST_DRAWN",
    "MOST_POINTS",
    "SHORTLY",
    "WIDE",
    "Final",
    "chart",
    "curves",
    "finals",
    "verdict",
]

MOST_POINTS = 200
"""The most points of a curve on a page; longer runs are averaged over a few steps each."""
MOST_DRAWN = 20
"""The most seeds with their own curve; the mean is over all seeds."""
WIDE = 100.0
"""Losses that span more than this factor are drawn on a logarithmic axis."""
DIVERGED = "×"

SHORTLY = {
    "better": "In the training trial, the repaired model trained better.",
    "worse": "But in the training trial, the repaired model trained worse.",
    "tie": "In the training trial, the loss showed no difference beyond chance.",
}


@dataclass(frozen=True)
class Final:
    """The final losses of one side: over the runs that did not diverge, and how many did."""

    mean: float
    low: float
    high: float
    runs: int
    diverged: int

    def __str__(self) -> str:
        if self.diverged == self.runs:
            return f"all {self.runs} runs diverged" if self.runs > 1 else "the run diverged"
        mean, low, high = map(story.number, (self.mean, self.low, self.high))
        text = mean if low == high else f"{mean} ({low} to {high})"
        return text + (f", {self.diverged} of {self.runs} diverged" if self.diverged else "")


def finals(trial: Trial) -> tuple[Final, Final]:
    """The losses at the end (means over the last tenth of the steps), before and after."""
    return _final(trial.final_before), _final(trial.final_after)


def _final(losses: np.ndarray) -> Final:
    known = losses[np.isfinite(losses)]
    lost = len(losses) - len(known)
    if not len(known):
        return Final(np.nan, np.nan, np.nan, len(losses), lost)
    return Final(float(_mean(known, 0)), float(known.min()), float(known.max()), len(losses), lost)


def verdict(trial: Trial) -> str:
    """Which trains better, the final losses, and whether chance explains the difference."""
    old, new = finals(trial)
    text = f"the final loss was {old}, is {new}"
    if any(final.diverged == final.runs for final in (old, new)):
        text = f"before, {old}; after, {new}"
    return f"{_opening(trial)}: {text}, {_chance(trial)}."


def _opening(trial: Trial) -> str:
    if trial.verdict != "tie":
        word = {"better": "Better", "worse": "Worse"}[trial.verdict]
        return word if _is_certain(trial) else f"{word} beyond chance"
    if np.array_equal(trial.final_before, trial.final_after):
        return "No difference"
    if len(trial.seeds) == 1:
        return "Undecided (one run each)"
    if trial.p_value < 0.05:  # beyond chance, but tiny
        return "Too small a difference to matter"
    return "No difference beyond chance"


def _chance(trial: Trial) -> str:
    seeds = f"over {story.plural(len(trial.seeds), 'seed')}"
    p = trial.p_value
    if np.isnan(p):
        return seeds
    if _is_certain(trial):
        return f"{seeds}, all with the same result: nothing here is random"
    return f"{seeds}, p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}"


def _is_certain(trial: Trial) -> bool:
    """Whether several seeds all give the same loss, so that no test of chance applies."""
    both = np.array([trial.final_before, trial.final_after])
    return both.shape[1] > 1 and bool((both == both[:, :1]).all() and np.isfinite(both).all())


# -- curves -------------------------------------------------------------------------------------


def curves(trial: Trial, width: int = 40) -> tuple[str, str]:
    """The mean losses before and after as lines of text, on one scale: ``"█▆▄▃▂▁▁"``.

    A ``×`` ends the line where all seeds have diverged.
    """
    lines = [_thinned(_mean(losses, 0), width) for losses in (trial.before, trial.after)]
    log = _is_wide(trial.before, trial.after)
    drawn = [np.log(line) if log else line for line in lines]
    known = np.concatenate([line[np.isfinite(line)] for line in drawn])
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    before, after = (_blocks(line, low, high) for line in drawn)
    return before, after


def _blocks(line: np.ndarray, low: float, high: float) -> str:
    text = ""
    for value in line:
        if not np.isfinite(value):
            return text + DIVERGED
        tall = (value - low) / (high - low) if high > low else 0.0
        text += BLOCKS[min(7, int(tall * 8))]
    return text


def chart(trial: Trial) -> dict[str, Any]:
    """Plain data for the page's chart: steps (from 1), and for each side a line per seed and the
    mean of the runs that have not diverged; None after a run diverges."""
    steps = _thinned(np.arange(1.0, trial.before.shape[1] + 1), MOST_POINTS)
    sides = {
        name: {
            "seeds": [_row(line) for line in losses[:MOST_DRAWN]],
            "mean": _row(_mean(losses, 0)),
        }
        for name, losses in (("before", trial.before), ("after", trial.after))
    }
    return {
        "steps": [plain(step) for step in steps],
        "log": _is_wide(trial.before, trial.after),
        "losses": sides,
    }


def _row(line: np.ndarray) -> list[float | None]:
    return [plain(value) for value in _thinned(line, MOST_POINTS)]


def _is_wide(*losses: np.ndarray) -> bool:
    known = np.concatenate([line[np.isfinite(line)] for line in losses])
    return bool(len(known) and known.min() > 0 and known.max() > WIDE * known.min())


def _thinned(line: np.ndarray, most: int) -> np.ndarray:
    """Means over groups of neighbours, so that at most ``most`` values are left."""
    parts = np.array_split(line, min(most, len(line)))
    return np.array([_mean(part, 0) for part in parts])


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the finite values; NaN where there are none."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    with np.errstate(over="ignore"):
        total = np.where(finite, values, 0.0).sum(axis)
    mean: np.ndarray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean
