"""A finding a line, GitHub's annotations, and JUnit's XML."""

from __future__ import annotations

import re
from html import escape as html_escape
from json import loads as json_loads
from xml.etree import ElementTree

import pytest
import samples

from nndiag.render import csv, html, json, junit, lines, sarif, story

COMMAND = re.compile(r"::(error|warning|notice) ([^:]*)::(.*)")
ALL = [samples.sick, samples.healthy, samples.empty, samples.large]


@pytest.mark.parametrize("make", ALL)
def test_each_finding_is_one_line(make):
    report = make()

    text = lines.concise(report).splitlines()

    assert len(text) == len(report.findings) + len(report.crashed) + 1
    for line, finding in zip(text[1:], report.findings, strict=False):
        assert line.startswith(f"{finding.location}: " if finding.location else finding.severity)
        assert f"{finding.code} {finding.rule} at {finding.layer}" in line
    assert text[0] == " ".join(report.verdict.split())


@pytest.mark.parametrize("make", ALL)
def test_each_finding_is_one_annotation(make):
    report = make()

    found = [COMMAND.fullmatch(line) for line in lines.github(report).splitlines()]

    assert all(found)
    assert len(found) == len(report.findings) + len(report.crashed)
    for match, finding in zip(found, report.findings, strict=False):
        assert (
            match[1] == {"error": "error", "warning": "warning", "note": "notice"}[finding.severity]
        )


def unescaped(text):
    for code, char in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        text = text.replace(code, char)
    return text


def test_a_name_cannot_end_an_annotation_or_begin_another():
    name = "a,file=/etc/passwd::b\n::error::c 100%"

    text = lines.github(samples.hostile(name)).splitlines()

    assert all(COMMAND.fullmatch(line) for line in text)
    properties = dict(part.split("=", 1) for part in COMMAND.fullmatch(text[0])[2].split(","))
    assert story.printable(name.replace("\n", "%0A")) in unescaped(properties["title"]).replace(
        "\n", "%0A"
    )
    assert set(properties) <= {"title", "file", "line"}
    assert len(lines.concise(samples.hostile(name)).splitlines()) == len(text) + 1


@pytest.mark.parametrize("make", ALL)
def test_junit_counts_what_it_holds(make):
    report = make()

    root = ElementTree.fromstring(junit.render(report))

    [suite] = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [f"{o.code} {o.rule}" for o in report.outcomes]
    for element in (root, suite):
        assert int(element.get("tests")) == len(report.outcomes)
        for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.get(kind)) == len(suite.findall(f"testcase/{tag}"))
    failed = {case.get("name").split()[1] for case in cases if case.find("failure") is not None}
    crashed = {o.rule for o in report.crashed}
    assert failed == {f.rule for f in report.at_least("warning")} - crashed
    text = "".join(suite.itertext())
    for finding in report.findings:
        if finding.rule not in crashed:
            assert f"at {finding.layer}" in text


def test_what_xml_cannot_hold_is_escaped():
    name = "\x00\x1b[2J<&]]>\udcff\ufffe"

    root = ElementTree.fromstring(junit.render(samples.hostile(name)).encode())

    shown = [text for e in root.iter() for text in (e.text or "", *e.attrib.values())]
    assert any(story.printable(name) in text for text in shown)


@pytest.mark.parametrize("make", ALL)
def test_every_format_counts_the_same(make):
    report = make()
    findings = len(report.findings)
    page = html.render(report)

    assert len(csv.render(report)["findings.csv"].splitlines()) - 1 == len(report.to_frame())
    assert len(report.to_frame()) == findings
    assert len(json_loads(sarif.render(report))["runs"][0]["results"]) == findings
    assert len(json_loads(json.render(report))["report"]["findings"]) == findings
    assert len(lines.concise(report).splitlines()) == findings + len(report.crashed) + 1
    text = re.findall(r"([\d,]+) (?:error|warning|note)s?", story.tally(report.findings))
    assert sum(int(n.replace(",", "")) for n in text) == findings
    assert html_escape(report.verdict) in page
    assert story.counts(report) in page
    rows = [*report.snapshot.layers, *report.snapshot.experiment.calls]
    assert page.count('<tr id="L') == len(rows)
    assert page.count('<tr id="P') == len(report.snapshot.parameters)
    blocks = story.blocks(report.findings)
    assert sum(len(b.findings) + len(b.consequences) for b in blocks) == findings
