"""Which linear maps a parameter holds: against torch, connections counted one by one, and fills."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from nndiag.capture.weights import use_of
from nndiag.errors import FixError
from nndiag.fixes.initialization import (
    he_normal_,
    orthogonal_,
    positive_bias_,
    small_normal_,
)
from nndiag.fixes.matrix import matrices, write

# One of each layer: all that hold weights, in their awkward forms.
LAYERS = {
    "linear": lambda: nn.Linear(5, 3),
    "linear without bias": lambda: nn.Linear(5, 3, bias=False),
    "bilinear": lambda: nn.Bilinear(3, 4, 5),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "conv2d": lambda: nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv1d(4, 8, 5, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 4, stride=2),
    "grouped transposed": lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2),
    "transposed 3d": lambda: nn.ConvTranspose3d(2, 3, 2),
    "embedding": lambda: nn.Embedding(7, 3),
    "embedding bag": lambda: nn.EmbeddingBag(7, 3),
    "rnn": lambda: nn.RNN(3, 4),
    "gru": lambda: nn.GRU(3, 4, num_layers=2),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "lstm with projection": lambda: nn.LSTM(3, 4, proj_size=2, bias=False),
    "rnn cell": lambda: nn.RNNCell(3, 4),
    "gru cell": lambda: nn.GRUCell(3, 4),
    "lstm cell": lambda: nn.LSTMCell(3, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "attention of three widths": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def weights(module):
    return {name: p for name, p in module.named_parameters() if "weight" in name}


# --- what is found -------------------------------------------------------------------------------


@every_layer
def test_the_matrices_of_a_layer_are_its_weights_each_entry_once(make):
    layer = make()
    found = matrices(layer)
    for matrix in found:
        matrix.value.fill_(1.0)

    assert all((p == 1).all() for p in weights(layer).values())
    assert sum(m.value.numel() for m in found) == sum(p.numel() for p in weights(layer).values())
    assert len({m.name for m in found}) == len(found)
    assert {m.name.partition("[")[0] for m in found} == set(weights(layer))


@every_layer
def test_biases_belong_to_their_units(make):
    layer = make()
    for number, matrix in enumerate(matrices(layer)):
        if matrix.bias is not None:
            assert matrix.bias.shape == (matrix.units,)
            matrix.bias.fill_(number + 1.0)
    biases = {n: p for n, p in layer.named_parameters() if "bias" in n}
    assert all((p > 0).all() for p in biases.values())


@every_layer
def test_writing_counts_as_a_change_that_autograd_sees(make):
    layer = make()
    before = [p._version for p in weights(layer).values()]
    for matrix in matrices(layer):
        matrix.value.zero_()
    assert all(p._version > v for p, v in zip(weights(layer).values(), before, strict=True))
    assert all(p.requires_grad and p.grad_fn is None for p in layer.parameters())


def test_a_model_has_the_matrices_of_all_its_layers():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ModuleDict({"end": nn.Linear(2, 2)}), nn.PReLU()
    )
    assert [m.name for m in matrices(model)] == ["0.weight", "2.end.weight"]


def test_a_layer_norm_over_two_axes_is_a_norm_all_the_same():
    model = nn.Sequential(nn.LayerNorm((2, 3)), nn.Linear(3, 4))
    assert [m.name for m in matrices(model)] == ["1.weight"]


def test_a_tied_weight_is_found_once_as_what_the_first_layer_makes_of_it():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7), nn.Linear(4, 7))
    model[1].weight = model[0].weight
    found = matrices(model)
    assert [(m.name, m.fan_in) for m in found] == [("0.weight", 1), ("2.weight", 4)]


def test_gates_are_named_in_the_order_in_which_torch_stacks_them():
    lstm = nn.LSTM(3, 4, bidirectional=True)
    found = {m.name: m for m in matrices(lstm)}
    assert list(found)[:4] == [f"weight_ih_l0[{gate}]" for gate in "ifgo"]
    torch.testing.assert_close(
        found["weight_hh_l0_reverse[f]"].value, lstm.weight_hh_l0_reverse.detach()[4:8]
    )
    gru = {m.name: m for m in matrices(nn.GRUCell(3, 4))}
    assert list(gru) == [f"weight_{kind}[{gate}]" for kind in ("ih", "hh") for gate in "rzn"]


def test_the_forget_gate_is_the_one_that_makes_a_cell_forget():
    lstm = nn.LSTM(1, 2, num_layers=1)
    for p in lstm.parameters():
        nn.init.zeros_(p)
    found = {m.name: m for m in matrices(lstm)}
    cell = torch.ones(1, 1, 2)

    found["weight_ih_l0[f]"].value.fill_(-50.0)
    _, (_, after) = lstm(torch.ones(1, 1, 1), (torch.zeros_like(cell), cell))

    torch.testing.assert_close(after, torch.zeros_like(cell))


def test_attention_projects_query_key_and_value_by_a_matrix_each():
    attention = nn.MultiheadAttention(4, 2)
    q, k, v, out = matrices(attention)
    assert [m.name for m in (q, k, v)] == [f"in_proj_weight[{part}]" for part in "qkv"]
    assert {(m.fan_in, m.fan_out) for m in (q, k, v, out)} == {(4, 4)}
    torch.testing.assert_close(v.value, attention.in_proj_weight.detach()[8:])

    apart = {m.name: m for m in matrices(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))}
    assert [(m.fan_in, m.fan_out) for m in apart.values()] == [(4, 4), (3, 4), (5, 4), (4, 4)]
    assert list(apart)[1] == "k_proj_weight"


# --- fans ----------------------------------------------------------------------------------------

sizes = st.integers(1, 7)


@given(shape=st.lists(sizes, min_size=2, max_size=5))
def test_fans_of_a_tensor_are_those_of_torch(shape):
    tensor = torch.zeros(shape)
    [found] = matrices(tensor)
    assert (found.fan_in, found.fan_out) == nn.init._calculate_fan_in_and_fan_out(tensor)


def connections(layer, size):
    """How many inputs a central output sums, how many outputs a central input reaches."""
    x = torch.ones(1, layer.in_channels, size, size, requires_grad=True)
    nn.init.ones_(layer.weight)
    out = layer(x)
    period = layer.stride[0]
    middle = out.shape[-1] // 2
    reached = []
    for row in range(period):
        for column in range(period):
            one = out[0, 0, middle + row, middle + column]
            reached.append(torch.autograd.grad(one, x, retain_graph=True)[0].count_nonzero())
    impulse = torch.zeros_like(x)
    impulse[0, 0, size // 2, size // 2] = 1
    with torch.no_grad():
        heard = (layer(impulse) - layer(torch.zeros_like(x))).count_nonzero()
    return sum(map(int, reached)) / period**2, int(heard)


@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 4),
    dilation=st.integers(1, 2),
)
def test_fans_of_a_convolution_are_its_connections(groups, channels, kernel, dilation):
    into, out = (groups * c for c in channels)
    layer = nn.Conv2d(into, out, kernel, dilation=dilation, groups=groups)
    [found] = matrices(layer)
    assert (found.fan_in, found.fan_out) == connections(layer, 17)


@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    times=st.integers(1, 2),
)
def test_fans_of_a_transposed_convolution_are_its_connections(groups, channels, stride, times):
    into, out = (groups * c for c in channels)
    layer = nn.ConvTranspose2d(into, out, stride * times, stride=stride, groups=groups)
    [found] = matrices(layer)
    assert (found.fan_in, found.fan_out) == connections(layer, 9)


def test_torch_overlooks_groups_in_fan_out_and_takes_a_transposed_weight_the_wrong_way_round():
    grouped = nn.Conv2d(8, 8, 3, groups=4)
    [found] = matrices(grouped)
    assert (found.fan_in, found.fan_out) == (18, 18)
    assert nn.init._calculate_fan_in_and_fan_out(grouped.weight) == (18, 72)

    transposed = nn.ConvTranspose2d(32, 8, 2, stride=2)
    [found] = matrices(transposed)
    assert (found.fan_in, found.fan_out) == (32, 32)
    assert nn.init._calculate_fan_in_and_fan_out(transposed.weight) == (32, 128)


def test_each_gate_and_projection_has_fans_of_its_own():
    lstm = nn.LSTM(3, 8, proj_size=2)
    fans = {m.name: (m.fan_in, m.fan_out) for m in matrices(lstm)}
    assert {v for k, v in fans.items() if "ih" in k} == {(3, 8)}
    assert {v for k, v in fans.items() if "hh" in k} == {(2, 8)}
    assert fans["weight_hr_l0"] == (8, 2)


def test_an_embedding_looks_up_one_row():
    [found] = matrices(nn.Embedding(1000, 16))
    assert (found.fan_in, found.fan_out, found.unit_axis) == (1, 16, 1)


OPS = {
    "linear": ("linear", nn.Linear(5, 3), {}),
    "conv2d": ("conv2d", nn.Conv2d(4, 6, 3), {}),
    "grouped": ("conv2d", nn.Conv2d(4, 6, 3, groups=2), {"groups": 2}),
    "transposed": (
        "conv_transpose2d",
        nn.ConvTranspose2d(4, 6, 5, stride=2, groups=2),
        {"groups": 2, "stride": (2, 2)},
    ),
    "bilinear": ("bilinear", nn.Bilinear(3, 4, 5), {}),
    "embedding": ("embedding", nn.Embedding(7, 3), {}),
}


@pytest.mark.parametrize(("op", "layer", "bound"), OPS.values(), ids=OPS)
def test_what_is_proposed_has_the_fan_in_that_is_diagnosed(op, layer, bound):
    x = torch.zeros(2, 4, 8, 8)
    use = use_of(op, x, layer.weight, layer.weight, "weight", None, bound)
    [found] = matrices(layer)
    assert use is not None
    assert (found.fan_in, found.unit_axis) == (use.fan_in, use.unit_axis)


# --- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda groups: nn.Conv2d(4, 6, 2, stride=2, bias=False, groups=groups),
        lambda groups: nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False, groups=groups),
    ],
    ids=["convolution", "transposed"],
)
def test_a_row_goes_to_the_unit_of_its_number(make, groups):
    layer = make(groups)
    [matrix] = matrices(layer)
    rows = torch.arange(6.0)[:, None].expand(6, matrix.value.numel() // 6)
    write([matrix], lambda m: m.arranged(rows))

    out = layer(torch.ones(1, 4, 4, 4))

    expected = torch.arange(6.0)[:, None, None] * matrix.fan_in  # sums that many entries u
    torch.testing.assert_close(out[0], expected.expand_as(out[0]))


# --- parametrized weights ------------------------------------------------------------------------


def test_a_weight_under_weight_norm_is_assigned():
    layer = parametrizations.weight_norm(nn.Linear(5, 3))
    he_normal_(layer, generator=torch.Generator().manual_seed(0))
    plain = he_normal_(nn.Linear(5, 3), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.weight, plain.weight)
    assert {n for n, _ in layer.named_parameters()} > {"parametrizations.weight.original0"}


def test_later_draws_of_a_parametrized_weight_do_not_touch_earlier_values():
    layer = parametrizations.weight_norm(nn.Linear(5, 3))
    [matrix] = matrices(layer)
    write([matrix], lambda m: torch.ones(3, 5))
    matrix.value.zero_()
    torch.testing.assert_close(layer.weight.detach(), torch.ones(3, 5))


def test_the_gates_of_a_parametrized_cell_are_assigned_together():
    cell = parametrizations.weight_norm(nn.LSTMCell(3, 4), "weight_hh")
    small_normal_(cell, std=1e-9)
    assert cell.weight_hh.abs().max() < 1e-7


def test_looking_at_a_spectrally_normalised_weight_does_not_iterate():
    layer = parametrizations.spectral_norm(nn.Linear(5, 3)).train()
    before = {n: b.clone() for n, b in layer.named_buffers()}
    matrices(layer)
    assert before
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name])


class Positive(nn.Module):
    """A parametrization that refuses what it cannot make."""

    def forward(self, x):
        return x.exp()

    def right_inverse(self, w):
        if (w <= 0).any():
            raise ValueError("only positive weights")
        return w.log()


class OneWay(nn.Module):
    def forward(self, x):
        return x.exp()


def test_a_refusing_parametrization_leaves_everything_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[2].weight.abs_().add_(0.1)
    parametrizations.weight_norm(model[1])
    parametrize.register_parametrization(model[2], "weight", Positive())
    before = {n: p.clone() for n, p in model.named_parameters()}

    with pytest.raises(FixError, match=r"2\.weight cannot be set: .*Positive refused .*positive"):
        he_normal_(model)

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_parametrization_that_cannot_be_assigned_is_said():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", OneWay())
    with pytest.raises(FixError, match=r"weight is made by the parametrization OneWay, which has"):
        matrices(layer)


def test_a_bias_that_cannot_be_written_is_no_obstacle_to_drawing_the_weight():
    layer = nn.Linear(5, 3)
    prune.random_unstructured(layer, "bias", 0.5)
    before = layer.weight.clone()
    assert not torch.equal(he_normal_(layer).weight, before)
    with pytest.raises(FixError, match=r"bias .* is no parameter"):
        positive_bias_(layer)


def test_layers_inside_a_parametrization_are_not_drawn():
    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x)

        def right_inverse(self, w):
            return w

    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Made())
    assert [m.name for m in matrices(layer)] == ["weight"]


# --- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_the_padding_row_stays_zero(make):
    layer = he_normal_(make(6, 3, padding_idx=2))
    assert (layer.weight[2] == 0).all()
    assert (layer.weight[[0, 1, 3, 4, 5]] != 0).all()


# --- errors --------------------------------------------------------------------------------------


def hooked(how):
    layer = nn.Linear(4, 4)
    how(layer)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(3), r"the tensor \(f32\[3\]\) has no fans: .* at least two axes"),
        (lambda: torch.zeros(()), r"the tensor \(f32\[\]\) has no fans"),
        (lambda: torch.zeros(3, 0), r"the tensor \(f32\[3, 0\]\) is empty"),
        (
            lambda: torch.zeros(3, 3, dtype=torch.int64),
            r"\(i64\[3, 3\]\) cannot be drawn: .*float32",
        ),
        (lambda: torch.zeros(3, 3, dtype=torch.complex64), r"\(c64\[3, 3\]\) cannot be drawn"),
        (
            lambda: torch.quantize_per_tensor(torch.zeros(3, 3), 0.1, 0, torch.qint8),
            r"\(qint8\[3, 3\]\) cannot be drawn",
        ),
        (lambda: torch.eye(3).to_sparse(), r"cannot be drawn: a weight is a dense tensor"),
        (lambda: torch.zeros(3, 3, device="meta"), r"is on the meta device: .*to_empty"),
        (lambda: nn.LazyLinear(4), r"weight is not initialised yet: its layer is lazy"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), r"^0\.weight is not initialised yet"),
        (lambda: nn.Linear(4, 4, device="meta"), r"weight \(f32\[4, 4\]\) is on the meta device"),
        (lambda: hooked(nn.utils.weight_norm), r"weight .* is no parameter but computed .*hook"),
        (lambda: hooked(nn.utils.spectral_norm), r"weight .* is no parameter but computed"),
        (
            lambda: hooked(lambda m: prune.random_unstructured(m, "weight", 0.5)),
            r"weight .* is no parameter but computed",
        ),
        (lambda: nn.BatchNorm1d(3), r"BatchNorm1d holds no weight of a layer, only BatchNorm1d"),
        (lambda: nn.Sequential(), r"Sequential holds no weight of a layer"),
        (lambda: nn.PReLU(), r"holds no weight of a layer"),
        (lambda: [nn.Linear(2, 2)], r"a torch tensor, a layer or a model, not for \(Linear\)"),
        (lambda: None, r"not for None"),
        (lambda: nn.Linear, r"not for type"),
    ],
)
def test_what_cannot_be_drawn_is_said_by_name(make, message):
    with pytest.raises(FixError, match=message):
        matrices(make())


@pytest.mark.parametrize("draw", [he_normal_, orthogonal_, small_normal_])
def test_nothing_is_drawn_if_one_layer_cannot_be(draw):
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4))
    before, state = model[0].weight.clone(), torch.get_rng_state()
    with pytest.raises(FixError, match=r"1\.weight"):
        draw(model)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(torch.get_rng_state(), state)
