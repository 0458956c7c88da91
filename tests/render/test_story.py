from __future__ import annotations

import math

import pytest
import samples

from nndiag.render import story
from nndiag.rule import Finding


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (156.0, "156"), (524288, "524,288"), (65504.0, "65,504"), (1234.56, "1,235"),
        (0.0123456, "0.0123"), (-2.5, "-2.5"), (6.53e-12, "6.53e-12"), (1e30, "1e+30"),
        (math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_one_would_say_them(value, text):
    assert story.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4, "40 %"), (0.609375, "60.9 %"), (1, "100 %"), (0.9999, "over 99.9 %"),
     (0.005, "0.5 %"), (0.0005, "0.05 %"), (1.16e-6, "0.0001 %"), (1.2e-9, "1.2e-07 %"),
     (0, "0 %"), (1.5, "1.5"), (-0.5, "-0.5"), (math.nan, "NaN")],
)  # fmt: skip
def test_a_share_is_a_percentage_and_not_all_where_it_is_not_all(value, text):
    assert story.number(value, "share") == text


def test_counts_are_singular_where_there_is_one():
    assert story.plural(1, "layer") == "1 layer"
    assert story.plural(0, "layer") == "0 layers"
    assert story.count(1_234_567, "parameter") == "1.23 M parameters"
    assert story.count(12_345, "parameter") == "12.3 k parameters"
    assert story.count(9_999, "parameter") == "9,999 parameters"


def test_the_worst_is_the_one_furthest_past_its_threshold_on_either_side():
    def at(layer, factor):
        evidence = {"factor": factor}
        return Finding("init-scale", "ND301", "error", layer, "", evidence, 2.0, measure="factor")

    [block] = story.blocks([at("a", 3.0), at("b", 0.01), at("c", 9.0), at("d", math.nan)])

    assert [f.layer for f in block.findings] == ["b", "c", "a", "d"]


def test_the_number_measured_is_the_evidence_under_the_name_of_the_threshold():
    def text(**evidence):
        finding = Finding("dead-relu", "ND103", "warning", "a", "", evidence, 0.4, measure="share")
        measure = story.yardstick(finding)
        return (
            measure.name,
            measure.value_text,
            measure.threshold_text,
            measure.source.split(":")[0],
        )

    assert text(units=9.0, share=0.5) == ("share", "50 %", "40 %", "measured")
    assert text(units=9.0) == ("share", "", "40 %", "measured")


def test_findings_without_a_threshold_keep_the_order_of_the_report():
    findings = [Finding("dense-activation", "ND104", "note", name, "") for name in "cab"]

    [block] = story.blocks(findings)

    assert [f.layer for f in block.findings] == ["c", "a", "b"]


def test_every_finding_is_told_in_exactly_one_block():
    for report in (samples.sick(), samples.large(), samples.hostile("x")):
        text = [f for b in story.blocks(report.findings) for f in (*b.findings, *b.consequences)]

        assert sorted(map(id, text)) == sorted(map(id, report.findings))


def test_one_rule_at_two_severities_makes_two_blocks():
    findings = [
        Finding("dead-relu", "ND103", severity, "a", "") for severity in ("error", "warning")
    ]

    assert [b.severity for b in story.blocks(findings)] == ["error", "warning"]


def test_the_counts_are_of_what_is_there():
    counts = story.counts(samples.sick())

    assert counts == "1 error, 7 warnings and 2 notes; 1 rule crashed."
    assert story.counts(samples.healthy()) == "No findings: all 6 rules passed on 5 layers."
    assert story.counts(samples.empty()) == "No rule could run."


def test_the_ledger_adds_up():
    assert story.ledger(samples.sick()) == (
        "10 rules on 5 layers: 6 found 1 error, 7 warnings and 2 notes; 1 passed; 2 skipped; "
        "1 crashed"
    )
