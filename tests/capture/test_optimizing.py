"""The optimiser: what it holds, its own step on a batch, and nothing of it left behind."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

import nndiag
from nndiag.errors import OptimizerError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
                         nn.Linear(16, 3))  # fmt: skip


def data():
    g = torch.Generator().manual_seed(1)
    return torch.randn(64, 8, generator=g), torch.randint(0, 3, (64,), generator=g)


def check(model, optimizer, loss_fn=F.cross_entropy, select="ND8"):
    return nndiag.check(model, *data(), loss_fn, optimizer=optimizer, select=select, config=False)


def seen(model, optimizer, loss_fn=F.cross_entropy):
    return check(model, optimizer, loss_fn).snapshot.experiment.optimizer


def trained(model, optimizer, steps=3):
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return optimizer


def bits(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.detach().clone().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(v) for v in value]
    return value


def whole(model, optimizer):
    """Everything that a step could change."""
    return (
        bits(model.state_dict()),
        bits(optimizer.state_dict()),
        [(id(p), p._version, id(p.grad), bits(p.grad)) for p in model.parameters()],
        [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        sorted(vars(optimizer)),
        torch.get_rng_state().numpy().tobytes(),
    )


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "foreach": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "capturable": lambda p: torch.optim.Adam(p, 1e-2, capturable=True),
    "differentiable": lambda p: torch.optim.SGD(p, 1e-2, differentiable=True),
    "maximize": lambda p: torch.optim.SGD(p, 1e-2, maximize=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, 1e-2),
    "runs-away": lambda p: torch.optim.Adam(p, 1e3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_model_and_optimiser_are_bitwise_as_before(name):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    if name not in ("capturable", "differentiable"):  # these step on other devices or graphs only
        trained(model, optimizer)
    before = whole(model, optimizer)

    found = seen(model, optimizer)

    assert whole(model, optimizer) == before
    assert found.no_step_because == found.no_loss_because == ""
    assert found.updates
    assert math.isfinite(found.after) or name == "runs-away"


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adagrad", "rmsprop"])
def test_the_step_is_the_one_the_optimiser_makes_with_its_state(name):
    model = net()
    model[3] = nn.Identity()
    optimizer = trained(model, OPTIMIZERS[name](model.parameters()))

    found = seen(model, optimizer)

    x, y = data()
    old = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    moves = [p.detach() - q for p, q in zip(model.parameters(), old, strict=True)]
    assert found.has_state == (name != "sgd")
    assert found.before == pytest.approx(float(loss.detach()), rel=1e-6)
    assert found.after == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-5)
    slope = sum(float((g * m).sum()) for g, m in zip(gradients, moves, strict=True))
    assert found.slope == pytest.approx(slope, rel=1e-4)
    for update, move, g in zip(found.updates, moves, gradients, strict=True):
        assert update.move == pytest.approx(float(move.norm()), rel=1e-4)
        assert update.graded == int((g != 0).sum())
        assert update.moved == int(((move != 0) & (g != 0)).sum())


def test_nothing_is_left_when_the_step_or_the_model_raises():
    class Refuses(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["params"][0].data.fill_(7)
            raise ArithmeticError("no")

    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            if float(self.inner[0].weight.detach().abs().max()) > 100:
                raise RuntimeError("too large")
            return self.inner(x)

    for model, kind, rate in ((net(), Refuses, 0.1), (Fragile(), torch.optim.Adam, 1e3)):
        optimizer = kind(model.parameters(), rate)
        before = whole(model, optimizer)
        found = seen(model, optimizer)
        assert whole(model, optimizer) == before
        assert "ArithmeticError: no" in found.no_step_because or (
            "RuntimeError after the step: too large" in found.no_loss_because
        )


def test_no_hook_runs_and_no_scheduler_counts():
    model, ran = net(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 5)
    optimizer.register_step_pre_hook(lambda *_: ran.append("pre"))
    optimizer.register_step_post_hook(lambda *_: ran.append("post"))
    everywhere = register_optimizer_step_post_hook(lambda *_: ran.append("global"))
    counts = scheduler._step_count, getattr(optimizer, "_opt_called", None), optimizer.step
    try:
        found = seen(model, optimizer)
        assert ran == []
        assert found.updates
        assert (scheduler._step_count, getattr(optimizer, "_opt_called", None)) == counts[:2]
        assert optimizer.step is counts[2]
        trained(model, optimizer, 1)
        assert sorted(ran) == ["global", "post", "pre"]  # they are there again
    finally:
        everywhere.remove()


def test_parameters_of_others_are_not_moved():
    model, other = net(), nn.Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    optimizer = torch.optim.SGD([*model.parameters(), other], 0.1)

    found = seen(model, optimizer)

    assert other.tolist() == [1, 1, 1]
    assert other.grad.tolist() == [1, 1, 1]
    assert found.groups[0].foreign == ((3,),)


@pytest.mark.parametrize(
    "given",
    [
        torch.optim.Adam,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
        lambda parameters: [torch.optim.Adam(parameters)],
    ],
    ids=["class", "function", "function of a list"],
)
def test_what_makes_an_optimiser_is_called_with_the_parameters(given):
    found = seen(net(), given)
    assert found.groups[0].held == (
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "4.weight",
        "4.bias",
    )
    assert found.groups[0].lr == 1e-3


def test_several_optimisers_step_together():
    model = net()
    found = seen(model, [torch.optim.SGD(model[:2].parameters(), 0.1),
                         torch.optim.Adam(model[2:].parameters(), 0.01)])  # fmt: skip
    assert found.name == "SGD and Adam"
    assert len(found.updates) == 6
    assert [group.index for group in found.groups] == [0, 1]


@pytest.mark.parametrize("wrap", ["compile", "moved", "parallel", "copy"])
def test_what_is_held_survives_wrapping_and_moving(wrap):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if wrap == "compile":
        model = torch.compile(model, backend="eager")
    elif wrap == "moved":
        model = model.to(torch.float64).to(torch.float32)
    elif wrap == "parallel":
        model = nn.DataParallel(model)
    else:
        model = copy.deepcopy(model)
    assert len(seen(model, optimizer).groups[0].held) == (0 if wrap == "copy" else 6)


def test_a_tensor_over_the_same_memory_is_told_from_the_parameter():
    model = net()
    found = seen(model, torch.optim.SGD([nn.Parameter(p.data) for p in model.parameters()], 0.1))
    assert found.groups[0].held == ()
    assert len(found.copies) == 6


def test_an_optimiser_that_runs_the_model_itself_is_skipped_with_the_reason():
    report = check(net(), torch.optim.LBFGS)
    assert "LBFGS runs the model itself" in report.snapshot.experiment.optimizer.no_step_because
    assert report.ok
    assert [u.reason for u in report.unjudged if u.rule == "lr-too-low"] == [
        report.snapshot.experiment.optimizer.no_step_because
    ]


def test_without_a_loss_only_what_it_holds_is_seen():
    report = nndiag.check(net(), data()[0], optimizer=torch.optim.Adam, config=False)
    found = report.snapshot.experiment.optimizer
    assert len(found.groups[0].held) == 6
    assert found.no_step_because == "pass target= and loss_fn="
    assert {o.rule: o.status for o in report.outcomes}["lr-too-low"] == "skipped"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda m: lr_scheduler.StepLR(torch.optim.SGD(m.parameters(), 0.1), 3), "scheduler.optim"),
        (lambda m: torch.amp.GradScaler("cpu", enabled=False), "the optimiser that it steps"),
        (lambda m: m, "torch.optim.Adam(model.parameters())"),
        (lambda m: "adam", "the optimiser itself"),
        (lambda m: 0.1, "a torch optimiser, a list of them"),
        (lambda m: [], "a torch optimiser, a list of them"),
        (lambda m: [torch.optim.SGD(m.parameters(), 0.1), 3], "a torch optimiser, a list of them"),
        (lambda m: lambda parameters: 1 / 0, "raised ZeroDivisionError"),
        (lambda m: lambda parameters: None, "but got None"),
        (lambda m: emptied(m), "holds no parameter"),
    ],
    ids=[
        "scheduler",
        "scaler",
        "model",
        "name",
        "rate",
        "none",
        "mixed",
        "raises",
        "nothing",
        "empty",
    ],
)
def test_what_is_no_optimiser_is_one_clear_error(given, message):
    model = net()
    before = bits(model.state_dict())
    with pytest.raises(OptimizerError) as caught:
        check(model, given(model))
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert bits(model.state_dict()) == before


def emptied(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups.clear()
    return optimizer


@pytest.mark.parametrize(("rate", "most"), [(1e-6, 5), (1e-2, 5), (1e3, 6)])
def test_it_costs_two_more_steps_at_most(rate, most):
    """A step is about three forwards: one forward, and a backward of twice its cost."""
    model, runs, backwards = net(), [], []
    model[0].register_forward_hook(lambda *_: runs.append(1))
    model[0].weight.register_hook(lambda *_: backwards.append(1))
    nndiag.check(model, *data(), F.cross_entropy, config=False)
    without = len(runs) + 2 * len(backwards)
    runs.clear(), backwards.clear()
    nndiag.check(model, *data(), F.cross_entropy, config=False,
                 optimizer=lambda p: torch.optim.Adam(p, rate))  # fmt: skip
    assert len(runs) + 2 * len(backwards) - without <= 6


def test_nothing_is_done_for_it_where_no_rule_asks():
    report = nndiag.check(net(), *data(), F.cross_entropy, optimizer=3, select="ND1", config=False)
    assert report.snapshot.experiment.optimizer is None


def test_rates_settings_and_schedules_are_read():
    model = net()
    optimizer = torch.optim.AdamW([
        {"params": model[0].parameters(), "lr": 1e-4, "weight_decay": 0.0},
        {"params": [*model[1].parameters(), *model[4].parameters()]},
    ], lr=1e-3, weight_decay=0.1)  # fmt: skip
    lr_scheduler.LinearLR(optimizer, 0.01)
    first, second = seen(model, optimizer).groups
    assert (first.lr, first.peak_lr, first.weight_decay) == (pytest.approx(1e-6), 1e-4, 0)
    assert (second.lr, second.peak_lr, second.weight_decay) == (pytest.approx(1e-5), 1e-3, 0.1)
    assert first.scheduled
    assert first.decoupled

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=10)
    [group] = seen(model, optimizer).groups
    assert group.lr < 0.1
    assert group.peak_lr == 0.5


class TestPenalties:
    """What of a gradient does not come through the model's output."""

    def rest(self, loss_fn, model=None, **options):
        model = model or net()
        found = seen(model, torch.optim.SGD(model.parameters(), 0.1, **options), loss_fn(model))
        return {u.name: u.rest for u in found.updates if u.rest}

    def test_a_penalty_on_the_weights(self):
        model = net()
        weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
        rest = self.rest(
            lambda m: lambda o, t: F.cross_entropy(o, t) + 0.1 * sum((p**2).sum() for p in weights),
            model,
        )
        assert rest == {
            name: pytest.approx(0.2 * float(p.detach().norm()), rel=1e-5)
            for name, p in model.named_parameters() if name.endswith("weight")
        }  # fmt: skip

    def test_weight_decay(self):
        model = net()
        rest = self.rest(lambda m: F.cross_entropy, model, weight_decay=0.3)
        norms = {n: float(p.detach().norm()) for n, p in model.named_parameters()}
        assert rest == {n: pytest.approx(0.3 * norm, rel=1e-5) for n, norm in norms.items() if norm}

    def test_decoupled_weight_decay_is_a_part_of_the_update(self):
        model = net()
        found = seen(model, torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5))
        for update in found.updates:
            assert update.rest == 0
            assert update.pull == pytest.approx(0.01 * 0.5 * update.value, rel=1e-5)

    @pytest.mark.parametrize("kind", ["prototypes", "layer", "plain"])
    def test_what_learns_from_the_data_in_the_loss_is_none(self, kind):
        def make(model):
            if kind == "prototypes":  # rows of the head as class centres
                return lambda o, t: F.cross_entropy(o @ model[4].weight[:, :3], t)
            if kind == "layer":
                return lambda o, t: F.cross_entropy(o, t) + model[0](torch.ones(2, 8)).sum()
            return F.cross_entropy

        assert self.rest(make) == {}
