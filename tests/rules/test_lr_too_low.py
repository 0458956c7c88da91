"""lr-too-low: a step that hardly changes the loss, where a longer one still would lower it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn
from torch.optim import lr_scheduler

import nndiag

NAME = "lr-too-low"
X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def found(model, optimizer, loss_fn=F.cross_entropy, **options):
    report = nndiag.check(model, X, Y, loss_fn, optimizer=optimizer, select=NAME, config=False,
                          **options)  # fmt: skip
    assert not report.crashed
    return list(report.findings) + list(report.unjudged)


MAKE = {
    "sgd": (lambda p, k: torch.optim.SGD(p, 0.05 * k)),
    "momentum": (lambda p, k: torch.optim.SGD(p, 0.01 * k, momentum=0.9)),
    "adam": (lambda p, k: torch.optim.Adam(p, 1e-3 * k)),
    "adamw": (lambda p, k: torch.optim.AdamW(p, 3e-4 * k)),
    "rmsprop": (lambda p, k: torch.optim.RMSprop(p, 1e-3 * k)),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_ten_thousandth_of_the_usual_rate_is_found_and_the_rate_itself_is_not(name):
    [finding] = found(net(), lambda p: MAKE[name](p, 1e-4))
    assert finding.severity == "warning"
    assert finding.evidence["change"] < 1.5e-5 or name in ("sgd", "momentum")
    assert "still lower it" in finding.message
    for factor in (0.1, 1, 10):
        assert found(net(), lambda p, factor=factor: MAKE[name](p, factor)) == []


def test_it_is_held_against_its_thresholds():
    def make(p):
        return torch.optim.Adam(p, 1e-7)

    [finding] = found(net(), make)
    change, farthest = finding.evidence["change"], finding.evidence["multiple"]
    assert farthest == 1000
    assert found(net(), make, thresholds={f"{NAME}.change": change * 1.001})
    assert not found(net(), make, thresholds={f"{NAME}.change": change * 0.999})
    assert not found(net(), make, thresholds={f"{NAME}.multiple": 1001})
    [unjudged] = found(net(), make, thresholds={f"{NAME}.gradient": 1e9})
    assert unjudged.reason == "the gradient is small itself"


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.LinearLR(o, 1e-5),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1e-5 + step / 100),
        lambda o: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=100, div_factor=1e6),
    ],
)
def test_a_warm_up_is_judged_by_its_peak(schedule):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule(optimizer)
    assert optimizer.param_groups[0]["lr"] < 1e-7
    assert found(model, optimizer) == []
    low = torch.optim.Adam(model.parameters(), 1e-7)
    lr_scheduler.LinearLR(low, 0.1)
    assert [f.severity for f in found(model, low)] == ["warning"]


def test_a_trained_network_is_a_note_at_most():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    optimizer.zero_grad()
    for rate in (1e-8, 1e-5):
        findings = found(model, lambda p, rate=rate: torch.optim.Adam(p, rate))
        assert [f.severity for f in findings if hasattr(f, "severity")] in ([], ["note"])


def test_a_small_gradient_is_not_the_rates_fault():
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(1e-4)
        model[2].bias.zero_()
    few = found(model, lambda p: torch.optim.SGD(p, 0.05),
                lambda o, t: 1e-3 * F.cross_entropy(o, t) + 5)  # fmt: skip
    assert [f.reason for f in few] == ["the gradient is small itself"]


@pytest.mark.parametrize("factor", [1e-3, 1, 1e3])
def test_the_scale_of_the_loss_does_not_matter_to_adam(factor):
    for rate, count in ((1e-7, 1), (1e-3, 0)):
        findings = found(net(), lambda p, rate=rate: torch.optim.Adam(p, rate, eps=1e-12),
                         lambda o, t: factor * F.cross_entropy(o, t))  # fmt: skip
        assert len(findings) == count


@pytest.mark.parametrize("seed", [2, 3])
def test_an_update_that_is_short_because_the_gradient_is_small_is_not_the_rate_s_doing(seed):
    """An autoencoder of noise starts where its data's mean is already learned."""
    model, x, target, loss_fn = zoo.make("conv-autoencoder", seed)

    def at(rate):
        report = nndiag.check(
            model, x, target, loss_fn, optimizer=lambda p: torch.optim.SGD(p, rate), select=NAME,
            config=False, seed=seed,
        )  # fmt: skip
        return [f.severity for f in report.findings]

    assert at(0.01) == []
    assert at(1e-4) == ["warning"]
