"""What the laws found wrong: each a single case, kept."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from subjects import CLASSES, FEATURES, HE, SUBJECTS, WIDTH, XAVIER, N, check, mlp
from torch import nn
from verdict import leading, verdict

from nndiag.stats import TensorStats


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.05, 0.3, 1.0])
def test_a_head_that_starts_constant_is_no_fault(dtype, value):
    """The softmax's gradients cancel in it: to exactly zero, or to what rounding leaves."""
    subject = SUBJECTS["he-mlp"]
    model = subject.model()
    nn.init.constant_(model[8].weight, value)
    x, y = subject.data()

    report = check(model.to(dtype), (x.to(dtype), y))

    assert report.ok


@pytest.mark.parametrize("n", [50, 100, 127])
def test_equal_samples_do_not_vary_in_float64_either(n):
    """Their mean is off by rounding, which is no variation."""
    model = SUBJECTS["tanh-mlp"].model().double()
    x = torch.randn(
        1, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ).repeat(n, 1)

    report = check(model, (x, torch.arange(n) % CLASSES))

    assert {f.rule for f in report.at_least("warning")} <= {"constant-feature"}
    assert ("signal-collapse", "(model)") in verdict(report).unjudged


@pytest.mark.parametrize("layer", [2, 18])
def test_one_large_layer_does_not_make_up_for_many_small_ones(layer):
    """Nine layers lose a factor 2.4 each, and one gains ten."""
    subject = SUBJECTS["deep-default-relu"]
    model = subject.model()
    with torch.no_grad():
        model[layer].weight.mul_(10)

    report = check(model, subject.data())

    assert leading(report) == "init-scale"
    assert "too small" in report.findings[0].message


def test_bare_parameters_that_never_run_are_one_part_where_they_are_held_together():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.main = mlp(nn.ReLU, HE)
            self.extra = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(2)])

        def forward(self, x):
            return self.main(x)

    for model in (Held(), nn.Sequential(Held())):
        report = check(model, SUBJECTS["he-mlp"].data())
        assert [f.cause is None for f in report.at_least("warning")] == [True, False]


@pytest.mark.parametrize("put", [lambda model: model, nn.Sequential], ids=["bare", "wrapped"])
def test_parts_that_never_run_do_not_explain_one_another(put):
    subject = SUBJECTS["unused-parts"]

    report = check(put(subject.model()), subject.data())

    roots = {f.layer.removeprefix("0.") for f in report.findings if f.cause is None}
    assert {"left.weight", "right.0.weight"} <= roots


def test_weights_whose_effect_on_the_gradient_is_no_number_are_too_large():
    """Each of five saturated layers multiplies it by the root of 1e120."""
    model = mlp(nn.Tanh, XAVIER, depth=6).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(1e120)
    x, y = SUBJECTS["he-mlp"].data()

    report = check(model, (x.double(), y))

    assert leading(report) == "init-scale"
    assert math.isfinite(report.findings[0].evidence["accumulated"])


def test_the_square_of_a_number_may_be_none():
    stats = TensorStats(1, 1, 0, 0, 0, mean=1e200, m2=0.0, min=1e200, max=1e200)

    assert stats.second_moment == math.inf


def test_a_call_and_the_module_around_it_are_one_origin():
    """Both rows show the one tensor that is not finite first."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((WIDTH, FEATURES), 1e38))

        def forward(self, x):
            return F.linear(x, self.weight)

    model = nn.Sequential(Own(), nn.Linear(WIDTH, CLASSES))

    report = check(model, SUBJECTS["he-mlp"].data())

    assert [f.layer for f in report.at_least("warning") if f.rule == "non-finite"] == ["0/linear"]


def test_a_module_that_makes_it_infinite_is_told_where_its_calls_are_finite():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((WIDTH, FEATURES), 1e20))

        def forward(self, x):
            return F.linear(x, self.weight) * 1e30

    model = nn.Sequential(Own(), nn.Linear(WIDTH, CLASSES))

    report = check(model, SUBJECTS["he-mlp"].data())

    assert [f.layer for f in report.at_least("warning") if f.rule == "non-finite"] == ["0"]


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_the_squares_of_gradients_may_leave_float32(scale):
    """Rows whose norm is rounded to zero looked like one another."""
    subject = SUBJECTS["tanh-mlp"]
    model = subject.model()
    nn.init.constant_(model[2].weight, 0.05)

    report = check(model, subject.data(), lambda out, y: F.cross_entropy(out, y) * scale)

    assert [(f.rule, f.severity) for f in report.at_least("warning")] == [("symmetry", "warning")]


@pytest.mark.parametrize("gain", [1.8e-7, 7.6e-8])
def test_the_virtual_update_bears_gradients_of_nothing(gain):
    """They would have to be multiplied by more than float32 holds."""
    torch.manual_seed(2)
    model = mlp(nn.Tanh, XAVIER * gain, depth=6)

    assert leading(check(model, SUBJECTS["he-mlp"].data())) == "init-scale"


def test_running_statistics_are_held_against_the_whole_stream():
    """A loader sorted by class: each batch alone is far from them, all together are not."""
    torch.manual_seed(0)
    x, y = torch.randn(N, FEATURES), torch.arange(N) % CLASSES
    x[: N // 2] += 12
    x[N // 2 :] -= 12
    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
    with torch.no_grad():
        for _ in range(60):
            model(x[torch.randperm(N)])
    model.append(nn.Linear(WIDTH, CLASSES)).eval()

    report = check(model, [(x[: N // 2], y[: N // 2]), (x[N // 2 :], y[N // 2 :])])

    assert report.ok
