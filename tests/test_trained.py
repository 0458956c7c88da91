"""Whether a model was trained: what shows it, and what must not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import zoo
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nndiag
from nndiag.trained import training


def seen_in(model, batch):
    """A snapshot, by a rule that needs no gradients."""
    return nndiag.check(model, batch, select="dense-activation").snapshot


UNTRAINED = (
    "mlp-1-relu", "mlp-2-prelu", "mlp-layernorm-deep", "mlp-batchnorm-deep", "mlp-bfloat16",
    "residual-mlp-20", "he-relu-20", "siren", "self-normalising", "mnist-example",
    "resnet-zero-gamma", "layer-scale", "conv1d-tcn", "conv3d", "conv-autoencoder",
    "spectral-norm-critic", "weight-norm-mlp", "fixup", "lora-mlp", "lstm", "nano-gpt",
    "highway-20", "mixture-of-experts", "zero-init-head",
)  # fmt: skip


def shown(model, batch):
    return training(seen_in(model, batch))


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", UNTRAINED)
def test_a_net_that_was_never_trained_shows_no_training(name):
    model, batch = zoo.make(name)[:2]
    assert shown(model, batch) == ""


def deep(width=32, norm=None, bias=True):
    layers, fan_in = [], 16
    for _ in range(3):
        layers += [nn.Linear(fan_in, width, bias=bias), *([norm(width)] if norm else []), nn.ReLU()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(fan_in, 4, bias=bias))


def default(bias):
    pass


def zero(bias):
    nn.init.zeros_(bias)


def constant(bias):
    nn.init.constant_(bias, 0.1)


def two_valued(bias):
    bias.copy_(torch.where(torch.arange(len(bias)) % 3 == 0, 1.0, -2.0))


BIASES = [default, zero, constant, two_valued]


def started(biases, width=32, **options):
    model = deep(width, **options)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                biases(layer.bias)
    return model


@pytest.mark.parametrize("biases", BIASES)
@tried(15)
@given(
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([8, 9, 16, 33, 64]),
    st.integers(0, 2**31),
)
def test_no_way_to_start_biases_looks_like_training(biases, dtype, width, seed):
    torch.manual_seed(seed)
    model = started(biases, width).to(dtype)

    assert shown(model, torch.randn(8, 16).to(dtype)) == ""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(6, 256, 3),
        lambda: nn.Conv2d(6, 258, 3, groups=3),
        lambda: nn.ConvTranspose2d(6, 256, 3),
        lambda: nn.ConvTranspose2d(256, 8, 4, stride=2),
        lambda: nn.ConvTranspose2d(6, 256, 2, stride=2, groups=2),
    ],
)
def test_convolutions_draw_biases_by_a_rule_of_their_own(layer, seed):
    torch.manual_seed(seed)
    model = layer()
    assert shown(nn.Sequential(model), torch.randn(4, model.in_channels, 5, 5)) == ""


def test_a_bias_that_rounds_to_beyond_its_bound_does_not_look_like_training():
    torch.manual_seed(0)
    layer = nn.Linear(36, 20_000).bfloat16()
    bias = layer.bias.float().abs().max().item()

    assert bias > 1.001 / 6  # bfloat16 has 0.1660 and 0.1670, but no 1/6
    assert shown(nn.Sequential(layer), torch.randn(8, 36).bfloat16()) == ""


def test_a_constant_that_was_rounded_on_its_way_is_one_still():
    model = nn.Sequential(nn.Linear(16, 32))
    with torch.no_grad():  # as sums in another order give
        model[0].bias.copy_(0.1 * (1 + 1e-7 * (torch.arange(32) % 3)))

    assert len(model[0].bias.unique()) == 3
    assert shown(model, torch.randn(8, 16)) == ""


def test_few_biases_that_lie_close_together_do_not_look_like_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4))
    model[0].bias.data.copy_(torch.tensor([0.01, 0.02, 0.03, 0.4]))

    assert shown(model, torch.randn(8, 16)) == ""


def trained(model, optimizer, steps=20):
    inputs = torch.randn(256, 16)
    labels = (inputs @ torch.randn(16, 4)).argmax(1)
    for _ in range(steps):
        batch = torch.randint(256, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    return model, inputs


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
}


@pytest.mark.one_in(7)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "build",
    [
        lambda: started(zero),
        lambda: started(constant),
        lambda: started(two_valued),
        lambda: deep(256),
        lambda: deep(norm=nn.LayerNorm, bias=False),
        lambda: deep(norm=nn.BatchNorm1d),
    ],
    ids=["zero", "constant", "two-valued", "default", "layer-norm", "batch-norm"],
)
@pytest.mark.parametrize("seed", range(3))
def test_twenty_steps_of_training_show(build, optimizer, seed):
    torch.manual_seed(seed)
    model = build()
    model, inputs = trained(model, OPTIMIZERS[optimizer](model.parameters()))
    found = shown(model, inputs)

    name, _, what = found.partition(" is ")
    assert isinstance(model.get_parameter(name), nn.Parameter)
    assert what in ("not the constant it starts as", "neither constant nor as torch draws it")


def test_where_there_are_neither_biases_nor_norms_nothing_shows():
    torch.manual_seed(0)
    model = deep(bias=False)
    model, inputs = trained(model, torch.optim.Adam(model.parameters(), 1e-2), 100)

    assert shown(model, inputs) == ""
