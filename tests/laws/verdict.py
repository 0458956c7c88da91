"""What has to stay the same: the verdict, said in one place.

The findings at warning and error with the place each names, the rule of its cause, and whether the
report is ok; the notes; and what could not be judged. A place is a layer by what it does and which
of its kind it is ("linear 3"), not what it is called: under renaming, wrapping and functional
form names change and places do not. Numbers and messages are no part of a verdict: they differ by
rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from nndiag import Report


class Said(NamedTuple):
    """One finding, without its name and its numbers."""

    rule: str
    severity: str
    place: str
    cause: str


class Verdict(NamedTuple):
    ok: bool
    findings: frozenset[Said]
    notes: frozenset[Said]
    unjudged: frozenset[tuple[str, str]]


def verdict(report: Report, same: Mapping[str, str] | None = None) -> Verdict:
    """``same``: ops that count as another, {"clamp": "relu"}."""
    assert report.crashed == ()
    where = places(report, same or {})
    said = [
        Said(
            f.rule, f.severity, where.get(f.layer, f.layer), "" if f.cause is None else f.cause.rule
        )
        for f in report.findings
    ]
    return Verdict(
        report.ok,
        frozenset(s for s in said if s.severity != "note"),
        frozenset(s for s in said if s.severity == "note"),
        frozenset((u.rule, where.get(u.layer, u.layer)) for u in report.unjudged),
    )


def places(report: Report, same: Mapping[str, str]) -> dict[str, str]:
    """For each name where it lies; parameters by their order."""
    snapshot = report.snapshot
    found = {p.name: f"parameter {k}" for k, p in enumerate(snapshot.parameters)}
    seen: Counter[str] = Counter()
    for layer in snapshot.layers:
        op = same.get(layer.op, layer.op)
        seen[op] += 1
        found[layer.name] = f"{op} {seen[op]}"
    return found


def found(report: Report) -> set[str]:
    """The rules with a finding at warning or error, root or folded."""
    return {f.rule for f in report.at_least("warning")}


def leading(report: Report) -> str | None:
    """The rule that a report names first; None where nothing is wrong."""
    return None if report.ok else report.findings[0].rule
