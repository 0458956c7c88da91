"""target-shape: outputs and targets that broadcast across samples."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

N = 40
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
FLAT = X[:, 0]

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")


class Net(nn.Module):
    def __init__(self, units=1, last=lambda z: z):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.last = nn.Linear(4, units), last

    def forward(self, x):
        return self.last(self.body(x))


def found(model, target, loss_fn):
    report = nndiag.check(model, X, target, loss_fn, select="target-shape", config=False)
    return list(report.findings)


def focal(o, t):
    p = o.sigmoid()
    return -torch.where(t > 0, p, 1 - p).log().mean()


LOSSES = [
    nn.MSELoss(), F.l1_loss, F.smooth_l1_loss, nn.HuberLoss(),
    lambda o, t: ((o - t) ** 2).mean(), lambda o, t: (t - o).abs().mean(),
    lambda o, t: (o * t).mean(), focal, lambda o, t: torch.maximum(o, t).sum(),
    lambda o, t: F.mse_loss(o, t, reduction="none").mean(),
]  # fmt: skip


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_one_column_against_a_flat_target(loss_fn):
    [finding] = found(Net(), FLAT, loss_fn)
    assert finding.severity == "error"
    assert f"({N}, {N})" in finding.summary


@pytest.mark.parametrize("loss_fn", LOSSES[:7])
def test_a_flat_output_against_one_column(loss_fn):
    assert len(found(Net(last=lambda z: z.squeeze(1)), FLAT[:, None], loss_fn)) == 1


def test_a_picture_against_one_without_its_channel():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.conv(x[:, None])

    assert len(found(Conv(), X, lambda o, t: ((o - t) ** 2).mean())) == 1
    assert found(Conv(), X[:, None], lambda o, t: ((o - t) ** 2).mean()) == []


def test_a_weight_for_each_sample_broadcasts_as_a_target_does():
    def weighed(o, t):
        return ((o - t[0]) ** 2 * t[1]).mean()

    assert len(found(Net(), (FLAT[:, None], torch.rand(N)), weighed)) == 1
    assert found(Net(), (FLAT[:, None], torch.rand(N, 1)), weighed) == []


@pytest.mark.parametrize(
    ("model", "target", "loss_fn"),
    [
        (Net(), FLAT[:, None], nn.MSELoss()),
        (Net(last=lambda z: z[:, 0]), FLAT, nn.MSELoss()),
        (Net(3), FLAT[:, None], lambda o, t: (o - t).abs().mean()),  # quantiles
        (Net(3), FLAT[:, None], lambda o, t: (t[:, None] - o[:, :, None]).abs().mean()),
        (Net(3), X[:, :3], lambda o, t: (o[:, None] - t[None]).pow(2).sum(2).mean()),  # pairs
        (Net(last=lambda z: z[:, 0]), FLAT, lambda o, t: (o[:, None] - t).abs().mean()),
        (Net(last=lambda z: z[:, 0]), FLAT,
         lambda o, t: ((o[:, None] - o) * (t[:, None] - t)).mean()),
        (Net(3), torch.arange(N) % 3, F.cross_entropy),
        (Net(3), FLAT[:, None], lambda o, t: ((o - o.mean()) * t).mean()),
    ],
)  # fmt: skip
def test_what_is_meant_is_silent(model, target, loss_fn):
    assert found(model, target, loss_fn) == []


def test_one_sample_tells_nothing():
    report = nndiag.check(
        Net(), X[:1], FLAT[:1], lambda o, t: (o - t).abs().mean(), select="ND704", config=False
    )
    assert list(report.findings) == []


def test_the_warning_of_torch_still_reaches_the_caller_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nndiag.check(Net(), X, FLAT, nn.MSELoss(), config=False)
    assert len([w for w in caught if "target size" in str(w.message)]) == 1
