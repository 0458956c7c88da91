"""input-not-centered: small variation around a large mean; images and BatchNorm are well."""

from __future__ import annotations

import torch
from torch import nn

import nndiag

NAME = "input-not-centered"
X = torch.randn(256, 6, generator=torch.Generator().manual_seed(3))
X = (X - X.mean(0)) / X.std(0, correction=0)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def own(model, x):
    report = nndiag.check(model, x, config=False)
    return [f for f in report.findings if f.rule == NAME]


def test_it_begins_at_its_threshold():
    [finding] = own(mlp(), X + 10.2)

    assert (finding.layer, finding.severity) == ("input", "warning")
    assert 10 < finding.evidence["times"] < 10.3
    assert finding.evidence["condition"] > 100
    assert own(mlp(), X + 9.8) == []
    assert own(mlp(), X + 5) == []


def test_a_few_such_columns_are_not_most():
    shift = torch.tensor([25.0, 25, 0, 0, 0, 0])

    assert own(mlp(), X + shift) == []


def test_batch_norm_behind_takes_the_mean_out_and_layer_norm_does_not():
    def behind(norm):
        return nn.Sequential(nn.Linear(6, 16), norm, nn.ReLU(), nn.Linear(16, 2))

    assert own(behind(nn.BatchNorm1d(16)), X + 25) == []
    assert [f.severity for f in own(behind(nn.LayerNorm(16)), X + 25)] == ["warning"]


def test_input_scale_leads_where_the_values_are_large_too():
    report = nndiag.check(mlp(), X + 110, config=False)
    finding = next(f for f in report.findings if f.rule == NAME)

    assert finding.cause is report.findings[0]
    assert report.findings[0].rule == "input-scale"


def test_its_fix_takes_the_mean_off():
    [finding] = own(mlp(), X + 25)
    model = mlp()
    finding.fixes[0].apply(model, X + 25)

    assert own(model, X + 25) == []
