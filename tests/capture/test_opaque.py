"""What fused calls hide: attention weights against those that torch hands out, gates against a
loop over time, padding against a convolution of ones."""

from __future__ import annotations

import math

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from effort import tried
from hypothesis import given
from hypothesis import strategies as st
from oracle import look, row
from torch import nn

import nndiag
from nndiag.capture.weights import covered

N, T, E, H = 3, 6, 8, 2
ONE_HOT = 0.987


def counts(weights, visible=None):
    """Rows with at least two visible entries, and those of them with nearly all on one."""
    visible = torch.ones_like(weights, dtype=torch.bool) if visible is None else visible
    judged = visible.expand_as(weights).sum(-1) >= 2
    hot = weights.amax(-1) > ONE_HOT
    return int(judged.sum()), int((judged & hot).sum())


def sharp(seed=0, batch_first=True, **options):
    """Attention whose rows are partly one-hot."""
    torch.manual_seed(seed)
    layer = nn.MultiheadAttention(E, H, batch_first=batch_first, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(6)
    return layer


class Attends(nn.Module):
    def __init__(self, layer, **options):
        super().__init__()
        self.attend, self.options = layer, options

    def forward(self, query, key=None):
        key = query if key is None else key
        return self.attend(query, key, key, need_weights=False, **self.options)[0]


hidden = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)  # True: not to be seen
padded = torch.arange(T).expand(N, T) >= torch.tensor([6, 4, 1])[:, None]
additive = torch.where(hidden, -math.inf, 0.3 * torch.arange(T * T).view(T, T).sin())

MASKS = {
    "none": ({}, torch.ones(N, H, T, T, dtype=torch.bool)),
    "boolean": ({"attn_mask": hidden}, ~hidden.expand(N, H, T, T)),
    "additive": ({"attn_mask": additive}, ~hidden.expand(N, H, T, T)),
    "causal": ({"attn_mask": hidden, "is_causal": True}, ~hidden.expand(N, H, T, T)),
    "padding": ({"key_padding_mask": padded}, ~padded[:, None, None].expand(N, H, T, T)),
    "both": (
        {"attn_mask": hidden, "key_padding_mask": padded},
        ~(hidden | padded[:, None, None]).expand(N, H, T, T)),
    "one for each head": (
        {"attn_mask": torch.stack([hidden, hidden.T]).repeat(N, 1, 1)},
        ~torch.stack([hidden, hidden.T]).expand(N, H, T, T)),
    "additive padding": (
        {"key_padding_mask": torch.where(padded, -1e9, 0.0)},
        ~padded[:, None, None].expand(N, H, T, T)),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_rows_are_those_of_the_weights_that_torch_hands_out(name, batch_first):
    options, visible = MASKS[name]
    layer = sharp(batch_first=batch_first)
    x = torch.randn(N, T, E)
    x = x if batch_first else x.transpose(0, 1).contiguous()

    facts = row(look(Attends(layer, **options), x), "attend").facts

    asked = {k: v for k, v in options.items() if k != "is_causal"}
    weights = layer(x, x, x, need_weights=True, average_attn_weights=False, **asked)[1]
    assert (facts["rows_count"], facts["one_hot_count"]) == counts(weights, visible)
    assert 0 < facts["one_hot_count"] < facts["rows_count"]


def test_keys_and_values_of_another_width_have_projections_of_their_own():
    layer = sharp(kdim=5, vdim=5)
    query, key = torch.randn(N, T, E), torch.randn(N, 4, 5)

    facts = row(look(Attends(layer), nndiag.Batch((query, key))), "attend").facts

    weights = layer(query, key, key, average_attn_weights=False)[1]
    assert (facts["rows_count"], facts["one_hot_count"]) == counts(weights)


def test_unbatched_attention_is_looked_into_too():
    layer, x = sharp(), torch.randn(T, E)

    facts = row(look(Attends(layer), x), "attend").facts

    weights = layer(x, x, x, average_attn_weights=False)[1]
    assert (facts["rows_count"], facts["one_hot_count"]) == counts(weights)


def test_attention_with_added_keys_says_that_it_is_not_looked_into():
    layer = row(look(Attends(sharp(add_bias_kv=True)), torch.randn(N, T, E)), "attend")

    assert "rows_count" not in layer.facts
    assert "its attention weights: keys are added inside the call" in layer.unseen


def test_attention_has_units_and_samples_whichever_way_its_batch_lies():
    for batch_first in (True, False):
        x = torch.randn(N, T, E) if batch_first else torch.randn(T, N, E)
        layer = row(look(Attends(sharp(batch_first=batch_first)), x), "attend")

        assert layer.output.samples == N
        assert len(layer.output.units) == E
        assert layer.output.probe.shape == (T, E)


class Fused(nn.Module):
    def __init__(self, heads=H, **options):
        super().__init__()
        self.project, self.heads, self.options = nn.Linear(E, E), heads, options

    def forward(self, x):
        q = (4 * self.project(x)).unflatten(-1, (H, -1)).transpose(1, 2)
        k = (4 * x).unflatten(-1, (H, -1)).transpose(1, 2)[:, : self.heads]
        out = F.scaled_dot_product_attention(q, k, k, **self.options)
        return out.transpose(1, 2).flatten(2)


FUSED = {
    "plain": ({}, None),
    "causal": ({"is_causal": True}, ~hidden),
    "boolean": ({"attn_mask": ~hidden}, ~hidden),
    "additive": ({"attn_mask": additive}, ~hidden),
    "scaled": ({"scale": 1.5}, None),
    "grouped": ({"enable_gqa": True, "heads": 1}, None),
}


@pytest.mark.parametrize("name", FUSED)
def test_the_fused_kernels_rows_are_those_of_a_plain_softmax(name):
    options, visible = FUSED[name]
    torch.manual_seed(1)
    model, x = Fused(**options), torch.randn(N, T, E)

    layer = row(look(model, x), "/scaled_dot_product_attention")

    q = (4 * model.project(x)).unflatten(-1, (H, -1)).transpose(1, 2)
    k = (4 * x).unflatten(-1, (H, -1)).transpose(1, 2)[:, : model.heads].expand(-1, H, -1, -1)
    scores = q @ k.mT * options.get("scale", (E / H) ** -0.5)
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    if name == "additive":
        scores = scores + additive
    expected = counts(scores.softmax(-1), visible)
    assert (layer.facts["rows_count"], layer.facts["one_hot_count"]) == expected
    assert 0 < expected[1] < expected[0]
    assert layer.output.samples == N
    assert layer.output.units is None


def test_the_kernel_of_transformer_layers_in_eval_mode_hides_nothing():
    snapshot = look(*models.make("transformer-in-eval"))

    assert {"layers.0.self_attn", "layers.1.linear1", "layers.1/relu"} <= set(snapshot.by_name)
    assert snapshot.never_called == ()


@pytest.mark.parametrize("op", ["softmax", "softmin", "log_softmax"])
@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_rows_of_a_softmax_that_are_one_hot_are_counted(op, dim):
    class Squashes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 5)

        def forward(self, x):
            return getattr(F, op)(8 * self.body(x), dim=dim)

    torch.manual_seed(0)
    model, x = Squashes(), torch.randn(40, 6)
    facts = row(look(model, x), f"/{op}").facts

    weights = F.softmax((-8 if op == "softmin" else 8) * model.body(x), dim).movedim(dim, -1)
    assert (facts["rows_count"], facts["one_hot_count"]) == counts(weights)


# -- gates ------------------------------------------------------------------------------------

# Where the slope of a sigmoid, of a tanh, falls under 5 % of its maximum.
SIGMOID = math.log((1 + math.sqrt(0.95)) / (1 - math.sqrt(0.95)))
TANH = math.atanh(math.sqrt(0.95))


def loop(rnn, x, weights, kind, backwards):
    """Gate pre-activations of one layer and direction, step by step: what to count."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = c = torch.zeros(x.shape[0], w_hh.shape[1])
    saturated, total, outputs = {}, {}, []
    for t in reversed(range(x.shape[1])) if backwards else range(x.shape[1]):
        a, b = x[:, t] @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        if kind == "lstm":
            i, f, g, o = (a + b).chunk(4, 1)
            gates = {"input": i, "forget": f, "output": o, "candidate": g}
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif kind == "gru":
            (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
            new = an + (ar + br).sigmoid() * bn
            gates = {"reset": ar + br, "update": az + bz, "candidate": new}
            z = (az + bz).sigmoid()
            h = (1 - z) * new.tanh() + z * h
        else:
            gates = {"hidden": a + b}
            h = (a + b).tanh()
        for name, z in gates.items():
            limit = TANH if name in ("candidate", "hidden") else SIGMOID
            saturated[name] = saturated.get(name, 0) + int((z.abs() > limit).sum())
            total[name] = total.get(name, 0) + z.numel()
        outputs.append(h)
    return saturated, total, torch.stack(outputs[::-1] if backwards else outputs, 1)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_gates_are_those_of_a_loop_over_time(kind, bidirectional, batch_first, layers):
    torch.manual_seed(0)
    cls = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
    model = models.Recurrent(
        cls, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first
    )
    with torch.no_grad():
        for p in model.rnn.parameters():
            p.mul_(4)
    x = torch.randn(N, 7, models.FEATURES) * 2

    facts = row(look(model, x if batch_first else x.transpose(0, 1)), "rnn").facts

    saturated, total = {}, {}
    for layer in range(layers):
        outputs = []
        for backwards in (False, True)[: 1 + bidirectional]:
            end = f"_l{layer}" + ("_reverse" if backwards else "")
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = [getattr(model.rnn, name + end) for name in names]
            some, all_, out = loop(model.rnn, x, weights, kind, backwards)
            saturated = {k: saturated.get(k, 0) + v for k, v in some.items()}
            total = {k: total.get(k, 0) + v for k, v in all_.items()}
            outputs.append(out)
        x = torch.cat(outputs, -1)
    assert {k: facts[f"{k}_saturated_count"] for k in saturated} == saturated
    assert {k: facts[f"{k}_count"] for k in total} == total
    assert facts["saturated_gates_count"] == sum(saturated.values()) > 0
    assert facts["gates_count"] == sum(total.values())


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_the_gates_of_a_cell_are_those_of_one_step(kind):
    torch.manual_seed(0)
    cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}[kind](6, 5)
    with torch.no_grad():
        for p in cell.parameters():
            p.mul_(6)
    x = torch.randn(20, 6)

    layer = look(cell, x).layers[0]

    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    saturated, total, _ = loop(cell, x[:, None], weights, kind, False)
    assert {k: layer.facts[f"{k}_saturated_count"] for k in saturated} == saturated
    assert layer.facts["gates_count"] == sum(total.values())
    assert (layer.output.samples, len(layer.output.units)) == (20, 5)


def test_a_recurrence_of_rectifiers_has_no_gates():
    model = models.Recurrent(nn.RNN, nonlinearity="relu", batch_first=True)
    layer = row(look(model, torch.randn(N, 7, models.FEATURES)), "rnn")

    assert layer.op == "rnn_relu"
    assert [name for name in layer.facts if not name.startswith("read_")] == []
    assert layer.unseen == ()


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch falls back, and says so
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("packed-sequence", "its gates are not recomputed for packed sequences"),
        ("projected", "its gates are not recomputed for an LSTM with projections"),
        (
            "dropped",
            "its gates beyond the first layer are recomputed without the dropout between layers",
        ),
    ],
)
def test_what_is_not_recomputed_says_so(name, why):
    if name == "packed-sequence":
        case = models.make(name)
    else:
        options = {"proj_size": 4} if name == "projected" else {"num_layers": 2, "dropout": 0.5}
        model = models.Recurrent(nn.LSTM, batch_first=True, **options)
        model.head = nn.Linear(options.get("proj_size", 5), 3)
        case = models.Case(model, torch.randn(N, 7, models.FEATURES))

    assert row(look(*case), "rnn").unseen == (why,)


def test_recomputing_gates_and_rows_draws_no_random_number():
    model = models.Recurrent(nn.LSTM, batch_first=True, num_layers=2, dropout=0.5)
    x = torch.randn(N, 7, models.FEATURES)
    snapshot = look(model, x)

    torch.manual_seed(0)
    out = model(x)

    assert row(snapshot, "/tanh").output.mean == pytest.approx(float(out.detach().mean()))


# -- convolutions -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch may copy the input
@tried(80)
@given(
    size=st.integers(4, 9), kernel=st.integers(1, 4), stride=st.integers(1, 3),
    dilation=st.integers(1, 2), padding=st.integers(0, 3) | st.sampled_from(["same", "valid"]),
)  # fmt: skip
def test_the_covered_share_is_what_a_convolution_of_ones_counts(
    size, kernel, stride, dilation, padding
):
    stride = 1 if padding == "same" else stride
    reach = dilation * (kernel - 1)
    if padding != "same" and size + 2 * (padding if padding != "valid" else 0) <= reach:
        return
    ones, taps = torch.ones(1, 1, size, size + 1), torch.ones(1, 1, kernel, kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation}

    share = covered((size, size + 1), (kernel, kernel), options)

    counted = F.conv2d(ones, taps, **options).mean() / taps.numel()
    assert share == pytest.approx(float(counted))


@pytest.mark.parametrize(
    ("layer", "shape", "fans", "axis"),
    [
        (nn.Linear(6, 4), (8, 6), (6, 4), 0),
        (nn.Conv1d(3, 4, 5), (8, 3, 9), (15, 20), 0),
        (nn.Conv2d(6, 4, 3, groups=2), (8, 6, 5, 5), (27, 36), 0),
        (nn.Conv3d(2, 4, 2), (8, 2, 3, 3, 3), (16, 32), 0),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), (8, 3, 4, 4), (3, 16), 1),
        (nn.Bilinear(3, 5, 4), (8, 3), (15, 4), 0),
    ],
)
def test_fans_and_the_unit_axis_of_a_weight(layer, shape, fans, axis):
    x = torch.randn(shape)
    batch = (x, torch.randn(8, 5)) if isinstance(layer, nn.Bilinear) else x
    weight = look(layer, batch).layers[0].weight

    assert (weight.name, weight.bias) == ("weight", "bias")
    assert (weight.fan_in, weight.fan_out) == fans
    assert weight.unit_axis == axis
    assert layer.weight.shape[axis] == 4


def test_running_statistics_are_held_against_the_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval()
    model[1].running_mean.fill_(1.5)
    model[1].running_var.fill_(4.0)
    model[1].num_batches_tracked.fill_(7)
    x = torch.randn(50, 6)

    facts = row(look(model, x), "1").facts

    z = model[0](x).detach().double().numpy()
    assert facts == {
        "running_mean_shift": pytest.approx(np.median(np.abs(z.mean(0) - 1.5) / 2)),
        "running_variance_ratio": pytest.approx(np.median(z.var(0) / 4)),
        "batches_tracked": 7,
    }


def test_in_train_mode_there_is_nothing_to_hold_against_the_batch():
    snapshot = look(*models.make("batch-norm"))

    assert row(snapshot, "1").facts == {}
    assert row(snapshot, "1").options == {"training": 1.0}
