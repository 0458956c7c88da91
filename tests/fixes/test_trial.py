"""The training trial: the same seeds and data before and after, and a verdict that admits ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bitwise import untouched
from scipy import stats
from torch import nn

import nndiag
from nndiag.batch import Batch
from nndiag.errors import LossError
from nndiag.fixes.trial import Training, Trial
from nndiag.loss import LossMaker


def curves(start: float, finals: list[float], steps: int = 20) -> np.ndarray:
    return np.array([np.linspace(start, final, steps) for final in finals])


def of(before: list[float], after: list[float]) -> Trial:
    """Runs that end level at these losses."""
    seeds = tuple(range(len(before)))
    flat = [np.concatenate([c[:, :1], np.repeat(c[:, -1:], 19, axis=1)], axis=1) for c in (
        curves(2.0, before), curves(2.0, after)
    )]  # fmt: skip
    return Trial(seeds, *flat)


class TestVerdict:
    def test_lower_from_every_seed_is_better(self):
        assert of([1.0, 1.1, 0.9, 1.0], [0.2, 0.3, 0.25, 0.2]).verdict == "better"

    def test_higher_from_every_seed_is_worse(self):
        assert of([0.2, 0.3, 0.25, 0.2], [1.0, 1.1, 0.9, 1.0]).verdict == "worse"

    def test_what_the_seeds_disagree_about_is_a_tie(self):
        assert of([1.0, 0.5, 0.9, 0.6], [0.6, 0.9, 0.5, 1.0]).verdict == "tie"

    def test_less_than_chance_would_do_is_a_tie(self):
        found = of([1.0, 1.2, 0.7, 1.3], [0.9, 1.3, 0.6, 1.0])

        assert found.p_value == pytest.approx(
            stats.ttest_rel(*np.log([[1.0, 1.2, 0.7, 1.3], [0.9, 1.3, 0.6, 1.0]])).pvalue
        )
        assert found.p_value > 0.05
        assert found.verdict == "tie"

    def test_a_trifle_is_a_tie_however_sure(self):
        assert of([1.0, 1.0, 1.0, 1.001], [0.99, 0.99, 0.99, 0.9905]).verdict == "tie"

    def test_a_factor_that_every_seed_shows_is_seen_beside_a_spike(self):
        found = of([0.010, 0.008, 0.012, 0.100, 0.009], [0.002, 0.0015, 0.0025, 0.020, 0.002])

        assert stats.ttest_rel(found.final_before, found.final_after).pvalue > 0.05  # of the losses
        assert found.verdict == "better"

    def test_losses_below_zero_are_compared_as_they_are(self):
        found = of([-1.0, -1.1, -0.9, -1.0], [-2.0, -2.1, -1.9, -2.2])

        assert found.p_value == pytest.approx(
            stats.ttest_rel([-1.0, -1.1, -0.9, -1.0], [-2.0, -2.1, -1.9, -2.2]).pvalue
        )
        assert found.verdict == "better"

    def test_where_both_have_learned_all_it_is_a_tie(self):
        # from a loss of 2: a thousandth is 0.002
        assert of([0.0001, 0.0001, 0.0002, 0.0001], [0.001, 0.0011, 0.0009, 0.001]).verdict == "tie"
        assert of([0.001, 0.0011, 0.0009, 0.001], [0.01, 0.011, 0.009, 0.01]).verdict == "worse"
        assert of([0.0, 0.0, 0.0, 0.0], [1e-7, 1.1e-7, 1e-7, 2e-7]).verdict == "tie"

    def test_the_same_run_twice_is_a_tie(self):
        assert of([1.0, 1.1], [1.0, 1.1]).verdict == "tie"

    def test_diverging_is_worse_than_any_loss(self):
        nan = float("nan")
        assert of([nan, nan, nan], [1.9, 1.8, 1.9]).verdict == "better"
        assert of([1.9, 1.8, 1.9], [nan, nan, nan]).verdict == "worse"
        assert of([nan, nan], [nan, nan]).verdict == "tie"
        assert of([1.9, 1.8, 1.7, 1.9], [nan, 1.8, 1.7, 1.9]).verdict == "tie"

    def test_one_seed_is_no_verdict(self):
        assert of([1.0], [0.1]).verdict == "tie"

    def test_chance_alone_is_called_a_difference_about_one_time_in_twenty(self):
        rng = np.random.default_rng(0)
        verdicts = [
            of(list(rng.normal(1, 0.1, 5)), list(rng.normal(1, 0.1, 5))).verdict
            for _ in range(2000)
        ]
        share = sum(v != "tie" for v in verdicts) / len(verdicts)

        assert share < 0.05 + 5 * (0.05 * 0.95 / 2000) ** 0.5


def batches(n: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n * 32, 8, generator=generator)
    y = (x[:, 0] > 0).long()
    return [Batch((a,), target=b) for a, b in zip(x.split(32), y.split(32), strict=True)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 2))


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def run(before, after, steps: int = 20, **options) -> Trial:
    loss = options.pop("loss", LossMaker(F.cross_entropy, 0))
    data = options.pop("data", batches())
    training = Training(data, loss, options.pop("optimizer", sgd), steps, (0, 1, 2))
    return training.compare(training.losses(before), training.losses(after))


def test_equal_networks_have_equal_losses_from_the_same_seeds():
    found = run(lambda _: net(), lambda _: net())

    assert np.array_equal(found.before, found.after)
    assert len({tuple(row) for row in found.before}) == 3  # each seed its own order and dropout
    assert found.before.shape == (3, 20)


def test_losses_are_those_of_a_plain_training_loop():
    found = run(lambda _: net(), lambda _: net(), steps=6)

    order = np.random.default_rng(1)
    model, data = net(), batches()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(1)
    losses = []
    queue: list[int] = []
    for _ in range(6):
        queue = queue or order.permutation(4).tolist()
        one = data[queue.pop()]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*one.args), one.target)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert found.before[1].tolist() == losses


def test_the_models_and_the_process_stay_as_they_were():
    before, after = net(), net()

    with untouched(before, after):
        run(lambda _: before, lambda _: after)


def test_a_run_that_diverges_is_not_a_number_from_there_on():
    found = run(lambda _: net(), lambda _: net(), optimizer=lambda p: torch.optim.SGD(p, 1e30))

    assert np.isnan(found.before[:, -1]).all()
    assert np.isinf(found.final_before).all()


def test_frozen_parameters_stay_frozen():
    frozen = net()
    frozen[0].requires_grad_(False)

    seen = []

    def spy(parameters):
        seen.append(len(list(parameters)))
        return sgd(net().parameters())

    run(lambda _: frozen, lambda _: frozen, steps=1, optimizer=spy)

    assert set(seen) == {2}


def test_a_trial_without_a_loss_is_one_clear_error():
    with pytest.raises(LossError, match="a training trial needs a loss: pass"):
        run(lambda _: net(), lambda _: net(), loss=LossMaker(None, 0))


def test_a_repair_tries_before_and_after_in_training():
    torch.manual_seed(0)
    layers = [part for _ in range(8) for part in (nn.Linear(8, 8), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(8, 2))
    data = [(b.args[0], b.target) for b in batches(8)]

    found = nndiag.repair(
        model, data, loss_fn=F.cross_entropy, allow="all", config=False,
        trial_steps=80, trial_seeds=3, optimizer=lambda p: torch.optim.Adam(p, 0.01),
    )  # fmt: skip

    assert found.ok
    assert found.trial is not None
    assert found.trial.seeds == (0, 1, 2)
    assert found.trial.verdict == "better"
    assert found.trial.final_before.min() > found.trial.final_after.max()
