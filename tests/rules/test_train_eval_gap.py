"""A batch whose loss is far higher in evaluation mode."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "train-eval-gap"
Y = torch.randint(0, 4, (128,), generator=torch.Generator().manual_seed(1))
X = torch.randn(128, 8, generator=torch.Generator().manual_seed(0)) + 0.5 * F.one_hot(Y, 8)


def net(drop=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(drop), nn.Linear(16, 4)
    )


def seen(model, *batches):
    """The model after forwards on these batches, in training mode."""
    with torch.no_grad():
        for x in batches:
            model(x)
    return model


def found(model, **options):
    return nndiag.check(model, X, Y, F.cross_entropy, select=NAME, **options).findings


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_averages_of_other_data_are_found_with_the_loss_of_both_modes(drop):
    model = seen(net(drop), *(0.01 * torch.randn(64, 8) for _ in range(60)))

    [finding] = found(model)

    model.eval()
    expected = float(F.cross_entropy(model(X), Y).detach())
    model.train()
    assert finding.evidence["evaluation"] == pytest.approx(expected, rel=1e-5)
    assert finding.evidence["norms_only"] < expected
    assert "recalibrate_" in finding.fixes[0].source


def test_averages_of_the_same_data_are_silent():
    assert found(seen(net(), *(X[torch.randperm(128)[:64]] for _ in range(60)))) == ()


def test_a_new_model_has_averages_of_nothing():
    assert found(net()) == ()
    assert found(seen(net(), *(0.01 * torch.randn(64, 8) for _ in range(5)))) == ()


def test_dropout_alone_is_not_reported():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))

    assert found(model) == ()


def test_the_averages_are_as_before():
    model = seen(net(), *(0.01 * torch.randn(64, 8) for _ in range(60)))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    found(model)

    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
