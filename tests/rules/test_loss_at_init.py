"""loss-at-init: the loss against that of a constant output."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag.experiment import Baseline

X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(60) % 3


class Net(nn.Module):
    def __init__(self, units, last=lambda z: z):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.last = nn.Linear(8, units), last

    def forward(self, x):
        return self.last(self.body(x))


def checked(model, target, loss_fn):
    return nndiag.check(model, X, target, loss_fn, select="loss-at-init", config=False)


def baseline(model, target, loss_fn) -> Baseline:
    return checked(model, target, loss_fn).snapshot.experiment.baseline


SKEWED = (torch.arange(60) > 50).long()
SHARE = 9 / 60
ENTROPY = -SHARE * math.log(SHARE) - (1 - SHARE) * math.log(1 - SHARE)
BITS = SKEWED.float()[:, None]
NUMBERS = 5 + 2 * X[:, :1]
VARIANCE = float(NUMBERS.var(correction=0))


def cross_entropy(o, y):
    return -o.log_softmax(1).gather(1, y[:, None]).mean()


def binary(p, y):
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


@pytest.mark.parametrize(
    ("model", "target", "loss_fn", "constant", "zero"),
    [
        (Net(2), SKEWED, F.cross_entropy, ENTROPY, math.log(2)),
        (Net(2), SKEWED, cross_entropy, ENTROPY, math.log(2)),
        (Net(2), SKEWED, nn.CrossEntropyLoss(reduction="sum"), 60 * ENTROPY, 60 * math.log(2)),
        (Net(2), SKEWED, lambda o, y: 3 * F.cross_entropy(o, y), 3 * ENTROPY, 3 * math.log(2)),
        (Net(2, nn.LogSoftmax(1)), SKEWED, F.nll_loss, ENTROPY, math.log(2)),
        (Net(2), F.one_hot(SKEWED, 2).float(), F.cross_entropy, ENTROPY, math.log(2)),
        (Net(1), BITS, F.binary_cross_entropy_with_logits, ENTROPY, math.log(2)),
        (Net(1, torch.sigmoid), BITS, F.binary_cross_entropy, ENTROPY, math.log(2)),
        (Net(1, torch.sigmoid), BITS, binary, ENTROPY, math.log(2)),
        (Net(1), NUMBERS, F.mse_loss, VARIANCE, VARIANCE + float(NUMBERS.mean()) ** 2),
        (Net(1), NUMBERS, lambda o, t: ((o - t) ** 2).mean(), VARIANCE,
         VARIANCE + float(NUMBERS.mean()) ** 2),
        (Net(1), NUMBERS, F.l1_loss, float((NUMBERS - NUMBERS.median()).abs().mean()),
         float(NUMBERS.abs().mean())),
    ],
)  # fmt: skip
def test_the_best_constant_and_zeros(model, target, loss_fn, constant, zero):
    found = baseline(model, target, loss_fn)
    assert found.constant == pytest.approx(constant, rel=0.01)
    assert found.zero == pytest.approx(zero, rel=1e-4)


def test_formula_and_trial_agree_on_random_outputs():
    for units, target, loss_fn in ((3, CLASSES, F.cross_entropy), (1, NUMBERS, F.mse_loss)):
        one = baseline(Net(units), target, loss_fn)
        tried = baseline(Net(units), target, lambda o, t, f=loss_fn: f(o, t) + 0 * o.sum() + 1e-3)
        assert (one.tried, tried.tried) == (False, True)
        assert tried.huge == pytest.approx(one.huge, rel=0.3)


def test_ignored_classes_do_not_count():
    target = SKEWED.clone()
    target[:30] = -100
    share = 9 / 30
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert baseline(Net(2), target, F.cross_entropy).constant == pytest.approx(entropy)


@pytest.mark.parametrize(("factor", "severity"), [(1, None), (9, "note"), (60, "warning")])
def test_severity_follows_the_size_of_the_outputs(factor, severity):
    for loss_fn in (F.cross_entropy, cross_entropy):
        report = checked(Net(3, lambda z: factor * z), CLASSES, loss_fn)
        assert [f.severity for f in report.findings] == ([severity] if severity else [])


def test_a_scale_beyond_all_measure_is_found():
    report = checked(Net(1, lambda z: 1e15 * z), NUMBERS, F.mse_loss)
    assert report.findings[0].severity == "warning"
    assert report.snapshot.loss.value > 1e29


def test_a_target_far_from_zero_is_a_note_about_the_bias():
    [finding] = checked(Net(1), 1000 + X[:, :1], F.mse_loss).findings
    assert finding.severity == "note"
    assert "bias" in finding.fixes[0].what


def test_answers_that_a_new_network_cannot_know_are_a_note():
    x = 8 * F.one_hot(CLASSES, 3).float()
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
        model.bias.zero_()
    report = nndiag.check(model, x, CLASSES, F.cross_entropy, select="ND706", config=False)
    assert [f.severity for f in report.findings] == ["note"]


def trained(loss_scale):
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-1, 1.5, 16))  # as no init draws it
        model[2].weight.mul_(loss_scale)
    return model


def test_a_trained_network_is_judged_by_the_constant_alone():
    torch.manual_seed(0)
    [bad] = checked(trained(30), CLASSES, F.cross_entropy).findings
    assert (bad.severity, "looks trained" in bad.message) == ("warning", True)
    [even] = checked(trained(0.1), CLASSES, F.cross_entropy).findings
    assert even.severity == "note"


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, y: cross_entropy(o + torch.randn_like(o), y),
        lambda o, y: cross_entropy(o, y) * (1 + torch.rand(())),
    ],
)
def test_a_random_loss_is_not_tried(loss_fn):
    assert baseline(Net(3), CLASSES, loss_fn) is None


def test_a_loss_without_a_bottom_is_not_compared():
    assert baseline(Net(3), CLASSES, lambda o, y: -o.mean() * 1e6).constant == -math.inf
    assert list(checked(Net(3), CLASSES, lambda o, y: -o.mean() * 1e6).findings) == []


def test_bounded_losses_are_not_too_high():
    def dice(p, y):
        return 1 - 2 * (p * y).sum() / (p.sum() + y.sum())

    assert list(checked(Net(1, lambda z: torch.sigmoid(60 * z)), BITS, dice).findings) == []


def test_a_loss_that_runs_the_model_is_not_tried():
    model = Net(3)
    calls = []
    model.body.register_forward_hook(lambda *_: calls.append(1))
    found = baseline(model, CLASSES, lambda o, y: cross_entropy(model.body(X) + o, y))
    assert found is None
    assert len(calls) == 2


def test_modules_of_the_loss_are_as_they_were():
    class Smoothed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, o, y):
            loss = ((o - y) ** 2).mean()
            self.mean.mul_(0.9).add_(0.1 * loss.detach())
            return loss

    model, loss_fn, state = Net(1), Smoothed(), torch.get_rng_state()
    nndiag.check(model, X, NUMBERS, loss_fn, config=False)
    assert float(loss_fn.mean) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_outputs_as_large_as_the_inputs_are_a_note():
    torch.manual_seed(0)
    x, y = torch.randn(256, 8), torch.arange(256) % 4
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.kaiming_normal_(model[0].weight)
    nn.init.kaiming_normal_(model[2].weight)

    def severities(inputs, factor):
        report = nndiag.check(
            model, inputs, y, lambda o, t: F.cross_entropy(o * factor, t),
            select="loss-at-init", config=False,
        )  # fmt: skip
        return [f.severity for f in report.findings]

    assert severities(x, 1) == []
    assert severities(13 * x, 1) == ["note"]
    assert severities(x, 13) == ["warning"]
    assert severities(13 * x, 13) == ["warning"]
