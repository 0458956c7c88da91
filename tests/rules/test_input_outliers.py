"""input-outliers: a few values that outweigh a column; heavy tails are a note at most."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nndiag

NAME = "input-outliers"
X = torch.randn(256, 6, generator=torch.Generator().manual_seed(3))


def mlp(*norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *norm, nn.ReLU(), nn.Linear(16, 2))


def with_one(value, x=X):
    x = x.clone()
    x[9, 2] = value
    return x


def own(model, x):
    report = nndiag.check(model, x, config=False)
    return [(f.severity, f.cause) for f in report.findings if f.rule == NAME]


@pytest.mark.parametrize("value", [500.0, -4000.0])
def test_one_value_that_outweighs_a_column_is_a_warning_and_leads(value):
    report = nndiag.check(mlp(), with_one(value), config=False)

    assert (report.findings[0].rule, report.findings[0].severity) == (NAME, "warning")
    assert report.findings[0].evidence["value"] == value
    assert "column 2" in report.findings[0].message


def test_what_does_not_double_the_standard_deviation_is_none():
    assert own(mlp(), with_one(20.0)) == []
    assert own(mlp(), with_one(40.0)) == [("note", None)]


def test_it_is_a_note_where_a_normalisation_follows_or_the_values_are_small():
    assert own(mlp(nn.BatchNorm1d(16)), with_one(500.0)) == [("note", None)]
    assert own(mlp(), with_one(500.0) / 1000) == [("note", None)]


def test_heavy_tails_are_no_alarm():
    torch.manual_seed(0)
    tails = torch.distributions.StudentT(2.0).sample((256, 6))

    assert [s for s, _ in own(mlp(), tails) if s != "note"] == []
    assert [s for s, _ in own(mlp(), X.exp()) if s != "note"] == []
    x = with_one(30.0)
    x[20:25, 2] = torch.tensor([7.0, 13, 26, 90, 270])  # a tail without a gap
    assert [s for s, _ in own(mlp(), x)] == ["note"]
