"""A batch in parts is the batch; more of the same data never turns a verdict into its opposite."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from effort import tried
from hypothesis import example, given
from hypothesis import strategies as st
from subjects import SUBJECTS, N, any_subject, check
from torch import nn
from verdict import found, leading, verdict

from nndiag import rules


def summed(output, target):
    return F.cross_entropy(output, target, reduction="sum")


def learns_from_the_batch(subject):
    """BatchNorm in training mode: what it does to a sample depends on the others."""
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
        for m in subject.model().modules()
    )


apart = any_subject(only=lambda s: not learns_from_the_batch(s))
cuts = st.lists(st.integers(1, N - 1), min_size=1, max_size=2, unique=True).map(sorted)


def parts(data, cuts):
    ends = [0, *cuts, len(data[0])]
    return [tuple(t[a:b] for t in data) for a, b in itertools.pairwise(ends)]


def without(said, *names):
    """Findings but those of some rules; what they explain stays."""
    return {f[:3] for f in said if f.rule not in names}


def of_every_batch(unjudged):
    """Without the rules about loss, targets and data: they look at the first batch alone."""
    first = {n for n, rule in rules.catalogue().items() if rule.about in ("input", "loss")}
    return {(rule, place) for rule, place in unjudged if rule not in first}


# In how many units all weight gradients have one sign is a matter of how many samples mix in one
# backward pass: of a single sample they all do.
OF_ONE_PASS = "non-zero-centered"


@tried(30)
@given(apart, cuts)
@example((SUBJECTS["sigmoid-stack"], 3), [1])
def test_a_batch_in_parts_gets_the_verdict_of_the_whole(subject_seed, cuts):
    subject, weights = subject_seed
    model, data = subject.model(weights), subject.data(seed=weights + 1)

    merged, whole = (verdict(check(model, d, summed)) for d in (parts(data, cuts), data))

    assert without(merged.findings, OF_ONE_PASS) == without(whole.findings, OF_ONE_PASS)
    assert of_every_batch(merged.unjudged) == of_every_batch(whole.unjudged)
    # The virtual update is made on the first part alone; what it moves is a note.
    aside = OF_ONE_PASS, "covariate-shift"
    assert without(merged.notes, *aside) == without(whole.notes, *aside)


@tried(20)
@given(apart, cuts)
@example((SUBJECTS["dead-biases"], 0), [1])  # one sample, then all the others
def test_parts_of_a_mean_loss_lead_to_the_same_finding(subject_seed, cuts):
    """Each part's gradients are larger than they are in the whole, small parts' most."""
    subject, weights = subject_seed
    model, data = subject.model(weights), subject.data(seed=weights + 1)

    assert leading(check(model, parts(data, cuts))) == subject.leads


EXACT = ["samples", "min", "max", "zero_fraction", "dead_units", "nonfinite", "saturated_fraction"]


@tried(25)
@given(apart, cuts)
def test_the_statistics_of_parts_are_those_of_the_whole(subject_seed, cuts):
    subject, weights = subject_seed
    x, y = subject.data(seed=weights + 1)
    data = (x.double() if x.is_floating_point() else x), y
    model = subject.model(weights).double()

    merged, whole = (check(model, d, summed).layers for d in (parts(data, cuts), data))

    assert list(merged.layer) == list(whole.layer)
    # A matrix product of other sizes adds in another order: in float64 the last digits differ.
    for column in (*EXACT, "mean", "std", "grad_rms"):
        a, b = merged[column].to_numpy(float), whole[column].to_numpy(float)
        size = (
            np.maximum(whole["std"].to_numpy(float), 1) if column in ("mean", "min", "max") else 1
        )
        np.testing.assert_allclose(a / size, b / size, rtol=1e-9, atol=1e-12, err_msg=column)


@tried(15)
@given(apart, cuts)
def test_the_gradients_of_parts_of_a_mean_loss_are_pooled(subject_seed, cuts):
    """A part's mean has a larger gradient than its share in the mean of all: of n values with
    rms r each, all are kept. The oracle is each part checked alone."""
    subject, weights = subject_seed
    model, data = subject.model(weights), subject.data(seed=weights + 1)
    pieces = parts(data, cuts)

    merged = check(model, pieces).layers.grad_rms.to_numpy(float)

    alone = np.array([check(model, [p]).layers.grad_rms.to_numpy(float) for p in pieces])
    sizes = np.array([len(p[0]) for p in pieces])[:, None]
    pooled = np.sqrt((sizes * alone**2).sum(0) / sizes.sum())
    np.testing.assert_allclose(merged, pooled, rtol=1e-6)


# -- more samples -----------------------------------------------------------------------------


def standing(report):
    """What became of each rule: found, passed, or (in part) not to be judged."""
    unjudged = {u.rule for u in report.unjudged}
    alarmed = found(report)
    return {
        o.rule: "found" if o.rule in alarmed else "unjudged" if o.rule in unjudged else "passed"
        for o in report.outcomes
        if o.status != "skipped"
    }


@tried(25)
@given(any_subject(), st.sampled_from([16, 24, 40, 64, 100]), st.sampled_from([2, 4]))
def test_more_samples_turn_no_verdict_into_its_opposite(subject_seed, n, times):
    subject, weights = subject_seed
    model = subject.model(weights)

    few, many = (check(model, subject.data(k, weights + 1)) for k in (n, times * n))

    if few.ok:
        assert many.ok or few.unjudged
    else:
        assert leading(few) in found(many)  # something that was not judged may explain it now
    assert (subject.leads is None) <= many.ok


@tried(25)
@given(any_subject(), st.sampled_from([8, 16, 40, 64]), st.sampled_from([2, 3, 4]))
def test_repeated_samples_turn_no_verdict_into_its_opposite(subject_seed, n, times):
    subject, weights = subject_seed
    model, data = subject.model(weights), subject.data(n, weights + 1)
    again = tuple(torch.cat([t] * times) for t in data)

    few, many = (standing(check(model, d)) for d in (data, again))

    changed = {rule: (few[rule], many[rule]) for rule in few if few[rule] != many[rule]}
    assert {rule: was for rule, (was, _) in changed.items() if was != "unjudged"} == {}
