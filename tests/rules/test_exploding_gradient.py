"""Exploding gradients: the mirror of vanishing ones, behind saturated activations too."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import nndiag
from nndiag import gradient_flow, judge
from nndiag.numbers import number

NAME = "exploding-gradient"


def check(model, batch, **options):
    return nndiag.check(model, batch, config=False, **options)


def own(report):
    return [f for f in report.findings if f.rule == NAME]


def alone(model, batch, **options):
    return own(check(model, batch, select=NAME, **options))


def rooted(report):
    return [f for f in report.findings if f.cause is None and f.severity != "note"]


def stack(depth, activation=nn.ReLU, width=48, gain=1.0, out=10, between=()):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *(b() for b in between), activation()]
        linear = layers[-2 - len(between)]
        (nn.init.kaiming_normal_ if activation is nn.ReLU else nn.init.xavier_normal_)(
            linear.weight
        )
        linear.weight.data.mul_(gain)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(*layers, nn.Linear(width, out))


class TestMeasure:
    @pytest.mark.parametrize("form", ["dense", "sequence", "convolution", "call"])
    @pytest.mark.parametrize("seed", range(2))
    def test_total_and_factor_are_ratios_of_gradient_norms_at_pre_activations(self, form, seed):
        class Calls(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList(stack(6, gain=5.0)[:-1:2])
                self.out = nn.Linear(48, 10)

            def forward(self, x):
                for layer in self.layers:
                    x = F.relu(layer(x))
                return self.out(x)

        torch.manual_seed(seed)
        model, x = stack(6, gain=5.0), torch.randn(64, 48)
        if form == "call":
            model = Calls()
        elif form == "sequence":
            x = torch.randn(16, 7, 48)
        elif form == "convolution":
            layers = []
            for k in range(6):
                layers += [nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.ReLU()]
                nn.init.kaiming_normal_(layers[-2].weight).data.mul_(5.0)
            model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 10))
            x = torch.randn(32, 3, 8, 8)

        def loss(out):
            return out.mean()

        [found] = alone(model, x, loss_fn=loss)
        outputs = []
        for m in model.modules():
            if isinstance(m, (nn.Linear, nn.Conv2d)):
                m.register_forward_hook(lambda *a: outputs.append(a[2]))
        value = loss(model(x))
        grads = torch.autograd.grad(value, outputs)
        total = (grads[0].double().norm() / grads[-2].double().norm()).item()
        assert total > 100
        assert found.evidence["total"] == pytest.approx(total, rel=1e-3)
        assert found.evidence["per_layer"] == pytest.approx(total ** (1 / 5), rel=1e-3)
        assert f"is {number(total)} times that at" in found.message

    @pytest.mark.parametrize(
        ("activation", "std", "factor"),
        # the root of σ_w² E φ'² at the fixed point
        [(nn.Tanh, 1.0, 3.48), (nn.ReLU, math.sqrt(2 / 500) * 3, 3.0)],
    )
    def test_the_factor_per_layer_is_theorys(self, activation, std, factor):
        torch.manual_seed(0)
        layers = []
        for _ in range(8):
            layers += [nn.Linear(500, 500, bias=False), activation()]
            nn.init.normal_(layers[-2].weight, std=std)
        model = nn.Sequential(*layers, nn.Linear(500, 10))
        [found] = alone(model, torch.randn(128, 500))
        assert found.evidence["per_layer"] == pytest.approx(factor, rel=0.03)

    def test_behind_saturated_units_the_norm_grows_while_the_median_unit_gets_nothing(self):
        torch.manual_seed(0)
        model, x = stack(8, nn.Tanh, 200, gain=15.0), torch.randn(128, 200)
        report = check(model, x)
        [found] = own(report)
        outputs = []
        model[0].register_forward_hook(lambda *a: outputs.append(a[2]))
        [grad] = torch.autograd.grad(model(x).sum(), outputs)
        ratio = (grad.abs().median() / grad.square().mean().sqrt()).item()
        assert ratio < 1e-3
        assert found.evidence["median_over_rms"] < 1e-3
        assert "vanishing-gradient" not in {f.rule for f in report.findings}
        assert [f.rule for f in rooted(report)] == ["init-scale"]

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_neither_scale_nor_reduction_of_the_loss_changes_a_verdict(self, scale, reduction):
        for gain, expected in ((1.0, []), (3.2, ["warning"]), (8.0, ["error"])):
            torch.manual_seed(0)
            model, x, y = stack(7, gain=gain), torch.randn(128, 48), torch.arange(128) % 10
            found = alone(
                model,
                x,
                target=y,
                loss_fn=lambda o, t: scale * F.cross_entropy(o / o.std().detach(), t,
                                                             reduction=reduction),
            )  # fmt: skip
            assert [f.severity for f in found] == expected

    @pytest.mark.parametrize("samples", [1, 64, 512])
    @pytest.mark.parametrize("classes", [2, 500])
    def test_neither_batch_size_nor_number_of_classes_changes_a_verdict(self, samples, classes):
        for gain, expected in ((1.0, []), (3.0, ["warning"])):
            torch.manual_seed(0)
            model = stack(7, gain=gain, out=classes)
            assert [f.severity for f in alone(model, torch.randn(samples, 48))] == expected


def deeper(snapshot, factor):
    """The same snapshot with the gradient of the first layer scaled by hand."""
    layers = list(snapshot.layers)
    for k, layer in enumerate(layers):
        if layer.grad is not None:
            size = factor if k == 0 else 1.0
            grad = replace(layer.grad, mean=0.0, m2=layer.grad.count * size**2)
            layers[k] = replace(layer, grad=grad)
    return replace(snapshot, layers=tuple(layers))


class TestThresholds:
    @pytest.mark.parametrize(
        ("total", "severity"),
        [(0.99e2, None), (1.01e2, "warning"), (0.99e4, "warning"), (1.01e4, "error")],
    )
    def test_a_hundred_is_a_warning_and_ten_thousand_an_error(self, total, severity):
        torch.manual_seed(0)
        healthy = check(stack(5), torch.randn(64, 48)).snapshot
        [path] = gradient_flow.paths(healthy)
        b = 5 * 4 / 48  # Hanin & Nica 2020: five times the sum of the inverse widths
        room = math.exp(-b / 4 + 3.2905 * math.sqrt(b) / 2)
        assert path.band[1] == pytest.approx(room, rel=1e-2)
        judged = judge.judge(deeper(healthy, total * path.band[1]), select=NAME)
        assert [f.severity for f in judged.findings] == ([severity] if severity else [])
        assert {(f.measure, f.threshold) for f in judged.findings} <= {("total", 1e2)}

    @pytest.mark.parametrize("width", [8, 16, 32])
    def test_narrow_he_networks_scatter_and_are_no_alarm(self, width):
        for depth in (5, 10, 20):
            for seed in range(5):
                torch.manual_seed(seed)
                assert alone(stack(depth, width=width), torch.randn(64, width)) == []


class TestWhereChainsEnd:
    def test_at_residual_additions_and_normalisations(self):
        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = nn.ModuleList(stack(2, gain=6.0, out=48) for _ in range(4))
                self.out = nn.Linear(48, 10)

            def forward(self, x):
                for block in self.blocks:
                    x = x + block(x)
                return self.out(x)

        torch.manual_seed(0)
        assert alone(Residual(), torch.randn(64, 48)) == []
        for norm in (nn.BatchNorm1d, nn.LayerNorm):
            model = stack(10, gain=10.0, between=[lambda n=norm: n(48)])
            assert alone(model, torch.randn(64, 48)) == []

    def test_repeated_calls_are_time_and_a_note(self):
        class Unrolled(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.out = nn.Linear(48, 48), nn.Linear(48, 10)
                nn.init.orthogonal_(self.layer.weight, 3.0)

            def forward(self, x):
                for _ in range(10):
                    x = F.leaky_relu(self.layer(x), 0.5)
                return self.out(x)

        torch.manual_seed(0)
        [found] = alone(Unrolled(), torch.randn(64, 48))
        assert found.severity == "note"
        assert "-fold in each of 9 calls" in found.message


class TestWhereAndWhy:
    @pytest.mark.parametrize("seed", range(3))
    def test_large_weights_in_the_middle_are_found_there(self, seed):
        torch.manual_seed(seed)
        model, x = stack(8), torch.randn(128, 48)
        assert check(model, x).ok
        model[6].weight.data.mul_(1e4)
        report = check(model, x)
        [found] = own(report)
        assert found.layer == "6"
        assert "-fold from 6 to 4" in found.message
        assert [(f.rule, f.layer) for f in rooted(report)] == [("init-scale", "6")]
        assert found.cause is report.findings[0]

    def test_the_weights_gain_is_said_beside_the_references(self):
        torch.manual_seed(0)
        [found] = alone(stack(8, gain=3.0), torch.randn(128, 48))
        assert re.search(r"The gain of the weights .* is 4\.\d; He init has 1\.4", found.message)


class TestHealth:
    @pytest.mark.parametrize("seed", range(3))
    def test_deep_networks_with_the_right_init_are_quiet(self, seed):
        torch.manual_seed(seed)
        tanh = stack(20, nn.Tanh, gain=1.1)  # 1.005 a layer
        recommended = stack(10, nn.Tanh, gain=5 / 3)  # torch's gain: 1.1 a layer
        for model in (tanh, recommended, stack(30, width=128)):
            assert alone(model, torch.randn(64, model[0].in_features)) == []

    def test_networks_trained_on_digits_are_quiet(self):
        x, y = load_digits(return_X_y=True)
        x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
        for activation in (nn.ReLU, nn.Tanh):
            torch.manual_seed(0)
            model = stack(4, activation, 64)
            optimiser = torch.optim.Adam(model.parameters(), 1e-3)
            for step in range(150):
                part = slice(step % 14 * 128, step % 14 * 128 + 128)
                optimiser.zero_grad()
                F.cross_entropy(model(x[part]), y[part]).backward()
                optimiser.step()
            assert (model(x).argmax(1) == y).double().mean() > 0.9
            assert alone(model, (x[:512], y[:512]), loss_fn=F.cross_entropy) == []

    def test_what_overflowed_is_non_finites_to_report(self):
        torch.manual_seed(0)
        report = check(stack(8, gain=1e6), torch.randn(64, 48))
        assert own(report) == []
        assert next(f.rule for f in report.findings if f.severity == "error") == "non-finite"


@pytest.mark.parametrize(("std", "found"), [(0.6, True), (0.1, False)])
def test_the_state_of_a_relu_recurrent_layer_grows_with_its_weights(std, found):
    torch.manual_seed(0)
    model = nn.RNN(3, 32, nonlinearity="relu", batch_first=True)
    nn.init.normal_(model.weight_hh_l0, std=std)
    report = nndiag.check(model, torch.randn(64, 16, 3), select="exploding-gradient", config=False)
    assert bool(report.findings) == found
    for other in (nn.RNN(3, 32, batch_first=True), nn.LSTM(3, 32, batch_first=True)):
        nn.init.normal_(other.weight_hh_l0, std=std)
        report = nndiag.check(other, torch.randn(64, 16, 3), select="exploding-gradient",
                              config=False)  # fmt: skip
        assert report.findings == ()
