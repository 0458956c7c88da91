"""The demo's networks under nndiag's own plugin, as a team would have theirs."""

from __future__ import annotations

import functools

import torch.nn.functional as F

import nndiag.testing
from nndiag import demo


@functools.cache
def networks():
    return {network.name: network for network in demo.networks()}


def built(name):
    network = networks()[name]
    return network.model, network.batch, network.target


@nndiag.testing.parametrize_with_checks(
    {recipe.name: functools.partial(built, recipe.name) for recipe in demo.RECIPES},
    loss_fn=F.cross_entropy,
    expected={
        "sigmoid-stack": {"vanishing-gradient": "eight sigmoids in a row: the demo shows it"},
        "tanh-10x": {"init-scale": "weights ten times too large: the demo shows it"},
        "dead-relu": {"dead-relu": "trained at fifty times the rate: the demo shows it"},
    },
)
def test_networks(check):
    check()
