"""One line for each finding: for editors and logs, and as GitHub's annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nndiag.render import story
from nndiag.rule import Finding

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = ["concise", "github"]

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def concise(report: Report) -> str:
    """``file:line: warning ND103 dead-relu at layer: message``, without ``file:line`` if unknown.

    The verdict stands before them, and a line for each rule that crashed behind them.
    """
    lines = [report.verdict]
    for finding in report.findings:
        place = f"{finding.location}: " if finding.location else ""
        named = f"{finding.severity} {finding.code} {finding.rule} at {finding.layer}"
        lines.append(f"{place}{named}: {finding.message}{_cause(finding)}")
    lines += [f"error {o.code} {o.rule} crashed: {o.reason}" for o in report.crashed]
    return "".join(f"{_one(line)}\n" for line in lines)


def github(report: Report) -> str:
    """Workflow commands, which GitHub shows beside the lines of a pull request.

    https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions
    """
    lines = []
    for finding in report.findings:
        known = story.in_project(finding.location)
        place = {} if known is None else {"file": known[0], "line": str(known[1])}
        title = f"{finding.code} {finding.rule} at {finding.layer}"
        text = f"{finding.message}{_cause(finding)}"
        lines.append(_command(_COMMANDS[finding.severity], text, **place, title=title))
    for outcome in report.crashed:
        title = f"{outcome.title} crashed"
        lines.append(_command("error", outcome.reason, title=title))
    return "".join(f"{line}\n" for line in lines)


def _cause(finding: Finding) -> str:
    if finding.cause is None:
        return ""
    return f" (explained by {finding.root.rule} at {finding.root.layer})"


def _one(text: str) -> str:
    return story.printable(" ".join(text.split()))


def _command(name: str, text: str, **properties: str) -> str:
    pairs = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{name} {pairs}::{_data(text)}"


def _data(text: str) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return story.printable(text)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
