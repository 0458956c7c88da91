"""Where a normalisation goes: right behind the weights or the activation, on the axis of units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import zoo
from sick import applied, conv, dense, output, seen_in, x
from torch import nn

from nndiag import flow, ops
from nndiag.fixes import propose

NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip


def placed(model, batch, fixes):
    """What the fix adds to a copy: the copy, the new modules by name, and the stated effect."""
    snapshot = seen_in(model, batch)
    fixes = list(fixes(snapshot))
    if not fixes:
        return model, {}, ""
    [fix] = fixes
    result = applied(fix, model, batch)
    before = sum(isinstance(m, NORMS) for m in model.modules())
    old = {n for n, m in model.named_modules() if isinstance(m, NORMS)}
    new = {n: m for n, m in result.named_modules() if isinstance(m, NORMS) and n not in old}
    assert len(new) + before == sum(isinstance(m, NORMS) for m in result.modules())
    return result, new, fix.effect


def normalized(model, batch):
    return placed(model, batch, lambda s: propose.normalize(s, s.layers))


def centred(model, batch):
    def fixes(snapshot):
        return propose.center(snapshot, list(flow.hidden_activations(snapshot)))

    return placed(model, batch, fixes)


def watched(model, batch, names):
    """What goes in and comes out of modules in one forward, by name."""
    seen = {}
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_hook(
            # Ahead of what is inserted behind it: the layer's own output.
            lambda m, args, out, name=name: seen.update({name: (args[0].clone(), out.clone())}),
            prepend=True,
        )
    output(model, batch)
    return seen


def is_standard(norm, y):
    """Mean 0 and standard deviation 1 over what its class normalises over."""
    if isinstance(norm, nn.GroupNorm):
        y = y.reshape(len(y), norm.num_groups, -1)
    axes = (0, *range(2, y.dim())) if hasattr(norm, "num_features") else -1
    mean, square = y.mean(axes), y.square().mean(axes)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(square, torch.ones_like(square), atol=0.02, rtol=0)


def chain(layer, act, head):
    """Weights, an activation and a head that reads all positions."""
    return nn.Sequential(layer, act, nn.Flatten(), nn.LazyLinear(head))


def run(build, x):
    torch.manual_seed(0)
    model = build()
    model(x) if any(isinstance(m, nn.LazyLinear) for m in model.modules()) else None
    return model


# What is inserted: by name of the new module its class, its width, and whose output it reads.
PLACES = {
    "linear": (dense(), x(64, 6), {"act.0": (nn.BatchNorm1d, 8, "layer")}),
    "activation as a call": (
        dense(lambda s, x: s.head(torch.sigmoid(s.layer(x)))),
        x(64, 6),
        {"layer.norm_after": (nn.BatchNorm1d, 8, "layer")},
    ),
    "few samples": (dense(), x(8, 6), {"act.0": (nn.LayerNorm, 8, "layer")}),
    "few rows": (
        dense(lambda s, x: s.head(s.act(s.layer(x.mean(0, keepdim=True))))),
        x(64, 6),
        {"act.0": (nn.LayerNorm, 8, "layer")},
    ),
    "sequence": (dense(), x(32, 5, 6), {"act.0": (nn.LayerNorm, 8, "layer")}),
    "sequence as long as wide": (
        dense(), x(32, 8, 6), {"layer.norm_after": (nn.LayerNorm, 8, "layer")},
    ),
    "transposed behind the weights": (
        dense(lambda s, x: s.head(s.act(s.layer(x).transpose(1, 2)).transpose(1, 2))),
        x(32, 8, 6),
        {"layer.norm_after": (nn.LayerNorm, 8, "layer")},
    ),
    "conv1d": (
        conv(lambda: nn.Conv1d(6, 8, 3)), x(32, 6, 9), {"act.0": (nn.BatchNorm1d, 8, "conv")},
    ),
    "conv2d": (
        conv(lambda: nn.Conv2d(6, 8, 3)), x(32, 6, 7, 7), {"act.0": (nn.BatchNorm2d, 8, "conv")},
    ),
    "conv2d as high as wide": (
        conv(lambda: nn.Conv2d(6, 8, 3, padding=1)),
        x(32, 6, 8, 8),
        {"conv.norm_after": (nn.BatchNorm2d, 8, "conv")},
    ),
    "conv3d": (
        conv(lambda: nn.Conv3d(6, 8, 2)), x(32, 6, 4, 4, 4),
        {"act.0": (nn.BatchNorm3d, 8, "conv")},
    ),
    "grouped": (
        conv(lambda: nn.Conv2d(6, 8, 3, groups=2)), x(32, 6, 5, 5),
        {"act.0": (nn.BatchNorm2d, 8, "conv")},
    ),
    "transposed convolution": (
        conv(lambda: nn.ConvTranspose2d(6, 8, 2, stride=2)), x(32, 6, 3, 3),
        {"act.0": (nn.BatchNorm2d, 8, "conv")},
    ),
    "transposed convolution of signals": (
        conv(lambda: nn.ConvTranspose1d(6, 8, 2)), x(32, 6, 4),
        {"act.0": (nn.BatchNorm1d, 8, "conv")},
    ),
    "few pictures": (
        conv(lambda: nn.Conv2d(6, 8, 3)), x(4, 6, 7, 7), {"act.0": (nn.GroupNorm, 8, "conv")},
    ),
    "pooled before the activation": (
        dense(
            lambda s, x: s.head(s.act(F.max_pool2d(s.layer(x), 2)).mean((2, 3))),
            layer=lambda: nn.Conv2d(6, 8, 3),
        ),
        x(32, 6, 8, 8),
        {"layer.norm_after": (nn.BatchNorm2d, 8, "layer")},
    ),
    "flattened before the activation": (
        dense(
            lambda s, x: s.head(s.act(s.layer(x).flatten(1))),
            layer=lambda: nn.Conv2d(6, 8, 3), head=lambda: nn.Linear(8 * 9, 2),
        ),
        x(32, 6, 5, 5),
        {"layer.norm_after": (nn.BatchNorm2d, 8, "layer")},
    ),
    "dropout before the activation": (
        dense(lambda s, x: s.head(s.act(F.dropout(s.layer(x), 0.5)))),
        x(64, 6),
        {"layer.norm_after": (nn.BatchNorm1d, 8, "layer")},
    ),
    "one activation for two layers": (
        dense(
            lambda s, x: s.head(s.act(s.second(s.act(s.layer(x))))),
            second=lambda: nn.Linear(8, 10), head=lambda: nn.Linear(10, 2),
        ),
        x(64, 6),
        {
            "layer.norm_after": (nn.BatchNorm1d, 8, "layer"),
            "second.norm_after": (nn.BatchNorm1d, 10, "second"),
        },
    ),
    "before a residual sum nothing": (
        dense(
            lambda s, x: s.head(x + s.second(s.act(s.layer(x)))),
            second=lambda: nn.Linear(8, 6), head=lambda: nn.Linear(6, 2),
        ),
        x(64, 6),
        {"act.0": (nn.BatchNorm1d, 8, "layer")},
    ),
    "an activation of a residual sum": (
        dense(
            lambda s, x: s.head(s.act(x + s.second(s.first(s.layer(x))))),
            first=nn.ReLU, second=lambda: nn.Linear(8, 6), head=lambda: nn.Linear(6, 2),
        ),
        x(64, 6),
        {"first.0": (nn.BatchNorm1d, 8, "layer")},
    ),
    "a skip from the weights themselves": (
        dense(lambda s, x: s.head(sum_of(s.layer(x), s.act))), x(64, 6), {},
    ),
    "one layer at two places": (
        dense(
            lambda s, x: s.head(s.act(s.layer(s.act(s.layer(x))))), layer=lambda: nn.Linear(8, 8),
        ),
        x(64, 8),
        {},
    ),
    "one layer at two places with an activation at each": (
        dense(
            lambda s, x: s.head(s.act(s.layer(s.other(s.layer(x))))),
            layer=lambda: nn.Linear(8, 8), other=nn.Tanh,
        ),
        x(64, 8),
        {},
    ),
    "a layer norm is there": (
        dense(lambda s, x: s.head(s.act(s.norm(s.layer(x)))), norm=lambda: nn.LayerNorm(8)),
        x(64, 6),
        {},
    ),
    "a batch norm is there": (
        dense(lambda s, x: s.head(s.act(s.norm(s.layer(x)))), norm=lambda: nn.BatchNorm1d(8)),
        x(64, 6),
        {},
    ),
    "two units of few samples": (
        dense(layer=lambda: nn.Linear(6, 2), head=lambda: nn.Linear(2, 2)), x(8, 6), {},
    ),
    "two values of few pictures": (
        dense(
            lambda s, x: s.head(s.act(s.layer(x)).flatten(1)),
            layer=lambda: nn.Conv2d(6, 2, 3), head=lambda: nn.Linear(2, 2),
        ),
        x(4, 6, 3, 3),
        {},
    ),
    "a picture without a batch": (
        dense(
            lambda s, x: s.head(s.act(s.layer(x)).mean((1, 2))), layer=lambda: nn.Conv2d(6, 8, 1),
        ),
        x(6, 8, 8),
        {},
    ),
    "complex numbers": (
        dense(
            lambda s, x: s.head(torch.sigmoid(s.layer(x.to(torch.complex64))).abs()),
            layer=lambda: nn.Linear(6, 8, dtype=torch.complex64),
        ),
        x(64, 6),
        {},
    ),
}  # fmt: skip


def sum_of(z, act):
    return act(z) + z


@pytest.mark.one_in(7)
@pytest.mark.parametrize("case", PLACES)
def test_a_norm_goes_right_behind_the_weights_on_the_axis_of_their_units(case):
    build, batch, expected = PLACES[case]
    torch.manual_seed(0)
    model, new, _ = normalized(build(), batch)

    assert {name: (type(norm), width_of(norm)) for name, norm in new.items()} == {
        name: (kind, width) for name, (kind, width, _) in expected.items()
    }
    layers = [layer for _, _, layer in expected.values()]
    seen = watched(model, batch, [*new, *layers])
    for name, (_, _, layer) in expected.items():
        entering, leaving = seen[name]
        assert torch.equal(entering, seen[layer][1])
        is_standard(new[name], leaving)


def width_of(norm):
    if isinstance(norm, nn.LayerNorm):
        [width] = norm.normalized_shape
        return width
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "name",
    ["fixup", "resnet-preactivation", "residual-mlp-20", "vgg-batchnorm", "conv1d-tcn"],
)
def test_a_norm_lies_between_weights_and_an_activation_and_nowhere_else(name):
    model, batch = zoo.make(name)[:2]
    result, new, _ = normalized(model, batch)
    snapshot = seen_in(result, batch)
    rows = {row.name: row for row in snapshot.layers}
    for norm in new:
        node = rows[norm].node
        [source], [user] = snapshot.nodes[node].inputs, snapshot.consumers[node]
        assert snapshot.nodes[source].op in ops.WEIGHTED
        assert flow.is_activation(snapshot.layer_at(user))
    assert bool(new) == (name != "resnet-preactivation")  # its activations have norms before them


def test_biases_that_a_batch_norm_takes_out_are_told():
    build, batch, _ = PLACES["one activation for two layers"]
    *_, effect = normalized(build(), batch)
    assert effect.endswith(
        "; the 2 biases before it have no effect any more: drop them (bias=False)"
    )


@pytest.mark.parametrize("case", ["few samples", "sequence", "few pictures"])
def test_biases_that_are_of_use_are_not_told(case):
    build, batch, _ = PLACES[case]
    *_, effect = normalized(build(), batch)
    assert "standard deviation 1 in each sample" in effect
    assert "bias" not in effect


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (4, 1), (8, 2), (12, 3), (64, 16), (256, 32), (96, 24)]
)
def test_groups_have_four_channels_at_least_and_number_thirty_two_at_most(channels, groups):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(25 * channels, 2)
    _, new, _ = normalized(nn.Sequential(*layers), x(4, 3, 7, 7))
    [norm] = new.values()

    assert (norm.num_groups, norm.num_channels) == (groups, channels)


# What is inserted to centre an activation: by name its class and its width.
CENTRES = {
    "linear": (dense(), x(64, 6), {"act.1": (nn.BatchNorm1d, 8)}),
    "activation as a call": (
        dense(lambda s, x: s.head(torch.sigmoid(s.layer(x)))),
        x(64, 6),
        {"head.norm_before": (nn.BatchNorm1d, 8)},
    ),
    "sequence": (dense(), x(32, 5, 6), {"act.1": (nn.LayerNorm, 8)}),
    "sequence as long as wide": (dense(), x(32, 8, 6), {"head.norm_before": (nn.LayerNorm, 8)}),
    "conv2d": (
        dense(
            lambda s, x: s.head(s.act(s.layer(x))).mean((2, 3)),
            layer=lambda: nn.Conv2d(6, 8, 3), head=lambda: nn.Conv2d(8, 2, 3),
        ),
        x(32, 6, 7, 7),
        {"act.1": (nn.BatchNorm2d, 8)},
    ),
    "conv2d as high as wide": (
        dense(
            lambda s, x: s.head(s.act(s.layer(x))).mean((2, 3)),
            layer=lambda: nn.Conv2d(6, 8, 3, padding=1), head=lambda: nn.Conv2d(8, 2, 3),
        ),
        x(32, 6, 8, 8),
        {"head.norm_before": (nn.BatchNorm2d, 8)},
    ),
    "flattened for the head": (
        dense(
            lambda s, x: s.head(torch.sigmoid(s.layer(x)).flatten(1)),
            layer=lambda: nn.Conv2d(6, 8, 3), head=lambda: nn.Linear(8 * 9, 2),
        ),
        x(32, 6, 5, 5),
        {"head.norm_before": (nn.BatchNorm1d, 72)},
    ),
    "transposed behind the convolution": (
        dense(
            lambda s, x: s.head(s.act(s.layer(x).transpose(1, 2))),
            layer=lambda: nn.Conv1d(6, 8, 3),
        ),
        x(32, 6, 7),
        {"head.norm_before": (nn.LayerNorm, 8)},
    ),
    "one activation for two layers": (
        dense(
            lambda s, x: s.head(s.act(s.second(s.act(s.layer(x))))),
            second=lambda: nn.Linear(8, 10), head=lambda: nn.Linear(10, 2),
        ),
        x(64, 6),
        {"second.norm_before": (nn.BatchNorm1d, 8), "head.norm_before": (nn.BatchNorm1d, 10)},
    ),
    "two readers": (
        dense(lambda s, x: two_of(s.act(s.layer(x)), s), other=lambda: nn.Linear(8, 2)),
        x(64, 6),
        {"act.1": (nn.BatchNorm1d, 8)},
    ),
    "two readers of a call": (
        dense(
            lambda s, x: two_of(torch.sigmoid(s.layer(x)), s), other=lambda: nn.Linear(8, 2),
        ),
        x(64, 6),
        {},
    ),
    "read by weights and by a sum": (
        dense(
            lambda s, x: skipped(torch.sigmoid(s.layer(x)), s.head), head=lambda: nn.Linear(8, 8),
        ),
        x(64, 6),
        {},
    ),
    "a reader at two places": (
        dense(
            lambda s, x: s.head(torch.sigmoid(s.layer(x))).mean() + s.head(x[:, :8]),
            layer=lambda: nn.Linear(9, 8),
        ),
        x(64, 9),
        {},
    ),
    "read by a sum": (
        dense(
            lambda s, x: s.head(s.act(s.layer(x)) + s.skip(x)), skip=lambda: nn.Linear(6, 8),
        ),
        x(64, 6),
        {},
    ),
    "read by a norm": (
        dense(lambda s, x: s.head(s.norm(s.act(s.layer(x)))), norm=lambda: nn.LayerNorm(8)),
        x(64, 6),
        {},
    ),
    "part of the output": (
        dense(lambda s, x: both_of(s.act(s.layer(x)), s.head)), x(64, 6), {},
    ),
}  # fmt: skip


def two_of(h, s):
    return s.head(h) + s.other(h)


def skipped(h, head):
    return head(h) + h


def both_of(h, head):
    return head(h), h


@pytest.mark.one_in(5)
@pytest.mark.parametrize("case", CENTRES)
def test_centring_goes_behind_the_activation_or_before_its_reader(case):
    build, batch, expected = CENTRES[case]
    torch.manual_seed(0)
    model, new, _ = centred(build(), batch)

    assert {name: (type(norm), width_of(norm)) for name, norm in new.items()} == expected
    for name, (_, leaving) in watched(model, batch, new).items():
        is_standard(new[name], leaving)
