"""The line that stands for a report: what will happen, what to do, no more health than was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nndiag.fixes.fix import Fix
from nndiag.report import Report
from nndiag.rule import Finding, Outcome, Unjudged
from nndiag.stats import Layer, Loss, Snapshot, TensorStats
from nndiag.verdict import verdict

SEEN = TensorStats(8, 8, 0, 0, 0, 0.0, 8.0, -1.0, 1.0)
NETWORK = Snapshot(
    "Net", (Layer("0", "Linear", "linear", (8, 1), 1, SEEN),), (), (), {}, Loss("none"), 8, 1
)
PASSED = tuple(Outcome(f"rule-{n}", f"ND{n}", "passed") for n in range(14))
FADES = "The first layers will not learn: the gradient shrinks 7-fold at each of 8 sigmoid layers."
NORMALIZE = Fix(
    "normalize", "Add BatchNorm1d after each of 8 layers. 8 biases have no effect then."
)
SWAP = Fix("swap-activation", "Replace 0.sigmoid by nn.ReLU().")


def finding(rule="vanishing-gradient", severity="error", layer="0", **more):
    more = {"summary": FADES, "fixes": (NORMALIZE,), **more}
    return Finding(rule, "ND201", severity, layer, "The gradient is small.", **more)


def outcomes(status, count=1):
    changed = (replace(o, status=status, reason="why") for o in PASSED[:count])
    return (*changed, *PASSED[count:])


def test_it_is_what_will_happen_and_the_first_sentence_of_the_first_fix():
    text = verdict(NETWORK, [finding()], outcomes("found"))
    assert text == f"{FADES} Add BatchNorm1d after each of 8 layers."


def test_a_second_fix_is_offered_where_it_is_of_another_kind():
    def fixes(*fixes):
        [_, text] = verdict(NETWORK, [finding(fixes=fixes)], PASSED).split(FADES)
        return text

    add = " Add BatchNorm1d after each of 8 layers"
    assert fixes(NORMALIZE, SWAP) == f"{add}. Or replace 0.sigmoid by nn.ReLU()."
    assert fixes(NORMALIZE, NORMALIZE, SWAP, SWAP) == f"{add}. Or replace 0.sigmoid by nn.ReLU()."
    assert fixes(NORMALIZE, NORMALIZE) == f"{add}."
    assert fixes() == ""


def test_a_rule_without_a_summary_is_told_by_its_message_and_place():
    text = verdict(NETWORK, [finding(summary="", fixes=())], PASSED)
    assert text == "0: The gradient is small."


def test_the_leading_cause_is_told_and_the_others_are_counted():
    lead = finding()
    found = [
        lead,
        finding("dead-relu", "warning", "1"),
        finding("dead-relu", "warning", "2"),
        finding("frozen-layer", "warning", "3"),
        finding("saturation", "warning", "4", cause=lead),
        finding("dense-activation", "note", "5"),
    ]
    text = verdict(NETWORK, found, PASSED)
    assert text.startswith(FADES)
    assert text.endswith(" of 8 layers. 2 more causes below.")
    assert verdict(NETWORK, found[:3], PASSED).endswith(" 1 more cause below.")
    assert verdict(NETWORK, [lead, found[4]], PASSED).endswith(" of 8 layers.")


def test_places_of_the_same_cause_are_counted_together():
    found = [finding(layer=name) for name in "abc"]
    assert verdict(NETWORK, found, PASSED).endswith(" The same holds for 2 more places.")


def test_a_healthy_network_is_called_healthy():
    assert verdict(NETWORK, [], PASSED) == "No problem found in the network (14 rules)."
    assert verdict(NETWORK, [], PASSED[:1]) == "No problem found in the network (1 rule)."


def test_notes_are_no_problem_but_are_counted():
    note = finding("dense-activation", "note")
    text = verdict(NETWORK, [note], outcomes("found"))
    assert text == "No problem found in the network (14 rules, 1 note)."


def test_rules_that_did_not_run_are_not_counted_as_health():
    text = verdict(NETWORK, [], outcomes("skipped", 4))
    assert text == "No problem found in the network (10 of 14 rules)."


@pytest.mark.parametrize(
    ("seen", "unjudged", "shown"),
    [
        ({"never_called": ("aux",)}, (), "1 part of it never ran."),
        ({"never_called": ("a", "b")}, (), "2 parts of it never ran."),
        ({"not_observed": ("rnn",)}, (), "1 part of it could not be observed."),
        ({}, ("a", "a", "b"), "2 layers could not be judged by every rule."),
    ],
)
def test_what_was_not_looked_at_is_told(seen, unjudged, shown):
    gaps = [Unjudged("dead-relu", layer, "too few samples") for layer in unjudged]
    text = verdict(replace(NETWORK, **seen), [], PASSED, gaps)
    assert text == f"No problem found in the network (14 rules). {shown}"


def test_nothing_that_ran_is_no_health():
    nothing = "Nothing was judged: no rule could run."
    assert verdict(NETWORK, [], outcomes("skipped", 14)) == nothing
    assert verdict(NETWORK, [], ()) == nothing
    empty = replace(NETWORK, layers=())
    assert verdict(empty, [], PASSED) == "Nothing was judged: no layer of the network was seen."


def test_a_rule_that_crashed_is_told_with_and_without_findings():
    text = verdict(NETWORK, [], outcomes("crashed"))
    assert text == "No problem found, but 1 rule crashed, so there may be one."
    text = verdict(NETWORK, [finding()], outcomes("crashed", 2))
    assert text.endswith(" 2 rules crashed, so there may be more.")


def test_a_report_has_it():
    report = Report(NETWORK, (finding(),), PASSED, ())
    assert report.verdict == verdict(NETWORK, [finding()], PASSED)
    assert Report(NETWORK, (), PASSED, ()).verdict.startswith("No problem found")
