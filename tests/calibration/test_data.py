"""Faults of the data are found and lead, and data that only look like one raise no alarm."""

from __future__ import annotations

import collections
import itertools

import pytest

import nndiag
from calibration.cases import Subject
from calibration.faults_data import FAULTS, DataCase
from calibration.healthy_data import HEALTHY


def some(cases: list[DataCase], every: int) -> list[DataCase]:
    """Every so many, from each kind another one."""
    return list(itertools.islice(cases, 0, None, every))


def check(case: DataCase) -> nndiag.Report:
    given: Subject = case.build()
    return nndiag.check(*given, config=False)


def found(case: DataCase) -> bool:
    leading = check(case).findings[:1]
    return [(f.rule, f.cause) for f in leading if f.severity != "note"] == [(case.rule, None)]


def alarms(case: DataCase) -> list[tuple[str, str]]:
    return [(f.rule, f.message) for f in check(case).at_least("warning")]


@pytest.mark.parametrize("case", some(FAULTS, 17), ids=lambda case: case.name)
def test_a_fault_of_the_data_is_found_and_leads(case):
    assert found(case)


@pytest.mark.parametrize("case", some(HEALTHY, 17), ids=lambda case: case.name)
def test_data_that_look_like_a_fault_raise_no_alarm(case):
    assert alarms(case) == []


def test_each_rule_has_a_dozen_faults_over_five_architectures_in_three_forms():
    by_rule = collections.defaultdict(list)
    for case in FAULTS:
        by_rule[case.rule].append(case)

    assert len(by_rule) == 7
    for cases in by_rule.values():
        assert len(cases) >= 12
        assert len({case.architecture for case in cases}) >= 5
        assert {case.form for case in cases} >= {"module", "functional", "by hand"}
    assert len(HEALTHY) >= len(FAULTS)
    assert len({(c.rule, c.name) for c in (*FAULTS, *HEALTHY)}) == len(FAULTS) + len(HEALTHY)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", FAULTS, ids=lambda case: f"{case.rule}/{case.name}")
def test_every_fault_is_found_and_leads(case):
    assert found(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_no_look_alike_raises_an_alarm(case):
    assert alarms(case) == []
