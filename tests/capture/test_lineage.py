"""Where the unit and the sample axis go, against labels carried through the same call."""

from __future__ import annotations

import math

import models
import pytest
import torch
import torch.nn.functional as F
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from oracle import look, row
from torch import nn

from nndiag.capture.lineage import RESHAPED, Trail, joined, reduced, reshaped, viewed
from nndiag.layout import Axes

N, C = 4, 6
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def labels(shape, axis, samples=0):
    """A tensor whose entries say which unit, or which sample, they belong to."""
    index = torch.arange(shape[axis]) // (shape[axis] // samples if samples else 1)
    view = [1] * len(shape)
    view[axis] = -1
    return index.view(view).expand(shape).contiguous()


def runs_over(labelled, axis, count):
    """Whether these labels are 0 … count - 1 in order along this axis and constant off it."""
    moved = labelled.movedim(axis, 0).reshape(labelled.shape[axis], -1)
    steps = moved.shape[0] // count if count and moved.shape[0] % count == 0 else 0
    expected = torch.arange(count).repeat_interleave(steps)[:, None]
    return steps > 0 and torch.equal(moved, expected.expand_as(moved))


def factorisations(total, most=4):
    """All shapes of up to ``most`` axes that hold this many elements."""
    if most == 1:
        return [(total,)]
    return [(total,)] + [
        (size, *rest)
        for size in range(1, total + 1)
        if total % size == 0
        for rest in factorisations(total // size, most - 1)
    ]


@tried(150)
@given(old=shapes, data=st.data())
def test_a_reshape_keeps_the_unit_axis_exactly_where_one_is_left(old, data):
    unit = data.draw(st.integers(0, len(old) - 1))
    new = data.draw(st.sampled_from(factorisations(math.prod(old))))
    after = labels(old, unit).reshape(new)

    trail = reshaped(Trail(0, Axes(unit=unit)), old, new)

    possible = [
        a for a in range(len(new)) if new[a] == old[unit] and runs_over(after, a, old[unit])
    ]
    if possible and old[unit] > 1:  # a single unit may as well be lost
        assert trail.axes.unit in possible
    assert trail.axes.unit is None or trail.axes.unit in possible
    assert trail.axes.unit is not None or trail.why_no_units == RESHAPED


@tried(150)
@given(old=shapes, data=st.data())
def test_a_reshape_keeps_the_samples_only_where_they_are_the_slowest_part_of_an_axis(old, data):
    batch = data.draw(st.integers(0, len(old) - 1))
    new = data.draw(st.sampled_from(factorisations(math.prod(old))))
    after = labels(old, batch).reshape(new)

    trail = reshaped(Trail(0, Axes(batch=batch, samples=old[batch])), old, new)

    if trail.axes.batch is not None:
        assert runs_over(after, trail.axes.batch, old[batch])
    elif old[batch] > 1:
        assert not any(runs_over(after, a, old[batch]) for a in range(len(new)))


@pytest.mark.parametrize(
    ("old", "new", "unit", "batch"),
    [
        ((N, C, 1, 1), (N, C), 1, 0),
        ((N, C, 3, 3), (N, C * 9), None, 0),
        ((N, 5, C), (N * 5, C), 1, 0),
        ((N, 5, 2, 3), (N, 5, C), None, 0),
        ((N, C), (N, 1, C), 2, 0),
        ((N, C), (N, C), 1, 0),
        ((N, 1), (N, 1), 1, 0),
        ((N, 1, 1), (N, 1), 1, 0),
        ((1, C), (C,), 0, 0),
    ],
)
def test_reshapes_that_models_make(old, new, unit, batch):
    where = 1 if len(old) == 2 or old[1] in (C, 1) else len(old) - 1
    trail = reshaped(Trail(0, Axes(where, 0, old[0])), old, new)

    if old == (N, 5, 2, 3):  # a unit axis of 6 that was split before
        trail = reshaped(Trail(0, Axes(None, 0, N)), old, new)
    assert trail.axes.unit == unit
    if old != (1, C):
        assert trail.axes.batch == batch


VIEWS = {
    "permute": lambda x: x.permute(2, 0, 3, 1),
    "transpose": lambda x: x.transpose(1, -1),
    "swapaxes": lambda x: x.swapaxes(0, 2),
    "movedim": lambda x: x.movedim(1, -1),
    "unsqueeze first": lambda x: x.unsqueeze(0),
    "unsqueeze after samples": lambda x: x.unsqueeze(1),
    "unsqueeze after units": lambda x: x.unsqueeze(2),
    "unsqueeze last": lambda x: x.unsqueeze(-1),
    "squeeze nothing": lambda x: x.squeeze(1),
    "select a position": lambda x: x.select(3, 0),
    "select a unit": lambda x: x.select(1, 2),
    "index a position": lambda x: x[:, :, 0],
    "index a sample": lambda x: x[1],
    "index last": lambda x: x[..., -1],
    "new axis": lambda x: x[:, None],
    "slice positions": lambda x: x[:, :, 1:],
    "every second position": lambda x: x[:, :, ::2],
    "narrow": lambda x: x.narrow(2, 0, 1),
    "expand": lambda x: x.unsqueeze(2).expand(-1, -1, 7, -1, -1),
    "mT": lambda x: x.mT,
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("units", [C, 1])
def test_a_view_carries_the_axes_along(name, units):
    if units == 1 and name == "select a unit":
        units = 3
    call, shape = VIEWS[name], torch.Size((N, units, 5, 3))

    [trail] = viewed(Trail(0, Axes(1, 0, N)), shape, call)

    after, sample = call(labels(shape, 1)), call(labels(shape, 0))
    at = [a for a in range(after.dim()) if runs_over(after, a, units) and after.shape[a] == units]
    assert (trail.axes.unit in at) if at and name != "select a unit" else trail.axes.unit is None
    at = [a for a in range(sample.dim()) if runs_over(sample, a, N)]
    assert trail.axes.batch == (at[0] if at else None)
    assert trail.axes.samples == N


def test_some_of_the_units_are_units_and_some_of_the_samples_are_not_all_samples():
    trail = Trail(0, Axes(1, 0, N))
    shape = torch.Size((N, C))

    assert [t.axes.unit for t in viewed(trail, shape, lambda x: x.chunk(2, 1))] == [1, 1]
    assert [t.axes.unit for t in viewed(trail, shape, lambda x: x[:, ::2])] == [1]
    assert [t.axes.unit for t in viewed(trail, shape, lambda x: x[:, :1])] == [1]
    assert [t.axes.unit for t in viewed(trail, shape, lambda x: x.unbind(1))] == [None] * C
    assert [t.axes.batch for t in viewed(trail, shape, lambda x: x.split(2))] == [None, None]
    assert [t.axes.batch for t in viewed(trail, shape, lambda x: x[1:])] == [None]


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [0, 1, 2, -1, (2, 3), [1], None, (0, 2)])
def test_a_mean_carries_the_axes_that_are_left(dims, keepdim):
    shape = torch.Size((N, C, 5, 3))

    trail = reduced(Trail(0, Axes(1, 0, N)), shape, dims, keepdim)

    listed = range(4) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % 4 for d in listed}
    left = [a for a in range(4) if a not in gone]
    for axis, name in ((1, "unit"), (0, "batch")):
        expected = None if axis in gone else axis if keepdim else left.index(axis)
        assert getattr(trail.axes, name) == expected


# -- in whole models --------------------------------------------------------------------------


class Then(nn.Module):
    """A layer, then something that moves its axes, then an activation to look at."""

    def __init__(self, layer, move):
        super().__init__()
        self.layer, self.move = layer, move

    def forward(self, *inputs):
        return F.relu(self.move(self.layer(*inputs)))


def after(layer, move, *inputs):
    torch.manual_seed(0)
    model = Then(layer, move)
    return model, row(look(model, inputs if len(inputs) > 1 else (inputs[0],)), "/relu")


IMAGE, SERIES, ROW = (N, 3, 8, 8), (N, 7, 5), (N, 5)
JOURNEYS = {
    "linear": (nn.Linear(5, C), lambda x: x, ROW, 1),
    "linear over time": (nn.Linear(5, C), lambda x: x, SERIES, 2),
    "linear unbatched": (nn.Linear(5, C), lambda x: x, (5,), 0),
    "conv1d": (nn.Conv1d(7, C, 3), lambda x: x, SERIES, 1),
    "conv2d": (nn.Conv2d(3, C, 3), lambda x: x, IMAGE, 1),
    "conv2d unbatched": (nn.Conv2d(3, C, 3), lambda x: x, (3, 8, 8), 0),
    "conv3d": (nn.Conv3d(2, C, 2), lambda x: x, (N, 2, 4, 4, 4), 1),
    "conv transposed": (nn.ConvTranspose2d(3, C, 2), lambda x: x, IMAGE, 1),
    "channels last": (nn.Conv2d(3, C, 3), lambda x: x.permute(0, 2, 3, 1), IMAGE, 3),
    "there and back": (
        nn.Conv2d(3, C, 3), lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), IMAGE, 1),
    "transposed": (nn.Linear(5, C), lambda x: x.transpose(1, 2), SERIES, 1),
    "pooled": (nn.Conv2d(3, C, 3), lambda x: F.max_pool2d(x, 2), IMAGE, 1),
    "averaged": (nn.Conv2d(3, C, 3), lambda x: x.mean((2, 3)), IMAGE, 1),
    "squeezed": (
        nn.Conv2d(3, C, 8), lambda x: x.squeeze(-1).squeeze(-1), IMAGE, 1),
    "flattened single pixels": (nn.Conv2d(3, C, 8), lambda x: x.flatten(1), IMAGE, 1),
    "unsqueezed": (nn.Linear(5, C), lambda x: x.unsqueeze(1), ROW, 2),
    "unsqueezed behind": (nn.Linear(5, C), lambda x: x[:, :, None, None], ROW, 1),
    "chunked": (nn.Linear(5, 2 * C), lambda x: x.chunk(2, -1)[1], ROW, 1),
    "split": (nn.Linear(5, 2 * C), lambda x: torch.split(x, C, 1)[0], ROW, 1),
    "indexed": (nn.Linear(5, C), lambda x: x[:, -1], SERIES, 1),
    "steps merged into samples": (nn.Linear(5, C), lambda x: x.reshape(-1, C), SERIES, 1),
    "concatenated": (nn.Linear(5, C // 2), lambda x: torch.cat([x, x * 2], 1), ROW, 1),
    "concatenated by hstack": (nn.Linear(5, C // 2), lambda x: torch.hstack([x, x]), ROW, 1),
    "stacked over time": (nn.Linear(5, C), lambda x: torch.stack([x, x + 1], 1), ROW, 2),
    "added to a constant": (nn.Linear(5, C), lambda x: x + 1, ROW, 1),
    "scaled per unit": (nn.Linear(5, C), lambda x: x * torch.ones(C), SERIES, 2),
    "added to a broadcast": (nn.Linear(5, C), lambda x: x + x.mean(1, keepdim=True), SERIES, 2),
    "gated by one unit": (
        nn.Linear(5, C), lambda x: torch.sigmoid(x[:, :1].exp()) * x, ROW, 1),
    "times one channel": (
        nn.Linear(5, C), lambda x: F.conv1d(x, torch.ones(1, 7, 1)) * x, SERIES, 2),
    "cast": (nn.Linear(5, C), lambda x: x.double().float().contiguous(), ROW, 1),
    "interpolated": (nn.Conv2d(3, C, 3), lambda x: F.interpolate(x, scale_factor=2), IMAGE, 1),
    "normalised": (nn.Conv2d(3, C, 3), lambda x: F.group_norm(x, 2), IMAGE, 1),
    "embedded": (nn.Embedding(9, C), lambda x: x, None, 2),
    "recurrent": (nn.GRU(5, C, batch_first=True), lambda out: out[0], SERIES, 2),
    "recurrent state": (nn.LSTM(5, C, batch_first=True), lambda out: out[1][0], SERIES, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", JOURNEYS)
def test_the_unit_axis_follows_the_tensor(name):
    layer, move, shape, unit = JOURNEYS[name]
    x = torch.randint(0, 9, (N, 7)) if shape is None else torch.randn(shape)

    model, found = after(layer, move, x)

    z = model.move(model.layer(x)).detach().double()
    per_unit = z.movedim(unit, 0).reshape(z.shape[unit], -1)
    assert len(found.input.units) == C
    assert torch.allclose(torch.from_numpy(found.input.units.mean), per_unit.mean(1), atol=1e-6)
    assert torch.allclose(
        torch.from_numpy(found.input.units.std), per_unit.std(1, correction=0), atol=1e-5
    )
    opened = (per_unit > 0).any(1).tolist()
    assert found.flat.open.tolist() == opened
    assert found.unseen == ()


LOST = {
    "units merged with positions": (nn.Conv2d(3, C, 3), lambda x: x.flatten(1), IMAGE),
    "units split into heads": (nn.Linear(5, C), lambda x: x.view(N, 7, 2, 3), SERIES),
    "shuffled": (nn.Conv2d(3, 8, 3), lambda x: F.pixel_shuffle(x, 2), IMAGE),
    "one unit": (nn.Linear(5, C), lambda x: x[:, 0], ROW),
    "averaged away": (nn.Linear(5, C), lambda x: x.mean(1), ROW),
}


@pytest.mark.parametrize("name", LOST)
def test_a_unit_axis_that_ends_says_why(name):
    layer, move, shape = LOST[name]
    _, found = after(layer, move, torch.randn(shape))

    assert found.output.units is None
    assert found.flat.open is None
    assert found.unseen[0].startswith("per unit: ")


def test_the_reason_names_the_reshape():
    _, found = after(nn.Conv2d(3, C, 3), lambda x: x.flatten(1), torch.randn(IMAGE))

    assert found.unseen == ("per unit: a reshape merged or split its unit axis",)


def test_the_raw_input_has_no_units_to_lose():
    class First(nn.Module):
        def forward(self, x):
            return torch.relu(x)

    layer = row(look(nn.Sequential(First(), nn.Linear(8, 2)), torch.randn(N, 3, 8)), "0/relu")

    assert layer.unseen[0] == "per unit: no layer before it that has units"


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.act, self.down = nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        return x + self.down(self.act(self.up(y))).permute(0, 3, 1, 2)


def test_a_channels_last_network_is_measured_per_channel():
    model = nn.Sequential(nn.Conv2d(3, 8, 2, 2), ConvNeXtBlock(8), nn.ReLU())
    snapshot = look(model, torch.randn(N, 3, 8, 8))

    units = {layer.name: len(layer.output.units) for layer in snapshot.layers}
    assert units == {
        "0": 8, "1.mix": 8, "1.norm": 8, "1.up": 32, "1.act": 32, "1.down": 8, "2": 8,
    }  # fmt: skip


# -- behind our back --------------------------------------------------------------------------


def test_what_a_backward_hook_puts_in_the_place_of_a_tensor_is_that_tensor():
    case = models.make("full-backward-hook")
    snapshot = look(*case)

    assert [len(layer.output.units) for layer in snapshot.layers] == [8, 8, 3]
    assert [node.op for node in snapshot.nodes] == ["input", "linear", "relu", "linear"]


class Alias(torch.autograd.Function):
    """Hands on what it got, in a tensor that nobody saw being made."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy())

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_another_tensor_in_the_same_place_goes_on_as_the_first():
    _, found = after(nn.Linear(5, C), Alias.apply, torch.randn(ROW))

    assert len(found.output.units) == C
    assert found.output.samples == N


def test_what_comes_out_of_a_custom_function_goes_on_from_what_went_in():
    snapshot = look(*models.make("custom-function"))

    relu = row(snapshot, "/relu")
    assert relu.unseen == ("per unit: it comes out of a call that is not understood",)
    assert snapshot.nodes[snapshot.nodes[relu.node].inputs[0]].op == "?Swish"
    ancestors, todo = set(), [relu.node]
    while todo:
        node = todo.pop()
        ancestors.add(node)
        todo += snapshot.nodes[node].inputs
    assert row(snapshot, "body").node in ancestors


def test_a_tensor_of_a_graph_of_the_callers_is_no_layers_output():
    class Uses(nn.Module):
        def __init__(self, context):
            super().__init__()
            self.body, self.context = nn.Linear(5, C), [context]

        def forward(self, x):
            return F.relu(self.body(x) + self.context[0])

    context = torch.ones(C, requires_grad=True).exp()
    snapshot = look(Uses(context), torch.randn(ROW))

    assert [node.op for node in snapshot.nodes] == ["input", "linear", "relu"]


def test_the_input_of_a_layer_is_measured_along_the_axis_that_its_weight_sums_over():
    torch.manual_seed(0)
    for layer, shape, axis in (
        (nn.Linear(5, 4), (N, 7, 5), 2),
        (nn.Conv1d(7, 4, 3), (N, 7, 5), 1),
        (nn.Conv2d(3, 4, 3), (N, 3, 6, 6), 1),
        (nn.Conv2d(3, 4, 3), (3, 6, 6), 0),
        (nn.ConvTranspose2d(3, 4, 2), (N, 3, 4, 4), 1),
    ):
        x = torch.randn(shape)
        entering = look(layer, x).layers[0].input
        features = x.double().movedim(axis, 0).reshape(shape[axis], -1)

        assert entering.units.mean == pytest.approx(features.mean(1).numpy(), abs=1e-6)
        lengths = features / features.norm(dim=0)
        assert entering.direction.vectors == features.shape[1]
        assert entering.direction.total == pytest.approx(lengths.sum(1).numpy(), abs=1e-4)


def test_a_batch_norm_over_time_is_measured_per_channel_of_its_own():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(5, C), nn.BatchNorm1d(7)

        def forward(self, x):
            return self.norm(self.body(x))

    torch.manual_seed(0)
    model, x = Norm(), torch.randn(SERIES)
    snapshot = look(model, x)

    z = model.body(x).detach().double()
    assert len(row(snapshot, "body").output.units) == C
    found = row(snapshot, "norm")
    assert found.input.units.mean == pytest.approx(z.mean((0, 2)).numpy(), abs=1e-6)
    assert len(found.output.units) == 7


def test_bits_that_are_read_as_other_numbers_are_other_units():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(5, C), nn.Linear(C, 3)

        def forward(self, x):
            return self.head(F.relu(self.body(x).view(torch.int32).view(torch.float32)))

    assert row(look(Reads(), torch.randn(ROW)), "/relu").output.units is None


def test_attention_weights_have_no_units():
    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(C, 2, batch_first=True)

        def forward(self, x):
            out, weights = self.attend(x, x, x)
            return out.sum() + F.relu(weights).sum()

    found = row(look(Weights(), torch.randn(N, 7, C)), "/relu")

    assert found.shape == (N, 7, 7)
    assert found.output.units is None


def test_samples_that_are_concatenated_are_no_longer_one_axis_of_them():
    trail = Trail(0, Axes(1, 0, N))
    alike = [(trail, torch.Size((N, C)))] * 2

    assert joined(alike, torch.Size((2 * N, C)), 0) == Axes(1, None, N)
    assert joined(alike, torch.Size((N, 2 * C)), 1) == Axes(1, 0, N)
    assert joined(alike, torch.Size((2, N, C)), 0) == Axes(2, 1, N)
    assert joined(alike, torch.Size((N, 2, C)), 1) == Axes(2, 0, N)


# -- the data flow ----------------------------------------------------------------------------


class Flows(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.a, self.b, self.step = nn.Linear(5, C), nn.Linear(5, C), step
        self.gain = nn.Parameter(torch.full((C,), 1.5))

    def forward(self, x):
        return self.step(self, x)


FLOWS = {
    "shifted and scaled": (lambda m, x: (m.a(x) + 1) * 2 - 3, ["linear"]),
    "a learned scale": (lambda m, x: m.a(x) * m.gain, ["linear", "mul:parameter"]),
    "a learned shift": (lambda m, x: m.a(x) + m.gain, ["linear"]),
    "a gate": (lambda m, x: m.a(x) * m.b(x), ["linear", "linear", "mul"]),
    "a sum": (lambda m, x: m.a(x) + m.b(x), ["linear", "linear", "add"]),
    "in place": (lambda m, x: m.a(x).add_(m.b(x)), ["linear", "linear", "add"]),
    "joined": (lambda m, x: torch.cat([m.a(x), m.b(x)]), ["linear", "linear", "cat"]),
    "reshaped and cast": (lambda m, x: m.a(x).view(-1).double(), ["linear"]),
    "not understood": (lambda m, x: torch.erfinv(m.a(x)), ["linear", "?erfinv"]),
    "averaged": (lambda m, x: m.a(x).mean(1), ["linear", "mean"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_nodes_are_what_joins_or_bends_paths_and_the_rest_is_looked_through(name):
    step, ops = FLOWS[name]
    snapshot = look(Flows(step), torch.randn(ROW), lambda out: out.nan_to_num(0).sum())

    assert [node.op for node in snapshot.nodes] == ["input", *ops]
    assert snapshot.outputs == (len(snapshot.nodes) - 1,)
    assert all(snapshot.nodes[i].inputs for i in range(1, len(snapshot.nodes)))


def test_samples_are_followed_into_windows_and_steps():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, C)

        def forward(self, x):
            x = x.view(N, 2, 4, 5).flatten(0, 1)
            return self.body(x)

    layer = row(look(Windows(), torch.randn(N, 8, 5)), "body")

    assert layer.shape == (2 * N, 4, C)
    assert layer.output.samples == N
    assert layer.output.probe.shape == (2, 4, C)


@pytest.mark.parametrize(
    "expand",
    [
        lambda h: h[:1].expand_as(h),
        lambda h: h[0].expand(len(h), -1),
        lambda h: torch.broadcast_to(h[:1], h.shape),
    ],
)
def test_one_sample_expanded_to_all_is_all_samples_alike(expand):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(expand(self.first(x)))

    snapshot = look(One(), torch.randn(12, 6))

    assert row(snapshot, "first").output.spread > 0
    assert row(snapshot, "second").output.spread == 0
    assert row(snapshot, "second").output.samples == 12
