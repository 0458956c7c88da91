"""Two linear maps in a row: a note where the width between them is meant for nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "missing-activation"
X, IMAGES = torch.randn(32, 8), torch.randn(16, 3, 8, 8)


def found(model, batch=X):
    torch.manual_seed(0)
    return [f for f in nndiag.check(model, batch, select=NAME).findings if f.rule == NAME]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return F.linear(F.linear(x, self.a.weight), self.b.weight)


SICK = {
    "two linears": (nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), X),
    "functional": (Functional(), X),
    "dropout between": (nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 8)), X),
    "convolutions": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), IMAGES),
    "average pool": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), nn.Conv2d(8, 4, 1)),
        IMAGES,
    ),
}
WELL = {
    "activation": (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), X),
    "bottleneck": (nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)), X),
    "narrower projection": (nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)), X),
    "separable": (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 3, 1)), IMAGES),
    "max pool": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)), IMAGES),
    "norm": (nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)), X),
    "attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(8, 5, 8)),
}


@pytest.mark.parametrize("name", SICK)
def test_two_linear_maps_are_a_note_at_the_second(name):
    [finding] = found(*SICK[name])

    assert finding.severity == "note"
    assert "one linear map" in finding.message


@pytest.mark.parametrize("name", WELL)
def test_what_is_meant_is_not_reported(name):
    assert found(*WELL[name]) == []


def test_several_pairs_are_one_finding():
    [finding] = found(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))))

    assert finding.layer == "1"
    assert finding.evidence["pairs"] == 3
    assert "2 more pairs" in finding.message


def test_both_layers_together_are_one_linear_map():
    torch.manual_seed(0)
    first, second = nn.Linear(8, 16), nn.Linear(16, 4)
    weight, bias = second.weight @ first.weight, second.weight @ first.bias + second.bias

    assert torch.allclose(second(first(X)), F.linear(X, weight, bias), atol=1e-6)
