"""input-missing: NaN that a layer reads, and numbers that stand for missing ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import nndiag

NAME = "input-missing"
X = torch.randn(128, 6, generator=torch.Generator().manual_seed(3))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


class Filling(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        x = x.nan_to_num(0.0)
        return self.inner(torch.where(x < -900, 0.0, x))


def with_gaps(value, rows=slice(0, None, 8), x=X):
    x = x.clone()
    x[rows, 3] = value
    return x


def own(model, x):
    report = nndiag.check(model, x, config=False)
    return [f for f in report.findings if f.rule == NAME]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_an_error_and_explains_the_rest(value):
    report = nndiag.check(mlp(), with_gaps(value), config=False)

    assert (report.findings[0].rule, report.findings[0].severity) == (NAME, "error")
    others = [f for f in report.findings[1:] if f.severity != "note"]
    assert [f.rule for f in others] == ["non-finite"]
    assert others[0].cause is report.findings[0]


@pytest.mark.parametrize("value", [-999.0, -9999, 9999, 1e20])
def test_repeated_stand_ins_far_from_the_rest_are_a_warning(value):
    [finding] = own(mlp(), with_gaps(value))

    assert (finding.layer, finding.severity, finding.cause) == ("input", "warning", None)
    assert finding.evidence["value"] == pytest.approx(value)
    assert "(at 3)" in finding.message


def test_what_may_be_a_measurement_is_not_reported():
    assert own(mlp(), with_gaps(-999.0, slice(0, 1))) == []  # once
    assert own(mlp(), with_gaps(-500.0)) == []  # no usual stand-in
    assert own(mlp(), with_gaps(999.0, x=X * 400)) == []  # within the range of the others
    assert own(mlp(), with_gaps(-999.0, slice(0, 100))) == []  # most of them
    assert own(mlp(), with_gaps(-1.0, x=X.abs())) == []


def test_what_the_model_fills_in_is_well():
    for value in (math.nan, -999.0):
        report = nndiag.check(Filling(), with_gaps(value), config=False)
        assert NAME not in {f.rule for f in report.findings}


def test_the_lines_of_its_fix_fill_the_gaps():
    [finding] = own(mlp(), with_gaps(-999.0))
    names = {"x": with_gaps(-999.0)}
    exec(finding.fixes[0].source, names)

    assert own(mlp(), names["x"]) == []
    names = {"x": with_gaps(math.nan), "torch": torch}
    exec(own(mlp(), names["x"])[0].fixes[0].source, names)
    assert own(mlp(), names["x"]) == []
