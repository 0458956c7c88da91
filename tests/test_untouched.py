"""The model, its batch and the process are bitwise as they were, whatever happens in a check."""

from __future__ import annotations

import functools
import random
from typing import Any

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bitwise import untouched
from torch import nn

import nndiag
from nndiag import rules
from nndiag.loss import LossMaker

every_model = pytest.mark.parametrize("name", models.AWKWARD)


def check(case: models.Case, **options: Any) -> nndiag.Report:
    options = {"loss_fn": case.loss_fn, "config": False, **options}
    return nndiag.check(case.model, case.batch, **options)


# -- every awkward model ----------------------------------------------------------------------


@every_model
def test_a_check_leaves_no_trace(name):
    case = models.make(name)

    with untouched(case.model, case.batch):
        report = check(case)

    assert report.crashed == ()


@pytest.mark.one_in(11)
@every_model
def test_gradients_that_were_there_are_there_again(name):
    case = models.make(name)
    for p in case.model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 2.0)

    with untouched(case.model, case.batch):
        check(case)


class Broken(Exception):
    pass


def break_(*_: Any) -> None:
    raise Broken


@pytest.mark.one_in(11)
@every_model
def test_no_trace_is_left_when_the_forward_raises(name):
    case = models.make(name)
    scripts = isinstance(case.model, torch.jit.ScriptModule)
    model = nn.Sequential(case.model) if scripts else case.model
    model.register_forward_hook(break_)

    with untouched(model, case.batch), pytest.raises(nndiag.errors.CaptureError) as caught:
        nndiag.check(model, case.batch, loss_fn=case.loss_fn, config=False)

    assert isinstance(caught.value.__cause__, Broken)


@pytest.mark.one_in(11)
@every_model
def test_no_trace_is_left_when_the_loss_raises(name):
    case = models.make(name)

    with untouched(case.model, case.batch), pytest.raises(nndiag.errors.LossError):
        check(case, loss_fn=lambda *_: break_())


@pytest.mark.one_in(11)
@every_model
def test_no_trace_is_left_when_the_backward_raises(name):
    case = models.make(name)

    def loss(output: Any, *target: Any) -> torch.Tensor:
        total = LossMaker(case.loss_fn, 0)(output, nndiag.Batch(target=target[0]))[1]
        total = total * 1
        total.register_hook(break_)
        return total

    batch = case.batch if isinstance(case.batch, tuple) else (case.batch, torch.zeros(models.N))
    with untouched(case.model, batch):
        report = nndiag.check(case.model, batch, loss_fn=loss, config=False)

    assert "Broken" in report.snapshot.backward_error


@pytest.mark.one_in(11)
@every_model
def test_no_trace_is_left_when_a_rule_raises(name, monkeypatch):
    case = models.make(name)
    module = rules.discover()["dead-relu"]
    monkeypatch.setattr(module, "check", break_)

    with untouched(case.model, case.batch):
        report = check(case)

    assert [o.rule for o in report.crashed] == ["dead-relu"]


# -- what hangs on tensors --------------------------------------------------------------------


def linear() -> nn.Module:
    return models.make("called-twice").model


def features() -> torch.Tensor:
    return torch.randn(models.N, models.FEATURES, generator=torch.Generator().manual_seed(1))


def test_a_graph_built_before_the_check_can_be_backpropagated_after_it():
    model, x = models.make("batch-norm").model, features()
    loss = model(x).square().sum()
    alone = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)

    nndiag.check(model, x, config=False)
    loss.backward()

    for p, expected in zip(model.parameters(), alone, strict=True):
        assert torch.equal(p.grad, expected)


def test_a_graph_that_the_model_reaches_into_can_still_be_used():
    case = models.make("foreign-tensor")

    check(case)
    case.model.context.sum().backward()  # raises if the check had freed it

    assert torch.equal(case.model.source.grad, case.model.source.exp())


def test_an_input_that_hangs_on_the_callers_graph_is_cut_from_it():
    model = linear()
    raw = features().requires_grad_()
    x = raw * 2

    nndiag.check(model, x, config=False)

    assert raw.grad is None
    x.sum().backward()
    assert torch.equal(raw.grad, torch.full_like(raw, 2.0))


def test_tensors_elsewhere_that_the_loss_depends_on_keep_their_gradients():
    model, x = linear(), features()
    weight = torch.ones(3, requires_grad=True)
    weight.grad = kept = torch.full((3,), 7.0)

    nndiag.check(model, (x, x), loss_fn=lambda out, _: (out * weight).sum(), config=False)

    assert weight.grad is kept
    assert torch.equal(kept, torch.full((3,), 7.0))


NORM = nn.BatchNorm1d(3)


def test_a_module_that_the_loss_refers_to_is_left_as_it_was():
    here, model = nn.BatchNorm1d(3), linear()

    def closed_over(output: torch.Tensor) -> torch.Tensor:
        return here(output).square().sum()

    def at_the_top(output: torch.Tensor) -> torch.Tensor:
        return NORM(output).square().sum()

    for loss in (closed_over, at_the_top, functools.partial(closed_over)):
        with untouched(here, NORM):
            nndiag.check(model, features(), loss_fn=loss, config=False)


def test_a_loss_that_is_a_module_is_left_as_it_was():
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.seen = nn.BatchNorm1d(3), []

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.seen.append(1)
            return self.norm(output).square().mean() * target.mul_(0.5).mean()

    loss, model, x, y = Learned(), linear(), features(), torch.ones(models.N)

    with untouched(loss, model, y):
        nndiag.check(model, (x, y), loss_fn=loss, config=False)
    with untouched(loss, model, y):
        nndiag.check(model, (x, y), loss_fn=lambda out, y: loss(out, y), config=False)
    with untouched(loss, model, y):
        nndiag.check(model, (x, y), loss_fn=loss.forward, config=False)


def test_an_optimiser_that_steps_inside_backward_does_not_step():
    model = linear()
    steps = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: steps.append(p.data.sub_(1)))

    with untouched(model):
        nndiag.check(model, features(), config=False)
    assert steps == []

    model(features()).sum().backward()
    assert len(steps) == len(list(model.parameters()))


def test_a_weight_whose_storage_the_forward_swaps_has_its_own_again():
    class Swaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(models.FEATURES, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.body.weight.data = self.body.weight.data * 2
            self.body.bias.requires_grad_(False)
            return self.body(x)

    model = Swaps()
    with untouched(model):
        nndiag.check(model, features(), config=False)


def test_an_expanded_buffer_that_the_forward_changes_gets_its_values_back():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one = nn.Linear(models.FEATURES, 3), torch.zeros(1)
            self.register_buffer("all", self.one.expand(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.one.add_(1)
            return self.body(x)

    model = Counts()
    with untouched(model):
        nndiag.check(model, features(), config=False)


def test_a_sign_of_zero_and_a_nan_are_kept():
    class Flips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(models.FEATURES, 3)
            self.register_buffer("odd", torch.tensor([0.0, float("nan")]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.odd.neg_()
            return self.body(x)

    model = Flips()
    with untouched(model):
        nndiag.check(model, features(), config=False)


def test_read_only_memory_is_not_written_to(tmp_path):
    path = tmp_path / "weights"
    np.ones(4, dtype=np.float32).tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="c")  # "r" would crash the process on a write

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(models.FEATURES, 3)
            self.table = torch.from_numpy(mapped)
            self.writes: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) * self.table[0]

    writes = []
    original = torch.Tensor.copy_
    model = Mapped()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.Tensor, "copy_", lambda *a: writes.append(a[0].data_ptr()) or original(*a)
        )
        nndiag.check(model, features(), config=False, select="ND401")

    assert writes
    assert model.table.data_ptr() not in writes


def test_the_batch_is_as_it_was():
    @models.dataclass
    class Sample:
        values: torch.Tensor
        parts: list[torch.Tensor]

    class Spoils(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(models.FEATURES, 3)

        def forward(self, sample: Any, options: dict[str, Any]) -> torch.Tensor:
            sample.values.mul_(0)
            sample.parts.pop().add_(1)
            options["list"].append(options.pop("gone"))
            return self.body(sample.values + options["x"].add_(1))

    model, sample = Spoils(), Sample(features(), [features()])
    options = {"list": [1], "gone": 2, "x": features()}
    with untouched(model, vars(sample), options):
        nndiag.check(model, nndiag.Batch((sample, options)), config=False)


# -- what hangs on the process ----------------------------------------------------------------


class Disturbs(nn.Module):
    """Changes global settings and draws from every generator as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(models.FEATURES, 3)
        self.numpy, self.python = np.random.default_rng(3), random.Random(4)
        self.counts = np.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(1), random.random(), np.random.rand()
        self.counts += self.numpy.random() + self.python.random()
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_anomaly_enabled(False, False)
        torch.set_autocast_dtype("cpu", torch.float16)
        torch.set_autocast_cache_enabled(False)
        torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
        return self.body(x)


def test_global_settings_that_the_forward_changes_are_as_before():
    model = Disturbs()

    with untouched(model.body, model.counts, model.numpy):
        python = model.python.getstate()
        nndiag.check(model, features(), config=False)
    assert model.python.getstate() == python


def test_a_forward_that_leaves_gradients_switched_off_switches_them_off_for_nobody_else():
    class SwitchesOff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(models.FEATURES, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(x)
            torch.set_grad_enabled(False)
            return x

    model = SwitchesOff()
    with untouched(model), pytest.raises(nndiag.errors.LossError, match="not connected"):
        nndiag.check(model, features(), config=False)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_seen_although_the_caller_has_switched_them_off(mode):
    model, x = linear(), features()
    with mode(), untouched(model, x):
        report = nndiag.check(model, x, config=False)

    assert report.snapshot.has_gradients


def test_a_batch_made_in_inference_mode_can_be_differentiated():
    with torch.inference_mode():
        x = features()
    report = nndiag.check(linear(), x, config=False)

    assert report.snapshot.has_gradients


def test_weights_that_autocast_had_cached_are_not_mistaken_for_updated_ones():
    torch.manual_seed(0)
    model, x = models.mlp(nn.Tanh()), features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(x)
        with untouched(model):
            report = nndiag.check(model, x, config=False)
        assert torch.equal(model(x), before)

    shifts = [layer.shift for layer in report.snapshot.layers if layer.shift is not None]
    assert any(shift.mean > 0 for shift in shifts)


def test_seeds_are_not_queued_for_devices_that_nobody_has_started():
    model, queued = linear(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "manual_seed_all", queued.append)
        nndiag.check(model, features(), config=False)

    assert queued == []


def test_what_is_random_starts_from_the_seed_in_every_batch():
    model = models.make("random").model
    x = features()
    one, two = (
        nndiag.check(model, batches, config=False).snapshot for batches in (x, [(x,), (x,)])
    )

    for a, b in zip(one.layers, two.layers, strict=True):
        assert b.output.mean == pytest.approx(a.output.mean)
        assert b.output.count == 2 * a.output.count


def test_a_stream_that_draws_random_batches_does_not_draw_the_same_one_again():
    seen = []

    def stream():
        for _ in range(3):
            seen.append(torch.randn(models.N, models.FEATURES))
            yield (seen[-1],)

    with untouched():
        report = nndiag.check(linear(), stream(), config=False)

    assert len({float(x.sum()) for x in seen}) == 3
    assert report.snapshot.inputs["input"].mean == pytest.approx(float(torch.cat(seen).mean()))


def test_a_stream_is_not_asked_for_more_batches_than_are_looked_at():
    drawn = []

    def stream():
        while True:
            drawn.append(features())
            yield (drawn[-1],)

    report = nndiag.check(linear(), stream(), config={"max-batches": 3})

    assert len(drawn) == 3
    assert report.snapshot.batches == 3
    assert any("only the first 3 batches" in line for line in report.snapshot.not_observed)


def test_each_batch_meets_the_model_as_it_was():
    case = models.make("remembers")
    report = nndiag.check(case.model, [(case.batch,), (case.batch,)], config=False)
    once = nndiag.check(case.model, case.batch, config=False)

    first, again = once.snapshot.layers[0].output, report.snapshot.layers[0].output
    assert again.mean == pytest.approx(first.mean)


def test_a_gradient_that_somebody_else_writes_to_gets_its_values_back():
    model = linear()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    shared = model.head.weight.grad  # as a reducer's bucket is

    def write(*_: Any) -> None:
        shared.add_(1)

    model.act.register_forward_hook(write)

    with untouched(shared):
        nndiag.check(model, features(), config=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_the_mode_of_a_script_is_as_it_was():
    class Switches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.jit.script(nn.Linear(models.FEATURES, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.body.training = False
            return self.body(x)

    model = Switches()
    nndiag.check(model, features(), config=False)

    assert model.body.training


def test_a_tensor_that_the_model_hands_out_carries_no_hook_of_ours():
    kept = []

    class HandsOut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(models.FEATURES, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept.append(self.body(x))
            return torch.relu(kept[-1])

    nndiag.check(HandsOut(), features(), config=False)

    assert kept
    assert not any(x._backward_hooks for x in kept)


def test_user_hooks_fire_as_often_as_the_model_runs():
    model, fired = linear(), []
    model.head.register_forward_hook(lambda *_: fired.append("forward"))
    model.head.weight.register_hook(lambda _: fired.append("gradient"))

    nndiag.check(model, features(), config=False, select=["ND401", "ND201"])

    assert fired.count("gradient") == 1
    assert fired.count("forward") >= 1


def test_this_suite_would_notice_a_changed_bit():
    model = linear()
    with pytest.raises(AssertionError), untouched(model):
        model.head.weight.data[0, 0] += 1e-7
    with pytest.raises(AssertionError), untouched(model):
        model.act.eval()
    with pytest.raises(AssertionError), untouched(model):
        model.head.weight.grad = torch.zeros_like(model.head.weight)
    with pytest.raises(AssertionError), untouched(model):
        torch.rand(1)
    with pytest.raises(AssertionError), untouched(model):
        model.act.register_forward_hook(lambda *_: None)


def test_functional_losses_are_not_taken_apart():
    nndiag.check(linear(), (features(), torch.zeros(models.N).long()), loss_fn=F.cross_entropy,
                 config=False)  # fmt: skip
