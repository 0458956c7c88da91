"""target-scale: regression targets far larger than the outputs of a new network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "target-scale"
X = torch.randn(128, 6, generator=torch.Generator().manual_seed(3))
Y = 250_000 + 80_000 * X[:, :1]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))


def own(model, y, loss_fn, x=X):
    report = nndiag.check(model, x, y, loss_fn, config=False)
    return [f for f in report.findings if f.rule == NAME]


LOSSES = {
    "module": nn.MSELoss(),
    "function": F.l1_loss,
    "smooth": nn.SmoothL1Loss(),
    "sum": nn.MSELoss(reduction="sum"),
    "square by hand": lambda out, y: ((out - y) ** 2).mean(),
    "half by hand": lambda out, y: 0.5 * (y - out).pow(2).mean(),
    "size by hand": lambda out, y: (out - y).abs().mean(),
    "root by hand": lambda out, y: (out - y).square().mean().sqrt(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_found_in_every_form_of_the_loss(name):
    [finding] = own(mlp(), Y, LOSSES[name])

    assert (finding.layer, finding.severity, finding.cause) == ("target", "warning", None)
    assert finding.evidence["ratio"] > 1e5
    assert own(mlp(), (Y - Y.mean()) / Y.std(), LOSSES[name]) == []


def test_it_begins_at_its_threshold():
    sized = (X[:, :1] + 3) / (X[:, :1] + 3).square().mean().sqrt()

    assert len(own(mlp(), sized * 101, nn.MSELoss())) == 1
    assert own(mlp(), sized * 99, nn.MSELoss()) == []


class Scaled(nn.Module):
    def __init__(self, exponential=False):
        super().__init__()
        self.inner, self.exponential = mlp(), exponential

    def forward(self, x):
        y = self.inner(x)
        return y.exp() if self.exponential else y * 80_000 + 250_000


def test_outputs_in_the_targets_unit_and_scaling_in_the_loss_are_well():
    assert own(Scaled(), Y, nn.MSELoss()) == []
    assert own(Scaled(exponential=True), Y, nn.MSELoss()) == []
    assert own(mlp(), Y, lambda out, y: F.mse_loss(out, y / 250_000)) == []
    assert own(mlp(), Y, lambda out, y: ((out - y / 250_000) ** 2).mean()) == []
    assert own(mlp(), Y, lambda out, y: F.poisson_nll_loss(out, y)) == []


def test_trained_networks_and_few_samples_are_not_judged():
    trained = mlp()
    with torch.no_grad():
        trained[0].bias += torch.linspace(-3, 3, 16)

    assert own(trained, Y, nn.MSELoss()) == []
    assert own(mlp(), Y[:8], nn.MSELoss(), X[:8]) == []


def test_its_fix_brings_the_output_to_the_targets():
    [finding] = own(mlp(), Y, nn.MSELoss())
    model = mlp()
    finding.fixes[1].apply(model)

    assert finding.fixes[0].source.startswith("mean, std = y.mean(0)")
    assert float(model(X).detach().mean()) == pytest.approx(float(Y.mean()), rel=0.2)
    assert own(model, Y, nn.MSELoss()) == []
