"""No verdict changes unnoticed: what is said of the corpus is what ``findings.csv`` says.

The quick forms share checks that are made anyway: test_calibration.py has each kind of fault,
test_zoo.py the zoo.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calibration import findings, judge
from calibration.cases import Subject
from calibration.findings import Row

DEAD = Row("1", "found", "dead-relu", "ND103", "error", "0")
NOTE = Row("4", "found", "no-gradient", "ND203", "note", "0.weight", "dead-relu@0")


@pytest.mark.exhaustive
@pytest.mark.parametrize("group", findings.GROUPS)
def test_everything_said_is_what_is_written_down(group):
    now = findings.said_now(case for case in findings.cases() if case.group == group)

    assert findings.differences(findings.read(groups=[group]), now) == []


def test_each_case_is_written_down_once():
    names = [case.name for case in findings.cases()]

    assert len(set(names)) == len(names)
    assert list(findings.read()) == names


def test_a_report_without_its_words_and_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    nn.init.constant_(model[0].bias, -100.0)

    said = findings.rows(judge.check(Subject(model, torch.randn(128, 8))))

    assert said[0] == Row("1", "found", "dead-relu", "ND103", "error", "1")
    assert Row("4", "found", "no-gradient", "ND203", "warning", "0.weight", "dead-relu@1") in said


def test_what_was_not_judged_is_said_too():
    torch.manual_seed(0)
    report = judge.check(Subject(nn.Linear(8, 2), torch.randn(4, 8)))

    assert Row("", "unjudged", "signal-collapse", "ND303", layer="(model)") in findings.rows(report)
    chosen = findings.rows(report.judge(select="dead-relu"))
    assert Row("", "skipped", "signal-collapse", "ND303") in chosen
    assert Row("", "skipped", "dead-relu", "ND103") not in chosen


def test_a_case_of_which_nothing_is_said_has_a_row():
    torch.manual_seed(0)
    subject = Subject(nn.Linear(8, 2), torch.randn(128, 8))

    assert findings.rows(judge.check(subject)) == (Row("", "passed"),)


def test_the_difference_says_what_is_gone_and_what_is_new():
    assert findings.differences({"a": [DEAD, NOTE], "b": [DEAD]}, {"a": [NOTE], "c": [DEAD]}) == [
        "a: − error ND103 dead-relu at 0",
        "b: − error ND103 dead-relu at 0",
        "c: + error ND103 dead-relu at 0",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("rule", "x"), ("code", "x"), ("severity", "x"), ("layer", "x"), ("cause", "x@y"),
     ("status", "unjudged")],
)  # fmt: skip
def test_no_field_changes_unnoticed(field, value):
    now = [NOTE._replace(**{field: value})]

    assert len(findings.differences({"a": [NOTE]}, {"a": now})) == 2


def test_another_order_is_a_difference():
    assert findings.differences({"a": [DEAD, NOTE]}, {"a": [NOTE, DEAD]}) == [
        "a: the order is now note ND203 no-gradient at 0.weight, caused by dead-relu@0; "
        "error ND103 dead-relu at 0"
    ]


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "findings.csv"
    said = {"a, b/1": (DEAD, NOTE), "c": (Row("", "passed"),)}
    path.write_text(findings.text(said, {"a, b/1": "fault", "c": "zoo"}), encoding="utf-8")

    assert findings.read(path) == said
    assert findings.read(path, groups=["zoo"]) == {"c": said["c"]}
