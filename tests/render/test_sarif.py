from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import samples

from nndiag.render import sarif

# OASIS's own (sarif/LICENSE.md).
SCHEMA = json.loads(
    Path(__file__).with_name("sarif").joinpath("sarif-schema-2.1.0.json").read_text()
)


@pytest.mark.parametrize(
    "make",
    [samples.sick, samples.healthy, samples.empty, samples.large,
     lambda: samples.hostile("\udcff\x1b[2J<script>")],
)  # fmt: skip
def test_it_is_what_the_official_schema_asks_for(make):
    log = json.loads(sarif.render(make()))

    validator = jsonschema.validators.validator_for(SCHEMA)(
        SCHEMA, format_checker=jsonschema.FormatChecker()
    )
    assert [error.message for error in validator.iter_errors(log)] == []


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(report):
    log = json.loads(sarif.render(report))
    assert log["version"] == "2.1.0"
    [run] = log["runs"]
    return run


def physical(result):
    return result["locations"][0].get("physicalLocation")


def test_every_finding_is_a_result_with_its_severity_and_its_layer():
    report = samples.sick()
    results = run_of(report)["results"]

    text = [
        (r["ruleId"], r["level"], r["locations"][0]["logicalLocations"][0]["fullyQualifiedName"])
        for r in results
    ]
    assert text == [(f.code, f.severity, f.layer) for f in report.findings]


def test_every_result_points_at_its_rule_and_known_rules_bring_their_page():
    run = run_of(samples.sick())
    rules = run["tool"]["driver"]["rules"]

    assert all(rules[r["ruleIndex"]]["id"] == r["ruleId"] for r in run["results"])
    by_id = {rule["id"]: rule for rule in rules}
    assert by_id["ND103"]["shortDescription"]["text"] == "Units that were zero on every sample."
    assert "reports/calibration/dead-relu.md" in by_id["ND103"]["help"]["text"]
    assert by_id["ND999"] == {"id": "ND999", "name": "future-disease"}


def test_a_line_in_the_project_is_told_from_its_root(project):
    results = run_of(samples.sick())["results"]

    assert physical(results[1]) == {
        "artifactLocation": {"uri": "models/encoder.py"},
        "region": {"startLine": 41},
    }


@pytest.mark.parametrize(
    "location",
    [None, "", "nonsense", "x.py:", "x.py:0", "x.py:-1", "../x.py:3", "/etc/x.py:3", "<string>"],
)
def test_a_place_outside_the_project_or_nowhere_is_not_told(project, location):
    report = samples.sick()
    moved = replace(report.findings[0], location=location)

    assert physical(run_of(replace(report, findings=(moved,)))["results"][0]) is None


def test_an_absolute_path_in_the_project_becomes_relative_and_is_quoted(project):
    report = samples.sick()
    place = f"{project / 'my models' / 'ä.py'}:7"
    moved = replace(report.findings[0], location=place)

    text = physical(run_of(replace(report, findings=(moved,)))["results"][0])

    assert text["artifactLocation"] == {"uri": "my%20models/%C3%A4.py"}


def test_a_finding_keeps_its_fingerprint_when_its_numbers_and_its_line_change():
    report = samples.sick()
    changed = replace(
        report,
        findings=tuple(replace(f, message="other", location="a.py:1") for f in report.findings),
    )

    def prints(which):
        return [r["partialFingerprints"] for r in run_of(which)["results"]]

    assert prints(report) == prints(changed)
    assert len({str(p) for p in prints(report)}) == len(report.findings)


def test_a_crashed_rule_makes_the_run_unsuccessful():
    [sick], [healthy] = (run_of(r)["invocations"] for r in (samples.sick(), samples.healthy()))

    assert sick["executionSuccessful"] is False
    assert "ZeroDivisionError" in sick["toolExecutionNotifications"][0]["message"]["text"]
    assert healthy["executionSuccessful"] is True


def test_the_reason_and_the_fix_are_in_the_message():
    result = run_of(samples.sick())["results"][-1]

    assert result["message"]["text"] == (
        "encoder.0: falls to 0.11 a layer\nExplained by init-scale at encoder.0.weight."
    )
