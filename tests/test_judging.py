"""Judging a network costs as much for each of its layers, however many there are.

Counted are the steps that Python takes in nndiag (calls, lines, rounds of loops), not seconds.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag.judge import judge

WIDTH, SAMPLES = 16, 64
PACKAGE = str(Path(nndiag.__file__).parent)


def chain(depth, activation, weights, biases=nn.init.zeros_):
    layers = []
    for _ in range(depth):
        linear = nn.Linear(WIDTH, WIDTH)
        weights(linear.weight)
        biases(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 2))


def he(weight):
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def partly_frozen(depth):
    model = chain(depth, nn.ReLU, he)
    for linear in model[2:-1:6]:
        linear.requires_grad_(False)
    return model


class Cut(nn.Module):
    """Detached in the middle; with layers that are never called."""

    def __init__(self, depth):
        super().__init__()
        self.first, self.second = (chain(depth // 2, nn.ReLU, he)[:-1] for _ in range(2))
        self.never = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth // 4))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(self.second(self.first(x).detach()))


class Broken(Cut):
    def forward(self, x):
        x = self.first(x)
        return self.head(self.second(x / (x - x)))


class Residual(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        for block in self.blocks:
            nn.init.constant_(block.bias, -100.0)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        for block in self.blocks:
            x = x + F.relu(block(F.layer_norm(x, (WIDTH,))))
        return self.head(x)


# What is wrong with it -> the network, and a rule that speaks of it.
NETWORKS = {
    "healthy": (lambda depth: chain(depth, nn.ReLU, he), "non-zero-centered"),
    "dead": (
        lambda depth: chain(depth, nn.ReLU, he, lambda b: nn.init.constant_(b, -100.0)),
        "no-gradient",
    ),
    "constant": (
        lambda depth: chain(depth, nn.Tanh, lambda w: nn.init.constant_(w, 0.05)),
        "symmetry",
    ),
    "saturated": (
        lambda depth: chain(depth, nn.Tanh, nn.init.normal_, nn.init.normal_),
        "init-scale",
    ),
    "frozen": (partly_frozen, "frozen-layer"),
    "cut": (Cut, "no-gradient"),
    "broken": (Broken, "non-finite"),
    "residual": (Residual, "dead-relu"),
}


def steps(snapshot):
    judge(snapshot)  # what is computed once for a number is known then
    anew, count = dataclasses.replace(snapshot), 0

    def trace(frame, event, arg):
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        judge(anew)
    finally:
        sys.settrace(before)
    return count


QUICK = ("healthy", "dead", "frozen")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in NETWORKS
    ],
)
def test_twice_as_many_layers_take_twice_as_many_steps(name):
    build, rule = NETWORKS[name]
    taken = []
    for depth in (100, 200):
        torch.manual_seed(0)
        report = nndiag.check(build(depth), torch.randn(SAMPLES, WIDTH), config=False)
        assert rule in {finding.rule for finding in report.findings}
        taken.append(steps(report.snapshot))

    assert taken[1] <= 2.2 * taken[0]
