"""Page 6, batch norm: identities for any draw; training in fewer steps, with fixed seeds."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from bands import band, committed
from effort import tried
from gallery import lab
from gallery.batch_norm import experiment as page
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nndiag

TABLES = committed("batch_norm")


@functools.cache
def cell(bn, scale, rate):
    return page.cell(bn, scale, rate, seed=0)[
        "accuracy"
    ]  # NaN, which no comparison bears, diverged


@functools.cache
def batches(bn, size, seed):
    return page.batches(bn, size, seed)


@functools.cache
def drift(name, bn, seed=0):
    return page.drift(name, bn, seed, steps=120)


def test_bn_trains_over_a_hundredfold_range_of_init_scales():
    assert page.bn_trains_over_a_hundredfold_range_of_init_scales(TABLES).holds
    for scale in (0.1, 10.0):
        assert cell(True, scale, 1.0) > page.LEARNT
        for rate in page.RATES:
            assert not cell(False, scale, rate) > 0.5, (scale, rate)
    # a large scale learns all the same, at a rate that is far too low for others
    assert cell(False, 10.0, page.OWN[10.0]) > 0.5


def test_bn_allows_a_tenfold_learning_rate():
    assert page.bn_allows_a_tenfold_learning_rate(TABLES).holds
    assert cell(False, 1.0, 0.1) > page.LEARNT
    assert not cell(False, 1.0, 1.0) > 0.5
    assert cell(True, 1.0, 1.0) > page.LEARNT


@tried(30)
@given(
    factor=st.floats(1, 1e4),
    draw=st.integers(0, 2**31),
    samples=st.integers(5, 20),
    units=st.integers(2, 8),
)
def undone(factor, draw, samples, units):
    """One layer before a BN, in float64 and with an ε of nothing."""
    torch.manual_seed(draw)
    x, target = torch.randn(2, samples, units, dtype=torch.float64)
    linear, bn = nn.Linear(units, units).double(), nn.BatchNorm1d(units, eps=1e-14).double()

    def gradients():
        linear.zero_grad()
        loss = (torch.tanh(bn(linear(x))) - target).pow(2).mean()
        loss.backward()
        return loss.item(), linear.weight.grad.clone(), linear.bias.grad.clone()

    # what a gradient is made of before parts of it cancel; 1e-7 of it is rounding and ε
    whole = 1 / linear(x).std(dim=0).min().item()
    loss, weight, bias = gradients()
    linear.weight.data *= factor
    scaled, divided, _ = gradients()
    assert scaled == pytest.approx(loss, rel=1e-7)
    assert (divided * factor - weight).norm() < 1e-7 * whole
    assert bias.norm() < 1e-7 * whole
    across = (linear.weight * divided).sum() / linear.weight.norm()
    assert abs(across) * factor < 1e-7 * whole


def test_bn_undoes_the_scale_of_weights_and_divides_their_gradient_by_it(seed):
    assert page.bn_undoes_the_scale_of_weights_and_divides_their_gradient_by_it(TABLES).holds
    undone()
    one, thousand = page.scaled(1.0, seed), page.scaled(1000.0, seed)
    # ε = 1e-5 beside variances of 0.1 and more, in five layers
    assert thousand["loss"] == pytest.approx(one["loss"], rel=1e-3)
    ratio = one["weight_gradient"] / thousand["weight_gradient"]
    assert ratio == pytest.approx(1000, rel=3e-3)
    assert thousand["cosine"] < 1e-6
    assert one["bias_gradient"] < 1e-9 * one["weight_gradient"]


def test_bn_holds_the_distribution_of_a_units_inputs():
    assert page.bn_holds_the_distribution_of_a_units_inputs(TABLES).holds

    def wander(bn):
        rows = drift("sigmoid", bn)[0]
        first = rows.iloc[0]
        return (rows["p50"] - first["p50"]).abs().max() / (first["p85"] - first["p15"])

    assert wander(False) > 1
    assert wander(True) < 0.5
    path = drift("sigmoid", True)[0]
    assert path["spread"].iloc[0] == pytest.approx(1, abs=0.01)  # γ = 1, β = 0
    assert path["centre"].iloc[0] == pytest.approx(0, abs=0.01)


def test_bn_trains_faster_without_reliably_lowering_the_covariate_shift(seed):
    assert page.bn_trains_faster_without_reliably_lowering_the_covariate_shift(TABLES).holds
    x, y, *_ = lab.digits()
    model = page.network(False, seed, hidden=(20,) * 3, activation=nn.Tanh).double()
    batch = x[:60].double(), y[:60]
    still, slow, twice = (page.ics(model, *batch, rate) for rate in (0.0, 1e-4, 2e-4))
    assert still == [(0.0, pytest.approx(1, abs=1e-12))] * 4
    assert slow[0][0] == 0  # nothing lies before the first layer
    for (a, _), (b, _) in zip(slow[1:], twice[1:], strict=True):
        assert b == pytest.approx(2 * a, rel=0.02)  # of first order in the rate
    plain, normed = (drift("sigmoid", bn)[1] for bn in (False, True))
    assert normed["loss"] < plain["loss"]
    assert normed["ics"] > plain["ics"]


def test_the_noise_of_bn_falls_with_the_root_of_the_batch(seed):
    assert page.the_noise_of_bn_falls_with_the_root_of_the_batch(TABLES).holds
    rng = np.random.default_rng(seed)
    for x in (0.0, 1.0, 2.0):
        # the page's law, of normal values: the mean's scatter and the deviation's
        others = rng.normal(size=(5_000, 63))
        whole = np.concatenate([np.full((5_000, 1), x), others], axis=1)
        normed = (x - whole.mean(axis=1)) / whole.std(axis=1)
        # 5 sd of a deviation of 5000 draws, and the terms in 1/m
        law = math.sqrt((1 + x * x / 2) / 64)
        assert normed.std() == pytest.approx(law, rel=5 / math.sqrt(10_000) + 4 / 64)
    few, many = page.noise(seed, sizes=(16, 256)).to_dict("records")
    # 4 by the law; 64 units, 100 batches each, and values that are not normal
    assert 2.8 < few["first"] / many["first"] < 5.2
    assert many["first"] * 16 == pytest.approx(many["theory"], rel=0.35)


def test_the_noise_of_bn_regularises_and_bn_as_a_whole_does_not():
    assert page.the_noise_of_bn_regularises_and_bn_as_a_whole_does_not(TABLES).holds
    tested = {
        (bn, size): batches(bn, size, 2)["test_loss"]
        for bn in (False, True) for size in (32, 128)
    }  # fmt: skip
    assert tested[True, 32] < tested[True, 128]
    assert tested[False, 32] < tested[True, 32]
    assert abs(tested[False, 128] - tested[False, 32]) < tested[True, 128] - tested[True, 32]


def test_evaluation_mode_differs_in_small_batches_and_early_on(seed):
    assert page.evaluation_mode_differs_in_small_batches_and_early_on(TABLES).holds
    model = nn.BatchNorm1d(3, eps=1e-12)
    pair = model(torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)))
    assert pair.abs().flatten().tolist() == pytest.approx([1.0] * 6, abs=1e-3)
    rows = page.running(0)
    for row in rows:
        assert row["held"] == pytest.approx(0.9 ** row["steps"], abs=1e-4)  # float32
    modes = {row["steps"]: row["train_mode"] - row["eval_mode"] for row in rows}
    assert modes[5] > 0.1
    assert abs(modes[80]) < 0.04
    small, large = batches(True, 4, 2), batches(True, 128, 2)
    assert small["accuracy"] - small["train_mode"] > 0.1
    assert abs(large["accuracy"] - large["train_mode"]) < 0.06  # 3 sd of two shares of 500


def test_nndiag_blames_the_scale_without_bn_and_not_with_it(seed):
    assert page.nndiag_blames_the_scale_without_bn_and_not_with_it(TABLES).holds
    x, y, *_ = lab.digits()
    for scale in (0.1, 10.0):
        for bn in (False, True):
            model = page.network(bn, seed, scale=scale)
            loss_fn = nn.functional.cross_entropy
            report = nndiag.check(model, x[:256], y[:256], loss_fn=loss_fn, config=False)
            roots = {f.rule for f in report.at_least("warning") if f.cause is None}
            assert roots == (set() if bn else {"init-scale"}), (scale, bn)


@pytest.mark.exhaustive
def test_batch_norm_page_holds_whatever_the_seed(seed):
    tables = TABLES
    rows = tables["batches"].query("bn and size == 8")
    low, high = band(rows["test_loss"], log=True)
    assert low < batches(True, 8, seed)["test_loss"] < high
    rows = tables["noise"].query("size == 64")
    low, high = band(rows["first"], log=True)
    assert low < page.noise(seed, sizes=(64,))["first"].item() < high
    rows = tables["ics"].query("bn and activation == 'sigmoid'")
    low, high = band(rows["ics"], log=True)
    assert low < page.drift("sigmoid", True, seed)[1]["ics"] < high
