"""What was found, what passed, what was skipped and why, and what was never looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from nndiag.errors import FindingsError, ReportError, SettingsError
from nndiag.fixes.fix import Fix
from nndiag.judge import judge
from nndiag.render import files, story, tables
from nndiag.render.formats import Document, Kind, PathLike
from nndiag.rule import SEVERITIES, Finding, Outcome, Severity, Unjudged
from nndiag.stats import Snapshot
from nndiag.verdict import verdict

if TYPE_CHECKING:
    import pandas as pd

    from nndiag.compare import Comparison

__all__ = ["NotJudged", "Report"]


_DID_NOT_RUN: tuple[Literal["crashed", "skipped"], ...] = ("crashed", "skipped")


@dataclass(frozen=True)
class NotJudged:
    """Something that a report did not judge. ``str()`` is one line about it.

    ``what``: "crashed", "skipped", "not judged", "never called", "not observed" or "not looked at".
    ``rule``: the rule; empty where it concerns no single rule (never called, not observed).
    ``layer``: the layer, module or parameter; empty where the rule judged nothing at all.
    ``reason``: why.
    """

    what: Literal[
        "crashed", "skipped", "not judged", "never called", "not observed", "not looked at"
    ]
    rule: str = ""
    layer: str = ""
    reason: str = ""

    def __str__(self) -> str:
        where = " at ".join(name for name in (self.rule, self.layer) if name)
        if not where:
            return f"{self.what}: {self.reason}"
        return f"{self.what}: {where}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True, eq=False, repr=False)
class Report(Document):
    """One run of a model, judged. ``print`` it, or write it in any of the formats below."""

    _kind: ClassVar[Kind] = "report"

    snapshot: Snapshot
    findings: tuple[Finding, ...]
    outcomes: tuple[Outcome, ...]
    unjudged: tuple[Unjudged, ...]

    @property
    def ok(self) -> bool:
        """No error, no warning, and every rule that started also finished."""
        return not self.at_least("warning") and not self.crashed

    def __bool__(self) -> bool:
        """The same as :attr:`ok`, so that ``assert nndiag.check(model, batch)`` is a test."""
        return self.ok

    @property
    def verdict(self) -> str:
        """One line: what will happen and what to do first, or that no problem was found."""
        return verdict(self.snapshot, self.findings, self.outcomes, self.unjudged)

    @property
    def crashed(self) -> tuple[Outcome, ...]:
        """Rules that raised: what they would have found is not known."""
        return tuple(o for o in self.outcomes if o.status == "crashed")

    @property
    def not_judged(self) -> tuple[NotJudged, ...]:
        """What was not looked at, and why: rules that did not run, layers that were not judged."""
        snapshot = self.snapshot
        rules = [
            NotJudged(status, o.rule, reason=o.reason)
            for status in _DID_NOT_RUN
            for o in self.outcomes
            if o.status == status
        ]
        layers = [NotJudged("not judged", u.rule, u.layer, u.reason) for u in self.unjudged]
        never = [NotJudged("never called", layer=name) for name in snapshot.never_called]
        unseen = [text.partition(": ") for text in snapshot.not_observed]
        parts = [
            NotJudged("not observed", layer=name if colon else "", reason=why if colon else name)
            for name, colon, why in unseen
        ]
        never_seen, why = story.NOT_LOOKED_AT
        return (*rules, *layers, *never, *parts, NotJudged("not looked at", "", never_seen, why))

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of this severity or a worse one."""
        if severity not in SEVERITIES:
            legal = ", ".join(map(repr, SEVERITIES))
            raise SettingsError(f"there is no severity {severity!r}. Choose one of: {legal}.")
        severe = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return tuple(f for f in self.findings if f.severity in severe)

    @property
    def fixes(self) -> tuple[Fix, ...]:
        """The fixes of all findings, each once: those of the leading causes first."""
        return tuple(dict.fromkeys(fix for f in self.findings for fix in f.fixes))

    @property
    def layers(self) -> pd.DataFrame:
        """A row for each layer, in order of first call."""
        return tables.frame(tables.layers(self.snapshot), tables.LAYERS)

    @property
    def parameters(self) -> pd.DataFrame:
        """A row for each parameter."""
        return tables.frame(tables.parameters(self.snapshot), tables.PARAMETERS)

    def to_frame(self) -> pd.DataFrame:
        """A row for each finding."""
        return tables.frame(tables.findings(self), tables.FINDINGS)

    def judge(
        self,
        select: Iterable[str] | str | None = None,
        ignore: Iterable[str] | str | None = None,
        thresholds: Mapping[str, float | Mapping[str, float]] | None = None,
    ) -> Report:
        """The same measurements judged again, by other rules or other thresholds."""
        judged = judge(self.snapshot, select, ignore, thresholds)
        return Report(self.snapshot, judged.findings, judged.outcomes, judged.unjudged)

    def compare(self, new: Report) -> Comparison:
        """What differs in a later report, beyond what a seed changes: ``old.compare(new)``."""
        from nndiag.compare import compare

        return compare(self, new)

    def raise_for_findings(self, at: Severity = "warning") -> None:
        """Fail where there are findings of this severity or a worse one, or a rule crashed.

        Raises:
            FindingsError: its text is the report of those findings.
        """
        __tracebackhide__ = True  # pytest then shows the caller's line, not this one
        from nndiag.render import terminal

        found = self.at_least(at)
        if found or self.crashed:
            counts = [story.tally(found)] if found else []
            counts += [f"{story.plural(len(self.crashed), 'rule')} crashed"] if self.crashed else []
            excerpt = terminal.excerpt(self, found)
            raise FindingsError(f"{self.verdict}\n{'; '.join(counts)}\n\n{excerpt}")

    def to_text(self, notes: bool = False) -> str:
        """What ``print`` shows; with ``notes`` each note in full, not all of them in one line."""
        from nndiag.render import terminal

        return terminal.plain(terminal.render(self, notes))

    def to_csv(self, folder: PathLike) -> None:
        """``findings.csv``, ``layers.csv`` and ``parameters.csv`` in this folder.

        ``nndiag.render.tables.ABOUT`` says what each column holds.

        Raises:
            OutputError: one of them cannot be written; then none is.
        """
        files.write({Path(folder) / name: text for name, text in self._rendered("csv").items()})

    def to_json(self, path: PathLike) -> None:
        """Everything, so that :meth:`from_json` gives the same report without torch.

        Raises:
            OutputError: it cannot be written.
        """
        self._write("json", path)

    @classmethod
    def from_json(cls, path: PathLike) -> Report:
        """A report that :meth:`to_json` saved.

        Raises:
            ReportError: the file cannot be read, or holds no report.
        """
        from nndiag.render import json

        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ReportError(f"{path} cannot be read: {reason}.") from error
        return json.read(cls, text, str(path))

    def to_sarif(self, path: PathLike) -> None:
        """SARIF 2.1.0, which code hosts show beside the lines of code.

        Raises:
            OutputError: it cannot be written.
        """
        self._write("sarif", path)

    def to_junit(self, path: PathLike) -> None:
        """JUnit's XML, a test case for each rule, for CI servers.

        Raises:
            OutputError: it cannot be written.
        """
        self._write("junit", path)

    def to_github(self) -> str:
        """GitHub's workflow commands. Print them in a job: GitHub shows them beside the code."""
        text: str = self._rendered("github")
        return text

    def to_concise(self) -> str:
        """A finding a line, as linters print them."""
        text: str = self._rendered("concise")
        return text
