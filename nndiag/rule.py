"""What a rule is, and its results: findings, layers it could not judge, its outcome.

A rule is one file in ``nndiag/rules``: a docstring that is its page, a ``RULE`` and a pure
function ``check(snapshot, thresholds)`` that yields findings. Nothing registers it:
:func:`nndiag.rules.discover` walks that folder, and the entry-point group ``nndiag.rules`` for
those of other packages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nndiag.fixes.fix import Fix
from nndiag.numbers import Unit
from nndiag.stats import Layer, Parameter, Snapshot

__all__ = [
    "ABOUT",
    "SEVERITIES",
    "Check",
    "Finding",
    "Outcome",
    "Rule",
    "Severity",
    "Threshold",
    "Thresholds",
    "Unjudged",
]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
ABOUT = ("input", "loss", "parameters", "activations", "gradients", "training")


@dataclass(frozen=True)
class Threshold:
    """A number that decides a verdict, and where it comes from.

    ``source`` begins with ``derived:`` (arithmetic the reader can redo), ``cited:`` (a paper or
    standard, with the place in it) or ``measured:`` (a file under ``reports/``). ``unit`` says how
    it, and the value compared with it, are written: "share" (75 %), "factor" (16×), or plain.
    """

    value: float
    source: str
    low: float = 0.0
    high: float = math.inf
    unit: Unit = ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (or worth knowing) at one place.

    ``evidence`` maps names to numbers. ``threshold`` is the number that the evidence called
    ``measure`` was compared with; the threshold has the same name. ``cause`` is the finding that
    explains this one, or None for a root; ``suspects`` are the rules whose findings can explain it.
    ``summary`` is one sentence that says what will happen because of it.

    ``origin`` names the layer where it arises, if that is another one. What is found at that very
    layer by one of ``suspects_there`` explains it first.
    """

    rule: str
    code: str
    severity: Severity
    layer: str
    message: str
    evidence: dict[str, float] = field(default_factory=dict)
    threshold: float | None = None
    location: str | None = None
    cause: Finding | None = None
    fixes: tuple[Fix, ...] = ()
    suspects: tuple[str, ...] = ()
    measure: str = ""
    summary: str = ""
    origin: str = ""
    suspects_there: tuple[str, ...] = ()

    @property
    def root(self) -> Finding:
        """The finding at the beginning of the chain of causes (itself, for a root)."""
        return self if self.cause is None else self.cause.root


@dataclass(frozen=True)
class Unjudged:
    """A layer that a rule could not judge, and why: it is neither a finding nor a pass."""

    rule: str
    layer: str
    reason: str


@dataclass(frozen=True)
class Rule:
    """The fixed part of a rule.

    ``needs``: what it cannot judge without: "outputs", "gradients", "step" (a virtual update),
    "loss" (the caller's loss or the model's own), "optimizer". Without it the rule is skipped and
    the report says why. ``uses``: what it judges better with: any of these, "mixing" (whether
    samples see one another), "evaluation" (the loss in evaluation mode), "second look" (whether a
    parameter without a gradient gets one from other seeds or later steps).
    """

    code: str
    name: str
    severity: Severity
    about: Literal["input", "loss", "parameters", "activations", "gradients", "training"]
    needs: tuple[str, ...] = ("outputs",)
    uses: tuple[str, ...] = ()
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    caused_by: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()

    def finding(
        self,
        where: Layer | Parameter | str,
        message: str,
        *,
        summary: str = "",
        evidence: Mapping[str, float] | None = None,
        severity: Severity | None = None,
        against: tuple[str, Thresholds] | None = None,
        location: str | None = None,
        fixes: tuple[Fix, ...] | None = None,
        suspects: tuple[str, ...] | None = None,
        origin: str = "",
        suspects_there: tuple[str, ...] = (),
    ) -> Finding:
        """A finding of this rule at a layer, a parameter or a named place.

        ``message`` says what was measured there; ``summary`` what will happen because of it, in one
        sentence for the first line of a report. ``against``: the name of the threshold, and of the
        evidence compared with it, and the thresholds in force.
        """
        measure, thresholds = against or ("", None)
        return Finding(
            rule=self.name,
            code=self.code,
            severity=severity or self.severity,
            layer=where if isinstance(where, str) else where.name,
            message=message,
            evidence={key: float(value) for key, value in (evidence or {}).items()},
            threshold=None if thresholds is None else getattr(thresholds, measure),
            measure=measure,
            summary=summary,
            origin=origin,
            suspects_there=suspects_there,
            location=where.location if isinstance(where, Layer) else location,
            fixes=self.fixes if fixes is None else fixes,
            suspects=self.caused_by if suspects is None else suspects,
        )

    def unjudged(self, where: Layer | Parameter | str, reason: str) -> Unjudged:
        return Unjudged(self.name, where if isinstance(where, str) else where.name, reason)


class Thresholds:
    """The thresholds of a rule that are in force, as attributes: ``thresholds.share``."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> float:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"this rule has no threshold {name!r}") from None


Check = Callable[[Snapshot, Thresholds], Iterable["Finding | Unjudged"]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one rule: "found", "passed", "skipped" or "crashed", with the reason.

    A rule of another package that could not be loaded is "crashed", too: by its module's name,
    without a code.
    """

    rule: str
    code: str
    status: Literal["found", "passed", "skipped", "crashed"]
    reason: str = ""

    @property
    def title(self) -> str:
        return f"{self.code} {self.rule}".strip()
