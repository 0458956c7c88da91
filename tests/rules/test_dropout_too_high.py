"""Dropout that keeps too little, or drops a narrow layer whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "dropout-too-high"
X = torch.randn(128, 8)


def net(p, width=64, drop=nn.Dropout):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), drop(p), nn.Linear(width, 4))


class Functional(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p, self.body, self.head = p, nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, x):
        return self.head(F.dropout(F.relu(self.body(x)), self.p, self.training))


def found(model, **options):
    report = nndiag.check(model, X, select=NAME, **options)
    return [f for f in report.findings if f.rule == NAME]


@pytest.mark.parametrize("model", [net(0.9), net(0.95, drop=nn.AlphaDropout), Functional(0.9)])
def test_a_tenth_kept_is_a_warning(model):
    [finding] = found(model)

    assert finding.severity == "warning"
    assert "share to drop" in finding.message


def test_everything_dropped_is_an_error():
    assert [f.severity for f in found(net(1.0))] == ["error"]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.8])
def test_usual_rates_are_silent_up_to_the_threshold(p):
    assert found(net(p)) == []
    assert found(Functional(p)) == []


def test_in_evaluation_nothing_is_dropped():
    assert found(net(0.95).eval()) == []
    assert found(Functional(0.95).eval()) == []


def test_a_narrow_layer_loses_all_its_units_at_once():
    [finding] = found(net(0.5, width=3))

    assert finding.evidence["all_dropped"] == 0.5**3
    assert "12.5 % of the samples lose all of them" in finding.message
    assert found(net(0.5, width=5)) == []  # 3 %


def test_that_share_is_what_happens():
    torch.manual_seed(0)
    dropped = F.dropout(torch.ones(20_000, 3), 0.5)

    share = float((dropped == 0).all(1).double().mean())

    assert share == pytest.approx(0.5**3, abs=0.01)  # 4 standard errors
