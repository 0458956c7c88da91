"""What was found, what passed, what was skipped and why, and what was never looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nndiag.errors import FindingsError, ReportError, SettingsError
from nndiag.rule import SEVERITIES, Finding, Outcome, Prescription, Severity, Unjudged, judge
from nndiag.stats import Snapshot
from nndiag.verdict import verdict

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderResult

    from nndiag.compare import Comparison

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """One run of a model, judged. ``print`` it, or write it in any of the formats below."""

    snapshot: Snapshot
    findings: tuple[Finding, ...]
    outcomes: tuple[Outcome, ...]
    unjudged: tuple[Unjudged, ...]

    @property
    def ok(self) -> bool:
        """No error, no warning, and every rule that started also finished."""
        return not self.at_least("warning") and not self.crashed

    @property
    def verdict(self) -> str:
        """One line: what will happen and what to do first, or that no problem was found."""
        return verdict(self.snapshot, self.findings, self.outcomes, self.unjudged)

    @property
    def crashed(self) -> tuple[Outcome, ...]:
        """Rules that raised: what they would have found is not known."""
        return tuple(o for o in self.outcomes if o.status == "crashed")

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of this severity or a graver one."""
        if severity not in SEVERITIES:
            legal = ", ".join(map(repr, SEVERITIES))
            raise SettingsError(f"there is no severity {severity!r}. Legal are: {legal}.")
        grave = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return tuple(f for f in self.findings if f.severity in grave)

    @property
    def prescriptions(self) -> tuple[Prescription, ...]:
        """The cures of all findings, each once: those of the leading causes first."""
        return tuple(dict.fromkeys(cure for f in self.findings for cure in f.prescriptions))

    @property
    def layers(self) -> pd.DataFrame:
        """A row for each layer, in order of first call."""
        from nndiag.render import tables

        return tables.frame(tables.layers(self.snapshot), tables.LAYERS)

    @property
    def parameters(self) -> pd.DataFrame:
        """A row for each parameter."""
        from nndiag.render import tables

        return tables.frame(tables.parameters(self.snapshot), tables.PARAMETERS)

    def to_frame(self) -> pd.DataFrame:
        """A row for each finding."""
        from nndiag.render import tables

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
        """What became of this report: ``old.compare(new)``, tolerant of what a seed changes."""
        from nndiag.compare import compare

        return compare(self, new)

    def raise_for_findings(self, at: Severity = "warning") -> None:
        """Fail where there are findings of this severity or a graver one, or a rule crashed.

        Raises:
            FindingsError: its text is the report of those findings.
        """
        __tracebackhide__ = True  # pytest then shows the caller's line, not this one
        from nndiag.render import story, terminal

        found = self.at_least(at)
        if found or self.crashed:
            told = [story.tally(found)] if found else []
            told += [f"{story.plural(len(self.crashed), 'rule')} crashed"] if self.crashed else []
            raise FindingsError(f"{' and '.join(told)}\n\n{terminal.excerpt(self, found)}")

    def to_html(self, path: PathLike) -> None:
        """One file that needs no network, to read in a browser."""
        from nndiag.render import files, html

        files.write({Path(path): html.render(self)})

    def to_csv(self, folder: PathLike) -> None:
        """``findings.csv``, ``layers.csv`` and ``parameters.csv`` in this folder.

        ``nndiag.render.tables.ABOUT`` says what each column holds.
        """
        from nndiag.render import csv, files

        files.write({Path(folder) / name: text for name, text in csv.render(self).items()})

    def to_json(self, path: PathLike) -> None:
        """Everything, so that :meth:`from_json` gives the same report without torch."""
        from nndiag.render import files, json

        files.write({Path(path): json.render(self)})

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
        return json.read(text, str(path))

    def to_markdown(self, path: PathLike | None = None) -> str:
        """Text for a pull request's comment, short enough for one; also into a file."""
        from nndiag.render import files, markdown

        text = markdown.render(self)
        if path is not None:
            files.write({Path(path): text})
        return text

    def to_sarif(self, path: PathLike) -> None:
        """SARIF 2.1.0, which code hosts show beside the lines it speaks of."""
        from nndiag.render import files, sarif

        files.write({Path(path): sarif.render(self)})

    def to_junit(self, path: PathLike) -> None:
        """JUnit's XML, a test case for each rule, for CI servers."""
        from nndiag.render import files, junit

        files.write({Path(path): junit.render(self)})

    def to_github(self) -> str:
        """GitHub's workflow commands: print them in a job, and they stand beside the lines."""
        from nndiag.render import lines

        return lines.github(self)

    def to_concise(self) -> str:
        """A finding a line, as linters print them."""
        from nndiag.render import lines

        return lines.concise(self)

    def __str__(self) -> str:
        from nndiag.render import terminal

        return terminal.plain(terminal.render(self))

    def __repr__(self) -> str:
        from nndiag.render import story

        return f"<Report on {self.snapshot.model}: {story.tally(self.findings)}; print() shows it>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from nndiag.render import terminal

        yield terminal.render(self)

    def _repr_html_(self) -> str:
        from nndiag.render import html

        return html.fragment(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """IPython's terminal takes the text, Jupyter the HTML."""
        return {"text/plain": str(self), "text/html": self._repr_html_()}
