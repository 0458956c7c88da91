"""unreachable-target: targets beyond the bounds of the output."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

X = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, last, units=1):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.last = nn.Linear(4, units), last

    def forward(self, x):
        return self.last(self.body(x))


def found(last, target, loss_fn=F.mse_loss, units=1):
    report = nndiag.check(
        Net(last, units), X, target, loss_fn, select="unreachable-target", config=False
    )
    return list(report.findings)


def beyond(share):
    """Targets of which this share lies above 1, and the others spread between 0 and 1."""
    t = torch.linspace(0, 1, 100)[:, None]
    return torch.where(torch.arange(100)[:, None] < 100 * (1 - share), t, torch.tensor(1.1) + t / 9)


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.MSELoss(), F.l1_loss, nn.SmoothL1Loss(), F.huber_loss,
        lambda o, t: (o - t).pow(2).mean(), lambda o, t: (t - o).abs().mean(),
        lambda o, t: torch.sub(o, t).norm(), lambda o, t: F.mse_loss(t, o),
        lambda o, t: ((o.double() - t.view(-1, 1)) ** 2).sum(),
    ],
)  # fmt: skip
def test_in_every_form_of_the_loss(loss_fn):
    [finding] = found(nn.Sigmoid(), 5 * X[:, :1], loss_fn)
    assert (finding.severity, finding.layer) == ("error", "last")
    assert finding.evidence["share"] > 0.5


@pytest.mark.parametrize(
    "last",
    [
        nn.ReLU(), F.softplus, torch.exp, lambda z: z**2, lambda z: z.clamp(min=0), torch.sigmoid,
        lambda z: torch.sigmoid(z) * 0.5 + 0.1, lambda z: F.relu(z).float().view(-1, 1),
    ],
)  # fmt: skip
def test_in_every_form_of_the_bound(last):
    [finding] = found(last, X[:, :1])
    assert finding.severity == "error"


def test_the_share_the_bounds_and_the_best_loss_are_told():
    [finding] = found(nn.ReLU(), torch.tensor([[-2.0], [1.0]]).repeat(50, 1))
    assert finding.evidence["share"] == 0.5
    assert finding.evidence["lowest_loss"] == pytest.approx(2.0)
    assert finding.evidence["high"] == math.inf
    assert finding.summary.startswith("50 % of the targets cannot be reached: the relu")


@pytest.mark.parametrize(
    ("share", "severity"), [(0.05, "error"), (0.04, "warning"), (0.01, "warning")]
)
def test_severity_follows_the_share(share, severity):
    [finding] = found(torch.sigmoid, beyond(share))
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("last", "target"),
    [
        (torch.sigmoid, (X[:, :1] > 0).float()),
        (torch.tanh, (X[:, :1] > 0).float() * 2 - 1),
        (torch.sigmoid, X[:, :1].sigmoid()),
        (F.relu, X[:, :1].abs()),
        (lambda z: z, 100 * X[:, :1]),
        (lambda z: 8 * torch.tanh(z), X[:, :1]),
    ],
)
def test_targets_within_reach_are_silent(last, target):
    assert found(last, target) == []


def test_padding_that_the_loss_can_leave_out_is_silent():
    target = X[:, :1].sigmoid()
    target[::4] = -1

    def masked(o, t):
        return (F.mse_loss(o, t, reduction="none") * (t >= 0)).mean()

    def by_hand(o, t):
        return ((o - t) ** 2 * (t >= 0)).mean()

    assert found(torch.sigmoid, target, masked) == []
    assert found(torch.sigmoid, target, by_hand) == []
    assert found(torch.sigmoid, target, F.mse_loss) != []


def test_it_leads_over_a_network_that_the_output_switched_off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.ReLU())
    nn.init.constant_(model[2].bias, -9)
    report = nndiag.check(model, X, X[:, :1], F.mse_loss, config=False)

    assert report.findings[0].rule == "unreachable-target"
    causes = {f.rule: f.root.rule for f in report.findings if f.severity != "note"}
    assert causes["no-gradient"] == "unreachable-target"
