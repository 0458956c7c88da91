"""The battery of activation functions: it measures what is known, and what is broken fails."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nndiag import errors, fixes, theory
from nndiag.activations import named
from nndiag.testing import activations
from nndiag.testing.activations import ACTIVATION, Activation, check_activation

TORCHS = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "prelu": nn.PReLU,
    "rrelu": nn.RReLU, "elu": nn.ELU, "selu": nn.SELU, "celu": nn.CELU, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"), "silu": nn.SiLU, "mish": nn.Mish, "sigmoid": nn.Sigmoid,
    "logsigmoid": nn.LogSigmoid, "tanh": nn.Tanh, "softplus": nn.Softplus, "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh, "hardsigmoid": nn.Hardsigmoid, "hardswish": nn.Hardswish,
    "softshrink": nn.Softshrink, "hardshrink": nn.Hardshrink, "tanhshrink": nn.Tanhshrink,
    "identity": nn.Identity, "threshold": lambda: nn.Threshold(0.1, 20.0),
}  # fmt: skip
OURS = {
    "our_leaky_relu": fixes.LeakyReLU, "our_prelu": fixes.PReLU, "our_elu": fixes.ELU,
    "our_selu": fixes.SELU,
}  # fmt: skip
FUNCTIONS = {"F.relu": F.relu, "torch.tanh": torch.tanh, "F.gelu": F.gelu, "torch.sin": torch.sin}


@pytest.mark.one_in(11)
@activations.parametrize_activations(
    {**TORCHS, **OURS, **FUNCTIONS},
    declared={
        "gelu_tanh": {"extremes": "torch's derivative of it is NaN where its cube overflows"},
        "our_prelu": {"scriptable": "it says what it was given where that does not fit"},
    },
    expect={
        # Known before anything was measured: the lecture, and the papers.
        "sigmoid": {"max-slope": 0.25, "bounds": (0.0, 1.0), "saturates": "both", "mean": 0.5},
        "tanh": {"max-slope": 1.0, "bounds": (-1.0, 1.0), "saturates": "both", "mean": 0.0},
        "relu": {"dead-side": "left", "zeros": 0.5, "homogeneous": True, "mean": 0.399,
                 "second-moment": 0.5, "bounds": (0.0, math.inf)},
        "leaky_relu": {"dead-side": "neither", "homogeneous": True, "zeros": 0.0},
        "elu": {"saturates": "left", "dead-side": "neither", "monotone": True},
        "selu": {"mean": 0.0, "second-moment": 1.0, "bounds": (-1.7581, math.inf)},
        "gelu": {"monotone": False, "bounds": (-0.16997, math.inf)},
        "silu": {"monotone": False, "bounds": (-0.27846, math.inf)},
        "softplus": {"monotone": True, "max-slope": 1.0, "bounded": False},
        "hardtanh": {"dead-side": "both", "bounded": True},
        "softsign": {"bounds": (-1.0, 1.0), "saturates": "both"},
        "identity": {"max-slope": 1.0, "homogeneous": True, "mean": 0.0, "second-moment": 1.0},
        "torch.sin": {"monotone": False, "bounded": True, "saturates": "neither"},
        "hardswish": {"max-slope": 1.5},
    },
)  # fmt: skip
def test_torchs_and_ours(check):
    check()


@pytest.mark.parametrize("name", ["our_leaky_relu", "our_prelu", "our_elu", "our_selu"])
def test_ours_have_the_traits_of_torchs(name):
    why = {"scriptable": "it says what it was given"} if name == "our_prelu" else None
    ours = check_activation(OURS[name], declared=why)
    torchs = check_activation(TORCHS[name.removeprefix("our_")])

    for trait in torchs.keys() - {"infinity"}:
        assert ours[trait] == pytest.approx(torchs[trait], abs=1e-3), trait


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu", "silu", "elu", "selu", "mish"])
def test_second_moments_are_those_of_theory(name):
    act = named(name)
    found = check_activation(TORCHS[name])

    assert found["second-moment"] == pytest.approx(1 / theory.gain_forward(act) ** 2, abs=2e-3)


def test_what_is_no_elementwise_function_has_to_be_declared():
    with pytest.raises(errors.FindingsError, match=r"elementwise: the input at .* changes"):
        check_activation(lambda: nn.Softmax(-1))

    found = check_activation(lambda: nn.Softmax(-1), declared={"elementwise": "a softmax"})
    assert found == {}


def test_what_is_declared_and_holds_is_a_failure():
    with pytest.raises(errors.FindingsError, match="elementwise: it holds, but is declared not to"):
        check_activation(nn.ReLU, declared={"elementwise": "who knows"})


# -- one broken activation for each property ------------------------------------------------------


class WrongSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class InPlace(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.mul_(0).add_(1) if self.inplace else F.relu(x)


class NotInPlace(InPlace):
    def forward(self, x):
        return F.relu(x)


class Data(nn.Module):
    def forward(self, x):
        return x.clone() if float(x.sum()) > 1e9 else F.relu(x)


BROKEN = {
    "shape-kept": lambda x: x.flatten(),
    "elementwise": lambda x: x - x.mean(),
    "gradient": WrongSlope.apply,
    "dtype-kept": lambda x: F.relu(x.float()),
    "device-kept": lambda x: torch.tanh(x) + torch.zeros(x.shape, device="cpu"),
    "extremes": lambda x: x * torch.exp(x) / (1 + torch.exp(x)),
    "deterministic": lambda x: x + torch.rand_like(x),
    "input-untouched": lambda x: x.data.mul_(2) + x * 0,
    "in-place": InPlace,
    "scriptable": lambda: type("Odd", (nn.Module,), {"forward": lambda self, *xs: xs[0] * 2})(),
    "compilable": Data,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_law_fails(name):
    result = ACTIVATION.result(name, Activation(BROKEN[name]), {}, {})

    assert result.status == "fails"
    assert result.reason


def test_every_law_has_a_broken_activation():
    laws = {r.name for r in ACTIVATION.results(Activation(nn.ReLU), {}, {}) if r.status == "holds"}

    assert laws == set(BROKEN)


@pytest.mark.parametrize("made", [NotInPlace, Counting])
def test_other_ways_of_breaking_a_law_fail_too(made):
    name = {"NotInPlace": "in-place", "Counting": "deterministic"}[made.__name__]

    assert ACTIVATION.result(name, Activation(made), {}, {}).status == "fails"


TRAITS = {
    "bounds": {nn.Sigmoid: (0.0, 1.0), nn.ReLU: (0.0, math.inf)},
    "bounded": {nn.Tanh: True, nn.ReLU: False},
    "monotone": {nn.ELU: True, nn.GELU: False},
    "max-slope": {nn.Sigmoid: 0.25, nn.Hardsigmoid: 0.167},
    "saturates": {nn.ELU: "left", nn.LogSigmoid: "right", nn.Tanh: "both", nn.LeakyReLU: "neither"},
    "dead-side": {nn.ReLU: "left", nn.ReLU6: "both", nn.Tanh: "neither"},
    "mean": {nn.Tanh: 0.0, nn.Sigmoid: 0.5},
    "second-moment": {nn.ReLU: 0.5, nn.Identity: 1.0},
    "zeros": {nn.ReLU: 0.5, nn.Softshrink: 0.383},
    "homogeneous": {nn.ReLU: True, nn.ELU: False},
    "nan": {nn.ReLU: "nan", lambda: nn.Threshold(0.0, 20.0): "nan"},
    "infinity": {nn.ReLU: (0.0, math.inf), nn.Sigmoid: (0.0, 1.0)},
}  # fmt: skip


@pytest.mark.parametrize("trait", TRAITS)
def test_traits_tell_functions_apart(trait):
    for made, value in TRAITS[trait].items():
        found = ACTIVATION.result(trait, Activation(made), {}, {}).value
        assert found == pytest.approx(value) if isinstance(value, float) else found == value


def test_a_nan_that_is_hidden_is_told():
    assert ACTIVATION.result("nan", Activation(torch.nan_to_num), {}, {}).value == "0"


# -- what is given --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"declared": {"monotne": "x"}},
            "no activation has such a property. Did you mean 'monotone'",
        ),
        ({"declared": {"monotone": ""}}, "Write why it does not hold"),
        ({"expect": {"bound": True}}, r"Did you mean 'bound(s|ed)'"),
        ({"expect": [1]}, r"expect is \[1\]: give a dict of properties"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_one_clear_error(options, message):
    with pytest.raises(errors.SettingsError, match=message):
        check_activation(nn.ReLU, **options)


def test_a_trait_that_is_not_as_expected_fails_and_says_both():
    with pytest.raises(errors.FindingsError) as caught:
        check_activation(nn.Sigmoid, expect={"max-slope": 1.0, "bounded": True})

    assert str(caught.value).splitlines()[:2] == [
        "Sigmoid: 1 of 23 properties of an activation does not hold",
        "  max-slope: it is 0.25, expected 1.0",
    ]


def test_it_leaves_the_process_and_the_module_as_they_were():
    from bitwise import untouched

    module = nn.PReLU()
    with untouched(module):
        check_activation(module)
        check_activation(nn.RReLU)


TESTS = """
import torch
from torch import nn
import nndiag.testing

@nndiag.testing.parametrize_activations(
    {"mine": nn.ReLU, "odd": lambda: nn.Softmax(-1)},
    declared={"odd": {"elementwise": "a softmax"}},
    expect={"mine": {"max-slope": 1.0, "zeros": 0.9}},
)
def test_activations(check):
    check()
"""


def test_each_property_is_a_test(pytester):
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest_inprocess("-rs", "-v", "-W", "error")

    result.stdout.fnmatch_lines(
        [
            "*test_activations[[]mine-gradient[]] PASSED*",
            "*test_activations[[]mine-zeros[]] FAILED*",
            "*test_activations[[]odd-elementwise[]] XFAIL*a softmax*",
            "*test_activations[[]odd-max-slope[]] SKIPPED*",
            "E*FindingsError: mine: 1 of 1 properties *",
            "E*zeros: it is 0.5, expected 0.9",
        ]
    )
    assert "nndiag/testing" not in result.stdout.str()
