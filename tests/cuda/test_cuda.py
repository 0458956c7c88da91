"""On a CUDA device nndiag sees, judges and repairs what it does on the CPU, and waits no oftener.

``pytest tests/cuda`` on a machine that has one.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from benchmarks import tools
from benchmarks.workloads import RECIPES, make, tanh_chain
from bitwise import untouched
from torch import nn
from torch.utils._pytree import tree_map

import nndiag
from nndiag import rules
from nndiag.render import page

CUDA = torch.device("cuda")
RULES = rules.discover()
every_rule = pytest.mark.parametrize("name", RULES)
every_workload = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(autouse=True)
def as_exact_as_the_cpu():
    torch.zeros(1, device=CUDA)  # the device's generator is part of the process from here on
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def there(thing: Any) -> Any:
    """A model or a batch on the device; the one here stays."""
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).to(CUDA)
    return tree_map(lambda t: t.to(CUDA) if isinstance(t, torch.Tensor) else t, thing)


def example(name: str, which: int) -> dict[str, Any]:
    """What the sick (0) or well (1) example of a rule's page makes."""
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    torch.manual_seed(0)
    for code in page.examples(RULES[name])[: which + 1]:  # the well one builds on the sick one
        exec(code, names)
    return names


def said(report: nndiag.Report) -> list[tuple[str, str, str]]:
    return sorted((f.rule, f.layer, f.severity) for f in report.at_least("warning"))


# -- no layer waits ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_no_layer_waits_for_the_device():
    work = tanh_chain(width=64, depth=6, batch=64).to("cuda")
    work.step()  # what CUDA's libraries set up at their first use
    try:
        torch.cuda.set_sync_debug_mode("error")
        recorder = tools.record(work)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    layers = recorder.layers()

    assert not recorder.not_observed
    assert [layer.unseen for layer in layers] == [()] * 13


# -- what is seen -----------------------------------------------------------------------------


@every_workload
def test_the_numbers_are_the_cpus(name):
    work = make(name)
    work = replace(work, model=work.model.double().eval())
    if work.x.is_floating_point():
        work = replace(work, x=work.x.double())

    expected = tools.record(work).layers()
    found = tools.record(work.to("cuda")).layers()

    assert [layer.name for layer in found] == [layer.name for layer in expected]
    for layer, like in zip(found, expected, strict=True):
        for side in ("input", "output", "grad"):
            stats, other = getattr(layer, side), getattr(like, side)
            assert (stats is None) == (other is None), (layer.name, side)
            if stats is None:
                continue
            scale = other.rms or 1.0
            assert stats.mean == pytest.approx(other.mean, rel=1e-6, abs=1e-6 * scale)
            assert stats.std == pytest.approx(other.std, rel=1e-6, abs=1e-6 * scale)
            assert stats.rms == pytest.approx(other.rms, rel=1e-6)
            assert (stats.samples, stats.count) == (other.samples, other.count)


@every_rule
@pytest.mark.parametrize("which", [0, 1], ids=["sick", "well"])
def test_the_verdict_is_the_cpus(name, which):
    names = example(name, which)
    arguments = {"loss_fn": names.get("loss_fn"), "config": False}
    expected = nndiag.check(names["model"], names["batch"], **arguments)

    report = nndiag.check(there(names["model"]), there(names["batch"]), **arguments)

    assert said(report) == said(expected)
    assert report.crashed == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_healthy_network_under_autocast_raises_no_alarm(dtype):
    work = make("resnet").to("cuda")
    with torch.autocast("cuda", dtype):
        report = nndiag.check(work.model, work.batch, loss_fn=work.loss_fn, config=False)

    assert said(report) == []
    assert report.snapshot.has_gradients


@pytest.mark.filterwarnings("ignore")  # torch's own compiler warns of this and that
def test_a_compiled_model_is_seen_through():
    work = make("resnet").to("cuda")
    expected = nndiag.check(work.model, work.batch, loss_fn=work.loss_fn, config=False)
    compiled = torch.compile(work.model)
    compiled(work.x)

    report = nndiag.check(compiled, work.batch, loss_fn=work.loss_fn, config=False)

    assert said(report) == said(expected)
    assert len(report.layers) == len(expected.layers)


class TwoHomes(nn.Module):
    """Its first half on the CPU, its second on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 64)
        self.second = nn.Linear(64, 3).to(CUDA)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)).to(CUDA))


def test_a_model_on_two_devices_is_seen_and_repaired():
    model, x = TwoHomes(), torch.randn(64, 6)
    with torch.no_grad():
        model.first.bias.fill_(-20.0)

    with untouched(model, x):
        repair = nndiag.repair(model, x, config=False)

    assert said(repair.before)
    assert said(repair.after) == []
    assert [p.device.type for p in repair.model.parameters()] == ["cpu"] * 2 + ["cuda"] * 2


def test_a_batch_left_on_the_cpu_is_told_apart():
    model, x = nn.Sequential(nn.Linear(6, 3)).to(CUDA), torch.randn(8, 6)

    with untouched(model, x), pytest.raises(nndiag.errors.NNDiagError, match="cuda"):
        nndiag.check(model, x, config=False)


# -- nothing is touched -----------------------------------------------------------------------


def awkward(name: str) -> models.Case:
    with torch.device(CUDA):
        case = models.make(name)
    return case._replace(model=case.model.to(CUDA), batch=there(case.batch))


@pytest.mark.parametrize("name", models.AWKWARD)
def test_a_check_leaves_no_trace(name):
    twin = awkward(name)
    inputs = next(iter(nndiag.batch.batches(twin.batch, twin.model)))
    try:
        with torch.random.fork_rng():
            twin.model(*inputs.args, **inputs.kwargs)
    except (RuntimeError, TypeError) as error:
        # Two of them keep a tensor on the CPU, or call NumPy, by design: torch's own words for it.
        pytest.skip(f"without nndiag, its forward does not run on the device: {error}")
    case = awkward(name)

    with untouched(case.model, case.batch):
        report = nndiag.check(case.model, case.batch, loss_fn=case.loss_fn, config=False)

    assert report.crashed == ()


@pytest.mark.parametrize("name", ["random", "batch-norm", "mixed-modes", "attention", "gru"])
def test_the_devices_generator_stands_where_it_stood(name):
    with torch.device(CUDA):
        case = models.make(name)
    case = case._replace(model=case.model.to(CUDA))
    state = torch.cuda.get_rng_state()

    nndiag.check(case.model, case.batch, loss_fn=case.loss_fn, config=False)

    assert torch.equal(torch.cuda.get_rng_state(), state)


# -- repairs ----------------------------------------------------------------------------------


@every_rule
def test_what_is_repaired_on_the_cpu_is_repaired_on_the_device(name):
    names = example(name, 0)
    arguments = {"allow": "all", "config": False, "loss_fn": names.get("loss_fn")}
    expected = nndiag.repair(names["model"], names["batch"], **arguments)
    model, batch = there(names["model"]), there(names["batch"])

    with untouched(model, batch):
        repair = nndiag.repair(model, batch, **arguments)

    assert said(repair.after) == said(expected.after)
    assert [s.fix.kind for s in repair.taken] == [s.fix.kind for s in expected.taken]
    tensors = [*repair.model.parameters(), *repair.model.buffers()]
    assert {t.device.type for t in tensors} <= {"cuda"}


def test_the_patch_makes_of_a_fresh_copy_the_repaired_model():
    names = example("init-scale", 0)
    model, batch = there(names["model"]), there(names["batch"])
    repair = nndiag.repair(model, batch, loss_fn=names.get("loss_fn"), config=False)
    assert repair.taken

    repair.apply(model, batch)

    for mine, theirs in zip(model.parameters(), repair.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_trial_trains_on_the_device():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)).to(CUDA)
    with torch.no_grad():
        model[0].bias.fill_(-20.0)
    x = torch.randn(512, 6, device=CUDA)
    y = (x[:, 0] > 0).long()
    data = list(zip(x.split(64), y.split(64), strict=True))

    repair = nndiag.repair(
        model, x[:128], y[:128], F.cross_entropy,
        config=False, trial_steps=100, trial_data=data,
        optimizer=lambda p: torch.optim.Adam(p, 1e-2),
    )  # fmt: skip

    assert repair.trial.verdict == "better"
