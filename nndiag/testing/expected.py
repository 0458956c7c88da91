"""Expected findings, and the findings that remain and fail a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nndiag import judge
from nndiag.errors import FindingsError, SettingsError
from nndiag.render import story, terminal
from nndiag.report import Report
from nndiag.rule import Finding, Outcome
from nndiag.settings import FailOn

__all__ = ["Verdict", "checked", "judged", "mapping"]


@dataclass(frozen=True)
class Verdict:
    """The findings, crashed rules and missing findings of a report that fail a test."""

    report: Report
    findings: tuple[Finding, ...]
    crashed: tuple[Outcome, ...]
    missing: Mapping[str, str]  # expected, but not found; with the reason given

    @property
    def failed(self) -> bool:
        return bool(self.findings or self.crashed or self.missing)

    def raise_if_failed(self, besides: str = "") -> None:
        """``besides``: a text to add at the end.

        Raises:
            FindingsError: with a report of what fails.
        """
        __tracebackhide__ = True
        if not self.failed:
            return
        counts = [story.tally(self.findings)] if self.findings else []
        counts += [f"{story.plural(len(self.crashed), 'rule')} crashed"] if self.crashed else []
        counts += [f"expected but not found: {', '.join(self.missing)}"] if self.missing else []
        parts = ["; ".join(counts)]
        if self.findings or self.crashed:
            parts.append(terminal.excerpt(self.report, self.findings))
        for name, reason in self.missing.items():
            parts.append(
                f"{name} was expected ({reason}), but the model has no such finding any more. "
                "Remove it from the expected findings."
            )
        raise FindingsError("\n\n".join([*parts, *([besides] if besides else [])]))


def judged(report: Report, expect: Mapping[str, str], fail_on: FailOn) -> Verdict:
    """What fails, without the expected findings and what they explain."""
    if fail_on == "never":
        return Verdict(report, (), (), {})
    findings = report.at_least(fail_on)
    known = {name: judge.chosen([name]) for name in expect}
    excused = {each for names in known.values() for each in names}
    left = tuple(f for f in findings if not excused & set(_chain(f)))
    ran = {o.rule for o in report.outcomes if o.status in ("found", "passed")}
    rules_found = {f.rule for f in report.findings}
    missing = {
        name: reason
        for name, reason in expect.items()
        if ran & set(known[name]) and not rules_found & set(known[name])
    }
    return Verdict(report, left, report.crashed, missing)


def checked(expect: object, what: str) -> dict[str, str]:
    """The expected rules, each with the reason why its findings are intended.

    Raises:
        SettingsError, UnknownRuleError: no such rule, or no reason.
    """
    if expect is None:
        return {}
    for name, reason in mapping(expect, what).items():
        judge.chosen([name])
        if not isinstance(reason, str) or not reason.strip():
            raise SettingsError(
                f"{what}[{name!r}] is {reason!r}. Write why the finding is intended."
            )
    return dict(mapping(expect, what))


def mapping(expect: object, what: str) -> Mapping[str, Any]:
    """
    Raises:
        SettingsError: ``expect`` is not a mapping.
    """
    if not isinstance(expect, Mapping):
        raise SettingsError(
            f'{what} is {expect!r}. Write {{"dead-relu": "why it is intended"}}: rules and reasons.'
        )
    return expect


def _chain(finding: Finding) -> list[str]:
    """The rules of a finding and of its causes."""
    return [finding.rule, *(_chain(finding.cause) if finding.cause is not None else ())]
