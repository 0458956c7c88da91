"""The optimiser's rules on faults and on what only looks like them."""

from __future__ import annotations

import warnings

import pytest

import nndiag
from calibration.faults_optimizer import FAULTS, NOTES
from calibration.healthy_optimizer import HEALTHY

OWN = ("optimizer-coverage", "no-update", "lr-too-low", "lr-too-high", "gradient-not-cleared",
       "regularization-too-strong")  # fmt: skip
FIRST = {case.rule: case for case in reversed(FAULTS)}.values()  # one of each, in the quick suite


def check(case):
    model, batch, target, loss_fn, optimizer = case.build()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*epoch parameter|.*lr_scheduler.step")
        return nndiag.check(model, batch, target, loss_fn, optimizer=optimizer, config=False)


def leads(case):
    report = check(case)
    assert [o for o in report.crashed] == []
    own = [f for f in report.findings if f.rule == case.rule and f.cause is None]
    assert own, report.verdict
    return own[0].severity


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.name)
def test_a_fault_of_each_rule_is_found(case):
    assert leads(case) != "note"


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", FAULTS, ids=lambda case: f"{case.rule}/{case.name}")
def test_each_fault_is_found_as_a_root(case):
    assert leads(case) != "note"


@pytest.mark.parametrize("case", NOTES[:1], ids=lambda case: case.name)
def test_what_one_look_cannot_tell_is_a_note(case):
    assert leads(case) == "note"


def quiet(case):
    report = check(case)
    assert [o for o in report.crashed] == []
    assert [f"{f.rule}: {f.message}" for f in report.findings if f.severity != "note"] == []


@pytest.mark.parametrize("case", HEALTHY[::17], ids=lambda case: case.name)
def test_some_that_fit_are_not_alarmed(case):
    quiet(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_none_that_fits_is_alarmed(case):
    quiet(case)


def test_there_are_enough_of_each():
    for rule in OWN:
        faults = [c.name for c in (*FAULTS, *NOTES) if c.rule == rule]
        assert len(faults) >= (8 if rule == "gradient-not-cleared" else 12), rule
        assert len({name.rpartition("/")[2] for name in faults}) >= 5
    assert len(HEALTHY) >= len(FAULTS)
    names = [case.name for case in HEALTHY]
    assert len(set(names)) == len(names)
