"""Every format with far more, far longer and far stranger things in it than anybody expects."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import samples

from nndiag.compare import compare
from nndiag.render import comparison, csv, html, json, junit, lines, markdown, sarif, terminal
from nndiag.report import Report
from nndiag.stats import Node


def on_terminal(report: Report, width: int = 100) -> str:
    return terminal.plain(terminal.render(report), width)


def compared(form) -> object:
    return lambda report: form(compare(samples.sick(), report))


FORMATS = {
    "terminal": on_terminal,
    "terminal, 60 columns": lambda report: on_terminal(report, 60),
    "html": html.render,
    "notebook": html.fragment,
    "markdown": markdown.render,
    "json": json.render,
    "csv": lambda report: "".join(csv.render(report).values()),
    "sarif": sarif.render,
    "junit": junit.render,
    "github": lines.github,
    "concise": lines.concise,
    "comparison": compared(lambda c: terminal.plain(comparison.terminal(c), 100)),
    "comparison, html": compared(comparison.html),
    "comparison, markdown": compared(comparison.markdown),
}


def many_layers() -> Report:
    return samples.large(5000, 4)


def many_findings() -> Report:
    report = samples.large(100)
    findings = tuple(
        replace(report.findings[i % len(report.findings)], cause=None, layer=f"layer{i}")
        for i in range(10_000)
    )
    return replace(report, findings=findings)


def long_names() -> Report:
    return samples.hostile("encoder.layer_" * 35 + "0123456789")


def right_to_left() -> Report:
    return samples.hostile("شبكة.\u202eטבקה\u202c.層.\U0001f9e0")


def not_finite() -> Report:
    report = samples.sick()
    layers = []
    for i, layer in enumerate(report.snapshot.layers):
        value = (math.nan, math.inf, -math.inf)[i % 3]
        output = replace(layer.output, mean=value, m2=abs(value), min=value, max=value)
        layers.append(replace(layer, output=output, grad=output))
    findings = tuple(
        replace(f, cause=None, evidence={"a": math.nan, "b": math.inf, f.measure: -math.inf})
        for f in report.findings
    )
    snapshot = replace(report.snapshot, layers=tuple(layers))
    return replace(report, snapshot=snapshot, findings=findings)


def nothing() -> Report:
    report = samples.empty()
    snapshot = replace(
        report.snapshot, layers=(), nodes=(Node("input", ()),), parameters=(), inputs={}
    )
    return Report(snapshot, (), (), ())


REPORTS = [long_names, many_layers, many_findings, right_to_left, not_finite, nothing]


@pytest.fixture(scope="module")
def made():
    return {make: None for make in REPORTS}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("make", REPORTS, ids=lambda make: make.__name__)
def test_each_renders_in_every_format(made, make, name):
    report = made[make] = made[make] or make()

    text = FORMATS[name](report)

    text.encode("utf-8", "backslashreplace")
    assert "Traceback" not in text
    if name.endswith("markdown"):
        assert len(text.encode()) <= 60_000
    if name == "terminal, 60 columns" and make is not long_names:
        assert max(map(len, text.splitlines())) <= 60
    if name == "terminal" and make in (many_layers, many_findings):
        assert text.count("\n") <= 60


@pytest.mark.one_in(3)
@pytest.mark.parametrize("make", REPORTS, ids=lambda make: make.__name__)
def test_each_is_read_back_as_it_was_saved(made, make):
    report = made[make] = made[make] or make()

    text = json.render(report)

    assert json.render(json.read(Report, text, "here")) == text
