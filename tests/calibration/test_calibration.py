"""The calibration in small: labels are what they were; nndiag finds, leads, places, keeps quiet.

All of it is ``make calibration``; here is one case of each kind and strength, where one can be had
without long training.
"""

from __future__ import annotations

import ast
import itertools
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import nndiag
from calibration import (
    build,
    experiments,
    faults_activations,
    faults_gradients,
    faults_values,
    faults_weights,
    findings,
    judge,
    labels,
    labels_file,
    nets,
    page,
)
from calibration.cases import Fault, Subject
from calibration.faults import FAULTS, KINDS, WHY
from nndiag.report import Report
from nndiag.rules import discover


def representative() -> list[Fault]:
    """Of each kind the first fault and the first negative, as initialised if there is one so."""
    found: dict[tuple[str, bool], Fault] = {}
    for case in sorted(FAULTS, key=lambda c: (c.state == "trained", c.architecture == "decoder")):
        if not _wrong(case):
            found.setdefault((case.kind, case.sick), case)
    trained = {c.rule: c for c in FAULTS if _trained(c) and not _wrong(c)}
    return [*found.values(), *trained.values()]


def _trained(case: Fault) -> bool:
    """One network, trained once for all of them."""
    return case.sick and "/mlp/functional/trained/" in case.name


def _wrong(case: Fault) -> bool:
    """Known to go wrong, and published with the reason."""
    return case.name in WHY or case.kind in WHY


CASES = representative()
WRONG = [*{case.kind: case for case in FAULTS if _wrong(case)}.values()]


@pytest.fixture(scope="module")
def checked() -> dict[str, tuple[Report, float]]:
    """Each case's report, and its label."""
    done = {}
    for case in CASES:
        subject = case.build()
        report = judge.check(subject)
        done[case.name] = report, float(case.measure(subject))
    return done


@pytest.fixture(scope="module")
def judged(checked) -> pd.DataFrame:
    verdicts = [judge.verdict_of(case, checked[case.name][0], curves=False) for case in CASES]
    return judge.table(CASES, verdicts, {name: label for name, (_, label) in checked.items()})


# -- the corpus ------------------------------------------------------------------------------------


def test_it_has_what_was_promised_of_it():
    names = [case.name for case in FAULTS]
    assert len(set(names)) == len(names)
    assert sum(case.sick for case in FAULTS) >= 120
    assert {case.architecture for case in FAULTS} == set(nets.ARCHITECTURES)
    assert {case.form for case in FAULTS} == {"module", "functional"}
    assert {case.state for case in FAULTS} == {"init", "trained"}
    never_alarm = {name for name, m in discover().items() if m.RULE.severity == "note"}
    elsewhere = {case.rule for case in experiments.cases()}
    assert ({case.rule for case in FAULTS} | elsewhere) - never_alarm - {""} == (
        set(discover()) - never_alarm
    )


def test_every_label_is_stored_and_on_its_side_of_the_limit():
    stored = labels_file.read()
    assert set(stored) == {case.name for case in FAULTS}
    assert [c.name for c in FAULTS if (stored[c.name] > c.limit) != c.sick] == []


@pytest.mark.parametrize(
    ("limit", "published"),
    [
        (faults_activations.SATURATED, "saturation.share"),
        (faults_activations.SATURATED_UNITS, "saturation.units"),
        (faults_activations.DEAD, "dead-relu.share"),
        (faults_activations.ONE_SIGN, "non-zero-centered.one_sign"),
        (1 / faults_activations.COLLAPSED, "signal-collapse.share"),
        (faults_gradients.TOTAL, "exploding-gradient.total"),
        (1 / faults_gradients.TOTAL, "vanishing-gradient.total"),
        (1 / faults_gradients.ROUNDING, "vanishing-gradient.steps"),
        (faults_weights.ACCUMULATED, "init-scale.accumulated"),
        (faults_weights.SATURATED, "init-scale.saturated"),
        (faults_weights.EQUAL, "symmetry.share"),
        (faults_values.RUNNING_MEAN, "covariate-shift.running_mean"),
        (faults_values.RUNNING_VARIANCE, "covariate-shift.running_variance"),
    ],
)
def test_limits_are_the_published_thresholds(limit, published):
    rule, _, name = published.partition(".")
    assert limit == pytest.approx(discover()[rule].RULE.thresholds[name].value)


def test_every_kind_is_described():
    assert set(KINDS) == {case.kind for case in FAULTS}


@pytest.mark.parametrize("module", [labels, nets, build, faults_activations, faults_gradients,
                                    faults_values, faults_weights])  # fmt: skip
def test_corpus_and_labels_know_nothing_of_nndiag(module):
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    loaded = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    loaded += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert loaded
    assert not [name for name in loaded if name.partition(".")[0] == "nndiag"]


def test_what_is_said_of_cases_that_go_wrong_speaks_of_cases_there_are():
    assert set(WHY) <= {c.name for c in FAULTS} | {c.kind for c in FAULTS}


def test_the_network_that_faults_are_injected_into_had_learned():
    model = nets.net("mlp", "functional", "trained")
    assert nets.score(model, "mlp") > 0.95


# -- judged ----------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_labels_are_what_they_were(judged):
    stored = labels_file.read()
    for row in judged.itertuples():
        assert (row.label > row.limit) == row.sick, row.case
        # Trainings and bisections end elsewhere on another machine.
        assert row.label == pytest.approx(stored[row.case], rel=0.1), row.case


@pytest.mark.exhaustive
@pytest.mark.parametrize("goal", list(page.GOALS))
def test_faults_are_found_named_first_and_placed(judged, goal):
    sick = judged[judged["sick"]]
    column = {"recall": "found", "cause": "leading", "localisation": "localised"}[goal]
    missed = sick[~sick[column]]["case"].tolist()
    assert 1 - len(missed) / len(sick) >= page.GOALS[goal], missed


@pytest.mark.exhaustive
def test_nothing_false_is_said(judged):
    false = judged[judged["false_alarms"] != ""]
    assert false[["case", "first_rule", "first_layer", "false_alarms"]].values.tolist() == []


@pytest.mark.exhaustive
def test_what_is_said_of_each_is_what_is_written_down(checked):
    """Of all cases: test_findings.py."""
    was = findings.read()
    now = {name: findings.rows(report) for name, (report, _) in checked.items()}
    now |= findings.said_now(findings.Case("fault", case.name, case.build) for case in WRONG)
    assert findings.differences({name: was[name] for name in now}, now) == []
    assert {case.kind for case in (*CASES, *WRONG)} == set(KINDS)


@pytest.mark.exhaustive
def test_no_rule_crashes(judged):
    assert judged["crashed"].sum() == 0


def test_a_check_leaves_a_subject_as_it_was_for_the_label():
    case = next(c for c in CASES if c.kind == "dead-beta")
    assert case.measure(case.build()) == case.measure(_checked(case.build()))


def _checked(subject: Subject) -> Subject:
    judge.check(subject)
    return subject


# -- labels, against what is known -----------------------------------------------------------------


def one_layer(std: float, bias: float = 0.0) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256))
    nn.init.normal_(model[0].weight, std=std / 8)
    nn.init.constant_(model[0].bias, bias)
    return Subject(model, torch.randn(512, 64), torch.zeros(512, 256), nn.functional.mse_loss)


def test_the_share_of_saturated_values_is_that_of_a_normal_distribution():
    edge = math.acosh(1 / math.sqrt(0.05))  # where 1 - tanh² is 5 %
    expected = math.erfc(edge / 6.8 / math.sqrt(2))
    assert labels.saturated_share(one_layer(6.8), "0") == pytest.approx(expected, abs=0.01)


def test_units_are_dead_only_if_they_are_so_on_every_sample():
    subject = one_layer(1.0)
    assert labels.dead_share(subject, "0") == 0
    with torch.no_grad():
        subject.model[0].bias[:64] = -100
    assert labels.dead_share(subject, "0") == 0.25


def test_weights_are_off_by_the_factor_they_were_multiplied_by():
    base = nets.net("mlp", seed=1)
    subject = nets.subject(base, "mlp")
    layers = base.places[:-1]
    before = labels.too_small(subject, layers, labels.HE)
    with torch.no_grad():
        base.layers[3].weight.div_(50)
    assert labels.too_small(subject, layers, labels.HE) == pytest.approx(50 * before, rel=0.4)


@pytest.mark.parametrize(("kind", "expected"), [("relu", 5.0), ("identity", 2.0)])
def test_the_fluctuation_of_a_layer_is_that_of_the_literature(kind, expected):
    # Var(z² 1[z>0]) / (1/2)² = (3/2 - 1/4) · 4 = 5; Var(z²) = 2.
    assert labels._fluctuation(kind) == pytest.approx(expected, rel=1e-4)


# -- the judge -------------------------------------------------------------------------------------


def said(*alarms: tuple[str, str, str]) -> judge.Verdict:
    made = tuple(judge.Alarm(rule, layer, "warning", root) for rule, layer, root in alarms)
    return judge.Verdict("", made, math.nan, math.nan, "", 0, {})


def case(sick: bool = True) -> Fault:
    return Fault("x", "x", "dead-relu", "mlp", "module", "init", 1, sick,
                 frozenset({"a", "a/relu"}), Subject, lambda s: 1.0, 0.5)  # fmt: skip


def test_what_follows_from_the_injected_fault_is_not_false():
    marks = judge.mark(case(), said(("dead-relu", "a/relu", "dead-relu"),
                                    ("no-gradient", "b", "dead-relu")))  # fmt: skip
    assert marks == judge.Marks(True, True, True, False, ())


def test_another_fault_before_it_costs_the_cause_and_is_false():
    marks = judge.mark(case(), said(("init-scale", "b", "init-scale"),
                                    ("dead-relu", "a", "init-scale")))  # fmt: skip
    assert marks == judge.Marks(True, False, True, True, ("init-scale",))


def test_any_alarm_on_a_negative_is_false():
    marks = judge.mark(case(sick=False), said(("dead-relu", "a", "dead-relu")))
    assert marks.false == ("dead-relu",)


@pytest.mark.parametrize(
    ("layer", "right"), [("a", True), ("a@3/relu", True), ("a.b", False), ("/relu", False)]
)
def test_every_call_of_a_layer_is_the_right_place(layer, right):
    assert judge.right_place(layer, frozenset({"a", "a/relu"})) == right


def test_intervals_are_those_of_the_tables():
    # Clopper & Pearson 1934: of 10 out of 10, and 5 out of 10, at 95 %.
    assert judge.Share(10, 10).interval == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert judge.Share(5, 10).interval == pytest.approx((0.1871, 0.8129), abs=1e-4)


def test_a_threshold_moved_far_enough_turns_the_verdict():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    nn.init.constant_(model[0].bias[:32], -20.0)
    found = judge.curve(nndiag.check(model, torch.randn(256, 16), config=False))
    along = [found["dead-relu", "share", factor] for factor in judge.FACTORS]
    assert along == [0.4 * factor < 0.5 for factor in judge.FACTORS]
    assert all(a >= b for a, b in itertools.pairwise(along))
