"""The schemes against their formulas, torch's own, the lecture's networks, the papers' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nndiag import activations
from nndiag.errors import FixError
from nndiag.fixes.initialization import (
    ASYMMETRIC_STD,
    asymmetric_,
    forget_bias_,
    gain,
    he_normal_,
    he_uniform_,
    lecun_normal_,
    lecun_uniform_,
    matrices,
    orthogonal_,
    positive_bias_,
    small_normal_,
    unit_normal_,
    xavier_normal_,
    xavier_uniform_,
)

RANDOM = [
    small_normal_,
    unit_normal_,
    xavier_normal_,
    xavier_uniform_,
    he_normal_,
    he_uniform_,
    lecun_normal_,
    lecun_uniform_,
    orthogonal_,
    asymmetric_,
]
every_scheme = pytest.mark.parametrize("draw", RANDOM, ids=lambda draw: draw.__name__)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the formulas --------------------------------------------------------------------------------

# Each scheme with the std that its paper asks for, of (fan_in, fan_out).
NORMAL = {
    "small": (small_normal_, {}, lambda i, o: 0.01),
    "small 0.1": (small_normal_, {"std": 0.1}, lambda i, o: 0.1),
    "unit": (unit_normal_, {}, lambda i, o: 1.0),
    "xavier": (xavier_normal_, {}, lambda i, o: math.sqrt(2 / (i + o))),
    "xavier 5/3": (xavier_normal_, {"gain": 5 / 3}, lambda i, o: 5 / 3 * math.sqrt(2 / (i + o))),
    "he": (he_normal_, {}, lambda i, o: math.sqrt(2 / i)),
    "he out": (he_normal_, {"fan": "fan_out"}, lambda i, o: math.sqrt(2 / o)),
    "he leaky": (
        he_normal_,
        {"activation": "leaky_relu", "negative_slope": 0.2},
        lambda i, o: math.sqrt(2 / (1.04 * i)),
    ),
    "he gelu": (he_normal_, {"activation": "gelu"}, lambda i, o: 1.533530 / math.sqrt(i)),
    "he sigmoid out": (
        he_normal_,
        {"activation": "sigmoid", "fan": "fan_out"},
        lambda i, o: 4.722646 / math.sqrt(o),
    ),
    "lecun": (lecun_normal_, {}, lambda i, o: 1 / math.sqrt(i)),
}
UNIFORM = {
    "xavier": (xavier_uniform_, {}, lambda i, o: math.sqrt(6 / (i + o))),
    "xavier 2": (xavier_uniform_, {"gain": 2.0}, lambda i, o: 2 * math.sqrt(6 / (i + o))),
    "he": (he_uniform_, {}, lambda i, o: math.sqrt(6 / i)),
    "he out": (he_uniform_, {"fan": "fan_out"}, lambda i, o: math.sqrt(6 / o)),
    "lecun": (lecun_uniform_, {}, lambda i, o: math.sqrt(3 / i)),
}
# (out, in, *kernel) with at least 300 entries, so that their std is known to a few percent
shapes = st.one_of(
    st.tuples(st.integers(20, 60), st.integers(15, 60)),
    st.tuples(st.integers(10, 30), st.integers(10, 20), st.integers(3, 5)),
    st.tuples(st.integers(5, 20), st.integers(8, 20), st.integers(3, 4), st.integers(3, 4)),
)


def fans(shape):
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


@pytest.mark.parametrize(("draw", "options", "std"), NORMAL.values(), ids=NORMAL)
@given(shape=shapes, dtype=dtypes, seed=seeds)
def test_normal_weights_have_the_std_of_the_formula(draw, options, std, shape, dtype, seed):
    w = draw(torch.empty(shape, dtype=dtype), **options, generator=seeded(seed)).double()
    expected, n = std(*fans(shape)), w.numel()
    assert w.std() == pytest.approx(expected, rel=6 / math.sqrt(2 * n) + 1e-3)
    assert w.mean() == pytest.approx(0, abs=6 * expected / math.sqrt(n))


@pytest.mark.parametrize(("draw", "options", "bound"), UNIFORM.values(), ids=UNIFORM)
@given(shape=shapes, dtype=dtypes, seed=seeds)
def test_uniform_weights_fill_the_bound_of_the_formula(draw, options, bound, shape, dtype, seed):
    w = draw(torch.empty(shape, dtype=dtype), **options, generator=seeded(seed)).double()
    expected, n = bound(*fans(shape)), w.numel()
    assert w.abs().max() <= expected * (1 + torch.finfo(dtype).eps)
    assert w.abs().max() > 0.9 * expected
    assert w.std() == pytest.approx(expected / math.sqrt(3), rel=6 / math.sqrt(2 * n) + 1e-3)
    assert w.mean() == pytest.approx(0, abs=6 * expected / math.sqrt(n))


PIECES = {
    "grouped": (lambda: nn.Conv2d(64, 32, 3, groups=4), 16 * 9, 8 * 9),
    "depthwise": (lambda: nn.Conv2d(256, 256, 3, groups=256), 9, 9),
    "transposed": (lambda: nn.ConvTranspose2d(32, 16, 4, stride=2), 32 * 4, 16 * 16),
    "linear": (lambda: nn.Linear(40, 60), 40, 60),
    "embedding": (lambda: nn.Embedding(50, 40), 1, 40),
    "bilinear": (lambda: nn.Bilinear(8, 9, 30), 72, 30),
    "gates": (lambda: nn.LSTM(40, 40, num_layers=2, bidirectional=False), 40, 40),
    "projections": (lambda: nn.MultiheadAttention(32, 4), 32, 32),
}


@pytest.mark.parametrize(("make", "fan_in", "fan_out"), PIECES.values(), ids=PIECES)
@pytest.mark.parametrize(("draw", "options", "std"), NORMAL.values(), ids=NORMAL)
def test_every_part_of_a_weight_is_drawn_by_its_own_fans(draw, options, std, make, fan_in, fan_out):
    layer = draw(make(), **options, generator=seeded(1))
    for matrix in matrices(layer):
        assert matrix.value.std() == pytest.approx(
            std(fan_in, fan_out), rel=6 / math.sqrt(2 * matrix.value.numel())
        )


def test_torch_s_xavier_takes_three_projections_for_one_matrix():
    ours = xavier_uniform_(nn.MultiheadAttention(64, 4)).in_proj_weight
    theirs = nn.MultiheadAttention(64, 4).in_proj_weight
    assert ours.abs().max().item() == pytest.approx(math.sqrt(6 / 128), rel=0.01)
    assert theirs.abs().max().item() == pytest.approx(math.sqrt(6 / 256), rel=0.01)


@pytest.mark.parametrize(
    ("channels", "std"), [(64, 0.0589), (128, 0.0417), (256, 0.0295), (512, 0.0208)]
)
def test_he_weights_of_a_convolution_as_the_paper_gives_them(channels, std):
    w = he_normal_(torch.empty(64, channels, 3, 3), generator=seeded(2))
    assert w.std() == pytest.approx(std, rel=5 / math.sqrt(2 * w.numel()) + 0.002)


def test_torch_s_default_linear_layer_has_a_third_of_the_variance():
    torch.manual_seed(0)
    layer = nn.Linear(300, 300)
    default = layer.weight.var().item()
    assert lecun_uniform_(layer).weight.var().item() / default == pytest.approx(3, rel=0.05)


# --- torch's own ---------------------------------------------------------------------------------

SAME = {
    "xavier normal": (xavier_normal_, nn.init.xavier_normal_, {}, {}),
    "xavier uniform": (xavier_uniform_, nn.init.xavier_uniform_, {"gain": 1.3}, {"gain": 1.3}),
    "he normal": (he_normal_, nn.init.kaiming_normal_, {}, {"nonlinearity": "relu"}),
    "he uniform": (he_uniform_, nn.init.kaiming_uniform_, {}, {"nonlinearity": "relu"}),
    "he out": (
        he_normal_,
        nn.init.kaiming_normal_,
        {"fan": "fan_out"},
        {"mode": "fan_out", "nonlinearity": "relu"},
    ),
    "he leaky": (
        he_uniform_,
        nn.init.kaiming_uniform_,
        {"activation": "leaky_relu", "negative_slope": 0.3},
        {"a": 0.3},
    ),
    "lecun": (lecun_normal_, nn.init.kaiming_normal_, {}, {"nonlinearity": "linear"}),
    "small": (small_normal_, nn.init.normal_, {}, {"std": 0.01}),
    "unit": (unit_normal_, nn.init.normal_, {}, {}),
    "orthogonal": (orthogonal_, nn.init.orthogonal_, {"gain": 1.5}, {"gain": 1.5}),
}


@pytest.mark.parametrize(("ours", "theirs", "here", "there"), SAME.values(), ids=SAME)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=seeds,
)
def test_where_torch_has_the_fans_right_the_values_are_its(
    ours, theirs, here, there, shape, dtype, seed
):
    drawn = ours(torch.empty(shape, dtype=dtype), **here, generator=seeded(seed))
    expected = theirs(torch.empty(shape, dtype=dtype), **there, generator=seeded(seed))
    torch.testing.assert_close(drawn, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("ours", "theirs", "here", "there"), SAME.values(), ids=SAME)
def test_without_a_generator_torch_s_own_is_used(ours, theirs, here, there):
    torch.manual_seed(3)
    drawn = ours(nn.Conv2d(3, 4, 3).requires_grad_(False), **here).weight
    torch.manual_seed(3)
    expected = nn.Conv2d(3, 4, 3).requires_grad_(False).weight
    torch.testing.assert_close(drawn, theirs(expected, **there), rtol=1e-6, atol=1e-7)


# --- what holds of every scheme ------------------------------------------------------------------


def model(dtype=torch.float32):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ModuleList([nn.LSTM(4, 4), nn.MultiheadAttention(4, 2), nn.Embedding(5, 4)]),
        nn.Linear(8, 4),
    ).to(dtype)


@every_scheme
def test_all_weights_are_drawn_and_nothing_else(draw):
    net = model()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    assert draw(net) is net
    held = {m.name.partition("[")[0] for m in matrices(net)}
    if draw is asymmetric_:
        held |= {n for n in before if "bias" in n and not n.startswith("1.")}
    assert held < set(before)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in held), name


@every_scheme
def test_parameters_stay_the_leaves_they_were(draw):
    net = model()
    net[0].weight.requires_grad_(False)
    grad = net[4].weight.grad = torch.ones(4, 8)
    kept = list(net.parameters())
    draw(net)
    assert all(a is b for a, b in zip(net.parameters(), kept, strict=True))
    assert not net[0].weight.requires_grad
    assert all(p.requires_grad and p.is_leaf for p in kept[1:])
    assert net[4].weight.grad is grad


@every_scheme
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_seed_gives_the_same_weights_and_another_others(draw, dtype):
    one, same, other = (draw(model(dtype), generator=seeded(seed))[0].weight for seed in (5, 5, 6))
    assert one.dtype == dtype
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@every_scheme
def test_a_generator_keeps_the_global_one_out_of_it(draw):
    net, before = model(), torch.get_rng_state()
    draw(net, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@every_scheme
@given(seed=seeds)
def test_values_do_not_depend_on_the_memory_format(draw, seed):
    plain = draw(torch.empty(4, 3, 5, 6), generator=seeded(seed))
    last = torch.empty(4, 3, 5, 6).to(memory_format=torch.channels_last)
    turned = torch.empty(6, 5, 3, 4).permute(3, 2, 1, 0)
    strided = torch.empty(8, 3, 5, 12)[::2, :, :, ::2]
    for tensor in (last, turned, strided):
        assert torch.equal(draw(tensor, generator=seeded(seed)), plain)
    assert last.is_contiguous(memory_format=torch.channels_last)


@every_scheme
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_single_precision_rounded(draw, dtype):
    single = draw(nn.Linear(30, 20), generator=seeded(7))
    half = draw(nn.Linear(30, 20, dtype=dtype), generator=seeded(7))
    assert torch.equal(half.weight, single.weight.to(dtype))


@every_scheme
def test_a_tied_weight_is_drawn_once(draw):
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    alone = draw(nn.Linear(4, 4, bias=False), generator=seeded(8))
    assert torch.equal(draw(tied, generator=seeded(8))[1].weight, alone.weight)


def test_a_layer_drawn_returns_itself_for_use_in_a_model():
    net = nn.Sequential(he_normal_(nn.Linear(4, 4)), nn.ReLU())
    assert net(torch.ones(2, 4)).shape == (2, 4)


# --- orthogonal ----------------------------------------------------------------------------------


def blocks(matrix):
    return matrix.value.reshape(matrix.groups, matrix.value.shape[0] // matrix.groups, -1)


@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.integers(1, 3),
    transposed=st.booleans(),
    dtype=dtypes,
    size=st.floats(0.1, 3.0),
    seed=seeds,
)
def test_all_singular_values_of_an_orthogonal_convolution_are_the_gain(
    groups, channels, kernel, transposed, dtype, size, seed
):
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    layer = kind(*(groups * c for c in channels), kernel, groups=groups, dtype=dtype)
    orthogonal_(layer, size, generator=seeded(seed))
    [matrix] = matrices(layer)
    values = torch.linalg.svdvals(blocks(matrix).double())
    # rounding moves a singular value by the norm of the rounding errors at most
    off = 4 * torch.finfo(dtype).eps * math.sqrt(blocks(matrix)[0].numel())
    assert values.numpy() == pytest.approx(size, rel=max(off, 1e-12))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=3),
        lambda: nn.GRU(5, 7),
        lambda: nn.LSTMCell(5, 7),
        lambda: nn.MultiheadAttention(6, 2),
        lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=5),
        lambda: nn.Embedding(9, 4),
        lambda: nn.Bilinear(2, 3, 4),
    ],
    ids=["lstm", "gru", "cell", "attention", "three widths", "embedding", "bilinear"],
)
def test_each_gate_and_projection_is_orthogonal_by_itself(make):
    for matrix in matrices(orthogonal_(make().double(), 1.2)):
        values = torch.linalg.svdvals(matrix.value.flatten(1))
        assert values.numpy() == pytest.approx(1.2, rel=1e-12), matrix.name


def test_a_transposed_convolution_without_overlap_keeps_every_norm():
    layer = orthogonal_(nn.ConvTranspose2d(6, 3, 2, stride=2, bias=False).double())
    x = torch.randn(4, 6, 5, 5, generator=seeded(9)).double()
    assert layer(x).norm().item() == pytest.approx(x.norm().item(), rel=1e-12)


def test_orthogonal_matrices_favour_no_direction():
    layer = nn.Conv1d(8000, 8000, 1, groups=2000, dtype=torch.float64)
    q = blocks(matrices(orthogonal_(layer, generator=seeded(10)))[0])
    trace = q.diagonal(dim1=1, dim2=2).sum(1)
    # Diaconis & Shahshahani 1994: the traces of Haar matrices have the moments of N(0, 1)
    assert trace.mean() == pytest.approx(0, abs=5 * math.sqrt(1 / 2000))
    assert trace.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / 2000))
    positive = (q > 0).double().mean(0)
    assert positive.numpy() == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 2000))


def test_gaussian_weights_stretch_and_shrink_and_orthogonal_ones_do_not():
    values = torch.linalg.svdvals(lecun_normal_(torch.empty(400, 400), generator=seeded(11)))
    assert values.mean() == pytest.approx(8 / (3 * math.pi), rel=0.01)  # the quarter circle
    assert values.max() == pytest.approx(2, rel=0.05)
    assert values.min() < 0.02
    product = torch.eye(100, dtype=torch.float64)
    gaussian = product.clone()
    for seed in range(10):
        product = product @ orthogonal_(torch.empty(100, 100).double(), generator=seeded(seed))
        gaussian = gaussian @ lecun_normal_(torch.empty(100, 100).double(), generator=seeded(seed))
    assert torch.linalg.svdvals(product).numpy() == pytest.approx(1, rel=1e-10)
    assert torch.linalg.svdvals(gaussian).median() < 0.1


def test_glorot_s_mean_singular_value_of_a_layer():
    # Glorot & Bengio 2010 section 4.2.1: about 0.8 when normalised, about 0.5 by the standard
    # heuristic; the quarter circle has 8/(3π) and that over √3.
    xavier = xavier_uniform_(torch.empty(500, 500), generator=seeded(12))
    assert torch.linalg.svdvals(xavier).mean() == pytest.approx(0.8488, rel=0.01)
    standard = torch.linalg.svdvals(nn.Linear(500, 500).weight.detach())
    assert standard.mean() == pytest.approx(0.4901, rel=0.01)


# --- the lecture's networks ----------------------------------------------------------------------

# 1000 inputs of 500 features from N(0, 1), ten hidden layers of 500 units, no biases (slide 44).
# For each layer: what the slide printed (to its six decimals), the std that an infinitely wide
# network has, and the relative standard deviation of the std over a hundred random networks.
SLIDE_45 = (  # tanh, 0.01
    (0.213081, 0.213546, 0.00191),
    (0.047551, 0.0476421, 0.00316),
    (0.010630, 0.0106519, 0.00416),
    (0.002378, 0.00238182, 0.00515),
    (0.000532, 0.000532592, 0.00584),
    (0.000119, 0.000119091, 0.00630),
    (0.000026, 2.66296e-05, 0.00689),
    (0.000006, 5.95456e-06, 0.00721),
    (0.000001, 1.33148e-06, 0.00806),
    (0.000000, 2.97728e-07, 0.00850),
)
SLIDE_47 = (  # tanh, 1.0
    (0.981879, 0.982012, 0.00011),
    (0.981649, 0.98168, 0.00010),
    (0.981601, 0.981673, 0.00012),
    (0.981755, 0.981673, 0.00012),
    (0.981614, 0.981673, 0.00012),
    (0.981560, 0.981673, 0.00011),
    (0.981520, 0.981673, 0.00013),
    (0.981913, 0.981673, 0.00013),
    (0.981728, 0.981673, 0.00013),
    (0.981736, 0.981673, 0.00012),
)
SLIDE_48 = (  # tanh, Xavier
    (0.627953, 0.627929, 0.00105),
    (0.486051, 0.486262, 0.00168),
    (0.407723, 0.408236, 0.00223),
    (0.357108, 0.357638, 0.00272),
    (0.320917, 0.321622, 0.00323),
    (0.292116, 0.29439, 0.00367),
    (0.273387, 0.272911, 0.00405),
    (0.254935, 0.25543, 0.00447),
    (0.239266, 0.240856, 0.00552),
    (0.228008, 0.228473, 0.00584),
)
SPREAD = (0.0023, 0.0202, 0.0364, 0.0476, 0.0573, 0.0696, 0.0764, 0.0872, 0.0928, 0.0973)
PRINTED_49 = (
    "0.582273 0.403795 0.276912 0.198685 0.140299 0.103280 0.072748 0.051572 0.038583 0.026076"
)
PRINTED_50 = (
    "0.825232 0.827835 0.813855 0.826902 0.834092 0.860035 0.870610 0.889348 0.845357 0.844523"
)
WIDE = math.sqrt(1 - 1 / math.pi)  # std of relu(z) for z ~ N(0, 2)
SLIDE_49 = [  # ReLU, Xavier
    (float(printed), WIDE * 2 ** (-layer / 2), spread)
    for layer, printed, spread in zip(range(1, 11), PRINTED_49.split(), SPREAD, strict=True)
]
SLIDE_50 = [  # ReLU, He
    (float(printed), WIDE, spread)
    for printed, spread in zip(PRINTED_50.split(), SPREAD, strict=True)
]
SLIDES = {
    "45: 0.01 is too small": (small_normal_, torch.tanh, SLIDE_45),
    "47: 1 is too large": (unit_normal_, torch.tanh, SLIDE_47),
    "48: Xavier for tanh": (xavier_normal_, torch.tanh, SLIDE_48),
    "48: uniform Xavier for tanh": (xavier_uniform_, torch.tanh, SLIDE_48),
    "48: LeCun for tanh": (lecun_normal_, torch.tanh, SLIDE_48),
    "49: Xavier for ReLU": (xavier_normal_, torch.relu, SLIDE_49),
    "50: He for ReLU": (he_normal_, torch.relu, SLIDE_50),
    "50: uniform He for ReLU": (he_uniform_, torch.relu, SLIDE_50),
}


def outputs(draw, activation, seed=0, width=500, depth=10, samples=1000):
    """Of each layer of the lecture's network."""
    generator = seeded(seed)
    h = torch.randn(samples, width, generator=generator)
    for _ in range(depth):
        layer = draw(nn.Linear(width, width, bias=False), generator=generator)
        with torch.no_grad():
            h = activation(layer(h))
        yield h


@pytest.mark.parametrize(("draw", "activation", "slide"), SLIDES.values(), ids=SLIDES)
def test_the_lecture_s_networks_have_the_lecture_s_statistics(draw, activation, slide):
    for h, (printed, expected, spread) in zip(outputs(draw, activation), slide, strict=True):
        off = math.log(float(h.std(correction=0)) / expected)
        assert abs(off) < 5 * spread
        if printed > 1e-4:  # it has digits enough
            assert abs(math.log(float(h.std()) / printed)) < 5 * math.sqrt(2) * spread + 1e-3


def test_weights_of_one_saturate_tanh_and_xavier_s_do_not():
    too_large = [float((h.abs() > 0.97).float().mean()) for h in outputs(unit_normal_, torch.tanh)]
    assert too_large == pytest.approx([0.9254, *[0.924] * 9], abs=0.002)
    xavier = [float((h.abs() > 0.97).float().mean()) for h in outputs(xavier_normal_, torch.tanh)]
    assert xavier[0] == pytest.approx(0.0364, abs=0.002)
    assert max(xavier[1:]) < 0.002


def test_he_is_xavier_scaled_by_root_two_in_each_layer():
    he = outputs(he_normal_, torch.relu, width=200, samples=50)
    xavier = outputs(xavier_normal_, torch.relu, width=200, samples=50)
    for layer, (a, b) in enumerate(zip(he, xavier, strict=True), 1):
        torch.testing.assert_close(a, b * 2 ** (layer / 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "share"), [(22, 4.9e-4), (30, 3.05e-5)])
def test_xavier_stalls_where_he_et_al_say_so(depth, share):
    *_, he = outputs(he_normal_, torch.relu, width=100, samples=20, depth=depth)
    *_, xavier = outputs(xavier_normal_, torch.relu, width=100, samples=20, depth=depth)
    assert xavier.norm() / he.norm() == pytest.approx(share, rel=0.01)


def test_selu_keeps_mean_and_variance_with_lecun_s_weights_but_not_with_torch_s_gain():
    *_, ours = outputs(lecun_normal_, F.selu, depth=20)
    assert ours.mean() == pytest.approx(0, abs=0.05)
    assert ours.var() == pytest.approx(1, abs=0.1)

    def by_torch(layer, generator):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="selu", generator=generator)
        return layer

    *_, theirs = outputs(by_torch, F.selu, depth=20)
    assert theirs.var() < 0.5


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "elu", "tanh", "softplus"])
def test_he_keeps_the_second_moment_from_one_layer_to_the_next(name):
    function = getattr(F, name, None) or getattr(torch, name)
    x = torch.randn(4000, 400, generator=seeded(13))  # pre-activations as they should be
    layer = he_normal_(nn.Linear(400, 400, bias=False), name, generator=seeded(14))
    h = function(x)
    with torch.no_grad():
        z = layer(h)
    # what all inputs have in common, the mean of h, goes through 400 weights a unit, once
    common = float(h.mean() ** 2 / h.square().mean())
    assert z.square().mean() == pytest.approx(1, abs=5 * math.sqrt(2 / 400) * common + 0.02)


@pytest.mark.parametrize("name", ["relu", "gelu", "sigmoid", "tanh"])
def test_he_by_fan_out_keeps_the_gradient(name):
    function = getattr(F, name, None) or getattr(torch, name)
    z = torch.randn(4000, 300, generator=seeded(15)).requires_grad_()
    layer = he_normal_(nn.Linear(300, 500), name, fan="fan_out", generator=seeded(16))
    delta = torch.randn(4000, 500, generator=seeded(17))
    layer(function(z)).backward(delta)
    assert z.grad.square().mean() == pytest.approx(1, abs=0.03)


# --- gains ---------------------------------------------------------------------------------------

# For z ~ N(0, 1), by an independent quadrature: std φ, gain forward, gain backward
GAINS = [
    ("linear", {}, 1, 1, 1),
    ("relu", {}, 0.583819, 1.414214, 1.414214),
    ("leaky_relu", {}, 0.586568, 1.414143, 1.414143),
    ("leaky_relu", {"negative_slope": 0.2}, 0.646638, 1.386750, 1.386750),
    ("prelu", {}, 0.664624, 1.371989, 1.371989),
    ("elu", {}, 0.786879, 1.245198, 1.223429),
    ("selu", {}, 1, 1, 0.966026),
    ("tanh", {}, 0.627929, 1.592537, 1.467414),
    ("sigmoid", {}, 0.208276, 1.846229, 4.722646),
    ("gelu", {}, 0.587915, 1.533530, 1.481114),
    ("silu", {}, 0.559538, 1.676532, 1.623320),
    ("softplus", {}, 0.521071, 1.041867, 1.846229),
    ("softsign", {}, 0.427801, 2.337533, 2.095781),
    ("mish", {}, 0.628131, 1.486848, 1.444755),
    ("hardtanh", {}, 0.718372, 1.392036, 1.210287),
]


@pytest.mark.parametrize(("name", "options", "std", "forward", "backward"), GAINS)
def test_gains_of_the_activations(name, options, std, forward, backward):
    assert gain(name, **options) == pytest.approx(forward, abs=5e-6)
    assert gain(name, keep="signal", **options) == gain(name, **options)
    assert gain(name, keep="variance", **options) == pytest.approx(1 / std, rel=1e-5)
    assert gain(name, keep="gradient", **options) == pytest.approx(backward, abs=2e-5)


@pytest.mark.parametrize(
    ("name", "options", "param"),
    [("linear", {}, None), ("relu", {}, None), ("leaky_relu", {"negative_slope": 0.3}, 0.3)],
)
def test_a_gain_is_torch_s_where_that_is_derived(name, options, param):
    assert gain(name, **options) == pytest.approx(nn.init.calculate_gain(name, param))


def test_torch_s_gain_for_selu_contradicts_the_self_normalising_init():
    assert nn.init.calculate_gain("selu") == 0.75
    assert gain("selu") == pytest.approx(1, abs=1e-9)
    assert gain("selu", keep="variance") == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("keep", ["signal", "variance", "gradient"])
@pytest.mark.parametrize("name", sorted(activations.BUILDERS))
def test_every_activation_has_a_gain_that_can_be_used(name, keep):
    options = {"threshold": 0.0, "value": 0.0} if name == "threshold" else {}
    assert 0.1 < gain(name, keep=keep, **options) < 12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gain("rellu"), r"activation 'rellu' is unknown. Did you mean 'relu'\? Known are"),
        (lambda: he_normal_(torch.empty(2, 2), "gelo"), r"Did you mean 'gelu'\?"),
        (lambda: he_uniform_(torch.empty(2, 2), nn.ReLU()), r"activation ReLU\(\) is unknown"),
        (lambda: gain(["relu"]), r"activation \['relu'\] is unknown"),
        (lambda: gain("elu", slope=1.0), r"elu has no option 'slope'. It has: alpha"),
        (
            lambda: gain("leaky_relu", negativ_slope=1.0),
            r"no option 'negativ_slope'. Did you mean 'negative_slope'\?",
        ),
        (lambda: gain("relu", a=1.0), r"relu has no option 'a'. It has: none"),
        (lambda: gain("relu", keep="grad"), r"keep = 'grad' is unknown: .*Did you mean 'gradient'"),
        (lambda: gain("clamp", min=0.0, max=0.0), r"clamp .* has no gain that keeps the signal"),
        (lambda: gain("leaky_relu", negative_slope=math.nan), r"no gain that keeps"),
        (
            lambda: he_normal_(torch.empty(2, 2), fan="fan_on"),
            r"fan = 'fan_on' is unknown: .*Did you mean 'fan_in'",
        ),
        (lambda: small_normal_(torch.empty(2, 2), std=-1.0), r"std = -1.0 is not a positive num"),
        (lambda: small_normal_(torch.empty(2, 2), std=math.nan), r"std = nan is not a positive"),
        (lambda: xavier_normal_(torch.empty(2, 2), 0.0), r"gain = 0.0 is not a positive number"),
        (lambda: xavier_uniform_(torch.empty(2, 2), math.inf), r"gain = inf is not a positive"),
        (lambda: orthogonal_(torch.empty(2, 2), -1.0), r"gain = -1.0 is not a positive number"),
    ],
)
def test_a_wrong_setting_is_said_with_what_is_legal(call, message):
    with pytest.raises(FixError, match=message):
        call()


# --- asymmetric ----------------------------------------------------------------------------------


def test_the_asymmetric_std_is_that_of_the_paper():
    assert pytest.approx(0.6007, abs=5e-5) == ASYMMETRIC_STD
    c = ASYMMETRIC_STD
    assert c**2 / 2 + 4 * c / (3 * math.sqrt(2 * math.pi)) + 1 / 2 == pytest.approx(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(4000, 30, bias=False),
        lambda: nn.Conv1d(1000, 30, 4, bias=False),
        lambda: nn.Conv2d(4000, 30, 1, groups=2, bias=False),
        lambda: nn.ConvTranspose1d(2000, 30, 4, stride=2, groups=2, bias=False),
    ],
    ids=["linear", "convolution", "grouped", "transposed"],
)
def test_each_unit_has_one_weight_from_beta_and_the_others_from_the_normal(make):
    layer = asymmetric_(make(), generator=seeded(18))
    [matrix] = matrices(layer)
    w = matrix.value
    if matrix.unit_axis:  # (groups, in, out, taps) -> (units, the rest)
        w = w.unflatten(0, (matrix.groups, -1)).transpose(1, 2)
    rows = w.reshape(30, -1)
    std = 0.6007 / math.sqrt(matrix.fan_in)
    positive = rows.gather(1, rows.argmax(1, keepdim=True))
    assert positive.min() > 5 * std
    rest = rows[rows < 5 * std]
    assert rest.numel() == rows.numel() - 30
    assert rest.std() == pytest.approx(std, rel=5 / math.sqrt(2 * rest.numel()) + 1e-4)
    assert rest.abs().max() < 6.5 * std


def test_the_chosen_weight_follows_beta():
    layer = asymmetric_(nn.Linear(2000, 1500, bias=False), generator=seeded(19))
    chosen = layer.weight.detach().amax(1).numpy()
    assert scipy.stats.kstest(chosen, scipy.stats.beta(2, 1).cdf).pvalue > 1e-4


def test_without_a_bias_one_of_the_weights_is_chosen():
    only = asymmetric_(nn.Linear(1, 1000, bias=False), generator=seeded(26)).weight
    assert ((only >= 0) & (only <= 1)).all()


def test_weights_and_bias_are_chosen_alike():
    layer = asymmetric_(nn.Linear(3, 40_000), generator=seeded(20))
    v = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double()
    second = 1 / 4 * 1 / 2 + 3 / 4 * 0.6007**2 / 3
    std = math.sqrt(second - (1 / 6) ** 2)
    assert v.mean(0).numpy() == pytest.approx(1 / 6, abs=5 * std / math.sqrt(40_000))
    assert v.square().mean(0).numpy() == pytest.approx(second, abs=0.01)


@pytest.mark.parametrize("n", [1, 2, 10, 200])
@pytest.mark.parametrize("kind", ["equal", "rectified", "one"])
def test_an_asymmetric_layer_does_not_grow_the_second_moment(n, kind):
    h = {
        "equal": torch.ones(n),
        "rectified": torch.randn(n, generator=seeded(21)).abs(),
        "one": torch.eye(n)[0],
    }[kind]
    units = 200_000 // n
    layer = asymmetric_(nn.Linear(n, units, bias=False), generator=seeded(22))
    with torch.no_grad():
        square = layer(h).relu().square().double() * n / float(h.square().sum())
    assert square.mean() < 1 + 5 * square.std() / math.sqrt(units)
    assert square.mean() > 0.3  # and does not lose it either


def test_the_second_moment_of_an_asymmetric_layer_is_the_one_of_the_docstring():
    n, units = 50, 20_000
    h = torch.rand(n, generator=seeded(23)).double()
    rng = np.random.default_rng(0)
    m = np.sqrt(rng.random(400_000)) * h.numpy()[rng.integers(0, n, 400_000)]
    s = ASYMMETRIC_STD * float(h.norm()) / math.sqrt(n)
    t = m / s
    expected = (m**2 + s**2) * scipy.stats.norm.cdf(t) + m * s * scipy.stats.norm.pdf(t)
    layer = asymmetric_(nn.Linear(n, units, bias=False).double(), generator=seeded(24))
    with torch.no_grad():
        square = layer(h).relu().square()
    # the chosen weight takes the place of one of the n normal ones: 1/n less of s²
    assert square.mean() == pytest.approx(
        expected.mean(), rel=1 / n, abs=5 * float(square.std()) / math.sqrt(units)
    )


def born_dead(draw, width, nets=300, depth=10):
    """The share of networks on an interval whose output does not depend on the input."""
    x = torch.linspace(-math.sqrt(3), math.sqrt(3), 101)[:, None]
    generator = seeded(25)
    dead = 0
    for _ in range(nets):
        h = x
        for layer in range(depth):
            linear = nn.Linear(width if layer else 1, width)
            nn.init.zeros_(linear.bias)
            draw(linear, generator=generator)
            with torch.no_grad():
                h = linear(h).relu()
        dead += bool((h == h[0]).all())
    return dead / nets


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("width", "he", "reported"),
    # Lu et al. 2019: of ten layers of two, 91.9 % collapsed in training with He, 29.2 % with RAI
    [(2, 0.915, 0.292), (3, 0.620, 0.15)],
)
def test_asymmetric_weights_let_narrow_networks_live(width, he, reported):
    deviation = 5 * math.sqrt(0.25 / 300)
    assert born_dead(he_normal_, width) == pytest.approx(he, abs=deviation)
    assert born_dead(asymmetric_, width) < min(reported + deviation / 2, he / 2)


# --- biases --------------------------------------------------------------------------------------


def test_positive_biases_go_to_linear_layers_and_convolutions_alone():
    net = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Conv1d(3, 4, 1), nn.LSTM(4, 4), nn.Bilinear(4, 4, 1)
    )
    before = {n: p.clone() for n, p in net.named_parameters()}
    assert positive_bias_(net) is net
    for name, p in net.named_parameters():
        if name in ("0.bias", "2.bias", "4.bias"):
            assert (p == 0.01).all()
        else:
            assert torch.equal(p, before[name]), name
    assert (positive_bias_(nn.ConvTranspose1d(2, 2, 1), 0.1).bias == 0.1).all()


@pytest.mark.parametrize("value", [1.0, -2.0, 5.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        lambda: nn.LSTM(3, 4, proj_size=2),
        lambda: nn.LSTMCell(3, 4),
    ],
    ids=["lstm", "projected", "cell"],
)
def test_the_forget_biases_of_an_lstm_add_up_to_the_value(make, value):
    layer = make()
    before = {n: p.clone() for n, p in layer.named_parameters()}
    assert forget_bias_(layer, value) is layer
    biases = {n: p for n, p in layer.named_parameters() if "bias" in n}
    for name, p in biases.items():
        if "ih" in name:
            assert (p[4:8] + biases[name.replace("ih", "hh")][4:8] == value).all()
        assert torch.equal(p[:4], before[name][:4])
        assert torch.equal(p[8:], before[name][8:])
    for name, p in layer.named_parameters():
        assert name in biases or torch.equal(p, before[name])


def test_a_forget_bias_of_one_keeps_three_quarters_of_a_cell():
    lstm = nn.LSTM(1, 2)
    for p in lstm.parameters():
        nn.init.zeros_(p)
    forget_bias_(lstm)
    cell = torch.ones(1, 1, 2)
    _, (_, after) = lstm(torch.zeros(1, 1, 1), (torch.zeros_like(cell), cell))
    torch.testing.assert_close(after, torch.full_like(after, 1 / (1 + math.exp(-1))))


def test_every_lstm_of_a_model_gets_its_forget_bias():
    net = nn.ModuleList([nn.LSTM(2, 2), nn.GRU(2, 2), nn.Linear(2, 2), nn.LSTMCell(2, 2)])
    gru = net[1].bias_ih_l0.clone()
    forget_bias_(net)
    assert (net[0].bias_ih_l0[2:4] == 1).all()
    assert (net[3].bias_ih[2:4] == 1).all()
    assert torch.equal(net[1].bias_ih_l0, gru)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: positive_bias_(nn.Linear(2, 2, bias=False)),
            r"Linear has no linear or conv.* bias",
        ),
        (lambda: positive_bias_(nn.BatchNorm1d(2)), r"BatchNorm1d has no linear or convolution"),
        (lambda: positive_bias_(nn.Linear(2, 2), -0.01), r"value = -0.01 is not a small positive"),
        (lambda: positive_bias_(nn.Linear(2, 2), math.nan), r"value = nan is not a small positive"),
        (lambda: positive_bias_(torch.zeros(2)), r"not for f32\[2\]"),
        (lambda: positive_bias_(nn.LazyLinear(2)), r"bias is not initialised yet"),
        (lambda: forget_bias_(nn.GRU(2, 2)), r"GRU has no LSTM layer with a bias"),
        (lambda: forget_bias_(nn.LSTM(2, 2, bias=False)), r"LSTM has no LSTM layer with a bias"),
        (lambda: forget_bias_(nn.LSTM(2, 2), math.inf), r"value = inf is not a finite number"),
    ],
)
def test_a_bias_that_cannot_be_set_is_said(call, message):
    with pytest.raises(FixError, match=message):
        call()
