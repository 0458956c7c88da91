"""What holds of every rule, said once."""

from __future__ import annotations

import copy
import inspect
import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag import judge, rule, rules
from nndiag.causes import explain
from nndiag.render import page
from nndiag.stats import Layer, Loss, Node, Snapshot, TensorStats

ROOT = Path(nndiag.__file__).parents[1]
RULES = rules.discover()
# Consequences have their cause in front: slopes that let the gradient vanish let the signal
# collapse, and weights that are too large let the gradient explode.
LED_BY = {"signal-collapse": "vanishing-gradient", "exploding-gradient": "init-scale"}
every_rule = pytest.mark.parametrize("module", RULES.values(), ids=list(RULES))


def run(code, names):
    exec(code, names)  # the examples of the rule pages are code
    return nndiag.check(
        names["model"],
        names["batch"],
        loss_fn=names.get("loss_fn"),
        optimizer=names.get("optimizer"),
        config=False,
        seed=0,
    ).snapshot


@pytest.fixture(scope="module")
def examples():
    """Snapshots of each rule's sick and well example."""
    made = {}
    for name, module in RULES.items():
        names = {"torch": torch, "nn": nn, "F": F}
        sick, well = page.examples(module)
        made[name] = run(sick, names), run(well, names)
    return made


@every_rule
def test_the_sick_example_is_found_and_leads(module, examples):
    sick, _ = examples[module.RULE.name]
    findings = judge.judge(sick).findings

    own = [f for f in findings if f.rule == module.RULE.name]
    assert own
    if module.RULE.severity != "note":
        roots = [f for f in findings if f.cause is None and f.severity != "note"]
        leading = LED_BY.get(module.RULE.name, module.RULE.name)
        assert {f.rule for f in roots} == {leading}
        assert findings[0].rule == leading


@every_rule
def test_the_well_example_has_nothing_of_it_beyond_a_note(module, examples):
    _, well = examples[module.RULE.name]
    judged = judge.judge(well)

    own = [f for f in judged.findings if f.rule == module.RULE.name]
    assert [f for f in own if f.severity != "note" or module.RULE.severity == "note"] == []
    assert [f.rule for f in judged.findings if f.severity != "note"] == []
    assert [o for o in judged.outcomes if o.status == "crashed"] == []


@every_rule
def test_the_file_is_named_after_the_rule(module):
    assert module.__name__.rpartition(".")[2].replace("_", "-") == module.RULE.name
    assert re.fullmatch(r"ND\d{3}", module.RULE.code)


@every_rule
def test_every_threshold_says_where_it_comes_from(module):
    for name, threshold in module.RULE.thresholds.items():
        kind, _, text = threshold.source.partition(": ")
        assert kind in ("derived", "cited", "measured"), name
        assert len(text) > 10, name
        assert threshold.low <= threshold.value <= threshold.high, name


@every_rule
def test_a_measurement_it_appeals_to_exists(module):
    for path in re.findall(r"reports/[\w./-]+", inspect.getsource(module)):
        assert (ROOT / path).is_file(), path


@every_rule
def test_the_page_has_a_title_both_examples_and_its_thresholds(module):
    text = page.page(module)
    sick, well = page.examples(module)

    assert text.startswith(f"{module.RULE.code} {module.RULE.name}")
    assert page.title(module).endswith(".")
    assert len(page.title(module)) < 100
    assert compile(sick, "sick", "exec")
    assert compile(well, "well", "exec")
    for name in module.RULE.thresholds:
        assert name in text


@every_rule
def test_its_docstring_has_the_fixed_headings_in_order_and_none_is_empty(module):
    assert tuple(re.findall(r"^(.+)\n-{3,}$", module.__doc__, re.M)) == page.HEADINGS

    found = page.sections(module)
    others = ("Example", "Thresholds", "Fixes", "References")
    assert [heading for heading in (*page.HEADINGS, *others) if heading in found] == [*found]
    assert {*page.HEADINGS, "Example"} <= found.keys()
    assert ("Thresholds" in found, "Fixes" in found) == (
        bool(module.RULE.thresholds), bool(module.RULE.fixes),
    )  # fmt: skip
    assert all(len(text.split()) >= 10 for text in map(found.get, page.HEADINGS))
    assert page.title(module) == module.__doc__.splitlines()[0]


def test_a_page_without_headings_keeps_its_text():
    module = ModuleType("other", "A title.\n\nWhat it says.\n\nSick::\n\n    x = 1\n")
    module.RULE = rule.Rule("XX001", "other", "note", "input")

    assert page.sections(module) == {
        "What it does": "What it says.", "Example": "Sick::\n\n    x = 1",
    }  # fmt: skip
    assert "A title.\n\nWhat it does\n------------\n\nWhat it says.\n" in page.page(module)
    assert page.examples(module) == ("x = 1", "")


@every_rule
def test_it_names_only_rules_that_exist_as_causes(module):
    assert set(module.RULE.caused_by) <= set(RULES)


@every_rule
def test_it_survives_an_empty_snapshot(module):
    empty = Snapshot("Empty", (), (), (), {}, Loss("none"), 0, 0)
    thresholds = judge.effective_thresholds(None)[module.RULE.name]

    found = [f for f in module.check(empty, thresholds) if isinstance(f, rule.Finding)]
    assert found == []


@every_rule
def test_it_says_nothing_about_layers_whose_numbers_are_not_finite(module, examples):
    sick = _poisoned(examples["vanishing-gradient"][0])
    thresholds = judge.effective_thresholds(None)[module.RULE.name]

    found = [f for f in module.check(sick, thresholds) if isinstance(f, rule.Finding)]
    assert module.RULE.name == "non-finite" or [f for f in found if f.severity != "note"] == []


def _poisoned(snapshot):
    def nan(stats):
        if stats is None:
            return None
        return replace(
            stats, count=0, nan=stats.total, zeros=0, mean=math.nan, m2=0.0, min=math.nan,
            max=math.nan, units=None, probe=None,
        )  # fmt: skip

    layers = tuple(
        replace(la, output=nan(la.output), input=nan(la.input), grad=nan(la.grad))
        for la in snapshot.layers
    )
    return replace(snapshot, layers=layers)


@every_rule
def test_it_does_not_change_the_snapshot(module, examples):
    sick, _ = examples[module.RULE.name]
    before = _fingerprint(sick)
    list(module.check(sick, judge.effective_thresholds(None)[module.RULE.name]))

    assert _fingerprint(sick) == before


def _fingerprint(snapshot):
    return repr(snapshot), [
        layer.output.units.mean.tobytes() for layer in snapshot.layers if layer.output.units
    ]


@every_rule
def test_its_findings_carry_what_the_contract_says(module, examples):
    for finding in judge.judge(examples[module.RULE.name][0]).findings:
        assert finding.severity in rule.SEVERITIES
        assert finding.code == RULES[finding.rule].RULE.code
        assert finding.message
        assert "\n" not in finding.message
        assert all(isinstance(v, float) for v in finding.evidence.values())


@every_rule
def test_each_of_its_findings_has_a_summary_and_messages_are_sentences(module, examples):
    for snapshot in examples[module.RULE.name]:
        for finding in judge.judge(snapshot).findings:
            assert finding.summary
            assert finding.summary.endswith(".")
            assert len(finding.summary) <= 160
            assert finding.message.endswith(".")
            for text in (finding.summary, finding.message):
                assert not text[0].islower() or text.startswith((finding.layer, "relu", "mish"))
                assert finding.rule not in text
                assert "\n" not in text
                assert "  " not in text


@every_rule
def test_shares_and_factors_say_what_they_are(module):
    for name, threshold in module.RULE.thresholds.items():
        assert (threshold.high == 1) == (threshold.unit == "share"), name
        assert threshold.unit != "factor" or threshold.low == 1, name


def test_codes_and_names_are_unique():
    codes = [m.RULE.code for m in RULES.values()]
    assert len(set(codes)) == len(codes) == len(RULES)


def test_a_rule_that_crashes_costs_nobody_else_their_verdict(examples, monkeypatch):
    def broken(snapshot, thresholds):
        raise ZeroDivisionError("one over nothing")

    monkeypatch.setattr(RULES["saturation"], "check", broken)
    judged = judge.judge(examples["dead-relu"][0])

    [crashed] = [o for o in judged.outcomes if o.status == "crashed"]
    assert crashed.rule == "saturation"
    assert "ZeroDivisionError: one over nothing" in crashed.reason
    assert "dead-relu" in [f.rule for f in judged.findings]


def test_without_gradients_the_rules_that_need_them_are_skipped_with_the_reason(examples):
    blind = replace(
        examples["vanishing-gradient"][0], has_gradients=False, no_gradients_because="nobody asked"
    )
    outcomes = {o.rule: o for o in judge.judge(blind).outcomes}

    assert outcomes["vanishing-gradient"].status == "skipped"
    assert outcomes["vanishing-gradient"].reason == "needs gradients: nobody asked"
    assert outcomes["saturation"].status == "passed"


def test_what_is_computed_follows_from_the_rules_that_are_selected():
    assert judge.needed(judge.chosen("saturation")) == {"outputs"}
    assert "gradients" in judge.needed(judge.chosen("ND2"))
    assert "step" in judge.needed(judge.chosen("covariate-shift"))


class TestChoosing:
    def test_by_name_by_code_and_by_the_beginning_of_codes(self):
        assert list(judge.chosen("ND103")) == ["dead-relu"]
        gradients = [name for name, m in RULES.items() if m.RULE.code.startswith("ND2")]
        assert list(judge.chosen(["dead-relu", "nd2"])) == ["dead-relu", *gradients]
        assert "no-gradient" in gradients
        assert "saturation" not in judge.chosen(None, "ND1")

    def test_an_unknown_rule_names_the_nearest(self):
        with pytest.raises(nndiag.UnknownRuleError, match="Did you mean 'dead-relu'") as caught:
            judge.chosen("dead-relus")
        assert isinstance(caught.value, KeyError)
        assert str(caught.value).startswith("no rule is called 'dead-relus'.")

    def test_thresholds_flat_and_nested(self):
        assert judge.effective_thresholds({"dead-relu.share": 0.5})["dead-relu"].share == 0.5
        assert judge.effective_thresholds({"dead-relu": {"share": 0.5}})["dead-relu"].share == 0.5
        assert judge.effective_thresholds(None)["dead-relu"].share == 0.40

    def test_an_unknown_threshold_names_the_nearest(self):
        with pytest.raises(nndiag.UnknownRuleError, match="Did you mean 'share'"):
            judge.effective_thresholds({"dead-relu.shares": 0.5})
        with pytest.raises(nndiag.UnknownRuleError, match="Did you mean 'dead-relu'"):
            judge.effective_thresholds({"dead-rely.share": 0.5})

    def test_a_share_in_percent_is_told_how_to_write_it(self):
        with pytest.raises(
            nndiag.SettingsError, match=r"lies between 0 and 1. For 40 %, write 0.4"
        ):
            judge.effective_thresholds({"dead-relu.share": 40})

    def test_a_threshold_that_is_no_number(self):
        with pytest.raises(nndiag.SettingsError, match="give a number"):
            judge.effective_thresholds({"dead-relu.share": "lots"})


class TestCauses:
    """Order and causes, on findings made by hand over a chain a -> b -> c."""

    def snapshot(self):
        counts = TensorStats(8, 8, 0, 0, 0, 0.0, 8.0, -1.0, 1.0)
        layers = tuple(
            Layer(name, "Linear", "linear", (8, 1), i + 1, counts) for i, name in enumerate("abc")
        )
        nodes = (
            Node("input"),
            Node("linear", (0,), 0),
            Node("linear", (1,), 1),
            Node("linear", (2,), 2),
        )
        return Snapshot("Net", layers, nodes, (), {}, Loss("none"), 8, 1, outputs=(3,))

    def finding(self, name, layer, severity="warning"):
        return RULES[name].RULE.finding(layer, "…", severity=severity)

    def order(self, *findings):
        return [
            (f.rule, f.layer, f.cause and f.cause.rule)
            for f in explain(list(findings), self.snapshot(), judge.rank)
        ]

    def test_the_root_comes_first_and_the_rest_is_folded_under_it(self):
        found = self.order(
            self.finding("signal-collapse", "c", "error"),
            self.finding("saturation", "b"),
            self.finding("init-scale", "a"),
        )
        assert found == [
            ("init-scale", "a", None),
            ("signal-collapse", "c", "init-scale"),
            ("saturation", "b", "init-scale"),
        ]

    def test_roots_are_ordered_by_severity_then_subject_then_depth(self):
        found = self.order(
            self.finding("dead-relu", "b"),
            self.finding("dead-relu", "a"),
            self.finding("frozen-layer", "c"),
            self.finding("exploding-gradient", "c", "error"),
            self.finding("dense-activation", "a", "note"),
        )
        assert [f[:2] for f in found] == [
            ("exploding-gradient", "c"),
            ("frozen-layer", "c"),
            ("dead-relu", "a"),
            ("dead-relu", "b"),
            ("dense-activation", "a"),
        ]

    def test_a_note_explains_no_warning(self):
        found = self.order(self.finding("init-scale", "a", "note"), self.finding("saturation", "b"))
        assert [f[2] for f in found] == [None, None]

    def test_what_lies_on_no_common_path_is_no_cause(self):
        snapshot = self.snapshot()
        apart = replace(snapshot, nodes=(*snapshot.nodes[:3], Node("linear", (0,), 2)))
        found = explain(
            [self.finding("init-scale", "b"), self.finding("saturation", "c")], apart, judge.rank
        )
        assert [f.cause for f in found] == [None, None]

    def test_the_same_rule_elsewhere_explains_only_what_comes_after(self):
        found = self.order(
            self.finding("symmetry", "c", "error"), self.finding("symmetry", "b", "error")
        )
        assert found == [("symmetry", "b", None), ("symmetry", "c", "symmetry")]


def test_explaining_leaves_the_findings_as_they_were(examples):
    judged = judge.judge(examples["init-scale"][0])
    before = copy.deepcopy(judged.findings)
    explain(list(judged.findings), examples["init-scale"][0], judge.rank)

    assert judged.findings == before
    assert np.isfinite([v for f in judged.findings for v in f.evidence.values()]).any()


@every_rule
def test_what_was_held_against_a_threshold_is_in_the_evidence_under_its_name(module, examples):
    for snapshot in examples[module.RULE.name]:
        for finding in judge.judge(snapshot).findings:
            known = RULES[finding.rule].RULE.thresholds
            if finding.threshold is not None:
                assert finding.threshold == known[finding.measure].value
                assert finding.measure in finding.evidence
