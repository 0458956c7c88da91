"""nndiag's verdicts on the corpus, held against the labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

import nndiag
from calibration.cases import Fault, Healthy, Subject
from nndiag.report import Report
from nndiag.rule import Finding, Threshold
from nndiag.rules import discover

FACTORS = (1 / 4, 1 / 2, 1 / 1.5, 1 / 1.2, 1.0, 1.2, 1.5, 2.0, 4.0)
# No curve: how much evidence is enough, what is worth a note, and what makes a warning an error.
NO_CURVE = {
    "saturation.samples", "saturation.values", "dead-relu.samples", "dead-relu.confidence",
    "signal-collapse.samples", "non-zero-centered.fan_in", "costly-activation.times_relu",
    "dense-activation.zero_fraction", "covariate-shift.shift", "covariate-shift.drift",
    "vanishing-gradient.stall", "exploding-gradient.overflow", "signal-collapse.gone",
    "init-scale.stall", "init-scale.times",
}  # fmt: skip

Curve = dict[tuple[str, str, float], bool]


@dataclass(frozen=True)
class Alarm:
    """A finding of severity warning or error."""

    rule: str
    layer: str
    severity: str
    root: str  # the rule at the beginning of its chain of causes

    @classmethod
    def of(cls, finding: Finding) -> Alarm:
        return cls(finding.rule, finding.layer, finding.severity, finding.root.rule)


class Verdict(NamedTuple):
    """What one check said, as far as the corpus asks."""

    name: str
    alarms: tuple[Alarm, ...]
    evidence: float  # of the case's rule: what it held against its threshold
    threshold: float
    measure: str
    crashed: int
    curve: Curve


def check(subject: Subject) -> Report:
    return nndiag.check(*subject, config=False)


def verdict(case: Fault | Healthy, subject: Subject) -> Verdict:
    return verdict_of(case, check(subject))


def verdict_of(case: Fault | Healthy, report: Report, curves: bool = True) -> Verdict:
    rule = case.rule if isinstance(case, Fault) else ""
    own = next((f for f in report.findings if f.rule == rule), None)
    return Verdict(
        case.name,
        tuple(map(Alarm.of, report.at_least("warning"))),
        own.evidence.get(own.measure, np.nan) if own else np.nan,
        own.threshold if own and own.threshold is not None else np.nan,
        own.measure if own else "",
        len(report.crashed),
        curve(report) if curves else {},
    )


# -- one case --------------------------------------------------------------------------------------


class Marks(NamedTuple):
    """How a verdict on a fault did. On a negative, ``found`` is a false alarm."""

    found: bool  # the rule alarms anywhere
    leading: bool  # and its alarm is the first finding
    localised: bool  # and its first alarm names a right place
    folded: bool  # or it is found, as a consequence of another
    false: tuple[str, ...]  # rules that alarm, but neither should nor follow from what should


_SPOILT = ("constant-layer", "dead-sign", "drowned-by-bias", "tanh-bias", "weights-large")
_BY_TRAINING = (
    "dead-by-rate", "diverged", "gate-weights", "parameter-inf", "weights-small", "zero-layer",
    "zero-lstm",
)  # fmt: skip
TRUE_AS_WELL: dict[str, frozenset[str]] = {
    # The loss is worse than that of a constant output, as no label of the corpus says.
    **dict.fromkeys(_SPOILT, frozenset({"loss-at-init"})),
    # The network was trained, its loss is no better than a constant's, and a new one is healthy.
    **dict.fromkeys(_BY_TRAINING, frozenset({"training-damage"})),
    # What BatchNorm adds was changed after its averages were taken.
    "dead-beta": frozenset({"train-eval-gap"}),
    # Samples are blended with the mean of their batch, weakly in the near misses, too.
    "batch-blended": frozenset({"batch-mixing"}),
}
"""By kind: what rules about the experiment rightly say beside the label."""


def mark(case: Fault, said: Verdict) -> Marks:
    also = case.also | TRUE_AS_WELL.get(case.kind, frozenset())
    own = [alarm for alarm in said.alarms if alarm.rule == case.rule]
    return Marks(
        found=bool(own),
        leading=bool(said.alarms) and said.alarms[0].rule == case.rule,
        localised=bool(own) and right_place(own[0].layer, case.where),
        folded=bool(own) and own[0].root != case.rule,
        false=tuple(
            dict.fromkeys(
                a.rule
                for a in said.alarms
                if a.rule not in also and (not case.sick or case.rule not in (a.rule, a.root))
            )
        ),
    )


def right_place(layer: str, where: frozenset[str]) -> bool:
    """Any call of a layer is that layer."""
    return re.sub(r"@\d+", "", layer) in where


# -- all of them -----------------------------------------------------------------------------------


def table(
    cases: Sequence[Fault], verdicts: Sequence[Verdict], label: dict[str, float]
) -> pd.DataFrame:
    """A row for each case."""
    rows: list[dict[str, Any]] = []
    for case, said in zip(cases, verdicts, strict=True):
        marks = mark(case, said)
        first = said.alarms[0] if said.alarms else None
        rows.append(
            {
                "case": case.name,
                "kind": case.kind,
                "rule": case.rule,
                "architecture": case.architecture,
                "form": case.form,
                "state": case.state,
                "strength": case.strength,
                "sick": case.sick,
                "label": label[case.name],
                "limit": case.limit,
                "found": marks.found,
                "leading": marks.leading,
                "localised": marks.localised,
                "folded": marks.folded,
                "first_rule": first.rule if first else "",
                "first_layer": first.layer if first else "",
                "severity": first.severity if first else "",
                "measure": said.measure,
                "evidence": said.evidence,
                "threshold": said.threshold,
                "false_alarms": " ".join(marks.false),
                "crashed": said.crashed,
            }
        )
    return pd.DataFrame(rows)


def quiet(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """A row for each healthy run, with the rules that alarm."""
    return pd.DataFrame(
        {"network": v.name, "rules": " ".join(dict.fromkeys(a.rule for a in v.alarms))}
        for v in verdicts
    )


class Share(NamedTuple):
    """So many of so many, with the exact 95 % interval of Clopper & Pearson 1934."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        return self.hits / self.of if self.of else np.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.of:
            return np.nan, np.nan
        low, high = stats.binomtest(self.hits, self.of).proportion_ci(method="exact")
        return float(low), float(high)

    def __str__(self) -> str:
        if not self.of:
            return "–"
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f}–{high:.3f}; {self.hits}/{self.of})"


SHARES = ("recall", "cause", "localisation", "precision", "specificity")


def rules(cases: pd.DataFrame, healthy: pd.DataFrame) -> list[dict[str, Any]]:
    """For each rule that can alarm, and for all together: the five shares.

    Precision: of the networks on which the rule alarms, those where it should (it was injected, or
    what was injected explains it). Specificity: of the networks where it should not alarm (the
    negatives, and the healthy ones), those where it does not.
    """
    lines = []
    wrong = pd.concat([cases["false_alarms"], healthy["rules"]]).str.split().explode().dropna()
    for rule in sorted({*cases["rule"], *wrong}):
        own = cases[(cases["rule"] == rule) & cases["sick"]]
        lines.append({"rule": rule, **_shares(own, cases, healthy, rule)})
    sick = cases[cases["sick"]]
    lines.append({"rule": "all", **_shares(sick, cases, healthy, None)})
    return lines


def _shares(
    own: pd.DataFrame, cases: pd.DataFrame, healthy: pd.DataFrame, rule: str | None
) -> dict[str, Any]:
    found, well = own[own["found"]], ~cases["sick"]
    # On faults of other kinds an alarm with another root is false, too.
    false = _alarmed(cases["false_alarms"], rule)
    alarmed = _alarmed(healthy["rules"], rule)
    wrong = int(false.sum() + alarmed.sum())
    quiet = int((~false[well]).sum() + (~alarmed).sum())
    return {
        "faults": len(own),
        "negatives": int((well & (cases["rule"] == rule)).sum() if rule else well.sum()),
        "recall": Share(int(own["found"].sum()), len(own)),
        "cause": Share(int(own["leading"].sum()), len(own)),
        "localisation": Share(int(found["localised"].sum()), len(found)),
        "precision": Share(len(found), len(found) + wrong),
        "specificity": Share(quiet, int(well.sum()) + len(healthy)),
    }


def _alarmed(column: pd.Series[str], rule: str | None) -> pd.Series[bool]:
    return column.str.len() > 0 if rule is None else column.str.split().map(lambda r: rule in r)


# -- other thresholds ------------------------------------------------------------------------------


def thresholds() -> Iterator[tuple[str, str, Threshold]]:
    """Rule, name and threshold: those that say how sick is sick."""
    for rule, module in discover().items():
        for name, threshold in module.RULE.thresholds.items():
            if f"{rule}.{name}" not in NO_CURVE:
                yield rule, name, threshold


def moved(threshold: Threshold, factor: float) -> float:
    """The threshold times a factor, within what is legal."""
    return min(max(threshold.value * factor, threshold.low), threshold.high)


def curve(report: Report) -> Curve:
    """Whether a rule alarms on the same measurements when one of its thresholds is moved."""
    found: Curve = {}
    for rule, name, threshold in thresholds():
        for factor in FACTORS:
            other = report.judge(
                select=rule, thresholds={f"{rule}.{name}": moved(threshold, factor)}
            )
            found[rule, name, factor] = any(f.rule == rule for f in other.at_least("warning"))
    return found


def curves(
    cases: Sequence[Fault], verdicts: Sequence[Verdict], healthy: Sequence[Verdict]
) -> pd.DataFrame:
    """Recall on a rule's faults, and its alarms on its negatives and on healthy networks."""
    rows = []
    for rule, name, threshold in thresholds():
        pairs = [(c, v) for c, v in zip(cases, verdicts, strict=True) if c.rule == rule]
        for factor in FACTORS:
            key = rule, name, factor
            sick = [v.curve[key] for c, v in pairs if c.sick]
            well = [v.curve[key] for c, v in pairs if not c.sick]
            sound = [v.curve[key] for v in healthy]
            rows.append(
                {
                    "rule": rule,
                    "threshold": name,
                    "factor": round(factor, 3),
                    "value": moved(threshold, factor),
                    "faults": len(sick),
                    "recall": np.mean(sick) if sick else np.nan,
                    "negatives": len(well),
                    "negatives_alarmed": sum(well),
                    "healthy": len(sound),
                    "healthy_alarmed": sum(sound),
                }
            )
    return pd.DataFrame(rows)
