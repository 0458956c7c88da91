"""Activations that take longer than ReLU: a note, from a table that was measured."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nndiag
from nndiag import judge, ops
from nndiag.rules import costly_activation

NAME = "costly-activation"
MEASURED = Path(nndiag.__file__).parents[1] / costly_activation.MEASURED


def alone(model, batch, **options):
    return nndiag.check(model, batch, select=NAME, config=False, **options).findings


def through(*activations, width=16):
    torch.manual_seed(0)
    layers = [part for a in activations for part in (nn.Linear(width, width), a)]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def test_the_table_is_the_measurement():
    with MEASURED.open() as file:
        measured = {row["activation"]: float(row["times_relu"]) for row in csv.DictReader(file)}
    assert measured == {op.name: op.cost for op in ops.OPS.values() if op.cost is not None}


@pytest.mark.parametrize(
    "activation",
    [nn.Mish(), nn.Softsign(), nn.ELU(), nn.SELU(), nn.CELU(), nn.Softplus(), nn.LogSigmoid()],
    ids=lambda a: type(a).__name__,
)
def test_what_takes_twice_as_long_is_noted(activation):
    [found] = alone(through(activation), torch.randn(64, 16))
    cost = ops.named(type(activation).__name__.lower()).cost
    assert (found.severity, found.layer, found.evidence["times_relu"]) == ("note", "1", cost)
    assert found.message.startswith("1 activation takes up to ")
    assert found.evidence["values_per_sample"] == 16


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.LeakyReLU(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU(),
     nn.Hardswish(), nn.Hardtanh()],
    ids=lambda a: type(a).__name__,
)  # fmt: skip
def test_what_takes_about_as_long_is_not(activation):
    assert alone(through(activation), torch.randn(64, 16)) == ()


def test_calls_count_and_so_do_gates_and_outputs():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return F.softplus(self.b(F.mish(self.a(x)) * x))

    torch.manual_seed(0)
    [found] = alone(Calls(), torch.randn(8, 5, 16))
    assert found.layer == "/mish"
    assert found.message == (
        f"2 activations take up to {ops.named('mish').cost:.2g} times as long as ReLU "
        "(mish, softplus), over 160 values per sample."
    )


@pytest.mark.parametrize(("times", "found"), [(2.35, True), (2.36, False)])
def test_the_threshold_is_the_readers(times, found):
    cost = ops.named("elu").cost
    assert (
        bool(
            alone(
                through(nn.ELU()),
                torch.randn(64, 16),
                thresholds={"costly-activation.times_relu": times - 2.35 + cost},
            )
        )
        == found
    )


def test_it_never_makes_a_report_not_ok():
    report = nndiag.check(through(nn.Mish()), torch.randn(64, 16), config=False)
    assert NAME in {f.rule for f in report.findings}
    assert report.ok


def test_what_was_not_measured_counts_as_relu_does():
    assert ops.named("threshold").cost is None
    model, x = through(nn.Threshold(0.1, 0.0)), torch.randn(64, 16)

    assert alone(model, x) == ()
    [found] = alone(model, x, thresholds={"costly-activation.times_relu": 1.0})
    assert found.evidence["times_relu"] == 1.0


def test_of_no_samples_it_is_noted_all_the_same():
    snapshot = nndiag.check(through(nn.Mish()), torch.randn(64, 16), config=False).snapshot

    judged = judge.judge(replace(snapshot, samples=0), NAME)

    assert [(f.rule, f.severity) for f in judged.findings] == [(NAME, "note")]
