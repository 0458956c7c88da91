"""Page 5, depth: networks drawn by the session's seed; training in fewer steps.

Of one ReLU net's gradient over L layers of n units, ln δ² scatters with variance b = 5L/n about a
mean shifted by -b/2 (the excess of 2 z² 1(z > 0) for normal z); other activations' scatters less.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from bands import band, committed
from effort import tried
from gallery import lab
from gallery.depth import experiment as page
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

import nndiag
from nndiag.demo import verdict

TABLES = committed("depth")

FUNCTIONS = {
    "ReLU": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    "tanh": (np.tanh, lambda z: np.cosh(z) ** -2.0),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: 1 / (2 + 2 * np.cosh(z))),
}
NODES = np.linspace(-10, 10, 40_000)  # none at the kink
DENSITY = stats.norm.pdf(NODES) / stats.norm.pdf(NODES).sum()


def expected(case, depth):
    """δ of layer 1 over δ of the last, by integration on a grid."""
    f, slope = FUNCTIONS[case.split(",")[0]]
    variance = {"He": 2.0, "Xavier": 1.0, "torch": 1 / 3}[case.split(", ")[1]]
    bias = 1 / (3 * page.WIDTH) if "torch" in case else 0.0
    power, product = 1.0, 1.0
    for _ in range(depth - 1):
        z = math.sqrt(variance * power + bias) * NODES
        product *= variance * (DENSITY @ slope(z) ** 2)
        power = DENSITY @ f(z) ** 2
    return math.sqrt(product)


def allowed(depth):
    """Of ln δ of a single net: its mean's shift and five standard deviations."""
    b = 5 * (depth - 1) / page.WIDTH
    return b / 4 + 5 * math.sqrt(b) / 2


@functools.cache
def measured(case, depth, seed):
    return page.gradients(case, depth, seed)


@functools.cache
def loss(case, layers, optimizer, steps, seed=0):
    """The mean of the last 20 steps."""
    return page.trained(page.Run(case, layers, optimizer, steps), [seed])[0][-20:].mean().item()


def test_each_layer_multiplies_the_gradient_by_the_factor_of_theory(seed):
    assert page.each_layer_multiplies_the_gradient_by_the_factor_of_theory(TABLES).holds
    for case in page.CASES:
        for depth in (2, 12, 30):
            theory = expected(case, depth)
            assert page.predicted(case, depth) == pytest.approx(theory, rel=1e-3)  # the grid
            off = math.log(measured(case, depth, seed)["delta"] / theory)
            assert abs(off) < allowed(depth), (case, depth)
    assert expected("ReLU, torch", 2) == pytest.approx(1 / math.sqrt(6), rel=1e-3)


@tried(50)
@given(
    widths=st.lists(st.integers(1, 12), min_size=3, max_size=6),
    scale=st.floats(0.01, 30),
    draw=st.integers(0, 2**31),
)
def bounded(widths, scale, draw):
    rng = np.random.default_rng(draw)
    weights = [rng.normal(0, scale, (b, a)) for a, b in itertools.pairwise(widths)]
    y, slopes = rng.normal(size=widths[0]), []
    for weight in weights:
        y = 0.5 * (1 + np.tanh(weight @ y / 2))  # sigmoid, without overflow
        slopes.append(y * (1 - y))
    delta = rng.normal(size=widths[-1]) * slopes[-1]
    for weight, slope in zip(weights[:0:-1], slopes[-2::-1], strict=True):
        before = slope * (weight.T @ delta)
        bound = np.linalg.norm(weight, 2) / 4 * np.linalg.norm(delta)
        assert np.linalg.norm(before) <= bound * (1 + 1e-12)
        delta = before


def test_sigmoid_kills_the_gradient_with_hardly_a_unit_saturated(seed):
    assert page.sigmoid_kills_the_gradient_with_hardly_a_unit_saturated(TABLES).holds
    bounded()
    row = measured("sigmoid, Xavier", 12, seed)
    # slope under 5% of the steepest: beyond ±4.36, of inputs with deviation 1 or a little more
    assert row["saturated"] < 2e-3
    assert row["delta"] < row["bound"] * (1 + 1e-9)
    assert row["delta"] < 0.25**11  # 0.236^11 is half of it; scatter at width 100 is 0.1
    assert loss("sigmoid, Xavier", 30, page.SGD, 60) > page.STALLED


def test_random_biases_make_the_weight_gradients_vanish_too(seed):
    assert page.random_biases_make_the_weight_gradients_vanish_too(TABLES).holds
    he = measured("ReLU, He", 30, seed)
    model, x, direction = page.network("ReLU, He", 30, seed)
    for linear in list(model)[::2]:
        linear.weight.data /= math.sqrt(6)  # n · Var W = 1/3, as torch's, and no biases
    (model(x) * direction).sum().backward()
    norms = [linear.weight.grad.norm().item() for linear in list(model)[::2]]
    # positive homogeneity: each weight gradient loses the same 29 factors
    assert norms[0] / norms[-1] == pytest.approx(he["weight"], rel=1e-9)
    # the floor of the outputs' power is 1/(5n)
    floored = 6 ** (-29 / 2) * math.sqrt(5 * page.WIDTH)
    off = math.log(measured("ReLU, torch", 30, seed)["weight"] / floored)
    assert abs(off) < 2 * allowed(30)
    assert abs(math.log(he["weight"])) < 2 * allowed(30)


def test_he_networks_scatter_by_depth_over_width(seed):
    assert page.he_networks_scatter_by_depth_over_width(TABLES).holds
    excess, _ = integrate.quad(lambda z: (2 * z * z - 1) ** 2 * stats.norm.pdf(z), 0, 12)
    assert excess + 0.5 == pytest.approx(5)  # of 2 z² 1(z > 0), which has mean 1
    logs = np.array([page.scatter(100, seed % 10**6 + 10**6 + n, (10,)) for n in range(400)])
    b = 5 * 10 / 100
    # five standard deviations, and what b leaves out at this depth (4% in simulations)
    assert logs.var(ddof=1) == pytest.approx(b, rel=5 * math.sqrt(2 / 400) + 0.06)
    assert logs.mean() == pytest.approx(-b / 2, abs=5 * math.sqrt(b / 400) + 0.03)


def test_xavier_stalls_the_30_layer_net_that_he_trains():
    assert page.xavier_stalls_the_30_layer_net_that_he_trains(TABLES).holds
    assert loss("ReLU, He", 30, page.SGD, 150) < 2.0
    assert loss("ReLU, Xavier", 30, page.SGD, 150) > page.STALLED
    x = lab.digits()[0]
    he, xavier = (page.classifier(f"ReLU, {init}", 30, 0)[:-1](x) for init in ("He", "Xavier"))
    assert (xavier.norm() / he.norm()).item() == pytest.approx(2 ** (-29 / 2), rel=1e-4)
    # trained side by side is trained alone
    run = page.Run("ReLU, He", 10, page.SGD, 10)
    both, accuracies = page.trained(run, [0, 1])
    for place in (0, 1):
        model = page.classifier(run.case, run.layers, place)
        x, y, x_test, y_test = lab.digits()
        optimizer = torch.optim.SGD(model.parameters(), 0.003, momentum=0.9)
        alone = lab.train(model, x, y, optimizer, run.steps, place, batch=page.BATCH)
        assert both[:, place].tolist() == pytest.approx(alone, rel=1e-3)  # float32 sums
        assert accuracies[place] == pytest.approx(lab.accuracy(model, x_test, y_test), abs=0.01)


def test_the_stall_is_a_plateau_of_sgd_that_adam_does_not_know():
    assert page.the_stall_is_a_plateau_of_sgd_that_adam_does_not_know(TABLES).holds


def test_at_ten_layers_both_train_and_he_only_earlier():
    assert page.at_ten_layers_both_train_and_he_only_earlier(TABLES).holds


def test_torchs_default_stalls_where_xavier_still_trains():
    assert page.torchs_default_stalls_where_xavier_still_trains(TABLES).holds


def test_nndiag_passes_the_nets_that_train_and_none_that_stalls():
    assert page.nndiag_passes_the_nets_that_train_and_none_that_stalls(TABLES).holds
    x, y, *_ = lab.digits()
    learning = {("ReLU, He", 10), ("ReLU, Xavier", 10), ("ReLU, He", 30), ("tanh, Xavier", 30)}
    for case, layers in page.CHECKED:
        model = page.classifier(case, layers, 1)
        loss_fn = nn.functional.cross_entropy
        report = nndiag.check(model, x[:256], y[:256], loss_fn=loss_fn, config=False)
        assert (verdict(report) == "healthy") == ((case, layers) in learning), (case, layers)


def test_depth_page_holds_whatever_the_seed(seed):
    tables = TABLES
    for case in page.CASES:
        rows = tables["gradients"].query("case == @case and depth == 12")
        low, high = band(rows["delta"], log=True)
        assert low < measured(case, 12, seed)["delta"] < high, case
    rows = tables["training"].query("case == 'ReLU, He' and layers == 10 and step == 40")
    low, high = band(rows["loss"], log=True)
    assert low < loss("ReLU, He", 10, page.SGD, 40, seed) < high
