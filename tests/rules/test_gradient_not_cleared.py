"""gradient-not-cleared: gradients other than zero that were there before the check."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "gradient-not-cleared"
X, Y = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def prepared(times, clear=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    for _ in range(times):
        F.cross_entropy(model(X), Y).backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if clear is not None:
        optimizer.zero_grad(set_to_none=clear)
    return model, optimizer


def found(model, optimizer):
    report = nndiag.check(model, X, Y, F.cross_entropy, optimizer=optimizer, config=False)
    return [f for f in report.findings if f.rule == NAME]


@pytest.mark.parametrize("times", [1, 3])
def test_it_is_a_note_that_says_how_large_it_is(times):
    model, optimizer = prepared(times)
    before = [p.grad.clone() for p in model.parameters()]
    [finding] = found(model, optimizer)
    assert finding.severity == "note"
    assert finding.evidence["norm_before"] == pytest.approx(times * finding.evidence["norm"])
    assert f", {times} times that of this batch's gradient." in finding.message
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("clear", [True, False], ids=["none", "zeros"])
def test_cleared_gradients_are_none(clear):
    assert found(*prepared(2, clear)) == []


def test_without_an_optimiser_it_is_not_judged():
    model, _ = prepared(1)
    assert found(model, None) == []
