"""Which fixes are proposed: they run wherever they are offered, and do no more than they say."""

from __future__ import annotations

import re

import models
import pytest
import torch
import torch.nn.functional as F
import zoo
from sick import Net, applied, dense, facts, make, output, seen_in, written, x
from torch import nn

import nndiag
from nndiag import flow
from nndiag.fixes import propose


@pytest.fixture(scope="module")
def treated():
    return {
        name: make(name)
        for name in ("init-scale", "saturated-lstm", "frozen-attention", "frozen-layer")
    }


def test_a_scale_keeps_directions(treated):
    model, batch, fixes = treated["init-scale"]
    rescale = next(p for p in fixes if p.kind == "rescale")
    result = applied(rescale, model, batch)
    for old, new in zip(model[:-1:2], result[:-1:2], strict=True):
        cosine = F.cosine_similarity(old.weight.flatten(), new.weight.flatten(), 0)
        assert cosine.item() == pytest.approx(1, abs=1e-5)
        rms = new.weight.square().mean().sqrt().item()
        assert rms == pytest.approx(128**-0.5, rel=1e-5)  # Glorot & Bengio 2010: 1/√fan_in


@pytest.mark.one_in(5)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1.0, 1e3])
def test_rescaling_squares_no_weight_into_nothing(dtype, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).to(dtype)
    nn.init.normal_(model[0].weight, std=size)
    if not model[0].weight.any():
        return
    snapshot = nndiag.check(model, torch.randn(64, 64, dtype=dtype)).snapshot
    [fix] = propose.rescale(snapshot, snapshot.layers[:1])
    result = applied(fix, model, None)

    rms = result[0].weight.double().square().mean().sqrt().item()
    assert rms == pytest.approx(1 / 8, rel=0.1 if size == 1e-6 else 0.01)


def test_an_opaque_layer_is_drawn_inside_and_all_its_biases_are_zero(treated):
    model, batch, fixes = treated["saturated-lstm"]
    [redraw] = [p for p in fixes if p.kind == "redraw"]
    result = applied(redraw, model, batch)

    for name, p in result.rnn.named_parameters():
        assert p.any() == name.startswith("weight"), name
        assert p.abs().max() < 1


def test_a_reset_draws_matrices_and_starts_scales_at_one_and_biases_at_zero():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(600))

        def forward(self, x):
            return x * self.gamma

    class OwnNorm(nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x, (600,), self.weight, self.bias)

    model = Net(
        lambda s, x: s.head(s.own(s.norm(s.scale(s.body(x)).view(-1, 20, 30)).flatten(1)).relu()),
        body=nn.Linear(50, 600), scale=Scale(), norm=nn.LayerNorm((20, 30)), own=OwnNorm(600),
        head=nn.Linear(600, 2),
    )  # fmt: skip
    for p in model.parameters():
        p.data.fill_(torch.nan)
    snapshot = seen_in(model, torch.randn(64, 50))
    [fix] = propose.reset(snapshot, snapshot.parameters)
    result = applied(fix, model, None)

    std = result.body.weight.std().item()
    assert std == pytest.approx(50**-0.5, rel=8 / (2 * 30_000) ** 0.5)
    for p in (result.scale.gamma, result.norm.weight, result.own.weight):
        assert (p == 1).all()
    for p in (result.body.bias, result.norm.bias, result.own.bias, result.head.bias):
        assert (p == 0).all()


def test_all_of_an_attention_layer_is_let_train(treated):
    model, batch, fixes = treated["frozen-attention"]
    [unfreeze] = [p for p in fixes if p.kind == "unfreeze"]

    assert all(p.requires_grad for p in applied(unfreeze, model, batch).parameters())
    assert unfreeze.safe(trained=True)


def test_a_block_that_is_frozen_as_a_whole_is_let_train_as_a_whole():
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).requires_grad_(False)
    model = nn.ModuleDict({"stem": nn.Linear(6, 6), "block": block, "head": nn.Linear(6, 3)})
    model["head"].bias.requires_grad_(False)
    model.forward = lambda x: model["head"](model["block"](model["stem"](x)))
    snapshot = seen_in(model, torch.randn(64, 6))
    [fix] = propose.unfreeze(snapshot, snapshot.layers)

    assert fix.what == "Let block and head.bias train."
    assert fix.code() == ("model.block.requires_grad_(True)\nmodel.head.bias.requires_grad_(True)")
    assert all(p.requires_grad for p in applied(fix, model, None).parameters())


def test_a_model_that_is_frozen_as_a_whole_is_let_train_as_a_whole():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).requires_grad_(False)
    snapshot = seen_in(model, torch.randn(64, 6))
    [fix] = propose.unfreeze(snapshot, snapshot.layers)

    assert (fix.what, fix.code()) == (
        "Let the whole model train.", "model.requires_grad_(True)",
    )  # fmt: skip


def test_only_what_is_frozen_is_let_train(treated):
    [unfreeze] = [p for p in treated["frozen-layer"][2] if p.kind == "unfreeze"]

    assert unfreeze.code() == 'model.get_parameter("2.weight").requires_grad_(True)'


def test_a_layer_whose_output_is_constant_is_not_scaled_by_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.constant_(model[0].bias, -100.0)
    nn.init.zeros_(model[2].bias)
    batch = torch.randn(32, 8)
    snapshot = seen_in(model, batch)
    [lsuv] = propose.lsuv(snapshot, snapshot.layers)

    result = applied(lsuv, model, batch)
    assert result[0](batch).var(correction=0).item() == pytest.approx(1, abs=0.1)
    assert torch.equal(result[2].weight, model[2].weight)


def test_weights_that_two_layers_share_are_drawn_once():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(8, 2))
    snapshot = nndiag.check(model, torch.randn(64, 8)).snapshot
    [redraw] = propose.redraw(snapshot, snapshot.layers, biases=True)
    [lsuv] = propose.lsuv(snapshot, snapshot.layers)

    assert lsuv.code().endswith('layers=["0", "4"])')
    assert redraw.code().count('"0.weight"') == redraw.code().count('"0.bias"') == 1


def test_embeddings_are_drawn_but_for_the_row_of_padding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(500, 60, padding_idx=3), nn.Flatten(), nn.Linear(300, 2))
    nn.init.constant_(model[0].weight, 0.5)
    model[0].weight.data[3] = 0
    snapshot = seen_in(model, torch.randint(500, (32, 5)))
    [redraw] = propose.redraw(snapshot, snapshot.layers)
    drawn = applied(redraw, model, None)[0].weight

    assert not drawn[3].any()
    std = drawn[4:].std().item()  # N(0, 1), as torch.nn.Embedding's own
    assert std == pytest.approx(1, rel=8 / (2 * 29_760) ** 0.5)


def test_a_single_layer_that_is_the_model_itself_is_drawn():
    torch.manual_seed(0)
    for model, batch in (
        (nn.LSTM(4, 8), torch.randn(5, 16, 4)),
        (nn.Linear(4, 8), torch.randn(16, 4)),
    ):
        snapshot = nndiag.check(model, batch).snapshot
        [redraw] = propose.redraw(snapshot, snapshot.layers, biases=True)
        result = applied(redraw, model, batch)
        pairs = zip(model.parameters(), result.parameters(), strict=True)
        assert all(not torch.equal(old, new) for old, new in pairs)
        assert [*propose.lsuv(snapshot, snapshot.layers)] == []
        assert [*propose.normalize(snapshot, snapshot.layers)] == []


# --- every fix on every kind of model ---------------------------------------------------


def everything(snapshot):
    """Each fix for all layers at once."""
    rows = snapshot.layers
    activations = [row for row in rows if flow.is_activation(row)]
    swaps = propose.swap(snapshot, activations, ("ELU",), "F.elu(x)", "", "", redrawn=rows)
    for fixes in (
        propose.redraw(snapshot, rows, biases=True), propose.rescale(snapshot, rows),
        propose.restart(snapshot), propose.lsuv(snapshot, rows),
        propose.zero_biases(snapshot, rows), propose.reset_norms(snapshot, rows),
        propose.normalize(snapshot, rows), propose.center(snapshot, activations), swaps,
        propose.unfreeze(snapshot, rows), propose.reset(snapshot, snapshot.parameters),
        propose.fill_in(snapshot.parameters),
    ):  # fmt: skip
        yield from (fix for fix in fixes if fix.runnable)


# Repair says of these that it cannot change them; the last differentiates in its own forward.
CANNOT = ("scripted", "traced", "old-weight-norm", "foreign-tensor", "gradient-inside")
NETS = (
    "mlp-2-prelu", "mlp-bfloat16", "fixup", "conv1d-tcn", "conv3d", "squeeze-excite", "text-cnn",
    "zero-init-head", "lora-mlp", "ppo-actor-critic", "binary-sigmoid-output",
)  # fmt: skip
CASES = {
    **{name: lambda name=name: models.make(name) for name in models.AWKWARD if name not in CANNOT},
    **{name: lambda name=name: zoo.make(name) for name in NETS},
}


@pytest.mark.one_in(7)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a checkpoint
@pytest.mark.parametrize("name", CASES)
def test_it_runs_wherever_it_is_handed_out(name):
    model, batch = CASES[name]()[:2]
    snapshot = seen_in(model, batch)
    known = {key: value.shape for key, value in model.state_dict().items()}
    fixes = list(everything(snapshot))

    assert fixes
    for fix in fixes:
        result = applied(fix, model, batch)
        assert facts(written(fix, model, batch)) == facts(result), fix.code()
        output(result, batch)
        assert all(p.isfinite().all() for p in result.parameters()), fix.code()
        after = {key: value.shape for key, value in result.state_dict().items()}
        assert known.items() <= after.items(), fix.code()


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "key", ["0", "class", "a  b", "\"'", "\\n", "{0}", "x@2", "x/relu", "ﬁ", "\n"]
)
def test_it_runs_whatever_the_layers_are_called(key):
    torch.manual_seed(0)
    parts = {key: nn.Linear(6, 20), f"{key} act": nn.Tanh(), f"{key} norm": nn.BatchNorm1d(20)}
    inner = nn.ModuleDict(parts)
    model = Net(lambda s, x: s.head(run_all(s.inner, x)), inner=inner, head=nn.Linear(20, 2))
    batch = torch.randn(32, 6)
    snapshot = seen_in(model, batch)
    for fix in everything(snapshot):
        result = applied(fix, model, batch)
        assert facts(written(fix, model, batch)) == facts(result), fix.code()
        output(result, batch)
        assert fix.what.isprintable()
    names = {p.kind for p in everything(snapshot)}
    assert names >= {"redraw", "rescale", "lsuv", "reset-bias", "reset-norm", "reset"}
    assert names >= {"normalize", "swap-activation"}


def run_all(layers, h):
    for layer in layers.values():
        h = layer(h)
    return h


# --- swap ----


def swaps(model, batch, redrawn=()):
    snapshot = seen_in(model, batch)
    hidden = list(flow.hidden_activations(snapshot))
    return snapshot, list(
        propose.swap(snapshot, hidden, ("ReLU",), "F.relu(x)", "", "", redrawn=redrawn)
    )


def test_an_activation_that_is_the_output_at_another_place_is_left_alone():
    build = dense(lambda s, x: s.act(s.head(s.act(s.layer(x)))))
    _, found = swaps(build(), x(64, 6))
    assert found == []


def test_an_activation_with_weights_is_left_alone():
    _, found = swaps(dense(act=nn.PReLU)(), x(64, 6))
    assert found == []


def test_a_call_is_told_where_it_is_written():
    _, [found] = swaps(dense(lambda s, x: s.head(torch.sigmoid(s.layer(x))))(), x(64, 6))

    assert not found.runnable
    assert re.fullmatch(r"Replace sigmoid by ReLU \(.*test_propose\.py:\d+\)\.", found.what)
    assert found.source == "In forward, write F.relu(x) in place of sigmoid."


def test_a_module_is_told_how_to_replace_it_in_the_source():
    _, [found] = swaps(dense()(), x(64, 6))

    assert found.what == "Replace sigmoid by ReLU at act."
    assert found.source == "In __init__, replace nn.Sigmoid() by nn.ReLU()."


def test_a_change_of_the_source_says_how_the_weights_before_it_start():
    for build in (dense(), dense(lambda s, x: s.head(torch.sigmoid(s.layer(x))))):
        model = build()
        _, [found] = swaps(model, x(64, 6), redrawn=seen_in(model, x(64, 6)).layers)

        assert found.what.endswith(", with He weights and zero biases.")
        first, *others = found.source.splitlines()
        assert first.endswith(("by nn.ReLU().", "in place of sigmoid."))
        assert "kaiming_normal_" in "\n".join(others)


def test_the_weights_before_the_new_activation_are_drawn_for_it():
    torch.manual_seed(0)
    model, batch = (
        dense(layer=lambda: nn.Linear(6, 5000), head=lambda: nn.Linear(5000, 2))(),
        x(64, 6),
    )
    snapshot, _ = swaps(model, batch)
    _, [found] = swaps(model, batch, redrawn=snapshot.layers)
    result = applied(found, model, batch)

    assert isinstance(result.act, nn.ReLU)
    std = (
        result.layer.weight.std().item()
    )  # He et al. 2015 eq. 10; 30,000 values, 8 standard errors
    assert std == pytest.approx((2 / 6) ** 0.5, rel=8 / (2 * 30_000) ** 0.5)
    assert not result.layer.bias.any()
