"""Page 2, the zig-zag: signs, paths and counts against theory and naive sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bands import band, committed
from gallery.lab import digits, softmax_regression
from gallery.zigzag import experiment as page
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nndiag

TABLES = committed("zigzag")

SEEDS = st.integers(0, 2**31 - 1)


def gaussian_ratio(f):
    """|mean| / std of f(z), z ~ N(0, 1), on a grid."""
    nodes = np.linspace(-9, 9, 40_001)
    weights = np.exp(-(nodes**2) / 2)
    weights /= weights.sum()
    mean = weights @ f(nodes)
    return abs(mean) / math.sqrt(weights @ f(nodes) ** 2 - mean**2)


RATIOS = {
    "tanh": gaussian_ratio(np.tanh),
    "ReLU": gaussian_ratio(lambda z: np.maximum(z, 0)),
    "pixels": 0.5 / math.sqrt(1 / 12),
    "sigmoid": gaussian_ratio(lambda z: 1 / (1 + np.exp(-z))),
}


@given(SEEDS, st.integers(2, 30), st.integers(1, 6))
def of_one_sign(seed, width, depth):
    torch.manual_seed(seed)
    layers = []
    for fan_in in [5, *[width] * depth]:
        layers += [nn.Linear(fan_in, width), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(width, 3))
    x, y = torch.randn(1, 5), torch.tensor([seed % 3])
    nn.functional.cross_entropy(model(x), y).backward()
    for linear in list(model)[2::2]:
        gradient = linear.weight.grad
        assert (((gradient >= 0).all(dim=1)) | ((gradient <= 0).all(dim=1))).all()


def test_one_example_moves_all_weights_of_a_unit_the_same_way():
    assert page.one_example_moves_all_weights_of_a_unit_the_same_way(TABLES).holds
    of_one_sign()


def test_over_a_batch_the_signs_mix_as_far_as_the_mean_allows(seed):
    assert page.over_a_batch_the_signs_mix_as_far_as_the_mean_allows(TABLES).holds
    for name, k in RATIOS.items():
        assert page.ratio(name) == pytest.approx(k, abs=1e-3)
        share = page.signs(name, seed).set_index("batch").coherence[256]
        # the mean over 1000 units of a share whose variance is at most 1/12: 5 deviations
        assert share == pytest.approx(0.5 + math.atan(k) / math.pi, abs=0.046)
    delta, x = torch.tensor([[1.0], [-0.5], [2.0]]), torch.tensor([[1.0, 4.0], [6, 9], [0.5, -1]])
    # the gradients are 1 - 3 + 1 = -1 and 4 - 4.5 - 2 = -2.5, the sum of δ is 2.5
    assert page.coherence(delta, x) == (0.0, 1.0)


def test_a_whole_data_set_does_not_mix_the_signs_of_a_sigmoid_layer():
    assert page.a_whole_data_set_does_not_mix_the_signs_of_a_sigmoid_layer(TABLES).holds
    sigmoid, tanh = (page.trained_signs(f, 100, (0, 100)).coherence for f in (nn.Sigmoid, nn.Tanh))
    assert sigmoid.min() > 0.75  # k = 1; six seeds: 0.785 to 0.933
    assert abs(tanh.mean() - 0.5) < 0.08  # 12 means of the page: sd 0.03, so 0.02 of two


@given(SEEDS, st.integers(1, 12), st.integers(1, 30))
def forced(seed, d, steps):
    draws = np.random.default_rng(seed)
    moves = draws.exponential(size=(steps, d)) * draws.choice([-1, 1], size=(steps, 1))
    whole = moves.sum(axis=0)
    length = np.linalg.norm(moves, axis=1).sum()
    forced = np.linalg.norm(whole[whole > 0]) + np.linalg.norm(whole[whole < 0])
    rounding = 1e-12 * length
    assert np.linalg.norm(whole) - rounding <= forced <= length + rounding
    assert forced <= math.sqrt(2) * np.linalg.norm(whole) + rounding
    row = page.path(False, page.RATES[0], seed)
    assert row["same_way"] == 1
    assert row["length"] >= row["forced"] > 1.41  # ends within 5 % of the goal, on the diagonal


def test_with_positive_inputs_the_path_is_a_zigzag():
    assert page.with_positive_inputs_the_path_is_a_zigzag(TABLES).holds
    forced()


def steps(inputs, rate, count=40):
    return [page.path(inputs == "centred", rate, 1000 + n)["steps"] for n in range(count)]


def test_at_one_small_rate_the_zigzag_takes_no_more_steps():
    # E[x xᵀ] of the unit square, whole and less its mean, along (1, -1): 1/3 - 1/4 = 1/12 in both
    assert page.at_one_small_rate_the_zigzag_takes_no_more_steps(TABLES).holds
    diagonal = np.array([1, -1]) / math.sqrt(2)
    for moments in (np.array([[1 / 3, 1 / 4], [1 / 4, 1 / 3]]), np.eye(2) / 12):
        assert diagonal @ moments @ diagonal == pytest.approx(1 / 12)
    for inputs, share in (("positive", 1), ("centred", 39 / 40)):
        median = np.median(steps(inputs, page.RATES[0], 200))
        # four standard errors of a median of 200 with a relative spread of 0.22
        assert median == pytest.approx(12 * math.log(20) / (page.RATES[0] * share), rel=0.08)


def test_centred_inputs_bear_a_larger_rate_and_need_fewer_steps():
    assert page.centred_inputs_bear_a_larger_rate_and_need_fewer_steps(TABLES).holds
    medians = {
        (inputs, rate): np.median(steps(inputs, rate))
        for inputs in ("positive", "centred")
        for rate in page.RATES[3:10]
    }
    best = {
        inputs: min(page.RATES[3:10], key=lambda rate: medians[inputs, rate])
        for inputs in ("positive", "centred")
    }
    lengths = [page.path(True, page.RATES[0], 1000 + n)["length"] for n in range(40)]
    assert np.median(lengths) < 1.35  # 1.25 on the page: without a mean left there is no zig-zag
    assert best["centred"] > best["positive"]
    assert medians["centred", best["centred"]] < 0.7 * medians["positive", best["positive"]]


def test_the_mean_of_the_inputs_predicts_the_steps_of_gradient_descent(seed):
    # two eigenvalues, naively: each step leaves (κ - 1)/(κ + 1)
    assert page.the_mean_of_the_inputs_predicts_the_steps_of_gradient_descent(TABLES).holds
    for condition in (1.5, 7.0, 300.0):
        off, count = np.array([1.0, 1.0]), 0
        while np.linalg.norm(off) > math.sqrt(2) / 1000:
            off = off * (1 - 2 / (1 + condition) * np.array([1, condition]))
            count += 1
        assert count == math.ceil(page.descent_steps(condition) - 1e-9)
    for name in ("ReLU", "pixels", "sigmoid"):
        row = page.descend(name, 10, seed)
        # 400 examples a feature: eigenvalues within (1 ± 1/20)², and once more for their scatter
        assert 0.85 < row["condition"] / (1 + 10 * RATIOS[name] ** 2) < 1.4
        # a start with next to nothing on an extreme eigenvector is faster, never slower
        assert row["steps"] <= page.descent_steps(row["condition"]) + 1
        assert row["steps"] > 0.6 * page.descent_steps(row["condition"])


def test_real_data_train_in_fewer_steps_when_centred():
    assert page.real_data_train_in_fewer_steps_when_centred(TABLES).holds
    x, y = page.half("wine", 100, centred=False)
    assert (x > 0).all()
    linear = nn.Linear(13, 3, dtype=x.dtype)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.01)
    for ours in softmax_regression(x, y, 0.01, 0.0, 3):
        loss = nn.functional.cross_entropy(linear(x), y)
        assert loss.item() == pytest.approx(ours, rel=1e-10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name in ("wine", "cancer"):
        raw, centred = (page.race(name, 100, centred=which) for which in (False, True))
        assert raw["steps"] > 3 * centred["steps"]  # five halves each: 12 to 121 times
        assert centred["steps"] < page.STEPS


def test_nndiag_warns_of_the_sigmoid_stack_and_not_of_positive_data(seed):
    assert page.nndiag_warns_of_the_sigmoid_stack_and_not_of_positive_data(TABLES).holds
    x, y, _, _ = digits()
    loss = nn.functional.cross_entropy
    for activation, expected in ((nn.Sigmoid, {"non-zero-centered"}), (nn.Tanh, set())):
        model = page.stack(activation, seed)
        report = nndiag.check(model, x[:256], y[:256], loss_fn=loss, config=False)
        assert {f.rule for f in report.at_least("warning") if f.cause is None} == expected
    raw, labels = page.half("cancer", 0, centred=False)
    torch.manual_seed(seed)
    report = nndiag.check(nn.Linear(30, 2), raw.float(), labels, loss_fn=loss, config=False)
    assert not report.at_least("warning")


def test_zigzag_page_holds_whatever_the_seed(seed):
    tables = TABLES
    for name in page.INPUTS:
        ours = page.signs(name, seed).set_index("batch").coherence
        for batch in (16, 256):
            rows = tables["signs"].query("inputs == @name and batch == @batch")
            low, high = band(rows.coherence)
            assert low < ours[batch] < high, (name, batch)
    for name in ("ReLU", "sigmoid"):
        rows = tables["descents"].query("inputs == @name and d == 10")
        low, high = band(rows.condition, log=True)
        assert low < page.descend(name, 10, seed)["condition"] < high, name
