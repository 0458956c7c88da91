"""What every format shows in the same words: findings folded into blocks, counts, numbers."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nndiag.fixes.fix import Fix
from nndiag.flow import plural as plural
from nndiag.judge import NOT_SELECTED
from nndiag.numbers import Unit
from nndiag.numbers import number as number
from nndiag.rule import SEVERITIES, Finding, Rule, Severity
from nndiag.rules import discover
from nndiag.stats import Snapshot

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = [
    "CHANGES",
    "MOST_FIXES",
    "NAMES_SHOWN",
    "NOT_LOOKED_AT",
    "NO_LOSS",
    "UNUSED_TARGETS",
    "Block",
    "Gap",
    "Yardstick",
    "blocks",
    "brief",
    "consequences",
    "count",
    "counts",
    "evidence",
    "expectation",
    "gaps",
    "in_project",
    "ledger",
    "lines_of_code",
    "noted",
    "number",
    "plural",
    "printable",
    "rule_of",
    "shape",
    "siblings",
    "subject",
    "tally",
    "whereabouts",
    "words",
    "yardstick",
]

NAMES_SHOWN = 4
MOST_FIXES = 3
"""Of one finding, where there is little room; the page and the data have all."""


@dataclass(frozen=True)
class Block:
    """The findings of one rule at one severity, worst first, and all that they explain."""

    findings: tuple[Finding, ...]
    consequences: tuple[Finding, ...] = ()

    @property
    def worst(self) -> Finding:
        return self.findings[0]

    @property
    def severity(self) -> Severity:
        return self.worst.severity


@dataclass(frozen=True)
class Yardstick:
    """The number that a finding compares with a threshold, the threshold, and its source."""

    name: str
    value: float | None
    threshold: float
    source: str = ""
    unit: Unit = ""
    overridden: bool = False

    @property
    def excess(self) -> float:
        """How far past the threshold, on either side of it. It is for sorting only."""
        if self.value is None or math.isnan(self.value):
            return 0.0
        if self.value > 0 and self.threshold > 0:
            return abs(math.log(self.value) - math.log(self.threshold))
        return abs(self.value - self.threshold)

    @property
    def value_text(self) -> str:
        return "" if self.value is None else number(self.value, self.unit)

    @property
    def threshold_text(self) -> str:
        return number(self.threshold, self.unit)


def rule_of(name: str) -> Rule | None:
    """The rule of that name; None for one that only a newer nndiag or a plugin knows."""
    module = discover().get(name)
    return None if module is None else module.RULE


def yardstick(finding: Finding) -> Yardstick | None:
    """What the finding measured against its threshold; None where it has no threshold."""
    if finding.threshold is None:
        return None
    rule = rule_of(finding.rule)
    known = rule.thresholds.get(finding.measure) if rule is not None else None
    if known is None:
        return Yardstick(words(finding.measure), None, finding.threshold)
    source = known.source
    overridden = known.value != finding.threshold
    if overridden:
        source = f"set for this run; the default is {number(known.value, known.unit)}"
    value = finding.evidence.get(finding.measure)
    return Yardstick(
        words(finding.measure), value, finding.threshold, source, known.unit, overridden
    )


def blocks(findings: Sequence[Finding]) -> list[Block]:
    """Roots of one rule and severity together, in the report's order, with what they explain.

    A finding whose cause is not among ``findings`` (a report cut down to its errors) counts as a
    root, so that it is shown somewhere.
    """
    here = {id(f) for f in findings}
    roots: dict[tuple[str, str], list[Finding]] = {}
    explained: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        root = finding.root
        if root is finding or id(root) not in here:
            roots.setdefault((finding.rule, finding.severity), []).append(finding)
        else:
            explained.setdefault((root.rule, root.severity), []).append(finding)
    return [
        Block(tuple(sorted(members, key=_worst_first)), tuple(explained.get(key, ())))
        for key, members in roots.items()
    ]


def _worst_first(finding: Finding) -> float:
    measure = yardstick(finding)
    return -measure.excess if measure is not None else 0.0


def siblings(block: Block) -> str:
    """``"4 more like it: a 58 %, b 55 % and 2 others"``, or nothing."""
    rest = block.findings[1:]
    if not rest:
        return ""
    return f"{len(rest)} more like it: {_list(_with_number(f) for f in rest)}"


def _with_number(finding: Finding) -> str:
    measure = yardstick(finding)
    shown = measure.value_text if measure is not None else ""
    return f"{finding.layer} {shown}".rstrip()


def consequences(block: Block) -> str:
    """``"12 more explained by this: saturation in 9 layers, …"``, or nothing."""
    if not block.consequences:
        return ""
    by_rule: dict[str, list[str]] = {}
    for finding in block.consequences:
        by_rule.setdefault(finding.rule, []).append(finding.layer)
    rules = [
        f"{rule} at {names[0]}" if len(names) == 1 else f"{rule} in {len(names)} places"
        for rule, names in by_rule.items()
    ]
    return f"{len(block.consequences)} more explained by this: {', '.join(rules)}"


def tally(findings: Iterable[Finding]) -> str:
    """``"1 error, 5 warnings and 2 notes"``."""
    counts = Counter(f.severity for f in findings)
    return _and([plural(counts[s], s) for s in SEVERITIES if counts[s]]) or "nothing"


def counts(report: Report) -> str:
    """``"2 errors and 8 warnings; 1 rule crashed."``; no findings are not taken for a pass."""
    by_status = Counter(o.status for o in report.outcomes)
    rules = plural(len(report.outcomes), "rule")
    crashed = f"{plural(by_status['crashed'], 'rule')} crashed" if by_status["crashed"] else ""
    if report.findings:
        return f"{'; '.join(filter(None, [tally(report.findings), crashed]))}."
    if crashed:
        return f"No findings, but {crashed}."
    if not by_status["passed"]:
        return "No rule could run."
    if by_status["passed"] == len(report.outcomes):
        layers = plural(len(report.snapshot.layers), "layer")
        return f"No findings: all {rules} passed on {layers}."
    return f"No findings: {by_status['passed']} of {rules} passed."


def brief(report: Report) -> str:
    """The report in a few words, as ``repr`` shows it."""
    return f"Report on {report.snapshot.model}: {tally(report.findings)}"


def ledger(report: Report) -> str:
    """``"14 rules on 41 layers: 2 found 1 error and 5 warnings; 9 passed; 3 skipped"``."""
    by_status = Counter(o.status for o in report.outcomes)
    parts = []
    if by_status["found"]:
        parts.append(f"{by_status['found']} found {tally(report.findings)}")
    parts += [f"{by_status[s]} {s}" for s in ("passed", "skipped", "crashed") if by_status[s]]
    rules = plural(len(report.outcomes), "rule")
    layers = plural(len(report.snapshot.layers), "layer")
    return f"{rules} on {layers}: {'; '.join(parts) or 'none ran'}"


def subject(snapshot: Snapshot) -> list[str]:
    """What was looked at, in parts: model, size, evidence, device, loss."""
    size = sum(math.prod(p.shape) for p in snapshot.parameters)
    seen = plural(snapshot.samples, "sample")
    if snapshot.batches > 1:
        seen += f" in {snapshot.batches} batches"
    passes = "forward + backward" if snapshot.has_gradients else "forward only"
    if snapshot.has_step:
        passes += " + a virtual step"
    parts = [
        snapshot.model,
        f"{plural(len(snapshot.layers), 'layer')}, {count(size, 'parameter')}",
        f"{seen}, {passes}",
    ]
    if snapshot.environment is not None:
        e = snapshot.environment
        parts.append(f"{e.device} {e.dtype}, {e.mode} mode")
    if snapshot.loss.kind == "random cotangent":
        parts.append(NO_LOSS + (UNUSED_TARGETS if snapshot.experiment.targets else ""))
    elif snapshot.loss.kind != "none":
        parts.append(f"loss: {snapshot.loss.kind} = {snapshot.loss.value:.4g}")
    return parts


NO_LOSS = "no loss given: gradients are of a random direction of the outputs (pass loss_fn=…)"
UNUSED_TARGETS = "; your targets were not used"


@dataclass(frozen=True)
class Gap:
    """Something the report does not vouch for: which rules or layers, and why."""

    what: str
    who: str
    why: str = ""


NOT_LOOKED_AT = "the training run and validation data", "a check sees a batch, not a run"


def gaps(report: Report) -> Iterator[Gap]:
    """What was skipped, crashed, not judged, never called and not observed, folded by reason."""
    snapshot = report.snapshot
    for outcome in report.outcomes:
        if outcome.status == "crashed":
            yield Gap("crashed", outcome.title, outcome.reason)
    skipped: dict[str, list[str]] = {}
    for outcome in report.outcomes:
        if outcome.status == "skipped":
            skipped.setdefault(outcome.reason, []).append(outcome.rule)
    for reason, rules in skipped.items():
        # The reader left these out, so their number is enough.
        chosen = reason == NOT_SELECTED and len(rules) > 3
        yield Gap("skipped", plural(len(rules), "rule") if chosen else ", ".join(rules), reason)
    unjudged: dict[tuple[str, str], list[str]] = {}
    for item in report.unjudged:
        unjudged.setdefault((item.rule, item.reason), []).append(item.layer)
    for (rule, reason), layers in unjudged.items():
        yield Gap("not judged", f"{rule} at {_list(layers)}", reason)
    for what, names in (
        ("never called", snapshot.never_called),
        ("not observed", snapshot.not_observed),
    ):
        if names:
            yield Gap(what, _list(names))
    yield Gap("not looked at", *NOT_LOOKED_AT)


def noted(blocks: Sequence[Block]) -> str:
    """``"2 notes: dense-activation at /sigmoid and costly-activation at act"``, or nothing."""
    findings = [finding for block in blocks for finding in (*block.findings, *block.consequences)]
    if not findings:
        return ""
    named = _list(f"{f.rule} at {f.layer}" for f in findings)
    return f"{plural(len(findings), 'note')}: {named}"


def whereabouts(finding: Finding, snapshot: Snapshot) -> list[str]:
    """Layer, what it is, and the line of the user's source."""
    layer, parameter = snapshot.by_name.get(finding.layer), snapshot.parameter.get(finding.layer)
    parts = [finding.layer]
    if layer is not None:
        parts.append(layer.kind)
    elif parameter is not None:
        parts.append(f"parameter {shape(parameter.shape)}")
    if finding.location:
        parts.append(finding.location)
    return parts


def in_project(location: str | None) -> tuple[str, int] | None:
    """File and line in the source, where it lies under the working directory.

    No path of this machine leaves it in what others read.
    """
    file, _, line = (location or "").rpartition(":")
    if not file or not line.isdecimal() or int(line) < 1:
        return None
    try:
        here = Path(os.path.realpath(Path.cwd()))
        path = Path(os.path.realpath(here / file))
    except (ValueError, OSError):  # no name that a file could have
        return None
    return (path.relative_to(here).as_posix(), int(line)) if path.is_relative_to(here) else None


def evidence(finding: Finding) -> list[tuple[str, str]]:
    """Names and numbers, in words: ``dead share``, ``0.61``."""
    return [(words(name), number(value)) for name, value in finding.evidence.items()]


def words(name: str) -> str:
    return name.replace("_", " ")


def shape(sizes: Sequence[int]) -> str:
    return str(tuple(sizes))


def count(n: int, noun: str) -> str:
    """``"1.2 M parameters"``: large counts need no last digit."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**4)):
        if n >= size:
            return f"{n / (size if unit != 'k' else 1000):.3g} {unit} {noun}s"
    return plural(n, noun)


CHANGES = {
    "nothing": "The function that the model computes stays as it is.",
    "scale": "It changes the function: safe before training.",
    "weights": "It changes the function, and what was learned there is lost: safe before training.",
    "architecture": "It changes the architecture: a trained model has to be trained on.",
}
"""What to know of a fix's ``changes``."""


def expectation(fix: Fix) -> str:
    """What a fix is expected to do, and what it costs; "" for mere advice."""
    effect = f"Expect: {fix.effect}. " if fix.effect else ""
    return effect + (CHANGES[fix.changes] if fix.effect or fix.runnable else "")


def lines_of_code(fix: Fix) -> list[str]:
    """The lines to paste; of advice its change of the source."""
    return (fix.code() or fix.source).splitlines()


def printable(text: str) -> str:
    """Text of the model's, without the control characters that would move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _list(names: Iterable[str], shown: int = NAMES_SHOWN) -> str:
    names = list(names)
    if len(names) <= shown + 1:
        return _and(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} others"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
