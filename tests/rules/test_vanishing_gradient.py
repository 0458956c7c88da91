"""Vanishing gradients: at pre-activations along each chain, by factor and total, and why."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.checkpoint import checkpoint

import nndiag
from nndiag import gradient_flow, judge
from nndiag.numbers import number
from nndiag.rules import vanishing_gradient

NAME = "vanishing-gradient"
BOTH = [NAME, "exploding-gradient"]


def check(model, batch, **options):
    return nndiag.check(model, batch, config=False, **options)


def own(report):
    return [f for f in report.findings if f.rule == NAME]


def alone(model, batch, **options):
    """Findings of both gradient rules."""
    return check(model, batch, select=BOTH, **options).findings


def xavier(model):
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv1d)):
            nn.init.xavier_normal_(m.weight)
            nn.init.zeros_(m.bias)
    return model


def he(model):
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv1d)):
            nn.init.kaiming_normal_(m.weight)
            nn.init.zeros_(m.bias)
    return model


def stack(depth, activation=nn.Sigmoid, width=48, out=10, between=()):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *(b() for b in between), activation()]
    model = nn.Sequential(*layers, nn.Linear(width, out))
    return he(model) if activation is nn.ReLU else xavier(model)


def rooted(report):
    return [f for f in report.findings if f.cause is None and f.severity != "note"]


def norms(model, x, layers, loss):
    """Norms of the gradients at the outputs of ``layers``, by autograd alone."""
    outputs = []
    handles = [m.register_forward_hook(lambda *a: outputs.append(a[2])) for m in layers]
    value = loss(model(x))
    grads = torch.autograd.grad(value, outputs)
    for handle in handles:
        handle.remove()
    return [g.double().norm().item() for g in grads]


class TestMeasure:
    @pytest.mark.parametrize("form", ["dense", "call", "sequence", "convolution", "in place"])
    @pytest.mark.parametrize("seed", range(2))
    def test_total_and_factor_are_ratios_of_gradient_norms_at_pre_activations(self, form, seed):
        class Calls(nn.Module):
            def __init__(self, act):
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(6))
                self.out, self.act = nn.Linear(48, 10), act

            def forward(self, x):
                for layer in self.layers:
                    x = self.act(layer(x))
                return self.out(x)

        torch.manual_seed(seed)
        model, x = stack(6), torch.randn(64, 48)
        if form == "call":
            model = xavier(Calls(torch.sigmoid))
        elif form == "in place":
            model = xavier(Calls(lambda z: z.sigmoid_()))
        elif form == "sequence":
            x = torch.randn(16, 7, 48)
        elif form == "convolution":
            layers = []
            for k in range(6):
                layers += [nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.Sigmoid()]
            model = xavier(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 10)))
            x = torch.randn(32, 3, 8, 8)

        def loss(out):
            return out.square().mean()

        found = [f for f in alone(model, x, loss_fn=loss) if f.severity != "note"]
        weighted = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][:-1]
        if form == "in place":  # the same numbers, and hooks that see them
            model.act = torch.sigmoid
        expected = norms(model, x, weighted, loss)
        total = expected[0] / expected[-1]
        assert total < 1e-2
        [finding] = found
        assert finding.evidence["total"] == pytest.approx(total, rel=1e-3)
        assert finding.evidence["per_layer"] == pytest.approx(total ** (1 / 5), rel=1e-3)
        assert finding.evidence["layers"] == 5
        assert f"is {number(total, 'share')} of the gradient at" in finding.message

    @pytest.mark.parametrize(
        ("activation", "init", "factor"),
        [
            (nn.Sigmoid, nn.init.xavier_normal_, 0.2331),
            (nn.ReLU, nn.init.xavier_normal_, 0.7067),
            (nn.ReLU, None, 0.4082),
            (nn.Tanh, None, 0.559),
        ],
    )
    def test_the_factor_per_layer_is_theorys(self, activation, init, factor):
        torch.manual_seed(0)
        layers = []
        for _ in range(12):
            layers += [nn.Linear(256, 256, bias=False), activation()]
            if init:
                init(layers[-2].weight)
        model = nn.Sequential(*layers, nn.Linear(256, 10))
        snapshot = check(model, torch.randn(64, 256), select=BOTH).snapshot
        [path] = gradient_flow.paths(snapshot)
        assert path.per_layer == pytest.approx(factor, rel=0.05)

    def test_weight_gradients_would_not_have_shown_it(self):
        torch.manual_seed(0)
        model = stack(10, nn.ReLU)
        for m in model:
            if isinstance(m, nn.Linear):
                m.weight.data.mul_(0.2)
        report = check(model, torch.randn(128, 48), select=BOTH)
        first, last = (report.snapshot.parameter[f"{k}.weight"].grad.norm for k in (0, 18))
        assert 0.3 < first / last < 3
        assert [f.severity for f in own(report)] == ["error"]

    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_neither_scale_nor_reduction_of_the_loss_changes_a_verdict(self, scale, reduction):
        for depth, activation in ((8, nn.Sigmoid), (8, nn.ReLU), (4, nn.Sigmoid)):
            torch.manual_seed(0)
            model, x, y = stack(depth, activation), torch.randn(128, 48), torch.arange(128) % 10
            plain = alone(model, x, target=y, loss_fn=F.cross_entropy)
            scaled = alone(
                model,
                x,
                target=y,
                loss_fn=lambda o, t: scale * F.cross_entropy(o, t, reduction=reduction),
            )
            assert [(f.severity, f.layer) for f in scaled] == [(f.severity, f.layer) for f in plain]

    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("samples", [1, 8, 64, 512])
    @pytest.mark.parametrize("classes", [2, 10, 500])
    def test_neither_batch_size_nor_number_of_classes_changes_a_verdict(self, samples, classes):
        for depth, activation, expected in (
            (10, nn.Sigmoid, ["error"]), (5, nn.Sigmoid, ["warning"]), (12, nn.ReLU, []),
        ):  # fmt: skip
            torch.manual_seed(0)
            model = stack(depth, activation, out=classes)
            x, y = torch.randn(samples, 48), torch.arange(samples) % classes
            found = alone(model, x, target=y, loss_fn=F.cross_entropy)
            assert [f.severity for f in found] == expected


def shallower(snapshot, factor):
    """The same snapshot with the gradient of the first layer scaled by hand."""
    layers = list(snapshot.layers)
    grad = layers[0].grad
    layers[0] = replace(layers[0], grad=replace(grad, mean=0.0, m2=grad.count * factor**2))
    for k, layer in enumerate(layers[1:], 1):
        if layer.grad is not None:
            unit = replace(layer.grad, mean=0.0, m2=layer.grad.count * 1.0)
            layers[k] = replace(layer, grad=unit)
    return replace(snapshot, layers=tuple(layers))


@pytest.fixture(scope="module")
def healthy():
    torch.manual_seed(0)
    return check(stack(5, nn.Tanh), torch.randn(64, 48)).snapshot


@pytest.fixture(scope="module")
def room(healthy):
    """What chance may take from a network of these widths: the lower end of the 99.9 % band."""
    [path] = gradient_flow.paths(healthy)
    b = 0.627 * 4 / 48  # n times the variance of a tanh layer's gain, over the widths of four
    assert path.band[0] == pytest.approx(math.exp(-b / 4 - 3.2905 * math.sqrt(b) / 2), rel=1e-2)
    return path.band[0]


class TestThresholds:
    @pytest.mark.parametrize(
        ("total", "severity"),
        [(1.01e-2, None), (0.99e-2, "warning"), (1.01e-4, "warning"), (0.99e-4, "error")],
    )
    def test_a_hundredth_is_a_warning_and_a_ten_thousandth_an_error(
        self, healthy, room, total, severity
    ):
        judged = judge.judge(shallower(healthy, total * room), select=NAME)
        assert [f.severity for f in judged.findings] == ([severity] if severity else [])
        for finding in judged.findings:
            assert (finding.threshold, finding.measure) == (1e-2, "total")
            assert finding.evidence["total"] == pytest.approx(total * room)

    def test_the_readers_threshold_is_used(self, healthy, room):
        judged = judge.judge(
            shallower(healthy, 0.4 * room), select=NAME, thresholds={f"{NAME}.total": 0.5}
        )
        assert [f.threshold for f in judged.findings] == [0.5]

    def test_two_hidden_layers_are_no_depth(self):
        torch.manual_seed(0)
        assert alone(stack(2), torch.randn(64, 48), thresholds={f"{NAME}.total": 1.0}) == ()

    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("width", [8, 16, 32])
    @pytest.mark.parametrize("depth", [5, 10, 20])
    def test_narrow_he_networks_scatter_and_are_no_alarm(self, width, depth):
        for seed in range(5):
            torch.manual_seed(seed)
            assert alone(stack(depth, nn.ReLU, width), torch.randn(64, width)) == ()


class Residual(nn.Module):
    def __init__(self, depth, width=48):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Sigmoid(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.out = nn.Linear(width, 10)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


class Dense(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(48 + 8 * k, 8) for k in range(depth))
        self.out = nn.Linear(48 + 8 * depth, 10)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, torch.sigmoid(layer(x))], 1)
        return self.out(x)


class Unrolled(nn.Module):
    """The same layer again and again."""

    def __init__(self, times, act, gain=1.0):
        super().__init__()
        self.layer, self.out = nn.Linear(48, 48), nn.Linear(48, 10)
        nn.init.xavier_normal_(self.layer.weight, gain)
        self.times, self.act = times, act

    def forward(self, x):
        for _ in range(self.times):
            x = self.act(self.layer(x))
        return self.out(x)


class HandmadeRNN(nn.Module):
    def __init__(self, steps=20):
        super().__init__()
        self.read, self.keep, self.out = nn.Linear(8, 48), nn.Linear(48, 48), nn.Linear(48, 10)
        self.steps = steps

    def forward(self, x):
        h = x.new_zeros(len(x), 48)
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.read(x[:, t]) + self.keep(h))
        return self.out(h)


class TestWhereChainsEnd:
    @pytest.mark.parametrize("seed", range(2))
    def test_at_residual_additions_and_concatenations(self, seed):
        torch.manual_seed(seed)
        assert alone(Residual(12), torch.randn(64, 48)) == ()
        assert alone(Dense(10), torch.randn(64, 48)) == ()

    @pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm])
    def test_at_normalisations(self, norm):
        torch.manual_seed(0)
        model = stack(12, between=[lambda: norm(48)])
        assert alone(model, torch.randn(64, 48)) == ()

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
    def test_at_recurrences(self, kind):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = kind(8, 48, batch_first=True), nn.Linear(48, 10)

            def forward(self, x):
                return self.out(self.rnn(x)[0][:, -1])

        torch.manual_seed(0)
        x = torch.randn(32, 40, 8)
        assert alone(Last(), x) == ()
        assert alone(HandmadeRNN(), x) == ()

    def test_repeated_calls_are_time_and_a_note(self):
        torch.manual_seed(0)
        [found] = alone(Unrolled(12, torch.sigmoid), torch.randn(64, 48))
        assert (found.rule, found.severity) == (NAME, "note")
        assert "passes each of 11 calls" in found.message

    def test_a_long_branch_is_a_chain_of_its_own(self):
        class Branch(nn.Module):
            def __init__(self):
                super().__init__()
                self.long, self.out = stack(6, out=48), nn.Linear(48, 10)

            def forward(self, x):
                return self.out(x + self.long(x))

        torch.manual_seed(0)
        [found] = alone(Branch(), torch.randn(64, 48))
        assert found.layer == "long.0"

    def test_two_branches_are_judged_apart(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.sick, self.well = stack(8), stack(8, nn.ReLU)

            def forward(self, x):
                return self.sick(x) + self.well(x)

        torch.manual_seed(0)
        assert [f.layer for f in alone(Two(), torch.randn(64, 48))] == ["sick.0"]


class Pooled(nn.Module):
    """Three convolutions, something that gathers the positions, three dense layers."""

    def __init__(self, gather, width=12, flat=12):
        super().__init__()
        self.convolve = nn.Sequential(
            *(part for k in range(3) for part in (nn.Conv2d(width if k else 3, width, 3, padding=1),
                                                  nn.ReLU()))
        )  # fmt: skip
        self.gather = gather
        self.decide = nn.Sequential(
            nn.Linear(flat, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4)
        )

    def forward(self, x):
        return self.decide(self.gather(self.convolve(x)))


class TestGeometry:
    @pytest.mark.parametrize(
        "gather",
        [
            lambda x: x.mean((2, 3)),
            lambda x: x.flatten(2).mean(-1),
            lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
            lambda x: F.avg_pool2d(x, x.shape[-1]).flatten(1),
            lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
            lambda x: x.amax((2, 3)),
            lambda x: x[:, :, 3, 3],
        ],
    )
    def test_gathering_many_positions_is_no_vanishing(self, gather):
        torch.manual_seed(0)
        assert alone(he(Pooled(gather)), torch.randn(2, 3, 80, 80)) == ()

    @pytest.mark.parametrize(
        "gather", [lambda x: x.mean(-1), lambda x: F.adaptive_avg_pool1d(x, 1).flatten(1)]
    )
    def test_nor_is_averaging_over_a_quarter_of_a_million_of_them(self, gather):
        class Long(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Conv1d(16, 16, 3), nn.Conv1d(16, 16, 3)
                self.third, self.last = nn.Linear(16, 48), nn.Linear(48, 4)

            def forward(self, x):
                x = F.relu(self.second(F.relu(self.first(x))))
                return self.last(F.relu(self.third(gather(x))))  # 1/500 of the norm passes

        torch.manual_seed(0)
        model = he(Long())
        assert alone(model, torch.randn(1, 16, 250_000)) == ()
        model.third.weight.data.mul_(1e-3)  # and what vanishes there is still seen
        assert [f.layer for f in alone(model, torch.randn(4, 16, 1000))] == ["third"]

    @pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
    def test_pooling_again_and_again_is_none(self, pool):
        torch.manual_seed(0)
        layers = []
        for k in range(5):
            layers += [nn.Conv2d(12 if k else 3, 12, 3, padding=1), nn.ReLU(), pool(2)]
        model = he(nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 4, 4)))
        assert alone(model, torch.randn(8, 3, 64, 64)) == ()

    def test_nor_are_strides_and_upsampling(self):
        torch.manual_seed(0)
        down, up = [], []
        for k in range(6):
            down += [nn.Conv2d(12 if k else 3, 12, 3, 2, 1), nn.ReLU()]
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
        model = he(nn.Sequential(*down, *up, nn.Conv2d(12, 3, 1)))
        assert alone(model, torch.randn(4, 3, 64, 64)) == ()

    def test_nor_is_reading_one_token_of_many(self):
        class First(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.out = stack(6, nn.ReLU, out=48), nn.Linear(48, 4)

            def forward(self, x):
                return self.out(F.relu(self.body(x)[:, 0]))

        torch.manual_seed(0)
        assert alone(First(), torch.randn(4, 500, 48)) == ()


class TestConstruction:
    """Gradients that are zero or small by choice are no fault."""

    @pytest.mark.parametrize("scale", [0.0, 1e-6])
    def test_a_zero_or_tiny_head(self, scale):
        torch.manual_seed(0)
        model, x, y = stack(8, nn.ReLU), torch.randn(64, 48), torch.arange(64) % 10
        model[-1].weight.data.mul_(scale)
        assert alone(model, x, target=y, loss_fn=F.cross_entropy) == ()

    def test_the_bias_before_a_batchnorm_and_the_key_bias_of_attention(self):
        class Attend(nn.Module):
            def __init__(self):
                super().__init__()
                self.attend, self.out = nn.MultiheadAttention(48, 4), nn.Linear(48, 4)

            def forward(self, x):
                return self.out(self.attend(x, x, x)[0])

        torch.manual_seed(0)
        normed = stack(6, nn.ReLU, between=[lambda: nn.BatchNorm1d(48)])
        for model, x in ((normed, torch.randn(64, 48)), (Attend(), torch.randn(6, 16, 48))):
            report = check(model, x)
            assert report.ok
            assert own(report) == []

    def test_a_frozen_beginning_is_left_out_and_the_rest_judged(self):
        torch.manual_seed(0)
        model, x = stack(12), torch.randn(64, 48)
        for p in model[:6].parameters():
            p.requires_grad_(False)
        report = check(model, x, select=BOTH)
        [found] = report.findings
        assert (found.layer, found.evidence["layers"]) == ("6", 8)
        assert report.unjudged == ()  # nothing there learns

    def test_what_runs_without_gradients_is_said_to_be_unseen(self):
        class Blind(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = stack(10)

            def forward(self, x):
                with torch.no_grad():
                    x = self.body[:6](x)
                return self.body[6:](x)

        torch.manual_seed(0)
        report = check(Blind(), torch.randn(64, 48), select=BOTH)
        assert [(f.rule, f.layer) for f in report.findings] == [(NAME, "body.6")]
        [unjudged] = report.unjudged
        assert unjudged.layer == "body.0"
        assert unjudged.reason.startswith("gradient not observed")
        assert unjudged.reason.endswith("in 3 of 10 layers")

    def test_checkpointed_layers_are_judged_where_their_gradients_are_seen(self):
        class Checkpointed(nn.Module):
            def __init__(self, reentrant):
                super().__init__()
                self.body, self.reentrant = stack(10), reentrant

            def forward(self, x):
                x = x.clone().requires_grad_()
                x = checkpoint(lambda z: self.body[:12](z), x, use_reentrant=self.reentrant)
                return self.body[12:](x)

        torch.manual_seed(0)
        seen = check(Checkpointed(False), torch.randn(64, 48), select=BOTH)
        assert [(f.severity, f.layer) for f in seen.findings] == [("error", "body.0")]
        unseen = check(Checkpointed(True), torch.randn(64, 48), select=BOTH)
        assert [f for f in unseen.findings if f.layer == "body.0"] == []
        assert [u.layer for u in unseen.unjudged] == ["body.0"]


class TestWhereAndWhy:
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
    def test_small_weights_in_the_middle_are_found_there(self, activation, seed):
        torch.manual_seed(seed)
        model, x = stack(8, activation), torch.randn(128, 48)
        assert check(model, x).ok
        model[6].weight.data.mul_(1e-4)
        report = check(model, x)
        [found] = own(report)
        assert found.layer == "6"
        assert "passes from 6 to 4" in found.message
        assert [(f.rule, f.layer) for f in rooted(report)] == [("init-scale", "6")]
        assert found.cause is report.findings[0]

    @pytest.mark.parametrize("seed", range(2))
    def test_a_saturated_layer_in_the_middle_is_found_there(self, seed):
        torch.manual_seed(seed)
        model, x = stack(8, nn.Tanh), torch.randn(128, 48)
        nn.init.constant_(model[6].bias, 7.0)
        report = check(model, x)
        [found] = own(report)
        assert found.layer == "6"
        assert "100 % of its values are saturated" in found.message
        assert [(f.rule, f.layer) for f in rooted(report)] == [("saturation", "7")]
        assert found.cause.rule == "saturation"

    def test_the_slope_is_the_reason_of_a_sigmoid_stack_and_leads(self):
        torch.manual_seed(0)
        report = check(stack(10), torch.randn(128, 48))
        assert [(f.rule, f.severity) for f in rooted(report)] == [(NAME, "error")]
        assert "The slope of sigmoid is 0.2" in report.findings[0].message
        assert report.findings[0].evidence["slope_share"] > 0.9

    def test_the_weights_are_the_reason_of_a_small_init(self):
        torch.manual_seed(0)
        model = stack(10, nn.ReLU)
        for m in model:
            if isinstance(m, nn.Linear):
                m.weight.data.mul_(0.3)
        report = check(model, torch.randn(128, 48))
        [found] = own(report)
        assert found.evidence["slope_share"] < 0.5
        assert "The gain of the weights (std · √fan-in) is 0.42; He init has 1.4." in found.message
        assert [f.rule for f in rooted(report)] == ["init-scale"]

    def test_dead_units_are_named_as_a_reason(self):
        torch.manual_seed(0)
        model = stack(6, nn.ReLU)
        with torch.no_grad():
            for k in (0, 2, 4, 6, 8):
                model[k].bias[:40] = -20.0
                model[k].weight[40:] *= 0.05
        report = check(model, torch.randn(128, 48))
        assert "were never active" in own(report)[0].message

    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
    def test_where_no_value_has_a_slope_the_gradient_is_zero_for_that_reason(self, activation):
        torch.manual_seed(0)
        model, x = stack(6, activation), torch.randn(128, 48)
        # tanh' is 1 - tanh², and exactly zero in float32 from z = 9.1 on
        nn.init.constant_(model[4].bias, 60.0 if activation is nn.Tanh else -60.0)
        if activation is nn.ReLU:
            for k in (6, 8, 10):
                nn.init.constant_(model[k].bias, 1.0)
        report = check(model, x)
        [found] = own(report)
        assert (found.severity, found.layer, found.evidence["total"]) == ("error", "4", 0.0)
        assert found.message == (
            "The gradient at 0 is exactly zero, 5 layers before 10. No value of 5 lies where "
            f"{activation.__name__.lower()} has a slope."
        )
        cause = "saturation" if activation is nn.Tanh else "dead-relu"
        assert [(f.rule, f.layer) for f in rooted(report)] == [(cause, "5")]


class TestUnderflow:
    """The one verdict here that concerns the loss as it is given."""

    @staticmethod
    def judged(model, dtype, scale):
        torch.manual_seed(0)
        model, x, y = model().to(dtype), torch.randn(128, 48).to(dtype), torch.arange(128) % 10
        return alone(model, x, target=y, loss_fn=lambda o, t: scale * F.cross_entropy(o, t))

    @pytest.mark.parametrize(
        ("dtype", "scale", "found"),
        [
            (torch.float16, 1.0, False),
            (torch.float16, 1e-4, True),
            (torch.bfloat16, 1e-4, False),
            (torch.float32, 1e-4, False),
            (torch.float32, 1e-30, False),
            (torch.float32, 1e-42, True),
            (torch.float64, 1e-42, False),
        ],
    )
    def test_gradients_at_the_end_of_their_format_are_a_warning(self, dtype, scale, found):
        findings = self.judged(lambda: stack(4, nn.ReLU), dtype, scale)
        assert [(f.severity, f.measure) for f in findings] == (
            [("warning", "steps")] if found else []
        )
        for f in findings:
            assert str(dtype).removeprefix("torch.") in f.message
            assert f.evidence["steps"] < f.threshold == 4
            assert "Scale the loss" in f.fixes[0].what

    def test_steps_are_counted_in_the_smallest_number_of_the_format(self):
        [found] = self.judged(lambda: stack(4, nn.ReLU), torch.float16, 1e-4)
        torch.manual_seed(0)
        model, x = stack(4, nn.ReLU).half(), torch.randn(128, 48).half()
        outputs = []
        model[0].register_forward_hook(lambda *a: outputs.append(a[2]))
        loss = 1e-4 * F.cross_entropy(model(x), torch.arange(128) % 10)
        [grad] = torch.autograd.grad(loss, outputs)
        grad = grad.double()[grad != 0]
        assert found.evidence["steps"] == pytest.approx(
            grad.square().mean().sqrt().item() / 2**-24, rel=0.1
        )

    def test_of_a_format_whose_smallest_number_is_not_known_nothing_is_said(self):
        torch.manual_seed(0)
        snapshot = check(stack(4, nn.ReLU), torch.randn(128, 48)).snapshot
        layers = tuple(replace(layer, dtype="float8_e5m2") for layer in snapshot.layers)
        judged = judge.judge(replace(snapshot, layers=layers), NAME)
        assert [o.status for o in judged.outcomes if o.rule == NAME] == ["passed"]

    def test_where_a_chain_underflows_to_zero_the_format_is_named(self):
        findings = self.judged(lambda: stack(12), torch.float16, 1.0)
        lead = findings[0]
        assert (lead.severity, lead.evidence["total"]) == ("error", 0.0)
        assert "smaller than float16 can hold" in lead.message
        assert all(f.cause is not None for f in findings[1:])
        same = self.judged(lambda: stack(12), torch.float32, 1.0)
        assert [f.severity for f in same] == ["error"]
        assert "exactly zero" not in same[0].message


class TestHealth:
    @pytest.mark.one_in(13)
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize(
        "activation",
        [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
         nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.RReLU],
    )  # fmt: skip
    @pytest.mark.parametrize("width", [16, 128])
    def test_four_plain_hidden_layers_at_torchs_init_are_quiet(self, activation, seed, width):
        torch.manual_seed(seed)
        layers = []
        for k in range(4):
            layers += [nn.Linear(width if k else 20, width), activation()]
        model = nn.Sequential(*layers, nn.Linear(width, 10))
        x, y = torch.randn(128, 20), torch.arange(128) % 10
        assert alone(model, x, target=y, loss_fn=F.cross_entropy) == ()

    @pytest.mark.parametrize("seed", range(2))
    def test_deep_networks_with_the_right_init_are_quiet(self, seed):
        torch.manual_seed(seed)
        orthogonal = stack(40, nn.Tanh)
        for m in orthogonal:
            if isinstance(m, nn.Linear):
                nn.init.orthogonal_(m.weight)
        for model in (orthogonal, stack(30, nn.ReLU, 128), stack(15, nn.Tanh)):
            assert alone(model, torch.randn(64, model[0].in_features)) == ()

    def test_networks_trained_on_digits_are_quiet(self):
        x, y = load_digits(return_X_y=True)
        x, y = torch.as_tensor(x, dtype=torch.float32) / 16, torch.as_tensor(y)
        for activation in (nn.ReLU, nn.Tanh, nn.GELU):
            torch.manual_seed(0)
            model = stack(4, activation, 64)
            optimiser = torch.optim.Adam(model.parameters(), 2e-3)
            for step in range(150):
                part = slice(step % 14 * 128, step % 14 * 128 + 128)
                optimiser.zero_grad()
                F.cross_entropy(model(x[part]), y[part]).backward()
                optimiser.step()
            assert (model(x).argmax(1) == y).double().mean() > 0.95
            assert alone(model, (x[:512], y[:512]), loss_fn=F.cross_entropy) == ()

    @pytest.mark.one_in(2)
    @pytest.mark.parametrize("activation", [nn.Tanhshrink, nn.Hardsigmoid])
    def test_what_is_not_quiet_at_torchs_init_does_not_learn_digits_either(self, activation):
        x, y = load_digits(return_X_y=True)
        x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
        x = (x - x.mean(0)) / (x.std(0) + 1.6)
        torch.manual_seed(0)
        layers = []
        for _ in range(4):
            layers += [nn.Linear(64, 64), activation()]
        model = nn.Sequential(*layers, nn.Linear(64, 10))
        found = alone(model, (x[:512], y[:512]), loss_fn=F.cross_entropy)
        assert [f.rule for f in found] == [NAME]
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(500):
            part = slice(step % 14 * 128, step % 14 * 128 + 128)
            optimiser.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
        assert (model(x).argmax(1) == y).double().mean() < 0.2

    def test_gradients_that_are_not_finite_are_not_judged(self):
        torch.manual_seed(0)
        model = stack(8)
        with torch.no_grad():
            model[8].weight[0, 0] = math.nan
        report = check(model, torch.randn(64, 48))
        assert [f.rule for f in rooted(report)] == ["non-finite"]
        assert own(report) == []
        assert np.isfinite([f.evidence.get("total", 0.0) for f in report.findings]).all()


@pytest.mark.parametrize("name", vanishing_gradient.SMALLEST)
def test_the_smallest_number_of_a_type_is_torchs(name):
    type_ = torch.finfo(getattr(torch, name))

    assert vanishing_gradient.SMALLEST[name] == type_.smallest_normal * type_.eps


class TestSoftmaxForAnActivation:
    def severities(self, *layers):
        torch.manual_seed(0)
        model = xavier(nn.Sequential(*layers))
        return [f.severity for f in alone(model, torch.randn(128, 48))]

    def test_two_between_hidden_layers_are_reported(self):
        softmax = nn.Linear(48, 96), nn.Softmax(1), nn.Linear(96, 96), nn.Softmax(1)
        assert self.severities(*softmax, nn.Linear(96, 10)) == ["warning"]
        relu = nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU()
        assert self.severities(*relu, nn.Linear(96, 10)) == []

    def test_one_may_be_an_attention_by_weight_layers(self):
        one = nn.Linear(48, 96), nn.Softmax(1), nn.Linear(96, 48), nn.ReLU()
        assert self.severities(*one, nn.Linear(48, 10)) == []
        assert self.severities(*one, nn.Linear(48, 10), nn.Softmax(1)) == []
