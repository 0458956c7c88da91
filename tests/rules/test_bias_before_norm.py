"""Biases that the next layer subtracts again."""

import pytest
import torch
from torch import nn

import nndiag

NAME = "bias-before-norm"
X, IMAGES = torch.randn(64, 8), torch.randn(16, 3, 8, 8)


def found(model, batch):
    return [f for f in nndiag.check(model, batch, select=NAME).findings if f.rule == NAME]


def vgg(bias):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(),
    )  # fmt: skip


def test_all_of_them_are_one_note():
    [finding] = found(vgg(True), IMAGES)

    assert (finding.severity, finding.layer) == ("note", "0")
    assert finding.evidence == {"biases": 2, "values": 16}
    assert "2 biases (16 values) are subtracted" in finding.message


WELL = {
    "no bias": (vgg(False), IMAGES),
    "layer norm, which mixes units": (nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16)), X),
    "group norm": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)), IMAGES),
    "activation between": (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16)), X),
}


@pytest.mark.parametrize("name", WELL)
def test_a_bias_that_does_something_is_not_reported(name):
    assert found(*WELL[name]) == []


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(16), nn.InstanceNorm1d(16)])
def test_the_output_does_not_depend_on_it(norm):
    x = X if isinstance(norm, nn.BatchNorm1d) else torch.randn(8, 5, 8)
    torch.manual_seed(0)
    layer = nn.Linear(8, 16)
    axes = (0, 1) if x.dim() == 2 else (0, 2, 1)

    def out():
        y = layer(x)
        return norm(y if y.dim() == 2 else y.permute(*axes))

    before = out()
    with torch.no_grad():
        layer.bias += torch.randn(16)

    assert torch.allclose(before, out(), atol=1e-4)
