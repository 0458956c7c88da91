"""Page 4, weight initialisation: one network of each scale, drawn by the session's seed.

Tolerances are six times the relative standard deviation over 100 seeds of each layer's std, around
the infinite-width prediction, which is integrated here on a grid.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from bands import band, committed
from gallery.weight_init import experiment as page

import nndiag

TABLES = committed("weight_init")

DEPTH, WIDTH = page.DEPTH, page.WIDTH


@functools.cache
def measured(case, seed):
    return page.layers(case, seed)[0].set_index("layer")


@functools.cache
def verdict(case, seed):
    model, x, direction = page.network(case, seed)
    return nndiag.check(model, x, loss_fn=lambda out: (out * direction).sum(), config=False)


def expected(f, std):
    """sqrt(Var f(z)) of each layer, z ~ N(0, std² · n · E[f²] of the layer before)."""
    nodes = np.linspace(-8, 8, 20_001)
    weights = np.exp(-(nodes**2) / 2)
    weights /= weights.sum()
    power = 1.0
    for _ in range(DEPTH):
        values = f(std * math.sqrt(WIDTH * power) * nodes)
        mean, power = weights @ values, weights @ values**2
        yield math.sqrt(power - mean**2)


def relu(z):
    return np.maximum(z, 0)


FUNCTIONS = {name: np.tanh if name.startswith("tanh") else relu for name in page.CASES}


def test_the_slides_numbers_are_those_of_an_infinitely_wide_network(seed):
    assert page.the_slides_numbers_are_those_of_an_infinitely_wide_network(TABLES).holds
    for name, case in page.CASES.items():
        theory = list(expected(FUNCTIONS[name], case.std))
        ours = measured(name, seed)["std"]
        for std, slide, mine, spread in zip(theory, case.slide_std, ours, case.spread, strict=True):
            assert abs(slide - std) < 5e-7 + 3 * spread * std  # its last digit; the draw
            # log-normal for ReLU, whose log spreads a fifth more; six of its deviations
            assert abs(math.log(mine / std)) < 6 * 1.25 * spread


def test_weights_of_a_hundredth_let_activations_fade_to_nothing(seed):
    assert page.weights_of_a_hundredth_let_activations_fade_to_nothing(TABLES).holds
    stds = measured("tanh, 0.01", seed)["std"]
    factors = stds.to_numpy()[3:] / stds.to_numpy()[2:-1]  # tanh is linear from there on
    assert factors == pytest.approx(0.01 * math.sqrt(WIDTH), rel=0.03)
    assert stds[DEPTH] < 1e-6


def test_unit_weights_saturate_tanh(seed):
    # |tanh z| > 0.97 for |z| > 2.0923, z ~ N(0, 500 · 0.9637): FACTS' fixed point of E tanh²
    assert page.unit_weights_saturate_tanh(TABLES).holds
    share = math.erfc(2.0923 / math.sqrt(2 * WIDTH * 0.98167**2))
    assert share == pytest.approx(0.924, abs=1e-3)
    for layer in range(2, DEPTH + 1):
        assert measured("tanh, 1.0", seed)["saturated"][layer] == pytest.approx(share, abs=0.005)


def test_unit_weights_silence_the_median_gradient_and_explode_its_norm(seed):
    assert page.unit_weights_silence_the_median_gradient_and_explode_its_norm(TABLES).holds
    rows = measured("tanh, 1.0", seed)
    assert rows.delta_median[1] / rows.delta_rms[1] < 1e-9
    # √χ = 3.480; 20 seeds: 7.0e4 to 7.9e4 over the nine steps
    assert 6.0e4 < rows.delta_rms[1] / rows.delta_rms[DEPTH] < 9.3e4


def test_xavier_keeps_tanh_alive_over_ten_layers(seed):
    assert page.xavier_keeps_tanh_alive_over_ten_layers(TABLES).holds
    rows = measured("tanh, Xavier", seed)
    assert rows["std"][DEPTH] == pytest.approx(0.228473, rel=5 * 0.0058)
    assert rows.saturated[2:].max() < 0.01


def test_xavier_halves_the_power_of_relu_at_every_layer(seed):
    assert page.xavier_halves_the_power_of_relu_at_every_layer(TABLES).holds
    rows = measured("ReLU, Xavier", seed)
    power = rows["std"] ** 2 + rows["mean"] ** 2
    for layer in range(1, DEPTH + 1):
        # in the mean 2^-l; the relative spread of a rms is that of the std, of a power twice that
        spread = 2 * page.RELU_SPREAD[layer - 1]
        assert abs(math.log(power[layer] * 2**layer)) < 6 * 1.25 * spread


def test_he_keeps_the_power_of_relu_at_every_layer(seed):
    assert page.he_keeps_the_power_of_relu_at_every_layer(TABLES).holds
    he, xavier = measured("ReLU, He", seed), measured("ReLU, Xavier", seed)
    # positive homogeneity: the same draws times √2 a layer
    scales = math.sqrt(2) ** np.arange(1, DEPTH + 1)
    assert he["std"].to_numpy() == pytest.approx(
        xavier["std"].to_numpy() * scales, rel=1e-5
    )  # the draws are float32
    assert 0.78 < he.delta_rms[1] / he.delta_rms[DEPTH] < 1.3  # 20 seeds: 0.942 to 1.104


def test_weight_gradients_stay_equal_while_the_gradient_vanishes(seed):
    assert page.weight_gradients_stay_equal_while_the_gradient_vanishes(TABLES).holds
    rows = measured("tanh, 0.01", seed)
    assert 1.28e-6 < rows.delta_rms[1] / rows.delta_rms[DEPTH] < 1.4e-6  # 20 seeds: 1.317 to 1.356
    assert 0.95 < rows.weight_gradient[1] / rows.weight_gradient[DEPTH] < 1.08  # 0.990 to 1.029


def test_nndiag_blames_the_scale_of_the_three_and_passes_the_two(seed):
    assert page.nndiag_blames_the_scale_of_the_three_and_passes_the_two(TABLES).holds
    for name in ("tanh, 1.0", "ReLU, He"):
        report = verdict(name, seed)
        roots = {f.rule for f in report.at_least("warning") if f.cause is None}
        assert roots == (set() if name == "ReLU, He" else {"init-scale"}), name


def test_weight_init_page_holds_whatever_the_seed(seed):
    table = TABLES["layers"]
    for name in page.CASES:
        for layer, rows in table[table.case == name].groupby("layer"):
            low, high = band(rows["std"], log=True)
            assert low < measured(name, seed)["std"][layer] < high, (name, layer)
