"""The theory against the lecture's printed numbers, torch, scipy, closed forms and simulation."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from effort import tried
from hypothesis import given
from hypothesis import strategies as st

from nndiag import activations, theory
from nndiag.theory import moments

# Every activation by name and options, with torch's own function as the oracle.
TORCH = [
    ("abs", {}, torch.abs),
    ("celu", {}, F.celu),
    ("celu", {"alpha": 0.5}, lambda z: F.celu(z, 0.5)),
    ("clamp", {"min": -0.7}, lambda z: z.clamp(min=-0.7)),
    ("clamp", {"max": 1.2}, lambda z: z.clamp(max=1.2)),
    ("clamp", {"min": -0.7, "max": 1.2}, lambda z: z.clamp(-0.7, 1.2)),
    ("clamp", {"min": 0.0, "max": 4.0}, lambda z: z.clamp(0, 4)),
    ("cos", {}, torch.cos),
    ("elu", {}, F.elu),
    ("elu", {"alpha": 2.0}, lambda z: F.elu(z, 2.0)),
    ("erf", {}, torch.erf),
    ("exp", {}, torch.exp),
    ("gelu", {}, F.gelu),
    ("gelu", {"approximate_tanh": 1.0}, lambda z: F.gelu(z, approximate="tanh")),
    ("hardshrink", {}, F.hardshrink),
    ("hardshrink", {"lambd": 1.3}, lambda z: F.hardshrink(z, 1.3)),
    ("hardsigmoid", {}, F.hardsigmoid),
    ("hardswish", {}, F.hardswish),
    ("hardtanh", {}, F.hardtanh),
    ("hardtanh", {"min_val": -2.0, "max_val": 0.5}, lambda z: F.hardtanh(z, -2.0, 0.5)),
    ("identity", {}, lambda z: z * 1),
    ("leaky_relu", {}, F.leaky_relu),
    ("leaky_relu", {"negative_slope": 0.2}, lambda z: F.leaky_relu(z, 0.2)),
    ("linear", {}, lambda z: z * 1),
    ("logsigmoid", {}, F.logsigmoid),
    ("mish", {}, F.mish),
    ("prelu", {}, lambda z: F.prelu(z, z.new_tensor([0.25]))),
    ("prelu", {"weight": 0.6}, lambda z: F.prelu(z, z.new_tensor([0.6]))),
    ("relu", {}, F.relu),
    ("relu6", {}, F.relu6),
    ("rrelu", {}, lambda z: F.rrelu(z, training=False)),
    ("rrelu", {"lower": 0.1, "upper": 0.5}, lambda z: F.rrelu(z, 0.1, 0.5, training=False)),
    ("selu", {}, F.selu),
    ("sigmoid", {}, torch.sigmoid),
    ("silu", {}, F.silu),
    ("sin", {}, torch.sin),
    ("softplus", {}, F.softplus),
    ("softplus", {"beta": 3.0, "threshold": 2.0}, lambda z: F.softplus(z, 3.0, 2.0)),
    ("softshrink", {}, F.softshrink),
    ("softshrink", {"lambd": 1.3}, lambda z: F.softshrink(z, 1.3)),
    ("softsign", {}, F.softsign),
    ("square", {}, torch.square),
    ("tanh", {}, torch.tanh),
    ("tanhshrink", {}, F.tanhshrink),
    ("threshold", {"threshold": 0.3, "value": -1.0}, lambda z: F.threshold(z, 0.3, -1.0)),
]
CASES = [(name, options) for name, options, _ in TORCH]


def label(case):
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


every_activation = pytest.mark.parametrize("case", CASES, ids=label)


def named(name, **options):
    act = activations.named(name, **options)
    assert act is not None
    return act


def of(case):
    return named(case[0], **case[1])


# --- the activations -----------------------------------------------------------------------------


def test_every_activation_has_an_oracle_here():
    assert {name for name, _ in CASES} == set(activations.BUILDERS)


@pytest.mark.parametrize(("name", "options", "function"), TORCH, ids=map(label, TORCH))
def test_value_and_slope_are_those_of_torch(name, options, function):
    act = named(name, **options)
    z = (
        torch.arange(-160, 161, dtype=torch.float64) / 16 + 0.013
    ).requires_grad_()  # off the kinks
    out = function(z)
    out.sum().backward()

    np.testing.assert_allclose(act.phi(z.detach().numpy()), out.detach().numpy(), 1e-9, 1e-13)
    # 1e-7: torch divides by six in float32 in the slope of hardsigmoid, whatever the dtype
    np.testing.assert_allclose(act.slope(z.detach().numpy()), z.grad.numpy(), 1e-7, 1e-13)


def test_an_unknown_name_is_none():
    assert activations.named("swishish") is None


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="slope"):
        activations.named("relu", slope=0.1)


def test_the_same_activation_is_built_once():
    assert activations.named("elu", alpha=2.0) is activations.named("elu", alpha=2.0)
    assert activations.named("linear") == activations.named("linear")


@every_activation
def test_flat_is_where_the_slope_is_nothing_or_under_five_percent_of_its_maximum(case):
    act = of(case)
    z = np.linspace(-12, 12, 48_001) + 1e-5
    slope = np.abs(act.slope(z))
    inside = np.zeros_like(z, dtype=bool)
    for low, high in act.flat:
        inside |= (low <= z) & (z <= high)

    if act.family == "saturating":
        np.testing.assert_array_equal(inside, slope < activations.SATURATED_SLOPE * slope.max())
        assert act.flat[0][0] == -math.inf
        assert act.flat[-1][1] == math.inf
    elif act.family == "rectifier":
        np.testing.assert_array_equal(inside, slope == 0)
        assert inside.any()
    else:
        assert act.flat == ()


@pytest.mark.parametrize(
    ("name", "edge"),
    [("sigmoid", 4.3565), ("tanh", 2.1783), ("softsign", math.sqrt(20) - 1), ("hardtanh", 1.0)],
)
def test_saturation_begins_where_the_slope_is_down_to_five_percent(name, edge):
    assert named(name).flat == (
        (-math.inf, pytest.approx(-edge, abs=5e-5)),
        (pytest.approx(edge, abs=5e-5), math.inf),
    )


@pytest.mark.parametrize(
    ("case", "family"),
    [
        (("relu", {}), "rectifier"),
        (("relu6", {}), "rectifier"),
        (("hardswish", {}), "rectifier"),
        (("clamp", {"min": 0.0, "max": 3.0}), "rectifier"),
        (("clamp", {"min": -1.0}), "rectifier"),
        (("clamp", {"max": 1.0}), "rectifier"),
        (("clamp", {"min": -1.0, "max": 1.0}), "saturating"),
        (("clamp", {}), "linear"),
        (("hardtanh", {}), "saturating"),
        (("hardtanh", {"min_val": 0.0, "max_val": 6.0}), "rectifier"),
        (("sigmoid", {}), "saturating"),
        (("erf", {}), "saturating"),
        (("gelu", {}), "smooth"),
        (("leaky_relu", {}), "smooth"),
        (("identity", {}), "linear"),
        (("sin", {}), "other"),
    ],
    ids=str,
)
def test_family_is_told_by_which_sides_are_flat(case, family):
    assert of(case).family == family


@pytest.mark.parametrize(
    ("name", "gain", "whose"),
    [
        ("linear", 1, "Xavier"),  # CS231n 2017 lecture 6 slide 48
        ("tanh", 1, "Xavier"),
        ("sigmoid", 1, "Xavier"),
        ("selu", 1, "LeCun"),
        ("relu", math.sqrt(2), "He"),  # CS231n 2017 lecture 6 slide 50
        ("gelu", math.sqrt(2), "He"),
        ("leaky_relu", 1.414143, "He"),
        ("prelu", 1.371989, "He"),
        ("elu", 1.245198, "He"),
        ("softplus", 1.041867, "He"),
    ],
)
def test_reference_gain_is_the_one_in_use_for_the_activation(name, gain, whose):
    act = named(name)
    assert act.gain == pytest.approx(gain, abs=1e-6)
    assert theory.reference_name(act) == whose


@every_activation
def test_reference_gain_is_a_usable_number(case):
    assert 0.1 < of(case).gain < 10


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "linear"])
def test_gain_agrees_with_torch_where_torch_knows_one(name):
    assert named(name).gain == pytest.approx(torch.nn.init.calculate_gain(name))


# --- moments -------------------------------------------------------------------------------------

# At z ~ N(0, 1), by an independent quadrature to six digits:
# E phi, std phi, E phi^2, |mean|/std, E phi'^2, gain forward, gain backward
AT_UNIT_SCALE = [
    ("linear", {}, 0, 1, 1, 0, 1, 1, 1),
    ("relu", {}, 0.398942, 0.583819, 0.5, 0.683332, 0.5, 1.414214, 1.414214),
    ("leaky_relu", {}, 0.394953, 0.586568, 0.500050, 0.673328, 0.500050, 1.414143, 1.414143),
    (
        "leaky_relu",
        {"negative_slope": 0.2},
        *(0.319154, 0.646638, 0.52, 0.493559, 0.52, 1.386750, 1.386750),
    ),
    ("prelu", {}, 0.299207, 0.664624, 0.53125, 0.450189, 0.53125, 1.371989, 1.371989),
    ("elu", {}, 0.160521, 0.786879, 0.644945, 0.203997, 0.668102, 1.245198, 1.223429),
    ("selu", {}, 0, 1, 1, 0, 1.071575, 1, 0.966026),
    ("tanh", {}, 0, 0.627929, 0.394294, 0, 0.464403, 1.592537, 1.467414),
    ("sigmoid", {}, 0.5, 0.208276, 0.293379, 2.400657, 0.044836, 1.846229, 4.722646),
    ("gelu", {}, 0.282095, 0.587915, 0.425221, 0.479822, 0.455851, 1.533530, 1.481114),
    ("silu", {}, 0.206621, 0.559538, 0.355776, 0.369270, 0.379482, 1.676532, 1.623320),
    ("softplus", {}, 0.806059, 0.521071, 0.921246, 1.546929, 0.293379, 1.041867, 1.846229),
    ("softsign", {}, 0, 0.427801, 0.183014, 0, 0.227671, 2.337533, 2.095781),
    ("mish", {}, 0.240404, 0.628131, 0.452342, 0.382729, 0.479084, 1.486848, 1.444755),
    ("hardtanh", {}, 0, 0.718372, 0.516059, 0, 0.682689, 1.392036, 1.210287),
]


@pytest.mark.parametrize("row", AT_UNIT_SCALE, ids=label)
def test_moments_and_gains_at_unit_scale(row):
    name, options, mean, std, second, ratio, slope_second, forward, backward = row
    act = named(name, **options)
    got = moments(act, 1.0)

    assert got.mean == pytest.approx(mean, abs=1e-6)
    assert got.std == pytest.approx(std, abs=1e-6)
    assert got.second == pytest.approx(second, abs=1e-6)
    assert abs(got.mean) / got.std == pytest.approx(ratio, abs=5e-6)
    assert got.slope_second == pytest.approx(slope_second, abs=1e-6)
    assert theory.gain_forward(act) == pytest.approx(forward, abs=5e-6)
    assert theory.gain_variance(act) == pytest.approx(1 / std, abs=1e-5)
    assert theory.gain_backward(act) == pytest.approx(backward, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "by_std"),
    [
        ("sigmoid", (0.0625, 0.056035, 0.044836, 0.029025, 0.020751, 0.012970, 0.006607, 0.002970)),
        ("tanh", (1, 0.717380, 0.464403, 0.255950, 0.174229, 0.105706, 0.053107, 0.023781)),
        ("silu", (0.25, 0.300308, 0.379482, 0.466425, 0.494865, 0.507432, 0.507154, 0.503702)),
        ("gelu", (0.25, 0.355685, 0.455851, 0.506045, 0.511235, 0.509498, 0.505400, 0.502496)),
        ("selu", (2.0974, 1.360502, 1.071575, 0.843801, 0.752214, 0.674098, 0.613488, 0.579546)),
        ("elu", (1, 0.761578, 0.668102, 0.594411, 0.564779, 0.539507, 0.519898, 0.508916)),
    ],
)
def test_mean_squared_slope_as_the_scale_grows(name, by_std):
    for std, expected in zip((1e-8, 0.5, 1, 2, 3, 5, 10, 500**0.5), by_std, strict=True):
        got = moments(named(name), std).slope_second
        assert got == pytest.approx(expected, abs=5e-5 if expected > 2 else 1e-6), std


def test_mean_squared_slope_of_a_saturated_unit_falls_like_one_over_the_scale():
    # integral of sech^4 is 4/3, of (s(1-s))^2 is 1/6, both times the density at zero
    for std in (100.0, 1000.0):
        at_zero = 1 / math.sqrt(2 * math.pi) / std
        assert moments(named("tanh"), std).slope_second == pytest.approx(at_zero * 4 / 3, rel=1e-4)
        assert moments(named("sigmoid"), std).slope_second == pytest.approx(at_zero / 6, rel=1e-3)


@pytest.mark.parametrize(
    ("std", "tanh", "sigmoid"),
    [
        (0.5, 0.0000, 0),
        (1, 0.0294, 0.0000),
        (1.5, 0.1465, 0.0037),
        (2, 0.2761, 0.0294),
        (3, 0.4678, 0.1465),
        (5, 0.6631, 0.3836),
        (10, 0.8276, 0.6631),
        (22.36, 0.9224, 0.8455),
    ],
)
def test_saturated_share_by_scale(std, tanh, sigmoid):
    assert moments(named("tanh"), std).flat_share == pytest.approx(tanh, abs=6e-5)
    assert moments(named("sigmoid"), std).flat_share == pytest.approx(sigmoid, abs=6e-5)


@pytest.mark.parametrize(
    ("bias", "active"),
    [(-1, 0.158655), (-2, 0.022750), (-3, 0.00134990), (-4, 3.17e-05), (-6, 9.9e-10)],
)
def test_active_share_of_a_biased_unit(bias, active):
    assert 1 - moments(named("relu"), 1.0, bias).flat_share == pytest.approx(
        active, rel=4e-3, abs=0
    )
    assert moments(named("relu"), 2.0, -2.0 * bias).flat_share == pytest.approx(
        active, rel=4e-3, abs=0
    )


scales = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)
offsets = st.floats(-3, 3)


@tried(150)
@given(case=st.sampled_from(CASES), std=scales, offset=offsets)
def test_moments_agree_with_a_naive_sum_over_a_million_points(case, std, offset):
    act = of(case)
    if act.name in ("exp", "sin", "cos"):  # a naive sum resolves these for moderate scales only
        std = min(std, 2.0)
    mean = offset * std
    t = np.linspace(-14, 14, 1_000_001)
    weight = np.exp(-t * t / 2) * (t[1] - t[0]) / math.sqrt(2 * math.pi)
    z = mean + std * t
    out, slope = act.phi(z), act.slope(z)
    expected = float(weight @ out)
    second = float(weight @ out**2)
    flat = np.zeros_like(z, dtype=bool)
    for low, high in act.flat:
        flat |= (low <= z) & (z <= high)

    got = moments(act, std, mean)

    # a step between two points costs the naive sum a share of its tail: 14 std at 2.8e-5 apiece
    scale = math.sqrt(second)
    assert got.mean == pytest.approx(expected, rel=1e-4, abs=1e-4 * scale + 1e-40)
    assert got.second == pytest.approx(second, rel=1e-3, abs=1e-40)
    spread = math.sqrt(float(weight @ (out - expected) ** 2))
    assert got.std == pytest.approx(spread, rel=1e-3, abs=1e-9 * scale + 1e-20)
    stepped = act.family == "rectifier" or act.name in ("clamp", "hardtanh", "hardsigmoid")
    assert got.slope_second == pytest.approx(
        float(weight @ slope**2), rel=1e-3, abs=1e-4 if stepped else 1e-40
    )
    assert got.flat_share == pytest.approx(float(weight @ flat), abs=1e-4)


@pytest.mark.parametrize("std", [1e-8, 1e-3, 0.3, 1.0, 7.0, 1e3])
@pytest.mark.parametrize("name", ["softsign", "mish", "softplus", "tanh", "silu", "selu"])
def test_moments_agree_with_adaptive_quadrature(name, std):
    act = named(name)
    cuts = np.array([-20, *(-(2.0 ** np.arange(13, -3, -1))), 0, *2.0 ** np.arange(-2, 14), 20])
    cuts[1:-1] /= std
    edges = np.unique(np.clip(cuts, -20, 20))

    def expected(function):
        def integrand(t):
            z = np.array([std * t])
            return float(function(z)[0]) * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

        return sum(
            scipy.integrate.quad(integrand, low, high, epsabs=0, epsrel=1e-9, full_output=1)[0]
            for low, high in itertools.pairwise(edges)
        )

    got = moments(act, std)

    assert got.second == pytest.approx(expected(lambda z: act.phi(z) ** 2), rel=1e-7, abs=0)
    assert got.slope_second == pytest.approx(expected(lambda z: act.slope(z) ** 2), rel=1e-7, abs=0)


@tried(200)
@given(std=st.floats(-8, 3).map(lambda e: 10.0**e), offset=offsets)
def test_relu_moments_are_the_closed_form(std, offset):
    mean = offset * std
    share, density = scipy.special.ndtr(offset), math.exp(-(offset**2) / 2) / math.sqrt(2 * math.pi)

    got = moments(named("relu"), std, mean)

    assert got.mean == pytest.approx(mean * share + std * density, rel=1e-9, abs=0)
    assert got.second == pytest.approx(
        (mean**2 + std**2) * share + mean * std * density, rel=1e-9, abs=0
    )
    assert got.slope_second == pytest.approx(share, rel=1e-9, abs=0)
    assert got.flat_share == pytest.approx(1 - share, rel=1e-9, abs=0)


@tried(200)
@given(std=st.floats(-8, 3).map(lambda e: 10.0**e))
def test_erf_and_gelu_moments_are_the_closed_forms_at_every_scale(std):
    variance = std * std
    angle = math.asin(2 * variance / (1 + 2 * variance))  # Williams 1997, the arcsine kernel

    erf, gelu = moments(named("erf"), std), moments(named("gelu"), std)

    assert erf.second == pytest.approx(2 / math.pi * angle, rel=1e-8, abs=0)
    assert erf.slope_second == pytest.approx(
        4 / math.pi / math.sqrt(1 + 4 * variance), rel=1e-8, abs=0
    )
    assert gelu.mean == pytest.approx(
        variance / math.sqrt(2 * math.pi * (1 + variance)), rel=1e-6, abs=0
    )


@tried(100)
@given(std=st.floats(0.01, 3), mean=offsets)
def test_activations_with_moments_in_closed_form_agree_with_quadrature(std, mean):
    for name in ("exp", "sin", "cos"):
        act = named(name)
        closed = moments(act, std, mean)
        summed = moments(dataclasses.replace(act, exact=None), std, mean)
        for field in ("mean", "second", "std", "slope_second"):
            assert getattr(closed, field) == pytest.approx(
                getattr(summed, field), rel=1e-9, abs=1e-14
            ), (name, field)


def test_a_sine_of_a_wide_preactivation_keeps_its_power():
    got = moments(named("sin"), 1e3, 0.3)
    assert (got.mean, got.second, got.slope_second) == pytest.approx((0, 0.5, 0.5))


def test_moments_that_overflow_are_infinite_without_a_warning():
    assert moments(named("exp"), 100.0).second == math.inf
    assert moments(named("relu"), 1e200).second == math.inf


@every_activation
def test_moments_agree_with_each_other(case):
    act = of(case)
    for std, mean in [(1e-6, 0.0), (0.3, 0.2), (1.0, -1.0), (4.0, 0.0), (50.0, 10.0)]:
        got = moments(act, std, mean)
        if not math.isfinite(got.second):
            continue
        assert got.second == pytest.approx(got.std**2 + got.mean**2, rel=1e-9, abs=0)
        assert 0 <= got.flat_share <= 1
        assert got.slope_second >= 0


@every_activation
def test_no_spread_is_the_point_itself_and_the_limit_of_a_small_spread(case):
    act = of(case)
    point, near = moments(act, 0.0, 0.77), moments(act, 1e-8, 0.77)

    z = np.array([0.77])
    assert (point.mean, point.std) == (pytest.approx(float(act.phi(z)[0]), rel=1e-9, abs=0), 0)
    assert point.slope_second == pytest.approx(float(act.slope(z)[0]) ** 2, rel=1e-9, abs=0)
    assert near.second == pytest.approx(point.second, rel=1e-6, abs=0)
    assert near.slope_second == pytest.approx(point.slope_second, rel=1e-6, abs=0)
    assert near.flat_share == point.flat_share


@pytest.mark.parametrize(
    "name", ["linear", "tanh", "softsign", "erf", "hardtanh", "hardshrink", "softshrink", "sin"]
)
@pytest.mark.parametrize("std", [1e-8, 0.5, 1.0, 40.0, 1e3])
def test_an_odd_activation_of_a_centred_input_is_centred(name, std):
    got = moments(named(name), std)
    assert got.mean == pytest.approx(0, abs=1e-14 * std)
    assert got.second == pytest.approx(got.std**2)


@tried(50)
@given(std=scales, offset=offsets, factor=st.floats(0.01, 100))
def test_a_positively_homogeneous_activation_scales_with_its_input(std, offset, factor):
    for act in (named("relu"), named("leaky_relu"), named("prelu"), named("abs"), named("linear")):
        one = moments(act, std, offset * std)
        other = moments(act, factor * std, factor * offset * std)
        assert other.mean == pytest.approx(factor * one.mean, rel=1e-9, abs=1e-12 * factor * std)
        assert other.std == pytest.approx(factor * one.std, rel=1e-9, abs=0)
        assert other.slope_second == pytest.approx(one.slope_second, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (("leaky_relu", {"negative_slope": 0.0}), ("relu", {})),
        (("threshold", {"threshold": 0.0, "value": 0.0}), ("relu", {})),
        (("clamp", {"min": 0.0}), ("relu", {})),
        (("hardtanh", {}), ("clamp", {"min": -1.0, "max": 1.0})),
        (("hardtanh", {"min_val": 0.0, "max_val": 6.0}), ("relu6", {})),
        (("prelu", {"weight": 0.01}), ("leaky_relu", {})),
        (("celu", {}), ("elu", {})),
    ],
    ids=str,
)
@pytest.mark.parametrize(("std", "mean"), [(1.0, 0.0), (0.2, 0.5), (30.0, -7.0)])
def test_two_names_for_one_function_have_the_same_moments(one, same, std, mean):
    got, expected = moments(of(one), std, mean), moments(of(same), std, mean)
    assert dataclasses.astuple(got) == pytest.approx(dataclasses.astuple(expected), rel=1e-12)
    assert of(one).family == of(same).family
    assert of(one).gain == pytest.approx(of(same).gain)


@tried(50)
@given(std=scales)
def test_a_sigmoid_at_twice_the_scale_saturates_as_tanh_does(std):
    sigmoid, tanh = moments(named("sigmoid"), 2 * std), moments(named("tanh"), std)
    assert sigmoid.flat_share == pytest.approx(tanh.flat_share, rel=1e-9, abs=1e-300)
    assert 16 * sigmoid.slope_second == pytest.approx(tanh.slope_second, rel=1e-9, abs=0)
    assert 2 * sigmoid.std == pytest.approx(tanh.std, rel=1e-9, abs=0)


def test_a_cubic_activation_is_exact_where_a_plain_difference_would_cancel():
    # tanhshrink is z^3/3 near zero
    for std in (1e-8, 1e-5, 1e-3):
        got = moments(named("tanhshrink"), std)
        assert got.second == pytest.approx(15 / 9 * std**6, rel=1e-4, abs=0)
        assert got.slope_second == pytest.approx(3 * std**4, rel=1e-4, abs=0)


@pytest.mark.parametrize("offset", [5.0, 10.0, 20.0])
def test_a_tiny_flat_share_keeps_its_digits(offset):
    expected = scipy.special.ndtr(-offset)
    assert moments(named("relu"), 2.0, 2.0 * offset).flat_share == pytest.approx(
        expected, rel=1e-9, abs=0
    )
    top = named("clamp", max=0.0)
    assert moments(top, 2.0, -2.0 * offset).flat_share == pytest.approx(expected, rel=1e-9, abs=0)


def test_a_negative_spread_is_an_error():
    with pytest.raises(ValueError, match="std = -1"):
        moments(named("relu"), -1.0)


@pytest.mark.parametrize(("std", "mean"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_a_spread_that_is_no_number_gives_no_number(std, mean):
    assert all(map(math.isnan, dataclasses.astuple(moments(named("tanh"), std, mean))))


# --- depth ---------------------------------------------------------------------------------------

# CS231n 2017 lecture 6: ten layers of 500 on N(0, 1) inputs. The std that the slide prints, the
# infinite-width std, and the relative deviation of a 500-wide layer between networks (100 seeds).
SLIDE_45 = (
    "tanh",
    0.01 * math.sqrt(500),
    (0.213081, 0.047551, 0.010630, 0.002378, 0.000532, 0.000119, *(None,) * 4),
    (
        *(0.213546, 0.0476421, 0.0106519, 0.00238182, 0.000532592),
        *(0.000119091, 2.66296e-05, 5.95456e-06, 1.33148e-06, 2.97728e-07),
    ),
    (0.00191, 0.00316, 0.00416, 0.00515, 0.00584, 0.00630, 0.00689, 0.00721, 0.00806, 0.00850),
)
SLIDE_47 = (
    "tanh",
    math.sqrt(500),
    (
        *(0.981879, 0.981649, 0.981601, 0.981755, 0.981614),
        *(0.981560, 0.981520, 0.981913, 0.981728, 0.981736),
    ),
    (0.982012, 0.98168, *(0.981673,) * 8),
    (0.00012,) * 10,
)
SLIDE_48 = (
    "tanh",
    1.0,
    (
        *(0.627953, 0.486051, 0.407723, 0.357108, 0.320917),
        *(0.292116, 0.273387, 0.254935, 0.239266, 0.228008),
    ),
    (
        *(0.627929, 0.486262, 0.408236, 0.357638, 0.321622),
        *(0.29439, 0.272911, 0.25543, 0.240856, 0.228473),
    ),
    (0.00105, 0.00168, 0.00223, 0.00272, 0.00323, 0.00367, 0.00405, 0.00447, 0.00552, 0.00584),
)
RELU_DEVIATION = (0.0023, 0.0202, 0.0364, 0.0476, 0.0573, 0.0696, 0.0764, 0.0872, 0.0928, 0.0973)
SLIDE_49 = (
    "relu",
    1.0,
    (
        *(0.582273, 0.403795, 0.276912, 0.198685, 0.140299),
        *(0.103280, 0.072748, 0.051572, 0.038583, 0.026076),
    ),
    (
        *(0.583819, 0.412822, 0.291909, 0.206411, 0.145955),
        *(0.103206, 0.0729774, 0.0516028, 0.0364887, 0.0258014),
    ),
    RELU_DEVIATION,
)
SLIDE_50 = (
    "relu",
    math.sqrt(2),
    (
        *(0.825232, 0.827835, 0.813855, 0.826902, 0.834092),
        *(0.860035, 0.870610, 0.889348, 0.845357, 0.844523),
    ),
    (0.825645,) * 10,
    RELU_DEVIATION,
)
slides = pytest.mark.parametrize(
    ("name", "gain", "printed", "infinite", "deviation"),
    [SLIDE_45, SLIDE_47, SLIDE_48, SLIDE_49, SLIDE_50],
    ids=["slide-45", "slide-47", "slide-48", "slide-49", "slide-50"],
)


@slides
def test_the_lecture_s_networks_are_predicted_layer_by_layer(
    name, gain, printed, infinite, deviation
):
    layers = theory.recursion(named(name), gain, 10)
    assert [layer.output.std for layer in layers] == pytest.approx(infinite, rel=6e-6)
    for layer, shown, spread in zip(layers, printed, deviation, strict=True):
        if shown is not None:  # the slide has six decimals
            assert layer.output.std == pytest.approx(shown, rel=5 * spread, abs=5e-7)


def test_the_lecture_s_relu_means_are_predicted():
    layers = theory.recursion(named("relu"), 1.0, 10)
    expected = [0.398942, 0.282095, 0.199471, 0.141047, 0.0997355]
    expected += [0.0705236, 0.0498678, 0.0352618, 0.0249339, 0.0176309]
    assert [layer.output.mean for layer in layers] == pytest.approx(expected, rel=6e-6)

    he = theory.recursion(named("relu"), math.sqrt(2), 10)
    assert [layer.output.mean for layer in he] == pytest.approx([0.564190] * 10, rel=2e-6)


def test_a_sigmoid_network_settles_at_once():
    layers = theory.recursion(named("sigmoid"), 1.0, 10)
    got = [layers[i - 1].output.std for i in (1, 2, 5, 10)]
    assert got == pytest.approx([0.2083, 0.1269, 0.1212, 0.1212], abs=5e-5)


# gain, rms of the output at the fixed point, std of z there, chi
FIXED_POINTS = [
    ("tanh", 0.9, 0, 0, 0.81),
    ("tanh", 1.1, 0.3053, 0.3358, 1.0102),
    ("tanh", 1.3, 0.4919, 0.6395, 1.0644),
    ("tanh", 5 / 3, 0.65135, 1.0856, 1.2098),
    ("tanh", 2, 0.7283, 1.4565, 1.3627),
    ("tanh", 8, 0.9462, 7.570, 4.485),
    ("sigmoid", 1, 0.51448, 0.5145, 0.05572),
    ("sigmoid", 2, 0.5470, 1.094, 0.1716),
    ("sigmoid", 4, 0.6049, 2.420, 0.3989),
    ("sigmoid", 8, 0.6541, 5.233, 0.7948),
    ("relu", math.sqrt(2), 1, math.sqrt(2), 1),
    ("relu", 1, 0, 0, 0.5),
    ("relu", 1 / math.sqrt(3), 0, 0, 0.1667),
    ("selu", 1, 1, 1, 1.0716),
]


@pytest.mark.parametrize(("name", "gain", "rms", "std", "chi"), FIXED_POINTS)
def test_a_deep_network_reaches_its_fixed_point(name, gain, rms, std, chi):
    deep = theory.recursion(named(name), gain, 400)[-1]
    assert math.sqrt(deep.output.second) == pytest.approx(rms, abs=6e-5)
    assert deep.preactivation == pytest.approx(std, abs=6e-4)
    assert deep.chi == pytest.approx(chi, rel=2e-4)


@pytest.mark.parametrize("first", [1e-6, 1.0, 1e3])
def test_a_homogeneous_network_keeps_whatever_scale_it_is_given(first):
    for layer in theory.recursion(named("relu"), math.sqrt(2), 30, first=first):
        assert math.sqrt(layer.output.second) == pytest.approx(first, rel=1e-9, abs=0)
        assert layer.chi == pytest.approx(1, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("name", "gain", "layers", "shrinkage"),
    [
        ("tanh", 1, 10, 0.2672),
        ("tanh", 1 / math.sqrt(3), 10, 0.00307),
        ("sigmoid", 1, 10, 4.79e-07),
        ("sigmoid", 1 / math.sqrt(3), 10, 3.05e-09),
        ("gelu", math.sqrt(2), 10, 0.693),
        ("silu", math.sqrt(2), 10, 0.134),
        ("elu", math.sqrt(2), 10, 2.43),
        ("tanh", 5 / 3, 9, 1.767),
        ("tanh", 1, 9, 0.2812),
    ],
)
def test_the_gradient_through_a_network_is_the_product_of_chi(name, gain, layers, shrinkage):
    got = math.prod(math.sqrt(layer.chi) for layer in theory.recursion(named(name), gain, layers))
    assert got == pytest.approx(shrinkage, rel=3e-3, abs=0)


@pytest.mark.parametrize(("name", "rms"), [("silu", 0.106), ("elu", 1.88)])
def test_the_he_gain_does_not_keep_the_scale_of_every_activation(name, rms):
    last = theory.recursion(named(name), math.sqrt(2), 10)[-1]
    assert math.sqrt(last.output.second) == pytest.approx(rms, rel=5e-3)


def test_a_bias_adds_its_variance_to_every_preactivation():
    layers = theory.recursion(named("tanh"), 0.5, 60, first=0.0, bias_std=0.1)
    assert layers[0].preactivation == pytest.approx(0.1)
    assert layers[1].preactivation == pytest.approx(
        math.sqrt(0.25 * layers[0].output.second + 0.01)
    )
    assert layers[-1].preactivation > 0.1


def test_a_network_of_no_layers_has_none():
    assert theory.recursion(named("relu"), 1.0, 0) == []


def test_an_exploding_network_ends_in_no_number_rather_than_an_error():
    layers = theory.recursion(named("relu"), 1e30, 20)
    assert math.isfinite(layers[3].output.second)
    assert math.isnan(layers[-1].output.second)


# --- finite width --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("linear", 2),
        ("relu", 5),
        ("leaky_relu", 4.999),
        ("elu", 2.776),
        ("selu", 1.503),
        ("tanh", 0.627),
        ("sigmoid", 0.529),
    ],
)
def test_fluctuation_of_a_layer_s_norm(name, constant):
    assert theory.fluctuation(named(name)) == pytest.approx(constant, abs=5e-4)


@pytest.mark.parametrize(
    ("width", "depth", "confidence", "low", "high"),
    [
        (500, 10, 0.95, 0.715, 1.330),
        (500, 10, 0.999, 0.580, 1.641),
        (100, 10, 0.95, 0.441, 1.765),
        (100, 10, 0.999, 0.276, 2.824),
        (500, 50, 0.999, 0.276, 2.824),
    ],
)
def test_the_norm_of_a_he_network_strays_within_its_band(width, depth, confidence, low, high):
    band = theory.log_norm_band([width] * depth, named("relu"), confidence)
    assert np.exp(band) == pytest.approx([low, high], rel=2e-3)


def test_the_norm_band_is_that_of_999_networks_in_a_thousand():
    band = theory.log_norm_band([100] * 10, named("relu"))
    assert band == theory.log_norm_band([100] * 10, named("relu"), 0.999)


def test_the_norm_band_is_that_of_simulated_networks():
    rng = np.random.default_rng(0)
    logs = []
    for _ in range(400):
        h = rng.standard_normal(100)
        start = np.sqrt(np.mean(h**2))
        for _ in range(10):
            h = np.maximum(h @ rng.standard_normal((100, 100)) * math.sqrt(2 / 100), 0)
        logs.append(math.log(np.sqrt(np.mean(h**2)) / start))

    low, high = theory.log_norm_band([100] * 10, named("relu"), 0.95)
    assert np.mean(logs) == pytest.approx((low + high) / 2, abs=0.08)
    assert np.std(logs) == pytest.approx((high - low) / 2 / 1.96, rel=0.15)
    low, high = theory.log_norm_band([100] * 10, named("relu"), 0.999)
    assert np.mean((low < np.array(logs)) & (np.array(logs) < high)) > 0.99


# --- activity ------------------------------------------------------------------------------------


def correlations(depth):
    c = [0.0]
    while len(c) < depth:
        c.append(theory.correlation_map(c[-1]))
    return c


def test_relu_inputs_grow_alike_with_depth():
    c = correlations(30)
    expected = [0, 0.3183, 0.4937, 0.6048, 0.6810, 0.7359, 0.7772, 0.8091, 0.8344, 0.8548]
    assert c[:10] == pytest.approx(expected, abs=5e-5)
    assert [c[14], c[19], c[29]] == pytest.approx([0.9156, 0.9445, 0.9705], abs=5e-5)


@pytest.mark.parametrize("c", [-1.0, -0.4, 0.0, 0.5, 0.9])
def test_the_correlation_map_is_that_of_a_random_relu_layer(c):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 400_000))
    one, other = np.maximum(a, 0), np.maximum(c * a + math.sqrt(1 - c * c) * b, 0)
    assert theory.correlation_map(c) == pytest.approx(2 * np.mean(one * other), abs=0.01)


def test_alike_inputs_stay_alike():
    assert theory.correlation_map(1.0) == 1
    assert theory.correlation_map(1.0 + 1e-12) == 1


def test_opposite_inputs_have_no_unit_in_common():
    assert theory.correlation_map(-1.0) == 0
    assert theory.correlation_map(-1.0 - 1e-12) == 0


NEVER_ACTIVE = {
    32: (0, 0.0055, 0.0290, 0.0892, 0.1419, 0.2016, 0.2672, 0.3092, 0.3596),
    128: (0, 0.0004, 0.0072, 0.0435, 0.0875, 0.1460, 0.2173, 0.2658, 0.3259),
    256: (0, 0.0001, 0.0036, 0.0305, 0.0691, 0.1250, 0.1971, 0.2476, 0.3114),
    1000: (0, 0.0000, 0.0009, 0.0153, 0.0439, 0.0930, 0.1639, 0.2168, 0.2863),
    10000: (0, 0.0000, 0.0001, 0.0048, 0.0208, 0.0576, 0.1222, 0.1759, 0.2512),
}


@pytest.mark.parametrize("n", NEVER_ACTIVE)
def test_units_of_a_healthy_deep_network_that_are_never_active(n):
    c = correlations(30)
    got = [theory.never_active(n, c[layer - 1]) for layer in (1, 2, 3, 5, 7, 10, 15, 20, 30)]
    assert got == pytest.approx(NEVER_ACTIVE[n], abs=6e-5)


@tried(60)
@given(n=st.integers(1, 100_000), c=st.floats(0.001, 0.9999))
def test_never_active_agrees_with_adaptive_quadrature(n, c):
    steepness = math.sqrt(c / (1 - c))

    def integrand(t):
        log_cdf = scipy.special.log_ndtr(-t * steepness)
        return math.exp(-t * t / 2 + n * log_cdf) / math.sqrt(2 * math.pi)

    edges = np.unique(np.clip(np.arange(-12.0, 13.0) / steepness, -12, 12))
    edges = np.unique([*edges, *np.arange(-12.0, 13.0)])
    expected = sum(
        scipy.integrate.quad(integrand, low, high, full_output=1)[0]
        for low, high in itertools.pairwise(edges)
    )
    assert theory.never_active(n, c) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_never_active_has_the_known_values_at_its_ends(n):
    assert theory.never_active(n, 0.0) == 0.5**n
    assert theory.never_active(n, -0.3) == 0.5**n
    assert theory.never_active(n, 1e-9) == pytest.approx(0.5**n, rel=1e-5)
    assert theory.never_active(n, 1.0) == 0.5
    assert theory.never_active(n, 1 - 1e-14) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("c", [0.0, 0.1, 0.5, 0.95])
def test_two_inputs_miss_a_unit_as_often_as_the_quadrant_probability_says(c):
    assert theory.never_active(1, c) == pytest.approx(0.5)
    assert theory.never_active(2, c) == pytest.approx(0.25 + math.asin(c) / (2 * math.pi))


@tried(100)
@given(
    units=st.integers(1, 3000),
    n=st.sampled_from([1, 8, 32, 1000]),
    c=st.floats(0, 1),
    confidence=st.sampled_from([0.95, 0.99, 0.999]),
)
def test_the_bound_on_never_active_units_is_the_binomial_quantile(units, n, c, confidence):
    p = theory.never_active(n, c)
    expected = scipy.stats.binom.ppf(confidence, units, p)
    assert theory.never_active_bound(units, n, c, confidence) == expected


def test_healthy_networks_stay_under_the_bound_of_their_own_correlation():
    width, n = 200, 128
    for seed in range(20):
        rng = np.random.default_rng(seed)
        h = rng.standard_normal((n, width))
        for _ in range(8):
            unit = h / np.linalg.norm(h, axis=1, keepdims=True)
            c = (np.sum(unit.sum(0) ** 2) - n) / (n * (n - 1))
            z = h @ rng.standard_normal((width, width)) * math.sqrt(2 / width)
            dead = int(np.sum(z.max(0) <= 0))
            assert dead <= theory.never_active_bound(width, n, c, 0.9999)
            h = np.maximum(z, 0)


@pytest.mark.parametrize(
    ("n", "at_95", "at_99"),
    [
        (8, 0.3123, 0.4377),
        (16, 0.1708, 0.2501),
        (32, 0.0894, 0.1340),
        (64, 0.0457, 0.0694),
        (128, 0.0231, 0.0353),
        (256, 0.01163, 0.01783),
        (512, 0.00583, 0.00895),
        (1000, 0.002991, 0.004595),
        (10000, 0.000300, 0.000460),
        (50000, 6.0e-05, 9.2e-05),
    ],
)
def test_a_unit_never_seen_active_may_still_be_this_active(n, at_95, at_99):
    assert theory.activity_bound(n) == pytest.approx(at_95, rel=2e-3)
    assert theory.activity_bound(n, 0.99) == pytest.approx(at_99, rel=2e-3)
    assert (1 - theory.activity_bound(n)) ** n == pytest.approx(0.05)


@pytest.mark.parametrize(("level", "samples"), [(0.1, 29), (0.05, 59), (0.01, 299), (0.001, 2995)])
def test_so_many_inputs_are_needed_to_bound_the_activity(level, samples):
    assert theory.activity_bound(samples) <= level < theory.activity_bound(samples - 1)


def test_no_inputs_bound_nothing():
    assert theory.activity_bound(0) == 1
    assert theory.never_active(0, 0.5) == 1


# --- centring ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "k", "at_100", "at_500", "coherence"),
    [
        ("relu", 0.6833, 47.7, 234, 0.6908),
        ("sigmoid", 2.4007, 577, 2883, 0.8744),
        ("tanh", 0, 1, 1, 0.5),
        ("elu", 0.2040, 5.2, 21.8, 0.5641),
        ("gelu", 0.4798, 24.0, 116, 0.6424),
    ],
)
def test_an_uncentred_activation_spoils_the_next_layer(name, k, at_100, at_500, coherence):
    out = moments(named(name), 1.0)
    ratio = abs(out.mean) / out.std
    assert ratio == pytest.approx(k, abs=5e-5)
    assert theory.mean_square_condition(ratio, 100) == pytest.approx(at_100, rel=0.01)
    assert theory.mean_square_condition(ratio, 500) == pytest.approx(at_500, rel=5e-3)
    assert theory.sign_coherence(ratio) == pytest.approx(coherence, abs=5e-5)


def test_a_deep_sigmoid_network_spoils_it_most():
    deep = theory.recursion(named("sigmoid"), 1.0, 30)[-1].output
    ratio = deep.mean / deep.std
    assert ratio == pytest.approx(4.126, abs=1e-3)
    assert theory.mean_square_condition(ratio, 100) == pytest.approx(1703, rel=2e-3)
    assert theory.sign_coherence(ratio) == pytest.approx(0.9243, abs=1e-4)


def test_uncentred_pixels_are_ill_conditioned():
    assert theory.mean_square_condition(math.sqrt(3), 3072) == pytest.approx(9217)


def test_the_condition_number_is_that_of_the_second_moment_matrix():
    mean, std, d = 0.4, 0.6, 30
    matrix = std**2 * np.eye(d) + mean**2 * np.ones((d, d))
    assert theory.mean_square_condition(mean / std, d) == pytest.approx(np.linalg.cond(matrix))
