"""The healthy half of the calibration, in small: what is trained passes, and alarms are listed."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
import zoo
from scipy import stats
from torch import nn

import nndiag
from calibration import healthy, trained, usual
from calibration.cases import Subject

QUICK = (
    "digits-mlp-relu",
    "digits-selu",
    "digits-cnn-batchnorm",
    "digits-gru",
    "digits-encoder-prenorm",
    "digits-pointnet",
    "digits-autoencoder",
)
BY_NAME = {recipe.name: recipe for recipe in trained.TRAINED}


@pytest.fixture(scope="module", params=QUICK)
def learned(request):
    return BY_NAME[request.param], trained.train(BY_NAME[request.param], seed=0)


@pytest.mark.one_in(7)
def test_a_network_called_trained_is_good_at_what_it_learned(learned):
    recipe, subject = learned

    assert trained.score(recipe, subject.model) >= recipe.bar


@pytest.mark.one_in(14)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_trained_network_gets_no_error_and_no_warning(learned, mode):
    recipe, subject = learned
    subject.model.train(mode == "train")

    report = nndiag.check(*subject, optimizer=recipe.optimizer, config=False)

    assert [f"{f.rule} {f.layer}: {f.message}" for f in report.at_least("warning")] == []
    assert report.ok


# One for each optimiser and kind of loss; the page has all.
WITH_A_STEP = (
    "conv-autoencoder", "resnet", "bert", "nano-gpt", "mlp-bfloat16",
    "skip-gram", "embedding-bag-sparse", "deit", "dcgan-generator", "siamese-triplet",
)  # fmt: skip


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", WITH_A_STEP)
def test_a_fresh_network_with_its_loss_and_a_usual_optimiser_gets_no_alarm(name):
    network = next(n for n in healthy.HEALTHY if n.name == name)

    [run] = healthy.judge_healthy(networks=[network], seeds=[2]).itertuples()

    assert [f"{f.rule} {f.layer}: {f.message}" for f in run.said if f.severity != "note"] == []
    assert not run.crashed
    assert run.stepped


def test_each_optimiser_has_its_turn():
    names = {usual.optimiser("mlp-2-gelu", turn)[0] for turn in range(4)}

    assert names == set(usual.OPTIMISERS)
    assert {usual.named(make) for make in usual.OPTIMISERS.values()} == names


def test_every_recipe_of_the_zoo_is_judged_once():
    names = [network.name for network in healthy.HEALTHY]

    assert len(set(names)) == len(names)
    assert set(zoo.RECIPES) <= set(names)


@pytest.mark.parametrize(("alarms", "trials"), [(0, 100), (1, 100), (7, 60), (5, 5)])
def test_the_bound_is_the_exact_one(alarms, trials):
    two_sided = stats.binomtest(alarms, trials).proportion_ci(0.90, method="exact")

    assert healthy.upper_bound(alarms, trials) == pytest.approx(two_sided.high)


def test_with_no_alarm_the_bound_is_three_in_the_number_of_trials():
    assert healthy.upper_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)


def _sick(seed: int) -> Subject:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    nn.init.constant_(model[0].bias, -100.0)
    return Subject(model, torch.randn(128, 8))


def test_an_alarm_is_told_on_the_page_and_in_the_table(tmp_path):
    networks = [
        healthy.Network("sick", "mlp", "init", _sick, "none", known=False),
        next(n for n in healthy.HEALTHY if n.name == "mlp-1-relu"),
    ]

    healthy.publish(healthy.judge_healthy(networks=networks), tmp_path)

    runs = pd.read_csv(tmp_path / "healthy.csv").set_index("network")
    assert list(runs.index) == ["sick"] * 3 + ["mlp-1-relu"] * 3
    assert runs.loc["sick", "alarms"].str.contains("dead-relu 1").all()
    assert runs.loc["mlp-1-relu", "alarms"].isna().all()
    page = (tmp_path / "healthy.md").read_text("utf-8")
    assert "| init | 2 | 1 | 97.5 % | 6 | 3 | 84.68 % |" in page
    assert "| sick | init | 0 | train | SGD 0.01 | error | dead-relu | 1 |" in page
