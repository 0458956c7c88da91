"""What the user reads when something is wrong, line by line; the model is untouched then, too."""

from __future__ import annotations

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bitwise import untouched
from torch import nn
from torch.utils.data import TensorDataset

import nndiag
from nndiag import errors

X, WIDE = torch.randn(8, 6), torch.randn(8, 7)
Y = torch.randint(0, 3, (8,))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, image, mask, scale=1.0):
        return self.body(image) * mask * scale


class Picks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x):
        return self.body(x).argmax(1)


class HasLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x):
        return {"loss": self.body(x)}


def says(kind, model, batch, *args, **options):
    """The lines of the error, which is of this kind and of no other."""
    held = [thing for thing in (model, batch) if not isinstance(thing, type)]
    with untouched(*held), pytest.raises(errors.NNDiagError) as caught:
        nndiag.check(model, batch, *args, config=False, **options)
    assert type(caught.value) is kind
    return str(caught.value).splitlines()


def net():
    return models.mlp(nn.ReLU())


# -- the model --------------------------------------------------------------------------------


@pytest.mark.parametrize(("thing", "name"), [("net", "str"), (None, "None"), (3, "3")])
def test_no_module(thing, name):
    assert says(errors.ModelError, thing, X) == [
        f"check() needs a torch.nn.Module, but got {name}."
    ]


def test_a_function_that_may_build_one():
    assert says(errors.ModelError, net, X) == [
        "check() needs a torch.nn.Module, but got function. If it builds one, call it: "
        "check(net(), batch)."
    ]


def test_a_class_in_the_place_of_a_module():
    assert says(errors.ModelError, Masked, X) == [
        "check() needs a torch.nn.Module, but got the class Masked. Create one first: "
        "check(Masked(…), batch)."
    ]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_model():
    model = nn.Sequential(nn.Linear(6, 4), nn.LazyLinear(3))
    with pytest.raises(errors.ModelError) as caught:
        nndiag.check(model, X, config=False)

    assert str(caught.value).splitlines() == [
        "1.weight is not initialised yet: the model has lazy modules. Run one forward with a real "
        "batch first, then check it."
    ]


def test_a_model_on_the_meta_device():
    assert says(errors.ModelError, nn.Sequential(nn.Linear(6, 3, device="meta")), X) == [
        "0.weight is on the meta device: it has a shape but no values. Materialise the model "
        "first, for example with model.to_empty(device='cpu') and an initialisation."
    ]


def test_a_model_that_raises():
    model = nn.Sequential(net(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    assert says(errors.CaptureError, model, (X, Y)) == [
        "the model raised in 1.0 (Linear), after 3 of 5 layers.",
        "  RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x3 and 4x4)",
        "  batch: (f32[8, 6], target i64[8])",
        "  Hooks are removed and the model is as you passed it.",
    ]


def test_a_model_that_raises_in_a_forward_of_its_own():
    assert says(errors.CaptureError, Masked(), nndiag.Batch((X, torch.ones(8, 9))))[:2] == [
        "the model raised in (root) (Masked), after 1 of 1 layers.",
        "  RuntimeError: The size of tensor a (3) must match the size of tensor b (9) at "
        "non-singleton dimension 1",
    ]


def test_a_batch_of_one_for_batch_norm():
    lines = says(errors.CaptureError, models.normed(), X[:1])

    assert lines[0] == "the model raised in 1 (BatchNorm1d), after 1 of 4 layers."
    assert "Expected more than 1 value per channel when training" in lines[1]


def test_the_original_error_is_the_cause():
    with pytest.raises(errors.CaptureError) as caught:
        nndiag.check(net(), WIDE, config=False)

    assert type(caught.value.__cause__) is RuntimeError
    assert isinstance(caught.value, RuntimeError)


# -- the batch --------------------------------------------------------------------------------


def test_a_batch_whose_key_forward_does_not_know():
    assert says(errors.BatchError, Masked(), {"image": X, "masc": X}) == [
        "the batch does not fit Masked.forward(image, mask, scale=1.0): missing a required "
        "argument: 'mask'. Given: (image=f32[8, 6], masc=f32[8, 6]). To name each argument, pass "
        "nndiag.Batch(args=…, kwargs=…, target=…)."
    ]


def test_a_batch_without_what_forward_requires():
    [line] = says(errors.BatchError, Masked(), X)

    assert line.startswith(
        "the batch does not fit Masked.forward(image, mask, scale=1.0): missing a required "
        "argument: 'mask'. Given: (f32[8, 6])."
    )


def test_more_tensors_than_forward_takes():
    assert says(errors.BatchError, Masked(), (X, X, X, X, Y)) == [
        "the batch is a tuple of 5, but Masked.forward(image, mask, scale=1.0) takes 2 to 3 "
        "positional arguments. Say which are inputs and which is the target: "
        "nndiag.Batch(args=(…), target=…)."
    ]


def test_a_batch_of_nothing():
    assert says(errors.BatchError, net(), (X[:0], Y[:0])) == [
        "the batch is empty: (f32[0, 6], target i64[0]). Give at least one sample."
    ]
    assert says(errors.BatchError, net(), ()) == [
        "the batch is an empty tuple: there is nothing to give to Sequential.forward(input)."
    ]


@pytest.mark.parametrize(("stream", "name"), [([], "list"), (iter(()), "tuple_iterator")])
def test_a_stream_of_nothing(stream, name):
    with pytest.raises(errors.BatchError) as caught:
        nndiag.check(net(), stream, config=False)

    assert str(caught.value).splitlines() == [
        f"the stream of batches ({name}) is empty: nothing was run. Give at least one batch; an "
        "iterator that was used up before has none left."
    ]


LEGAL = (
    "Pass a tensor, (inputs, target), a dict of forward's arguments, nndiag.Batch(args=…, "
    "kwargs=…, target=…), or a DataLoader of those."
)
ARRAYS = " For arrays and lists of numbers, use torch.as_tensor first."
DATASET = " For a dataset, pass torch.utils.data.DataLoader(dataset, batch_size=…)."


@pytest.mark.parametrize(
    ("thing", "name", "hint"),
    [
        (np.ones((8, 6)), "ndarray", ARRAYS),
        (3.5, "float", ARRAYS),
        ("text", "str", " Turn text into tensors first, with a tokenizer."),
        (TensorDataset(X, Y), "TensorDataset", DATASET),
        (object(), "object", ""),
        (None, "NoneType", ""),
    ],
)
def test_something_that_is_no_batch(thing, name, hint):
    with pytest.raises(errors.BatchError) as caught:
        nndiag.check(net(), thing, config=False)

    assert str(caught.value) == f"a batch of type {name} is not understood. {LEGAL}{hint}"


@pytest.mark.parametrize(("item", "name"), [(np.ones((8, 6)), "ndarray"), (1.0, "float")])
def test_a_stream_of_something_that_is_no_batch(item, name):
    with pytest.raises(errors.BatchError) as caught:
        nndiag.check(net(), [item, item], config=False)

    assert str(caught.value) == (
        f"the stream of batches yields a {name}; each of its items must be a tensor, (inputs, "
        f"target), a dict or an nndiag.Batch.{ARRAYS}"
    )


def test_a_batch_on_another_device():
    assert says(errors.BatchError, net(), X.to("meta")) == [
        "the model is on cpu but input is on meta. Move one of them: batch.to('cpu') or "
        "model.to('meta')."
    ]


def test_a_model_that_moves_its_input_itself_may_have_it_elsewhere():
    class Moves(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, x):
            return self.body(torch.ones_like(x, device="cpu"))

    assert nndiag.check(Moves(), X.to("meta"), config=False).snapshot.layers


def test_a_batch_of_one_is_no_error():
    report = nndiag.check(net(), X[:1], config=False)

    assert report.snapshot.samples == 1
    assert report.crashed == ()


def test_a_nan_in_the_input_is_a_finding_and_no_error():
    x = X.clone()
    x[2, 3] = float("nan")

    report = nndiag.check(net(), x, config=False)

    assert not report.ok
    assert report.crashed == ()
    assert report.snapshot.inputs["input"].nan == 1
    assert any(f.rule == "non-finite" for f in report.findings)


# -- the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(), nn.MSELoss()])
def test_a_loss_without_a_target(loss):
    assert says(errors.LossError, net(), X, loss_fn=loss) == [
        "loss_fn was given but no target. Pass target=…, a batch (inputs, target), or a loss_fn "
        "that takes the output alone."
    ]


def test_a_target_without_a_loss():
    assert says(errors.LossError, net(), X, Y) == [
        "target was given but no loss_fn: nothing can be computed from it. Pass loss_fn too, for "
        "example torch.nn.functional.cross_entropy."
    ]


def test_a_target_that_is_given_twice():
    assert says(errors.LossError, net(), (X, Y), Y, F.cross_entropy) == [
        "the target is given twice: in the batch and as target=. Keep one."
    ]


def test_a_target_that_does_not_match():
    assert says(errors.LossError, net(), (X, Y[:5]), loss_fn=F.cross_entropy) == [
        "loss_fn raised ValueError: Expected input batch_size (8) to match target batch_size (5).",
        "  output: f32[8, 3]",
        "  target: i64[5]",
        "  The model is as it was.",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(torch.zeros(8, 3), "f32[8, 3]"), (None, "None"),
     (torch.zeros((), dtype=torch.complex64), "c64[]")],
)  # fmt: skip
def test_a_loss_that_is_no_single_number(value, shown):
    assert says(errors.LossError, net(), (X, Y), loss_fn=lambda *_: value) == [
        f"loss_fn returned {shown}, but a loss is one real number. Reduce it, for example with "
        ".mean()."
    ]


def test_a_loss_that_is_a_python_number():
    assert says(errors.LossError, net(), (X, Y), loss_fn=lambda *_: 3.0) == [
        "loss_fn returned the Python number 3, through which no gradient can come back. Return the "
        "tensor itself, without .item()."
    ]


@pytest.mark.parametrize(
    ("given", "shown", "example"),
    [(nn.CrossEntropyLoss, "<class 'torch.nn.modules.loss.CrossEntropyLoss'>",
      "nn.CrossEntropyLoss()"), ("cross_entropy", "'cross_entropy'", "F.cross_entropy")],
)  # fmt: skip
def test_a_loss_fn_that_cannot_be_called_on_outputs(given, shown, example):
    assert says(errors.LossError, net(), (X, Y), loss_fn=given) == [
        f"loss_fn is {shown}, but it is called as loss_fn(output, target). Pass a function or an "
        f"instance, such as {example}."
    ]


def test_numpy_arrays_in_a_tuple():
    [message] = says(errors.BatchError, net(), (X.numpy(), Y))
    assert message.startswith("the batch holds a NumPy array (")
    assert message.endswith("Convert it first: torch.as_tensor(array).")


def test_an_output_whose_own_loss_is_no_single_number():
    assert says(errors.LossError, HasLoss(), X) == [
        "the output's own loss is f32[8, 3], but a loss is one real number. Reduce it, for "
        "example with .mean()."
    ]


@pytest.mark.parametrize(
    "loss", [lambda out, y: out.detach().sum(), lambda out, y: (out.argmax(1) == y).float().mean()]
)
def test_a_loss_that_does_not_hang_on_the_model(loss):
    assert says(errors.LossError, net(), (X, Y), loss_fn=loss) == [
        "the loss (loss_fn) is not connected to the model: no gradient would reach any parameter. "
        "Was it computed under no_grad, from a detached output, or with argmax?"
    ]


def test_an_output_that_cannot_be_differentiated():
    assert says(errors.LossError, Picks(), X) == [
        "the output i64[8] holds nothing that can be differentiated. Pass loss_fn, or a model "
        "whose output depends on trainable parameters."
    ]


# -- names ------------------------------------------------------------------------------------


def test_a_rule_that_does_not_exist():
    [line] = says(errors.UnknownRuleError, net(), X, select="dead-rely")

    assert line.startswith(
        "no rule is called 'dead-rely'. Did you mean 'dead-relu'? Choose one of: "
    )
    assert "dead-relu (ND103)" in line
    assert line.endswith("; or the beginning of a code, such as ND2.")


def test_a_threshold_that_does_not_exist():
    [line] = says(errors.UnknownRuleError, net(), X, thresholds={"dead-relu.shar": 0.5})

    assert line.startswith(
        "dead-relu has no threshold 'shar'. Did you mean 'share'? Choose one of: dead-relu.share"
    )


def test_a_threshold_of_a_rule_that_does_not_exist():
    assert says(errors.UnknownRuleError, net(), X, thresholds={"dead-rel.share": 0.5}) == [
        "thresholds name a rule 'dead-rel' that does not exist. Did you mean 'dead-relu'?"
    ]


def test_a_threshold_outside_its_range():
    assert says(errors.SettingsError, net(), X, thresholds={"dead-relu.share": 50}) == [
        "threshold dead-relu.share = 50: it lies between 0 and 1. For 50 %, write 0.5."
    ]
    assert says(errors.SettingsError, net(), X, thresholds={"dead-relu.share": "half"}) == [
        "threshold dead-relu.share = 'half': give a number."
    ]


# -- the tree ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        ("ModelError", TypeError), ("BatchError", ValueError), ("LossError", ValueError),
        ("CaptureError", RuntimeError), ("UnknownRuleError", KeyError),
        ("SettingsError", ValueError), ("TargetError", ImportError), ("ReportError", ValueError),
        ("OutputError", OSError), ("FindingsError", AssertionError),
    ],
)  # fmt: skip
def test_each_error_is_the_builtin_that_one_would_have_caught(kind, builtin):
    error = getattr(errors, kind)

    assert issubclass(error, errors.NNDiagError)
    assert issubclass(error, builtin)
    assert kind in errors.__doc__
    assert builtin.__name__ in errors.__doc__


def test_a_key_error_of_ours_reads_as_it_was_written():
    assert str(errors.UnknownRuleError("no rule is called 'x'.")) == "no rule is called 'x'."


def test_the_nearest_word_is_offered_and_no_far_one():
    known = ["dead-relu", "saturation"]

    assert errors.did_you_mean("Dead_Relu", known) == " Did you mean 'dead-relu'?"
    assert errors.did_you_mean("xyz", known) == ""
