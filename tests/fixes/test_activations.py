"""The activations against torch's, their formulas, the Gaussian table and one another."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nndiag.errors import FixError
from nndiag.fixes import activations as ours

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PAIRS = {
    "leaky_relu": (ours.LeakyReLU, nn.LeakyReLU),
    "leaky_relu(0.2)": (lambda: ours.LeakyReLU(0.2), lambda: nn.LeakyReLU(0.2)),
    "leaky_relu(3)": (lambda: ours.LeakyReLU(3.0), lambda: nn.LeakyReLU(3.0)),
    "prelu": (ours.PReLU, nn.PReLU),
    "prelu(init=2)": (lambda: ours.PReLU(init=2.0), lambda: nn.PReLU(init=2.0)),
    "elu": (ours.ELU, nn.ELU),
    "elu(0.5)": (lambda: ours.ELU(0.5), lambda: nn.ELU(0.5)),
    "selu": (ours.SELU, nn.SELU),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
shapes = st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple)
seeds = st.integers(0, 2**32)


def drawn(shape, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return x.to(dtype).requires_grad_()


def through(module, x, cotangent):
    """The output and the gradients of input and parameters."""
    x = x.detach().clone().requires_grad_()
    y = module(x)
    grads = torch.autograd.grad(y, [x, *module.parameters()], cotangent)
    return y.detach(), *grads


def same(found, expected, ulps=4):
    """Equal to a few units in the last place, or to where the dtype runs out of numbers."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    info = torch.finfo(expected.dtype)
    torch.testing.assert_close(
        found, expected, rtol=ulps * info.eps, atol=ulps * info.tiny, equal_nan=True
    )


# --- against torch -------------------------------------------------------------------------------


@every_pair
@given(
    shape=shapes,
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
    scale=st.sampled_from([1e-6, 1.0, 30.0, 1e3]),
)
def test_value_and_gradient_are_those_of_torch(pair, shape, dtype, seed, scale):
    mine, torchs = (make().to(dtype) for make in pair)
    x, cotangent = drawn(shape, dtype, seed, scale), drawn(shape, dtype, seed + 1).detach()

    found, expected = through(mine, x, cotangent), through(torchs, x, cotangent)

    same(found[0], expected[0])
    same(found[1], expected[1])
    if len(found) == 3:  # the slope's gradient is a sum, taken in another order
        size = (x * cotangent).detach().abs().sum().item() + 1e-6
        atol = 4 * torch.finfo(dtype).eps * size
        torch.testing.assert_close(found[2], expected[2], rtol=0, atol=atol)


@every_pair
@every_dtype
@pytest.mark.parametrize("copies", [1, 16], ids=["scalar kernel", "vector kernel"])
def test_odd_values_are_treated_as_by_torch(pair, dtype, copies):
    info = torch.finfo(dtype)
    odd = [math.inf, -math.inf, 0.0, -0.0, info.tiny, -info.tiny, info.max, info.min, -20.0, -1e4]
    x = torch.tensor(odd * copies, dtype=dtype)
    mine, torchs = (make().to(dtype) for make in pair)

    found, expected = (through(m, x, torch.ones_like(x)) for m in (mine, torchs))

    same(found[0], expected[0])
    same(found[1], expected[1])
    assert torch.equal(found[0].signbit(), expected[0].signbit())
    assert found[1].isfinite().all()


@every_pair
@every_dtype
def test_nan_stays_nan_and_harms_no_neighbour(pair, dtype):
    x = torch.tensor([math.nan, 1.0, -1.0], dtype=dtype)
    mine, torchs = (make().to(dtype) for make in pair)

    found, expected = (through(m, x, torch.ones_like(x)) for m in (mine, torchs))

    same(found[0], expected[0])
    same(found[1][1:], expected[1][1:])
    if not isinstance(mine, (ours.ELU, ours.SELU)):
        # There, torch's scalar kernel says 1 and its vector kernel NaN.
        same(found[1], expected[1])


def test_an_infinite_input_on_the_straight_side_does_not_touch_the_learned_slope():
    act, x = ours.PReLU(), torch.tensor([math.inf, -2.0])

    act(x).sum().backward()

    assert act.weight.grad.tolist() == [-2.0]


@pytest.mark.parametrize("act", [ours.ELU(), ours.SELU()], ids=str)
def test_an_exponential_unit_learns_as_far_out_as_exp_does(act):
    x = torch.tensor([-18.0, -50.0, -80.0], requires_grad=True)

    act(x).sum().backward()

    scale = act.alpha * getattr(act, "scale", 1.0)
    torch.testing.assert_close(x.grad, scale * torch.exp(x.detach()), rtol=1e-6, atol=0)


@every_pair
def test_first_and_second_derivatives_are_those_of_finite_differences(pair):
    act = pair[0]().double()
    x = drawn((3, 4), seed=3)

    assert torch.autograd.gradcheck(act, x)
    assert torch.autograd.gradgradcheck(act, x)


@every_pair
def test_it_can_be_differentiated_sample_by_sample(pair):
    act, x = pair[0]().double(), drawn((6,), seed=4)

    slopes = torch.func.vmap(torch.func.grad(act))(x.detach())

    same(slopes, torch.autograd.grad(act(x).sum(), x)[0])


@every_pair
def test_it_is_printed_like_torchs(pair):
    mine, torchs = (make() for make in pair)

    assert repr(mine) == repr(torchs)


@every_pair
def test_the_call_it_says_it_amounts_to_gives_what_it_gives(pair):
    act, x = pair[0]().double(), drawn((5, 3), seed=5)

    function, args = act.as_torch_call(x)

    same(act(x), function(*args))


# --- PReLU ---------------------------------------------------------------------------------------


@given(
    samples=st.integers(1, 4),
    units=st.integers(1, 4),
    rest=st.lists(st.integers(1, 3), max_size=3),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_a_slope_for_each_unit_is_torchs(samples, units, rest, dtype, seed):
    mine, torchs = (kind(units, dtype=dtype) for kind in (ours.PReLU, nn.PReLU))
    slopes = drawn((units,), dtype, seed).detach()
    mine.load_state_dict({"weight": slopes})
    torchs.load_state_dict(mine.state_dict())
    shape = (samples, units, *rest)
    x, cotangent = drawn(shape, dtype, seed + 1), drawn(shape, dtype, seed + 2).detach()

    found, expected = through(mine, x, cotangent), through(torchs, x, cotangent)

    same(found[0], expected[0])
    same(found[1], expected[1])
    size = (x * cotangent).detach().abs().sum().item()
    atol = 4 * torch.finfo(dtype).eps * size
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 2)], ids=str)
def test_prelu_says_which_inputs_have_a_unit_for_each_slope(shape):
    with pytest.raises(FixError, match=r"has 3 slopes but got f32\[.*needs an input \[N, 3, …\]"):
        ours.PReLU(3)(torch.zeros(shape))


def test_prelu_keeps_the_dtype_of_its_input_whatever_that_of_its_slopes():
    for act in (ours.PReLU(), ours.PReLU(4)):
        assert act(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@given(shape=shapes, seed=seeds)
def test_prelu_is_relu_at_slope_zero_and_leaky_relu_at_a_hundredth(shape, seed):
    x = drawn(shape, seed=seed)

    assert torch.equal(ours.PReLU(init=0.0).double()(x), torch.relu(x))
    assert torch.equal(ours.PReLU(init=0.01, dtype=torch.float64)(x), ours.LeakyReLU(0.01)(x))


# --- at a Gaussian -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "mean", "std", "slope_second"),
    [
        (ours.LeakyReLU(0.01), 0.394953, 0.586568, 0.500050),
        (ours.LeakyReLU(0.2), 0.319154, 0.646638, 0.52),
        (ours.PReLU(), 0.299207, 0.664624, 0.53125),
        (ours.ELU(), 0.160521, 0.786879, 0.668102),
        (ours.SELU(), 0.0, 1.0, 1.071575),
    ],
    ids=str,
)
def test_gaussian_moments_are_those_of_quadrature(act, mean, std, slope_second):
    z = drawn((1_000_000,), seed=7)
    y = act.double()(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    y = y.detach()

    for values, expected in [
        (y, mean),
        ((y - mean) ** 2, std**2),
        (slope**2, slope_second),
    ]:
        error = values.std().item() / math.sqrt(len(values))
        assert values.mean().item() == pytest.approx(expected, abs=5 * error + 2e-6)


# --- maxout --------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear of sequences": (lambda: nn.Linear(6, 4, bias=False), (5, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (5, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), (2, 3, 6, 6)),
    "conv2d of one image": (lambda: nn.Conv2d(3, 4, (1, 3), dilation=(1, 2)), (3, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
}
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def piece(maxout, layer, j):
    """The layer that computes the j-th piece of every unit."""
    state = {name: value[j :: maxout.pieces] for name, value in maxout.layer.state_dict().items()}
    layer.load_state_dict(state)
    return layer


@every_layer
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_maxout_is_the_largest_of_as_many_layers(make, shape, pieces):
    torch.manual_seed(0)
    maxout = ours.Maxout.of(make(), pieces)
    nn.init.normal_(maxout.layer.weight)
    if maxout.layer.bias is not None:
        nn.init.normal_(maxout.layer.bias)
    x = torch.randn(shape)

    found = maxout(x)

    stacked = torch.stack([piece(maxout, make(), j)(x) for j in range(pieces)])
    torch.testing.assert_close(found, stacked.max(dim=0).values)
    assert found.shape == make()(x).shape


@every_layer
def test_maxout_keeps_dtype_device_mode_and_the_layer_it_was_given(make, shape):
    layer = make().to(torch.bfloat16).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    maxout = ours.Maxout.of(layer, 2)

    assert maxout(torch.zeros(shape, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert not maxout.layer.training
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert ours.Maxout.of(make().to("meta"), 2).layer.weight.device.type == "meta"


@given(pieces=st.integers(1, 5), inputs=st.integers(1, 9), outputs=st.integers(1, 9))
def test_maxout_has_as_many_times_the_parameters_as_pieces(pieces, inputs, outputs):
    maxout = ours.Maxout.of(nn.Linear(inputs, outputs), pieces)

    count = sum(p.numel() for p in maxout.parameters())
    assert count == pieces * (inputs + 1) * outputs


def pair_of(first, second):
    """One layer of maxout whose units have these two rows as pieces."""
    units, inputs = first.shape
    maxout = ours.Maxout(nn.Linear(inputs, 2 * units, bias=False, dtype=first.dtype), 2)
    with torch.no_grad():
        maxout.layer.weight.copy_(torch.stack([first, second], dim=1).flatten(0, 1))
    return maxout


@given(slope=st.floats(0, 1, exclude_max=True), seed=seeds)
def test_a_pair_with_its_own_multiple_is_a_leaky_relu_and_with_nothing_a_relu(slope, seed):
    w, x = drawn((4, 3), seed=seed).detach(), drawn((5, 3), seed=seed + 1)
    rectified, leaky = torch.relu(x @ w.T), F.leaky_relu(x @ w.T, slope)

    torch.testing.assert_close(pair_of(w, torch.zeros_like(w))(x), rectified)
    torch.testing.assert_close(pair_of(w, slope * w)(x), leaky)
    (found,) = torch.autograd.grad(pair_of(w, slope * w)(x).sum(), x)
    (expected,) = torch.autograd.grad(leaky.sum(), x)
    torch.testing.assert_close(found, expected)


@given(order=st.permutations(range(4)), seed=seeds, ties=st.booleans())
def test_the_order_of_pieces_does_not_matter(order, seed, ties):
    maxout = ours.Maxout.of(nn.Linear(3, 2, dtype=torch.float64), 4)
    nn.init.zeros_(maxout.layer.weight)
    if not ties:
        nn.init.normal_(maxout.layer.weight, generator=torch.Generator().manual_seed(seed))
    other = ours.Maxout.of(nn.Linear(3, 2, dtype=torch.float64), 4)
    rows = torch.tensor([4 * unit + j for unit in range(2) for j in order])
    other.load_state_dict({n: v[rows] for n, v in maxout.state_dict().items()})
    x, cotangent = drawn((6, 3), seed=seed), drawn((6, 2), seed=seed + 1).detach()

    y, grad_x, grad_weight, _ = through(maxout, x, cotangent)
    y2, grad_x2, grad_weight2, _ = through(other, x, cotangent)

    same(y2, y)
    torch.testing.assert_close(grad_x2, grad_x)
    torch.testing.assert_close(grad_weight2, grad_weight[rows])


@given(pieces=st.integers(1, 4), share=st.floats(0, 1), seed=seeds)
def test_maxout_is_convex(pieces, share, seed):
    torch.manual_seed(seed)
    maxout = ours.Maxout.of(nn.Linear(4, 3, dtype=torch.float64), pieces)
    a, b = drawn((7, 4), seed=seed).detach(), drawn((7, 4), seed=seed + 1).detach()

    between, chord = (
        maxout(share * a + (1 - share) * b),
        share * maxout(a) + (1 - share) * maxout(b),
    )

    assert (between <= chord + 1e-12).all()


def test_the_gain_of_a_maximum_is_that_of_the_closed_forms():
    second = {1: 1.0, 2: 1.0, 3: 1 + math.sqrt(3) / (2 * math.pi), 4: 1 + math.sqrt(3) / math.pi}

    for pieces, expected in second.items():
        assert ours.maxout_gain(pieces) == pytest.approx(expected**-0.5, rel=1e-12)


@pytest.mark.parametrize("pieces", [2, 5, 30])
def test_the_gain_of_a_maximum_is_that_of_drawn_gaussians(pieces):
    square = drawn((100_000, pieces), seed=pieces).detach().amax(1).square()

    error = square.std().item() / math.sqrt(len(square))
    assert ours.maxout_gain(pieces) ** -2 == pytest.approx(square.mean().item(), abs=5 * error)


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_maxout_starts_with_weights_that_keep_the_second_moment_through_depth(pieces):
    torch.manual_seed(0)
    layers = [ours.Maxout.of(nn.Linear(512, 512), pieces) for _ in range(6)]
    with torch.no_grad():
        kept = nn.Sequential(*layers)(torch.randn(256, 512)).square().mean().item()

    weight, bias = layers[0].layer.weight, layers[0].layer.bias
    std = ours.maxout_gain(pieces) / math.sqrt(512)
    assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
    assert bias.eq(0).all()
    # Six layers of chance: each has a relative variance under 5/512 (that of ReLU). He's gain of a
    # ReLU would have made it 2^6 times as large.
    assert abs(math.log(kept)) < 5 * math.sqrt(6 * 5 / 512)


def test_convolutions_are_drawn_by_all_their_taps():
    torch.manual_seed(0)
    weight = ours.Maxout.of(nn.Conv2d(32, 64, 3, groups=2), 2).layer.weight

    assert weight.std().item() == pytest.approx(1 / 12, rel=5 / math.sqrt(2 * weight.numel()))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_maxout_says_what_it_can_be_made_of():
    with pytest.raises(FixError, match=r"^Maxout\.of got a LSTM\. It takes nn\.Linear, nn\.Conv1d"):
        ours.Maxout.of(nn.LSTM(3, 3))
    with pytest.raises(FixError, match=r"^Maxout got a ReLU\. It takes nn\.Linear"):
        ours.Maxout(nn.ReLU(), 2)
    with pytest.raises(FixError, match=r"^Maxout\.of got a Doubled\."):
        ours.Maxout.of(Doubled(3, 3))
    assert ours.Maxout(Doubled(3, 4), 2)(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize("pieces", [0, -2, 3])
def test_maxout_says_when_outputs_do_not_divide_into_pieces(pieces):
    with pytest.raises(FixError, match=rf"pieces={pieces} for a Linear of 4 outputs: these must"):
        ours.Maxout(nn.Linear(2, 4), pieces)


def test_a_maximum_over_nothing_is_refused():
    with pytest.raises(FixError, match="pieces=0: give 1 or more"):
        ours.Maxout.of(nn.Linear(2, 4), 0)
