"""Page 1, activation functions.

Moments are integrated here on a grid; saturated shares follow from closed forms.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from bands import band, committed, share_band
from gallery import lab
from gallery.activations import experiment as page
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import nndiag
from nndiag.fixes import Maxout

TABLES = committed("activations")


moments = functools.cache(page.moments)


@functools.cache
def trained(name, rate, seed):
    return page.dying(name, rate, seed, every=page.ADAM_STEPS)


def died(name, rate, seed):
    return trained(name, rate, seed)[0]["dead"].iloc[-1]


@given(st.floats(-700, 700))
def slope_by_cosh(x):
    slope = page.slope(nn.Sigmoid(), torch.tensor([x], dtype=torch.float64)).item()
    assert 0 <= slope <= 0.25
    assert slope == pytest.approx(1 / (4 * math.cosh(x / 2) ** 2), rel=1e-9, abs=1e-15)


def test_sigmoid_slope_never_exceeds_a_quarter():
    assert page.sigmoid_slope_never_exceeds_a_quarter(TABLES).holds
    slope_by_cosh()


def test_tanh_is_a_sigmoid_that_saturates_at_half_the_distance(seed):
    assert page.tanh_is_a_sigmoid_that_saturates_at_half_the_distance(TABLES).holds

    @given(st.floats(-350, 350))
    def stretched(x):
        sigmoid = torch.sigmoid(torch.tensor(2 * x, dtype=torch.float64)).item()
        assert math.tanh(x) == pytest.approx(2 * sigmoid - 1, abs=1e-15)

    stretched()
    edge = math.acosh(1 / math.sqrt(page.FLAT))  # sech² of it is FLAT
    for name in page.CASES:
        found = moments(name, seed)["flat_positive"]
        if name in ("tanh", "sigmoid"):
            far = edge if name == "tanh" else 2 * edge
            share = math.erfc(far / page.WIDE / math.sqrt(2))
            low, high = share_band(share, int(0.48 * page.SAMPLES))  # at least as many are positive
            assert low < found < high
        else:
            assert found == 0


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


FORMULAS = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "prelu": lambda z: np.where(z > 0, z, 0.25 * z),
    "elu": lambda z: np.where(z > 0, z, np.exp(z) - 1),
    "selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * (np.exp(z) - 1)),
    "maxout": lambda z: z,
    "gelu": lambda z: z * np.vectorize(math.erfc)(-z / math.sqrt(2)) / 2,
    "silu": lambda z: z * sigmoid(z),
}


def test_the_outputs_are_centred_as_theory_has_it(seed):
    assert page.the_outputs_are_centred_as_theory_has_it(TABLES).holds
    z = np.linspace(-9, 9, 18_001)
    density = np.exp(-(z**2) / 2)
    for name, formula in FORMULAS.items():
        # the larger of two has density 2 φ Φ
        weights = density * (np.vectorize(math.erfc)(-z / math.sqrt(2)) if name == "maxout" else 1)
        weights = weights / weights.sum()
        mean = weights @ formula(z)
        std = math.sqrt(weights @ (formula(z) - mean) ** 2)
        found = moments(name, seed)
        assert page.CASES[name][2:] == pytest.approx((mean, std), abs=2e-6)
        # 5.5 standard errors: 4e-8
        assert found["mean"] == pytest.approx(mean, abs=5.5 * std / math.sqrt(page.SAMPLES))
        assert found["std"] == pytest.approx(std, abs=5.5 * found["std_error"])


def test_relu_units_die_where_leaky_units_do_not():
    assert page.relu_units_die_where_leaky_units_do_not(TABLES).holds
    x, *_ = lab.digits()
    never = []
    for module in trained("relu", page.HIGH, 101)[1][:-1]:
        if isinstance(module, nn.ReLU):
            never.append((x <= 0).all(0))  # what its definition says
        x = module(x)
    assert died("relu", page.HIGH, 101) == torch.cat(never).double().mean().item()


def test_elu_and_gelu_die_where_float32_ends(seed):
    assert page.elu_and_gelu_die_where_float32_ends(TABLES).holds
    with np.errstate(under="ignore"):
        assert np.exp(np.float32(-103)) > 0 == np.exp(np.float32(-104))
    last = page.last_slopes().set_index(["activation", "dtype"])["last"]
    assert last["elu", "float32"] == -103
    assert last["elu", "float64"] == -745
    assert -14 <= last["gelu", "float32"] <= -5
    assert last["gelu", "float64"] < -30
    x, *_ = lab.digits()
    for name, far in (("elu", -300.0), ("gelu", -30.0)):
        for dtype, share in ((torch.float32, 1 / 3), (torch.float64, 0)):
            model = page.network(name, seed, dtype)
            with torch.no_grad():
                model[0].weight.mul_(0.01)
                model[0].bias.fill_(far)  # the first of three hidden layers
            assert page.dead(model, x.to(dtype)) == pytest.approx(share), (name, dtype)


def test_exp_costs_more_than_max_and_hardly_matters_in_a_layer():
    assert page.exp_costs_more_than_max_and_hardly_matters_in_a_layer(TABLES).holds
    operations = {}
    for name, layer in (
        ("relu", nn.Sequential(nn.Linear(500, 500), nn.ReLU())),
        ("maxout", Maxout.of(nn.Linear(500, 500))),
    ):
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(100, 500))
        operations[name] = counter.get_total_flops()
    assert operations == {"relu": 2 * 100 * 500**2, "maxout": 4 * 100 * 500**2}


def test_relu_is_many_times_faster_than_sigmoid_and_not_than_tanh():
    assert page.relu_is_many_times_faster_than_sigmoid_and_not_than_tanh(TABLES).holds


def test_sigmoid_comes_last_of_the_ten_after_a_fixed_budget():
    assert page.sigmoid_comes_last_of_the_ten_after_a_fixed_budget(TABLES).holds


def test_nndiag_names_dead_relus_and_saturated_tanhs():
    assert page.nndiag_names_dead_relus_and_saturated_tanhs(TABLES).holds
    x, y, _, _ = lab.digits()
    model = trained("relu", page.HIGH, 101)[1]
    report = nndiag.check(model, x, y, loss_fn=nn.functional.cross_entropy, config=False)
    assert "dead-relu" in {finding.rule for finding in report.at_least("warning")}


def test_activations_page_holds_whatever_the_seed(seed):
    tables = TABLES
    for name, rows in tables["moments"].groupby("activation"):
        low, high = band(rows["std"], log=True)
        assert low < moments(name, seed)["std"] < high, name
    relu = page.where(tables["dead"], activation="relu", rate=page.HIGH, step=page.ADAM_STEPS)
    low, high = band(relu["dead"], log=True)
    assert low < died("relu", page.HIGH, seed) < high
    tanh = page.where(tables["learning"], activation="tanh", rate=0.1)
    low, high = band(tanh["test"], log=True)
    assert low < page.learning("tanh", 0.1, seed)["test"] < high
