"""The lecture's ten-layer experiment and its consequences, measured by ``nndiag.check``.

CS231n 2017 lecture 6 ("Training Neural Networks I"), slides 44-50: 1000 inputs of 500 features from
N(0, 1), ten hidden layers of 500 units, no biases. The slides print mean and std of each layer's
outputs. Tolerances are five times the standard deviation over 100 seeds of each layer's std, around
the infinite-width prediction (mean-field recursion, Poole et al. 2016), which the slide's own
numbers meet too.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

import nndiag
from nndiag import theory
from nndiag.activations import named

DEPTH, WIDTH, SAMPLES = 10, 500, 1000
SCALES = {
    "tanh 0.01": (nn.Tanh, 0.01),
    "tanh 1.0": (nn.Tanh, 1.0),
    "tanh Xavier": (nn.Tanh, 1 / math.sqrt(WIDTH)),
    "relu Xavier": (nn.ReLU, 1 / math.sqrt(WIDTH)),
    "relu He": (nn.ReLU, math.sqrt(2 / WIDTH)),
    "relu 0.01": (nn.ReLU, 0.01),
    "sigmoid Xavier": (nn.Sigmoid, 1 / math.sqrt(WIDTH)),
    "sigmoid 1.0": (nn.Sigmoid, 1.0),
    "tanh default": (nn.Tanh, None),
    "relu default": (nn.ReLU, None),
    "sigmoid default": (nn.Sigmoid, None),
    "tanh typo": (nn.Tanh, 1 / math.sqrt(2 / WIDTH)),
}

# Per layer: the slide's std, its mean, the relative standard deviation of std over 100 seeds.
SLIDES = {
    "tanh 0.01": (  # slide 45
        [0.213081, 0.047551, 0.010630, 0.002378, 0.000532,
         0.000119, 0.000026, 0.000006, 0.000001, 0.0],
        [0.0] * 10,
        [0.0019, 0.0032, 0.0042, 0.0052, 0.0058,
         0.0063, 0.0069, 0.0072, 0.0081, 0.0085],
    ),
    "tanh 1.0": (  # slide 47
        [0.981879, 0.981649, 0.981601, 0.981755, 0.981614,
         0.981560, 0.981520, 0.981913, 0.981728, 0.981736],
        [0.0] * 10,
        [0.00013] * 10,
    ),
    "tanh Xavier": (  # slide 48
        [0.627953, 0.486051, 0.407723, 0.357108, 0.320917,
         0.292116, 0.273387, 0.254935, 0.239266, 0.228008],
        [0.0] * 10,
        [0.0011, 0.0017, 0.0022, 0.0027, 0.0032,
         0.0037, 0.0041, 0.0045, 0.0055, 0.0058],
    ),
    "relu Xavier": (  # slide 49
        [0.582273, 0.403795, 0.276912, 0.198685, 0.140299,
         0.103280, 0.072748, 0.051572, 0.038583, 0.026076],
        [0.398623, 0.272352, 0.186076, 0.136442, 0.099568,
         0.072234, 0.049775, 0.035138, 0.025404, 0.018408],
        [0.0023, 0.0202, 0.0364, 0.0476, 0.0573,
         0.0696, 0.0764, 0.0872, 0.0928, 0.0973],
    ),
    "relu He": (  # slide 50
        [0.825232, 0.827835, 0.813855, 0.826902, 0.834092,
         0.860035, 0.870610, 0.889348, 0.845357, 0.844523],
        [0.562488, 0.553614, 0.545867, 0.565396, 0.547678,
         0.587103, 0.596867, 0.623214, 0.567498, 0.552531],
        [0.0023, 0.0202, 0.0364, 0.0476, 0.0573,
         0.0696, 0.0764, 0.0872, 0.0928, 0.0973],
    ),
}  # fmt: skip

# ‖δ_1‖ / ‖δ_10‖ over 20 seeds, smallest and largest (float64; a fixed random head).
GRADIENTS = {
    "tanh 0.01": (1.317e-06, 1.356e-06),
    "tanh 1.0": (7.0e4, 7.9e4),
    "tanh Xavier": (0.278, 0.286),
    "relu Xavier": (0.0416, 0.0488),
    "relu He": (0.942, 1.104),
    "relu 0.01": (5.8e-08, 6.8e-08),
    "sigmoid Xavier": (1.97e-06, 2.07e-06),
    "sigmoid 1.0": (23.3, 29.7),
    "tanh default": (0.00525, 0.00538),
    "relu default": (2.85e-04, 3.48e-04),
    "sigmoid default": (2.12e-08, 2.19e-08),
}


def network(case, depth=DEPTH, seed=0):
    activation, std = SCALES[case]
    torch.manual_seed(seed)
    layers = []
    for _ in range(depth):
        linear = nn.Linear(WIDTH, WIDTH, bias=False)  # torch's default init is U(±1/√n)
        if std is not None:
            nn.init.normal_(linear.weight, std=std)
        layers += [linear, activation()]
    return nn.Sequential(*layers), torch.randn(SAMPLES, WIDTH), torch.randn(SAMPLES, WIDTH)


@functools.cache
def report(case, depth=DEPTH, seed=0):
    model, x, head = network(case, depth, seed)
    return nndiag.check(model, x, loss_fn=lambda out: (out * head).sum(), config=False)


def activations(rep):
    return [layer for layer in rep.snapshot.layers if layer.kind in ("Tanh", "ReLU", "Sigmoid")]


def pre_activations(rep):
    return [layer for layer in rep.snapshot.layers if layer.kind == "Linear"]


def predicted(case):
    activation, std = SCALES[case]
    act = named(activation.__name__.lower())
    return theory.recursion(act, std * math.sqrt(WIDTH), DEPTH)


def alarms(rep):
    return [(f.rule, f.severity) for f in rep.findings if f.cause is None and f.severity != "note"]


@pytest.mark.parametrize("case", SLIDES)
@pytest.mark.parametrize("layer", range(DEPTH))
def test_each_layers_std_and_mean_are_the_slides(case, layer):
    slide_std, slide_mean, spread = (column[layer] for column in SLIDES[case])
    expected = predicted(case)[layer].output
    measured = activations(report(case))[layer].output

    assert measured.std == pytest.approx(expected.std, rel=5 * spread)
    assert slide_std == pytest.approx(expected.std, rel=5 * spread, abs=5.1e-7)
    assert measured.mean == pytest.approx(
        expected.mean, abs=5 * max(spread, 0.001) * expected.std + 6e-3
    )
    assert slide_mean == pytest.approx(
        expected.mean, abs=6 * max(spread, 0.001) * expected.std + 2e-3
    )


@pytest.mark.parametrize("case", GRADIENTS)
def test_the_gradient_over_the_depth_is_the_tables(case):
    rows = pre_activations(report(case))
    low, high = GRADIENTS[case]
    room = 1.15 if case.startswith("relu") else 1.04  # one seed of float32 more than those 20

    assert low / room < rows[0].grad.rms / rows[-1].grad.rms < high * room


class TestVerdicts:
    def test_weights_of_a_hundredth_are_an_init_fault_and_all_else_follows(self):
        rep = report("tanh 0.01")
        assert alarms(rep) == [("init-scale", "error")]
        assert rep.findings[0].layer == "0"
        assert "4.5× too small for tanh: std 0.0100, Xavier gives 0.0447" in rep.findings[0].message
        assert "vanishing-gradient" in {f.rule for f in rep.findings if f.cause is rep.findings[0]}

    def test_weights_of_one_saturate_and_explode_and_do_not_vanish(self):
        rep = report("tanh 1.0")
        rules = {f.rule: f for f in rep.findings if f.severity != "note"}
        assert alarms(rep) == [("init-scale", "error")]
        assert {"saturation", "exploding-gradient"} <= set(rules)
        assert "vanishing-gradient" not in rules
        assert rules["exploding-gradient"].evidence["per_layer"] == pytest.approx(3.48, rel=0.02)
        # The lecture's "zero gradients" is true of the typical unit only.
        assert rules["exploding-gradient"].evidence["median_over_rms"] < 1e-6
        assert rules["saturation"].evidence["share"] == pytest.approx(0.9224, abs=0.005)

    @pytest.mark.one_in(5)
    @pytest.mark.parametrize("case", ["tanh Xavier", "relu He"])
    @pytest.mark.parametrize("seed", range(3))
    def test_the_two_right_inits_are_healthy(self, case, seed):
        rep = report(case, seed=seed)
        assert rep.ok
        assert alarms(rep) == []

    def test_xavier_with_relu_is_a_warning_over_ten_layers(self):
        rep = report("relu Xavier")
        assert alarms(rep) == [("init-scale", "warning")]
        assert rep.findings[0].evidence["accumulated"] == pytest.approx(2**4.5, rel=0.1)

    @pytest.mark.parametrize(
        ("depth", "severity"),
        [(2, "note"), (3, "note"), (4, "note"), (5, "warning"), (10, "error")],
    )
    def test_torchs_default_init_with_relu_is_a_note_up_to_four_layers(self, depth, severity):
        rep = report("relu default", depth)
        [found] = [f for f in rep.findings if f.rule == "init-scale"]
        assert found.severity == severity
        assert found.evidence["times"] == pytest.approx(math.sqrt(6), rel=0.03)
        assert found.evidence["accumulated"] == pytest.approx(
            math.sqrt(6) ** max(depth - 1, 1), rel=0.25
        )
        assert rep.ok == (severity == "note")

    @pytest.mark.parametrize("case", ["sigmoid Xavier", "sigmoid default"])
    def test_a_sigmoid_stack_vanishes_by_its_slopes(self, case):
        rep = report(case)
        assert alarms(rep) == [("vanishing-gradient", "error")]
        assert rep.findings[0].evidence["per_layer"] == pytest.approx(
            {"sigmoid Xavier": 0.233, "sigmoid default": 0.141}[case], rel=0.02
        )
        assert "slope of sigmoid" in rep.findings[0].message

    def test_the_mistyped_he_line_is_found_with_its_factor(self):
        # randn / sqrt(2 / fan_in), found in two public notes: std 15.8 for 0.0447
        rep = report("tanh typo")
        assert alarms(rep) == [("init-scale", "error")]
        assert rep.findings[0].evidence["times"] == pytest.approx(WIDTH / math.sqrt(2), rel=0.02)


class TestTraps:
    """What a naive instrument gets wrong, each known from measurement."""

    def test_weight_gradients_stay_equal_while_the_gradient_vanishes(self):
        rep = report("relu default")
        norms = [p.grad.norm for p in rep.snapshot.parameters]
        assert norms[0] / norms[-1] == pytest.approx(1.0, abs=0.25)  # Glorot & Bengio 2010, eq. 14
        assert "vanishing-gradient" in {f.rule for f in rep.findings if f.severity != "note"}

    def test_the_pooled_std_of_a_sigmoid_stack_hides_that_its_signal_is_gone(self):
        last = activations(report("sigmoid Xavier"))[-1].output
        assert last.std == pytest.approx(0.1212, rel=0.1)
        assert last.spread < 2e-6
        found = [f for f in report("sigmoid Xavier").findings if f.rule == "signal-collapse"]
        assert [f.severity for f in found] == ["error"]

    def test_the_spread_across_samples_of_he_layers_falls_as_the_kernel_says(self):
        c, rows = 0.0, activations(report("relu He"))
        for row in rows:
            c = theory.correlation_map(c)
            assert row.output.spread == pytest.approx(math.sqrt(max(1 - c, 0)), rel=0.2)

    @pytest.mark.one_in(4)
    @pytest.mark.parametrize("samples", [128, 256, 1000])
    @pytest.mark.parametrize("seed", range(3))
    def test_the_never_active_units_of_a_deep_he_network_are_no_alarm(self, samples, seed):
        model, x, _ = network("relu He", seed=seed)
        rep = nndiag.check(model, x[:samples], select="dead-relu", config=False)
        dead = activations(rep)[-1].flat.closed / WIDTH
        assert dead > {128: 0.09, 256: 0.08, 1000: 0.04}[samples]  # theory: 0.146, 0.125, 0.093
        assert rep.ok
        for f in rep.findings:
            assert f.evidence["dead_units"] <= f.evidence["healthy_bound"]

    def test_half_of_all_outputs_being_zero_hides_a_collapse(self):
        rows = activations(report("relu 0.01"))
        assert all(abs(row.output.zero_fraction - 0.5) < 0.06 for row in rows)
        assert rows[-1].output.std < 2e-8
        assert alarms(report("relu 0.01")) == [("init-scale", "error")]

    def test_a_nan_network_is_not_said_to_have_dead_units(self):
        model, x, _ = network("relu He", depth=3)
        with torch.no_grad():
            model[2].weight[0, 0] = math.nan
        rep = nndiag.check(model, x, config=False)
        assert alarms(rep) == [("non-finite", "error")]
        assert [f for f in rep.findings if f.rule == "dead-relu" and f.layer != "1"] == []

    @pytest.mark.parametrize("activation", [nn.LeakyReLU(0.01), nn.ELU(), nn.GELU(), nn.PReLU()])
    def test_what_has_a_slope_on_both_sides_is_never_dead(self, activation):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 50), activation, nn.Linear(50, 2))
        nn.init.constant_(model[0].bias, -3.0)
        rep = nndiag.check(model, torch.randn(512, 20) / 4, config=False)
        assert [f for f in rep.findings if f.rule == "dead-relu"] == []

    def test_a_bias_before_batchnorm_has_no_gradient_and_no_fault(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 2))
        rep = nndiag.check(model, torch.randn(256, 20), config=False)
        bias, weight = rep.snapshot.parameter["0.bias"], rep.snapshot.parameter["0.weight"]
        assert bias.grad.rms < 1e-6 * weight.grad.rms * 1e2
        assert rep.ok

    def test_a_selu_network_with_lecun_init_is_healthy(self):
        torch.manual_seed(0)
        layers = []
        for _ in range(10):
            layers += [nn.Linear(200, 200), nn.SELU()]
            nn.init.normal_(layers[-2].weight, std=200**-0.5)
            nn.init.zeros_(layers[-2].bias)
        rep = nndiag.check(
            nn.Sequential(*layers, nn.Linear(200, 10)), torch.randn(256, 200), config=False
        )
        assert rep.ok
        assert "init-scale" not in {f.rule for f in rep.findings}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("case", ["tanh 0.01", "relu Xavier", "sigmoid Xavier", "relu He"])
def test_verdicts_do_not_depend_on_the_scale_of_the_loss(case, factor):
    model, x, head = network(case)
    scaled = nndiag.check(model, x, loss_fn=lambda out: factor * (out * head).sum(), config=False)

    assert alarms(scaled) == alarms(report(case))
    assert [(f.rule, f.layer) for f in scaled.findings] == [
        (f.rule, f.layer) for f in report(case).findings
    ]
