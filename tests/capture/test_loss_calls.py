"""The calls of a loss: what they read, what made it, and numbers about it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag import constant_output
from nndiag.experiment import LossCall, Made, Operand, Values

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, last, units=3):
        super().__init__()
        self.body, self.last = nn.Linear(6, units), last

    def forward(self, x):
        return self.last(self.body(x))


def calls(last, target, loss_fn, units=3):
    report = nndiag.check(Net(last, units), X, target, loss_fn, select="ND7", config=False)
    return report.snapshot.experiment.calls


def made_by(last):
    [call] = calls(last, X[:, :3], F.mse_loss)
    return call.operands[0].made


@pytest.mark.parametrize(
    ("last", "low", "high"),
    [
        (torch.tanh, -1, 1),
        (lambda z: 2 * torch.sigmoid(z) - 1, -1, 1),
        (lambda z: 1 - torch.sigmoid(z) / 2, 0.5, 1),
        (lambda z: -F.relu(z), -math.inf, 0),
        (lambda z: 1 / (1 + torch.exp(-z)), 0, 1),
        (lambda z: torch.exp(torch.tanh(z)), 1 / math.e, math.e),
        (lambda z: z.abs().sqrt(), 0, math.inf),
        (lambda z: torch.stack([F.relu6(z[:, 0]), F.relu6(z[:, 1]), F.relu6(z[:, 2])], 1), 0, 6),
        (lambda z: torch.tanh(z)[:, :3].double().float().view(12, 3).contiguous(), -1, 1),
    ],
)
def test_bounds_follow_the_values(last, low, high):
    made = made_by(last)
    assert (made.low, made.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    "last",
    [
        lambda z: z,
        lambda z: z**3,
        lambda z: torch.tanh(z) + z,
        lambda z: torch.cat([torch.tanh(z[:, :1]), z[:, 1:]], 1),
        lambda z: torch.cat([torch.tanh(z[:, :1]), F.relu(z[:, 1:])], 1),
        lambda z: 1 / torch.sigmoid(z) + torch.tanh(z),
    ],
)
def test_what_has_no_bounds_gets_none(last):
    assert made_by(last) is None


@pytest.mark.filterwarnings("ignore:Implicit dimension choice:UserWarning")
@pytest.mark.parametrize(("shape", "axis"), [((12, 3), 1), ((12, 3, 1), 0), ((12,), 0)])
def test_a_softmax_without_dim_runs_where_torch_runs_it(shape, axis):
    class Implicit(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Linear(6, 3 if len(shape) > 1 else 1), nn.Softmax()

        def forward(self, x):
            return self.last(self.body(x).view(shape))

    report = nndiag.check(Implicit(), X, config=False, select="ND705")
    assert report.snapshot.by_name["last"].options["dim"] == axis


def test_what_lies_beyond_the_bounds_is_counted():
    target = torch.tensor([[-1.0, 0.5, 2.0]]).repeat(12, 1)
    [call] = calls(torch.sigmoid, target, lambda o, t: (o - t).abs().mean())
    assert call.op == "sub"
    assert call.facts["outside"] == pytest.approx(2 / 3)
    assert call.facts["absolute_left"] == pytest.approx(2 / 3)
    assert call.facts["square_left"] == pytest.approx(2 / 3)
    assert (call.facts["outside_values"], call.facts["inside_values"]) == (2, 1)


def test_a_mask_of_the_target_depends_on_it():
    [call] = calls(lambda z: z, X[:, 0], lambda o, t: torch.where(t > 0, o, -o).mean(), units=1)
    assert call.op == "where"
    assert call.shape == (12, 12)
    assert ("target",) in [operand.sources for operand in call.operands]


def test_a_formula_needs_one_plain_call():
    def call(**options):
        target = Values((8,), "int64", 8, 0, counts={0: 6, 1: 2}, distinct=2, whole=True)
        operands = (Operand((8, 2), "float32", ("output",)), Operand((8,), "int64", values=target))
        return LossCall("loss/cross_entropy", "cross_entropy", (), operands, (), options, 0.7)

    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    base = constant_output.baseline_of(call(), 0.7)
    assert base.constant == pytest.approx(entropy)
    assert constant_output.baseline_of(call(reduction=2.0), 5.6).constant == 8 * base.constant
    assert constant_output.baseline_of(call(weight=1.0), 0.7) is None
    assert constant_output.baseline_of(call(label_smoothing=0.1), 0.7) is None


def test_softplus_is_exact_far_out():
    assert constant_output.softplus(800) == 800
    assert constant_output.softplus(-800) == 0
    assert constant_output.softplus(0) == pytest.approx(math.log(2))


def test_made_of_a_softmax_says_what_its_axis_runs_over():
    def over(last):
        return made_by(last).over

    assert over(lambda z: z.softmax(1)) == "units"
    assert over(lambda z: z.softmax(0)) == "samples"
    assert isinstance(made_by(lambda z: z.softmax(1)), Made)
