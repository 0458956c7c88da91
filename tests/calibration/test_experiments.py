"""The published table over the rules about the experiment is what these rules say."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from calibration import experiments

ROOT = Path(__file__).parents[2]
CASES = list(experiments.cases())
ROWS = list(csv.DictReader(experiments.TABLE.read_text(encoding="utf-8").splitlines()))


def test_it_has_every_case_once():
    names = [(c.domain, c.name, c.rule) for c in CASES]
    assert [(r["domain"], r["case"], r["rule"]) for r in ROWS] == names
    assert len(set(names)) == len(names)


def test_its_page_is_made_of_its_table():
    assert experiments.PAGE.read_text(encoding="utf-8") == experiments.page(ROWS)


def test_recall_and_false_alarms_are_what_was_promised():
    faults, healthy = ([r for r in ROWS if bool(r["rule"]) == sick] for sick in (True, False))
    assert sum(r["found"] == "True" for r in faults) / len(faults) >= 0.97
    assert sum(r["leads"] == "True" for r in faults) / len(faults) >= 0.90
    assert [r["case"] for r in healthy if r["alarms"]] == []


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/evidence.md"])
def test_what_is_written_of_it_has_its_numbers(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    [passage] = re.findall(r"experiments\.md\).*?(?:\n\n|\n- )", text, re.S)
    faults = [r for r in ROWS if r["rule"]]
    found = sum(r["found"] == "True" for r in faults)
    for number in (len(faults), found, len(ROWS) - len(faults)):
        assert re.search(rf"\b{number}\b|{number} ", passage), number


@pytest.mark.parametrize("case", CASES[::97], ids=lambda c: c.name)
def test_some_cases_are_judged_as_published(case):
    [known] = [r for r in ROWS if (r["domain"], r["case"]) == (case.domain, case.name)]
    assert experiments.row(case) == known
