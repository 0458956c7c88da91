"""regularization-too-strong: most of a gradient or an update that does not come from the data."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "regularization-too-strong"
X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def found(model, optimizer, loss_fn=F.cross_entropy, **options):
    report = nndiag.check(model, X, Y, loss_fn, optimizer=optimizer, select=NAME, config=False,
                          **options)  # fmt: skip
    assert not report.crashed
    return list(report.findings)


@pytest.mark.parametrize(
    ("kind", "sick", "well"),
    [("SGD", 5, 5e-4), ("Adam", 5, 1e-3), ("AdamW", 300, 0.1), ("NAdam", 5, 1e-4)],
)
def test_weight_decay(kind, sick, well):
    def make(decay):
        return lambda p: getattr(torch.optim, kind)(p, 1e-3, weight_decay=decay)

    [finding] = found(net(), make(sick))
    assert finding.severity == "warning"
    assert finding.message.startswith(f"Weight decay ({sick}) makes ")
    assert ("update" if kind == "AdamW" else "gradient") in finding.message
    assert found(net(), make(well)) == []


def with_penalty(model, kind, factor):
    def loss_fn(output, target):
        penalty = {
            "l2": lambda: sum(p.square().sum() for p in model.parameters()),
            "l1": lambda: sum(p.abs().sum() for p in model.parameters()),
            "norm": lambda: torch.cat([p.flatten() for p in model.parameters()]).norm(),
        }[kind]()
        return F.cross_entropy(output, target) + factor * penalty

    return loss_fn


@pytest.mark.parametrize(("kind", "sick"), [("l2", 3), ("l1", 0.5), ("norm", 30)])
def test_a_penalty_in_the_loss(kind, sick):
    model = net()
    [finding] = found(model, torch.optim.Adam, with_penalty(model, kind, sick))
    assert finding.message.startswith("A penalty in the loss makes ")
    assert found(model, torch.optim.Adam, with_penalty(model, kind, 1e-4)) == []


def test_it_is_held_against_its_threshold():
    def make(p):
        return torch.optim.SGD(p, 1e-3, weight_decay=5)

    [finding] = found(net(), make)
    share = finding.evidence["share"]
    assert found(net(), make, thresholds={f"{NAME}.share": share - 1e-6})
    assert not found(net(), make, thresholds={f"{NAME}.share": share})


def test_a_converged_network_with_usual_decay_is_none():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    optimizer.zero_grad()
    for make in (lambda p: torch.optim.SGD(p, 0.05, weight_decay=5e-4),
                 lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1)):  # fmt: skip
        assert found(model, make) == []


def test_a_loss_that_runs_the_model_is_no_penalty():
    model = net()

    def physics(output, target):
        return 1e-3 * F.cross_entropy(output, target) + model(X.flip(1)).square().mean()

    assert found(model, torch.optim.Adam, physics) == []


def test_class_centres_in_the_loss_are_no_penalty():
    model = net()

    def centres(output, target):
        return 1e-3 * F.cross_entropy(output @ model[2].weight[:, :3], target)

    assert found(model, torch.optim.Adam, centres) == []
