"""Dead units: by unit, with the confidence of the sample, held against a random layer's own."""

from __future__ import annotations

import itertools
import math
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import nndiag
from nndiag.numbers import number


class Call(nn.Module):
    def __init__(self, function, width=20):
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 4)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


# What has a flat side, as people write it.
FLAT_SIDED = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "nn.ReLU6": nn.ReLU6(),
    "nn.Hardswish": nn.Hardswish(),
    "nn.Threshold": nn.Threshold(0.0, 0.0),
    "nn.LeakyReLU(0)": nn.LeakyReLU(0.0),
    "nn.PReLU(0)": nn.PReLU(init=0.0),
    "nn.Hardtanh(0, 4)": nn.Hardtanh(0.0, 4.0),
    "F.relu": F.relu,
    "torch.relu_": torch.relu_,
    "x.relu()": lambda x: x.relu(),
    "x.clamp(min=0)": lambda x: x.clamp(min=0),
    "x.clamp_min(0)": lambda x: x.clamp_min(0),
    "torch.clip": lambda x: torch.clip(x, 0.0, 5.0),
    "F.relu6": F.relu6,
    "F.hardswish": F.hardswish,
    "squared": lambda x: F.relu(x) ** 2,
    "relu().square()": lambda x: x.relu().square(),
}
SLOPED = [
    nn.LeakyReLU(1e-3), nn.RReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU(), nn.Mish(),
    nn.Softplus(), nn.Tanhshrink(),
]  # fmt: skip


def check(model, batch, **options):
    return nndiag.check(model, batch, config=False, **options)


def own(report):
    return [f for f in report.findings if f.rule == "dead-relu"]


def alone(model, batch, **options):
    return own(check(model, batch, select="dead-relu", **options))


def alarms(report):
    return [f for f in own(report) if f.severity != "note"]


def dead_by_slope(function, z, units):
    """Units whose slope is zero on every value, by autograd alone; ``units`` is their axis."""
    z = z.detach().clone().requires_grad_()
    [slope] = torch.autograd.grad(function(z * 1.0).sum(), z)
    return (slope.movedim(units, 0).flatten(1) == 0).all(1)


def stack(depth, width=100, activation=nn.ReLU, he=True, norm=None, inputs=None):
    layers = []
    for k in range(depth):
        linear = nn.Linear(width if k or inputs is None else inputs, width)
        if he:
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, *([norm(width)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def digits(n=None):
    x, y = load_digits(return_X_y=True)
    return torch.as_tensor(x, dtype=torch.float32)[:n] / 16, torch.as_tensor(y)[:n]


class TestUnits:
    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("name", FLAT_SIDED)
    def test_whatever_has_a_flat_side_is_judged_unit_by_unit(self, name):
        torch.manual_seed(0)
        function, x = FLAT_SIDED[name], torch.randn(256, 20)
        model = Call(function)
        with torch.no_grad():
            model.first.bias[:9] = -25.0
        found = [f for f in alone(model, x) if f.severity == "warning"]
        expected = dead_by_slope(function, model.first(x), 1).sum().item()
        assert expected == 9
        assert [f.evidence["dead_units"] for f in found] == [9]
        assert "9 of 20 units were never active on 256 samples" in found[0].message

    @pytest.mark.parametrize("activation", SLOPED, ids=lambda a: type(a).__name__)
    def test_what_has_a_slope_everywhere_does_not_die(self, activation):
        torch.manual_seed(0)
        model = Call(activation)
        nn.init.constant_(model.first.bias, -25.0)
        report = check(model, torch.randn(128, 20), select="dead-relu")
        assert own(report) == []
        assert report.unjudged == ()

    def test_sparsity_is_no_death(self):
        # Each unit is active on one of 64 samples: 98 % zeros, and nobody dead.
        model = Call(F.relu)
        nn.init.eye_(model.first.weight)
        nn.init.zeros_(model.first.bias)
        x = torch.full((64, 20), -1.0)
        x[torch.arange(20), torch.arange(20)] = 1.0
        report = check(model, x, select="dead-relu")
        assert report.snapshot.by_name["/relu"].output.zero_fraction > 0.98
        assert own(report) == []

    @pytest.mark.parametrize("seed", range(2))
    def test_in_a_convolution_a_unit_is_a_channel_and_lives_by_one_pixel(self, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 36, 4))
        x = torch.randn(128, 3, 8, 8)
        with torch.no_grad():
            model[0].bias[:9] = -25.0
        expected = dead_by_slope(F.relu, model[0](x), 1)
        [found] = alarms(check(model, x, select="dead-relu"))
        assert found.evidence["dead_units"] == expected.sum().item() == 9
        with torch.no_grad():
            x[5, :, :3, :3] = 60.0 * model[0].weight[0].sign()
        [found] = alone(model, x)
        assert found.evidence["dead_units"] < 9

    def test_in_a_sequence_a_unit_is_a_feature_whatever_the_layout(self):
        class Layouts(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(6, 20), nn.Linear(20, 4)

            def forward(self, x):
                h = F.relu(self.first(x).transpose(1, 2))  # (N, C, T)
                return self.last(h.transpose(1, 2))

        torch.manual_seed(0)
        model, x = Layouts(), torch.randn(128, 5, 6)
        with torch.no_grad():
            model.first.bias[3:12] = -25.0
        [found] = alarms(check(model, x, select="dead-relu"))
        assert found.evidence["dead_units"] == 9

    # z ~ N(b, ‖w‖²) exactly, so that a unit is active with probability Φ(b / ‖w‖).
    @pytest.mark.parametrize(
        ("shift", "activity"), [(-1.0, 0.158655), (-2.0, 0.022750), (-6.0, 9.9e-10)]
    )
    def test_units_of_known_activity_are_dead_as_often_as_they_should_be(self, shift, activity):
        torch.manual_seed(0)
        n, width = 128, 400
        model = Call(F.relu, width)
        with torch.no_grad():
            model.first.bias.copy_(shift * model.first.weight.norm(dim=1))
        report = check(model, torch.randn(n, width), select="dead-relu")
        p = (1 - activity) ** n
        error = 5 * math.sqrt(p * (1 - p) / width) + 1e-3
        dead = report.snapshot.by_name["/relu"].flat.closed / width
        assert dead == pytest.approx(p, abs=error)
        if shift == -6.0:
            assert [f.severity for f in own(report)] == ["error"]

    def test_a_relu6_stuck_at_six_has_no_slope_either(self):
        torch.manual_seed(0)
        model = Call(F.relu6)
        with torch.no_grad():
            model.first.bias[:12] = 30.0
        [found] = alone(model, torch.randn(128, 20))
        assert found.severity == "warning"
        assert "12 of 20 units were never where relu6 has a slope" in found.message

    def test_a_rectifier_on_the_raw_input_has_no_weights_to_lose(self):
        model = nn.Sequential(nn.ReLU(), nn.Linear(20, 4))
        assert alone(model, -torch.rand(128, 20)) == []


class TestEvidence:
    @pytest.mark.parametrize("samples", [59, 100, 256])
    def test_the_bound_on_activity_is_said(self, samples):
        torch.manual_seed(0)
        model = Call(F.relu)
        nn.init.constant_(model.first.bias[:12], -25.0)
        [found] = alone(model, torch.randn(samples, 20))
        bound = 1 - 0.05 ** (1 / samples)  # exact one-sided binomial bound
        assert f"active on less than {number(bound, 'share')} of inputs" in found.message

    @pytest.mark.parametrize("samples", [1, 8, 32, 58])
    def test_too_few_samples_are_neither_health_nor_sickness(self, samples):
        torch.manual_seed(0)
        model = Call(F.relu)
        nn.init.constant_(model.first.bias, -25.0)
        report = check(model, torch.randn(samples, 20), select="dead-relu")
        assert own(report) == []
        [unjudged] = report.unjudged
        assert unjudged.layer == "/relu"
        given = "1 sample" if samples == 1 else f"{samples} samples"
        bound = number(1 - 0.05 ** (1 / samples), "share")
        assert f"with {given} this only shows an activity below {bound}" in unjudged.reason
        assert "give 59 samples or more" in unjudged.reason

    def test_a_unit_seen_active_needs_no_more_samples(self):
        torch.manual_seed(0)
        report = check(Call(F.relu), torch.randn(40, 20), select="dead-relu")
        assert (own(report), report.unjudged) == ([], ())

    def test_pixels_and_steps_are_no_samples(self):
        torch.manual_seed(0)
        images = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        steps = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
        for model, x in ((images, torch.randn(8, 3, 16, 16)), (steps, torch.randn(8, 100, 6))):
            model(x)
            nn.init.constant_(model[0].bias, -25.0)
            report = check(model, x, select="dead-relu")
            assert own(report) == []
            assert "with 8 samples this only shows" in report.unjudged[0].reason

    def test_batches_of_a_stream_add_up(self):
        torch.manual_seed(0)
        model = Call(F.relu)
        with torch.no_grad():
            model.first.weight.zero_()
            model.first.weight[:, 0] = 1.0
            model.first.bias.fill_(-3.0)
            model.first.bias[10:] = -300.0
        quiet, loud = torch.zeros(40, 20), torch.zeros(40, 20)
        loud[:, 0] = 5.0
        assert alone(model, [(quiet,)]) == []  # 40 samples
        [found] = alone(model, [(quiet,), (loud,)])
        assert found.evidence["dead_units"] == 10
        assert "on 80 samples" in found.message

    def test_where_the_unit_axis_is_lost_it_says_so(self):
        torch.manual_seed(0)
        model = Call(lambda h: F.relu(h.reshape(-1, 7)).reshape(-1, 21), 21)
        nn.init.constant_(model.first.bias, -25.0)
        report = check(model, torch.randn(128, 21), select="dead-relu")
        assert own(report) == []
        assert "reshape" in report.unjudged[0].reason


class TestSeverity:
    @pytest.mark.parametrize(("dead", "severity"), [(1, "note"), (40, "note"), (41, "warning")])
    def test_more_than_two_fifths_are_a_warning_and_less_a_note(self, dead, severity):
        torch.manual_seed(0)
        model = Call(F.relu, 100)
        with torch.no_grad():
            model.first.bias[:dead] = -40.0
        [found] = alone(model, torch.randn(256, 100))
        assert (found.severity, found.measure) == (severity, "share")
        assert found.evidence["share"] == dead / 100
        assert found.evidence["healthy_bound"] == 0

    def test_a_whole_layer_on_the_only_path_is_an_error(self):
        torch.manual_seed(0)
        model = stack(3)
        nn.init.constant_(model[2].bias, -60.0)
        report = check(model, torch.randn(128, 100))
        assert (report.findings[0].rule, report.findings[0].severity) == ("dead-relu", "error")
        assert report.findings[0].layer == "3"
        assert "The layers after it no longer depend on the input." in report.findings[0].message

    def test_a_whole_layer_beside_another_way_is_a_warning(self):
        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.down, self.out = (nn.Linear(20, 20) for _ in range(3))

            def forward(self, x):
                return self.out(x + self.down(F.relu(self.up(x))))

        torch.manual_seed(0)
        model = Residual()
        nn.init.constant_(model.up.bias, -25.0)
        [found] = alone(model, torch.randn(128, 20))
        assert (found.severity, found.layer) == ("warning", "/relu")

    def test_a_narrow_dead_bottleneck_is_an_error_even_where_chance_may_have_made_it(self):
        # Width 2 and ten layers deep, a He network is born dead as often as not.
        born_dead = 0
        for seed in range(10):
            torch.manual_seed(seed)
            model, x = stack(10, width=2), torch.randn(128, 2)
            with torch.no_grad():
                dead = model(x).std(0).max() == 0
            born_dead += bool(dead)
            errors = [f for f in alone(model, x) if f.severity == "error"]
            assert bool(errors) == bool(dead)
        assert born_dead >= 5

    def test_a_narrow_gate_that_chance_may_have_closed_is_no_alarm(self):
        class Squeeze(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.out = nn.Conv2d(3, 32, 3), nn.Linear(32, 4)
                self.down, self.up = nn.Linear(32, 2), nn.Linear(2, 32)

            def forward(self, x):
                h = F.relu(self.conv(x))
                gate = torch.sigmoid(self.up(F.relu(self.down(h.mean((2, 3))))))
                return self.out((h * gate[:, :, None, None]).mean((2, 3)))

        closed = 0
        for seed in range(20):
            torch.manual_seed(seed)
            report = check(Squeeze(), torch.randn(64, 3, 10, 10), select="dead-relu")
            closed += report.snapshot.by_name["/relu#2"].flat.closed == 2
            assert report.ok
        assert closed >= 2


class TestHealthyNull:
    """Random networks have never-active units; the deeper, the more."""

    @pytest.mark.one_in(11)
    @pytest.mark.parametrize("samples", [64, 128, 512])
    @pytest.mark.parametrize("seed", range(2))
    @pytest.mark.parametrize(
        "build",
        [
            lambda: stack(30),
            lambda: stack(10, he=False),  # torch's default: biases outweigh fading signals
            lambda: stack(20, norm=nn.LayerNorm, he=False),
            lambda: stack(20, norm=nn.BatchNorm1d, he=False),
            lambda: stack(8, norm=nn.BatchNorm1d, he=False).eval(),
            lambda: stack(20, width=24),
            lambda: stack(4, activation=lambda: Square(), he=False),
        ],
        ids=["He 30", "default 10", "LayerNorm", "BatchNorm", "BatchNorm eval", "narrow", "square"],
    )
    def test_deep_networks_at_their_init_are_no_alarm(self, build, samples, seed):
        torch.manual_seed(seed)
        model = build()
        x = torch.randn(samples, model[0].in_features)
        assert alarms(check(model, x, select="dead-relu")) == []

    @pytest.mark.parametrize("seed", range(3))
    def test_convolutions_at_their_init_are_no_alarm(self, seed):
        torch.manual_seed(seed)
        for channels, norm in ((1, None), (3, None), (3, nn.GroupNorm)):
            layers = []
            for k in range(8):
                layers.append(nn.Conv2d(16 if k else channels, 16, 3, padding=1))
                layers += [nn.GroupNorm(4, 16)] if norm else []
                layers.append(nn.ReLU())
            model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
            for x in (torch.rand(64, channels, 8, 8), torch.randn(64, channels, 8, 8)):
                assert alarms(check(model, x, select="dead-relu")) == []

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_small_and_large_inputs_are_no_alarm(self, scale):
        torch.manual_seed(0)
        x = scale * torch.randn(128, 100)
        assert alarms(check(stack(3, he=False), x, select="dead-relu")) == []

    @pytest.mark.parametrize("samples", [64, 512])
    @pytest.mark.parametrize("data", ["raw digits", "centred digits", "shifted noise"])
    def test_the_bound_covers_what_random_layers_show_on_the_same_inputs(self, data, samples):
        x, _ = digits(samples)
        if data == "centred digits":
            x = x - x.mean(0)
        elif data == "shifted noise":
            x = torch.randn(samples, 64, generator=torch.Generator().manual_seed(0)) + 4.0
        torch.manual_seed(0)
        model = Call(F.relu, 64)
        nn.init.zeros_(model.first.bias)
        with torch.no_grad():  # one dead unit at least, so that there is something to report
            model.first.weight[0] = -1.0 if data != "centred digits" else 0.0
        [found] = alone(model, x)

        weights = np.random.default_rng(0).normal(size=(500, 64, 64)).astype(np.float32)
        counts = ((weights @ x.numpy().T) <= 0).all(2).sum(1)
        unit = x / x.norm(dim=1, keepdim=True)
        cosine = (unit @ unit.T).fill_diagonal_(0).sum().item() / (samples * (samples - 1))
        assert found.evidence["input_correlation"] == pytest.approx(cosine, abs=1e-3)
        assert np.mean(counts > found.evidence["healthy_bound"]) <= 0.006
        assert found.evidence["healthy_bound"] <= counts.mean() + 8 * max(counts.std(), 1.0)

    def test_alike_inputs_excuse_what_unlike_ones_do_not(self):
        torch.manual_seed(0)
        model = Call(F.relu, 100)
        nn.init.zeros_(model.first.bias)
        alike = 10.0 + 0.3 * torch.randn(128, 100)
        with torch.no_grad():
            sums = model.first.weight.sum(1)
            model.first.weight[sums > 0] *= torch.where(torch.arange((sums > 0).sum()) < 5, -1, 1)[
                :, None
            ]
        [found] = alone(model, alike)
        assert found.evidence["share"] > 0.4
        assert found.severity == "note"
        assert f"at most {found.evidence['healthy_bound']:.0f}" in found.message
        with torch.no_grad():
            model.first.weight.copy_(-model.first.weight.abs())
        [found] = alone(model, alike)
        assert found.evidence["share"] == 1.0
        assert found.severity == "error"

    def test_of_inputs_that_cannot_be_compared_the_worst_case_is_assumed(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 36, 4))
        x = torch.rand(64, 1, 8, 8)
        with torch.no_grad():
            model[0].bias.zero_()
            model[0].weight.abs_()
            model[0].weight[:20] *= -1
            [half] = alone(model, x)
            model[0].weight[:35] = -model[0].weight[:35].abs()
            [most] = alone(model, x)
        assert (half.evidence["dead_units"], half.severity) == (20, "note")
        assert (most.evidence["dead_units"], most.severity) == (35, "warning")
        assert "however similar its inputs are" in most.message


class Square(nn.Module):
    def forward(self, x):
        return F.relu(x).square()


class TestTraining:
    @staticmethod
    def trained(activation, rate, seed=0, steps=200):
        """The net of a published dying-ReLU experiment: 32-100-100-100-10, He, on clusters."""
        torch.manual_seed(seed)
        centres = torch.randn(10, 32) * 2
        y = torch.arange(2000) % 10
        x = centres[y] + torch.randn(2000, 32)
        model = stack(3, activation=activation, inputs=32)
        optimiser = torch.optim.Adam(model.parameters(), rate)
        for _ in range(steps):
            part = torch.randint(0, 2000, (100,))
            optimiser.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
        return model, x, y

    @pytest.mark.parametrize("seed", range(2))
    def test_a_rate_of_a_tenth_kills_and_of_a_thousandth_does_not(self, seed):
        model, x, y = self.trained(nn.ReLU, 1e-3, seed)
        healthy = check(model, (x[:512], y[:512]), loss_fn=F.cross_entropy)
        assert alarms(healthy) == []
        model, x, y = self.trained(nn.ReLU, 0.1, seed)
        sick = check(model, (x[:512], y[:512]), loss_fn=F.cross_entropy)
        with torch.no_grad():
            dead = [(model[: k + 2](x[:512]) <= 0).all(0).sum().item() for k in (0, 2, 4)]
        expected = {str(k + 1): d for k, d in zip((0, 2, 4), dead, strict=True) if d > 40}
        assert {f.layer: f.evidence["dead_units"] for f in alarms(sick)} == expected
        assert "3" in expected

    def test_leaky_units_come_back_and_are_not_called_dead(self):
        model, x, y = self.trained(nn.LeakyReLU, 0.1)
        assert own(check(model, (x[:512], y[:512]), loss_fn=F.cross_entropy)) == []

    def test_a_few_dead_units_in_a_network_that_classifies_are_a_note(self):
        model, x, y = self.trained(nn.ReLU, 1e-2)
        assert (model(x).argmax(1) == y).double().mean() > 0.97
        report = check(model, (x[:512], y[:512]), loss_fn=F.cross_entropy)
        assert alarms(report) == []

    def test_digits_are_learned_without_an_alarm(self):
        x, y = digits()
        for scale in (1.0, 16.0):  # raw pixels, too: their mean pairwise cosine is 0.69
            torch.manual_seed(0)
            model = stack(3, width=64)
            given = scale * x
            assert alarms(check(model, given[:256], select="dead-relu")) == []
            optimiser = torch.optim.Adam(model.parameters(), 1e-3)
            for step in range(150):
                part = slice(step % 14 * 128, step % 14 * 128 + 128)
                optimiser.zero_grad()
                F.cross_entropy(model(given[part]), y[part]).backward()
                optimiser.step()
            assert (model(given).argmax(1) == y).double().mean() > 0.9
            assert alarms(check(model, given[:256], select="dead-relu")) == []

    def test_batchnorm_does_not_make_death_impossible(self):
        torch.manual_seed(0)
        model = stack(3, norm=nn.BatchNorm1d, he=False)
        with torch.no_grad():
            model[4].bias[:60] = -8.0
        [found] = alarms(check(model, torch.randn(128, 100)))
        assert (found.layer, found.evidence["dead_units"]) == ("5", 60)


class TestCauses:
    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("dead", [60, 100])
    def test_a_fault_in_the_middle_is_found_there_and_leads(self, seed, dead):
        torch.manual_seed(seed)
        model = stack(8)
        x = torch.randn(128, 100)
        assert check(model, x).ok
        with torch.no_grad():
            model[6].bias[:dead] -= 60.0
        report = check(model, x)
        assert (report.findings[0].rule, report.findings[0].layer) == ("dead-relu", "7")
        roots = [f for f in report.findings if f.cause is None and f.severity != "note"]
        assert roots == [report.findings[0]]

    def test_in_a_convolutional_network_too(self):
        torch.manual_seed(0)
        layers = []
        for k in range(5):
            layers += [nn.Conv2d(24 if k else 3, 24, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
        x = torch.randn(64, 3, 8, 8)
        assert check(model, x).ok
        nn.init.constant_(model[4].bias, -60.0)
        report = check(model, x)
        assert (report.findings[0].rule, report.findings[0].layer) == ("dead-relu", "5")
        assert [f for f in report.findings[1:] if f.severity != "note" and f.cause is None] == []

    def test_layers_before_a_dead_one_starve_and_are_not_called_dead(self):
        torch.manual_seed(0)
        model = stack(4)
        nn.init.constant_(model[6].bias, -60.0)
        report = check(model, torch.randn(128, 100))
        assert [f.layer for f in alarms(report)] == ["7"]
        starved = {f.layer for f in report.findings if f.rule == "no-gradient"}
        assert "0.weight" in starved
        assert all(f.cause is not None for f in report.findings if f.rule == "no-gradient")

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_of_a_network_with_nan_or_infinity_nothing_is_claimed(self, value):
        torch.manual_seed(0)
        model = stack(3)
        with torch.no_grad():
            model[2].bias[:60] = -60.0
            model[2].weight[99, 0] = value
        report = check(model, torch.randn(128, 100))
        assert alarms(report) == []
        assert [f.rule for f in report.findings if f.severity == "error"] == ["non-finite"]
        unjudged = {u.layer: u.reason for u in report.unjudged if u.rule == "dead-relu"}
        assert unjudged["3"] == "its outputs are not finite"


def test_after_batch_norm_units_are_off_on_all_samples_by_no_chance_however_alike_those_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    nn.init.constant_(model[1].bias[:36], -50.0)
    [found] = own(check(model, 10 + torch.randn(256, 20) / 10))

    assert found.severity == "warning"
    assert found.evidence["dead_units"] == 36
    assert found.evidence["healthy_bound"] < 5


def test_normalised_by_running_statistics_units_are_off_by_the_chance_that_their_inputs_give():
    torch.manual_seed(0)
    model = stack(1, norm=nn.BatchNorm1d).eval()
    nn.init.constant_(model[1].bias[:5], -25.0)
    x = torch.randn(1, 100) + 0.1 * torch.randn(128, 100)
    [found] = alone(model, x)

    u = F.normalize(x.double(), dim=1)
    cosines = (u @ u.T)[~torch.eye(128, dtype=torch.bool)]
    assert found.evidence["input_correlation"] == pytest.approx(cosines.mean().item(), rel=1e-4)


def test_a_tanh_that_is_stuck_at_its_bound_is_no_dead_relu():
    torch.manual_seed(0)
    model = Call(torch.tanh)
    nn.init.constant_(model.first.bias, -25.0)
    report = check(model, torch.randn(128, 20), select="dead-relu")

    assert report.snapshot.by_name["/tanh"].flat.closed == 20
    assert own(report) == []


@pytest.mark.parametrize("shifted", [True, False])
def test_biases_that_hold_units_down_are_told_and_set_to_zero(shifted):
    torch.manual_seed(0)
    model, x = Call(F.relu), torch.rand(256, 20)
    if shifted:
        nn.init.constant_(model.first.bias, -25.0)
    else:  # held down by its weights
        model.first.weight.data.abs_().mul_(-1)
        nn.init.constant_(model.first.bias, 0.01)
    [found] = alone(model, x)

    assert found.evidence["share"] == 1
    assert ("The biases before it average -25;" in found.message) == shifted
    assert ("reset-bias" in [fix.kind for fix in found.fixes]) == shifted


def healthy_at_init(seeds):
    """Torch's own layers on few features, one or two hidden layers of them."""
    kinds = {
        "binary": lambda d: torch.randint(0, 2, (256, d)).float(),
        "uniform": lambda d: torch.rand(256, d),
        "normal": lambda d: torch.randn(256, d),
    }
    for seed, features, width, (kind, draw), depth in itertools.product(
        seeds, (2, 3, 4, 6, 8), (8, 16, 32, 64), kinds.items(), (1, 2)
    ):
        name = f"{kind}-{features}-{width}-{depth}-{seed}"
        torch.manual_seed(zlib.crc32(name.encode()))
        layers = [nn.Linear(features, width), nn.ReLU()]
        if depth == 2:
            layers += [nn.Linear(width, width), nn.ReLU()]
        yield name, nn.Sequential(*layers, nn.Linear(width, 2)), draw(features)


def alarmed(networks):
    return [name for name, model, x in networks if not check(model, x).ok]


def test_few_features_are_no_alarm_at_torchs_own_initialisation():
    networks = [n for n in healthy_at_init((0,)) if n[0].startswith(("binary-2", "uniform-2"))]
    assert len(networks) == 16
    assert alarmed(networks) == []


@pytest.mark.exhaustive
def test_few_features_are_no_alarm_in_any_of_480():
    networks = list(healthy_at_init(range(4)))
    assert len(networks) == 480
    assert alarmed(networks) == []


@pytest.mark.parametrize("binary", [True, False])
def test_dead_units_on_few_features_are_an_alarm_all_the_same(binary):
    torch.manual_seed(0)
    x = torch.randint(0, 2, (256, 2)).float() if binary else torch.rand(256, 2)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    nn.init.constant_(model[0].bias[:48], -20.0)
    [found] = alone(model, x)
    assert found.severity == "warning"
    assert 0 < found.evidence["healthy_bound"] < 48


def test_the_draw_gives_the_share_of_random_units_that_are_off():
    torch.manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(32, 1)
    model = nn.Sequential(nn.Linear(2, 400), nn.ReLU(), nn.Linear(400, 2))
    facts = check(model, corners).snapshot.by_name["1"].facts
    share = facts["random_closed_count"] / facts["random_units_count"]
    fresh = nn.Linear(2, 100_000)
    truth = float((fresh(corners).amax(0) <= 0).float().mean())
    assert share == pytest.approx(truth, abs=0.03)
