"""Prescriptions: their lines name what they mean, run as they are, and do no more than they say."""

from __future__ import annotations

import copy
import keyword

import models
import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nndiag
from nndiag import flow, ops, prescribe, rule
from nndiag.batch import batches
from nndiag.fixes.repair import KINDS, execute
from nndiag.render import page

NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip


# --- names ---------------------------------------------------------------------------------------

HOSTILE = [
    "0", "007", "3", "12", "class", "None", "match", "_", "__x", "a b", "a  b", 'say "x"', "it's",
    "\\", "\\n", "{", "}", "{i}", "{0}", "%s", "x@2", "x/relu", "@", "ﬁ", "ſ", "λ", "变量", "٣",
    "²", "\n", "\t", "\x00", "\x85", "\u2028", "\u202e", "self", "model", "name", "fixes",
    "x" * 120,
]  # fmt: skip
keys = (
    st.sampled_from(HOSTILE)
    | st.integers(0, 12).map(str)
    | st.from_regex(r"[a-z]{1,4}[0-9]{0,2}", fullmatch=True)
    | st.text(min_size=1, max_size=8).filter(lambda text: "." not in text)
)


class Bare(nn.Module):
    def forward(self, x):
        return x


KINDS_OF_PARENT = (Bare, nn.ModuleDict, nn.ModuleList, nn.Sequential)


@st.composite
def trees(draw):
    """Modules in modules under any names that torch takes, with parameters on some of them."""
    root = Bare()
    nodes = [root]
    for _ in range(draw(st.integers(1, 8))):
        parent, key = draw(st.sampled_from(nodes)), draw(keys)
        is_parameter = draw(st.booleans())
        if isinstance(parent, (nn.ModuleList, nn.Sequential)) and not is_parameter:
            key = str(len(parent))
        if hasattr(parent, key):
            continue
        if is_parameter:
            parent.register_parameter(key, nn.Parameter(torch.zeros(1)))
        else:
            nodes.append(draw(st.sampled_from(KINDS_OF_PARENT))())
            parent.add_module(key, nodes[-1])
    return root


def evaluated(written, model):
    return eval(compile(written, "<prescription>", "eval"), {"model": model, "torch": torch})


@given(trees())
def test_what_is_written_for_a_name_is_what_has_that_name(model):
    for name, parameter in model.named_parameters():
        assert evaluated(prescribe.parameter(name), model) is parameter
    for name, module in model.named_modules():
        assert evaluated(prescribe.module(name), model) is module


@given(trees(), st.data())
def test_a_line_for_each_name_runs_on_these_and_no_others(model, data):
    named = dict(model.named_parameters())
    if not named:
        return
    chosen = data.draw(st.lists(st.sampled_from(list(named)), min_size=1))
    line = prescribe.for_each(chosen, "nn.init.constant_({}, 7)", "parameter")
    execute(line, model, None, 0)

    assert {name for name, p in named.items() if p.item() == 7} == set(chosen)
    indented = prescribe._no_grad([prescribe.for_each(chosen, "{}.fill_(9)", "parameter")])
    execute(indented, model, None, 0)
    assert {name for name, p in named.items() if p.item() == 9} == set(chosen)


@st.composite
def counting(draw):
    """Names in which a number counts up, and now and then does not."""
    step, start = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    before, after = draw(st.tuples(keys, keys))
    form = draw(st.sampled_from(["{i}", "{a}.{i}", "{i}.{b}", "{a}.{i}.{b}", "{a}{i}", "0.{i}.1"]))
    names = [
        form.replace("{a}", before).replace("{b}", after).replace("{i}", str(start + k * step))
        for k in range(draw(st.integers(1, 40)))
    ]
    if draw(st.booleans()):
        names[draw(st.integers(0, len(names) - 1))] = draw(keys)
    return names


@given(counting() | st.lists(st.lists(keys, min_size=1, max_size=3).map(".".join), min_size=1))
def test_a_list_of_names_is_written_as_what_it_is(names):
    written = prescribe.listed(names)

    assert list(evaluated(written, None)) == names
    longest = max(len(prescribe.quoted(name)) for name in names)
    assert all(len(line) <= max(prescribe.WIDE, longest + 5) for line in written.split("\n"))


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("form", ["{key}.{i}", "{i}.{key}"])
def test_a_number_counts_up_beside_any_name(form, key):
    names = [form.replace("{key}", key).replace("{i}", str(i)) for i in range(1, 8, 2)]
    assert list(evaluated(prescribe.listed(names), None)) == names


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["a"], '["a"]'),
        (["0", "2"], '["0", "2"]'),
        (["0", "1", "2"], "map(str, range(3))"),
        (["1", "3", "5", "7"], "map(str, range(1, 8, 2))"),
        ([f"a.{i}.b" for i in range(4)], '[f"a.{i}.b" for i in range(4)]'),
        (["a.00", "a.01", "a.02"], '["a.00", "a.01", "a.02"]'),
        (["a.3", "a.2", "a.1"], '["a.3", "a.2", "a.1"]'),
    ],
)
def test_lists_are_short_where_only_a_number_counts_up(names, written):
    assert prescribe.listed(names) == written


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("encoder.head.weight", "model.encoder.head.weight"),
        ("encoder.λ", "model.encoder.λ"),
        ("encoder.3.weight", 'model.get_parameter("encoder.3.weight")'),
        ("encoder.class", 'model.get_parameter("encoder.class")'),
        ('a "b"', """model.get_parameter('a "b"')"""),
    ],
)
def test_names_are_written_as_attributes_where_they_are(name, written):
    assert prescribe.parameter(name) == written


def test_no_keyword_is_written_as_an_attribute():
    assert not any(prescribe.expression(f"a.{word}.b") for word in keyword.kwlist)


def test_a_number_means_the_name_and_not_the_position():
    """A traced Sequential cannot be indexed, in a ModuleDict keys are strings, order may differ."""
    layers = [nn.Linear(2, 2), nn.Linear(2, 3)]
    shuffled = nn.Sequential()
    shuffled.add_module("1", layers[0])
    shuffled.add_module("0", layers[1])
    traced = torch.fx.symbolic_trace(nn.Sequential(*layers))
    for model in (shuffled, traced, nn.ModuleDict({"1": layers[0], "0": layers[1]})):
        for name, p in model.named_parameters():
            assert evaluated(prescribe.parameter(name), model) is p


# --- every rule's cures --------------------------------------------------------------------------


def example(name):
    sick, _ = page.examples(rule.discover()[name])
    names = {"torch": torch, "nn": nn, "F": F}
    exec(sick, names)  # the examples of the rule pages are code
    return names["model"], names["batch"], names.get("loss_fn")


class Net(nn.Module):
    """Parts by name, put together by a function."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def saturated_lstm():
    model = Net(lambda s, x: s.head(s.rnn(x)[0]), rnn=nn.LSTM(6, 8), head=nn.Linear(8, 3))
    for p in model.rnn.parameters():
        p.data.uniform_(3, 9)
    return model, torch.randn(5, 64, 6).abs(), None


def one_hot_attention():
    model = Net(
        lambda s, x: s.head(s.attend(x, x, x, need_weights=False)[0]),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 3),
    )
    model.attend.in_proj_weight.data.mul_(80)
    return model, torch.randn(32, 6, 8), None


def dead_behind_a_norm():
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, 2),
    )  # fmt: skip
    nn.init.constant_(model[1].bias[:12], -9.0)
    return model, torch.randn(128, 8), None


def not_a_number(share):
    def build():
        model = Net(
            lambda s, x: s.head(s.norm(s.act(s.body(x))) * s.scale.weight),
            body=nn.Linear(8, 16), act=nn.PReLU(), norm=nn.LayerNorm(16), head=nn.Linear(16, 2),
            scale=nn.Linear(16, 1, bias=False),
        )  # fmt: skip
        with torch.no_grad():
            for p in model.parameters():
                p.view(-1)[: int(share * p.numel())] = torch.nan
        return model, torch.randn(64, 8), None

    return build


def frozen_attention():
    model = Net(
        lambda s, x: s.head(s.attend(s.body(x), s.body2(x), s.body2(x))[0]),
        body=nn.Linear(8, 8), body2=nn.Linear(8, 8),
        attend=nn.MultiheadAttention(8, 2, batch_first=True), head=nn.Linear(8, 3),
    )  # fmt: skip
    model.attend.requires_grad_(False)
    return model, torch.randn(32, 6, 8), None


def deep_sigmoids():
    layers = []
    for width in (8, 24, 24, 24, 24):
        layers += [nn.Linear(width, 24), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(24, 2)), torch.randn(64, 8), None


SICK = {
    **{name: lambda name=name: example(name) for name in rule.discover()},
    "saturated-lstm": saturated_lstm,
    "one-hot-attention": one_hot_attention,
    "dead-behind-a-norm": dead_behind_a_norm,
    "some-not-a-number": not_a_number(0.01),
    "all-not-a-number": not_a_number(1.0),
    "frozen-attention": frozen_attention,
    "deep-sigmoids": deep_sigmoids,
    "half-precision": lambda: (
        deep_sigmoids()[0].bfloat16(),
        torch.randn(64, 8).bfloat16(),
        None,
    ),
}


@pytest.fixture(scope="module")
def treated():
    """Each sick model with its batch and the prescriptions that can be run on it."""
    made = {}
    for name, build in SICK.items():
        torch.manual_seed(0)
        model, batch, loss_fn = build()
        report = nndiag.check(model, batch, None, loss_fn)
        named = [p for f in report.findings for p in f.prescriptions if p.name]
        made[name] = model, batch, list({p.code: p for p in named}.values())
    return made


every_sick_model = pytest.mark.parametrize("name", SICK)


def bits(tensors):
    return [
        (key, t.dtype, tuple(t.shape), t.detach().reshape(-1).view(torch.uint8).tolist())
        for key, t in tensors.items()
    ]


def seen_in(model, batch):
    """A snapshot, by a rule that needs no gradients."""
    return nndiag.check(model, batch, select="dense-activation").snapshot


def applied(prescription, model, batch, seed=3):
    treated = copy.deepcopy(model)
    execute(prescription.code, treated, batch, seed)
    return treated


def output(model, batch):
    torch.manual_seed(0)
    given = next(batches(batch, model))
    return model(*given.args, **dict(given.kwargs))


def test_the_sick_models_need_every_kind_of_prescription(treated):
    found = {p.name for _, _, prescriptions in treated.values() for p in prescriptions}

    assert found == set(KINDS)


@every_sick_model
def test_a_prescription_runs_and_gives_the_same_from_the_same_seed(name, treated):
    model, batch, prescriptions = treated[name]
    before = bits(model.state_dict())
    for prescription in prescriptions:
        once, again = (applied(prescription, model, batch) for _ in range(2))

        assert bits(once.state_dict()) == bits(again.state_dict()), prescription.code
        output(once, batch)
    assert bits(model.state_dict()) == before


@every_sick_model
def test_it_changes_no_more_than_it_says(name, treated):
    model, batch, prescriptions = treated[name]
    before = model.state_dict()
    for prescription in prescriptions:
        result = applied(prescription, model, batch)
        after = result.state_dict()
        shapes = {key: (value.shape, value.dtype) for key, value in after.items()}
        known = {key: (value.shape, value.dtype) for key, value in before.items()}

        assert known.items() <= shapes.items(), prescription.code
        if prescription.changes != "architecture":
            assert list(after) == list(before), prescription.code
            assert str(result) == str(model), prescription.code
        if prescription.changes == "nothing":
            assert bits(after) == bits(before), prescription.code
            a, b = output(copy.deepcopy(model), batch), output(result, batch)
            assert bits({"": a}) == bits({"": b}), prescription.code


@every_sick_model
def test_parameters_are_finite_afterwards(name, treated):
    model, batch, prescriptions = treated[name]
    sick = {n for n, p in model.named_parameters() if not p.isfinite().all()}
    for prescription in prescriptions:
        result = applied(prescription, model, batch)
        left = {n for n, p in result.named_parameters() if not p.isfinite().all()}

        assert left == (set() if prescription.name in ("reset", "fill-in") else left & sick)


@every_sick_model
def test_what_a_prescription_says_is_a_sentence_and_its_lines_are_short(name, treated):
    for prescription in treated[name][2]:
        assert prescription.what.endswith(".")
        assert prescription.effect
        assert not prescription.effect.endswith(".")
        assert all(len(line) <= 100 for line in prescription.code.splitlines())


def test_a_scale_keeps_directions(treated):
    model, batch, prescriptions = treated["init-scale"]
    rescale = next(p for p in prescriptions if p.name == "rescale")
    result = applied(rescale, model, batch)
    for old, new in zip(model[:-1:2], result[:-1:2], strict=True):
        cosine = F.cosine_similarity(old.weight.flatten(), new.weight.flatten(), 0)
        assert cosine.item() == pytest.approx(1, abs=1e-5)
        rms = new.weight.square().mean().sqrt().item()
        assert rms == pytest.approx(128**-0.5, rel=1e-5)  # Glorot & Bengio 2010: 1/√fan_in


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1.0, 1e3])
def test_rescaling_squares_no_weight_into_nothing(dtype, size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).to(dtype)
    nn.init.normal_(model[0].weight, std=size)
    if not model[0].weight.any():
        return
    snapshot = nndiag.check(model, torch.randn(64, 64, dtype=dtype)).snapshot
    [cure] = prescribe.rescale(snapshot, snapshot.layers[:1])
    result = applied(cure, model, None)

    rms = result[0].weight.double().square().mean().sqrt().item()
    assert rms == pytest.approx(1 / 8, rel=0.1 if size == 1e-6 else 0.01)


def test_an_opaque_layer_is_drawn_inside_and_all_its_biases_are_zero(treated):
    model, batch, prescriptions = treated["saturated-lstm"]
    [redraw] = [p for p in prescriptions if p.name == "redraw"]
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
    [cure] = prescribe.reset(snapshot, snapshot.parameters)
    result = applied(cure, model, None)

    std = result.body.weight.std().item()
    assert std == pytest.approx(50**-0.5, rel=8 / (2 * 30_000) ** 0.5)
    for p in (result.scale.gamma, result.norm.weight, result.own.weight):
        assert (p == 1).all()
    for p in (result.body.bias, result.norm.bias, result.own.bias, result.head.bias):
        assert (p == 0).all()


def test_all_of_an_attention_layer_is_let_train(treated):
    model, batch, prescriptions = treated["frozen-attention"]
    [unfreeze] = [p for p in prescriptions if p.name == "unfreeze"]

    assert all(p.requires_grad for p in applied(unfreeze, model, batch).parameters())
    assert unfreeze.safe(trained=True)


def test_a_block_that_is_frozen_as_a_whole_is_let_train_as_a_whole():
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).requires_grad_(False)
    model = nn.ModuleDict({"stem": nn.Linear(6, 6), "block": block, "head": nn.Linear(6, 3)})
    model["head"].bias.requires_grad_(False)
    model.forward = lambda x: model["head"](model["block"](model["stem"](x)))
    snapshot = seen_in(model, torch.randn(64, 6))
    [cure] = prescribe.unfreeze(snapshot, snapshot.layers)

    assert cure.what == "Let block and head.bias train."
    assert cure.code == ("model.block.requires_grad_(True)\nmodel.head.bias.requires_grad_(True)")
    assert all(p.requires_grad for p in applied(cure, model, None).parameters())


def test_a_model_that_is_frozen_as_a_whole_is_let_train_as_a_whole():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).requires_grad_(False)
    snapshot = seen_in(model, torch.randn(64, 6))
    [cure] = prescribe.unfreeze(snapshot, snapshot.layers)

    assert (cure.what, cure.code) == (
        "Let the whole model train.", "model.requires_grad_(True)",
    )  # fmt: skip


def test_only_what_is_frozen_is_let_train(treated):
    [unfreeze] = [p for p in treated["frozen-layer"][2] if p.name == "unfreeze"]

    assert unfreeze.code == 'model.get_parameter("2.weight").requires_grad_(True)'


def test_a_layer_whose_output_is_constant_is_not_scaled_by_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.constant_(model[0].bias, -100.0)
    nn.init.zeros_(model[2].bias)
    batch = torch.randn(32, 8)
    snapshot = seen_in(model, batch)
    [lsuv] = prescribe.lsuv(snapshot, snapshot.layers)

    result = applied(lsuv, model, batch)
    assert result[0](batch).var(correction=0).item() == pytest.approx(1, abs=0.1)
    assert torch.equal(result[2].weight, model[2].weight)


def test_weights_that_two_layers_share_are_drawn_once():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(8, 2))
    snapshot = nndiag.check(model, torch.randn(64, 8)).snapshot
    [redraw] = prescribe.redraw(snapshot, snapshot.layers, biases=True)
    [lsuv] = prescribe.lsuv(snapshot, snapshot.layers)

    assert lsuv.code.endswith('layers=["0", "4"])')
    assert redraw.code.count('"0.weight"') == redraw.code.count('"0.bias"') == 1


def test_embeddings_are_drawn_but_for_the_row_of_padding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(500, 60, padding_idx=3), nn.Flatten(), nn.Linear(300, 2))
    nn.init.constant_(model[0].weight, 0.5)
    model[0].weight.data[3] = 0
    snapshot = seen_in(model, torch.randint(500, (32, 5)))
    [redraw] = prescribe.redraw(snapshot, snapshot.layers)
    drawn = applied(redraw, model, None)[0].weight

    assert not drawn[3].any()
    std = drawn[4:].std().item()  # N(0, 1), as torch.nn.Embedding's own
    assert std == pytest.approx(1, rel=8 / (2 * 29_760) ** 0.5)


def test_a_single_layer_that_is_the_model_itself_is_drawn():
    torch.manual_seed(0)
    for model, x in ((nn.LSTM(4, 8), torch.randn(5, 16, 4)), (nn.Linear(4, 8), torch.randn(16, 4))):
        snapshot = nndiag.check(model, x).snapshot
        [redraw] = prescribe.redraw(snapshot, snapshot.layers, biases=True)
        result = applied(redraw, model, x)
        pairs = zip(model.parameters(), result.parameters(), strict=True)
        assert all(not torch.equal(old, new) for old, new in pairs)
        assert [*prescribe.lsuv(snapshot, snapshot.layers)] == []
        assert [*prescribe.normalize(snapshot, snapshot.layers)] == []


# --- every prescription on every kind of model ---------------------------------------------------


def everything(snapshot):
    """Each prescription for all layers at once."""
    rows = snapshot.layers
    activations = [row for row in rows if flow.is_activation(row)]
    swaps = prescribe.swap(snapshot, activations, "nn.ELU()", "F.elu(x)", "", "", redrawn=rows)
    for cures in (
        prescribe.redraw(snapshot, rows, biases=True), prescribe.rescale(snapshot, rows),
        prescribe.restart(snapshot), prescribe.lsuv(snapshot, rows),
        prescribe.zero_biases(snapshot, rows), prescribe.reset_norms(snapshot, rows),
        prescribe.normalize(snapshot, rows), prescribe.center(snapshot, activations), swaps,
        prescribe.unfreeze(snapshot, rows), prescribe.reset(snapshot, snapshot.parameters),
        prescribe.fill_in(snapshot.parameters),
    ):  # fmt: skip
        yield from (cure for cure in cures if cure.name)


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


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of a checkpoint
@pytest.mark.parametrize("name", CASES)
def test_it_runs_wherever_it_is_handed_out(name):
    model, batch = CASES[name]()[:2]
    snapshot = seen_in(model, batch)
    known = {key: value.shape for key, value in model.state_dict().items()}
    prescriptions = list(everything(snapshot))

    assert prescriptions
    for prescription in prescriptions:
        result = applied(prescription, model, batch)
        output(result, batch)
        assert all(p.isfinite().all() for p in result.parameters()), prescription.code
        after = {key: value.shape for key, value in result.state_dict().items()}
        assert known.items() <= after.items(), prescription.code


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
    for prescription in everything(snapshot):
        output(applied(prescription, model, batch), batch)
        assert prescription.what.isprintable()
    names = {p.name for p in everything(snapshot)}
    assert names >= {"redraw", "rescale", "lsuv", "reset-bias", "reset-norm", "reset"}
    assert names >= {"normalize", "swap-activation"}


def run_all(layers, x):
    for layer in layers.values():
        x = layer(x)
    return x


# --- where a normalisation goes ------------------------------------------------------------------


def placed(model, batch, cures):
    """What the prescription adds to a copy: the copy, and the new modules by name."""
    snapshot = seen_in(model, batch)
    prescriptions = list(cures(snapshot))
    if not prescriptions:
        return model, {}, ""
    [prescription] = prescriptions
    result = applied(prescription, model, batch)
    before = sum(isinstance(m, NORMS) for m in model.modules())
    old = {n for n, m in model.named_modules() if isinstance(m, NORMS)}
    new = {n: m for n, m in result.named_modules() if isinstance(m, NORMS) and n not in old}
    assert len(new) + before == sum(isinstance(m, NORMS) for m in result.modules())
    return result, new, prescription.what


def normalized(model, batch):
    return placed(model, batch, lambda s: prescribe.normalize(s, s.layers))


def centred(model, batch):
    def cures(snapshot):
        return prescribe.center(snapshot, list(flow.hidden_activations(snapshot)))

    return placed(model, batch, cures)


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


def conv(layer, act=nn.Sigmoid):
    return lambda: Net(
        lambda s, x: s.head(s.act(s.conv(x)).flatten(2).mean(2)),
        conv=layer(), act=act(), head=nn.Linear(8, 2),
    )  # fmt: skip


def dense(run=lambda s, x: s.head(s.act(s.layer(x))), **parts):
    parts = {
        "layer": lambda: nn.Linear(6, 8),
        "act": nn.Sigmoid,
        "head": lambda: nn.Linear(8, 2),
    } | parts
    return lambda: Net(run, **{name: part() for name, part in parts.items()})


def x(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 1


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


def test_biases_that_a_batch_norm_takes_out_are_named():
    build, batch, _ = PLACES["one activation for two layers"]
    *_, what = normalized(build(), batch)
    assert what == (
        "Put BatchNorm1d between layer and second and their activations. layer.bias and "
        "second.bias then do nothing."
    )


@pytest.mark.parametrize("case", ["few samples", "sequence", "few pictures"])
def test_biases_that_are_of_use_are_not_named(case):
    build, batch, _ = PLACES[case]
    *_, what = normalized(build(), batch)
    assert "bias" not in what


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


@pytest.mark.parametrize("case", CENTRES)
def test_centring_goes_behind_the_activation_or_before_its_reader(case):
    build, batch, expected = CENTRES[case]
    torch.manual_seed(0)
    model, new, _ = centred(build(), batch)

    assert {name: (type(norm), width_of(norm)) for name, norm in new.items()} == expected
    for name, (_, leaving) in watched(model, batch, new).items():
        is_standard(new[name], leaving)


# --- swap ----------------------------------------------------------------------------------------


def swaps(model, batch, redrawn=()):
    snapshot = seen_in(model, batch)
    hidden = list(flow.hidden_activations(snapshot))
    return snapshot, list(
        prescribe.swap(snapshot, hidden, "nn.ReLU()", "F.relu(x)", "", "", redrawn=redrawn)
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

    assert found.name == ""
    assert found.code == "F.relu(x)"
    assert "write F.relu(x) in place of sigmoid" in found.what
    assert "test_prescribe.py" in found.what


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


# --- trained or not ------------------------------------------------------------------------------

UNTRAINED = (
    "mlp-1-relu", "mlp-2-prelu", "mlp-layernorm-deep", "mlp-batchnorm-deep", "mlp-bfloat16",
    "residual-mlp-20", "he-relu-20", "siren", "self-normalising", "mnist-example",
    "resnet-zero-gamma", "layer-scale", "conv1d-tcn", "conv3d", "conv-autoencoder",
    "spectral-norm-critic", "weight-norm-mlp", "fixup", "lora-mlp", "lstm", "nano-gpt",
    "highway-20", "mixture-of-experts", "zero-init-head",
)  # fmt: skip


def shown(model, batch):
    return prescribe.training(seen_in(model, batch))


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
@settings(max_examples=15)
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
