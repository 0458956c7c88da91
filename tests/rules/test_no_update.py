"""no-update: a rate of zero, a step that does nothing, updates that are rounded away."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

import nndiag

NAME = "no-update"


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3)).to(dtype)


def report(model, optimizer, **options):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    batch = x.to(next(model.parameters()).dtype), torch.arange(64) % 3
    return nndiag.check(model, *batch, F.cross_entropy, optimizer=optimizer,
                        select=["no-update", "lr-too-low"], config=False, **options)  # fmt: skip


def found(model, optimizer, **options):
    return [(f.rule, f.severity, f.message) for f in report(model, optimizer, **options).findings]


def test_a_rate_of_zero_is_an_error():
    [(rule, severity, message)] = found(net(), lambda p: torch.optim.SGD(p, 0.0))
    assert (rule, severity) == (NAME, "error")
    assert message == "The learning rate is 0 for 4 of 4 parameters."


def test_a_rate_of_zero_for_some_is_a_note():
    model = net()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0},
                                 {"params": model[2].parameters()}], 0.1)  # fmt: skip
    [(_, severity, message)] = found(model, optimizer)
    assert severity == "note"
    assert "for 2 of 4" in message


@pytest.mark.parametrize("rate", [1e-3, 1.0])
def test_a_schedule_that_begins_at_zero_is_none(rate):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 10, 1.0))
    assert optimizer.param_groups[0]["lr"] == 0
    assert found(model, optimizer) == []


class Nothing(torch.optim.SGD):
    def step(self, closure=None):
        pass


class Elsewhere(torch.optim.SGD):
    """Writes to copies."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.detach().clone().sub_(p.grad)


@pytest.mark.parametrize("kind", [Nothing, Elsewhere])
def test_a_step_that_does_nothing_is_an_error(kind):
    [(rule, severity, message)] = found(net(), lambda p: kind(p, 0.1))
    assert (rule, severity) == (NAME, "error")
    assert f"A step of {kind.__name__} changes none of the values" in message


def test_a_rate_too_small_to_move_anything_is_told_from_that():
    assert [f[0] for f in found(net(), lambda p: torch.optim.SGD(p, 1e-12))] == ["lr-too-low"]


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-6)])
def test_updates_that_half_precision_rounds_away_are_a_warning(dtype, rate):
    [(_, severity, message)] = [
        f for f in found(net(dtype), lambda p: torch.optim.Adam(p, rate, eps=1e-4))
        if f[0] == NAME
    ]  # fmt: skip
    assert severity == "warning"
    assert f"values in {str(dtype)[6:]} as they are" in message


def test_it_is_held_against_its_threshold():
    def make(p):
        return torch.optim.Adam(p, 1e-5)

    [finding] = [f for f in report(net(torch.bfloat16), make).findings if f.rule == NAME]
    share = finding.evidence["unmoved"]
    assert 0.5 < share < 1
    for threshold, count in ((share - 1e-6, 1), (share, 0)):
        again = report(net(torch.bfloat16), make, thresholds={"no-update.unmoved": threshold})
        assert sum(f.rule == NAME for f in again.findings) == count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_usual_rates_move_most_values(dtype):
    assert found(net(dtype), lambda p: torch.optim.SGD(p, 0.1)) == []


def test_a_converged_network_is_none():
    model = net()
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(64) % 3).backward()
        optimizer.step()
    optimizer.zero_grad()
    assert [f for f in found(model, lambda p: torch.optim.SGD(p, 1e-2)) if f[1] != "note"] == []
