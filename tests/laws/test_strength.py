"""A stronger fault is still a fault: its finding stays until values leave the dtype's range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from subjects import (
    CLASSES,
    FEATURES,
    HE,
    WIDTH,
    XAVIER,
    N,
    Pooled,
    check,
    duplicated,
    init,
    mlp,
    sequences,
    transformer,
    vectors,
)
from torch import nn
from verdict import found

MOST = {torch.float32: 37, torch.float64: 150}  # decades
# Where each layer multiplies the values once more.
MOST_OF_A_POWER = {torch.float32: 37, torch.float64: 15}


class Fault(NamedTuple):
    """A fault that is none at 1 and grows from there, as far as values are numbers.

    In float64 as far as their squares are: nndiag computes in float64, and knows no wider format.
    """

    rule: str
    inject: Callable[[float], nn.Module]  # in the default dtype
    draw: Callable[[int], torch.Tensor] = vectors
    most: Mapping[torch.dtype, float] = MOST


FAULTS: dict[str, Fault] = {}


def fault(rule: str, **options: object) -> Callable[..., Callable[[float], nn.Module]]:
    def register(inject: Callable[[float], nn.Module]) -> Callable[[float], nn.Module]:
        FAULTS[inject.__name__.replace("_", " ")] = Fault(rule, inject, **options)
        return inject

    return register


def stack(activation, gain, depth=6):
    return mlp(activation, gain, depth)


@fault("init-scale")
def tanh_gain_up(s):
    return stack(nn.Tanh, XAVIER * s)


@fault("saturation")
def one_tanh_layer_gain_up(s):
    model = stack(nn.Tanh, XAVIER, 4)
    init(model[4], s)
    return model


@fault("init-scale")
def sigmoid_gain_up(s):
    return stack(nn.Sigmoid, XAVIER * s)


@fault("init-scale", most=MOST_OF_A_POWER)
def relu_gain_up(s):
    return stack(nn.ReLU, HE * s)


@fault("exploding-gradient", most=MOST_OF_A_POWER)
def leaky_gain_up(s):
    return stack(lambda: nn.LeakyReLU(0.5), s, 8)


@fault("init-scale")
def tanh_gain_down(s):
    return stack(nn.Tanh, XAVIER / s)


@fault("init-scale")
def relu_gain_down(s):
    return stack(nn.ReLU, HE / s)


@fault("vanishing-gradient")
def tanh_gradient_gain_down(s):
    return stack(nn.Tanh, XAVIER / s)


@fault("init-scale")
def convolution_gain_down(s):
    layers = []
    for k in range(5):
        layers += [init(nn.Conv2d(8 if k else 3, 8, 3, padding=1), HE / s), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, CLASSES))


FAULTS["convolution gain down"] = FAULTS["convolution gain down"]._replace(
    draw=lambda n: torch.randn(n, 3, 8, 8)
)


@fault("dead-relu")
def biases_of_most_units_down(s):
    model = stack(nn.ReLU, HE, 4)
    nn.init.constant_(model[2].bias[: WIDTH * 3 // 4], 1 - s)
    return model


@fault("dead-relu")
def biases_of_a_layer_down(s):
    model = stack(nn.ReLU, HE, 4)
    nn.init.constant_(model[2].bias, 1 - s)
    return model


@fault("dead-relu")
def all_biases_down(s):
    model = stack(nn.ReLU, HE, 4)
    for layer in model[:-1:2]:
        nn.init.constant_(layer.bias, 1 - s)
    return model


@fault("saturation")
def tanh_biases_up(s):
    model = stack(nn.Tanh, XAVIER, 3)
    with torch.no_grad():
        model[2].bias.copy_((s - 1) * torch.linspace(1, 1.2, WIDTH))
    return model


@fault("saturation", draw=sequences)
def attention_scores_up(s):
    return transformer(s)


@fault("saturation", draw=sequences)
def lstm_candidate_bias_up(s):
    model = Pooled(nn.LSTM(FEATURES, WIDTH, batch_first=True), WIDTH)
    with torch.no_grad():
        model.body.bias_ih_l0[2 * WIDTH : 3 * WIDTH] = s
    return model


@fault("saturation", draw=sequences)
def lstm_weights_up(s):
    model = Pooled(nn.LSTM(FEATURES, WIDTH, batch_first=True), WIDTH)
    with torch.no_grad():
        model.body.weight_ih_l0.mul_(s)
    return model


@fault("init-scale", most=MOST_OF_A_POWER)
def noise_of_a_wild_step(s):
    """What a learning rate out of hand does to the weights."""
    model = stack(nn.ReLU, HE, 4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.03 * (s - 1) * torch.randn_like(p))
    return model


def normalised():
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    ).eval()


@fault("covariate-shift")
def running_mean_off(s):
    model = normalised()
    model[1].running_mean += s - 1
    model[1].num_batches_tracked += 9
    return model


@fault("covariate-shift")
def running_variance_too_large(s):
    model = normalised()
    model[1].running_var *= s
    model[1].num_batches_tracked += 9
    return model


@fault("covariate-shift")
def running_variance_too_small(s):
    model = normalised()
    model[1].running_var /= s
    model[1].num_batches_tracked += 9
    return model


def diagnosed(name, decades, dtype, seed=0):
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FAULTS[name].inject(10.0**decades)
            x, y = FAULTS[name].draw(N), torch.randint(0, CLASSES, (N,))
    finally:
        torch.set_default_dtype(torch.float32)
    return check(model, (x, y)), model


def out_of_range(report, model):
    """Values are infinite, and the report says so; or weights have become zero, and it does."""
    if "non-finite" in found(report):
        return True
    gone = [p for p in model.parameters() if p.dim() > 1 and not p.any()]
    return bool(gone) and "symmetry" in found(report)


kinds = st.sampled_from(list(FAULTS))
dtypes = st.sampled_from([torch.float32, torch.float64])
shares = st.floats(0, 1)


@tried(120)
@given(kinds, dtypes, shares, shares, st.integers(0, 3))
def test_a_stronger_fault_keeps_its_finding(name, dtype, a, b, seed):
    weak, strong = sorted((a, b))
    rule, most = FAULTS[name].rule, FAULTS[name].most[dtype]

    before, _ = diagnosed(name, weak**2 * most, dtype, seed)
    after, model = diagnosed(name, strong**2 * most, dtype, seed)

    assert before.crashed == after.crashed == ()
    if rule in found(before):
        assert rule in found(after) or out_of_range(after, model)


@tried(20)
@given(kinds, dtypes, st.integers(0, 3))
def test_a_fault_of_no_strength_is_none_and_a_strong_one_is_found(name, dtype, seed):
    without, _ = diagnosed(name, 0, dtype, seed)
    strong, _ = diagnosed(name, 3, dtype, seed)

    assert FAULTS[name].rule not in found(without)
    assert FAULTS[name].rule in found(strong)


# -- faults whose strength is a number of layers or units -----------------------------------------


def pairs(most):
    return st.tuples(st.integers(1, most), st.integers(1, most)).map(sorted)


def sick(model, dtype):
    torch.manual_seed(1)
    x, y = vectors(N), torch.randint(0, CLASSES, (N,))
    return found(check(model.to(dtype), (x.to(dtype), y)))


def of_depth(activation, gain, depth):
    torch.manual_seed(0)
    return mlp(activation, gain, depth)


@tried(12)
@given(pairs(60), dtypes)
def test_a_deeper_sigmoid_stack_still_lets_the_gradient_vanish(depths, dtype):
    shallow, deep = (sick(of_depth(nn.Sigmoid, XAVIER, d), dtype) for d in depths)

    assert ("vanishing-gradient" in shallow) <= ("vanishing-gradient" in deep)
    assert "vanishing-gradient" in deep or depths[1] < 5


@tried(12)
@given(pairs(80), dtypes)
def test_deeper_weights_that_are_too_small_still_are(depths, dtype):
    shallow, deep = (sick(of_depth(nn.ReLU, 1 / 3**0.5, d), dtype) for d in depths)

    assert ("init-scale" in shallow) <= ("init-scale" in deep)
    assert "init-scale" in deep or depths[1] < 7


@tried(15)
@given(pairs(WIDTH), dtypes)
def test_more_equal_units_still_are_equal(counts, dtype):
    few, many = (sick(duplicated(of_depth(nn.Tanh, XAVIER, 4), k), dtype) for k in counts)

    assert ("symmetry" in few) <= ("symmetry" in many)
    assert ("symmetry" in many) == (counts[1] >= 0.1 * WIDTH)


@tried(15)
@given(pairs(WIDTH), dtypes)
def test_more_dead_units_still_are_dead(counts, dtype):
    def killed(count):
        model = of_depth(nn.ReLU, HE, 4)
        nn.init.constant_(model[2].bias[:count], -30.0)
        return sick(model, dtype)

    few, many = (killed(k) for k in counts)

    assert ("dead-relu" in few) <= ("dead-relu" in many)
    assert ("dead-relu" in many) == (counts[1] > 0.4 * WIDTH)


@tried(10)
@given(pairs(4), dtypes)
def test_more_constant_layers_still_are_constant(counts, dtype):
    def flattened(count):
        model = of_depth(nn.Tanh, XAVIER, 5)
        for layer in model[2 : 2 + 2 * count : 2]:
            nn.init.constant_(layer.weight, 0.05)
        return sick(model, dtype)

    assert all("symmetry" in flattened(k) for k in counts)
