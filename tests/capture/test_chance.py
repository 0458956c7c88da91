"""How often a unit with random weights is never active on the very inputs that a layer has."""

from __future__ import annotations

import torch
from torch import nn

from nndiag.capture import chance


def layer_with_a_dead_unit():
    torch.manual_seed(0)
    x, layer = torch.rand(64, 8), nn.Linear(8, 16).requires_grad_(False)
    layer.bias[0] = -100.0
    return x, layer


def counted(x, layer, **other):
    pending = chance.never_active(
        x, other.get("weight", layer.weight), other.get("bias", layer.bias), layer(x)
    )
    return pending and pending.read(pending.vector.numpy())


def test_draws_are_the_same_each_time_and_leave_torch_s_generator_alone():
    x, layer = layer_with_a_dead_unit()
    before = torch.get_rng_state()

    first, again = counted(x, layer), counted(x, layer)

    assert first == again
    assert 0 < first["random_closed_count"] < first["random_units_count"] / 2
    assert torch.equal(torch.get_rng_state(), before)


def test_nobody_asks_where_every_unit_was_active():
    x, layer = layer_with_a_dead_unit()
    layer.bias.fill_(1.0)

    assert counted(x, layer) is None


def test_parameters_whose_memory_was_given_back_are_not_read():
    """As a sharded layer's are, once it has run."""
    x, layer = layer_with_a_dead_unit()
    for name in ("weight", "bias"):
        gone = torch.zeros_like(getattr(layer, name))
        gone.untyped_storage().resize_(0)

        assert counted(x, layer, **{name: gone}) is None
