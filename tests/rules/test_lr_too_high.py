"""lr-too-high: the loss runs away over two steps; one step that raises it is not enough."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "lr-too-high"
X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
                         nn.Linear(32, 3))  # fmt: skip


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Parameter(torch.randn(32, 8) / 2), nn.Parameter(torch.randn(3, 32) / 6)

    def forward(self, x):
        return torch.relu(x @ self.a.T) @ self.b.T


def found(model, optimizer, loss_fn=F.cross_entropy, target=Y, **options):
    report = nndiag.check(model, X, target, loss_fn, optimizer=optimizer, select=NAME,
                          config=False, **options)  # fmt: skip
    assert not report.crashed
    return list(report.findings)


@pytest.mark.parametrize("build", [net, Functional])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_a_thousand_times_the_usual_rate_is_an_error_and_ten_times_is_none(build, kind):
    usual = 0.05 if kind == "SGD" else 1e-3
    make = getattr(torch.optim, kind)
    [finding] = found(build(), lambda p: make(p, 2e3 * usual))
    assert finding.severity == "error"
    assert "after two" in finding.message
    for factor in (1, 10):
        assert found(build(), lambda p, factor=factor: make(p, factor * usual)) == []


def test_one_step_of_adam_that_raises_the_loss_is_not_enough():
    def make(p):
        return torch.optim.Adam(p, 0.05)

    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                          nn.Linear(256, 3))  # fmt: skip
    report = nndiag.check(model, X, Y, F.cross_entropy, optimizer=make, select=NAME, config=False)
    seen = report.snapshot.experiment.optimizer
    assert seen.after > 3 * seen.before
    assert seen.again[0] < seen.after
    assert report.findings == ()


def test_a_loss_that_is_no_finite_number_is_enough():
    target = X.sum(1, keepdim=True)
    [finding] = found(nn.Linear(8, 1), lambda p: torch.optim.SGD(p, 1e30), F.mse_loss, target)
    assert "inf after one of them" in finding.message
    assert math.isinf(finding.evidence["rise"])


def test_it_is_held_against_its_thresholds():
    def make(p):
        return torch.optim.Adam(p, 2.0)

    [finding] = found(net(), make)
    beyond = finding.evidence["rise"]
    rising = max(finding.evidence["rising"], finding.evidence["runaway"])
    off = {f"{NAME}.rising": 10 * rising, f"{NAME}.runaway": 10 * rising}
    assert found(net(), make, thresholds={f"{NAME}.rise": beyond * 0.999, **off})
    assert not found(net(), make, thresholds={f"{NAME}.rise": beyond * 1.001, **off})
    second = finding.evidence["runaway"]
    off = {f"{NAME}.rise": 10 * beyond, f"{NAME}.rising": 10 * rising}
    assert found(net(), make, thresholds={f"{NAME}.runaway": second * 0.999, **off})
    assert not found(net(), make, thresholds={f"{NAME}.runaway": second * 1.001, **off})


def test_the_fix_names_a_rate_that_was_tried_and_one_that_is_usual():
    [finding] = found(net(), lambda p: torch.optim.Adam(p, 2.0))
    assert "A usual first rate is 0.001 for Adam." in finding.fixes[0].what
    assert "param_groups" in finding.fixes[0].source


def test_a_loss_that_is_small_is_measured_against_what_a_constant_costs():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    optimizer.zero_grad()
    report = nndiag.check(model, X, Y, F.cross_entropy, config=False, select=NAME,
                          optimizer=lambda p: torch.optim.Adam(p, 0.02))  # fmt: skip
    seen = report.snapshot.experiment.optimizer
    assert seen.before < 0.1 * seen.constant
    assert [f for f in report.findings if f.severity != "note"] == []


def test_two_steps_to_worse_than_random_outputs_are_too_long():
    def make(p):
        return torch.optim.SGD(p, 20.0)

    off = {f"{NAME}.{name}": 1e9 for name in ("rise", "rising", "runaway")}
    [finding] = found(net(), make, thresholds=off)
    beyond = finding.evidence["random"]
    assert finding.measure == "random"
    assert beyond > 3
    assert found(net(), make, thresholds={f"{NAME}.random": beyond * 0.999, **off})
    assert not found(net(), make, thresholds={f"{NAME}.random": beyond * 1.001, **off})
