from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import samples

from nndiag import schema
from nndiag.errors import ReportError
from nndiag.render import csv, html, markdown, sarif, terminal
from nndiag.render import json as saved
from nndiag.report import Report
from nndiag.rule import Finding

REPORTS = {
    "sick": samples.sick,
    "healthy": samples.healthy,
    "empty": samples.empty,
    "large": lambda: samples.large(20),
    "hostile": lambda: samples.hostile("<é\ud800\n\x00🙂>"),
}


@pytest.fixture(params=REPORTS)
def report(request):
    return REPORTS[request.param]()


def again(report):
    return saved.read(Report, saved.render(report), "report.json")


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def same(a, b):
    """Equal to the last bit, and of the same types."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b or (a != a and b != b)


def test_a_report_comes_back_the_same(report):
    same(report, again(report))


def test_every_format_says_the_same_before_and_after(report):
    loaded = again(report)

    for render in (saved.render, html.render, html.fragment, markdown.render, sarif.render):
        assert render(loaded) == render(report)
    assert csv.render(loaded) == csv.render(report)
    assert terminal.plain(terminal.render(loaded)) == terminal.plain(terminal.render(report))


def test_a_cause_is_the_very_finding_of_the_list_again():
    loaded = again(samples.sick())

    caused = [f for f in loaded.findings if f.cause is not None]
    assert len(caused) == 3
    for finding in caused:
        assert any(finding.cause is other for other in loaded.findings)


def test_a_cause_that_is_equal_but_not_the_same_object_is_found():
    report = samples.sick()
    copy = replace(report.findings[0])
    findings = (report.findings[0], replace(report.findings[-1], cause=copy))

    loaded = again(replace(report, findings=findings))

    assert loaded.findings[1].cause is loaded.findings[0]


def test_a_cause_outside_the_list_is_refused_rather_than_lost():
    report = samples.sick()

    with pytest.raises(ReportError, match=r"saturation at encoder\.2 explains a finding, but"):
        saved.render(replace(report, findings=report.findings[-1:]))


def test_the_json_is_strict_and_valid_by_the_published_schema(report):
    jsonschema.validate(strict(saved.render(report)), json.loads(schema.published()))


def test_not_a_number_and_infinity_travel_as_words():
    tree = strict(saved.render(samples.sick()))
    row = tree["report"]["snapshot"]["layers"][3]

    assert row["output"]["mean"] == "NaN"
    assert (row["output"]["min"], row["output"]["max"]) == ("-Infinity", "Infinity")
    assert row["facts"] == {"fan": "Infinity"}


def test_the_published_schema_is_not_stale():
    assert json.loads(schema.published()) == json.loads(schema.current()), (
        "run python -m nndiag.schema"
    )


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda r: r["findings"][0].update(severity="fatal"), "severity"),
        (lambda r: r["findings"][0].update(cause=-1), "cause"),
        (lambda r: r["snapshot"]["layers"][0].pop("name"), "name"),
        (lambda r: r["snapshot"]["layers"][0].update(shape="(8, 4)"), "shape"),
        (lambda r: r["snapshot"]["layers"][0]["output"].update(mean="about 3"), "mean"),
        (lambda r: r["outcomes"][0].update(status="maybe"), "status"),
    ],
)
def test_a_wrong_field_is_refused_by_reader_and_schema_alike(change, path):
    tree = json.loads(saved.render(samples.sick()))
    change(tree["report"])

    with pytest.raises(ReportError, match=rf"r\.json is not a valid report: .*\b{path}"):
        saved.read(Report, json.dumps(tree), "r.json")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, json.loads(schema.published()))


def test_a_field_of_a_later_version_does_no_harm():
    tree = json.loads(saved.render(samples.sick()))
    tree["report"]["snapshot"]["layers"][0]["colour"] = "red"

    same(samples.sick(), saved.read(Report, json.dumps(tree), "r.json"))


@pytest.mark.parametrize("end", [0, 1, 20, 1000, -2])
def test_a_file_that_was_cut_short_is_called_that(end):
    with pytest.raises(ReportError, match=r"r\.json is not JSON, or was cut short: .*to_json"):
        saved.read(Report, saved.render(samples.sick())[:end], "r.json")


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"schema": 1}'])
def test_other_json_is_not_taken_for_a_report(text):
    with pytest.raises(ReportError, match=r"r\.json is JSON, but not a saved report"):
        saved.read(Report, text, "r.json")


def test_a_form_of_the_future_names_the_version_that_reads_it():
    tree = {"schema": 2, "nndiag": "9.1", "report": {"anything": []}}

    with pytest.raises(ReportError, match=r"written by nndiag 9\.1 in form 2; .* reads form 1"):
        saved.read(Report, json.dumps(tree), "r.json")


@pytest.mark.parametrize("causes", [{0: 0}, {0: 1, 1: 0}, {0: 99}])
def test_causes_that_lead_nowhere_are_refused(causes):
    tree = json.loads(saved.render(samples.sick()))
    for index, cause in causes.items():
        tree["report"]["findings"][index]["cause"] = cause

    with pytest.raises(ReportError, match="as its cause"):
        saved.read(Report, json.dumps(tree), "r.json")


def test_a_broken_packed_array_is_refused():
    text = saved.render(samples.sick())
    tree = json.loads(text)
    tree["report"]["snapshot"]["inputs"]["input"]["histogram"]["counts"]["deflate"] = "AAAA"

    with pytest.raises(ReportError, match=r"r\.json"):
        saved.read(Report, json.dumps(tree), "r.json")


def test_names_like_those_of_a_packed_array_are_not_taken_for_one():
    finding = Finding("r", "ND1", "note", "l", "m", {"dtype": 1.0, "deflate": math.nan})

    loaded = again(replace(samples.empty(), findings=(finding,)))

    assert loaded.findings[0].evidence["dtype"] == 1.0


def test_short_arrays_are_readable_and_long_ones_are_packed():
    row = json.loads(saved.render(samples.sick()))["report"]["snapshot"]["layers"][1]

    assert row["output"]["units"]["count"] == [8.0] * 4
    assert row["flat"]["open"] == [1, 1, 0, 1]
    assert row["output"]["histogram"]["counts"].keys() == {"dtype", "deflate"}


def test_a_hundred_layers_of_512_units_take_a_few_megabytes():
    assert len(saved.render(samples.large(100, units=512))) < 12e6


SAVED = sorted(Path(__file__).with_name("saved").glob("report-*.json"))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_what_an_older_version_saved_still_loads(path):
    """Files stay as the version wrote them that first had their form; none is ever remade."""
    report = saved.read(Report, path.read_text(encoding="utf-8"), str(path))

    assert [f.layer for f in report.findings] == [f.layer for f in samples.sick().findings]
    assert report.snapshot.layers[0].output.mean == samples.sick().snapshot.layers[0].output.mean
    assert str(report)


def test_every_form_there_ever_was_has_such_a_file():
    assert [path.stem for path in SAVED] == [f"report-{n}" for n in range(1, saved.SCHEMA + 1)]
