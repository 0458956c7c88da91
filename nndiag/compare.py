"""Two reports on one model, before and after a change: what differs by more than chance.

Two runs with different seeds and batches never agree exactly. So a number counts as different only
beyond a band. The band has two parts: chance, from theory and the number of values, and a slack
too small to matter. ``reports/comparison`` measures the rate of false differences over thousands
of pairs, and which changes are seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nndiag import activations, flow, graph, judge, ops, rule, rules, theory
from nndiag.pairing import (
    SLACK,
    SLACK_OF_LEARNED,
    Kind,
    Outline,
    Pair,
    new_names,
    outlined,
    paired,
    paired_parameters,
)
from nndiag.render import formats
from nndiag.render.formats import Document
from nndiag.rule import Finding
from nndiag.stats import Layer, Parameter, Snapshot, TensorStats

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = [
    "CHANCE",
    "FEW",
    "SLACK_OF_FINDINGS",
    "Change",
    "Comparison",
    "Difference",
    "compare",
    "structure",
]

CHANCE = 4.5
"""Half-width of a band in standard deviations: 7 in a million numbers lie beyond by chance."""

FEW = 8
"""A parameter with fewer values than this has no scale to compare."""
SLACK_OF_FINDINGS = 1.5
"""A finding in one report alone does not count if the other misses it by less than this factor."""


@dataclass(frozen=True)
class Difference:
    """One number or part that changed.

    ``size`` is the distance between ``old`` and ``new``, ``band`` the largest one that does not
    count. Their unit: ln of a ratio for scales, standard deviations for means, shares as they
    are. Both are NaN for changes of structure, which always count.
    """

    kind: Kind
    name: str
    what: str
    old: float
    new: float
    size: float = math.nan
    band: float = math.nan
    text: str = ""


@dataclass(frozen=True)
class Change:
    """A finding in one report alone, or in both with different numbers."""

    old: Finding | None
    new: Finding | None
    borderline: bool = False  # the other report is so near the threshold that it may be chance

    @property
    def finding(self) -> Finding:
        """The more severe of the two; the new one if they are equal."""
        known = [f for f in (self.new, self.old) if f is not None]
        return min(known, key=lambda f: rule.SEVERITIES.index(f.severity))

    @property
    def counts(self) -> bool:
        """Whether it is more than chance, and more than a note."""
        return not self.borderline and self.finding.severity != "note"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Document):
    """What changed between two reports. ``print`` it, or write it as HTML or Markdown."""

    _kind: ClassVar[formats.Kind] = "comparison"

    old: Report
    new: Report
    appeared: tuple[Change, ...]
    vanished: tuple[Change, ...]
    worse: tuple[Change, ...]
    better: tuple[Change, ...]
    differences: tuple[Difference, ...]
    layers: tuple[Pair[Layer], ...]
    parameters: tuple[Pair[Parameter], ...]

    @property
    def same(self) -> bool:
        """Whether no number, part, error or warning differs beyond chance."""
        return not self.differences and not any(
            change.counts for change in (*self.appeared, *self.vanished)
        )

    @property
    def regressed(self) -> bool:
        """Whether there are new errors or warnings."""
        return any(change.counts for change in self.appeared)

    def new_findings(self, at: rule.Severity = "warning") -> tuple[Finding, ...]:
        """Findings of the new report, at this severity or above, that the old one does not have.

        Left out are findings so near a threshold that they may be chance, and findings of rules
        that did not run on the old report.
        """
        pairs: list[Pair[Layer] | Pair[Parameter]] = [*self.layers, *self.parameters]
        was = {p.new.name: p.old.name for p in pairs if p.new is not None and p.old is not None}
        known = {(f.rule, f.layer) for f in self.old.at_least(at)}
        chance = [change.new for change in self.appeared if change.borderline]
        judged = _judged(self.old)
        return tuple(
            f
            for f in self.new.at_least(at)
            if f.rule in judged
            and (f.rule, was.get(f.layer, f.layer)) not in known
            and not any(f is other for other in chance)
        )


def compare(old: Report, new: Report) -> Comparison:
    """What differs between two reports on one model, beyond what a seed or a batch changes."""
    layers = paired(old.snapshot, new.snapshot)
    names = new_names(layers)
    parameters = paired_parameters(old.snapshot, new.snapshot, layers)
    names |= new_names(parameters)
    differences = [
        *structure("layer", outlined(layers)),
        *structure("parameter", outlined(parameters)),
        *_inputs(old.snapshot, new.snapshot),
        *_parameters(parameters),
        *_layers(old.snapshot, new.snapshot, layers),
    ]
    appeared, vanished, worse, better = _findings(old, new, names)
    return Comparison(
        old, new, appeared, vanished, worse, better, tuple(differences), layers, parameters
    )


# -- what is different --------------------------------------------------------------------------


def structure(what: str, pairs: Sequence[Pair[Outline]]) -> Iterator[Difference]:
    """Which layers (or parameters, inputs) are new, gone or changed; ``what`` names their kind."""
    for pair in pairs:
        if pair.old is None or pair.new is None:
            there = pair.new if pair.new is not None else pair.old
            assert there is not None
            named = f"{there.name} ({there.called})" if there.called else there.name
            text = f"{named} is {'new' if pair.old is None else 'gone'}"
            yield Difference("structure", there.name, what, math.nan, math.nan, text=text)
            continue
        for fact, now in pair.new.facts.items():
            was = pair.old.facts.get(fact)
            if was != now:
                text = f"{pair.name}: {fact} was {was}, is {now}"
                yield Difference("structure", pair.name, fact, math.nan, math.nan, text=text)


def _inputs(old: Snapshot, new: Snapshot) -> Iterator[Difference]:
    for name in [*new.inputs, *(n for n in old.inputs if n not in new.inputs)]:
        a, b = old.inputs.get(name), new.inputs.get(name)
        if a is None or b is None:
            text = f"input {name} {'is new' if a is None else 'is gone'}"
            yield Difference("structure", name, "input", math.nan, math.nan, text=text)
            continue
        # The spread of the samples' sizes is taken to be about as large as their mean size.
        chance = 0.5 * math.sqrt(1 / max(a.samples, 1) + 1 / max(b.samples, 1))
        yield from _scales("input", name, "scale", a, b, chance)
        std = math.sqrt((a.variance + b.variance) / 2)
        yield from _means("input", name, a, b, std, 2 * chance)


def _parameters(pairs: Sequence[Pair[Parameter]]) -> Iterator[Difference]:
    for pair in pairs:
        if pair.old is None or pair.new is None or pair.old.shape != pair.new.shape:
            continue
        a, b = pair.old.value, pair.new.value
        n = a.count
        if n < FEW:  # too few values to estimate a scale
            continue
        # The rms of N independent Gaussian values is known to 1/√(2N), their mean to rms/√N.
        chance = 1 / math.sqrt(n)
        if _is_learned(pair.old) or _is_learned(pair.new):
            yield from _scales("parameter", pair.name, "scale", a, b, chance, SLACK_OF_LEARNED)
            continue
        yield from _scales("parameter", pair.name, "scale", a, b, chance)
        size = math.sqrt((a.second_moment + b.second_moment) / 2)
        yield from _means("parameter", pair.name, a, b, size, math.sqrt(2) * chance)


def _is_learned(parameter: Parameter) -> bool:
    """Whether all of a parameter's values may come from training, having started at 0 or 1.

    Biases and scales always count. Weights count if two things hold: they are far smaller than
    1/√fan_in, the std that keeps a signal's scale, and some values stand out. The largest of N
    Gaussian values is near √(2 ln 2N) standard deviations; the largest update is far larger.
    """
    value = parameter.value
    if len(parameter.shape) < 2 or not value.rms > 0:
        return True
    fan_in = math.prod(parameter.shape[1:])
    largest = max(-value.min, value.max) / value.rms
    stands_out = largest > 1.25 * math.sqrt(2 * math.log(2 * value.count))
    return value.rms * math.sqrt(fan_in) < 0.25 and stands_out


def _layers(old: Snapshot, new: Snapshot, pairs: Sequence[Pair[Layer]]) -> Iterator[Difference]:
    chance = _fluctuations(new)
    for pair in pairs:
        a, b = pair.old, pair.new
        if a is None or b is None:
            continue
        seen = 1 / max(a.output.samples, 1) + 1 / max(b.output.samples, 1)
        # ln of an rms has a quarter of the variance of ln of a mean square; two runs double it.
        spread = math.sqrt(chance.get(b.name, 0.0) / 2 + seen / 4)
        yield from _scales("activation", b.name, "scale", a.output, b.output, spread)
        if a.grad is not None and b.grad is not None and old.loss.kind == new.loss.kind:
            whole = math.sqrt(max(chance.values(), default=0.0) / 2 + seen / 4)
            yield from _scales("gradient", b.name, "scale", a.grad, b.grad, whole)
        if a.flat is not None and b.flat is not None:
            what = {"rectifier": "zero", "saturating": "saturated"}
            act = flow.act_of(b)
            if act is not None and act.family in what:
                width = max(len(b.output.units) if b.output.units is not None else 1, 1)
                share = math.sqrt(0.25 / width + 0.25 * seen)
                yield from _shares(b.name, what[act.family], a.flat.share, b.flat.share, share)


def _fluctuations(snapshot: Snapshot) -> dict[str, float]:
    """By layer: the variance of ln(mean square of its output), for one input, by chance.

    ``fluctuation(φ) · Σ 1/width`` over the weight layers before it (Hanin & Nica 2020).
    """
    relu = activations.named("relu")  # an upper bound: no other activation fluctuates more
    assert relu is not None
    factor = theory.fluctuation(relu)
    weights = [layer for layer in snapshot.layers if layer.op in ops.LEARNED]
    fluctuations = {}
    for layer in snapshot.layers:
        before = graph.ancestors(snapshot, layer.node) | {layer.node}
        fluctuations[layer.name] = factor * sum(
            1 / max(flow.width(w), 1) for w in weights if w.node in before
        )
    return fluctuations


def _scales(
    kind: Kind,
    name: str,
    what: str,
    a: TensorStats,
    b: TensorStats,
    chance: float,
    slack: float | None = None,
) -> Iterator[Difference]:
    """Whether two root mean squares differ by more than chance."""
    if not a.count or not b.count:
        return
    if a.nonfinite or b.nonfinite:
        if bool(a.nonfinite) != bool(b.nonfinite):
            text = f"{name}: NaN or infinity {'is new' if b.nonfinite else 'is gone'}"
            yield Difference(kind, name, "finite", a.nonfinite, b.nonfinite, text=text)
        return
    slack = SLACK[kind] if slack is None else slack
    if a.rms == 0 or b.rms == 0:
        # All of many values zero in one run alone: not chance.
        if a.rms != b.rms and kind != "gradient":
            yield Difference(kind, name, what, a.rms, b.rms, math.inf, slack)
        return
    size, band = abs(math.log(b.rms / a.rms)), slack + CHANCE * chance
    if size > band:
        yield Difference(kind, name, what, a.rms, b.rms, size, band)


def _means(
    kind: Kind, name: str, a: TensorStats, b: TensorStats, unit: float, chance: float
) -> Iterator[Difference]:
    """Whether two means differ by more than chance, measured in ``unit``."""
    if not a.count or not b.count or a.nonfinite or b.nonfinite or not unit > 0:
        return
    size, band = abs(b.mean - a.mean) / unit, SLACK[kind] + CHANCE * chance
    if size > band:
        yield Difference(kind, name, "mean", a.mean, b.mean, size, band)


def _shares(name: str, what: str, a: float, b: float, chance: float) -> Iterator[Difference]:
    size, band = abs(b - a), SLACK["share"] + CHANCE * chance
    if size > band:
        yield Difference("share", name, f"{what} share", a, b, size, band)


# -- findings -----------------------------------------------------------------------------------


def _findings(
    old: Report, new: Report, names: Mapping[str, str]
) -> tuple[tuple[Change, ...], tuple[Change, ...], tuple[Change, ...], tuple[Change, ...]]:
    """The findings that appeared, vanished, got worse and got better.

    A note that became an error or a warning counts as appeared.
    """
    before = {(f.rule, names.get(f.layer, f.layer)): f for f in old.findings}
    after = {(f.rule, f.layer): f for f in new.findings}
    back = {now: was for was, now in names.items()}
    judged_old, judged_new = _judged(old), _judged(new)
    new_pairs = [
        (before.get(key), f)
        for key, f in after.items()
        if f.rule in judged_old and _is_more_severe(f, before.get(key))
    ]
    gone_pairs = [
        (f, after.get(key))
        for key, f in before.items()
        if f.rule in judged_new and _is_more_severe(f, after.get(key))
    ]
    moved = Counter(f.rule for was, f in new_pairs if was is None)
    moved &= Counter(f.rule for f, now in gone_pairs if now is None)
    appeared = tuple(
        Change(was, f, _may_be_chance(f, was, old.snapshot, back.get(f.layer, f.layer), moved))
        for was, f in new_pairs
    )
    vanished = tuple(
        Change(f, now, _may_be_chance(f, now, new.snapshot, names.get(f.layer, f.layer), moved))
        for f, now in gone_pairs
    )
    worse: list[Change] = []
    better: list[Change] = []
    for key, f in after.items():
        was = before.get(key)
        if was is None or _is_more_severe(f, was) or _is_more_severe(was, f):
            continue
        change = _worse_by(was, f)
        if change > math.log(SLACK_OF_FINDINGS):
            worse.append(Change(was, f))
        elif change < -math.log(SLACK_OF_FINDINGS):
            better.append(Change(was, f))
    return appeared, vanished, tuple(worse), tuple(better)


def _judged(report: Report) -> set[str]:
    return {o.rule for o in report.outcomes if o.status in ("found", "passed")}


def _is_more_severe(finding: Finding, other: Finding | None) -> bool:
    return other is None or (finding.severity != "note" and other.severity == "note")


def _worse_by(old: Finding, new: Finding) -> float:
    """How much farther from the threshold the new number is: ln of a ratio."""
    a, b = (f.evidence.get(f.measure, math.nan) for f in (old, new))
    threshold = new.threshold
    if (
        old.measure != new.measure
        or threshold is None
        or not all(x > 0 and math.isfinite(x) for x in (a, b, threshold))
    ):
        return 0.0
    return math.log(b / a) * (1 if b > threshold else -1)


def _may_be_chance(
    finding: Finding, note: Finding | None, other: Snapshot, layer: str, moved: Container[str]
) -> bool:
    """Whether the other run nearly has it: at another layer, as a note, or just short of it."""
    if finding.rule in moved or _is_near(finding, other, layer):
        return True
    change = 0.0 if note is None else abs(_worse_by(note, finding))
    return 0 < change <= math.log(SLACK_OF_FINDINGS)


def _is_near(finding: Finding, other: Snapshot, layer: str) -> bool:
    """Whether the other run would have it too with a slightly looser threshold."""
    value, used = finding.evidence.get(finding.measure, math.nan), finding.threshold
    known = rules.discover().get(finding.rule)
    if known is None or used is None or not (used > 0 and value > 0):
        return False
    threshold = known.RULE.thresholds.get(finding.measure)
    if threshold is None:
        return False
    chance = 0.0
    if threshold.unit == "share":  # a share of few rows or units varies widely by chance
        chance = CHANCE * math.sqrt(2 * used * (1 - used) / _units_behind(finding))
    lower = min(used / SLACK_OF_FINDINGS, used - chance)
    upper = max(used * SLACK_OF_FINDINGS, used + chance)
    # A number equal to its threshold does not show on which side the fault lies: try both.
    looser = [lower] * (value >= used) + [upper] * (value <= used)
    had = {f.layer for f in judge.judge(other, [finding.rule]).findings}
    return any(
        not _is_more_severe(finding, f) and (f.layer == layer or f.layer not in had)
        for value in looser
        for f in judge.judge(
            other,
            [finding.rule],
            None,
            {f"{finding.rule}.{finding.measure}": min(max(value, threshold.low), threshold.high)},
        ).findings
    )


def _units_behind(finding: Finding) -> float:
    """The number of rows or units behind a finding's share; infinity if unknown."""
    evidence = finding.evidence
    if evidence.get("dead_units", 0) > 0 and evidence.get("share", 0) > 0:
        return evidence["dead_units"] / evidence["share"]
    return max(evidence.get("rows", math.inf), 1)
