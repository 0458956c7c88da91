"""init-scale: weights against what their fan-in and activation ask for, sentence by sentence."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import nndiag
from nndiag import judge
from nndiag.stats import Layer, Loss, Node, Parameter, Snapshot, TensorStats, Weight

NAME = "init-scale"


def he(layer, times=1.0):
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    with torch.no_grad():
        layer.weight.mul_(times)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def xavier(layer, times=1.0):
    nn.init.normal_(layer.weight, std=times * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def default(layer, times=1.0):
    with torch.no_grad():
        layer.weight.mul_(times)
    return layer


def mlp(depth, activation=nn.ReLU, init=he, width=64, inputs=32, times=None, bias=True):
    """``times``: layer number -> factor on its weights."""
    layers = []
    for k in range(depth):
        linear = nn.Linear(width if k else inputs, width, bias=bias)
        layers += [init(linear, (times or {}).get(k, 1.0)), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def findings(model, x, **options):
    rep = nndiag.check(model, x, select=NAME, config=False, **options)
    assert not [o for o in rep.outcomes if o.status == "crashed"]
    return list(rep.findings)


def severity(model, x):
    found = findings(model, x)
    assert len(found) <= 1
    return found[0].severity if found else None


class Functional(nn.Module):
    """The same chain without a single module inside."""

    def __init__(self, net):
        super().__init__()
        linears = [m for m in net if isinstance(m, nn.Linear)]
        self.weights = nn.ParameterList([m.weight for m in linears])

    def forward(self, x):
        for weight in self.weights[:-1]:
            x = F.relu(F.linear(x, weight))
        return x @ self.weights[-1].t()


def convolutions(depth=8, channels=32, times=None):
    layers = []
    for k in range(depth):
        conv = nn.Conv2d(channels if k else 3, channels, 3, padding=1)
        layers += [he(conv, (times or {}).get(k, 1.0)), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


FORMS = {
    "modules": (lambda times: mlp(8, times=times), lambda: torch.randn(128, 32), "8"),
    "functions": (
        lambda times: Functional(mlp(8, times=times)),
        lambda: torch.randn(128, 32),
        "/linear#5",
    ),
    "sequences": (lambda times: mlp(8, times=times), lambda: torch.randn(32, 7, 32), "8"),
    "convolutions": (
        lambda times: convolutions(times=times),
        lambda: torch.randn(16, 3, 8, 8),
        "8",
    ),
}


class TestOneLayerInTheMiddle:
    """Its weights are off, all others are He's: found there, by its factor."""

    @pytest.mark.one_in(9)
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        ("factor", "expected"),
        [
            (1 / 2000, "error"), (1 / 100, "warning"), (1 / 8, "note"), (1.0, None),
            (8, "note"), (100, "warning"), (2000, "error"),
        ],
    )  # fmt: skip
    def test_is_found_there_with_a_severity_by_its_factor(self, form, factor, expected):
        build, data, layer = FORMS[form]
        torch.manual_seed(0)
        model = build({4: factor})
        found = findings(model, data())

        assert [f.severity for f in found] == ([expected] if expected else [])
        for f in found:
            assert f.layer == layer
            assert f.evidence["times"] == pytest.approx(max(factor, 1 / factor), rel=0.25)
            assert ("too small" if factor < 1 else "too large") in f.message

    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("factor", [1 / 60, 60])
    @pytest.mark.parametrize("init", [he, default], ids=["he", "torch-default"])
    def test_leads_the_whole_report(self, seed, factor, init):
        torch.manual_seed(seed)
        model = mlp(4 if init is default else 8, init=init, width=128, times={3: factor})
        rep = nndiag.check(model, torch.randn(256, 32), config=False)

        roots = [f for f in rep.findings if f.cause is None and f.severity != "note"]
        if init is default and factor > 1:
            assert (
                rep.ok
            )  # three layers made it 2.45³ = 15 times too small: it comes out 1.7 × He's
        else:
            assert [(f.rule, f.layer) for f in roots] == [(NAME, "6")]

    def test_says_what_the_weights_are_and_what_they_should_be(self):
        torch.manual_seed(0)
        layers = [nn.Flatten()]
        for _ in range(3):
            layers += [xavier(nn.Linear(102, 102)), nn.Tanh()]
        with torch.no_grad():
            layers[3].weight.mul_(0.01 / layers[3].weight.square().mean().sqrt())
        [found] = findings(nn.Sequential(*layers, nn.Linear(102, 10)), torch.randn(200, 102))

        expected = (
            "The weights 3.weight are 9.9× too small for tanh: std 0.0100, Xavier gives 0.0990"
        )
        assert found.message.startswith(expected)
        assert found.fixes[0].code() == (
            'nn.init.normal_(model.get_parameter("3.weight"), std=102 ** -0.5)'
        )


class TestDefaultInit:
    """torch's own nn.Linear: σ = 1/√(3 n), 2.45 times less than He's."""

    @pytest.mark.one_in(13)
    @pytest.mark.parametrize("activation", [
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
        nn.Mish, nn.Hardswish, nn.Softplus, nn.Tanh, nn.Hardtanh, nn.Softsign, nn.LogSigmoid,
    ])  # fmt: skip
    @pytest.mark.parametrize("bias", [True, False])
    def test_is_a_note_at_most_up_to_four_hidden_layers_of_any_width(self, activation, bias):
        for depth, width in itertools.product((1, 4), (8, 16, 64)):
            torch.manual_seed(width)
            model = mlp(depth, activation, default, width, bias=bias)
            assert severity(model, torch.randn(64, 32)) in ("note", None)

    @pytest.mark.one_in(7)
    @pytest.mark.parametrize("width", [8, 12, 16])
    @pytest.mark.parametrize("seed", range(12))
    def test_is_no_warning_in_narrow_networks_by_the_chance_of_the_draw(self, width, seed):
        torch.manual_seed(seed)
        model = mlp(4, nn.GELU, default, width, bias=False)
        assert severity(model, torch.randn(64, 32)) in ("note", None)

    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
    @pytest.mark.parametrize("width", [32, 128])
    @pytest.mark.parametrize(("depth", "expected"), [(5, "warning"), (6, "warning"), (12, "error")])
    def test_accumulates_beyond_whether_or_not_there_are_biases(
        self, activation, width, depth, expected
    ):
        # Biases keep the pooled scale up while the signal is gone; they are taken out.
        for bias in (True, False):
            torch.manual_seed(1)
            model = mlp(depth, activation, default, width, bias=bias)
            [found] = findings(model, torch.randn(128, 32))
            assert (found.severity, found.layer) == (expected, "0")

    @pytest.mark.parametrize("width", [64, 256])
    def test_accounts_for_every_layer_of_a_deep_network_with_biases(self, width):
        torch.manual_seed(0)
        [found] = findings(mlp(10, init=default, width=width), torch.randn(256, 32))
        assert "The same holds for 9 more of 10 layers." in found.message
        assert math.log(found.evidence["accumulated"]) == pytest.approx(
            9 * math.log(math.sqrt(6)), rel=0.12
        )

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
    def test_leads_what_follows_from_it(self, seed, activation):
        torch.manual_seed(seed)
        rep = nndiag.check(mlp(10, activation, default), torch.randn(256, 32), config=False)
        roots = {f.rule for f in rep.findings if f.cause is None and f.severity != "note"}
        assert roots == {NAME}
        assert {"vanishing-gradient", "signal-collapse"} <= {
            f.rule for f in rep.findings if f.cause is rep.findings[0]
        }


class TestHealthyInit:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_few_channels_of_the_input_are_no_chance_of_the_draw(self, channels):
        # What is drawn are the hidden layers; an image has one channel or three by itself.
        torch.manual_seed(0)
        layers = []
        for k in range(6):
            layers += [he(nn.Conv2d(32 if k else channels, 32, 3, padding=1)), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 64, 10))
        x = torch.randn(64, channels, 8, 8)
        assert [f for f in findings(model, x) if f.severity != "note"] == []
        with torch.no_grad():
            model[4].weight.div_(30)
        [found] = findings(model, x)
        assert (found.layer, found.severity) == ("4", "warning")

    @pytest.mark.parametrize("width", [10, 20, 50])
    @pytest.mark.parametrize("seed", range(4))
    def test_he_is_quiet_however_narrow(self, width, seed):
        # Finite width alone moves the last layer's scale by a factor 5 at width 10 (Hanin & Nica).
        torch.manual_seed(seed)
        assert severity(mlp(10, width=width), torch.randn(64, 32)) is None

    @pytest.mark.parametrize(
        ("activation", "init"),
        [(nn.Tanh, xavier), (nn.SELU, xavier), (nn.ELU, he), (nn.LeakyReLU, he), (nn.GELU, he)],
    )
    def test_the_matching_init_is_quiet_over_ten_layers(self, activation, init):
        torch.manual_seed(0)
        assert severity(mlp(10, activation, init), torch.randn(128, 32)) is None

    @pytest.mark.parametrize("init", [nn.init.xavier_uniform_, nn.init.orthogonal_])
    def test_other_ways_to_draw_the_same_scale_are_quiet(self, init):
        torch.manual_seed(0)
        model = mlp(10, nn.Tanh)
        for layer in model[:-1:2]:
            init(layer.weight)
        assert severity(model, torch.randn(128, 32)) is None

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_the_verdict_is_the_same_in_other_number_formats(self, dtype):
        torch.manual_seed(0)
        x = torch.randn(128, 32)
        healthy, sick = mlp(8).to(dtype), mlp(8, times={4: 0.01}).to(dtype)
        assert severity(healthy, x.to(dtype)) is None
        assert severity(sick, x.to(dtype)) == "warning"


class TestSoundPropagation:
    """It is not guessed whether a model is trained: what propagates is at most a note."""

    @pytest.mark.one_in(3)
    @pytest.mark.parametrize(
        ("activation", "depth", "scale"),
        [(nn.ReLU, 3, 1.0), (nn.Tanh, 3, 1.0), (nn.GELU, 4, 1.0), (nn.ReLU, 3, 16.0),
         (nn.Tanh, 3, 16.0)],
    )  # fmt: skip
    def test_networks_trained_on_digits_are_at_most_a_note(self, activation, depth, scale):
        digits = load_digits()
        x = torch.tensor(digits.data, dtype=torch.float32) / 16 * scale
        y = torch.tensor(digits.target)
        torch.manual_seed(0)
        model = mlp(depth, activation, default, inputs=64)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(250):
            rows = slice(step * 128 % 1408, step * 128 % 1408 + 128)
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        assert severity(model, x[1400:]) in ("note", None)

    @pytest.mark.parametrize("times", [1e-3, 0.05, 20, 1e3])
    def test_first_weights_that_make_up_for_the_inputs_scale_are_sound(self, times):
        torch.manual_seed(0)
        model = mlp(6, times={0: times})
        assert severity(model, torch.randn(128, 32) / times) is None

    @pytest.mark.parametrize("times", [0.1, 10])
    def test_first_weights_that_make_up_for_half_of_the_inputs_scale_are_sound_too(self, times):
        torch.manual_seed(0)
        model = mlp(6, times={0: times})
        assert severity(model, torch.randn(128, 32) / times**2) is None

    @pytest.mark.parametrize("times", [0.01, 1e-4])
    def test_small_first_weights_whose_biases_keep_the_scale_up_are_not(self, times):
        torch.manual_seed(0)
        model = mlp(4, init=default, times={0: times})
        [found] = findings(model, torch.randn(128, 32))
        assert found.layer == "0"
        assert found.severity in ("warning", "error")

    def test_large_inputs_saturate_by_themselves_and_the_weights_are_not_blamed(self):
        torch.manual_seed(0)
        model = mlp(3, nn.Tanh, xavier, times={0: 1.6, 1: 1.6, 2: 1.6})
        assert severity(model, 20 * torch.randn(128, 32)) == "note"

    def test_a_layer_eight_times_larger_before_one_eight_times_smaller(self):
        torch.manual_seed(0)
        model = mlp(8, times={3: 8.0, 4: 1 / 8})  # the same function, layer by layer
        assert severity(model, torch.randn(128, 32)) == "note"


class TestSaturatingActivations:
    @pytest.mark.parametrize("activation", [nn.Tanh, nn.Hardtanh, nn.Softsign])
    @pytest.mark.parametrize("times", [60, 3000])
    def test_large_weights_are_found_though_the_output_is_bounded(self, activation, times):
        torch.manual_seed(0)
        [found] = findings(mlp(6, activation, xavier, times={3: times}), torch.randn(128, 32))
        assert found.layer == "6"
        assert found.severity == ("warning" if times < 1000 else "error")

    def test_what_saturates_for_the_size_of_its_weights_is_a_warning(self):
        torch.manual_seed(0)
        # z of std 9 · 0.6: 0.69 of tanh's values lie where its slope is under 5 % (tables)
        model = mlp(6, nn.Tanh, xavier, times={0: 9.0})
        [found] = findings(model, torch.randn(128, 32))
        assert (found.severity, found.measure) == ("warning", "saturated")
        assert found.evidence["saturated"] > found.threshold
        assert "of the activation's values saturate" in found.message

    def test_what_saturates_for_its_biases_is_not_laid_to_the_weights(self):
        torch.manual_seed(0)
        model = mlp(6, nn.Tanh, xavier, times={2: 1.8})
        with torch.no_grad():
            model[4].bias.copy_(20.0 * (1 - 2 * (torch.arange(64) % 2)))
        rep = nndiag.check(model, torch.randn(128, 32), config=False)
        alarms = [f for f in rep.findings if f.severity != "note"]
        assert (alarms[0].rule, alarms[0].layer) == ("saturation", "5")
        assert NAME not in {f.rule for f in alarms}

    def test_and_a_note_where_it_does_not(self):
        torch.manual_seed(0)
        model = mlp(6, nn.Tanh, xavier, times={0: 4.0})
        [found] = findings(model, torch.randn(128, 32))
        assert (found.severity, found.measure) == ("note", "times")

    def test_a_wide_net_of_unit_weights_explodes_backwards(self):
        # σ_w² E φ'² at σ_w = √256: 3.0 a layer, though forward all is bounded
        torch.manual_seed(0)
        model = mlp(8, nn.Tanh, xavier, width=256, inputs=256, times=dict.fromkeys(range(8), 16.0))
        [found] = findings(model, torch.randn(256, 256))
        z_std = 16 * 0.98
        chi = 256 * 0.532 / z_std  # E φ'² of tanh tends to 0.532 / s (tables)
        assert math.log(found.evidence["accumulated"]) == pytest.approx(
            7 * math.log(math.sqrt(chi)), rel=0.1
        )
        assert found.severity == "error"


class Residual(nn.Module):
    def __init__(self, std, norm=True, blocks=6, width=64):
        super().__init__()
        self.stem = nn.Linear(32, width)
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if norm else nn.Identity() for _ in range(blocks)
        )
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        for layer in (*self.up, *self.down):
            nn.init.normal_(layer.weight, std=std)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(x)


class Attention(nn.Module):
    def __init__(self, std):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)
        for name, p in self.named_parameters():
            if p.dim() > 1 and "head" not in name:
                nn.init.normal_(p, std=std)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


class Recurrence(nn.Module):
    """One linear layer, applied eight times."""

    def __init__(self, std):
        super().__init__()
        self.cell, self.head = nn.Linear(32, 32), nn.Linear(32, 10)
        nn.init.normal_(self.cell.weight, std=std)

    def forward(self, x):
        for _ in range(8):
            x = torch.tanh(self.cell(x))
        return self.head(x)


class TestWhereScaleDoesNotAccumulate:
    @pytest.mark.parametrize("std", [0.001, 0.02, 0.5])
    @pytest.mark.parametrize("norm", [True, False])
    def test_residual_branches_are_at_most_one_note(self, std, norm):
        torch.manual_seed(0)
        assert severity(Residual(std, norm), torch.randn(128, 32)) in ("note", None)

    def test_many_branches_share_one_note_that_counts_them(self):
        torch.manual_seed(0)
        [found] = findings(Residual(0.001), torch.randn(128, 32))
        assert "The same holds for 5 more places." in found.message

    @pytest.mark.parametrize("std", [0.001, 0.02, 1.0])
    def test_normalised_layers_are_quiet(self, std):
        layers = []
        torch.manual_seed(0)
        for k in range(8):
            layers += [nn.Linear(64 if k else 32, 64), nn.BatchNorm1d(64), nn.ReLU()]
            nn.init.normal_(layers[-3].weight, std=std)
        model = nn.Sequential(*layers, nn.Linear(64, 10))
        assert severity(model, torch.randn(128, 32)) is None

    @pytest.mark.parametrize("std", [0.002, 0.02, 0.2])
    def test_transformers_of_any_std_are_at_most_a_note(self, std):
        torch.manual_seed(0)
        assert severity(Attention(std), torch.randint(0, 50, (64, 12))) in ("note", None)

    @pytest.mark.parametrize("std", [0.01, 1.0])
    def test_one_module_called_repeatedly_is_time_and_no_depth(self, std):
        torch.manual_seed(0)
        assert severity(Recurrence(std), torch.randn(128, 32)) is None

    def test_embeddings_have_no_fan_in_to_be_off_from(self):
        torch.manual_seed(0)
        embedding = nn.Embedding(50, 32)
        nn.init.normal_(embedding.weight, std=1e-3)
        model = nn.Sequential(embedding, nn.Flatten(), he(nn.Linear(96, 64)), nn.ReLU(),
                              nn.Linear(64, 10))  # fmt: skip
        assert severity(model, torch.randint(0, 50, (64, 3))) is None


class TestOutputLayers:
    """How large a head starts is a choice."""

    @pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Softplus])
    @pytest.mark.parametrize("times", [1e-3, 0.01, 100])
    def test_an_activation_at_the_output_makes_no_hidden_layer_of_it(self, activation, times):
        torch.manual_seed(0)
        model = nn.Sequential(*mlp(4)[:-1], xavier(nn.Linear(64, 10), times), activation())
        assert severity(model, torch.randn(128, 32)) in ("note", None)

    def test_heads_beside_each_other_are_outputs_too(self):
        class TwoHeads(nn.Module):
            def __init__(self):
                super().__init__()
                self.trunk = mlp(2)[:-1]
                self.policy, self.value = he(nn.Linear(64, 4), 0.01), he(nn.Linear(64, 1), 1e-3)

            def forward(self, x):
                h = self.trunk(x)
                return torch.tanh(self.policy(h)), F.softplus(self.value(h))

        torch.manual_seed(0)
        assert severity(TwoHeads(), torch.randn(128, 32)) in ("note", None)

    def test_an_output_off_as_the_layers_before_it_counts_with_them(self):
        torch.manual_seed(0)
        model = mlp(3, times=dict.fromkeys(range(3), 0.1))[:-1]  # ends in ReLU: 0.1³
        [found] = findings(model, torch.randn(128, 32))
        assert found.evidence["accumulated"] == pytest.approx(100, rel=0.3)


class TestLayersWithoutActivation:
    """They are judged where another layer follows: nothing between makes up for their scale."""

    @pytest.mark.parametrize(("times", "expected"), [(0.01, "warning"), (100, "warning"),
                                                     (1e-4, "error"), (1.0, None)])  # fmt: skip
    def test_a_linear_bottleneck_is_found(self, times, expected):
        torch.manual_seed(0)
        model = nn.Sequential(
            he(nn.Linear(32, 64)), nn.ReLU(), xavier(nn.Linear(64, 16), times),
            he(nn.Linear(16, 64)), nn.ReLU(), nn.Linear(64, 32),
        )  # fmt: skip
        found = findings(model, torch.randn(128, 32))
        assert [(f.layer, f.severity) for f in found] == ([("2", expected)] if expected else [])
        for f in found:
            assert "for a layer without activation" in f.message

    def test_a_deep_linear_network_at_torchs_default_loses_its_signal(self):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64, bias=False) for _ in range(12)]
        [found] = findings(nn.Sequential(*layers), torch.randn(128, 64))
        assert found.severity == "warning"
        assert found.evidence["accumulated"] == pytest.approx(3 ** (10 / 2), rel=0.2)

    def test_an_orthogonal_one_keeps_it(self):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64, bias=False) for _ in range(12)]
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
        assert findings(nn.Sequential(*layers), torch.randn(128, 64)) == []

    @pytest.mark.parametrize("std", [0.0, 1e-4, 0.1])
    def test_an_output_layer_is_none_of_them(self, std):
        torch.manual_seed(0)
        model = mlp(3)
        nn.init.normal_(model[-1].weight, std=std)
        assert findings(model, torch.randn(128, 32)) == []


class TestConvolutions:
    @pytest.mark.parametrize("kernel", [3, 7])
    def test_zero_padding_is_part_of_the_prediction(self, kernel):
        # On 3 × 3 maps only 3 of 7 taps a side meet a pixel: (3/7)² of the second moment arrives.
        torch.manual_seed(0)
        padded = he(nn.Conv2d(32, 32, kernel, padding=kernel // 2), 20.0)
        model = nn.Sequential(he(nn.Conv2d(32, 32, 1)), nn.ReLU(), padded, nn.ReLU(),
                              nn.Conv2d(32, 8, 1))  # fmt: skip
        x = torch.randn(64, 32, 3, 3)
        [found] = findings(model, x)
        assert (found.severity, found.layer) == ("warning", "2")
        assert found.evidence["times"] == pytest.approx(20, rel=0.2)

        arriving = model[1](model[0](x))
        patches = F.unfold(arriving, kernel, padding=kernel // 2)  # taken apart by hand
        predicted = patches.square().mean() * 32 * kernel**2 * padded.weight.square().mean()
        assert padded(arriving).var().item() == pytest.approx(predicted.item(), rel=0.25)

    @pytest.mark.parametrize("times", [1.0, 50.0])
    @pytest.mark.parametrize(
        ("layer", "shape", "fan_in"),
        [
            (lambda: nn.ConvTranspose2d(32, 32, 4, 2, 1), (16, 32, 8, 8), 32 * 4),
            (lambda: nn.Conv2d(32, 32, 3, padding=1, groups=4), (16, 32, 8, 8), 8 * 9),
            (lambda: nn.Conv2d(32, 32, 3, padding=2, dilation=2), (16, 32, 8, 8), 32 * 9),
            (lambda: nn.Conv1d(32, 32, 5, padding="same"), (32, 32, 20), 32 * 5),
            (lambda: nn.Conv3d(8, 16, 3, padding=1, padding_mode="circular"), (4, 8, 4, 4, 4), 216),
        ],
        ids=["transposed", "grouped", "dilated", "1d", "3d-circular"],
    )
    def test_each_kind_is_judged_by_its_own_fan_in(self, layer, shape, fan_in, times):
        torch.manual_seed(0)
        conv = layer()
        nn.init.normal_(conv.weight, std=times * math.sqrt(2 / fan_in))
        nn.init.zeros_(conv.bias)
        follow = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
        model = nn.Sequential(conv, nn.ReLU(), follow(conv.out_channels, 4, 1))
        found = findings(model, torch.randn(shape))
        assert [f.severity for f in found] == (["warning"] if times > 1 else [])
        for f in found:
            assert f.evidence["reference_std"] == pytest.approx(math.sqrt(2 / fan_in), rel=1e-6)

    def test_pooling_and_dropout_between_layers_are_looked_through(self):
        torch.manual_seed(0)
        layers = []
        for k in range(6):
            conv = he(nn.Conv2d(16 if k else 3, 16, 3, padding=1), 0.3)
            layers += [conv, nn.ReLU(), nn.MaxPool2d(2, 1), nn.Dropout(0.1)]
        model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))
        x = torch.randn(16, 3, 16, 16)
        model(x)
        [found] = findings(model, x)
        assert (found.severity, found.layer) == ("warning", "0")
        assert "The same holds for 5 more of 6 layers." in found.message


# -- on numbers made by hand ------------------------------------------------------------------


def stats(std, count=1_000_000, mean=0.0):
    return TensorStats(1000, count, 0, 0, 0, mean, std * std * count, -3 * std, 3 * std)


def chain(offs, width=2000, last="relu"):
    """Layers of exactly known scale: He weights times ``offs``, inputs of second moment one."""
    layers, nodes, parameters = [], [Node("input")], []
    for k, off in enumerate(offs):
        act = "relu" if k + 1 < len(offs) else last
        gain = {"relu": math.sqrt(2), "tanh": 1.0}[act]
        weight_std = off * gain / math.sqrt(width)
        z = stats(off * gain)
        parameters.append(
            Parameter(f"{k}.weight", (width, width), "float32", True, stats(weight_std, width**2))
        )
        nodes.append(Node("linear", (len(nodes) - 1,), len(layers)))
        layers.append(
            Layer(f"{k}", "Linear", "linear", (1000, width), len(nodes) - 1, z, stats(1.0),
                  weight=Weight(f"{k}.weight", None, width, width))
        )  # fmt: skip
        nodes.append(Node(act, (len(nodes) - 1,), len(layers)))
        layers.append(Layer(f"{k}a", "function", act, (1000, width), len(nodes) - 1, stats(1.0), z))
    nodes.append(Node("linear", (len(nodes) - 1,), len(layers)))
    layers.append(
        Layer("head", "Linear", "linear", (1000, 10), len(nodes) - 1, stats(1.0), stats(1.0),
              weight=Weight("head.weight", None, width, 10))
    )  # fmt: skip
    parameters.append(Parameter("head.weight", (10, width), "float32", True, stats(0.02)))
    return Snapshot(
        "Net", tuple(layers), tuple(nodes), tuple(parameters), {"input": stats(1.0)}, Loss("none"),
        1000, 1, outputs=(len(nodes) - 1,),
    )  # fmt: skip


def judged(snapshot, thresholds=None):
    return judge.judge(snapshot, NAME, thresholds=thresholds).findings


class TestBoundaries:
    @pytest.mark.parametrize(
        ("off", "expected"),
        [
            (1.49, None), (1.51, "note"), (15.8, "note"), (16.3, "warning"), (990, "warning"),
            (1015, "error"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("direction", [1, -1])
    def test_of_one_layer(self, off, expected, direction):
        found = judged(chain([1.0, 1.0, off**direction, 1.0]))
        assert [f.severity for f in found] == ([expected] if expected else [])
        for f in found:
            assert f.layer == "2"
            assert f.evidence["times"] == pytest.approx(off)
            assert f.evidence["accumulated"] == pytest.approx(off)

    @pytest.mark.parametrize(
        ("each", "expected"),
        [(1.45, None), (1.57, "note"), (1.60, "warning"), (3.1, "warning"), (3.25, "error")],
    )
    @pytest.mark.parametrize("direction", [1, -1])
    def test_of_a_factor_that_accumulates_over_six_layers_behind_the_first(
        self, each, expected, direction
    ):
        # 1.587⁶ = 16 and 3.162⁶ = 1000
        found = judged(chain([each**direction] * 7))
        assert [f.severity for f in found] == ([expected] if expected else [])
        for f in found:
            assert f.evidence["accumulated"] == pytest.approx(each**6, rel=1e-6)
            assert f.threshold == {"note": 1.5, "warning": 16, "error": 16}[expected]

    def test_weights_and_what_they_do_must_be_off_alike(self):
        snapshot = chain([1.0, 1.0, 1.0])
        small = Parameter("1.weight", (2000, 2000), "float32", True, stats(1e-4, 4_000_000))
        parameters = (snapshot.parameters[0], small, *snapshot.parameters[2:])
        object.__setattr__(snapshot, "parameters", parameters)
        assert judged(snapshot) == ()  # tiny weights, yet the output has the scale it should have

    def test_the_worst_layer_counts_not_the_last(self):
        [found] = judged(chain([1.0, 30.0, 1.0, 1 / 30, 1.0]))
        assert found.evidence["accumulated"] == pytest.approx(30, rel=1e-6)

    def test_thresholds_are_the_users(self):
        snapshot = chain([1.0, 1.0, 20.0])
        assert [f.severity for f in judged(snapshot)] == ["warning"]
        assert [f.severity for f in judged(snapshot, {"init-scale.accumulated": 25})] == ["note"]
        assert [f.severity for f in judged(snapshot, {"init-scale.stall": 15})] == ["error"]

    @pytest.mark.parametrize("width", [4, 8, 16])
    def test_the_fewer_weights_the_more_chance_is_allowed(self, width):
        # The std of k weights varies by 1/√(2k): 18 % at 4 × 4.
        assert [f.severity for f in judged(chain([1.0, 1.0, 16.5, 1.0], width))] == ["note"]
        assert [f.severity for f in judged(chain([1.0, 1.0, 500.0, 1.0], width))] == ["warning"]

    @pytest.mark.parametrize("width", [16, 32])
    @pytest.mark.parametrize(("beyond", "expected"), [(0.98, "note"), (1.02, "warning")])
    def test_the_chance_of_all_draws_of_weights_adds_up(self, width, beyond, expected):
        # Four draws of k weights, each with 1/√(2k): 3.29 · √(4 / 2k) at 99.9 %.
        chance = math.exp(3.29 * math.sqrt(4 / (2 * width**2)))
        [found] = judged(chain([1.0, 1.0, 16 * chance * beyond, 1.0], width))
        assert found.severity == expected

    @pytest.mark.parametrize(("off", "expected"), [(100.0, "note"), (200.0, "warning")])
    def test_the_chance_of_a_narrow_chain_is_that_of_the_activation_it_begins_with(
        self, off, expected
    ):
        # By ReLU's band eight layers of 8 units may be off 138 times, by tanh's only 4 times.
        offs = [1.0] * 4 + [1 / off] + [1.0] * 4
        [found] = judged(chain(offs, width=8, last="tanh"))
        assert found.severity == expected

    def test_an_output_layer_whose_weights_were_not_measured_changes_nothing(self):
        snapshot = chain([1.0, 1.0, 20.0])
        unseen = replace(snapshot, parameters=snapshot.parameters[:-1])
        [found] = judged(unseen)
        assert (found.layer, found.severity) == ("2", "warning")


@pytest.mark.parametrize("size", [8, 64, 1000])
@pytest.mark.parametrize(("times", "expected"), [({}, None), ({3: 0.02}, "warning")])
def test_the_verdict_does_not_depend_on_the_size_of_the_batch(size, times, expected):
    torch.manual_seed(0)
    assert severity(mlp(6, times=times), torch.randn(size, 32)) == expected


def test_layers_without_a_signal_are_left_to_the_rules_that_report_them():
    torch.manual_seed(0)
    zero = mlp(4, times={2: 0.0})
    dead = mlp(4)
    nn.init.constant_(dead[2].bias, -100.0)
    for model in (zero, dead):
        assert severity(model, torch.randn(64, 32)) in ("note", None)
