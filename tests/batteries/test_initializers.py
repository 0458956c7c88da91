"""The battery of initialisers: the laws are the papers', and each broken initialiser fails."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import init

# What the inner session loads is loaded here first: it puts sys.modules back after itself.
import nndiag.testing.fixture
import nndiag.testing.summary  # noqa: F401
from nndiag import errors, fixes
from nndiag.testing.initializers import (
    INITIALIZER,
    Initializer,
    check_initializer,
    parametrize_initializers,
)

# Each with the variance of its paper, as a function of the fans, and as its name.
CLAIMED = {
    "uniform": (init.uniform_, lambda i, o: 1 / 12, "constant 0.083"),
    "uniform to 2": (partial(init.uniform_, a=-2, b=2), lambda i, o: 4 / 3, "constant 1.33"),
    "normal": (init.normal_, lambda i, o: 1.0, "constant 1"),
    "normal 0.02": (partial(init.normal_, std=0.02), lambda i, o: 0.0004, "constant 0.0004"),
    # N(0, 1) within ±2: 1 - 4 φ(2) / (2 Φ(2) - 1)
    "trunc normal": (init.trunc_normal_, lambda i, o: 0.7737, "constant 0.77"),
    "trunc normal 0.02": (partial(init.trunc_normal_, std=0.02), lambda i, o: 4e-4,
                          "constant 0.0004"),
    "xavier uniform": (init.xavier_uniform_, lambda i, o: 2 / (i + o), "2/(fan_in+fan_out)"),
    "xavier normal": (init.xavier_normal_, lambda i, o: 2 / (i + o), "2/(fan_in+fan_out)"),
    "xavier 5/3": (partial(init.xavier_normal_, gain=5 / 3), lambda i, o: 50 / 9 / (i + o),
                   "5.6/(fan_in+fan_out)"),
    "kaiming uniform": (init.kaiming_uniform_, lambda i, o: 2 / i, "2/fan_in"),
    "kaiming normal": (init.kaiming_normal_, lambda i, o: 2 / i, "2/fan_in"),
    "kaiming uniform out": (partial(init.kaiming_uniform_, mode="fan_out"), lambda i, o: 2 / o,
                            "2/fan_out"),
    "kaiming normal out": (partial(init.kaiming_normal_, mode="fan_out"), lambda i, o: 2 / o,
                           "2/fan_out"),
    "lecun": (partial(init.kaiming_normal_, nonlinearity="linear"), lambda i, o: 1 / i, "1/fan_in"),
    "lecun out": (partial(init.kaiming_uniform_, nonlinearity="linear", mode="fan_out"),
                  lambda i, o: 1 / o, "1/fan_out"),
    "torch's default": (partial(init.kaiming_uniform_, a=math.sqrt(5)), lambda i, o: 1 / (3 * i),
                        "1/(3 fan_in)"),
    "sparse": (partial(init.sparse_, sparsity=0.1), lambda i, o: 0.9e-4, "constant 9e-05"),
    "zeros": (init.zeros_, lambda i, o: 0.0, "constant 0"),
    "ones": (init.ones_, lambda i, o: 0.0, "constant 0"),
    "constant": (partial(init.constant_, val=0.1), lambda i, o: 0, "constant 0"),
    "dirac": (init.dirac_, lambda i, o: 1 / max(i, o), "1/max(fan_in, fan_out)"),
    "eye": (init.eye_, lambda i, o: 1 / max(i, o), "1/max(fan_in, fan_out)"),
    "our small": (fixes.small_normal_, lambda i, o: 1e-4, "constant 0.0001"),
    "our unit": (fixes.unit_normal_, lambda i, o: 1.0, "constant 1"),
    "our xavier normal": (fixes.xavier_normal_, lambda i, o: 2 / (i + o), "2/(fan_in+fan_out)"),
    "our xavier uniform": (fixes.xavier_uniform_, lambda i, o: 2 / (i + o), "2/(fan_in+fan_out)"),
    "our he normal": (fixes.he_normal_, lambda i, o: 2 / i, "2/fan_in"),
    "our he uniform": (fixes.he_uniform_, lambda i, o: 2 / i, "2/fan_in"),
    "our he out": (partial(fixes.he_normal_, fan="fan_out"), lambda i, o: 2 / o, "2/fan_out"),
    "our lecun normal": (fixes.lecun_normal_, lambda i, o: 1 / i, "1/fan_in"),
    "our lecun uniform": (fixes.lecun_uniform_, lambda i, o: 1 / i, "1/fan_in"),
    # one weight of i from Beta(2, 1), which has E p² = 1/2, the others from N(0, σ²/i)
    "our asymmetric": (
        fixes.asymmetric_,
        lambda i, o: (fixes.initialization.ASYMMETRIC_STD**2 * (1 - 1 / i) + 0.5 - 4 / 9 / i) / i,
        "0.9/fan_in",
    ),
}  # fmt: skip
# Its variance is not of the fans: a convolution's matrix has units, not fan_out, rows.
ORTHOGONAL = {
    "orthogonal": (init.orthogonal_, "1/max(fan_in, units)"),
    "orthogonal √2": (partial(init.orthogonal_, gain=math.sqrt(2)), "2/max(fan_in, units)"),
    "our orthogonal": (fixes.orthogonal_, "1/max(fan_in, units)"),
}
ALL = {name: fn for name, (fn, *_) in (CLAIMED | ORTHOGONAL).items()}

EQUAL = {"rows-differ": "a gain or a bias has no units to tell apart"}
LEFT_OUT = {"rows-differ": "what has more outputs than inputs leaves the others zero"}
QR = {
    "finite": "LAPACK has no QR in half precision",
    "scale-free-of-layout": "it takes a view, where another convolution needs a copy",
}
DECLARED = {
    "uniform": {"mean-zero": "it is U(0, 1) unless told otherwise"},
    "zeros": EQUAL,
    "ones": {"mean-zero": "a gain starts at one", **EQUAL},
    "constant": {"mean-zero": "a bias that keeps ReLUs alive", **EQUAL},
    "dirac": {"mean-zero": "one tap of each is 1", **LEFT_OUT},
    "eye": {"mean-zero": "the diagonal is 1", **LEFT_OUT},
    "sparse": {"generator-honoured": "which are zero is up to the global generator"},
    "orthogonal": QR,
    "orthogonal √2": QR,
    "our asymmetric": {
        "mean-zero": "one weight of each unit is positive",
        "independent": "exactly one of each unit's",
    },
}
EXPECTED = {name: {"variance-law": law} for name, (*_, law) in (CLAIMED | ORTHOGONAL).items()}
EXPECTED["eye"] |= {"takes": "dense", "draws": False}
EXPECTED["sparse"] |= {"takes": "dense", "draws": True}
EXPECTED["dirac"] |= {"takes": "Conv1d, Conv2d, Conv3d", "draws": False}
EXPECTED["zeros"] |= {"takes": "dense, Conv1d, Conv2d, Conv3d", "draws": False}


@pytest.mark.one_in(11)
@parametrize_initializers(ALL, declared=DECLARED, expect=EXPECTED)
def test_torchs_and_ours(check):
    check()


@pytest.mark.one_in(5)
@pytest.mark.parametrize(("fn", "variance", "law"), CLAIMED.values(), ids=CLAIMED)
def test_each_has_the_variance_that_its_paper_gives_it(fn, variance, law):
    result = INITIALIZER.result("variance-law", Initializer(fn, variance), {}, {})

    assert (result.status, result.reason) == ("holds", "")


@pytest.mark.one_in(5)
@pytest.mark.parametrize(("fn", "variance", "law"), CLAIMED.values(), ids=CLAIMED)
def test_none_has_a_variance_that_is_a_tenth_more(fn, variance, law):
    def more(fan_in, fan_out):
        return variance(fan_in, fan_out) * 1.1 or 1e-9

    assert INITIALIZER.result("variance-law", Initializer(fn, more), {}, {}).status == "fails"


def test_orthogonal_dense_layers_have_one_over_the_larger_fan():
    def dense(tensor):
        if tensor.ndim > 2:
            raise ValueError("for dense layers")
        init.orthogonal_(tensor)

    larger = Initializer(dense, lambda fan_in, fan_out: 1 / max(fan_in, fan_out))

    assert INITIALIZER.result("variance-law", larger, {}, {}).status == "holds"


# -- one broken initialiser for each way of breaking a law -----------------------------------------


def drawing(change):
    """LeCun's, with a change made to each weight."""

    def fn(tensor, generator=None):
        with torch.no_grad():
            init.kaiming_normal_(tensor, nonlinearity="linear", generator=generator)
            change(tensor)

    return fn


def box_muller(tensor):
    """In half precision torch.rand is zero once in 2¹¹ times."""
    with torch.no_grad():
        size = (-2 * torch.rand_like(tensor).log()).sqrt()
        tensor.copy_(size * (2 * math.pi * torch.rand_like(tensor)).cos())


def refuses_half(tensor):
    if tensor.dtype == torch.float16:
        raise RuntimeError("not in half precision")
    init.normal_(tensor)


def float_for_all(tensor):
    tensor.data = torch.randn(tensor.shape)


def all_but_the_first(tensor):
    init.normal_(tensor[1:])


def learned_gain(tensor):
    init.normal_(tensor.requires_grad_(False))
    tensor.mul_(torch.ones(1, requires_grad=True))


def whole_storage(tensor):
    with torch.no_grad():
        torch.empty(0).set_(tensor.untyped_storage()).normal_()


def left_without_gradients(tensor):
    torch.set_grad_enabled(False)
    tensor.normal_()


def shares(tensor):
    rows = tensor.flatten(1)
    rows += 0.3 * torch.randn(rows.shape[1]) / math.sqrt(rows.shape[1])


def drifts(tensor):
    rows = tensor.flatten(1)
    rows[:, 1:] += 0.5 * rows[:, :-1].clone()


def two_units(tensor):
    tensor[7] = 0.6 * tensor[3] + 0.8 * tensor[7]


def two_inputs(tensor):
    rows = tensor.flatten(1)
    rows[:, 7] = 0.6 * rows[:, 3] + 0.8 * rows[:, 7]


def copied(tensor):
    tensor[-1] = tensor[0]


def with_numpy(tensor):
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.random.randn(*tensor.shape)))


def reseeded(tensor):
    torch.manual_seed(0)
    init.normal_(tensor)


def forked(tensor):
    with torch.random.fork_rng():
        init.normal_(tensor)


def only_dense_is_random(tensor):
    if tensor.ndim == 2:
        init.normal_(tensor)
    else:
        with torch.no_grad():
            tensor.copy_(torch.arange(1.0, tensor.numel() + 1).reshape(tensor.shape).sin())


def ignores(tensor, generator=None):
    init.normal_(tensor)


def dithered(tensor, generator=None):
    init.normal_(tensor, generator=generator)
    with torch.no_grad():
        tensor.add_(0.01 * np.random.uniform(-1, 1))


def fixed(tensor, generator=None):
    init.normal_(tensor, generator=torch.Generator().manual_seed(0))


def own_noise(own):
    def fn(tensor, generator=None):
        init.normal_(tensor, generator=own)

    return fn


def own():
    return torch.Generator().manual_seed(0)


BROKEN = [
    ("finite", box_muller, r"weights of b?f16\[.* are NaN or infinite"),
    ("finite", refuses_half, r"on f16\[128, 128\] it raises RuntimeError: not in half precision"),
    ("dtype-kept", float_for_all, r"of f64\[128, 128\] was torch.float64, and is torch.float32"),
    ("dtype-kept", lambda t: init.normal_(t).requires_grad_(), "requires_grad of .* is True"),
    ("in-place", torch.randn_like, "it returns another tensor, f32"),
    ("in-place", all_but_the_first, r"128 of 16384 weights of f32\[128, 128\] are NaN, as all"),
    ("in-place", lambda t: t.mul_(0.1), "16384 of 16384 weights .* computed from the old values"),
    ("in-place", float_for_all, "has new memory, so that"),
    ("on-parameters", torch.Tensor.normal_, "raises RuntimeError: a leaf Variable"),
    ("on-parameters", learned_gain, "is no leaf afterwards"),
    ("on-parameters", lambda t: init.normal_(t.requires_grad_(False)), "requires no gradient"),
    ("on-parameters", left_without_gradients, "gradients were on, and are off"),
    ("scale-free-of-layout", lambda t: t.view(-1).normal_() and None, "raises RuntimeError"),
    ("scale-free-of-layout", lambda t: t.reshape(-1).normal_(), "transposed: the std is 0, allow"),
    ("scale-free-of-layout", lambda t: t.normal_(0, 1 / t.stride(0)), "transposed: the std is"),
    ("scale-free-of-layout", lambda t: t.reshape(-1).fill_(1.0), "gets other values than a cont"),
    ("scale-free-of-layout", whole_storage, "of every other row: it writes beside the view"),
    ("mean-zero", drawing(lambda t: t.add_(0.01)), r"the mean of .* is 0.0\d+, allowed is ±0.00"),
    ("independent", drawing(shares), "the sum over its 128 units has a std of"),
    ("independent", drawing(drifts), "the sum over its 128 inputs has a std of"),
    ("independent", drawing(lambda t: t.sub_(t.mean(0))), r"128 units has a std of \S+e-"),
    ("independent", drawing(two_units), r"units \d and \d have a correlation of 0.[56]"),
    ("independent", drawing(two_inputs), r"inputs \d and \d have a correlation of 0.[56]"),
    ("rows-differ", drawing(copied), "units 0 and 127 of .* of 128 units 127 are different"),
    ("seed-honoured", with_numpy, "NumPy, Python, or a generator of its own"),
    ("seed-honoured", own_noise(own()), "NumPy, Python, or a generator of its own"),
    ("seed-honoured", reseeded, "the initialiser seeds it"),
    ("seed-honoured", forked, "two layers in a row, .*, are the same"),
    ("seed-honoured", only_dense_is_random, r"\(5\) and \(6\) give f32\[96, 32, 5\] the same"),
    ("generator-honoured", ignores, "also uses the global one of torch$"),
    ("generator-honoured", dithered, "also uses the global one of NumPy$"),
    ("generator-honoured", fixed, "different generators give"),
    ("generator-honoured", own_noise(own()), "equal generators give .* different weights"),
]  # fmt: skip


@pytest.mark.one_in(5)
@pytest.mark.parametrize(("name", "fn", "message"), BROKEN)
def test_what_breaks_a_law_fails(name, fn, message):
    with pytest.raises(errors.FindingsError, match=f"(?m)^  {name}: .*{message}"):
        check_initializer(fn)


def he(tensor, root=True, swap=False, kernel=True, more=1.0):
    """As many write it down from memory."""
    fan = tensor.shape[0 if swap else 1] * (math.prod(tensor.shape[2:]) if kernel else 1)
    init.normal_(tensor, std=more * (math.sqrt(2 / fan) if root else 2 / fan))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"root": False},
            r"f32\[128, 128\] \(fan_in 128, fan_out 128\) is 0.015\d+, allowed is 0.12",
        ),
        ({"swap": True}, r"f32\[256, 64\] .*The variance over all shapes fits 2/fan_out"),
        ({"kernel": False}, r"f32\[96, 32, 5\] \(fan_in 160, fan_out 480\) is 0.2\d+, all"),
        ({"more": math.sqrt(2)}, "The variance over all shapes fits 4/fan_in"),
        (
            {"more": 1.006},
            r"all shapes the std is 1.00\d times the claimed one, .*fits 2.02/fan_in",
        ),
    ],
)
def test_a_variance_that_is_not_the_claimed_one_fails(options, message):
    fn = partial(he, **options)
    with pytest.raises(errors.FindingsError, match=f"variance-law: .*{message}"):
        check_initializer(fn, variance=lambda fan_in, fan_out: 2 / fan_in)

    assert "variance-law" not in check_initializer(he, variance=lambda i, o: 2 / i)


def test_every_law_has_a_broken_initialiser():
    claimed = Initializer(fixes.he_normal_, lambda fan_in, fan_out: 2 / fan_in)
    laws = {r.name for r in INITIALIZER.results(claimed, {}, {}) if r.status == "holds"}

    assert laws == {name for name, *_ in BROKEN} | {"variance-law"}


@pytest.mark.parametrize(
    ("fn", "law"),
    [
        (partial(he, root=False), "other"),
        (partial(he, kernel=False), "other"),
        (lambda t: init.normal_(t) if t.ndim == 2 else init.zeros_(t), "other"),
        (lambda t: init.constant_(t, math.nan), "other"),
        (partial(he, more=10.0), "200/fan_in"),
    ],
)
def test_the_law_is_named_only_where_it_holds_for_all_shapes(fn, law):
    assert INITIALIZER.result("variance-law", Initializer(fn), {}, {}).value == law


def test_laplace_weights_have_their_variance_although_their_tails_are_heavy():
    def laplace(tensor):
        with torch.no_grad():
            sign = torch.randint(2, tensor.shape) * 2 - 1
            tensor.exponential_().mul_(sign).div_(math.sqrt(2))

    assert check_initializer(laplace, variance=lambda i, o: 1) == {
        "takes": "dense, Conv1d, Conv2d, Conv3d",
        "draws": True,
    }


# -- what does not apply --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fn", "reason"),
    [
        ("independent", init.eye_, "it is not random"),
        ("seed-honoured", init.ones_, "it is not random"),
        ("generator-honoured", init.ones_, "its signature has no generator="),
        ("generator-honoured", torch.Tensor.zero_, "its signature has no generator="),
    ],
)
def test_what_makes_no_sense_does_not_apply(name, fn, reason):
    result = INITIALIZER.result(name, Initializer(fn), {}, {})

    assert result.status == "does not apply"
    assert reason in result.reason


def test_what_takes_no_weight_at_all_fails():
    def never(tensor):
        raise ValueError("only on Tuesdays")

    with pytest.raises(errors.FindingsError, match=r"f32\[128, 128\]: ValueError: only on Tues"):
        check_initializer(never)


def test_an_error_that_is_no_refusal_is_a_failure():
    def dense(tensor):
        init.normal_(tensor)
        assert tensor.ndim == 2

    with pytest.raises(
        errors.FindingsError, match=r"mean-zero: on f32\[96, 32, 5\] it raises Asse"
    ):
        check_initializer(dense)


# -- what is left behind --------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize("fn", [init.orthogonal_, with_numpy, reseeded, left_without_gradients])
def test_the_process_is_as_it_was(fn):
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    INITIALIZER.results(Initializer(fn), {}, {})

    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert torch.is_grad_enabled()


def test_the_verdict_does_not_depend_on_the_seed_outside():
    torch.manual_seed(1)
    one = INITIALIZER.results(Initializer(fixes.asymmetric_), {}, {})
    torch.manual_seed(2)

    assert INITIALIZER.results(Initializer(fixes.asymmetric_), {}, {}) == one


def test_importing_it_loads_no_torch():
    program = "import nndiag.testing.initializers, sys; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-W", "error", "-c", program]).returncode == 0


# -- what is given --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "options", "message"),
    [
        ("xavier", {}, "'xavier' is no function of a tensor"),
        (init.normal_, {"variance": 1.0}, "variance is 1.0. Give a function of fan_in and fan_out"),
        (init.normal_, {"variance": lambda i, o: -1.0}, r"variance\(128, 128\) is -1.0"),
        (init.normal_, {"variance": lambda i, o: None}, r"variance\(128, 128\) is None"),
        (init.normal_, {"declared": {"mean": "x"}}, "an initialiser has no such|Did you mean"),
    ],
)
def test_what_is_given_wrongly_is_told(fn, options, message):
    with pytest.raises(errors.NNDiagError, match=message):
        check_initializer(fn, **options)


def test_claims_for_initialisers_that_are_not_there_are_told():
    with pytest.raises(errors.SettingsError, match=r"no such initialiser.* mean 'mine'"):
        parametrize_initializers({"mine": init.normal_}, variance={"mime": lambda i, o: 1.0})
    with pytest.raises(errors.SettingsError, match="None is no function of a tensor"):
        parametrize_initializers({"mine": None})


def test_a_failure_names_the_initialiser_and_its_options():
    with pytest.raises(errors.FindingsError) as raised:
        check_initializer(partial(init.uniform_, b=2.0))

    head, measured, *rest = str(raised.value).splitlines()

    assert head == "uniform_(b=2.0): 1 of 13 properties of an initialiser does not hold"
    assert re.fullmatch(
        r"  mean-zero: the mean of f32\[128, 128\] is (1(\.00\d)?|0\.99\d+), allowed is ±0\.008\d, "
        r"5\.2 standard errors; the std is 0\.5\d+",
        measured,
    )
    assert rest == [
        "    (The mean of n weights is zero, to a standard error of std/√n (central limit "
        "theorem).)",
        'If that is intended: declared={"mean-zero": "why it does not hold"}',
    ]


def test_a_generator_bound_beforehand_is_replaced_and_is_no_seed():
    bound = partial(init.normal_, generator=own())

    assert INITIALIZER.result("generator-honoured", Initializer(bound), {}, {}).status == "holds"
    assert INITIALIZER.result("seed-honoured", Initializer(bound), {}, {}).status == "fails"


# -- in a test suite ------------------------------------------------------------------------------

TESTS = """
import torch
from torch import nn
from nndiag.testing.initializers import parametrize_initializers

def swapped(tensor):
    return nn.init.kaiming_normal_(tensor, mode="fan_out")

@parametrize_initializers(
    {"good": nn.init.kaiming_normal_, "swapped": swapped, "ones": nn.init.ones_},
    variance={name: lambda fan_in, fan_out: 2 / fan_in for name in ("good", "swapped")},
    declared={"ones": {"mean-zero": "a gain", "rows-differ": "a gain has one row"}},
    expect={"ones": {"variance-law": "constant 0"}},
)
def test_initializers(check):
    check()
"""


def test_each_property_of_each_initialiser_is_a_test(pytester):
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-W", "error", "-p", "no:randomly", "-v", "-rsx")

    result.assert_outcomes(passed=32, failed=1, skipped=4, xfailed=2)
    result.stdout.fnmatch_lines_random(
        [
            "*::test_initializers[[]good-variance-law] PASSED*",
            "*::test_initializers[[]swapped-variance-law] FAILED*",
            "*variance-law: the std of f32[[]256, 64] (fan_in 64, fan_out 256) is 0.08*, allowed*",
            "*::test_initializers[[]ones-rows-differ] XFAIL*",
            "XFAIL *ones-rows-differ* - a gain has one row",
            "SKIPPED *it is not random*",
        ]
    )
