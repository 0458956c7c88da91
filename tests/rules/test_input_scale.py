"""input-scale: data far from size 1 that nothing normalises; ids and what is scaled are well."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag.rules import input_scale

NAME = "input-scale"
X = torch.randn(256, 6, generator=torch.Generator().manual_seed(3))


def check(model, x, **options):
    return nndiag.check(model, x, config=False, **options)


def own(model, x, **options):
    return [f for f in check(model, x, **options).findings if f.rule == NAME]


def severities(model, x):
    return [f.severity for f in own(model, x)]


def mlp(d=6, act=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 16), act(), nn.Linear(16, 2))


class Functional(nn.Module):
    def __init__(self, divide=1.0):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)
        self.divide = divide

    def forward(self, x):
        return self.b(F.relu(F.linear(x / self.divide, self.a.weight, self.a.bias)))


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 16) / 2)
        self.v = nn.Parameter(torch.randn(16, 2) / 4)

    def forward(self, x):
        return (x @ self.w).relu() @ self.v


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x[:, None])[0][:, -1])


@pytest.mark.parametrize(
    "model", [mlp(), Functional(), ByHand(), Recurrent()], ids=lambda m: type(m).__name__
)
def test_large_values_are_found_in_every_form_and_standardised_ones_are_well(model):
    [finding] = own(model, 100 + 40 * X)

    assert (finding.layer, finding.severity, finding.cause) == ("input", "warning", None)
    assert finding.measure == "rms"
    assert finding.evidence["rms"] == pytest.approx(108, rel=0.05)
    assert severities(model, X) == []


def test_it_begins_at_its_threshold():
    sized = X / X.square().mean().sqrt()
    rms = input_scale.RULE.thresholds["rms"].value

    assert severities(mlp(), sized * rms * 1.01) == ["warning"]
    assert severities(mlp(), sized * rms * 0.99) == []
    assert severities(mlp(), sized * 13) == []


def test_values_far_below_one_are_found_but_not_those_of_sparse_rows():
    sized = X / X.square().mean().sqrt()
    least = input_scale.RULE.thresholds["least_rms"].value
    sparse = torch.zeros(256, 2000)
    sparse[torch.arange(256), torch.arange(256) * 7] = 0.5

    assert [f.measure for f in own(mlp(), sized * least * 0.99)] == ["least_rms"]
    assert severities(mlp(), sized * least * 1.01) == []
    assert severities(mlp(2000), sparse) == []
    assert severities(mlp(), torch.zeros(256, 6)) == []


def test_columns_of_unequal_scale_are_found_even_before_batch_norm():
    uneven = X * torch.tensor([0.1, 1, 2, 3, 5, 11.0])
    behind = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    assert [f.measure for f in own(mlp(), uneven)] == ["ratio"]
    assert [f.measure for f in own(behind, uneven)] == ["ratio"]
    assert severities(mlp(), X * torch.tensor([0.2, 1, 2, 3, 5, 11.0])) == []
    assert severities(mlp(), X * torch.tensor([0.001, 1, 1, 1, 1, 1])) == []


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm1d(6), *mlp()),
        nn.Sequential(nn.LayerNorm(6), *mlp()),
        nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
        Functional(divide=100),
    ],
    ids=["norm-before", "layer-norm", "norm-behind", "divided"],
)
def test_a_normalisation_in_the_model_or_arithmetic_makes_it_well(model):
    assert severities(model, 100 + 40 * X) == []


def test_ids_one_hot_and_yes_or_no_are_no_quantities():
    ids = torch.randint(0, 5000, (64, 12))
    tokens = nn.Sequential(nn.Embedding(5000, 8), nn.Flatten(), nn.Linear(96, 2))
    one_hot = F.one_hot(ids[:, 0] % 500, 500).float()

    assert severities(tokens, ids) == []
    assert severities(mlp(500), one_hot) == []
    assert severities(mlp(500), (one_hot.cumsum(1) > 0).float()) == []


def test_the_bytes_of_images_are_named_and_divided():
    images = torch.randint(0, 256, (64, 3, 8, 8)).float()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    [finding] = own(net, images)

    assert "image bytes" in finding.message
    assert finding.fixes[0].source.startswith("x = x / 255")
    assert severities(net, images / 255) == []


def test_it_explains_the_saturation_behind_it():
    report = check(mlp(act=nn.Tanh), 100 + 40 * X)
    saturation = next(f for f in report.findings if f.rule == "saturation")

    assert report.findings[0].rule == NAME
    assert saturation.cause is report.findings[0]
    assert report.findings[0].evidence["saturated"] > 0.75


def test_a_trained_network_that_is_not_saturated_gets_a_note():
    model = mlp()
    with torch.no_grad():
        model[0].bias += torch.linspace(-3, 3, 16)

    assert severities(model, 100 + 40 * X) == ["note"]


def test_few_values_are_not_judged():
    report = check(mlp(), 100 + 40 * X[:8])

    assert NAME not in {f.rule for f in report.findings}
    assert [u.layer for u in report.unjudged if u.rule == NAME] == ["input"]


def test_each_of_several_inputs_is_judged_by_itself():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, left, right):
            return self.a(left) + self.b(right)

    assert [f.layer for f in own(Two(), {"left": X, "right": 100 * X})] == ["input.right"]


def test_repair_standardises_first_and_that_mends_it():
    model, y = mlp(act=nn.Tanh), (X[:, :1] > 0).float().expand(-1, 2)
    x = 100 + 40 * X
    repair = nndiag.repair(model, (x, y), loss_fn=nn.BCEWithLogitsLoss(), config=False)

    assert repair.steps[0].fix.kind == "standardize-input"
    assert repair.steps[0].taken
    assert repair.after.ok
    assert torch.equal(model(x), mlp(act=nn.Tanh)(x))  # the model itself is as it was


def test_a_functional_layer_gets_advice_with_the_lines_for_the_data():
    [finding] = own(ByHand(), 100 + 40 * X)

    assert finding.fixes[0].kind == "advice"
    assert finding.fixes[0].source == input_scale.STANDARDISE
