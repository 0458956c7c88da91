"""Hidden activations without zeros: a note, once for the network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag

NAME = "dense-activation"


def alone(model, batch, **options):
    return nndiag.check(model, batch, select=NAME, config=False, **options).findings


def through(*activations, width=16):
    torch.manual_seed(0)
    layers = [part for a in activations for part in (nn.Linear(width, width), a)]
    return nn.Sequential(*layers, nn.Linear(width, 4))


@pytest.mark.parametrize(
    "activation",
    [nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.Softplus(), nn.LeakyReLU()],
    ids=lambda a: type(a).__name__,
)
def test_activations_without_zeros_are_noted(activation):
    [found] = alone(through(activation), torch.randn(64, 16))
    assert (found.severity, found.layer, found.measure) == ("note", "1", "zero_fraction")
    assert found.evidence["zero_fraction"] == 0.0
    assert found.message.startswith("1 of 1 hidden activation (")


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardshrink(1.0)])
def test_activations_that_switch_off_are_not(activation):
    model = through(activation)
    nn.init.normal_(model[0].weight, std=1.0)
    assert alone(model, torch.randn(64, 16)) == ()


def test_the_call_in_a_forward_is_seen_as_well():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            return self.out(F.relu(self.b(torch.tanh(self.a(x)))))

    torch.manual_seed(0)
    [found] = alone(Calls(), torch.randn(64, 16))
    assert found.layer == "/tanh"
    assert found.message.startswith("1 of 2 hidden activations (tanh) has under")


def test_many_dense_layers_are_one_note_at_the_first():
    [found] = alone(
        through(nn.ReLU(), nn.Tanh(), nn.GELU(), nn.ReLU(), nn.Tanh()), torch.randn(64, 16)
    )
    assert found.layer == "3"
    assert (found.evidence["dense_layers"], found.evidence["hidden_layers"]) == (3, 5)
    assert "3 of 5 hidden activations (tanh, gelu)" in found.message


@pytest.mark.parametrize(("zeros", "found"), [(0, True), (10, True), (11, False)])
def test_one_in_a_hundred_is_the_boundary(zeros, found):
    model = through(nn.ReLU())
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    x = torch.ones(64, 16)
    x.view(-1)[:zeros] = 0.0  # of 1024
    assert bool(alone(model, x)) == found


def test_gates_and_outputs_do_not_count():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            return torch.sigmoid(self.out(F.relu(self.a(x)) * torch.sigmoid(self.b(x))))

    torch.manual_seed(0)
    assert alone(Gate(), torch.randn(64, 16)) == ()


def test_it_never_makes_a_report_not_ok():
    report = nndiag.check(through(nn.Tanh()), torch.randn(64, 16), config=False)
    assert NAME in {f.rule for f in report.findings}
    assert report.ok
