"""The normalisations against torch's, their identities, and the equations of their papers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from nndiag.errors import FixError
from nndiag.fixes import normalization as ours

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
seeds = st.integers(0, 2**32)
BATCH_NORMS = {"BatchNorm1d": 2, "BatchNorm2d": 4, "BatchNorm3d": 5}  # axes of an input
every_batch_norm = pytest.mark.parametrize(("name", "dims"), BATCH_NORMS.items(), ids=BATCH_NORMS)


def drawn(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def both(name, *args, dtype=torch.float64, seed=0, **options):
    """Our module and torch's, with the same drawn weights."""
    mine, torchs = (getattr(m, name)(*args, **options).to(dtype) for m in (ours, nn))
    for p in mine.parameters():
        p.data.copy_(drawn(p.shape, dtype, seed))
    torchs.load_state_dict(mine.state_dict())
    return mine, torchs


def through(module, x, cotangent):
    """The output and the gradients of input and parameters."""
    x = x.detach().clone().requires_grad_()
    y = module(x)
    return y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], cotangent)


def same(found, expected, tolerance=None):
    """Equal, to 1e-9 in float64 and some of the dtype's digits elsewhere."""
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if not b.is_floating_point():
            assert torch.equal(a, b)
            continue
        close = tolerance or {torch.float64: 1e-9, torch.float32: 2e-5}.get(a.dtype)
        close = close or 8 * torch.finfo(a.dtype).eps
        size = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=close * size)


def in_double(torchs, x, cotangent):
    """What torch's module gives in float64, in the dtype of ``x``.

    In bfloat16 its own gradient of a group norm is off by a tenth where a group has two values.
    """
    found = through(copy.deepcopy(torchs).double(), x.double(), cotangent.double())
    return [value.to(x.dtype) for value in found]


@st.composite
def batches(draw, name):
    dims = draw(st.sampled_from((2, 3))) if name == "BatchNorm1d" else BATCH_NORMS[name]
    units = draw(st.integers(1, 4))
    rest = draw(st.lists(st.integers(1, 4), min_size=dims - 2, max_size=dims - 2))
    samples = draw(st.integers(1 if math.prod(rest) > 1 else 2, 6))
    return samples, units, *rest


# --- batch norm against torch --------------------------------------------------------------------


@every_batch_norm
@given(data=st.data())
def test_batch_norm_is_torchs_in_training_and_after_it(name, dims, data):
    shape = data.draw(batches(name))
    options = {
        "eps": data.draw(st.sampled_from([1e-5, 1e-3, 0.5])),
        "momentum": data.draw(st.sampled_from([0.1, 0.7, 1.0, 0.0, None])),
        "affine": data.draw(st.booleans()),
        "track_running_stats": data.draw(st.booleans()),
    }
    seed = data.draw(seeds)
    mine, torchs = both(name, shape[1], seed=seed, **options)
    size = data.draw(st.sampled_from([1e-2, 1.0, 1e3]))

    for step in range(3):
        x = drawn(shape, seed=seed + step) * size + step
        cotangent = drawn(shape, seed=seed - step)
        found, expected = through(mine, x, cotangent), through(torchs, x, cotangent)
        same(found, expected, 1e-7)
        same(mine.state_dict().values(), torchs.state_dict().values())
    mine.eval(), torchs.eval()
    same(through(mine, x, cotangent), through(torchs, x, cotangent), 1e-7)
    same(mine.state_dict().values(), torchs.state_dict().values())


@every_batch_norm
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_keeps_the_dtype_and_its_digits(name, dims, dtype, training):
    shape = (16, 3, 4, 4, 4)[:dims]
    mine, torchs = both(name, 3, dtype=dtype)
    x, cotangent = drawn(shape, dtype, 1) + 10, drawn(shape, dtype, 2)
    mine.train(training), torchs.train(training)

    same(through(mine, x, cotangent)[:2], through(torchs, x, cotangent)[:2])
    same(mine.state_dict().values(), torchs.state_dict().values())


@every_batch_norm
def test_batch_norm_of_half_precision_takes_weights_in_single(name, dims):
    x = drawn((16, 3, 4, 4, 4)[:dims], torch.bfloat16, 1)
    mine, torchs = both(name, 3, dtype=torch.float32)

    same([mine(x)], [torchs(x)])
    same(mine.state_dict().values(), torchs.state_dict().values())


@every_batch_norm
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_state_dicts_load_both_ways(name, dims, affine, tracks):
    options = {"affine": affine, "track_running_stats": tracks}
    shape = (8, 3, 2, 2, 2)[:dims]
    mine, torchs = (getattr(m, name)(3, **options) for m in (ours, nn))
    for module, seed in ((mine, 1), (torchs, 2)):
        module(drawn(shape, torch.float32, seed))
    fresh_mine, fresh_torchs = (getattr(m, name)(3, **options) for m in (ours, nn))

    fresh_mine.load_state_dict(torchs.state_dict())
    fresh_torchs.load_state_dict(mine.state_dict())

    assert list(mine.state_dict()) == list(torchs.state_dict())
    x = drawn(shape, torch.float32, 3)
    same([fresh_mine.eval()(x)], [torchs.eval()(x)])
    same([fresh_torchs.eval()(x)], [mine.eval()(x)])


@every_batch_norm
def test_what_is_switched_off_later_is_forgotten_as_torch_does(name, dims):
    mine, torchs = both(name, 3)
    x = drawn((8, 3, 2, 2, 2)[:dims])
    for module in (mine, torchs):
        module(x)
        module.track_running_stats = False
        module(x + 1)

    same(mine.state_dict().values(), torchs.state_dict().values())
    same([mine.eval()(x)], [torchs.eval()(x)])


@every_batch_norm
def test_reset_forgets_all_batches(name, dims):
    fresh, mine = (getattr(ours, name)(3) for _ in range(2))
    mine(drawn((8, 3, 2, 2, 2)[:dims], torch.float32))

    mine.reset_running_stats()

    same(mine.state_dict().values(), fresh.state_dict().values())
    getattr(ours, name)(3, track_running_stats=False).reset_running_stats()


def digits_network(norms):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        norms.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        norms.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32, bias=False),
        norms.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    ).double()


def test_a_network_trains_on_digits_as_it_does_with_torchs():
    digits = load_digits()
    images = torch.as_tensor(digits.images)[:, None] / 16
    labels = torch.as_tensor(digits.target)
    torch.manual_seed(0)
    mine, torchs = digits_network(ours), digits_network(nn)
    torchs.load_state_dict(mine.state_dict())
    losses = []
    for model in (mine, torchs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        losses.append([])
        for _ in range(100):
            rows = torch.randint(len(images), (64,), generator=generator)
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())

    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[1][-1] < losses[1][0] / 10
    same(mine.state_dict().values(), torchs.state_dict().values(), 1e-6)
    same([mine.eval()(images)], [torchs.eval()(images)], 1e-6)


# --- batch norm by itself ------------------------------------------------------------------------


@given(data=st.data(), name=st.sampled_from(sorted(BATCH_NORMS)))
def test_the_backward_pass_by_hand_is_that_of_torch(data, name):
    shape, seed = data.draw(batches(name)), data.draw(seeds)
    eps = data.draw(st.sampled_from([1e-5, 1e-2, 1.0]))
    x, grad_output = drawn(shape, seed=seed).requires_grad_(), drawn(shape, seed=seed + 1)
    weight = drawn(shape[1:2], seed=seed + 2).requires_grad_()
    bias = torch.zeros_like(weight, requires_grad=True)
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    expected = torch.autograd.grad(y, (x, weight, bias), grad_output)

    found = ours.batch_norm_backward(grad_output, x.detach(), weight.detach(), eps)

    same(found, expected, 1e-7)
    ones = torch.ones_like(weight)
    same(
        ours.batch_norm_backward(grad_output, x.detach(), None, eps),
        ours.batch_norm_backward(grad_output, x.detach(), ones, eps),
    )


def test_derivatives_are_those_of_finite_differences():
    norm = ours.BatchNorm1d(3, track_running_stats=False).double()
    x = drawn((4, 3, 2)).requires_grad_()

    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradgradcheck(norm, x)


def test_outputs_have_mean_zero_and_almost_variance_one():
    x = drawn((50, 4, 3), seed=1) * 3 + 7
    y = ours.BatchNorm1d(4, affine=False, eps=0.01)(x)

    variance = x.var((0, 2), unbiased=False)
    torch.testing.assert_close(y.mean((0, 2)), torch.zeros(4, dtype=x.dtype))
    torch.testing.assert_close(y.var((0, 2), unbiased=False), variance / (variance + 0.01))


def test_a_batch_of_two_is_plus_and_minus_one():
    y = ours.BatchNorm1d(5, eps=1e-14).double()(drawn((2, 5)))

    torch.testing.assert_close(y.abs(), torch.ones_like(y))
    torch.testing.assert_close(y[0], -y[1])


def test_it_remembers_the_unbiased_variance_with_the_momentum():
    norm, x = ours.BatchNorm1d(3).double(), drawn((7, 3))

    norm(x)

    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var(0, unbiased=True))
    assert norm.num_batches_tracked == 1


def test_without_momentum_it_remembers_the_average_of_all_batches():
    norm = ours.BatchNorm1d(3, momentum=None).double()
    seen = [drawn((7, 3), seed=i) for i in range(5)]
    for x in seen:
        norm(x)

    torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean((0, 1)))
    variances = torch.stack([x.var(0) for x in seen])
    torch.testing.assert_close(norm.running_var, variances.mean(0))


@pytest.mark.parametrize("a", [10.0, 100.0])
def test_the_scale_of_the_weights_before_it_does_not_matter(a):
    """BN(aWu) = BN(Wu), and the gradient is 1/a of it (Ioffe & Szegedy 2015 section 3.3)."""
    u, w = drawn((64, 8), seed=1), drawn((5, 8), seed=2)
    norm = ours.BatchNorm1d(5, eps=1e-14).double()

    def loss_and_gradient(weight):
        weight = weight.clone().requires_grad_()
        loss = (norm(u @ weight.T) * drawn((64, 5), seed=3)).sum()
        return loss.detach(), torch.autograd.grad(loss, weight)[0]

    loss, grad = loss_and_gradient(w)
    scaled_loss, scaled_grad = loss_and_gradient(a * w)

    torch.testing.assert_close(scaled_loss, loss)
    torch.testing.assert_close(scaled_grad, grad / a)
    across = (grad * w).sum(1)
    torch.testing.assert_close(across, torch.zeros_like(across), rtol=0, atol=1e-11)


def test_a_bias_before_it_gets_no_gradient_and_does_nothing():
    layer, norm = nn.Linear(8, 5), ours.BatchNorm1d(5)
    x = drawn((64, 8), torch.float32)
    y = norm(layer(x))
    (y * drawn((64, 5), torch.float32, 1)).sum().backward()

    assert layer.bias.grad.abs().max() < 1e-5 * layer.weight.grad.abs().max()
    nn.init.constant_(layer.bias, 3.0)
    torch.testing.assert_close(norm(layer(x)), y, rtol=0, atol=1e-4)


def test_gamma_and_beta_of_the_batchs_own_spread_give_back_the_input():
    """Ioffe & Szegedy 2015 section 3: the layer can represent the identity."""
    x = drawn((30, 4)) * 5 + 2
    norm = ours.BatchNorm1d(4).double()
    norm.load_state_dict(
        norm.state_dict()
        | {"weight": (x.var(0, unbiased=False) + norm.eps).sqrt(), "bias": x.mean(0)}
    )

    torch.testing.assert_close(norm(x), x)


def test_in_eval_mode_a_samples_output_does_not_depend_on_its_neighbours():
    norm, x = ours.BatchNorm1d(4).double(), drawn((6, 4))
    alone = torch.cat([norm.eval()(row[None]) for row in x])

    torch.testing.assert_close(alone, norm(x))
    assert not torch.allclose(norm.train()(x)[:3], norm(x[:3]))


# --- what batch norm refuses ---------------------------------------------------------------------


@every_batch_norm
@pytest.mark.parametrize("samples", [0, 1])
def test_a_batch_of_one_value_a_unit_is_refused_and_leaves_no_trace(name, dims, samples):
    norm = getattr(ours, name)(3)
    before = copy.deepcopy(norm.state_dict())
    x = torch.zeros((samples, 3, 1, 1, 1)[:dims])

    with pytest.raises(
        FixError, match=rf"^{name}\(3\) got f32\[.* in training mode: with {samples} values a unit"
    ):
        norm(x)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    if samples == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            getattr(nn, name)(3)(x)
    norm.eval()(x)


def test_a_batch_of_one_is_refused_in_eval_mode_too_where_nothing_is_remembered():
    with pytest.raises(FixError, match="in eval mode, without running statistics"):
        ours.BatchNorm1d(3, track_running_stats=False).eval()(torch.zeros(1, 3))


@pytest.mark.parametrize("eps", [0.0, -1.0])
def test_an_eps_of_nothing_is_refused_where_the_batch_is_used(eps):
    norm = ours.BatchNorm1d(3, eps=eps)

    with pytest.raises(FixError, match=rf"^BatchNorm1d\(3\) has eps={eps}\. Give more than 0"):
        norm(torch.ones(4, 3))
    assert norm.num_batches_tracked == 0
    if eps == 0:
        torch.testing.assert_close(norm.eval()(torch.ones(4, 3)), torch.ones(4, 3))


@pytest.mark.parametrize(
    ("name", "shape", "legal"),
    [
        ("BatchNorm1d", (3,), r"\[N, 3\] or \[N, 3, L\]"),
        ("BatchNorm1d", (4, 2), r"\[N, 3\] or \[N, 3, L\]"),
        ("BatchNorm1d", (4, 3, 2, 2), r"\[N, 3\] or \[N, 3, L\]"),
        ("BatchNorm2d", (4, 3), r"\[N, 3, H, W\]"),
        ("BatchNorm2d", (4, 2, 3, 3), r"\[N, 3, H, W\]"),
        ("BatchNorm3d", (4, 3, 2, 2), r"\[N, 3, D, H, W\]"),
    ],
)
def test_batch_norm_says_which_shapes_are_legal(name, shape, legal):
    with pytest.raises(FixError, match=rf"^{name}\(3\) got f32\[.*\]\. It takes {legal}\.$"):
        getattr(ours, name)(3)(torch.zeros(shape))


# --- layer norm and group norm -------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    affine=st.booleans(),
    bias=st.booleans(),
    seed=seeds,
)
def test_layer_norm_is_torchs(shape, data, dtype, affine, bias, seed):
    last = shape[-data.draw(st.integers(1, len(shape))) :]
    last = last[0] if len(last) == 1 else last
    options = {"elementwise_affine": affine, "bias": bias, "eps": 1e-2}
    mine, torchs = both("LayerNorm", last, dtype=dtype, seed=seed, **options)
    x, cotangent = drawn(shape, dtype, seed + 1), drawn(shape, dtype, seed + 2)

    same(through(mine, x, cotangent), in_double(torchs, x, cotangent))
    assert list(mine.state_dict()) == list(torchs.state_dict())


@given(
    samples=st.integers(2, 4),
    groups=st.integers(1, 3),
    channels=st.integers(1, 3),
    rest=st.lists(st.integers(1, 4), max_size=3),
    dtype=st.sampled_from(DTYPES),
    affine=st.booleans(),
    seed=seeds,
)
def test_group_norm_is_torchs(samples, groups, channels, rest, dtype, affine, seed):
    shape = (samples, groups * channels, *rest)
    options = {"affine": affine, "eps": 1e-2}
    mine, torchs = both("GroupNorm", groups, shape[1], dtype=dtype, seed=seed, **options)
    x, cotangent = drawn(shape, dtype, seed + 1), drawn(shape, dtype, seed + 2)

    same(through(mine, x, cotangent), in_double(torchs, x, cotangent))
    assert list(mine.state_dict()) == list(torchs.state_dict())


def test_one_group_is_a_layer_norm_and_a_group_a_channel_an_instance_norm():
    x = drawn((3, 6, 5, 5))

    whole, each = ours.GroupNorm(1, 6, affine=False), ours.GroupNorm(6, 6, affine=False)

    torch.testing.assert_close(whole(x), ours.LayerNorm((6, 5, 5), elementwise_affine=False)(x))
    torch.testing.assert_close(each(x), F.instance_norm(x))


ALONE = {
    "LayerNorm": lambda eps: ours.LayerNorm((6, 4), eps),
    "GroupNorm": lambda eps: ours.GroupNorm(3, 6, eps),
}


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
@given(samples=st.integers(1, 5), seed=seeds)
def test_a_sample_is_normalised_alone_even_in_training(make, samples, seed):
    norm, x = make(1e-5).double(), drawn((samples, 6, 4), seed=seed)

    assert torch.equal(torch.cat([norm(row[None]) for row in x]), norm(x))


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=seeds)
def test_scale_and_shift_of_a_sample_do_not_matter(make, scale, shift, seed):
    norm, x = make(1e-14).double(), drawn((3, 6, 4), seed=seed)

    torch.testing.assert_close(norm(scale * x + shift), norm(x), rtol=0, atol=1e-6)


def test_they_say_which_shapes_are_legal():
    with pytest.raises(FixError, match=r"^LayerNorm\(4, 2\) got f32\[3, 2\]\. It takes \[\*, 4"):
        ours.LayerNorm((4, 2))(torch.zeros(3, 2))
    with pytest.raises(FixError, match=r"^LayerNorm\(4\) got f32\[\]\."):
        ours.LayerNorm(4)(torch.tensor(0.0))
    for x in (torch.zeros(4), torch.zeros(2, 3)):
        with pytest.raises(FixError, match=r"^GroupNorm\(2, 4\) got f32\[.* It takes \[N, 4, …\]"):
            ours.GroupNorm(2, 4)(x)


@pytest.mark.parametrize("groups", [0, 3])
def test_groups_divide_the_channels(groups):
    with pytest.raises(FixError, match=f"num_groups={groups} for 4 channels: the groups are of"):
        ours.GroupNorm(groups, 4)


# --- all of them ---------------------------------------------------------------------------------

EVERY = {
    "BatchNorm1d": ((3,), (4, 3)),
    "BatchNorm2d": ((3, 1e-3, None), (4, 3, 2, 2)),
    "BatchNorm3d": ((3, 1e-5, 0.3, False, False), (4, 3, 2, 2, 2)),
    "LayerNorm": (((3, 2),), (4, 3, 2)),
    "GroupNorm": ((3, 6), (4, 6, 2)),
}
every_norm = pytest.mark.parametrize(
    ("name", "args", "shape"), [(n, *rest) for n, rest in EVERY.items()], ids=EVERY
)


@every_norm
@pytest.mark.parametrize("mode", ["training", "eval", "training, not tracked"])
def test_the_call_it_says_it_amounts_to_does_what_it_does(name, args, shape, mode):
    norm, _ = both(name, *args)
    norm(drawn(shape))
    norm.train(mode != "eval")
    if mode.endswith("not tracked") and hasattr(norm, "track_running_stats"):
        norm.track_running_stats = False
    x, other = drawn(shape, seed=1), copy.deepcopy(norm)

    function, args = other.as_torch_call(x)

    torch.testing.assert_close(function(*args), norm(x))
    for key in ("running_mean", "running_var"):
        if key in norm.state_dict():
            torch.testing.assert_close(other.state_dict()[key], norm.state_dict()[key])


@every_norm
def test_a_copy_on_the_meta_device_has_shapes_only(name, args, shape):
    norm = getattr(ours, name)(*args, device="meta")

    assert {t.device.type for t in (*norm.parameters(), *norm.buffers())} <= {"meta"}
