"""The faults between a network and its loss are found, and what looks like one is left alone."""

from __future__ import annotations

import pytest

import nndiag
from calibration import faults_loss, healthy_loss

FAULTS, HEALTHY = faults_loss.cases(), healthy_loss.cases()
FEW = 9  # of these one is judged in the quick suite


def spread(cases):
    """One case in so many; the others in the long suite."""
    return [
        pytest.param(
            case, id=f"{case.rule}-{case.name}" if case.rule else case.name,
            marks=[] if k % FEW == 0 else [pytest.mark.exhaustive],
        )
        for k, case in enumerate(cases)
    ]  # fmt: skip


def loud(case):
    model, batch, target, loss_fn = case.build()
    report = nndiag.check(model, batch, target, loss_fn, config=False)
    assert [o for o in report.outcomes if o.status == "crashed"] == []
    return [f for f in report.findings if f.severity != "note"]


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", spread(FAULTS))
def test_a_fault_is_found_and_leads(case):
    first = loud(case)[0]
    assert (first.rule, first.cause) == (case.rule, None)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", spread(HEALTHY))
def test_what_looks_like_a_fault_raises_no_alarm(case):
    assert loud(case) == []


def test_each_rule_has_faults_of_every_architecture_and_form():
    for rule in {case.rule for case in FAULTS}:
        own = [case.name.split("/") for case in FAULTS if case.rule == rule]
        assert len(own) >= 12
        assert len({architecture for _, architecture, _ in own}) == 5
        assert len({form for *_, form in own}) >= 3
    assert len({case.rule + case.name for case in FAULTS}) == len(FAULTS)
    assert len({case.name for case in HEALTHY}) == len(HEALTHY) >= 100
