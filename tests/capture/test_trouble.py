"""What fails in us costs a line in the report; what fails in the model passes unchanged."""

from __future__ import annotations

import threading

import models
import pytest
import torch
import torch.nn.functional as F
from oracle import look, plain, row, rows, same_numbers
from torch import nn

import nndiag
from nndiag.capture import opaque, recorder
from nndiag.measure import Meter


class Ours(Exception):
    """A fault of nndiag's own."""


def failing(function, when):
    def call(*args, **options):
        if when(*args):
            raise Ours("on purpose")
        return function(*args, **options)

    return call


# -- ours -------------------------------------------------------------------------------------


def test_a_layer_that_cannot_be_measured_costs_that_layer_and_no_more(monkeypatch):
    case = models.make("called-twice")
    stats = failing(Meter.stats, lambda meter, x, *_: x.shape == (models.N, 3))
    monkeypatch.setattr(Meter, "stats", stats)

    snapshot = look(*case)

    assert rows(snapshot) == ["first", "act", "second", "act@2"]
    assert snapshot.not_observed == ("head: nndiag could not measure it (Ours: on purpose)",)
    seen = plain(*models.make("called-twice"))
    same_numbers(row(snapshot, "act@2").grad, seen.gradients["act@2"])


def test_a_function_that_cannot_be_measured_still_hands_its_result_on(monkeypatch):
    torch.manual_seed(0)
    model, x = models.Functional(), torch.randn(9, 6)
    monkeypatch.setattr(Meter, "flat", failing(Meter.flat, lambda *_: True))

    snapshot = look(model, x)

    assert rows(snapshot) == ["a", "b", "c", "d"]
    assert "/relu: nndiag could not measure it (Ours: on purpose)" in snapshot.not_observed
    b = model.b(model.a(x).relu())
    same_numbers(row(snapshot, "d").output, model.d(model.c(b.sigmoid()).tanh()))


def test_a_fault_after_the_call_costs_that_call_and_no_more(monkeypatch):
    model, x = models.Functional(), torch.randn(9, 6)
    finish = failing(recorder.Recorder.finish, lambda self, row, *_: row.op == "sigmoid")
    monkeypatch.setattr(recorder.Recorder, "finish", finish)

    snapshot = look(model, x)

    assert "/sigmoid" not in rows(snapshot)
    assert "/sigmoid: nndiag could not measure it (Ours: on purpose)" in snapshot.not_observed


def test_a_gradient_that_cannot_be_measured_does_not_break_the_backward(monkeypatch):
    case = models.make("called-twice")
    in_backward = failing(Meter.stats, lambda *_: torch._C._current_graph_task_id() != -1)
    monkeypatch.setattr(Meter, "stats", in_backward)
    snapshot = look(*case)

    assert snapshot.has_gradients
    assert all(layer.grad is None for layer in snapshot.layers)
    assert "the gradient at act: nndiag could not measure it (Ours: on purpose)" in (
        snapshot.not_observed
    )


def test_what_cannot_be_recomputed_is_unseen_and_its_layer_is_there(monkeypatch):
    monkeypatch.setattr(opaque, "gates", failing(opaque.gates, lambda *_: True))
    monkeypatch.setattr(opaque, "attention_rows", failing(opaque.attention_rows, lambda *_: True))

    gates = row(look(*models.make("gru")), "rnn")
    attention = row(look(*models.make("attention")), "attend")

    assert gates.unseen == ("its gates: nndiag could not measure it (Ours: on purpose)",)
    assert attention.unseen[0] == (
        "its attention weights: nndiag could not measure it (Ours: on purpose)"
    )
    assert gates.output.count > 0


def test_a_parameter_that_cannot_be_measured_costs_that_parameter(monkeypatch):
    case = models.make("called-twice")
    stats = failing(Meter.stats, lambda meter, x, *_: tuple(x.shape) == (3, 8))
    monkeypatch.setattr(Meter, "stats", stats)

    snapshot = look(*case)

    assert "head.weight" not in snapshot.parameter
    assert "head.bias" in snapshot.parameter
    assert "head.weight: nndiag could not measure it (Ours: on purpose)" in snapshot.not_observed


def test_a_module_that_cannot_be_entered_costs_its_row(monkeypatch):
    scope = failing(recorder.Recorder._scope, lambda self, module: isinstance(module, nn.ReLU))
    monkeypatch.setattr(recorder.Recorder, "_scope", scope)

    snapshot = look(*models.make("called-twice"))

    assert rows(snapshot) == ["first", "/relu", "second", "/relu#2", "head"]
    assert snapshot.not_observed[0] == "act: nndiag could not measure it (Ours: on purpose)"


# -- theirs -----------------------------------------------------------------------------------


def test_an_error_of_the_users_function_reaches_the_users_handler_unchanged():
    caught = []

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 6)

        def forward(self, x):
            x = self.body(x)
            for attempt in (
                lambda: F.relu(None),
                lambda: torch.cat([x, x[:, :2].unsqueeze(0)]),
                lambda: x.view(7, 7),
                lambda: F.linear(x, x[:, :2]),
                lambda: torch.sigmoid("no tensor"),
            ):
                with pytest.raises((TypeError, RuntimeError)) as error:
                    attempt()
                caught.append((error.type, str(error.value)))
            return F.relu(x)

    model, x = Tries(), torch.randn(8, 6)
    model(x)
    expected = caught[:5]
    del caught[:]

    snapshot = look(model, x)

    assert caught[:5] == expected
    assert rows(snapshot) == ["body", "/relu"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_error_of_the_models(error):
    model = models.mlp(nn.ReLU())

    def interrupt(*_):
        raise error

    model[1].register_forward_hook(interrupt)
    with pytest.raises(error):
        nndiag.check(model, torch.randn(8, 6), config=False)
    assert not torch.nn.modules.module._global_forward_hooks


def test_the_module_that_failed_is_named_even_if_others_failed_before_it():
    class Fails(models.CatchesErrors):
        def forward(self, x):
            super().forward(x)
            return self.act(self.second(x[:, :2]))

    with pytest.raises(nndiag.errors.CaptureError, match="raised in second@2") as caught:
        nndiag.check(Fails(), torch.randn(8, 6), config=False)

    assert "after 3 of 4 layers" in str(caught.value)


def test_a_new_error_made_of_an_old_one_is_that_of_the_module_that_made_it():
    class Wraps(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)

        def forward(self, x):
            try:
                return self.body(x)
            except RuntimeError as error:
                raise ValueError("the input is too wide") from error

    with pytest.raises(nndiag.errors.CaptureError, match=r"raised in 0 \(Wraps\)"):
        nndiag.check(nn.Sequential(Wraps()), torch.randn(8, 6), config=False)


def test_a_check_inside_an_except_block_sees_what_it_sees_elsewhere():
    case = models.make("none-output")
    expected = look(*case)
    try:
        raise ValueError("something else that is being handled")
    except ValueError:
        inside = look(*case)

    assert rows(inside) == rows(expected) == ["body"]
    assert inside.not_observed == expected.not_observed == (
        "watcher: its output holds no tensor",
    )  # fmt: skip


def test_a_module_run_inside_the_users_except_block_is_no_failure():
    case = models.make("catches-errors")
    snapshot = look(*case)

    assert rows(snapshot) == ["first.0", "second", "act", "/relu"]
    assert snapshot.never_called == ()


def test_what_other_threads_run_is_no_call_of_this_run():
    class Threads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            other = threading.Thread(target=lambda: self.body(x.detach()))
            other.start()
            other.join()
            return self.head(self.body(x))

    assert rows(look(Threads(), torch.randn(8, 6))) == ["body", "head"]


# -- what has no numbers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none-output", "watcher: its output holds no tensor"),
        ("jagged", "body: nested tensors are not looked into"),
        (
            "vmapped",
            "body: inside a functional transform (vmap, grad) values cannot be read",
        ),
    ],
)
def test_what_has_no_numbers_is_said_not_to_be_observed(name, line):
    snapshot = look(*models.make(name))

    assert snapshot.not_observed == (line,)
    assert snapshot.has_gradients


def test_whole_numbers_are_no_activations():
    class Counts(nn.Module):
        def forward(self, x):
            return (x > 0).long()

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.count, self.embed = Counts(), nn.Embedding(2, 3)

        def forward(self, x):
            return self.embed(self.count(x))

    snapshot = look(Uses(), torch.randn(8, 6))

    assert snapshot.not_observed == ("count: its output holds no floating-point tensor",)
    assert rows(snapshot) == ["embed"]


def test_a_batch_on_the_meta_device_has_no_values():
    snapshot = look(nn.ReLU(), torch.randn(8, 6, device="meta").requires_grad_())

    assert snapshot.layers == ()
    assert snapshot.not_observed == (
        "input: a tensor on the meta device has no values",
        "(root): a tensor on the meta device has no values",
    )


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_a_nested_batch_is_no_error(layout):
    parts = [torch.randn(3, 6), torch.randn(5, 6)]
    nested = torch.nested.nested_tensor(parts, layout=layout)

    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, x):
            return torch.stack([part.sum(0) for part in self.body(x).unbind()])

    snapshot = look(Sums(), nested)

    assert snapshot.samples == 2
    assert "input: nested tensors are not looked into" in snapshot.not_observed
    assert snapshot.parameter["body.weight"].grad is not None
