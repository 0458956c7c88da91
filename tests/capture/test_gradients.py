"""Gradients of layers and parameters, and what is said where none is seen."""

from __future__ import annotations

import math

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import cotangent, look, plain, row, rows, same_numbers
from torch import nn

import nndiag
from nndiag.loss import LossMaker


class Steps(nn.Module):
    """Runs ``steps`` one after another and, if asked, keeps what each one returns."""

    def __init__(self, *steps, width=6):
        super().__init__()
        self.body, self.head, self.steps = nn.Linear(6, width), nn.Linear(width, 3), steps
        self.kept = None

    def forward(self, x):
        x = self.body(x)
        for step in self.steps:
            x = step(x)
            if self.kept is not None:
                x.register_hook(self.kept.append)
        return self.head(x)


FUNCTIONS = {
    "one after another": (lambda x: F.relu(x), lambda x: torch.tanh(x)),
    "in place": (lambda x: F.relu(x, inplace=True),),
    "in place, twice": (lambda x: F.hardtanh(x, -1, 1, True), lambda x: (x * 2).sigmoid_()),
    "in place after a sum": (lambda x: (x + 1).relu_(),),
    "softmax": (lambda x: F.softmax(x, -1),),
    "pooled": (lambda x: F.avg_pool1d(x, 3, 1, 1),),
    "dropped in eval": (lambda x: F.dropout(x, 0.5, False),),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_gradient_that_a_plain_hook_on_its_output_sees(name):
    torch.manual_seed(0)
    model, x = Steps(*FUNCTIONS[name]), torch.randn(20, 6)

    snapshot = look(model, x)

    model.kept = []
    cotangent(model(x), 0).backward()
    found = [layer.grad for layer in snapshot.layers if layer.kind == "function"]
    assert len(found) == len(model.kept)
    for stats, expected in zip(found, reversed(model.kept), strict=True):
        same_numbers(stats, expected)


def test_a_layer_that_is_overwritten_has_the_gradient_before_that():
    torch.manual_seed(0)
    x = torch.randn(20, 6)
    overwritten, apart = Steps(lambda x: x.relu_()), Steps(torch.relu)
    apart.load_state_dict(overwritten.state_dict())

    here, there = row(look(overwritten, x), "body").grad, row(look(apart, x), "body").grad

    assert (here.count, here.zeros) == (there.count, there.zeros)
    assert (here.min, here.max, here.std) == pytest.approx((there.min, there.max, there.std))


def test_a_view_that_is_changed_in_place_is_said_not_to_be_observed():
    snapshot = look(*models.make("in-place-on-view"))

    layer = row(snapshot, "shape")
    assert layer.grad is None
    assert layer.unseen == (
        "gradient not observed: none reached it, or it is a view that was changed in place",
    )
    assert row(snapshot, "body").grad is not None
    assert row(snapshot, "/relu").grad is not None


def test_what_is_cut_off_and_what_runs_without_gradients_are_told_apart():
    snapshot = look(*models.make("detaches"))

    why = {layer.name: layer.unseen[-1] for layer in snapshot.layers if layer.grad is None}
    none = "gradient not observed: none reached it"
    off = "gradient not observed: it ran where gradients are off (no_grad, or a checkpoint)"
    assert why == {"cut": none, "/relu": none, "off": off, "/sigmoid": off}


def test_frozen_layers_are_said_to_have_nothing_trainable_before_them():
    snapshot = look(*models.make("frozen"))

    assert row(snapshot, "1").unseen == ("gradient not observed: nothing before it is trainable",)


def test_an_input_that_requires_a_gradient_lets_frozen_layers_have_one():
    case = models.make("frozen")
    x = case.batch[0].requires_grad_()
    snapshot = look(case.model, (x, case.batch[1]), case.loss_fn)

    assert row(snapshot, "0").grad is not None
    assert x.grad is None


def test_the_gradient_of_an_unused_branch_is_none_and_not_zero():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    snapshot = look(Unused(), torch.randn(8, 6))

    assert row(snapshot, "unused").grad is None
    assert snapshot.parameter["unused.weight"].grad is None
    assert snapshot.parameter["unused.weight"].used


# -- checkpointing ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpointed", "checkpointed-reentrant"])
def test_recomputation_is_never_a_second_call(name):
    snapshot = look(*models.make(name))

    assert rows(snapshot) == ["first", "/relu", "block.0", "block.1", "/relu#2", "head"]
    assert {layer.calls for layer in snapshot.layers} == {1}


def test_a_checkpoint_of_the_newer_kind_hides_nothing():
    snapshot, seen = look(*models.make("checkpointed")), plain(*models.make("checkpointed"))

    for name in ("block.0", "block.1"):
        same_numbers(row(snapshot, name).grad, seen.gradients[name])


def test_a_reentrant_checkpoint_hides_the_gradients_inside_and_says_so():
    snapshot = look(*models.make("checkpointed-reentrant"))

    off = "gradient not observed: it ran where gradients are off (no_grad, or a checkpoint)"
    for name in ("block.0", "block.1"):
        assert row(snapshot, name).grad is None
        assert row(snapshot, name).unseen == (off,)
    assert row(snapshot, "first").grad is not None
    assert snapshot.parameter["block.0.weight"].grad is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_error_inside_a_checkpoint_closes_its_scopes(reentrant):
    class Fails(models.Checkpointed):
        def forward(self, x):
            try:
                super().forward(x[:, :2])
            except RuntimeError:
                self.failed = True
            return self.head(F.relu(self.first(x)))

    snapshot = look(Fails(reentrant), torch.randn(8, 6))

    assert rows(snapshot) == ["first@2", "/relu", "head"]


def test_a_recomputation_within_the_forward_is_no_call_and_its_gradients_are_not_the_losss():
    snapshot, seen = look(*models.make("gradient-inside")), plain(*models.make("gradient-inside"))

    assert rows(snapshot) == ["energy.0", "energy.1", "energy.2"]
    for name in ("energy.0", "energy.1"):
        same_numbers(row(snapshot, name).grad, seen.gradients[name])
    assert row(snapshot, "energy.2").grad is None


# -- the loss ---------------------------------------------------------------------------------


def losses(model, x, **options):
    return nndiag.check(model, x, config=False, **options).snapshot.loss


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = nn.Linear(6, 3), wrap

    def forward(self, x):
        return self.wrap(self.body(x))


class WithLoss:
    def __init__(self, logits):
        self.logits, self.loss = logits, logits.square().mean()


def test_the_kind_of_the_loss_is_said_and_its_value_is_the_losss():
    torch.manual_seed(0)
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    square = Returns(lambda z: z.square().mean())
    expected = square.body(x).square().mean().item()

    def twin(wrap):
        model = Returns(wrap)
        model.body = square.body
        return model

    given = nndiag.check(twin(lambda z: z), x, y, F.cross_entropy, config=False).snapshot.loss
    assert given.kind == "loss_fn"
    assert given.value == pytest.approx(F.cross_entropy(square.body(x), y).item())
    for wrap in (WithLoss, lambda z: {"loss": z.square().mean(), "logits": z}):
        own = losses(twin(wrap), x)
        assert (own.kind, own.value) == ("output.loss", pytest.approx(expected))
    scalar = losses(square, x)
    assert (scalar.kind, scalar.value) == ("scalar output", pytest.approx(expected))
    drawn = losses(twin(lambda z: z), x)
    assert drawn.kind == "random cotangent"
    assert drawn.value == pytest.approx(cotangent(square.body(x), 0).item())


def test_the_loss_of_an_output_is_not_overlooked_because_it_is_none():
    assert losses(Returns(lambda z: {"loss": None, "z": z}), torch.randn(8, 6)).kind == (
        "random cotangent"
    )


def test_a_single_prediction_is_no_loss():
    model = nn.Linear(6, 1)
    assert losses(model, torch.randn(1, 6)).kind == "random cotangent"


def test_a_loss_of_the_output_alone_needs_no_target():
    loss = losses(nn.Linear(6, 3), torch.randn(8, 6), loss_fn=lambda out: out.square().sum())

    assert loss.kind == "loss_fn"


@pytest.mark.parametrize(
    "loss", [lambda out: out.square().sum(), lambda out, *, scale=1: out.sum()]
)
def test_a_loss_of_the_output_alone_is_not_given_a_target_that_is_there(loss):
    batch = (torch.randn(8, 6), torch.zeros(8))

    assert losses(nn.Linear(6, 3), batch, loss_fn=loss).kind == "loss_fn"


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), F.mse_loss, lambda out, target=None: out.sum() + target.sum()]
)
def test_a_loss_that_takes_a_target_gets_it(loss):
    batch = (torch.randn(8, 6), torch.ones(8, 3))
    torch.manual_seed(0)
    model = nn.Linear(6, 3)

    value = losses(model, batch, loss_fn=loss).value

    assert value == pytest.approx(float(loss(model(batch[0]), batch[1]).detach()))


def test_the_random_cotangent_sees_through_a_softmax_and_a_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(-1))
    summed = torch.autograd.grad(model(torch.randn(8, 6)).sum(), model[0].weight)[0]
    assert summed.abs().max() < 1e-6

    snapshot = look(model, torch.randn(8, 6))

    assert snapshot.parameter["0.weight"].grad.rms > 1e-3


def test_the_random_cotangent_follows_the_seed_and_nothing_else():
    model, x = models.mlp(nn.Tanh()), torch.randn(8, 6)

    def gradient(seed):
        torch.rand(3)
        return look(model, x, seed=seed).parameter["0.weight"].grad.rms

    assert gradient(3) == gradient(3)
    assert gradient(3) != gradient(4)


def test_the_random_cotangent_weighs_every_output_alike_and_leaves_out_whole_numbers():
    out = {"a": torch.ones(4, 100, requires_grad=True), "b": [torch.ones(4, requires_grad=True)],
           "ids": torch.arange(4), "fixed": torch.ones(4)}  # fmt: skip

    kind, loss = LossMaker(None, 7)(out, nndiag.Batch())
    loss.backward()

    assert kind == "random cotangent"
    for t in (out["a"], out["b"][0]):
        assert float(t.grad.norm()) == pytest.approx(1, rel=0.6)


def test_the_loss_of_a_stream_is_the_mean_over_its_batches():
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(3)]

    loss = losses(model, batches, loss_fn=F.cross_entropy)

    expected = np.mean([F.cross_entropy(model(x), y).item() for x, y in batches])
    assert loss.value == pytest.approx(expected)


def test_gradients_of_a_stream_are_those_of_all_its_batches():
    torch.manual_seed(0)
    model = models.mlp(nn.Tanh())
    xs = [torch.randn(5, 6), torch.randn(9, 6)]

    def loss(out):
        return out.square().sum()

    snapshot = look(model, [(x,) for x in xs], loss)

    grads = []
    for x in xs:
        z = model[0](x)
        z.retain_grad()
        model.zero_grad()
        model[2](torch.tanh(z)).square().sum().backward()
        grads.append(z.grad.flatten())
    same_numbers(row(snapshot, "0").grad, torch.cat(grads))


def test_a_backward_that_raises_is_a_finding_and_the_forward_is_still_told():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 6)

        def forward(self, x):
            y = torch.sigmoid(self.body(x))
            z = y * 2
            y.add_(1)
            return z

    report = nndiag.check(Overwrites(), torch.randn(8, 6), config=False)

    assert report.snapshot.backward_error.startswith("RuntimeError: one of the variables needed")
    assert rows(report.snapshot) == ["body", "/sigmoid"]
    assert not report.ok
    assert not report.snapshot.has_gradients


def test_no_trainable_parameter_means_no_backward_and_says_so():
    model = nn.Linear(6, 3).requires_grad_(False)
    snapshot = look(model, torch.randn(8, 6))

    assert not snapshot.has_gradients
    assert snapshot.no_gradients_because == "no parameter of the model requires a gradient"


# -- parameters -------------------------------------------------------------------------------


def test_rows_that_are_copies_and_gradients_of_one_sign_are_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5))
    with torch.no_grad():
        for p in (model[0].weight, model[0].bias):
            p[1] = p[4] = p[0]
        model[2].weight[3] = 0

    snapshot = look(model, torch.rand(16, 4), lambda out: out.sum())

    first, last = snapshot.parameter["0.weight"], snapshot.parameter["2.weight"]
    assert (first.duplicate_units, last.duplicate_units) == (3, 0)
    assert (first.zero_units, last.zero_units) == (0, 1)
    x = torch.rand(16, 4)
    model[2](torch.sigmoid(model[0](x))).sum().backward()
    assert (last.one_sign_rows, last.graded_rows) == (5, 5)


def test_copies_that_a_different_bias_tells_apart_are_no_copies():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    nn.init.constant_(model[0].weight, 0.1)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))

    assert look(model, torch.randn(8, 4)).parameter["0.weight"].duplicate_units == 2


def test_one_virtual_update_moves_every_parameter_by_a_hundredth_along_its_gradient():
    torch.manual_seed(0)
    model, x = models.mlp(nn.Tanh()), torch.randn(64, 6)

    def loss(out):
        return out.square().mean()

    snapshot = look(model, x, loss)

    before = torch.tanh(model[0](x))
    loss(model(x)).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.norm() / p.grad.norm() * p.grad
        now = torch.tanh(model[0](x))
    before = before.detach()
    shift = row(snapshot, "2").shift
    moved = (now.mean(0) - before.mean(0)).square().mean().sqrt()
    spread = before.var(0, correction=0).mean().sqrt()
    assert shift.mean == pytest.approx(float(moved / spread), rel=1e-3)
    ratio = now.var(0, correction=0).mean().sqrt() / spread
    assert shift.scale == pytest.approx(math.log(float(ratio)), rel=1e-2, abs=1e-6)
    assert shift.units == 8


@pytest.mark.parametrize("sizes", [(40, 1), (1, 40), (40, 40, 3), (3, 40, 1, 40)])
def test_signs_of_gradients_are_counted_over_the_largest_batches_alone(sizes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(n, 6), torch.randint(0, 3, (n,))) for n in sizes]

    def counts(stream):
        report = nndiag.check(model, stream, loss_fn=F.cross_entropy, config=False)
        p = report.snapshot.parameter["0.weight"]
        return p.one_sign_rows, p.graded_rows

    assert counts(batches) == counts([b for b in batches if len(b[0]) == max(sizes)])
    # One sample alone would say that every unit of the last layer has one sign or another.
    assert counts([(torch.rand(1, 6), torch.tensor([0]))]) == (8, 8)
