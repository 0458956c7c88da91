"""LSUV, centring biases, class frequencies: against the algorithm as written, and exact cases."""

from __future__ import annotations

import copy
import math

import bitwise
import pytest
import torch
import torch.nn.functional as F
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import nndiag
from nndiag.errors import BatchError, FixError
from nndiag.fixes.data_init import class_prior_bias_, data_bias_, lsuv_
from nndiag.fixes.initialization import he_normal_, positive_bias_, small_normal_, unit_normal_

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def without_bias(model):
    for module in model.modules():
        if isinstance(module, LAYERS) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def mlp(width=20, depth=4, activation=nn.ReLU):
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), activation())]
    return without_bias(nn.Sequential(*layers))


class Residual(nn.Module):
    """Convolutions up and down with a skip, a layer called twice, and batch normalisation."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)  # defined first, called last
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.start = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.unused = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        h = F.relu(self.start(x))
        h = h + F.relu(self.norm(self.twice(h)))
        h = F.relu(self.twice(h))
        h = self.drop(F.gelu(self.up(h)))
        return self.head(h.mean((2, 3)))


ORDER = ["start", "twice", "up", "head"]
images = torch.randn(16, 3, 8, 8, generator=seeded(1)) * 3 + 1


def residual(seed=0):
    torch.manual_seed(seed)
    return without_bias(Residual())


def first_outputs(model, batch):
    """What each layer gives at its first call, by name, in order of call."""
    found = {}
    names = {m: name for name, m in model.named_modules() if isinstance(m, LAYERS)}

    def hook(module, _args, output):
        found.setdefault(names[module], output.detach())

    handles = [module.register_forward_hook(hook) for module in names]
    model(batch)
    for handle in handles:
        handle.remove()
    return found


# --- LSUV ----------------------------------------------------------------------------------------


def as_written(model, batch, tolerance=0.1, attempts=10):
    """Mishkin & Matas 2015 algorithm 1, a whole forward pass of a fresh copy for each rescaling."""

    def variance(name):
        torch.manual_seed(7)
        return float(first_outputs(copy.deepcopy(model), batch)[name].double().var(correction=0))

    torch.manual_seed(7)
    for name in first_outputs(copy.deepcopy(model), batch):
        tries, now = 0, variance(name)
        while abs(now - 1) >= tolerance and tries < attempts:
            with torch.no_grad():
                model.get_submodule(name).weight.div_(math.sqrt(now))
            tries, now = tries + 1, variance(name)
    return model


@pytest.mark.parametrize("training", [True, False])
@given(seed=st.integers(0, 1000))
@tried(5)
def test_one_pass_does_what_the_algorithm_does_in_many(seed, training):
    ours = residual(seed).train(training)
    positive_bias_(ours, 0.3)
    theirs = as_written(copy.deepcopy(ours), images)
    torch.manual_seed(7)
    lsuv_(ours, images, orthogonal=False)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


@given(
    depth=st.integers(1, 5),
    width=st.integers(8, 30),
    activation=st.sampled_from([nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Sigmoid]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    start=st.sampled_from([small_normal_, unit_normal_, he_normal_]),
    orthogonal=st.booleans(),
    seed=st.integers(0, 1000),
)
@tried(60)
def test_every_layer_that_ran_gives_unit_variance(
    depth, width, activation, dtype, start, orthogonal, seed
):
    model = start(mlp(width, depth, activation), generator=seeded(seed)).to(dtype)
    batch = torch.randn(64, width, generator=seeded(seed + 1)).to(dtype)
    reached = lsuv_(model, batch, orthogonal=orthogonal, generator=seeded(seed))
    outputs = first_outputs(model, batch)
    assert list(reached) == list(outputs)
    for name, output in outputs.items():
        assert output.double().var(correction=0).item() == pytest.approx(reached[name], rel=1e-5)
        assert abs(reached[name] - 1) < 0.1


def test_layers_are_settled_in_order_of_call_and_named():
    assert list(lsuv_(residual(), images)) == ORDER


@pytest.mark.parametrize("bias", [0.0, 3.0])
@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(3, 5), lambda: nn.Conv2d(3, 5, 3), lambda: nn.ConvTranspose2d(3, 5, 2)],
    ids=["linear", "convolution", "transposed"],
)
def test_without_a_spread_of_biases_one_rescaling_is_exact(make, bias):
    layer = make().double()
    nn.init.constant_(layer.bias, bias)
    shape = (32, 3) if isinstance(layer, nn.Linear) else (32, 3, 6, 6)
    batch = torch.randn(shape, generator=seeded(2)).double()
    [variance] = lsuv_(layer, batch, tolerance=1e-12, attempts=1).values()
    assert variance == pytest.approx(1, abs=1e-12)


def rescaled(bias_std, times):
    """(variance, weight) of a layer with random biases after so many rescalings, by hand."""
    x, w, b = spread(bias_std)
    for _ in range(times):
        w = w / (x @ w.T + b).std(correction=0)
    return float((x @ w.T + b).var(correction=0)), w


def spread(bias_std):
    x = torch.randn(500, 40, generator=seeded(3)).double()
    w = torch.randn(60, 40, generator=seeded(4)).double()
    b = torch.randn(60, generator=seeded(5)).double()
    return x, w, bias_std * (b - b.mean()) / b.std(correction=0)


def by_lsuv(bias_std, **options):
    x, w, b = spread(bias_std)
    layer = nn.Linear(40, 60).double()
    with torch.no_grad():
        layer.weight.copy_(w)
        layer.bias.copy_(b)
    return lsuv_(layer, x, orthogonal=False, **options)["Linear"], layer.weight.detach()


@pytest.mark.parametrize("times", range(1, 8))
def test_each_attempt_is_one_rescaling(times):
    variance, weight = by_lsuv(0.8, tolerance=1e-12, attempts=times)
    expected, by_hand = rescaled(0.8, times)
    assert variance == pytest.approx(expected)
    torch.testing.assert_close(weight, by_hand)


def test_random_biases_take_several_rescalings():
    # |Var - 1| falls by the factor Var(b) each time, in the end: 0.8² = 0.64
    needed = next(n for n in range(50) if abs(rescaled(0.8, n)[0] - 1) < 0.01)
    assert needed > 3
    assert abs(by_lsuv(0.8, tolerance=0.01, attempts=needed)[0] - 1) < 0.01
    assert abs(by_lsuv(0.8, tolerance=0.01, attempts=needed - 1)[0] - 1) >= 0.01


def test_biases_that_alone_exceed_the_variance_leave_the_weights_nothing():
    variance, weight = by_lsuv(2.0, attempts=60)
    assert variance == pytest.approx(4, rel=1e-6)
    assert weight.abs().max() < 1e-12


def test_the_tolerance_is_on_the_variance():
    x, layer = torch.randn(1000, 10, generator=seeded(6)).double(), nn.Linear(10, 10).double()
    nn.init.zeros_(layer.bias)
    lsuv_(layer, x, tolerance=1e-9)
    with torch.no_grad():
        layer.weight.mul_(math.sqrt(1.15))  # the std is off by 7 %
    assert lsuv_(layer, x, orthogonal=False, tolerance=0.16)["Linear"] == pytest.approx(1.15)
    assert lsuv_(layer, x, orthogonal=False, tolerance=0.14)["Linear"] == pytest.approx(1)


def test_what_is_close_enough_is_left_alone():
    model = mlp()
    batch = torch.randn(200, 20, generator=seeded(7))
    lsuv_(model, batch)
    before = copy.deepcopy(model.state_dict())
    lsuv_(model, batch, orthogonal=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_weights_start_orthonormal_unless_told_otherwise():
    model, batch = mlp(), torch.randn(64, 20, generator=seeded(8))
    lsuv_(model, batch)
    for layer in model[::2]:
        values = torch.linalg.svdvals(layer.weight.detach())
        assert (values / values[0]).numpy() == pytest.approx(1, rel=1e-5)

    layer = he_normal_(nn.Linear(20, 20, bias=False))
    before = layer.weight.clone()
    lsuv_(layer, batch, orthogonal=False)
    ratio = (layer.weight / before).detach()
    assert ratio.std() < 1e-6
    assert abs(ratio.mean() - 1) > 0.05


def test_what_did_not_run_and_what_is_no_such_layer_is_left_alone():
    model = residual()
    before = copy.deepcopy(model.state_dict())
    lsuv_(model, images)
    for name, value in model.state_dict().items():
        drawn = name in [f"{layer}.weight" for layer in ORDER]
        assert torch.equal(value, before[name]) == (not drawn), name


def test_only_the_layers_that_are_named_are_scaled():
    model = residual()
    before = copy.deepcopy(model.state_dict())
    assert list(lsuv_(model, images, layers=["up", "twice"])) == ["twice", "up"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in ("up.weight", "twice.weight")), name


def test_a_tied_weight_is_scaled_by_its_first_call():
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    model[2].weight = model[0].weight
    without_bias(model)
    batch = torch.randn(64, 20, generator=seeded(9))
    assert list(lsuv_(model, batch)) == ["0"]
    assert first_outputs(model, batch)["0"].var().item() == pytest.approx(1, abs=0.1)


def test_a_weight_under_weight_norm_is_scaled():
    model = mlp()
    for layer in model[::2]:
        parametrizations.weight_norm(layer)
    batch = torch.randn(64, 20, generator=seeded(10))
    reached = lsuv_(model, batch)
    for name, output in first_outputs(model, batch).items():
        assert output.var(correction=0).item() == pytest.approx(reached[name], rel=1e-4)
        assert reached[name] == pytest.approx(1, abs=0.1)


class Casts(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = small_normal_(mlp(), generator=seeded())

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
            return self.layers(x)


def test_under_autocast_the_settled_parameters_are_used():
    # autocast keeps its copy of a parameter for as long as it lasts, if gradients are asked for
    batch = torch.randn(64, 20, generator=seeded(11)) + 1
    reached = lsuv_(Casts(), batch, orthogonal=False)
    assert list(reached.values()) == pytest.approx([1] * 4, abs=0.1)

    model = he_normal_(Casts(), generator=seeded())
    data_bias_(model, batch)
    for output in first_outputs(model, batch).values():
        assert output.float().mean(0).abs().max() < 0.05


def test_a_transformer_in_eval_mode_runs_its_layers():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    reached = lsuv_(layer, torch.randn(4, 5, 16, generator=seeded(12)))
    assert list(reached) == ["linear1", "linear2"]


def test_a_transformer_with_padding_runs_its_layers():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    batch = {"src": torch.randn(2, 5, 16), "src_key_padding_mask": padding}
    assert len(lsuv_(encoder, batch)) == 4
    assert torch.backends.mha.get_fastpath_enabled()


def test_inference_mode_around_it_leaves_a_model_that_can_be_trained():
    model = mlp()
    parametrizations.weight_norm(model[0])
    batch = torch.randn(64, 20, generator=seeded(27))
    with torch.inference_mode():
        lsuv_(model, batch)
        data_bias_(model, batch)
        he_normal_(model)
    assert not any(p.is_inference() for p in model.parameters())
    model(batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_compiled_model_is_run_eagerly():
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    batch = torch.randn(64, 20, generator=seeded(13))
    with torch.no_grad():
        compiled(batch)
    assert list(lsuv_(compiled, batch)) == [f"_orig_mod.{n}" for n in ("0", "2", "4", "6")]
    assert first_outputs(model, batch)["6"].var().item() == pytest.approx(1, abs=0.1)


def test_hooks_of_the_user_see_the_settled_output():
    seen = []
    model = mlp(depth=1)
    model[0].register_forward_hook(lambda _m, _a, output: seen.append(output.var(correction=0)))
    lsuv_(model, torch.randn(64, 20, generator=seeded(14)) * 3)
    assert [float(v) for v in seen] == pytest.approx([1], abs=0.1)


BATCHES = {
    "tensor": images,
    "with labels": (images, torch.zeros(16, dtype=torch.int64)),
    "keywords": {"x": images},
    "Batch": nndiag.Batch((images,)),
    "stream": [(images, torch.zeros(16)), (images * 9, torch.zeros(16))],
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_batch_is_what_check_takes(batch):
    one, other = residual().eval(), residual().eval()
    reached = lsuv_(one, images, generator=seeded(15))
    assert lsuv_(other, batch, generator=seeded(15)) == reached


def test_the_batch_is_not_changed_by_a_model_that_works_in_place():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(20, 20))
    batch = torch.randn(64, 20, generator=seeded(16))
    before = batch.clone()
    lsuv_(model, batch)
    data_bias_(model, batch)
    assert torch.equal(batch, before)


# --- what is left behind -------------------------------------------------------------------------


def trained():
    """In training mode, with gradients, a frozen layer, hooks and modes of its own."""
    model = residual()
    model(images).sum().backward()
    model.start.weight.requires_grad_(False)
    model.norm.eval()
    model.up.register_forward_pre_hook(lambda _module, _args: None)
    return model


@pytest.mark.parametrize(
    "fix", [lambda m: lsuv_(m, images, orthogonal=False), lambda m: data_bias_(m, images)]
)
def test_only_what_was_settled_differs_afterwards(fix):
    model = trained()
    parameters = {id(p) for p in model.parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    grads = [p.grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]
    hooks = [
        (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._forward_hooks_with_kwargs))
        for m in model.modules()
    ]
    with bitwise.untouched():  # the process: random generators, settings
        fix(model)
    assert {id(p) for p in model.parameters()} == parameters
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert all(a is b for a, b in zip([p.grad for p in model.parameters()], grads, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == asked
    assert hooks == [
        (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._forward_hooks_with_kwargs))
        for m in model.modules()
    ]


def test_an_orthonormal_start_draws_as_any_initialisation_does():
    one, other = residual().eval(), residual().eval()
    torch.manual_seed(17)
    lsuv_(one, images)
    lsuv_(other, images)
    assert not torch.allclose(one.start.weight, other.start.weight)

    generator, state = seeded(18), torch.get_rng_state()
    lsuv_(one, images, generator=generator)
    lsuv_(other, images, generator=seeded(18))
    assert torch.equal(one.start.weight, other.start.weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(generator.get_state(), seeded(18).get_state())


class Fails(Residual):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("at the very end")


def dead():
    model = trained()
    with torch.no_grad():
        model.twice.bias.fill_(math.nan)
    return model


FAULTS = {
    "nothing leaves": (trained, torch.zeros(16, 3, 8, 8), "output of start .Conv2d, f32.16, 8"),
    "not finite": (trained, torch.full((16, 3, 8, 8), math.nan), "output of start"),
    "infinite": (trained, torch.full((16, 3, 8, 8), 3e38), "output of"),
    "not finite later": (dead, images, "output of twice .Conv2d, "),
    "the model raises": (lambda: without_bias(Fails()), images, "at the very end"),
}


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize(("make", "batch", "message"), FAULTS.values(), ids=FAULTS)
def test_after_an_error_lsuv_leaves_everything_as_it_was(make, batch, message, orthogonal):
    model, generator = make(), seeded(19)
    for drawn_by in (None, generator):
        with (
            bitwise.untouched(model, generator),
            pytest.raises((FixError, RuntimeError), match=message),
        ):
            lsuv_(model, batch, orthogonal=orthogonal, generator=drawn_by)


@pytest.mark.parametrize("case", [*FAULTS][1:])
def test_after_an_error_centring_leaves_everything_as_it_was(case):
    make, batch, message = FAULTS[case]
    model = make()
    with bitwise.untouched(model), pytest.raises((FixError, RuntimeError), match=message):
        data_bias_(model, batch)


def test_a_parametrization_that_refuses_the_orthonormal_start_changes_nothing():
    model = trained()
    parametrizations.orthogonal(model.start, orthogonal_map="cayley", use_trivialization=False)
    with bitwise.untouched(model), pytest.raises(FixError, match=r"start\.weight cannot be set"):
        lsuv_(model, images)


@pytest.mark.parametrize("fix", [lsuv_, data_bias_])
def test_a_batch_that_does_not_fit_changes_nothing(fix):
    model = trained()
    for batch in ((), torch.zeros(0, 3, 8, 8), {"y": images}, "images"):
        with bitwise.untouched(model), pytest.raises(BatchError):
            fix(model, batch)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lsuv_(mlp(), images, tolerance=0.0), r"tolerance = 0.0, attempts = 10, but"),
        (lambda: lsuv_(mlp(), images, tolerance=math.nan), r"tolerance = nan"),
        (lambda: lsuv_(mlp(), images, attempts=0), r"attempts = 0, but .* at least 1"),
        (lambda: lsuv_(torch.zeros(3, 3), images), r"not for f32\[3, 3\]"),
        (
            lambda: lsuv_(residual(), images, layers=["star"]),
            r"no linear layer or convolution is called 'star'. Did you mean 'start'\?",
        ),
        (lambda: lsuv_(residual(), images, layers=["norm"]), r"is called 'norm'"),
        (lambda: lsuv_(residual(), images, layers=[]), r"none of .* ran: there are none"),
        (lambda: lsuv_(nn.ReLU(), images), r"none of .* of ReLU ran: there are none"),
        (
            lambda: lsuv_(nn.MultiheadAttention(4, 2), (torch.ones(3, 2, 4),) * 3),
            r"none of .* of MultiheadAttention ran: out_proj",
        ),
        (lambda: lsuv_(nn.LazyLinear(3), images), r"is not initialised yet"),
        (lambda: data_bias_(nn.Linear(8, 8, bias=False), images), r"none of .*: there are none"),
        (
            lambda: lsuv_(nn.Linear(3, 1), torch.ones(1, 3)),
            r"lsuv_: the output of Linear \(Linear, f32\[1, 1\]\) has variance 0 .* all its values",
        ),
    ],
)
def test_what_cannot_be_settled_is_said(call, message):
    with pytest.raises(FixError, match=message):
        call()


# --- centring biases -----------------------------------------------------------------------------


@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
@tried(20)
def test_every_unit_is_centred_at_the_first_call_of_its_layer(dtype, training, seed):
    model = residual(seed).to(dtype).train(training)
    model.drop.eval()
    model.norm.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    removed = data_bias_(model, images.to(dtype))

    outputs = first_outputs(copy.deepcopy(model), images.to(dtype))
    assert list(removed) == list(outputs) == ORDER
    for name, output in outputs.items():
        axes = (0,) if output.dim() == 2 else (0, 2, 3)
        mean, size = output.double().mean(axes), output.double().abs().max()
        assert mean.abs().max() <= 4 * torch.finfo(dtype).eps * size, name
    for name, value in model.state_dict().items():
        settled = name in [f"{layer}.bias" for layer in ORDER]
        assert torch.equal(value, before[name]) == (not settled), name


def test_what_was_removed_is_the_largest_mean_of_a_unit():
    layer = nn.Linear(6, 4)
    x = torch.randn(100, 6, generator=seeded(20)) + 2
    mean = layer(x).mean(0)
    old = layer.bias.clone()
    assert data_bias_(layer, x)["Linear"] == pytest.approx(mean.abs().max().item())
    torch.testing.assert_close(layer.bias, old - mean)


def test_centred_relus_are_active_on_half_of_the_batch():
    torch.manual_seed(21)
    model = he_normal_(mlp(50, 6))
    batch = torch.randn(500, 50) * 2 + 5  # as far from centred as pixels are
    data_bias_(model, batch)
    for output in first_outputs(model, batch).values():
        assert (output > 0).float().mean() == pytest.approx(0.5, abs=0.08)
        assert (output > 0).any(0).all()


def test_one_image_without_a_batch_axis_is_centred_by_channel():
    layer = nn.Conv2d(3, 4, 3)
    data_bias_(layer, nndiag.Batch((images[0],)))
    assert layer(images[0]).mean((1, 2)).abs().max() < 1e-5


def test_a_shared_bias_is_set_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].bias = model[0].bias
    batch = torch.randn(50, 6, generator=seeded(22))
    assert list(data_bias_(model, batch)) == ["0"]
    assert model[0](batch).mean(0).abs().max() < 1e-6


# --- class frequencies ---------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(1, 50), min_size=2, max_size=12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_loss_starts_at_the_entropy_of_the_labels(counts, dtype):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    head = nn.Linear(4, len(counts), dtype=dtype)
    nn.init.zeros_(head.weight)
    assert class_prior_bias_(head, labels) is head

    frequency = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    torch.testing.assert_close(head.bias.softmax(0).double(), frequency, rtol=1e-5, atol=0)
    loss = F.cross_entropy(head(torch.randn(len(labels), 4, dtype=dtype)), labels)
    entropy = -(frequency * frequency.log()).sum()
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert loss.item() <= math.log(len(counts)) + 1e-5


@pytest.mark.parametrize("classes", [None, 2])
def test_a_head_of_one_unit_gets_the_log_odds(classes):
    head = nn.Linear(4, 1)
    nn.init.zeros_(head.weight)
    labels = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    class_prior_bias_(head, labels, classes)
    torch.testing.assert_close(head(torch.randn(3, 4)).sigmoid(), torch.full((3, 1), 0.2))


def test_a_head_of_pixels_takes_labels_of_pixels():
    head = nn.Conv2d(4, 3, 1)
    labels = torch.tensor([0, 1, 2, 2]).repeat(2, 4, 1)
    weight = head.weight.clone()
    class_prior_bias_(head, labels, classes=3)
    torch.testing.assert_close(head.bias.softmax(0), torch.tensor([0.25, 0.25, 0.5]))
    assert torch.equal(head.weight, weight)


@pytest.mark.parametrize(
    ("head", "labels", "options", "message"),
    [
        (nn.Linear(4, 3, bias=False), [0, 1, 2], {}, r"Linear is not a single layer with a bias"),
        (mlp(), [0, 1], {}, r"Sequential is not a single layer"),
        (nn.Linear(4, 3), [0, 1, 2], {"classes": 4}, r"classes = 4, but the head has 3 units"),
        (nn.Linear(4, 1), [0, 1], {"classes": 1}, r"classes = 1, but the head has 1 units, .* 2"),
        (nn.Linear(4, 3), [0.0, 1.0, 2.0], {}, r"labels are f32\[3\], but must be integers"),
        (nn.Linear(4, 3), [], {}, r"labels are f32\[0\], but must be integers, at least one"),
        (nn.Linear(4, 3), [0, 1, 2, -100], {}, r"run from -100 to 2, but 3 classes have 0 to 2"),
        (nn.Linear(4, 3), [0, 1, 2, 3], {}, r"run from 0 to 3, but 3 classes"),
        (nn.Linear(4, 4), [0, 2, 2], {}, r"no label is 1, 3: 2 of 4 classes have no frequency"),
        (nn.Linear(4, 9), [0, 8], {}, r"no label is 1, 2, 3, 4, 5, 6 …: 7 of 9 classes"),
    ],
)
def test_labels_that_do_not_fit_the_head_are_said(head, labels, options, message):
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(FixError, match=message):
        class_prior_bias_(head, torch.tensor(labels), **options)
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name])
