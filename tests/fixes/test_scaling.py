"""Standardize and ScaleOutput: the same numbers as by hand, fixed in training, in state dicts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nndiag import fixes
from nndiag.errors import FixError

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(3)) * 40 + 100


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))


def test_it_is_the_columns_mean_and_std_taken_out():
    layer = fixes.Standardize.fit(X)
    images = torch.rand(8, 3, 4, 4) * 255

    assert torch.allclose(layer(X), (X - X.mean(0)) / X.std(0, correction=0), atol=1e-5)
    out = fixes.Standardize.fit(images, axis=1)(images)
    assert torch.allclose(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(out.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


def test_constant_columns_are_centred_and_gaps_left_out():
    x = X.clone()
    x[:, 1] = 7
    x[3, 2] = float("nan")
    layer = fixes.Standardize.fit(x)

    assert torch.equal(layer(x)[:, 1], torch.zeros(64))
    assert float(layer.mean[2]) == pytest.approx(float(x[:, 2].nanmean()))


def test_it_holds_no_parameter_and_is_saved_with_the_model():
    model = mlp()
    fixes.standardize_input_(model, X, ["0"])
    other = mlp()
    fixes.standardize_input_(other, X * 2, ["0"])
    other.load_state_dict(model.state_dict())

    assert len(list(model.parameters())) == len(list(mlp().parameters()))
    assert torch.equal(other(X), model(X))


def test_it_is_put_before_the_layer_and_fitted_on_what_that_reads():
    model = mlp()
    made = fixes.standardize_input_(model, (X, None), ["0"])

    assert torch.allclose(made["0"].mean, X.mean(0))
    scaled = (X - X.mean(0)) / X.std(0, correction=0)
    assert torch.allclose(model(X), mlp()(scaled), atol=1e-5)


def test_convolutions_are_standardised_by_channel():
    images = torch.rand(8, 3, 6, 6) * 255
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    assert len(fixes.standardize_input_(model, images, ["0"])["0"].mean) == 3


def test_what_does_not_run_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x):
            return self.a(x)

    with pytest.raises(FixError, match="b read no tensor"):
        fixes.standardize_input_(Net(), X, ["b"])
    with pytest.raises(FixError, match="one value for every column"):
        fixes.Standardize(torch.zeros(3), torch.ones(4))


def test_the_output_is_brought_to_the_scale_of_the_targets():
    model = mlp()
    fixes.scale_output_(model, "2", 152.0, 77.0)

    assert torch.allclose(model(X), mlp()(X) * 77 + 152)
    assert fixes.ScaleOutput(1, 2)(torch.tensor(3.0)) == 7
