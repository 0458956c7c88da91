"""Page 11, regularisation and the search for hyperparameters.

The laws of search are held against enumeration.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from bands import CHANCE, band, committed
from effort import tried
from gallery.regularization import experiment as page
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional as F

import nndiag

TABLES = committed("regularization")


@functools.cache
def run(kind, seed):
    return page.trained(kind, seed)[1]


@functools.cache
def surface(seed):
    return page.surface(seed)


@functools.cache
def searches(seed):
    return page.searches(seed, surface(seed))


def test_batchnorm_noise_falls_with_the_root_of_the_group(seed):
    # all groups of a population of 9, exactly
    assert page.batchnorm_noise_falls_with_the_root_of_the_group(TABLES).holds
    population = np.random.default_rng(seed).normal(size=9)
    population = (population - population.mean()) / population.std()
    for group in range(1, 10):
        means = [np.mean(chosen) for chosen in itertools.combinations(population, group)]
        law = math.sqrt((9 - group) / (group * 8))
        assert np.sqrt(np.mean(np.square(means))) == pytest.approx(law, abs=1e-9)
    torch.manual_seed(seed)
    found = {row["group"]: row["noise"] for row in page.noise(page.network("plain"), seed)}
    for group in page.GROUPS[:-1]:
        law = math.sqrt((256 - group) / (group * 255))
        assert found[group] == pytest.approx(law, rel=0.2)  # 3 % is a standard deviation at 128
    assert found[256] < 1e-12


def test_batchnorm_gains_by_its_noise_and_gains_without_it(seed):
    assert page.batchnorm_gains_by_its_noise_and_gains_without_it(TABLES).holds
    torch.manual_seed(seed)
    x, order = torch.randn(256, 5) * 3 + 1, torch.randperm(256)
    whole, parts, torchs = page.GhostNorm(5, 256), page.GhostNorm(5, 8), nn.BatchNorm1d(5)
    assert torch.allclose(whole(x), torchs(x), atol=1e-5)
    for statistic in ("running_mean", "running_var"):
        assert torch.allclose(getattr(whole, statistic), getattr(torchs, statistic), rtol=1e-4)
    assert torch.allclose(parts(x)[8:16], nn.BatchNorm1d(5)(x[8:16]), atol=1e-5)
    # without noise: an image's output does not depend on the order; with it, it does
    assert torch.allclose(whole(x[order]), whole(x)[order], atol=1e-5)
    assert (parts(x[order]) - parts(x)[order]).abs().max() > 0.1


def test_behind_noisy_batchnorm_dropout_gains_less():
    assert page.behind_noisy_batchnorm_dropout_gains_less(TABLES).holds


def test_sixty_random_trials_reach_the_best_twentieth(seed):
    assert page.sixty_random_trials_reach_the_best_twentieth(TABLES).holds
    law = 1 - 0.95**60
    assert law == pytest.approx(0.9539, abs=5e-5)
    assert 1 - 0.95**90 > 0.99 > 1 - 0.95**89
    # the best of n uniform ranks is Beta(n, 1): its median and its share above 0.95
    assert stats.beta.sf(0.95, 60, 1) == pytest.approx(law)
    for top in searches(seed).query("trials == 60")["top"]:
        # as the page's claim: drawn searches, and a quantile of 50,000 draws
        slope = 60 * 0.95**59
        deviation = math.sqrt(law * (1 - law) / page.SEARCHES + slope**2 * 0.0475 / 50_000)
        assert abs(top - law) < stats.norm.isf(CHANCE / 4) * deviation


@tried(60)
@given(st.integers(2, 30), st.floats(1e-4, 1))
def by_counting(side, share):
    # in general: for a target of up to half a grid's spacing
    width = share / (2 * side)
    assert 1 - (1 - width) ** (side**2) > side * width
    # and the grid's law by counting: offsets of one period, targets at 0
    offsets = (np.arange(2000) + 0.5) / 2000
    points = (np.arange(side)[None] + offsets[:, None]) / side
    hit = (points < width).any(axis=1).mean()
    assert hit == pytest.approx(side * width, abs=1 / 2000)
    # the page's own drawing
    found = page.trials("grid", side, 3, np.random.default_rng(0))
    assert found.shape == (3, side**2, 2)
    assert len(np.unique(found[0, :, 0].round(12))) == side
    assert len(np.unique(page.trials("random", side, 1, np.random.default_rng(0))[0, :, 0])) == (
        side**2
    )


def test_random_search_wins_where_one_parameter_matters():
    assert page.random_search_wins_where_one_parameter_matters(TABLES).holds
    by_counting()


def test_an_even_grid_wins_where_both_parameters_matter(seed):
    assert page.an_even_grid_wins_where_both_parameters_matter(TABLES).holds
    rows = searches(seed).query("trials == 9")
    found = rows.set_index(["method", "penalties"])["best"]
    # five seeds: 14 points, and 3.5, each with a standard deviation under half a point
    assert found["grid", "all"] > found["random", "all"] > found["grid, ends", "all"]
    assert found["random", "up to 0.01"] > found["grid", "up to 0.01"]
    # of a target in both, by theory, with 16 trials: (4/√20)² against 1 - 0.95¹⁶
    assert page.exact("both", "grid", 4) == pytest.approx(0.8)
    assert page.exact("both", "random", 4) == pytest.approx(0.5599, abs=1e-4)
    for row in page.hits(seed).itertuples():
        theory = page.exact(row.case, row.method, row.side)
        low, high = stats.binom.interval(1 - CHANCE / 20, 10 * page.SEARCHES, theory)
        assert low <= row.hit * 10 * page.SEARCHES <= high, row


def test_linear_space_wastes_nearly_every_draw(seed):
    assert page.linear_space_wastes_nearly_every_draw(TABLES).holds
    draws = np.random.default_rng(seed).uniform(0, [10, 1e5], (100_000, 2))
    # a penalty below 1 has probability 1e-5 each: more than 20 of them 1e-17
    assert (draws[:, 1] < 1).sum() <= 20
    rows = searches(seed).query("trials == 1")
    top = rows.set_index("method")["top"]
    assert top["linear"] < 1e-3
    assert top["log"] > 0.04  # 5 % by definition of the top
    # what a penalty of 10 or more leaves of accuracy: a guess's
    assert surface(seed)[:, page.PENALTIES >= 2].max() < 0.2


def test_a_best_rate_at_the_border_means_look_further(seed):
    assert page.a_best_rate_at_the_border_means_look_further(TABLES).holds
    rows = page.borders(seed, surface(seed)).set_index("range").to_dict("index")
    short, longer, wide = (rows[name] for name in page.BORDERS)
    assert short["top_tenth"] > 0.5  # 76 %, by place alone 10 %
    assert longer["top_tenth"] > 0.4  # 66 %
    assert wide["top_tenth"] < 0.1
    assert short["best"] < longer["best"] < wide["best"] + 0.02


def test_nndiag_passes_regularised_and_overfitted_networks_alike():
    assert page.nndiag_passes_regularised_and_overfitted_networks_alike(TABLES).holds
    x, y, _, _ = page.images(20)
    for kind in ("plain", "BN, 8"):
        model = page.trained(kind, 20)[0].train()
        report = nndiag.check(model, x, y, loss_fn=F.cross_entropy, config=False)
        assert not report.at_least("warning"), kind
        assert run(kind, 20)["train"] > 0.99


@pytest.mark.exhaustive
def test_regularization_page_holds_whatever_the_seed(seed):
    def change(kind, other, column="test"):
        return np.mean([run(kind, s)[column] - run(other, s)[column] for s in (20, 21, 22)])

    assert change("BN, 32", "BN, 256", "test_loss") < 0 < change("BN, 32", "BN, 256")
    assert change("BN, 256", "plain") > 0
    tables = TABLES
    for kind in ("plain", "BN, 32"):
        rows = tables["runs"][tables["runs"].kind == kind]
        low, high = band(rows["test"])
        assert low < run(kind, seed)["test"] < high, kind
    old = tables["surface"].groupby(["log_lr", "log_reg"])["accuracy"]
    plateau = [(-1.0, -5.0), (-1.0, -3.0), (-2.0, -4.0)]
    for rate, penalty in plateau:
        i = int(np.abs(page.RATES - rate).argmin())
        j = int(np.abs(page.PENALTIES - penalty).argmin())
        key = min(old.groups, key=lambda k: (k[0] - rate) ** 2 + (k[1] - penalty) ** 2)
        low, high = band(old.get_group(key))
        assert low < surface(seed)[i, j] < high, (rate, penalty)
