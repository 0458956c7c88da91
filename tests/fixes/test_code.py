"""Names as Python: what is written means the parameter or module of that name, and no other."""

from __future__ import annotations

import keyword

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nndiag.fixes import code

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
    return eval(compile(written, "<written>", "eval"), {"model": model, "torch": torch})


@given(trees())
def test_what_is_written_for_a_name_is_what_has_that_name(model):
    for name, parameter in model.named_parameters():
        assert evaluated(code.parameter(name), model) is parameter
    for name, module in model.named_modules():
        assert evaluated(code.module(name), model) is module


@given(trees(), st.data())
def test_a_line_for_each_name_runs_on_these_and_no_others(model, data):
    named = dict(model.named_parameters())
    if not named:
        return
    chosen = data.draw(st.lists(st.sampled_from(list(named)), min_size=1))
    line = code.for_each(chosen, "nn.init.constant_({}, 7)", "parameter")
    exec(line, {"model": model, "nn": nn})

    assert {name for name, p in named.items() if p.item() == 7} == set(chosen)
    indented = code.without_gradients(code.for_each(chosen, "{}.fill_(9)", "parameter"))
    exec(indented, {"model": model, "torch": torch})
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
    written = code.listed(names)

    assert list(evaluated(written, None)) == names
    longest = max(len(code.quoted(name)) for name in names)
    assert all(len(line) <= max(code.WIDE, longest + 5) for line in written.split("\n"))


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("form", ["{key}.{i}", "{i}.{key}"])
def test_a_number_counts_up_beside_any_name(form, key):
    names = [form.replace("{key}", key).replace("{i}", str(i)) for i in range(1, 8, 2)]
    assert list(evaluated(code.listed(names), None)) == names


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
    assert code.listed(names) == written


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
    assert code.parameter(name) == written


def test_no_keyword_is_written_as_an_attribute():
    assert not any(code._attribute(f"a.{word}.b") for word in keyword.kwlist)


def test_a_number_means_the_name_and_not_the_position():
    """A traced Sequential cannot be indexed, in a ModuleDict keys are strings, order may differ."""
    layers = [nn.Linear(2, 2), nn.Linear(2, 3)]
    shuffled = nn.Sequential()
    shuffled.add_module("1", layers[0])
    shuffled.add_module("0", layers[1])
    traced = torch.fx.symbolic_trace(nn.Sequential(*layers))
    for model in (shuffled, traced, nn.ModuleDict({"1": layers[0], "0": layers[1]})):
        for name, p in model.named_parameters():
            assert evaluated(code.parameter(name), model) is p
