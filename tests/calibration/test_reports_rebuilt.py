"""Of faults as people report them most are named, and their mended twins raise no alarm."""

from __future__ import annotations

import pytest

import nndiag
from calibration import reports_rebuilt
from calibration.reports_rebuilt import PAIRS

NAMED, LEADING, ALARMED = 93, 93, 0  # of 101


def roots(pair, bad):
    model, x, y, loss_fn, optimizer = pair.build(bad)
    batch = nndiag.Batch(args=x if isinstance(x, tuple) else (x,), target=y)
    report = nndiag.check(model, batch, loss_fn=loss_fn, optimizer=optimizer, config=False)
    assert [o for o in report.outcomes if o.status == "crashed"] == []
    return [f.rule for f in report.at_least("warning") if f.cause is None]


def names(pair, rules):
    return bool({pair.rule, *pair.also} & set(rules))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_most_reports_are_named_and_their_twins_are_quiet():
    found = {pair.name: roots(pair, bad=True) for pair in PAIRS}
    alarmed = {pair.name: rules for pair in PAIRS if (rules := roots(pair, bad=False))}
    named = [pair for pair in PAIRS if names(pair, found[pair.name])]
    leading = [pair for pair in PAIRS if names(pair, found[pair.name][:1])]
    assert len(alarmed) <= ALARMED, alarmed
    assert len(named) >= NAMED, [p.name for p in PAIRS if p not in named]
    assert len(leading) >= LEADING


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("pair", PAIRS[::20], ids=lambda pair: pair.name)
def test_some_of_them_in_the_quick_suite(pair):
    assert names(pair, roots(pair, bad=True)[:1])
    assert roots(pair, bad=False) == []


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "pair", [pair for pair in PAIRS if pair.score is not None], ids=lambda pair: pair.name
)
def test_the_twin_learns_what_the_fault_does_not(pair):
    assert reports_rebuilt.train(pair, bad=False) >= pair.good > reports_rebuilt.train(pair, True)


def test_every_report_has_a_name_of_its_own_and_a_twin():
    faults, twins = reports_rebuilt.cases()
    assert len({case.name for case in (*faults, *twins)}) == 2 * len(PAIRS)
    assert {case.rule for case in twins} == {""}
