"""What a DataLoader yields, turned into arguments and a target; and what counts as a sample."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import threading
from typing import Any, NamedTuple

import models
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nndiag
from nndiag.batch import (
    Batch,
    argument_names,
    as_batch,
    batches,
    describe,
    detached,
    has_samples,
    length,
    tensors_in,
)

X, Y, Z = torch.randn(8, 6), torch.randint(0, 3, (8,)), torch.randn(8, 2)


def taking(signature):
    """A module whose forward has this signature."""
    namespace: dict[str, Any] = {}
    exec(f"def forward(self, {signature}): ...", namespace)
    return type("Takes", (nn.Module,), {"forward": namespace["forward"]})()


def same(batch, args=(), kwargs=None, target=None):
    assert type(batch) is Batch
    assert len(batch.args) == len(args)
    assert all(a is b for a, b in zip(batch.args, args, strict=True))
    assert list(batch.kwargs) == list(kwargs or {})
    assert all(batch.kwargs[key] is value for key, value in (kwargs or {}).items())
    assert batch.target is target


class Pair(NamedTuple):
    values: torch.Tensor
    mask: torch.Tensor


# -- one batch --------------------------------------------------------------------------------

READ = [
    ("x", X, dict(args=(X,))),
    ("x", (X,), dict(args=(X,))),
    ("x", (X, Y), dict(args=(X,), target=Y)),
    ("x", [X, Y], dict(args=(X,), target=Y)),
    ("x, mask=None", (X, Y), dict(args=(X,), target=Y)),
    ("a, b", (X, Z), dict(args=(X, Z))),
    ("a, b", (X, Z, Y), dict(args=(X, Z), target=Y)),
    ("a, b", ((X, Z), Y), dict(args=(X, Z), target=Y)),
    ("a, b", ([X, Z], Y), dict(args=(X, Z), target=Y)),
    ("a, b, c", (X, Z, Y), dict(args=(X, Z, Y))),
    ("a, b, c=None", (X, Z, Y), dict(args=(X, Z), target=Y)),
    ("a, b=None, c=None", (X, Z, Y), dict(args=(X, Z, Y))),
    ("*inputs", (X, Y), dict(args=(X,), target=Y)),
    ("x", {"x": X}, dict(kwargs={"x": X})),
    ("*, x, y=1", {"x": X}, dict(kwargs={"x": X})),
    ("x, mask", ({"x": X, "mask": Z}, Y), dict(kwargs={"x": X, "mask": Z}, target=Y)),
    ("x, mask", [{"x": X, "mask": Z}, Y], dict(kwargs={"x": X, "mask": Z}, target=Y)),
    ("x", collections.UserDict(x=X), dict(kwargs={"x": X})),
    ("x", Batch((X,), target=Y), dict(args=(X,), target=Y)),
    ("x, *, m", Batch((X,), {"m": Z}), dict(args=(X,), kwargs={"m": Z})),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(READ)))
def test_a_batch_is_read_by_what_forward_requires(case):
    signature, data, expected = READ[case]
    same(as_batch(data, taking(signature)), **expected)


def test_a_named_tuple_is_one_argument():
    pair = Pair(X, Z)
    same(as_batch(pair, taking("pair")), args=(pair,))


def test_a_packed_sequence_is_one_argument():
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 6), torch.randn(2, 6)])
    same(as_batch(packed, taking("x")), args=(packed,))


def test_a_batch_of_ones_own_kind_goes_through_nndiag_batch():
    data = argparse.Namespace(x=X)
    same(as_batch(Batch((data,)), taking("data")), args=(data,))


# -- streams ----------------------------------------------------------------------------------


def read(data, signature="x"):
    return list(batches(data, taking(signature)))


def test_a_tuple_is_one_batch_and_a_list_of_tensors_too():
    assert len(read((X, Y))) == len(read([X, Y])) == len(read(X)) == len(read({"x": X})) == 1


@pytest.mark.parametrize(
    "stream",
    [
        [(X, Y), (X, Y)],
        [[X, Y], [X, Y]],
        [{"x": X}, {"x": X}],
        [Batch((X,)), Batch((X,))],
        iter([X, X]),
        (x for x in (X, X)),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(TensorDataset(X), batch_size=4),
    ],
)
def test_everything_else_that_iterates_is_a_stream(stream):
    assert len(read(stream)) == 2


def test_what_a_loader_makes_of_dictionaries_and_targets_is_one_batch_each():
    data = [({"x": X[i]}, Y[i]) for i in range(8)]
    found = read(DataLoader(data, batch_size=4))

    assert len(found) == 2
    assert all(batch.kwargs["x"].shape == (4, 6) for batch in found)
    assert all(batch.target.shape == (4,) for batch in found)


def test_a_stream_is_read_as_it_is_needed():
    drawn = []

    def stream():
        for _ in range(3):
            drawn.append(1)
            yield X

    iterator = batches(stream(), taking("x"))
    next(iterator)

    assert len(drawn) == 1


@pytest.mark.parametrize(
    "stream",
    [
        lambda x, y: [(x[:5], y[:5]), (x[5:], y[5:])],
        lambda x, y: ((x[i : i + 6], y[i : i + 6]) for i in (0, 6, 12)),
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=7),
    ],
)
def test_the_statistics_of_a_stream_are_those_of_one_big_batch(stream):
    torch.manual_seed(0)
    model = models.mlp(nn.Tanh())
    x, y = torch.randn(18, 6), torch.randint(0, 3, (18,))
    loss = nn.CrossEntropyLoss(reduction="sum")

    whole = nndiag.check(model, (x, y), loss_fn=loss, config=False).snapshot
    parts = nndiag.check(model, stream(x, y), loss_fn=loss, config=False).snapshot

    assert (parts.samples, whole.samples) == (18, 18)
    for a, b in zip(parts.layers, whole.layers, strict=True):
        assert a.output.samples == 18
        for what in ("output", "input", "grad"):
            merged, expected = getattr(a, what), getattr(b, what)
            if expected is not None:
                assert merged.count == expected.count
                assert (merged.mean, merged.std) == pytest.approx(
                    (expected.mean, expected.std), rel=1e-4, abs=1e-7
                )
                if expected.units is not None:
                    mean = pytest.approx(expected.units.mean, rel=1e-4, abs=1e-6)
                    assert merged.units.mean == mean
        if b.flat is not None:
            assert (a.flat.flat, a.flat.closed) == (b.flat.flat, b.flat.closed)
    assert parts.inputs["input"].mean == pytest.approx(whole.inputs["input"].mean)


# -- samples and names ------------------------------------------------------------------------


def test_samples_lie_along_the_first_axis_of_the_first_tensor_that_has_axes():
    assert length(Batch((torch.tensor(3.0), X))) == 8
    assert length(Batch(kwargs={"x": X})) == 8
    assert length(Batch((1, "no tensor"))) == 1
    assert length(Batch((X[:0],))) == 0


def test_features_are_no_samples():
    assert not has_samples(X, 1)
    assert has_samples(torch.zeros(3, 2, dtype=torch.int64), 1)
    assert has_samples(torch.zeros(3, 2, 5), 1)
    assert length(Batch((torch.zeros(7, 8, 5),)), 1) == 8


@pytest.mark.parametrize("layer", [nn.LSTM(6, 5), nn.GRU(6, 5), nn.MultiheadAttention(6, 2)])
def test_samples_lie_along_the_second_axis_where_the_model_takes_them_from_there(layer):
    class Embeds(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(9, 6), layer

        def forward(self, ids):
            x = torch.relu(self.embed(ids))
            return self.layer(*[x] * (3 if isinstance(layer, nn.MultiheadAttention) else 1))[0]

    ids = torch.randint(0, 9, (4, 11))
    report = nndiag.check(Embeds(), [(ids,), (ids,)], config=False)

    assert report.snapshot.samples == 22
    assert {layer.output.samples for layer in report.snapshot.layers} == {22}
    assert report.snapshot.inputs["input"].samples == 22


def test_a_model_that_transposes_its_input_itself_is_believed():
    class Transposes(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 5)

        def forward(self, x):
            return self.rnn(x.transpose(0, 1))[0]

    report = nndiag.check(Transposes(), torch.randn(4, 11, 6), config=False)

    assert report.snapshot.samples == 4
    assert report.snapshot.layers[0].output.samples == 4


def test_an_unbatched_sequence_is_one_sample_whose_steps_are_none():
    report = nndiag.check(nn.LSTM(6, 5), torch.randn(7, 6), config=False)

    assert report.snapshot.layers[0].output.samples == 1


def test_inputs_go_by_forwards_names():
    def names(batch, signature):
        return list(argument_names(as_batch(batch, taking(signature)), taking(signature)))

    assert names(X, "x") == ["input"]
    assert names((X, Z), "left, right") == ["input.left", "input.right"]
    assert names({"left": X, "right": [Z, Y]}, "left, right") == [
        "input.left", "input.right.0", "input.right.1",
    ]  # fmt: skip
    assert names(Batch((X, Z)), "*parts") == ["input.parts.0", "input.parts.1"]


# -- copies -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor


@dataclasses.dataclass(slots=True)
class Slotted:
    x: torch.Tensor


class Plain:
    def __init__(self, x):
        self.x, self.me = x, self


class Colour(enum.Enum):
    RED = (1, 2)


HOLDERS = {
    "tensor": (lambda x: x, lambda h: h),
    "tuple": (lambda x: (x, 1), lambda h: h[0]),
    "list": (lambda x: [x, "a"], lambda h: h[0]),
    "dict": (lambda x: {"x": [x]}, lambda h: h["x"][0]),
    "named tuple": (lambda x: Pair(x, x), lambda h: h.values),
    "ordered dict": (lambda x: collections.OrderedDict(x=x), lambda h: h["x"]),
    "default dict": (lambda x: collections.defaultdict(list, x=x), lambda h: h["x"]),
    "user dict": (lambda x: collections.UserDict(x=x), lambda h: h["x"]),
    "frozen dataclass": (Frozen, lambda h: h.x),
    "dataclass with slots": (Slotted, lambda h: h.x),
    "object that holds itself": (Plain, lambda h: h.x),
    "namespace": (lambda x: argparse.Namespace(x=x), lambda h: h.x),
    "packed sequence": (
        lambda x: nn.utils.rnn.pack_sequence([x, x[:2]], enforce_sorted=False), lambda h: h.data),
    "max": (lambda x: torch.max(x, 0), lambda h: h.values),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLDERS)
def test_a_copy_is_of_the_same_kind_and_shares_no_memory(name):
    wrap, read_from = HOLDERS[name]
    x = torch.arange(12.0).view(4, 3)
    original = wrap(x)
    before = read_from(original).clone()

    copy = detached(original)
    read_from(copy).add_(100)

    assert type(copy) is type(original)
    assert torch.equal(read_from(original), before)
    assert torch.equal(read_from(copy), before + 100)


@pytest.mark.parametrize("name", HOLDERS)
def test_tensors_are_found_wherever_they_are(name):
    wrap, read_from = HOLDERS[name]
    holder = wrap(torch.arange(12.0).view(4, 3))

    assert any(t is read_from(holder) for t in tensors_in(holder)) or name == "packed sequence"
    assert list(tensors_in(holder))


class Sealed(dict):
    """As transformers' outputs are: values by key and as attributes, and no update()."""

    def update(self, *_args, **_named):
        raise TypeError("sealed")

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


def test_a_copy_of_a_dict_that_forbids_update_holds_copies():
    original = Sealed()
    original["logits"] = X

    copied = detached(original)

    assert type(copied) is Sealed
    assert copied["logits"] is copied.logits
    assert copied["logits"] is not X
    assert torch.equal(copied["logits"], X)


def test_one_tensor_at_two_places_is_one_tensor_in_the_copy():
    first, (second,) = detached((X, [X]))

    assert first is second
    assert first is not X


def test_a_copy_requires_a_gradient_as_the_original_does_and_hangs_on_no_graph():
    leaf = torch.randn(3, requires_grad=True)

    for x in (leaf, leaf * 2):
        copy = detached(x)
        assert copy.requires_grad
        assert copy.is_leaf
    assert not detached(X).requires_grad


@pytest.mark.parametrize(
    "thing", [Colour.RED, threading.Lock(), "text", 3, None, nn.Linear(2, 2), np.float64(2), torch]
)
def test_what_holds_no_tensors_goes_in_as_it_is(thing):
    assert detached(thing) is thing
    assert list(tensors_in(thing)) == []


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_copied_and_described(layout):
    nested = torch.nested.nested_tensor([X[:3], X[3:]], layout=layout)

    assert detached(nested).is_nested
    assert length(Batch((nested,))) == 2
    assert describe(nested) == "f32[2, nested]"


def test_sparse_tensors_are_copied():
    sparse = X.relu().to_sparse()

    assert torch.equal(detached(sparse).to_dense(), X.relu())


def test_tensors_are_described_and_never_shown():
    assert describe(X) == "f32[8, 6]"
    assert describe({"a": X, "b": [Y, None, 2]}) == "dict(a=f32[8, 6], b=(i64[8], None, 2))"
    assert describe(Batch((X.bfloat16(),), {"m": Z.bool()}, Y)) == (
        "(bf16[8, 6], m=bool[8, 2], target i64[8])"
    )
    assert describe(Plain(X)) == "Plain"
    assert describe(torch.zeros(2, dtype=torch.complex128)) == "complex128[2]"


# -- dicts with a target ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["labels", "label", "targets", "target", "y"])
def test_what_forward_does_not_take_and_is_called_so_is_the_target(name):
    same(as_batch({"x": X, name: Y}, taking("x")), kwargs={"x": X}, target=Y)


def test_a_target_that_forward_takes_stays_an_argument():
    same(as_batch({"x": X, "labels": Y}, taking("x, labels=None")), kwargs={"x": X, "labels": Y})


def test_a_single_input_of_another_name_goes_by_position():
    same(as_batch({"image": X, "label": Y}, taking("x")), args=(X,), target=Y)


def test_two_targets_are_not_guessed():
    with pytest.raises(nndiag.BatchError, match="does not fit"):
        as_batch({"x": X, "labels": Y, "y": Y}, taking("x"))
