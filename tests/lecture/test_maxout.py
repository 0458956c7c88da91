"""Page 9, maxout: counts and special cases for all sizes, trainings in a part of the page's own."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from bands import band, committed
from gallery import lab
from gallery.maxout import experiment as page
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import nndiag
from nndiag.fixes import Maxout

TABLES = committed("maxout")

SIZE = st.integers(1, 20)


@functools.cache
def trained(trial, arm, seed):
    return page.run(trial, arm, seed)


@functools.cache
def rested(name, rate, seed):
    return page.rest(name, rate, seed)


@given(SIZE, SIZE, SIZE)
def counted(d_in, d_out, k):
    layer = Maxout.of(nn.Linear(d_in, d_out), k)
    assert page.parameters(layer) == k * (d_in + 1) * d_out
    assert layer(torch.zeros(3, d_in)).shape == (3, d_out)


def test_maxout_of_k_pieces_has_k_times_the_parameters():
    assert page.maxout_of_k_pieces_has_k_times_the_parameters(TABLES).holds
    counted()


@given(st.floats(-3, 3), SIZE, st.integers(0, 2**32 - 1))
def mirrored(slope, d_in, seed):
    torch.manual_seed(seed)
    linear, x = nn.Linear(d_in, 4).double(), torch.randn(8, d_in).double()
    with torch.no_grad():
        z, found = linear(x).numpy(), page.pair(linear, slope)(x).numpy()
    leaky = np.where(z > 0, z, slope * z)
    mirrored = np.where(z > 0, slope * z, z)
    np.testing.assert_allclose(found, leaky if slope <= 1 else mirrored, atol=1e-12)


def test_relu_and_leaky_relu_are_maxouts_of_a_pair():
    assert page.relu_and_leaky_relu_are_maxouts_of_a_pair(TABLES).holds
    mirrored()


def test_no_maxout_unit_dies_but_pieces_fall_idle(seed):
    assert page.no_maxout_unit_dies_but_pieces_fall_idle(TABLES).holds
    torch.manual_seed(seed)
    z = 100 * torch.randn(50, 40)
    slopes = page.activations.slope(page.activations.Largest(), z)
    assert (slopes == 1).all()  # one piece passes all of it on
    assert rested("relu", page.HIGH, 101)[0]["dead"] > 0.3
    high, model = rested("maxout", page.HIGH, 101)
    sound, _ = rested("maxout", page.SOUND, 101)
    assert high["dead"] == high["starved"] == sound["dead"] == sound["starved"] == 0
    assert sound["idle"] < 0.02 < high["idle"]  # five seeds: 0.005 to 0.013, 0.042 to 0.088
    x, *_ = lab.digits()
    won = []
    for module in list(model)[:-1]:
        pieces = module.layer(x).unflatten(-1, (-1, 2))
        winners = pieces.argmax(-1)
        won += [(winners == piece).any(0) for piece in (0, 1)]
        x = module(x)
    assert high["idle"] == pytest.approx(1 - torch.cat(won).double().mean().item(), abs=1e-3)


def test_maxout_reads_digits_better_than_relu_of_its_width():
    assert page.maxout_reads_digits_better_than_relu_of_its_width(TABLES).holds


def test_maxout_does_no_better_than_relu_of_as_many_parameters():
    assert page.maxout_does_no_better_than_relu_of_as_many_parameters(TABLES).holds
    for trial in page.TRIALS.values():
        sizes = {arm: page.parameters(page.network(trial, arm, 0)) for arm in page.ARMS}
        assert sizes[page.SAME_SIZE] == pytest.approx(sizes[page.MAXOUT], rel=0.07)
    frames = TABLES
    for name in page.TRIALS:
        rows = frames["trained"].query("trial == @name")
        ours, theirs = (
            rows[rows["arm"] == arm].sort_values("seed")["test"]
            for arm in (page.MAXOUT, page.SAME_SIZE)
        )
        test = stats.ttest_rel(ours.to_numpy(), theirs.to_numpy())
        found = page.gain(frames, name, page.SAME_SIZE)
        assert found.p == pytest.approx(test.pvalue)
        interval = test.confidence_interval()
        low, high = found.mean - found.half, found.mean + found.half
        assert (low, high) == pytest.approx((100 * interval.low, 100 * interval.high))


def test_a_maxout_layer_computes_k_times_as_much():
    assert page.a_maxout_layer_computes_k_times_as_much(TABLES).holds
    for row in page.counted().itertuples():
        assert row.multiply_adds == row.pieces * row.inputs * row.units
        assert row.multiply_adds_relu == row.inputs * row.units


def test_nndiag_passes_maxout_where_it_finds_dead_relus():
    assert page.nndiag_passes_maxout_where_it_finds_dead_relus(TABLES).holds
    x, y, _, _ = lab.digits()
    rules = {}
    for name in ("relu", "maxout"):
        model = rested(name, page.HIGH, 101)[1]
        report = nndiag.check(model, x, y, loss_fn=nn.functional.cross_entropy, config=False)
        rules[name] = {finding.rule for finding in report.at_least("warning")}
    assert "dead-relu" in rules["relu"]
    assert rules["maxout"] <= {"loss-at-init"}  # at this rate it ends worse than a guess


@pytest.mark.exhaustive
def test_maxout_page_holds_whatever_the_seed(seed):
    table = TABLES["trained"]
    name = "digits, width 16"
    for arm in page.ARMS:
        rows = table[(table["trial"] == name) & (table["arm"] == arm)]
        found = pd.Series(trained(name, arm, seed)[0])
        low, high = band(rows["test"], log=True)
        assert low < found["test"] < high, arm
        assert (rows["parameters"] == found["parameters"]).all()
