"""JUnit's XML, which every CI server reads, with a test case for each rule.

There is no official schema. The elements are those that all servers accept, listed at
https://github.com/testmoapp/junitxml.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from nndiag.render import story
from nndiag.rule import Finding, Outcome

if TYPE_CHECKING:
    from nndiag.report import Report

__all__ = ["render"]


def render(report: Report) -> str:
    """Errors and warnings fail the test case of their rule; notes are output, crashes errors."""
    cases = [_case(report, o.code, o.rule, o) for o in report.outcomes]
    judged = {o.rule for o in report.outcomes}
    for code, rule in dict.fromkeys((f.code, f.rule) for f in report.findings):
        if rule not in judged:  # of a report that was filtered or built by hand
            cases.append(_case(report, code, rule, None))
    numbers = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    counts = {name: str(number) for name, number in numbers.items()}
    name = _text(report.snapshot.model)
    root = ElementTree.Element("testsuites", {"name": "nndiag", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"nndiag.{name}", **counts})
    environment = report.snapshot.environment
    if environment is not None:
        properties = ElementTree.SubElement(suite, "properties")
        for key in ("nndiag", "torch", "python", "device", "dtype", "mode"):
            value = _text(str(getattr(environment, key)))
            ElementTree.SubElement(properties, "property", {"name": key, "value": value})
    suite.extend(cases)
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _case(report: Report, code: str, rule: str, outcome: Outcome | None) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        {
            "classname": f"nndiag.{_text(report.snapshot.model)}",
            "name": _text(f"{code} {rule}".strip()),
        },
    )
    findings = [f for f in report.findings if f.rule == rule]
    severe = [f for f in findings if f.severity != "note"]
    if outcome is not None and outcome.status == "crashed":
        ElementTree.SubElement(case, "error", {"message": _text(outcome.reason)})
    elif outcome is not None and outcome.status == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": _text(outcome.reason)})
    elif severe:
        worst = severe[0]
        where = {"message": _text(f"{worst.layer}: {worst.message}"), "type": worst.severity}
        failure = ElementTree.SubElement(case, "failure", where)
        failure.text = "\n".join(map(_line, severe))
    notes = [f for f in findings if f.severity == "note"]
    if notes:
        ElementTree.SubElement(case, "system-out").text = "\n".join(map(_line, notes))
    return case


def _line(finding: Finding) -> str:
    place = f" ({finding.location})" if finding.location else ""
    cause = ""
    if finding.cause is not None:
        cause = f"; explained by {finding.root.rule} at {finding.root.layer}"
    return _text(f"{finding.severity} at {finding.layer}{place}: {finding.message}{cause}")


def _text(text: str) -> str:
    """Text without control characters, which XML 1.0 forbids even escaped."""
    return story.printable(text)
