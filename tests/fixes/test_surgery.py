"""Surgery: what it does, against torch's own hooks, and everything that it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bitwise import process
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import nndiag
from nndiag.errors import BatchError, FixError
from nndiag.fixes import normalization
from nndiag.fixes.surgery import insert_after, insert_before, recalibrate_, swap

WIDTH = 4
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INSERTIONS = {"before": insert_before, "after": insert_after}
every_insertion = pytest.mark.parametrize("insert", INSERTIONS.values(), ids=INSERTIONS)


# --- random models -------------------------------------------------------------------------------


class Listed(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Keyed(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleDict({f"is {i}": layer for i, layer in enumerate(layers)})

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


class Guarded(nn.Module):
    """A parent with a __setattr__ of its own, which takes no modules."""

    def __init__(self, layers):
        super().__init__()
        self.count = len(layers)
        for i, layer in enumerate(layers):
            self.add_module(f"layer{i}", layer)

    def __setattr__(self, name, value):
        assert not isinstance(value, nn.Module), "use add_module"
        super().__setattr__(name, value)

    def forward(self, x):
        for i in range(self.count):
            x = getattr(self, f"layer{i}")(x)
        return x


class Frozen(nn.Module):
    """Statistics that nothing changes, as in torchvision's FrozenBatchNorm2d."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.full((WIDTH,), 0.5))

    def forward(self, x):
        return x - self.running_mean


ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, lambda: nn.ReLU(inplace=True)]
LEAVES = [
    *ACTIVATIONS,
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    lambda: nn.LayerNorm(WIDTH),
    lambda: nn.BatchNorm1d(WIDTH),
    lambda: nn.Dropout(0.5),
    nn.PReLU,
    Frozen,
]
HOLDERS = [lambda layers: nn.Sequential(*layers), Listed, Keyed, Guarded]


class Case(NamedTuple):
    model: nn.Module
    x: torch.Tensor
    seed: int


@st.composite
def cases(draw):
    """Layers in nested holders, some of them at two places, some with tied weights."""
    seed = draw(st.integers(0, 2**31))
    torch.manual_seed(seed)
    layers = [draw(st.sampled_from(LEAVES))() for _ in range(draw(st.integers(1, 5)))]
    layers += [nn.Linear(WIDTH, WIDTH), draw(st.sampled_from(ACTIVATIONS))()]
    layers += [draw(st.sampled_from(layers)) for _ in range(draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        linears = [m for m in layers if isinstance(m, nn.Linear)]
        linears[-1].weight = linears[0].weight
    layers = draw(st.permutations(layers))
    cut = draw(st.integers(0, len(layers)))
    inner = draw(st.sampled_from(HOLDERS))(layers[:cut])
    model = draw(st.sampled_from(HOLDERS))([inner, *layers[cut:]])
    model.to(draw(st.sampled_from(DTYPES)))
    for module in model.modules():
        module.training = draw(st.booleans())
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.booleans()))
    dtype = next(model.parameters()).dtype
    return Case(model, torch.randn(6, WIDTH, dtype=dtype), seed)


def is_free(module):
    """Whether it can be exchanged."""
    return not [*module.children(), *module.parameters(), *module.buffers()]


def leaves(model):
    named = model.named_modules(remove_duplicate=False)
    holders = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Listed, Keyed, Guarded)
    return [name for name, m in named if not isinstance(m, holders)]


def run(case, model=None):
    torch.manual_seed(case.seed)
    return (case.model if model is None else model)(case.x.clone())


def tensors(model):
    """Each parameter and buffer by name: which object, what kind, and its bits."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {
        name: (
            id(t),
            t.dtype,
            t.device,
            t.requires_grad,
            t.detach().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, t in named
    }


def modes(model):
    return {name: m.training for name, m in model.named_modules(remove_duplicate=False)}


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def cubed(x):
    return x**3 / 2


class Cube(nn.Module):
    def forward(self, x):
        return cubed(x)


class Gain(nn.Module):
    """A layer to insert that is no norm, so that nothing cancels."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, width))

    def forward(self, x):
        return x * self.weight + 1


# --- swap ----------------------------------------------------------------------------------------


@given(cases(), st.data())
def test_a_swap_computes_the_new_function_and_leaves_all_tensors_and_modes(case, data):
    model = case.model
    free = [name for name in leaves(model) if is_free(model.get_submodule(name))]
    name = data.draw(st.sampled_from(free))
    twin = copy.deepcopy(model)
    twin.get_submodule(name).eval()  # a Dropout would draw random numbers that the new one does not
    twin.get_submodule(name).register_forward_pre_hook(lambda m, args: (args[0].clone(),))
    twin.get_submodule(name).register_forward_hook(lambda m, args, out: cubed(args[0]))
    for inplace in (m for m in twin.modules() if hasattr(m, "inplace")):
        inplace.inplace = False  # or the hook would see what the activation made of its input
    before, how, old = tensors(model), modes(model), model.get_submodule(name)
    names = [n for n, m in model.named_modules(remove_duplicate=False) if m is old]
    new = Cube()

    swap(model, name, new)

    assert [n for n, m in model.named_modules(remove_duplicate=False) if m is new] == names
    assert all(m is not old for m in model.modules())
    assert tensors(model) == before
    assert modes(model) == how
    assert set(model.state_dict()) == set(before)
    same(run(case), run(case, twin))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_swapped_in_takes_dtype_and_mode(dtype):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).to(dtype).eval()
    swap(model, "1", nn.PReLU(4))

    assert model[1].weight.dtype == dtype
    assert not model[1].training
    assert model(torch.ones(2, 4, dtype=dtype)).dtype == dtype


def test_what_is_swapped_in_takes_after_the_layer_before_it():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.low_act = nn.Linear(4, 4).bfloat16(), nn.ReLU()
            self.high, self.high_act = nn.Linear(4, 4).double(), nn.ReLU()

        def forward(self, x):
            x = self.low_act(self.low(x.bfloat16()))
            return self.high_act(self.high(x.double()))

    model = Split()
    swap(model, "high_act", nn.PReLU())
    swap(model, "low_act", nn.PReLU())

    insert_after(model, "high", nn.LayerNorm(4))

    assert model.high_act.weight.dtype == torch.float64
    assert model.low_act.weight.dtype == torch.bfloat16
    assert model(torch.ones(2, 4)).dtype == torch.float64


def test_parameters_that_are_no_floating_point_give_no_dtype():
    model = nn.Sequential(nn.Linear(4, 4).double(), nn.Module(), nn.ReLU())
    model[1].count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    model[1].later = nn.Parameter(torch.zeros(2, device="meta"))
    swap(model, "2", nn.PReLU())

    assert model[2].weight.dtype == torch.float64
    assert model[2].weight.device.type == "cpu"


EVENTS = [
    lambda m, log: m.register_forward_pre_hook(lambda *a: log.append("pre")),
    lambda m, log: m.register_forward_pre_hook(
        lambda m, args, kwargs: log.append(f"pre {kwargs}"), with_kwargs=True
    ),
    lambda m, log: m.register_forward_pre_hook(lambda *a: log.append("first"), prepend=True),
    lambda m, log: m.register_forward_hook(lambda *a: log.append("forward")),
    lambda m, log: m.register_forward_hook(
        lambda m, args, kwargs, out: log.append(f"forward {kwargs}"), with_kwargs=True
    ),
    lambda m, log: m.register_forward_hook(lambda *a: log.append("always"), always_call=True),
    lambda m, log: m.register_full_backward_pre_hook(lambda *a: log.append("pre backward")),
    lambda m, log: m.register_full_backward_hook(lambda *a: log.append("backward")),
]


class Calls(nn.Module):
    """Calls its activation with a keyword, too."""

    def __init__(self):
        super().__init__()
        self.layer, self.act = nn.Linear(WIDTH, WIDTH), Scaled()

    def forward(self, x):
        return self.act(self.layer(x), scale=2.0)


class Scaled(nn.Module):
    def forward(self, x, scale):
        return torch.tanh(x) * scale


def events(model, log):
    log.clear()
    model(torch.ones(2, WIDTH, requires_grad=True)).sum().backward()
    return list(log)


@given(st.permutations(EVENTS), st.integers(1, len(EVENTS)))
def test_hooks_of_the_old_module_fire_for_the_new_one_in_the_same_order(order, count):
    model, log = Calls(), []
    handles = [register(model.act, log) for register in order[:count]]
    before = events(model, log)
    swap(model, "act", Scaled())

    assert len(before) == count
    assert events(model, log) == before
    for handle in handles:
        handle.remove()
    assert events(model, log) == []


def test_a_hook_that_always_fires_does_so_when_the_new_module_raises():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    model, log = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), []
    model[1].register_forward_hook(lambda *a: log.append("always"), always_call=True)
    swap(model, "1", Fails())
    with pytest.raises(RuntimeError, match="no"):
        model(torch.ones(2, 4))

    assert log == ["always"]


def test_the_old_module_keeps_no_hooks_when_it_lives_on_in_the_new_one():
    model, log = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), []
    model[1].register_forward_hook(lambda *a: log.append("forward"))
    swap(model, "1", nn.Sequential(model[1], nn.Tanh()))
    model(torch.ones(2, 4))

    assert log == ["forward"]


def test_hooks_of_both_modules_are_refused_and_nothing_changes():
    model, new, log = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Tanh(), []
    old = model[1]
    old.register_forward_hook(lambda *a: log.append("old"))
    new.register_forward_hook(lambda *a: log.append("new"))
    with pytest.raises(FixError, match="Register those afterwards"):
        swap(model, "1", new)
    model(torch.ones(2, 4))

    assert model[1] is old
    assert log == ["old"]


def test_hooks_of_the_new_module_stay_where_the_old_one_has_none():
    model, new, log = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Tanh(), []
    handle = new.register_forward_hook(lambda *a: log.append("new"))
    swap(model, "1", new)
    model(torch.ones(2, 4))
    handle.remove()
    model(torch.ones(2, 4))

    assert log == ["new"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inserted", [False, True])
def test_a_transformer_layer_uses_the_new_activation_in_its_fast_path_too(training, inserted):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, nn.ReLU(), batch_first=True)
    x = torch.randn(3, 5, 8)
    layer.train(training)
    slow = copy.deepcopy(layer)
    slow.activation.register_forward_hook(lambda m, args, out: F.elu(args[0]))
    if inserted:
        slow.activation.register_forward_pre_hook(lambda m, args: (args[0] * 3,))
    swap(layer, "activation", nn.ELU())
    if inserted:
        triple = nn.Linear(16, 16, bias=False)
        triple.weight.data.copy_(3 * torch.eye(16))
        insert_before(layer, "activation", triple)

    with torch.no_grad():
        torch.testing.assert_close(layer(x), slow(x))


# --- what is refused -----------------------------------------------------------------------------


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))
        self.act = nn.Tanh()
        self.missing = None

    def forward(self, x):
        return self.act(self.body(x))


def refused(function, name, new, message):
    model = Own()
    before = tensors(model), modes(model), list(model.named_modules())
    with pytest.raises(FixError) as caught:
        function(model, name, new)
    assert str(caught.value) == message
    assert (tensors(model), modes(model), list(model.named_modules())) == before


every_function = pytest.mark.parametrize("function", [swap, insert_before, insert_after])


@every_function
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("body.22", "no module of Own is called 'body.22'. Did you mean 'body.2'?"),
        ("actt", "no module of Own is called 'actt'. Did you mean 'act'?"),
        ("missing", "no module of Own is called 'missing'."),
        ("forward", "no module of Own is called 'forward'."),
        ("", "the model itself cannot be exchanged: assign a new one to your variable."),
        (1, "no module of Own is called 1."),
        (0, "no module of Own is called 0."),
    ],
)
def test_a_name_that_no_module_has_is_refused_with_the_nearest(function, name, message):
    refused(function, name, nn.Tanh(), message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("body.0", "body.0 (Linear) owns weight, bias"),
        ("body.2", "body.2 (BatchNorm1d) owns weight, bias, running_mean, running_var"),
        ("body", "body (Sequential) owns 0.weight, 0.bias, 2.weight, 2.bias"),
    ],
)
def test_a_module_with_parameters_or_buffers_is_not_exchanged(name, message):
    tail = ", which would be lost. Only modules without parameters and buffers can be exchanged, "
    refused(swap, name, nn.Tanh(), f"swap: {message}{tail}such as activations.")


def test_a_module_with_a_buffer_only_is_not_exchanged():
    model = nn.Sequential(Frozen())
    with pytest.raises(FixError, match="owns running_mean"):
        swap(model, "0", nn.Tanh())


@every_function
def test_what_is_no_module_is_refused(function):
    start = "the new module must be an instance of torch.nn.Module, but is"
    refused(function, "act", nn.Tanh, f"{start} the class Tanh.")
    refused(function, "act", torch.tanh, f"{start} builtin_function_or_method.")
    refused(function, "act", None, f"{start} None.")


@every_function
def test_a_circle_is_refused(function):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU()))
    for new in (model, model[1], nn.Sequential(model[1])):
        with pytest.raises(FixError, match="holds the place of"):
            function(model, "1.0", new)
    assert isinstance(model[1][0], nn.ReLU)


@every_insertion
def test_a_layer_is_not_inserted_into_itself(insert):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(FixError, match="holds the place of"):
        insert(model, "0", nn.Sequential(model[0]))
    assert [*model[0].children()] == []


@every_insertion
@pytest.mark.parametrize("name", ["0", "1", "2"])
@pytest.mark.parametrize("affine", [True, False])
def test_inserting_twice_is_refused(insert, name, affine):
    class Filter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("taps", torch.ones(4))

        def forward(self, x):
            return x * self.taps

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Filter())
    insert(model, name, nn.LayerNorm(4, elementwise_affine=affine))
    once = copy.deepcopy(model)
    with pytest.raises(
        FixError, match=rf"^insert: {name} \((Linear|Filter|Sequential)\) (has a|holds)"
    ):
        insert(model, name, nn.LayerNorm(4))

    assert str(model) == str(once)
    same(model(torch.arange(8.0).view(2, 4)), once(torch.arange(8.0).view(2, 4)))


@every_insertion
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "Insert at one of them: 0.0, 0.1."),
        (lambda: nn.ModuleList([nn.Linear(4, 4)]), "Insert at one of them: 0.0."),
        (lambda: nn.ModuleDict({"a": nn.Tanh()}), "Insert at one of them: 0.a."),
        (nn.Sequential, "Insert at one of them: there is none yet."),
        (lambda: nn.MultiheadAttention(4, 1), "Insert at one of them: 0.out_proj."),
    ],
)
def test_at_a_module_that_holds_others_nothing_is_inserted(insert, make, message):
    """Its own forward may call all children, and would call one more."""
    model = nn.Sequential(make())
    before = str(model)
    with pytest.raises(FixError) as caught:
        insert(model, "0", nn.LayerNorm(4))

    assert str(caught.value).endswith(message)
    assert str(model) == before


# --- insertion -----------------------------------------------------------------------------------


@every_insertion
@given(cases(), st.data())
def test_an_insertion_composes_the_two_and_leaves_all_tensors_and_modes(insert, case, data):
    model = case.model
    name = data.draw(st.sampled_from(leaves(model)))
    new, twin = Gain(), copy.deepcopy(model)
    with torch.no_grad():
        new.weight.copy_(torch.randn(WIDTH))
    copied, place = copy.deepcopy(new).to(case.x.dtype), twin.get_submodule(name)
    if insert is insert_before:
        place.register_forward_pre_hook(lambda m, args: (copied(args[0]),))
    else:
        place.register_forward_hook(lambda m, args, out: copied(out))
    before, how, old = tensors(model), modes(model), model.get_submodule(name)
    count = sum(m is old for _, m in model.named_modules(remove_duplicate=False))

    insert(model, name, new)

    after = tensors(model)
    assert {n: t for n, t in after.items() if n in before} == before
    assert [t[0] for n, t in after.items() if n not in before] == [id(new.weight)] * count
    assert {n: mode for n, mode in modes(model).items() if n in how} == how
    assert new.training == old.training
    assert new.weight.dtype == case.x.dtype
    same(run(case), run(case, twin))
    missing = twin_state(model, twin)
    assert all("norm" in n or n.rpartition(".")[0] in new_names(model, new) for n in missing)
    assert len(missing) == count


def new_names(model, new):
    return [n for n, m in model.named_modules(remove_duplicate=False) if m is new]


def twin_state(model, twin):
    """What a state dict of before lacks."""
    found = model.load_state_dict(twin.state_dict(), strict=False)
    assert found.unexpected_keys == []
    return found.missing_keys


NORMED = {
    "linear": (lambda: nn.Linear(6, 8), nn.BatchNorm1d, (6, 8), (32, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3), nn.BatchNorm1d, (6, 8), (8, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 8, 3), nn.BatchNorm2d, (6, 8), (8, 6, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(6, 8, 2), nn.BatchNorm3d, (6, 8), (8, 6, 3, 3, 3)),
    "group": (lambda: nn.Conv2d(6, 8, 3), lambda n: nn.GroupNorm(2, n), (6, 8), (8, 6, 5, 5)),
    "sequence": (lambda: nn.Linear(6, 8), nn.LayerNorm, (6, 8), (4, 7, 6)),
    "tanh": (nn.Tanh, nn.BatchNorm1d, (6, 6), (32, 6)),
    "prelu": (lambda: nn.PReLU(6), nn.LayerNorm, (6, 6), (32, 6)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", NORMED)
def test_the_forward_is_norm_of_layer_and_layer_of_norm(kind, dtype):
    make, norm, (into, out), shape = NORMED[kind]
    torch.manual_seed(0)
    layer, x, ahead = make().to(dtype), torch.randn(shape, dtype=dtype), nn.PReLU().to(dtype)
    a, b = (nn.Sequential(ahead, copy.deepcopy(layer)) for _ in range(2))
    insert_after(a, "1", norm(out))
    insert_before(b, "1", norm(into))

    same(a(x), norm(out).to(dtype)(layer(ahead(x))))
    same(b(x), layer(norm(into).to(dtype)(ahead(x))))


def test_a_layer_that_is_called_by_keyword_reads_the_norm_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            return self.act(input=self.layer(input=x))

    model, x = Named(), torch.randn(8, 4)
    expected = F.relu(F.layer_norm(model.layer(F.layer_norm(x, (4,))), (4,)))
    insert_before(model, "layer", nn.LayerNorm(4))
    insert_after(model, "layer", nn.LayerNorm(4))

    same(model(x), expected)


def test_the_other_arguments_of_a_layer_stay():
    class Sum(nn.Bilinear):
        pass

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Sum(4, 3, 2)

        def forward(self, x):
            return self.layer(x, x[:, :3])

    model, x = Pair(), torch.randn(8, 4)
    expected = model.layer(F.layer_norm(x, (4,)), x[:, :3])
    insert_before(model, "layer", nn.LayerNorm(4))

    same(model(x), expected)


def test_both_ends_of_a_layer_can_have_a_norm():
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(8, 4)
    expected = F.layer_norm(model[0](F.layer_norm(x, (4,))), (4,))
    insert_after(model, "0", nn.LayerNorm(4))
    insert_before(model, "0", nn.LayerNorm(4))

    same(model(x), expected)


@every_insertion
@pytest.mark.parametrize("name", ["0", "1"])
@given(st.permutations(EVENTS))
def test_hooks_fire_as_before_the_insertion(insert, name, order):
    model, log = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), []
    for register in order:
        register(model.get_submodule(name), log)
    before = events(model, log)
    insert(model, name, nn.LayerNorm(WIDTH))

    assert len(before) == len(EVENTS)
    assert events(model, log) == before


@every_insertion
@pytest.mark.parametrize("name", ["0", "1"])
def test_hooks_see_what_comes_from_before_and_what_goes_on(insert, name):
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), {}
    place, x = model.get_submodule(name), torch.randn(8, 4)
    place.register_forward_pre_hook(lambda m, args: seen.update(read=args[0]))
    place.register_forward_hook(lambda m, args, out: seen.update(given=out))
    comes = x if name == "0" else model[0](x)
    insert(model, name, nn.LayerNorm(4))
    goes = model(x) if name == "1" else model[0](x)

    same(seen["read"], comes)
    same(seen["given"], goes)


@every_insertion
@pytest.mark.parametrize("name", ["0", "1"])
def test_a_hook_that_changes_the_values_works_around_both(insert, name):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(8, 4)
    place = model.get_submodule(name)
    place.register_forward_pre_hook(lambda m, args: (args[0] * 3 + 1,))
    place.register_forward_hook(lambda m, args, out: out * out)
    bare = copy.deepcopy(place)
    bare._forward_hooks.clear()
    bare._forward_pre_hooks.clear()
    norm = nn.LayerNorm(4)
    both = nn.Sequential(norm, bare) if insert is insert_before else nn.Sequential(bare, norm)
    comes = x if name == "0" else model[0](x)
    expected = both(comes * 3 + 1).square()
    insert(model, name, nn.LayerNorm(4))

    same(model.get_submodule(name)(comes), expected)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
@every_insertion
def test_a_parametrized_layer_takes_a_norm(insert, norm):
    torch.manual_seed(0)
    model, x = nn.Sequential(norm(nn.Linear(4, 4)), nn.ReLU()).eval(), torch.randn(8, 4)
    before = tensors(model)
    first, last = ((4,), None) if insert is insert_before else (None, (4,))
    expected = model[0](x if first is None else F.layer_norm(x, first))
    expected = expected if last is None else F.layer_norm(expected, last)
    insert(model, "0", nn.LayerNorm(4))

    assert {n: t for n, t in tensors(model).items() if n in before} == before
    same(model[0](x), expected)


class Shared(nn.Module):
    """A layer and an activation that run twice, under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Linear(4, 4), nn.Tanh()
        self.b, self.block = self.a, nn.Sequential(self.act)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.block(self.b(self.act(self.a(x)))))


@every_insertion
@pytest.mark.parametrize("name", ["a", "b", "act", "block.0"])
def test_what_runs_at_several_places_has_the_same_norm_at_all_of_them(insert, name):
    torch.manual_seed(0)
    model, x, norm = Shared(), torch.randn(8, 4), nn.LayerNorm(4)
    a, act, head = (copy.deepcopy(m) for m in (model.a, model.act, model.head))
    both = {"a": a, "act": act}
    key = "a" if name in ("a", "b") else "act"
    pair = (norm, both[key]) if insert is insert_before else (both[key], norm)
    both[key] = nn.Sequential(*pair)
    expected = head(both["act"](both["a"](both["act"](both["a"](x)))))
    insert(model, name, nn.LayerNorm(4))

    assert model.a is model.b
    assert model.act is model.block[0]
    assert sum(isinstance(m, nn.LayerNorm) for m in model.modules()) == 1
    same(model(x), expected)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.conv_act = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.layer, self.act, self.head = nn.Linear(36, 8), nn.Sigmoid(), nn.Linear(8, 2)

    def forward(self, x):
        x = self.conv_act(self.conv(x)).flatten(1)
        return self.head(self.act(self.layer(x)))


def operated():
    torch.manual_seed(0)
    model = Net()
    insert_after(model, "conv", nn.BatchNorm2d(4))
    insert_before(model, "layer", nn.LayerNorm(36))
    insert_before(model, "act", nn.BatchNorm1d(8))
    swap(model, "conv_act", nn.ELU())
    return model, torch.randn(16, 3, 5, 5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_of_the_result_compute_the_same_and_share_nothing(again):
    model, x = operated()
    other = again(model)

    same(model.eval()(x), other.eval()(x))
    assert not {t[0] for t in tensors(model).values()} & {t[0] for t in tensors(other).values()}
    with torch.no_grad():
        other.conv.norm_after.weight.mul_(2)
        other.layer.norm_before.weight.mul_(2)
    assert not torch.allclose(model(x), other(x))


def test_the_result_saves_and_loads_like_any_model():
    model, x = operated()
    for p in model.parameters():
        p.data.normal_()
    other, _ = operated()
    other.load_state_dict(model.state_dict())

    same(model(x), other(x))


def test_an_old_state_dict_lacks_only_what_was_inserted():
    torch.manual_seed(1)
    old, (model, _) = Net().state_dict(), operated()
    found = model.load_state_dict(old, strict=False)

    assert found.unexpected_keys == []
    norm = ("weight", "bias", "running_mean", "running_var")
    assert found.missing_keys == [
        *(f"conv.norm_after.{n}" for n in norm),
        *(f"layer.norm_before.{n}" for n in norm[:2]),
        *(f"act.0.{n}" for n in norm),
    ]
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in old.items())


def test_the_norm_learns_with_the_rest():
    model, x = operated()
    model(x).square().mean().backward()

    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- recalibrate_ --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 2**31))
def test_running_statistics_are_those_of_the_data(dtype, sizes, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2), nn.BatchNorm1d(2)
    )
    model.to(dtype).train(seed % 2 == 0)
    stream = [torch.randn(n, 3, dtype=dtype) for n in sizes]
    recalibrate_(model, [(x,) for x in stream])

    first, second = [], []
    for x in stream:
        z = model[0](x)
        y = torch.tanh((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt())
        first.append((z.mean(0), z.var(0)))
        second.append((model[3](y).mean(0), model[3](y).var(0)))
    for norm, seen in ((model[1], first), (model[4], second)):
        torch.testing.assert_close(norm.running_mean, sum(m for m, _ in seen) / len(seen))
        torch.testing.assert_close(norm.running_var, sum(v for _, v in seen) / len(seen))
        assert norm.num_batches_tracked == len(stream)


@pytest.mark.parametrize(
    "make",
    [nn.BatchNorm2d, lambda n: nn.InstanceNorm2d(n, track_running_stats=True),
     normalization.BatchNorm2d],
    ids=["BatchNorm2d", "InstanceNorm2d", "ours"],
)  # fmt: skip
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_images_and_every_norm_with_a_memory(make, momentum):
    torch.manual_seed(0)
    model = nn.Sequential(make(3))
    model[0].momentum = momentum
    model[0].running_mean.fill_(torch.nan)  # of a run that diverged
    stream = [torch.randn(4, 3, 5, 5) * k + k for k in (1, 2, 3)]
    recalibrate_(model, iter(stream))

    over = (0, 2, 3)
    if isinstance(model[0], nn.InstanceNorm2d):  # the average of each picture's own
        means = [x.mean((2, 3)).mean(0) for x in stream]
        variances = [x.var((2, 3)).mean(0) for x in stream]
    else:
        means, variances = [x.mean(over) for x in stream], [x.var(over) for x in stream]
    torch.testing.assert_close(model[0].running_mean, sum(means) / 3)
    torch.testing.assert_close(model[0].running_var, sum(variances) / 3)
    assert model[0].momentum == momentum


def test_a_norm_that_runs_twice_averages_over_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x), self.norm(x * 3 + 1)

    model, x = Twice(), torch.randn(8, 3)
    recalibrate_(model, x)

    torch.testing.assert_close(model.norm.running_mean, (x.mean(0) + (x * 3 + 1).mean(0)) / 2)
    torch.testing.assert_close(model.norm.running_var, (x.var(0) + 9 * x.var(0)) / 2)


def test_a_norm_that_does_not_run_keeps_its_statistics():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.spare, self.still = nn.BatchNorm1d(4), nn.BatchNorm1d(4), Frozen()

        def forward(self, x):
            return self.norm(self.still(x))

    model = Spare()
    model.spare(torch.randn(8, 4))
    before = tensors(model.spare) | tensors(model.still)
    recalibrate_(model, torch.randn(8, 4))

    assert tensors(model.spare) | tensors(model.still) == before


def mixed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.RReLU(),
        nn.BatchNorm1d(4, momentum=None),
    )  # fmt: skip
    model[4].eval()
    model[1].weight.requires_grad_(False)
    model(torch.randn(8, 4)).sum().backward()
    return model


def surroundings(model):
    """All that a recalibration leaves alone."""
    statistics = {n for n, _ in model.named_buffers()}
    return (
        {n: t for n, t in tensors(model).items() if n not in statistics},
        [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()],
        modes(model),
        [m.momentum for m in model.modules() if hasattr(m, "momentum")],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        repr(process()),
    )


def test_recalibration_leaves_everything_but_the_statistics():
    model = mixed()
    before, statistics = surroundings(model), model[1].running_mean.clone()
    recalibrate_(model, (torch.arange(32.0).view(8, 4) ** k for k in (1, 2, 3)))

    assert surroundings(model) == before
    assert not torch.equal(model[1].running_mean, statistics)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_if_the_forward_raises_the_statistics_too_are_as_before(error):
    class FailsLate(nn.Module):
        calls = 0

        def forward(self, x):
            torch.rand(1)
            FailsLate.calls += 1
            if FailsLate.calls > 2:
                raise error
            return x

    model = mixed()
    model.insert(3, FailsLate())
    before, buffers = surroundings(model), tensors(model)
    with pytest.raises(error):
        recalibrate_(model, (torch.arange(32.0).view(8, 4) ** k for k in (1, 2, 3)))

    assert FailsLate.calls == 3
    assert surroundings(model) == before
    assert tensors(model) == buffers


def len_of(data):
    return f"{type(data).__name__} of {len(data)}" if hasattr(data, "__len__") else repr(data)


@pytest.mark.parametrize("data", [[], (), 3, [(torch.ones(8, 4),), "text"]], ids=len_of)
def test_data_that_are_none_are_refused_and_nothing_is_forgotten(data):
    model = mixed()
    before, buffers = surroundings(model), tensors(model)
    with pytest.raises(BatchError):
        recalibrate_(model, data)

    assert surroundings(model) == before
    assert tensors(model) == buffers


def test_dropout_is_off_while_the_norms_learn():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4))
    x = torch.randn(64, 4)
    recalibrate_(model, x)

    torch.testing.assert_close(model[1].running_mean, x.mean(0))


def test_a_models_own_train_method_is_not_called():
    """It may do more than to set the mode, such as to merge adapters into the weights."""

    class Adapted(nn.Sequential):
        def train(self, mode=True):
            raise AssertionError

    model = Adapted(nn.BatchNorm1d(4))
    x = torch.randn(16, 4)
    recalibrate_(model, x)

    torch.testing.assert_close(model[0].running_mean, x.mean(0))


def test_no_graph_is_kept_while_the_norms_learn():
    class Watches(nn.Module):
        def forward(self, x):
            assert not torch.is_grad_enabled()
            return x

    recalibrate_(nn.Sequential(nn.BatchNorm1d(4), Watches()), torch.ones(8, 4))


def test_the_data_stay_as_they_are_where_the_model_changes_its_input():
    x = torch.randn(16, 4)
    before = x.clone()
    recalibrate_(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm1d(4)), x)

    assert torch.equal(x, before)


def test_a_data_loader_with_targets_is_a_stream():
    model, x = nn.Sequential(nn.BatchNorm1d(4)), torch.randn(64, 4)
    data = torch.utils.data.TensorDataset(x, torch.zeros(64))
    recalibrate_(model, torch.utils.data.DataLoader(data, batch_size=16))

    torch.testing.assert_close(model[0].running_mean, x.mean(0))
    assert model[0].num_batches_tracked == 4


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)),
        nn.Sequential(Frozen()),
    ],
)
def test_without_running_statistics_there_is_nothing_to_estimate(model):
    with pytest.raises(FixError, match="no layer of Sequential keeps running statistics"):
        recalibrate_(model, torch.ones(8, 4))


# --- what a check sees ---------------------------------------------------------------------------


def mlp(norm=None, at=(), std=None):
    """Three layers, and norms at these places of the nn.Sequential."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)]
    if std is not None:
        for layer in layers[::2]:
            nn.init.normal_(layer.weight, std=std)
    for place in reversed(at):
        layers.insert(place, norm())
    return nn.Sequential(*layers), torch.randn(128, 16)


def plain(value):
    """A value of the report, down to numbers; places in a file differ."""
    if dataclasses.is_dataclass(value):
        left_out = ("name", "location", "node", "weight", "bias")
        named = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: plain(v) for name, v in named if name not in left_out}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


def story(report):
    return [(f.rule, f.severity, f.evidence) for f in report.findings]


def looks_the_same(report, expected):
    """Rows, numbers, data flow and findings are those of the nn.Sequential, under other names."""
    theirs = report.snapshot
    assert [plain(row) for row in theirs.layers] == [plain(r) for r in expected.snapshot.layers]
    assert theirs.nodes == expected.snapshot.nodes
    assert story(report) == story(expected)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(32), lambda: nn.LayerNorm(32)])
@pytest.mark.parametrize("std", [None, 0.003, 1.0])
@pytest.mark.parametrize("how", ["after the layer", "before the activation"])
def test_a_check_sees_an_inserted_norm_as_one_in_a_sequential(norm, std, how):
    written, x = mlp(norm, (1, 3), std)
    model, _ = mlp(std=std)
    for k in (0, 2):
        if how == "after the layer":
            insert_after(model, str(k), norm())
        else:
            insert_before(model, str(k + 1), norm())
    report, expected = nndiag.check(model, x), nndiag.check(written, x)

    names = [row.name for row in report.snapshot.layers]
    if how == "after the layer":
        assert names == ["0", "0.norm_after", "1", "2", "2.norm_after", "3", "4"]
    else:
        assert names == ["0", "1.0", "1.1", "2", "3.0", "3.1", "4"]
    looks_the_same(report, expected)


@pytest.mark.parametrize("std", [None, 0.003])
def test_a_check_sees_a_norm_before_a_layer_as_one_in_a_sequential(std):
    written, x = mlp(lambda: nn.BatchNorm1d(32), (4,), std)
    model, _ = mlp(std=std)
    insert_before(model, "4", nn.BatchNorm1d(32))
    report, expected = nndiag.check(model, x), nndiag.check(written, x)

    names = {row.name for row in report.snapshot.layers}
    assert names == {"0", "1", "2", "3", "4.norm_before", "4"}
    assert story(report) == story(expected)


def test_a_check_leaves_a_model_with_insertions_as_it_is():
    model, x = operated()
    before = tensors(model), modes(model)
    first, second = nndiag.check(model, x), nndiag.check(model, x)

    assert (tensors(model), modes(model)) == before
    assert story(first) == story(second)


def test_names_are_kept_in_order():
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.ReLU(), c=nn.Linear(4, 2)))
    swap(model, "b", nn.ELU())
    insert_before(model, "b", nn.LayerNorm(4))
    insert_after(model, "a", nn.LayerNorm(4))

    assert [n for n, _ in model.named_children()] == ["a", "b", "c"]
