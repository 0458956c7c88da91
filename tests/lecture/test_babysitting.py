"""Page 8, babysitting: laws in closed form, and the page's runs in reduced form."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from bands import band, committed
from gallery import lab
from gallery.babysitting import experiment as page
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.nn.functional import cross_entropy

import nndiag

TABLES = committed("babysitting")


@functools.cache
def ran(optimizer, rate, seed, steps=page.STEPS):
    return page.run(optimizer, rate, seed, steps)


def test_the_loss_starts_at_ln_10_and_rises_by_half_of_reg_times_w_squared(seed):
    assert page.the_loss_starts_at_ln_10_and_rises_by_half_of_reg_times_w_squared(TABLES).holds
    row = page.start(seed)
    model, x, y = page.slide_net(seed, 500)
    first, last = (model.get_parameter(f"{n}.weight").detach().numpy() for n in (0, 2))
    logits = np.maximum(x.numpy() @ first.T, 0) @ last.T
    naive = -np.log(np.exp(logits)[np.arange(500), y] / np.exp(logits).sum(axis=1)).mean()
    assert row["loss - ln 10"] == pytest.approx(naive - math.log(10), abs=1e-12)
    # 5 sd of which logits the random labels pick: one of ten, of each of 500 rows
    spread = (logits - logits.mean(axis=1, keepdims=True)).std()
    assert abs(row["loss - ln 10"]) < 5 * spread / math.sqrt(500) + spread**2
    assert row["penalty"] == pytest.approx(500 * ((first**2).sum() + (last**2).sum()), rel=1e-9)
    # ½ · 1e3 · 1e-8 · χ² of 154100 degrees of freedom
    low, high = (5e-6 * stats.chi2.ppf(p, 154_100) for p in (5e-7, 1 - 5e-7))
    assert low < row["penalty"] < high
    low, high = (5e-6 * stats.chi2.ppf(p, 154_100) for p in (0.001, 0.999))
    assert low < page.SLIDE_REGULARISED - page.SLIDE_LOSS < high


def test_logits_that_spread_start_above_ln_10_by_a_known_amount():
    assert page.logits_that_spread_start_above_ln_10_by_a_known_amount(TABLES).holds
    rng = np.random.default_rng(0)
    for sigma in (0.0, 0.5, 1.0, 10.0):
        for classes in (2, 10):
            logits = sigma * rng.standard_normal((10_000, classes))
            losses = np.logaddexp.reduce(logits, axis=1) - logits[:, 0]
            error = losses.std() / 100 + 1e-4  # the integral's own
            assert page.chance_loss(sigma, classes) == pytest.approx(losses.mean(), abs=5 * error)
    for sigma in (0.05, 0.1, 0.2):  # two classes: a logistic of N(0, 2σ²)
        exact, _ = integrate.quad(
            lambda z, s=sigma: stats.norm.pdf(z) * np.log1p(np.exp(s * math.sqrt(2) * z)), -12, 12
        )
        assert page.chance_loss(sigma, 2) == pytest.approx(exact, abs=1e-6)
        series = math.log(10) + sigma**2 / 2 * 0.9
        # the next term: less than σ⁴ of either sign
        assert page.chance_loss(sigma) == pytest.approx(series, abs=sigma**4 + 1e-6)
    rows = [page.spread_out(1.0, seed) for seed in range(20)]
    off = np.array([row["loss"] - row["theory"] for row in rows])
    assert abs(off.mean()) < 5 * off.std() / math.sqrt(20)
    assert page.run("SGD", 1e-4, 0, 1)[0]["first loss"] > math.log(10) + 0.1


def test_twenty_examples_are_learnt_by_heart_with_meaningless_labels_too():
    assert page.twenty_examples_are_learnt_by_heart_with_meaningless_labels_too(TABLES).holds
    for case in ("digits", "digits, random labels"):
        for seed in (0, 1):
            rows = page.overfit(case, seed).set_index("epoch")
            assert rows.accuracy[500] == 1
            assert rows.loss[500] < 0.1
            assert rows.accuracy[10] < 0.9  # of one class all would be right at once
    rows = page.overfit("patches, random labels", 3).set_index("epoch")
    assert rows.loss[1] == pytest.approx(math.log(10), abs=1e-3)
    assert rows.loss[5] > 0.98 * math.log(10)
    assert rows.loss[500] < rows.loss[5] / 2


def test_accuracy_triples_while_the_loss_falls_by_one_percent():
    assert page.accuracy_triples_while_the_loss_falls_by_one_percent(TABLES).holds
    rows = [page.flat(1e-2, seed) for seed in range(6)]
    mean = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
    assert 0 < 1 - mean["loss after"] / mean["loss before"] < 0.02
    assert mean["accuracy after"] > 2 * mean["accuracy before"]
    # why: scaled by a thousandth all logits rank as before, and the loss is that of chance
    model, (x, y, *_) = page.he_net(0), lab.digits()
    lab.train(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), 60, 0)
    with torch.no_grad():
        logits = model(x)
        small = logits / 1000
        assert torch.equal(logits.argmax(dim=1), small.argmax(dim=1))
        assert cross_entropy(small, y) == pytest.approx(math.log(10), rel=0.01)
        assert cross_entropy(logits, y) < 0.5


def test_a_rate_somewhat_too_high_ends_in_a_dead_net_and_not_in_nan():
    assert page.a_rate_somewhat_too_high_ends_in_a_dead_net_and_not_in_nan(TABLES).holds
    x, y, _, _ = lab.digits()
    row, _, model = ran("SGD", 0.3, 0)
    assert row["dead"] == sum(bool((unit <= 0).all()) for unit in model[0](x).T) / 50
    for seed in (0, 1):
        assert not math.isnan(ran("SGD", 1e6, seed)[0]["not finite at"])
        row, curve, model = ran("SGD", 3.0, seed)
        assert math.isnan(row["not finite at"])
        silent = (model[0](x) <= 0).all(dim=0).double().mean()
        assert row["dead"] == silent > 0.9
        # a constant output cannot do better than the classes' own entropy
        shares = torch.bincount(y) / len(y)
        entropy = -(shares * shares.log()).sum()
        assert entropy - 1e-2 < row["last loss"] < entropy + 0.25
        assert curve.loss.iloc[-1] == row["last loss"]


def test_three_times_the_first_loss_tells_the_lost_runs_at_once():
    assert page.three_times_the_first_loss_tells_the_lost_runs_at_once(TABLES).holds
    for rate in (1e-2, 0.3, 3.0, 10.0, 1e6):
        for seed in (10, 11, 12):
            row, _, _ = ran("SGD", rate, seed, 40)
            lost = rate > 1
            assert (row["highest / first"] > 3) == lost
            assert (row["over 3 x at"] <= 2) == lost
            assert math.isnan(row["over 3 x at"]) != lost


@given(
    curvatures=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5),
    relative=st.floats(0.01, 2.0).filter(lambda r: abs(r - 1) > 1e-3),
)
def diverging(curvatures, relative):
    values = torch.tensor(curvatures, dtype=torch.float64)
    weight = torch.ones(len(values), dtype=torch.float64, requires_grad=True)
    rate = relative * 2 / values.max().item()
    optimizer = torch.optim.SGD([weight], lr=rate)
    losses = []
    for _ in range(30):
        loss = (values * weight**2).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    exact = (values * (1 - rate * values) ** 58).sum().item() / 2
    assert losses[-1] == pytest.approx(exact, rel=1e-9, abs=1e-30)
    if relative < 1:
        assert all(later <= earlier for earlier, later in itertools.pairwise(losses))
    else:
        top = values.max().item()
        assert losses[-1] >= top / 2 * (1 - 2 * relative) ** 58 * (1 - 1e-9)
        assert losses[-1] > losses[-2]


def test_a_quadratic_diverges_beyond_two_over_lambda_and_not_before():
    assert page.a_quadratic_diverges_beyond_two_over_lambda_and_not_before(TABLES).holds
    diverging()


def test_the_best_runs_update_by_more_than_a_thousandth(seed):
    # Adam, its first step by hand: m̂ / √v̂ is the gradient's sign
    assert page.the_best_runs_update_by_more_than_a_thousandth(TABLES).holds
    x, y, _, _ = lab.digits()
    for rate in (1e-4, 1e-2):
        row, _, _ = ran("Adam", rate, seed, 1)
        model = page.he_net(seed)
        chosen = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(seed))
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        for layer in (1, 2):
            matrix = model.get_parameter(f"{2 * layer - 2}.weight")
            ratio = rate * matrix.grad.sign().norm() / matrix.norm()
            # what ε = 1e-8 takes from gradients that are nearly as small
            assert row[f"first ratio {layer}"] == pytest.approx(ratio.item(), rel=1e-2)
            assert row[f"first ratio {layer}"] == pytest.approx(
                rate / (math.sqrt(2 / matrix.shape[1])), rel=0.25
            )
    # SGD, its first step by hand
    row, _, _ = ran("SGD", 0.3, seed, 1)
    model = page.he_net(seed)
    cross_entropy(model(x[chosen]), y[chosen]).backward()
    matrix = model.get_parameter("0.weight")
    by_hand = 0.3 * matrix.grad.norm() / matrix.norm()
    assert row["first ratio 1"] == pytest.approx(by_hand.item(), rel=1e-4)
    assert row["first ratio 1"] > 0.01
    best, slow = ran("SGD", 0.3, 0)[0], ran("SGD", 1e-2, 0)[0]
    assert best["accuracy"] > slow["accuracy"] + 0.02
    assert 3e-4 < slow["ratio 1"] < 3e-3 < best["ratio 1"]


def test_nndiag_sees_what_a_rate_did_to_the_net_and_not_a_rate_too_low():
    assert page.nndiag_sees_what_a_rate_did_to_the_net_and_not_a_rate_too_low(TABLES).holds
    x, y, _, _ = lab.digits()
    cases = {
        1e-4: set(), 0.3: set(), 3.0: {"dead-relu"}, 1e6: {"non-finite"},
    }  # fmt: skip
    for rate, expected in cases.items():
        _, _, model = ran("SGD", rate, 0)
        report = nndiag.check(model, x[:256], y[:256], loss_fn=cross_entropy, config=False)
        alarms = {f.rule for f in report.at_least("warning")}
        assert expected <= alarms, rate
        assert bool(alarms) == bool(expected), rate
    small = lab.mlp([64, 50, 10], torch.nn.ReLU, lab.normal(lambda n: 1e-4))
    report = nndiag.check(small, x[:256], y[:256], loss_fn=cross_entropy, config=False)
    assert "init-scale" in {f.rule for f in report.at_least("warning")}
    model, x, y = page.slide_net(0, 128)
    report = nndiag.check(model, x, y, loss_fn=cross_entropy, config=False)
    # The slide's pictures are centred bytes.
    assert {f.rule for f in report.at_least("warning")} <= {"input-scale"}


def test_babysitting_page_holds_whatever_the_seed(seed):
    frames = TABLES
    begun = page.start(seed)
    low, high = band(frames["start"]["penalty"])
    assert low < begun["penalty"] < high
    low, high = band(frames["start"]["sigma"], log=True)
    assert low < begun["sigma"] < high
    rows = frames["runs"]
    for rate in (1e-2, 0.3):
        known = rows[(rows.optimizer == "SGD") & (rows.rate == rate)]
        fresh = ran("SGD", rate, seed)[0]
        for column in ("last loss", "ratio 1"):
            low, high = band(known[column], log=True)
            assert low < fresh[column] < high, (rate, column)
