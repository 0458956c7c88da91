"""What the laws found wrong: each a single case, kept."""

from __future__ import annotations

import pytest
import torch
from subjects import HE, SUBJECTS, check, mlp
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.05, 0.3, 1.0])
def test_a_head_that_starts_constant_is_no_fault(dtype, value):
    """The softmax's gradients cancel in it: to exactly zero, or to what rounding leaves."""
    subject = SUBJECTS["he-mlp"]
    model = subject.model()
    nn.init.constant_(model[8].weight, value)
    x, y = subject.data()

    report = check(model.to(dtype), (x.to(dtype), y))

    assert report.ok


def test_bare_parameters_that_never_run_are_one_part_where_they_are_held_together():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.main = mlp(nn.ReLU, HE)
            self.extra = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(2)])

        def forward(self, x):
            return self.main(x)

    for model in (Held(), nn.Sequential(Held())):
        report = check(model, SUBJECTS["he-mlp"].data())
        assert [f.cause is None for f in report.at_least("warning")] == [True, False]


@pytest.mark.parametrize("put", [lambda model: model, nn.Sequential], ids=["bare", "wrapped"])
def test_parts_that_never_run_do_not_explain_one_another(put):
    subject = SUBJECTS["unused-parts"]

    report = check(put(subject.model()), subject.data())

    roots = {f.layer.removeprefix("0.") for f in report.findings if f.cause is None}
    assert {"left.weight", "right.0.weight"} <= roots
