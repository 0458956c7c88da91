"""What is seen, under which name, and where in the user's source."""

from __future__ import annotations

import gc
import inspect
import os
import weakref

import models
import pytest
import torch
import torch.nn.functional as F
from oracle import look, row, rows, same_numbers
from torch import nn

import nndiag
from nndiag.capture.recorder import Recorder
from nndiag.layout import Axes
from nndiag.measure import Meter

# Every spelling of an activation: the call, the module that computes the same, the canonical name.
SPELLINGS = {
    "F.relu": (F.relu, nn.ReLU(), "relu"),
    "torch.relu": (torch.relu, nn.ReLU(), "relu"),
    "x.relu()": (lambda x: x.relu(), nn.ReLU(), "relu"),
    "x.relu_()": (lambda x: x.relu_(), nn.ReLU(), "relu"),
    "F.relu(inplace=True)": (lambda x: F.relu(x, inplace=True), nn.ReLU(), "relu"),
    "F.relu(input=x)": (lambda x: F.relu(input=x), nn.ReLU(), "relu"),
    "torch.relu_": (torch.relu_, nn.ReLU(), "relu"),
    "torch.ops.aten.relu": (torch.ops.aten.relu, nn.ReLU(), "relu"),
    "torch.sigmoid": (torch.sigmoid, nn.Sigmoid(), "sigmoid"),
    "torch.special.expit": (torch.special.expit, nn.Sigmoid(), "sigmoid"),
    "x.sigmoid_()": (lambda x: x.sigmoid_(), nn.Sigmoid(), "sigmoid"),
    "x.tanh()": (lambda x: x.tanh(), nn.Tanh(), "tanh"),
    "F.tanh": (F.tanh, nn.Tanh(), "tanh"),
    "F.hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.5), nn.Hardtanh(-0.5, 0.5), "hardtanh"),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2), "leaky_relu"),
    "F.elu": (lambda x: F.elu(x, alpha=2.0), nn.ELU(2.0), "elu"),
    "F.gelu": (lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh"), "gelu"),
    "F.silu": (F.silu, nn.SiLU(), "silu"),
    "F.softplus": (lambda x: F.softplus(x, 1, 20), nn.Softplus(), "softplus"),
    "F.softmax": (lambda x: F.softmax(x, -1), nn.Softmax(-1), "softmax"),
    "x.log_softmax": (lambda x: x.log_softmax(dim=1), nn.LogSoftmax(1), "log_softmax"),
    "F.layer_norm": (lambda x: F.layer_norm(x, (6,)), nn.LayerNorm(6), "layer_norm"),
}  # fmt: skip


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.body, self.head, self.function = nn.Linear(6, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.head(self.function(self.body(x)))


class AppliesModule(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.body, self.head, self.act = nn.Linear(6, 6), nn.Linear(6, 3), act

    def forward(self, x):
        return self.head(self.act(self.body(x)))


def twins(function, module):
    torch.manual_seed(0)
    one = Applies(function)
    other = AppliesModule(module)
    other.body, other.head = one.body, one.head
    return one, other, torch.randn(40, 6) * 2


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_function_is_seen_as_its_module_is(spelling):
    function, module, name = SPELLINGS[spelling]
    one, other, x = twins(function, module)

    here, there = row(look(one, x), f"/{name}"), row(look(other, x), "act")

    assert (here.kind, here.op) == ("function", name) == ("function", there.op)
    assert here.options == pytest.approx(there.options)
    for what in ("input", "output", "grad"):
        a, b = getattr(here, what), getattr(there, what)
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.count, a.zeros, a.min, a.max) == (b.count, b.zeros, b.min, b.max)
            assert (a.mean, a.std) == pytest.approx((b.mean, b.std))
    if there.flat is not None:
        assert (here.flat.flat, here.flat.closed) == (there.flat.flat, there.flat.closed)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_functions_numbers_are_those_of_plain_tensors(spelling):
    function, _, name = SPELLINGS[spelling]
    torch.manual_seed(0)
    model, x = Applies(function), torch.randn(40, 6) * 2

    layer = row(look(model, x, lambda out: out.square().sum()), f"/{name}")

    z = model.body(x)
    y = function(z.clone())
    y.retain_grad()
    model.head(y).square().sum().backward()
    same_numbers(layer.output, y)
    same_numbers(layer.grad, y.grad)
    if layer.input is not None:
        same_numbers(layer.input, z)


@pytest.mark.parametrize(
    "clamp",
    [
        lambda x: x.clamp(min=0),
        lambda x: x.clamp(0),
        lambda x: x.clamp_(0),
        lambda x: torch.clamp(x, min=0),
        lambda x: torch.clip(x, 0.0),
        lambda x: x.clamp_min(0),
        lambda x: x.clamp_min_(0),
    ],
)
def test_a_clamp_at_zero_is_a_rectifier(clamp):
    torch.manual_seed(0)
    model, x = Applies(clamp), torch.randn(40, 6)

    layer = row(look(model, x), "/clamp")

    assert layer.options == {"min": 0.0}
    assert layer.flat.flat == int((model.body(x) <= 0).sum())


@pytest.mark.parametrize("clamp", [lambda x: x.clamp_max(1), lambda x: x.clamp_max_(1),
                                   lambda x: x.clamp(max=1), torch.clamp_max])  # fmt: skip
def test_a_clamp_from_above_is_told_from_one_from_below(clamp):
    function = (lambda x: clamp(x, 1)) if clamp is torch.clamp_max else clamp
    assert row(look(Applies(function), torch.randn(9, 6)), "/clamp").options == {"max": 1.0}


def test_functions_that_order_their_arguments_otherwise_are_read_rightly():
    norm = nn.BatchNorm1d(6).eval()
    nn.init.constant_(norm.running_mean, 4.0)

    def native(x):
        memory = (norm.running_mean, norm.running_var)
        return torch.batch_norm(x, norm.weight, norm.bias, *memory, False, 0.1, 1e-5, False)

    facts = row(look(Applies(native), torch.randn(64, 6)), "/batch_norm").facts

    assert facts["running_mean_shift"] == pytest.approx(4.0, abs=1.0)


def test_a_raw_embedding_call_is_read_rightly():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(9, 4))

        def forward(self, ids):
            return torch.embedding(self.table, ids)

    layer = row(look(Raw(), torch.randint(0, 9, (12, 5))), "/embedding")

    assert layer.weight.name == "table"
    assert (layer.output.samples, len(layer.output.units)) == (12, 4)


# -- names ------------------------------------------------------------------------------------


def test_the_root_has_a_name_of_its_own_and_its_functions_begin_with_a_slash():
    assert rows(look(nn.Linear(6, 3), torch.randn(8, 6))) == ["(root)"]
    assert rows(look(models.make("functional").model, torch.randn(8, 6))) == [
        "a", "/relu", "b", "/sigmoid", "c", "/tanh", "d", "/clamp",
    ]  # fmt: skip


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return F.relu(F.relu(self.fc(x)) + x)


class Encoder(nn.Module):
    """Calls its fourth block twice."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x):
        return self.encoder[3](self.encoder[3](self.encoder[0](x)))


def test_calls_are_counted_within_one_call_of_the_nearest_module():
    assert rows(look(Encoder(), torch.randn(8, 6))) == [
        "encoder.0.fc", "encoder.0/relu", "encoder.0/relu#2",
        "encoder.3.fc", "encoder.3/relu", "encoder.3/relu#2",
        "encoder.3.fc@2", "encoder.3@2/relu", "encoder.3@2/relu#2",
    ]  # fmt: skip


def test_a_module_called_five_times_has_five_rows():
    class Five(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            for _ in range(5):
                x = self.act(self.fc(x) * 3)
            return x

    torch.manual_seed(0)
    model, x = Five(), torch.randn(8, 6)
    snapshot = look(model, x)

    for n in range(1, 6):
        x = torch.tanh(model.fc(x) * 3)
        same_numbers(row(snapshot, "act" if n == 1 else f"act@{n}").output, x)


def test_counting_starts_again_with_each_batch():
    model = models.make("called-twice").model
    batches = [(torch.randn(8, 6),) for _ in range(3)]

    snapshot = look(model, batches)

    assert rows(snapshot) == ["first", "act", "second", "act@2", "head"]
    assert {layer.calls for layer in snapshot.layers} == {3}


def test_a_shared_module_goes_by_its_first_name():
    assert rows(look(models.make("shared-by-two").model, torch.randn(8, 6))) == [
        "left.0", "left.1", "left.0@2", "right.1",
    ]  # fmt: skip


def test_a_module_that_is_not_registered_is_no_scope():
    snapshot = look(models.make("unregistered").model, torch.randn(8, 6))

    assert rows(snapshot) == ["body", "/tanh", "/relu"]


def test_wrappers_keep_their_prefix():
    inner = models.mlp(nn.ReLU())
    parallel, compiled = nn.DataParallel(inner), torch.compile(inner, backend="eager")

    assert rows(look(parallel, torch.randn(8, 6))) == ["module.0", "module.1", "module.2"]
    assert rows(look(compiled, torch.randn(8, 6))) == ["_orig_mod.0", "_orig_mod.1", "_orig_mod.2"]


def test_calls_inside_a_torch_leaf_belong_to_its_row():
    inside = nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 6), nn.Identity())

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = inside

        def forward(self, x):
            return self.layers[2](self.layers[1](self.layers[0](x))[0])

    snapshot = look(First(), torch.randn(4, 3, 6))

    assert rows(snapshot) == ["layers.0", "layers.1", "layers.2"]
    assert [layer.op for layer in snapshot.layers] == ["linear", "lstm", "identity"]


@pytest.mark.parametrize(
    ("layer", "op", "shape"),
    [
        (nn.Dropout(0.3), "dropout", (8, 6)),
        (nn.Identity(), "identity", (8, 6)),
        (nn.Flatten(), "flatten", (8, 6)),
        (nn.BatchNorm1d(6), "batch_norm", (8, 6)),
        (nn.AlphaDropout(0.1), "dropout", (8, 6)),
        (nn.CELU(), "celu", (8, 6)),
        (nn.ReLU6(), "hardtanh", (8, 6)),
        (nn.Unflatten(1, (2, 3)), "unflatten", (8, 2, 3)),
    ],
)
def test_every_leaf_has_a_row_dropout_identity_and_norms_too(layer, op, shape):
    snapshot = look(nn.Sequential(nn.Linear(6, 6), layer), torch.randn(8, 6))

    assert (row(snapshot, "1").op, row(snapshot, "1").shape) == (op, shape)


def test_padding_by_a_mode_is_part_of_the_convolution():
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    snapshot = look(nn.Sequential(layer, nn.ReLU()), torch.randn(4, 2, 5, 5))

    assert [layer.op for layer in snapshot.layers] == ["conv2d", "relu"]
    assert snapshot.layers[0].weight.coverage == 1.0
    assert [node.layer for node in snapshot.nodes] == [-1, -1, 0, 1]


def test_a_module_called_by_its_forward_is_seen_as_functions():
    snapshot = look(models.make("never-called").model, *models.make("never-called")[1:])

    assert rows(snapshot) == ["body", "/linear", "/relu", "head"]
    assert row(snapshot, "/linear").weight.name == "direct.weight"
    assert snapshot.never_called == ("auxiliary",)
    assert snapshot.not_observed == (
        "direct: never called as a module; its parameters were used by a direct call",
    )


def test_a_parameter_that_is_called_differently_is_still_that_parameter():
    class Transposes(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))
            self.square = nn.Parameter(torch.randn(5, 5))

        def forward(self, x):
            return (x @ self.weight.T) @ self.square

    first, second = look(Transposes(), torch.randn(8, 6)).layers[1:]

    assert (first.weight.name, first.weight.fan_in, first.weight.fan_out) == ("weight", 6, 5)
    assert first.weight.unit_axis == 0
    assert (second.weight.name, second.weight.unit_axis) == ("square", 1)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("weight-norm", "0.parametrizations.weight.original1"),
        ("spectral-norm", "0.parametrizations.weight.original"),
        ("old-weight-norm", "0.weight_v"),
        ("own-parametrization", "0.parametrizations.weight.original"),
        ("adapted", "weight"),
        ("functional-call", "inner.0.weight"),
    ],
)
def test_a_weight_that_is_made_of_parameters_goes_by_the_one_of_its_shape(name, weight):
    case = models.make(name)
    snapshot = look(case.model, case.batch, case.loss_fn)

    first = next(layer for layer in snapshot.layers if layer.op == "linear")
    assert first.weight.name == weight
    assert all(p.used for p in snapshot.parameters)


def test_a_weight_that_is_scaled_by_a_parameter_goes_by_its_own_name():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.matrix = nn.Parameter(torch.ones(())), nn.Parameter(torch.randn(3, 6))

        def forward(self, x):
            return F.linear(x, self.gain * self.matrix)

    assert row(look(Scales(), torch.randn(8, 6)), "/linear").weight.name == "matrix"


def test_what_makes_a_weight_is_no_layer():
    for name in ("weight-norm", "spectral-norm", "own-parametrization"):
        case = models.make(name)
        names = rows(look(case.model, case.batch, case.loss_fn))
        assert not [n for n in names if "parametrizations" in n]


# -- before it is overwritten -----------------------------------------------------------------


def test_a_pre_activation_is_measured_before_it_is_overwritten():
    model = models.make("in-place").model.eval()
    x = torch.randn(40, 6)

    snapshot = look(model, x)

    a = model.a(x)
    same_numbers(row(snapshot, "a").output, a)
    same_numbers(row(snapshot, "act").input, a)
    assert row(snapshot, "act").input.min < 0
    b = model.b(a.relu())
    same_numbers(row(snapshot, "b").output, b)
    same_numbers(row(snapshot, "/hardtanh").input, b + 0.5)
    same_numbers(row(snapshot, "/hardtanh").output, F.hardtanh(b + 0.5, -0.2, 0.7))


# -- where ------------------------------------------------------------------------------------


def line_of(function, text):
    lines, start = inspect.getsourcelines(function)
    offset = next(i for i, line in enumerate(lines) if text in line)
    return f"{os.path.relpath(inspect.getsourcefile(function))}:{start + offset}"


def test_a_row_knows_the_line_of_the_users_call():
    model = models.make("functional").model
    snapshot = look(model, torch.randn(8, 6))

    assert row(snapshot, "a").location == line_of(models.Functional.forward, "self.a(x)")
    assert row(snapshot, "/relu").location == line_of(models.Functional.forward, "F.relu")
    assert row(snapshot, "/clamp").location == line_of(models.Functional.forward, "clamp")


def test_layers_of_a_sequential_are_where_the_sequential_is_called():
    model = models.make("checkpointed").model
    snapshot = look(model, torch.randn(8, 6))

    assert row(snapshot, "block.1").location == line_of(models.Checkpointed.forward, "checkpoint(")


def test_a_root_sequential_has_no_line():
    snapshot = look(models.mlp(nn.ReLU()), torch.randn(8, 6))

    assert {layer.location for layer in snapshot.layers} == {None}


def test_a_file_outside_the_working_directory_has_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snapshot = look(models.make("functional").model, torch.randn(8, 6))

    path, _, line = row(snapshot, "a").location.rpartition(":")
    assert os.path.isabs(path)
    assert path.endswith("models.py")
    assert line.isdigit()


def test_the_line_is_that_of_the_innermost_frame_outside_torch():
    def helper(x):
        return F.relu(x)

    snapshot = look(Applies(lambda x: helper(x)), torch.randn(8, 6))

    assert row(snapshot, "/relu").location == line_of(helper, "F.relu")


# -- what it costs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "forwards", "backwards"),
    [("ND103", 1, 0), ("ND104", 1, 0), ("ND201", 1, 1), ("ND501", 2, 1), (None, 2, 1)],
)
def test_only_what_the_rules_need_is_run(select, forwards, backwards):
    model, ran = models.mlp(nn.ReLU()), []
    model.register_forward_hook(lambda *_: ran.append("forward"))
    model[0].weight.register_hook(lambda _: ran.append("backward"))

    snapshot = look(model, torch.randn(8, 6), select=select)

    assert (ran.count("forward"), ran.count("backward")) == (forwards, backwards)
    assert snapshot.has_gradients == bool(backwards)
    assert snapshot.loss.kind == ("random cotangent" if backwards else "none")
    assert snapshot.has_step == (forwards == 2)


def test_one_tensor_is_measured_and_hooked_once_however_many_rows_it_has(monkeypatch):
    class Act(nn.Module):
        def forward(self, x):
            return F.relu(x)

    measured, hooked = [], []
    stats, hook = Meter.stats, torch.Tensor.register_hook
    monkeypatch.setattr(Meter, "stats", lambda *a, **k: measured.append(a) or stats(*a, **k))
    monkeypatch.setattr(torch.Tensor, "register_hook", lambda *a: hooked.append(a) or hook(*a))
    model = nn.Sequential(nn.Linear(6, 6), Act(), nn.Dropout(0.5).eval(), nn.Linear(6, 3))

    snapshot = look(model, torch.randn(8, 6), select="ND201")

    assert rows(snapshot) == ["0", "1", "1/relu", "2", "3"]
    assert len(hooked) == 3
    activations, parameters = 4 + 3, 4 * 2  # the input, three outputs, three gradients
    assert len(measured) == activations + parameters


def test_a_tensor_of_ones_own_class_is_not_asked_for_our_arithmetic():
    class Logs(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            logged.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    logged = []
    snapshot = look(models.mlp(nn.ReLU()), torch.randn(8, 6).as_subclass(Logs))

    assert rows(snapshot) == ["0", "1", "2"]
    assert {"linear", "relu"} <= set(logged)
    assert not {"aminmax", "count_nonzero", "bincount", "isfinite", "movedim"} & set(logged)


def test_no_activation_is_kept_alive():
    class Forgets(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 6).requires_grad_(False)

        def forward(self, x):
            x = self.body(x)
            for act in (F.relu, torch.tanh, nn.ReLU(), lambda x: x * 2, torch.exp):
                before, x = weakref.ref(x), act(x)
                alive.append(before())
            return x

    alive = []
    report = nndiag.check(Forgets(), torch.randn(8, 6), config=False)

    assert alive == [None] * 5
    assert len(report.snapshot.layers) == 4


def test_a_report_keeps_neither_the_model_nor_its_batch_alive():
    model, x = models.mlp(nn.ReLU()), torch.randn(8, 6)
    refs = [weakref.ref(thing) for thing in (model, model[0].weight, x)]

    report = nndiag.check(model, x, config=False)
    del model, x
    gc.collect()

    assert [ref() for ref in refs] == [None] * 3
    assert report.snapshot.layers


@pytest.mark.parametrize("width", [4, 4000])
def test_what_lies_unchanged_in_memory_is_measured_once(width):
    x = torch.randn(6, 5, width)
    recorder = Recorder({}, {}, gradients=True)

    def measure(tensor, unit, batch, samples, **kind):
        return recorder.measure(tensor, Axes(unit, batch, samples), **kind)

    first = measure(x, 2, 0, 6)

    assert measure(x, 2, 0, 6) == first
    assert measure(x.view(30, width), 1, 0, 6) == first
    assert measure(x.view(6, 1, 5, width), 3, 0, 6) == first
    others = [
        measure(x, 1, 0, 6),
        measure(x, 2, 1, 5),
        measure(x.view(30, width), 1, 0, 30),
        measure(x.transpose(0, 1), 2, 0, 5),
        measure(x.clone(), 2, 0, 6),
        measure(x[:5], 2, 0, 5),
        measure(x, 2, 0, 6, gradient=True),
    ]
    x[0, 0, 0] += 1
    others.append(measure(x, 2, 0, 6))
    assert len({first, *others}) == 1 + len(others)


def test_views_that_only_look_alike_are_measured_apart():
    recorder, axes = Recorder({}, {}, gradients=True), Axes(1, 0, 4)
    z = torch.randn(4, 3, dtype=torch.complex64)
    both = torch.view_as_real(z)

    places = [recorder.measure(x, axes) for x in (z, z.conj(), z.real, z.imag, both)]

    assert len(set(places)) == 5
    found = recorder.meter.collect()
    assert found[places[3]].mean == pytest.approx(z.imag.mean().item(), abs=1e-6)
    assert found[places[0]].mean != pytest.approx(found[places[1]].mean)


def test_another_tensor_where_one_lay_is_not_taken_for_it():
    recorder, places = Recorder({}, {}, gradients=True), []

    for k in range(20):  # freed and made again, often at the same address
        places.append(recorder.measure(torch.full((70_000,), float(k)), Axes()))

    numbers = recorder.meter.collect()
    assert [numbers[place].mean for place in places] == list(range(20))


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class NewGELUActivation(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class GELU(nn.Module):
    def forward(self, x):
        return F.gelu(x)


@pytest.mark.parametrize("kind", [QuickGELU, NewGELUActivation, GELU])
def test_a_gelu_that_counts_as_one_call_is_one_layer(kind):
    model = nn.Sequential(nn.Linear(8, 8), kind(), nn.Linear(8, 2))

    snapshot = look(model, torch.randn(16, 8))

    assert rows(snapshot) == ["0", "1", "2"]
    layer = row(snapshot, "1")
    assert (layer.op, layer.kind) == ("gelu", kind.__name__)
    assert layer.input.units is not None
    assert layer.grad is not None
    assert snapshot.nodes[layer.node].inputs == (row(snapshot, "0").node,)


@pytest.mark.parametrize("name", ["GELUBlock", "MyReLU", "GELU"])
def test_what_only_sounds_like_a_gelu_is_looked_into(name):
    def forward(self, x):
        return self.inner(x) if name == "GELU" else torch.tanh(x)

    kind = type(name, (nn.Module,), {"forward": forward})
    inside = kind()
    inside.inner = nn.Linear(8, 8) if name == "GELU" else None

    snapshot = look(nn.Sequential(inside, nn.Linear(8, 2)), torch.randn(16, 8))

    assert "0.inner" in rows(snapshot) if name == "GELU" else "0/tanh" in rows(snapshot)
