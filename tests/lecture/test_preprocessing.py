"""Page 7, data preprocessing: laws for any data, and the page's own data in reduced form."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from bands import band, committed
from gallery.preprocessing import experiment as page
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import svdvals
from scipy.optimize import minimize
from scipy.stats import ortho_group

import nndiag

TABLES = committed("preprocessing")


@functools.cache
def steps(name, step, seed=0):
    return page.regression(name, step, seed)


@functools.cache
def networks():
    return page.checked()


def kappa(x):
    """By the singular values of the data themselves, not by the eigenvalues of a product."""
    values = svdvals(x)
    return (values[0] / values[-1]) ** 2


def table(seed, rows=60, features=5):
    """Features of unlike units, correlated, off centre."""
    draws = np.random.default_rng(seed)
    mixed = draws.standard_normal((rows, features)) @ draws.standard_normal((features, features))
    return mixed * 10.0 ** draws.uniform(-2, 2, features) + draws.normal(0, 10, features)


def test_scaling_helps_unlike_units_and_leaves_pixels_as_they_were():
    assert page.scaling_helps_unlike_units_and_leaves_pixels_as_they_were(TABLES).holds
    for name in ("wine", "cancer"):
        raw, scaled = steps(name, "raw"), steps(name, "scaled")
        assert not raw["reached"]
        assert scaled["reached"]
        assert scaled["steps"] < page.CAP / 100
    centred, scaled = steps("patches", "centred"), steps("patches", "scaled")
    assert 0.5 < scaled["steps"] / centred["steps"] < 2
    # the last loss of descent is no luck of its rate: a second-order method goes on from there
    x, y = page.half("wine", 0)
    x = page.through(x, "scaled")
    assert page.descent(x, y, 0.2)[-1] < 0.2 < page.descent(x, y, 0.2)[-2]
    truth, wide = np.eye(3)[y], np.hstack([x, np.ones((len(x), 1))])

    def loss(flat):
        logits = wide @ flat.reshape(-1, 3)
        return (np.logaddexp.reduce(logits, axis=1) - (logits * truth).sum(axis=1)).mean()

    start = np.zeros(wide.shape[1] * 3)
    assert loss(start) == pytest.approx(page.descent(x, y, 0.2)[0], rel=1e-12)
    assert minimize(loss, start, options={"maxiter": 5}).fun < 0.2


def test_a_far_smaller_condition_number_saves_digits_no_step():
    assert page.a_far_smaller_condition_number_saves_digits_no_step(TABLES).holds
    x, _ = page.data("digits")
    centred = x - x.mean(axis=0)
    assert kappa(centred) / kappa(centred / centred.std(axis=0)) > 1000
    taken = [steps("digits", step)["steps"] for step in ("centred", "scaled")]
    assert taken[1] > 0.8 * taken[0]


@given(seed=st.integers(0, 2**32 - 1))
def rotated(seed):
    x = table(seed)
    x = (x - x.mean(axis=0)) / x.std()
    y = np.arange(len(x)) % 3
    rotated = x @ ortho_group.rvs(x.shape[1], random_state=seed % 2**31)
    plain, turned = (page.descent(v, y, 0.0, cap=30) for v in (x, rotated))
    assert turned == pytest.approx(plain, rel=1e-9)  # 30 steps of rounding
    decorrelated = page.through(x, "decorrelated")
    assert page.descent(decorrelated, y, 0.0, cap=30) == pytest.approx(plain, rel=1e-9)
    covariance = decorrelated.T @ decorrelated / len(x)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 1e-12 * covariance.max()


def test_decorrelation_alone_changes_no_step_of_gradient_descent():
    assert page.decorrelation_alone_changes_no_step_of_gradient_descent(TABLES).holds
    rotated()


def test_whitening_leaves_lambda_over_lambda_plus_epsilon():
    assert page.whitening_leaves_lambda_over_lambda_plus_epsilon(TABLES).holds
    rng = np.random.default_rng(0)
    for seed in rng.integers(2**31, size=50):
        x = table(seed)
        x = (x - x.mean(axis=0)) / 100
        squares = svdvals(x) ** 2 / len(x)
        white = page.through(x, "whitened")
        ours = np.sort(svdvals(white) ** 2 / len(x))
        # what an eigenvalue near eps is off by rounding is eps_float64 of the largest, over eps
        assert ours == pytest.approx(
            np.sort(squares / (squares + 1e-5)), abs=1e-10 * max(1, squares[0])
        )
    assert kappa(page.through(page.data("cancer")[0], "whitened")) > 10
    assert kappa(page.through(page.data("wine")[0], "whitened")) < 1.01


def test_three_numbers_remove_what_a_mean_image_does_unless_pictures_are_aligned(seed):
    assert page.three_numbers_remove_what_a_mean_image_does_unless_pictures_are_aligned(
        TABLES
    ).holds
    rows = {r["subtracted"]: r for r in page.subtracted(seed)}
    image, channel = rows["mean image"], rows["mean of each channel"]
    assert (image["stored"], channel["stored"]) == (3072, 3)
    # E |mean image - mean of channel|² is at most (1 - removed)/N of the second moment; its
    # distribution has one dominating direction: a chi-squared of 1, of which 24 is 1 in a million
    assert 0 <= image["removed"] - channel["removed"] < 24 * (1 - channel["removed"]) / 520
    x = page.data("digits")[0]  # without the three pixels that are always zero
    power = (x**2).sum() / 64
    aligned = (x.mean(axis=0) ** 2).sum() * len(x) / 64 / power
    alone = (x.sum() / 64 / len(x)) ** 2 * len(x) / power
    found = {r["subtracted"]: r["removed"] for r in page.digits_subtracted()}
    assert found["mean image"] == pytest.approx(aligned)
    assert found["mean of each channel"] == pytest.approx(alone)
    assert aligned > alone + 0.1


def test_the_mean_of_each_image_takes_its_brightness_with_it(seed):
    assert page.the_mean_of_each_image_takes_its_brightness_with_it(TABLES).holds
    rows = {r["subtracted"]: r for r in page.subtracted(seed)}
    own = rows["mean of each image"]["by brightness"]
    assert abs(own - 0.5) < 5 / math.sqrt(4 * 260)
    shared = {rows[name]["by brightness"] for name in ("nothing", "mean image", page.ONE)}
    assert len(shared) == 1
    # ten committed cuts: 0.685 to 0.81; sd 0.04
    assert shared.pop() > 0.5
    x, _ = page.crops(seed, each=5)
    shown = page.SUBTRACTIONS["mean of each image"](x, x)
    assert np.abs(shown.mean(axis=(1, 2, 3))).max() < 1e-12
    lighter = page.SUBTRACTIONS["mean of each image"](x, x + 0.2)
    assert lighter == pytest.approx(shown, abs=1e-12)


def test_whitening_blows_noise_up_and_a_larger_epsilon_calms_it(seed):
    assert page.whitening_blows_noise_up_and_a_larger_epsilon_calms_it(TABLES).holds
    x, _ = page.data("patches")
    noise = np.random.default_rng(seed).standard_normal(x.shape) / 255
    noisy = x + noise - (x + noise).mean(axis=0)
    left, values, right = np.linalg.svd(noisy, full_matrices=False)
    squares = values**2 / len(x)
    before = (1 / 255) ** 2 * x.shape[1] / squares.sum()
    for eps, least in ((1e-5, 500), (1e-2, 30)):
        theory = ((1 / 255) ** 2 / (squares + eps)).sum() / (squares / (squares + eps)).sum()
        naive = ((noise @ right.T) ** 2 / (squares + eps)).sum()
        naive /= ((left * values) ** 2 / (squares + eps)).sum()
        ours = page.noise(eps, seed)
        assert ours["after"] == pytest.approx(naive, rel=1e-6)
        assert ours["after"] == pytest.approx(theory, rel=0.02)  # 1.6 million draws, 8480 rows
        assert ours["after"] / before > least


def test_a_leaking_scaler_hides_the_drift_rather_than_flattering():
    assert page.a_leaking_scaler_hides_the_drift_rather_than_flattering(TABLES).holds
    for drift in (0.5, 1.0, 2.0):
        rows = [page.leak(drift, seed) for seed in range(60)]
        mean = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        p = 40 / 178
        law = drift * p / math.sqrt(1 + drift**2 * p * (1 - p))
        # a mean of 40 and one of 138 rows, 13 features, 60 seeds: sd about 0.19 / √(13 · 60) x 2
        assert mean["all mean"].mean() == pytest.approx(law, abs=0.05)
        assert mean["train mean"].mean() == pytest.approx(drift, rel=0.1)
        assert np.abs(mean["own mean"]).max() < 1e-8
    assert mean["own"].mean() > mean["train"].mean() + 0.05
    # without drift all three say the same
    still = [page.leak(0.0, seed) for seed in range(60)]
    assert np.mean([r["all"] - r["train"] for r in still]) == pytest.approx(0, abs=0.01)
    # statistics of the training rows leave a drift where it is: 0.5 over a deviation of 4
    x = np.random.default_rng(0).normal(0, 4, (1000, 1))
    shift, matrix = page.fitted(x, "scaled")
    assert ((x + 0.5 - shift) @ matrix).mean() == pytest.approx(0.125, rel=0.1)


def test_nndiag_sees_raw_measurements_by_the_units_that_they_saturate():
    assert page.nndiag_sees_raw_measurements_by_the_units_that_they_saturate(TABLES).holds
    for name, (model, inputs, targets) in networks().items():
        report = nndiag.check(
            model, inputs, targets, loss_fn=torch.nn.functional.cross_entropy, config=False
        )
        alarms = report.at_least("warning")
        roots = {f.rule for f in alarms if f.cause is None}
        sick = name.startswith("tanh") and name.endswith("raw")
        assert ("saturation" in {f.rule for f in alarms}) == sick, name
        # Where the measurements are far from 1, that leads; the digits reach 16 only.
        assert roots <= ({"input-scale", "saturation"} if sick else {"input-scale"}), name
        assert name.endswith("raw") or not roots, name


def test_preprocessing_page_holds_whatever_the_seed(seed):
    frames = TABLES
    rows = frames["noise"]
    fresh = page.noise(1e-5, seed)
    low, high = band(rows[rows.eps == 1e-5]["after"], log=True)
    assert low < fresh["after"] < high
    means = frames["means"][frames["means"].data == "photographs"]
    for row in page.subtracted(seed):
        known = means[means.subtracted == row["subtracted"]]
        if row["subtracted"] != "nothing":
            low, high = band(known["removed"])
            assert low < row["removed"] < high, row["subtracted"]
    known = frames["steps"]
    fresh = page.regression("digits", "centred", seed)
    low, high = band(known[(known.data == "digits") & (known.step == "centred")]["steps"], log=True)
    assert low < fresh["steps"] < high
