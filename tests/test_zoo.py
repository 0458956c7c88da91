"""No false alarm: healthy networks pass, and are left as they were."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import zoo
import zoo_papers  # noqa: F401  (adds its recipes to the zoo)
from calibration import findings
from torch import nn

import nndiag
from nndiag.batch import tensors_in
from nndiag.report import Report

WRITTEN = findings.read()
pytestmark = pytest.mark.one_in(13)


@dataclass(frozen=True)
class Visit:
    """One specimen after its check, and what was written down before."""

    name: str
    specimen: zoo.Specimen
    before: dict[str, Any]
    randomness: tuple[Any, ...]
    randomness_after: tuple[Any, ...]
    report: Report


def _visit(name: str) -> Visit:
    specimen = zoo.make(name)
    before, randomness = _state(specimen), _randomness()

    report = nndiag.check(*specimen, config=False)

    return Visit(name, specimen, before, randomness, _randomness(), report)


@pytest.fixture(scope="module", params=zoo.RECIPES)
def visit(request: pytest.FixtureRequest) -> Visit:
    return _visit(request.param)


@pytest.fixture(scope="module", params=zoo.LEFTOVERS)
def leftover(request: pytest.FixtureRequest) -> Visit:
    return _visit(request.param)


def _state(specimen: zoo.Specimen) -> dict[str, Any]:
    """Everything about a specimen that a check could change, by name, as copies."""
    model, state = specimen.model, {}
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        state[name] = (id(t), t.requires_grad, t.grad is None, t.detach().clone())
    for name, m in model.named_modules():
        hooks = len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        state[f"module {name}"] = (type(m), m.training, sorted(vars(m)), hooks)
    for index, t in enumerate(tensors_in((specimen.batch, specimen.target))):
        state[f"batch {index}"] = t.clone()
    return state


def _randomness() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (name, keys.tolist(), *rest)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def test_a_healthy_network_gets_no_error_and_no_warning(visit):
    alarms = [
        f"{f.severity} {f.rule} {f.layer}: {f.message}" for f in visit.report.at_least("warning")
    ]

    assert alarms == []
    assert visit.report.ok


def test_no_rule_crashes(visit):
    assert visit.report.crashed == ()


def test_what_is_said_is_what_is_written_down(visit):
    now = {visit.name: findings.rows(visit.report)}

    assert findings.differences({visit.name: WRITTEN[visit.name]}, now) == []


def test_a_healthy_network_gets_few_notes(visit):
    """Notes nobody needs to act on must not bury those that tell something."""
    notes = [f"{f.rule} {f.layer}: {f.message}" for f in visit.report.findings if f.cause is None]

    assert len(notes) <= 7


def test_the_network_its_batch_and_all_randomness_are_as_before(visit):
    after = _state(visit.specimen)

    assert after.keys() == visit.before.keys()
    assert [name for name in after if not _same(after[name], visit.before[name])] == []
    assert visit.randomness_after == visit.randomness


def test_every_leaf_module_that_ran_has_a_row(visit):
    model, batch, *_ = zoo.make(visit.name)
    rows = {
        layer.name.partition("@")[0].partition("/")[0] for layer in visit.report.snapshot.layers
    }

    for name in _floating_leaves(model, batch):
        # What torch.nn's own layers are made of inside belongs to their row.
        assert any(_within(name, row) for row in rows), name


def test_rows_are_unique(visit):
    names = [layer.name for layer in visit.report.snapshot.layers]

    assert len(set(names)) == len(names)


def test_parameters_left_over_are_the_only_ones_without_a_gradient(leftover):
    """Each is reported, by a note where a library leaves it over, or has one after a step."""
    without = _without_gradient(zoo.make(leftover.name))
    found = [f for f in leftover.report.findings if f.rule == "no-gradient"]

    assert {f.rule for f in leftover.report.at_least("warning")} <= {"no-gradient"}
    assert all(any(_within(p, f.layer) for p in without) for f in found)
    later = [p for p in without if leftover.report.snapshot.parameter[p].again]
    assert all(p in later or any(_within(p, f.layer) for f in found) for p in without)
    assert not leftover.report.crashed


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _run(model: nn.Module, batch: Any) -> Any:
    """The same forward as the check's: from seed 0."""
    inputs = batch if isinstance(batch, tuple) else (batch,)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(**batch) if isinstance(batch, dict) else model(*inputs)


def _floating_leaves(model: nn.Module, batch: Any) -> list[str]:
    ran: dict[str, None] = {}
    for name, module in model.named_modules():
        if not any(True for _ in module.children()) and name:

            def hook(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                if any(t.is_floating_point() for t in tensors_in(output)):
                    ran[name] = None

            module.register_forward_hook(hook)
    _run(model, batch)
    return list(ran)


def _without_gradient(specimen: zoo.Specimen) -> list[str]:
    model = copy.deepcopy(specimen.model)
    output = _run(model, specimen.batch)
    loss = getattr(output, "loss", None)
    if loss is None:
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (t * torch.randn(t.shape, generator=generator)).sum()
            for t in tensors_in(output)
            if t.requires_grad
        )
    loss.backward()
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
