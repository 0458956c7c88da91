"""Every labelled fault repaired, and trained before and after.

A case counts as repaired if, after :func:`nndiag.repair` with ``allow="all"``, the fault's rule has
no error and no warning and no other rule has one that it had not before. The trial trains the
faulty and the repaired network on the corpus' own data, from the same seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

import nndiag
from calibration import nets
from calibration.cases import Fault
from calibration.faults import FAULTS, KINDS
from nndiag.progress import silenced

STEPS = 200
SEEDS = 5
BATCH = 64

# Where the fault is not in the model's weights or layers, so that no surgery reaches it.
ELSEWHERE: dict[str, str] = {
    "batch-blended": "forward blends the samples",
    "one-for-all": "forward puts one sample in place of all",
    "loss-tiny": "the loss is multiplied by 1e-30 and less",
    "detached": "forward detaches",
    "data": "forward uses .data",
    "rounded": "forward rounds",
    "through-numpy": "forward goes through NumPy",
    "never-called": "forward forgets a layer",
    "thrown-away": "forward forgets an output",
    "nan-by-log": "forward takes the logarithm",
    "nan-by-sqrt": "forward takes the root",
    "nan-by-division": "forward divides",
    "nan-by-exp": "forward takes the exponential",
    "nan-by-power": "forward takes the power",
    "input-nan": "the data hold NaN",
    "gradient-nan": "forward takes a norm at zero",
    "float16-overflow": "forward scales beyond float16",
}


# Where forward puts a scale or a shift between the layers: weights can make up for most of them.
IN_FORWARD = frozenset(
    {"unscaled-hidden", "sigmoid-shifted", "damped", "damped-once", "amplified", "amplified-once"}
)


def mendable() -> list[Fault]:
    return [case for case in FAULTS if case.sick and case.kind not in ELSEWHERE]


def row(name: str) -> dict[str, Any]:
    """One case, repaired and tried."""
    torch.set_num_threads(1)
    case = next(case for case in FAULTS if case.name == name)
    subject = case.build()
    with silenced():
        repair = nndiag.repair(
            *subject,
            allow="all",
            config=False,
            trial_steps=STEPS,
            trial_seeds=SEEDS,
            trial_data=_data(case),
            optimizer=lambda p: torch.optim.Adam(p, 2e-3),  # as nets.train
        )
    tried = repair.trial
    assert tried is not None
    before = {f.rule for f in repair.before.at_least("warning")}
    after = {f.rule for f in repair.after.at_least("warning")}
    return {
        "case": case.name,
        "kind": case.kind,
        "rule": case.rule,
        "state": case.state,
        "silent": case.rule not in after,
        "new": " ".join(sorted(after - before)),
        "left": " ".join(sorted(after & before)),
        "steps": " ".join(step.fix.kind for step in repair.taken),
        "refused": " ".join(step.fix.kind for step in repair.refused),
        "trial": tried.verdict,
        "loss_before": _typical(tried.final_before),
        "loss_after": _typical(tried.final_after),
        "p": tried.p_value,
    }


def _data(case: Fault) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the corpus trains on."""
    source = next((s for s in ("wine", "cancer") if f"-{s}" in case.name), "digits")
    x, y = nets.data(case.architecture, source)
    size = len(x) * 9 // 10
    return list(zip(x[:size].split(BATCH), y[:size].split(BATCH), strict=True))


def _typical(losses: Any) -> float:
    return float(pd.Series(losses).median())


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """What the page says of all cases."""
    good = table["silent"] & (table["new"] == "")
    repaired = table[good]
    return {
        "cases": len(table),
        "repaired": int(good.sum()),
        "worse": int((table["new"] != "").sum()),
        "tried": len(repaired),
        "better": int((repaired["trial"] == "better").sum()),
        "ties": int((repaired["trial"] == "tie").sum()),
        "trained_worse": int((repaired["trial"] == "worse").sum()),
    }


def rows(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for kind, part in table.groupby("kind", sort=False):
        steps = part["steps"].str.split().explode().value_counts()
        yield {
            "kind": kind,
            "what": KINDS[str(kind)],
            **summary(part),
            "steps": ", ".join(f"{name} {n}" for name, n in steps.items()),
        }
