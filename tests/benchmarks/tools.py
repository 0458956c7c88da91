"""What is timed: a training step with nothing on it, and with each tool looking on.

A tool attaches itself to a workload for as long as its context is open and yields the step to be
timed: forward, loss, backward, and whatever the tool needs to have its numbers for that step.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

import nndiag
from benchmarks.workloads import Workload
from nndiag.api import gc_paused
from nndiag.capture.recorder import Recorder
from nndiag.layout import Axes
from nndiag.measure import Meter

Step = Callable[[], object]


@dataclass(frozen=True)
class Tool:
    attach: Callable[[Workload], AbstractContextManager[Step]]
    looks_at: str
    package: str = "nndiag"  # not installed: the tool's cell stays empty


TOOLS: dict[str, Tool] = {}


def tool(
    name: str, looks_at: str, package: str = "nndiag"
) -> Callable[[Callable[[Workload], Iterator[Step]]], Callable[[Workload], Iterator[Step]]]:
    def add(
        function: Callable[[Workload], Iterator[Step]],
    ) -> Callable[[Workload], Iterator[Step]]:
        TOOLS[name] = Tool(contextlib.contextmanager(function), looks_at, package)
        return function

    return add


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@tool("bare", "nothing")
def bare(work: Workload) -> Iterator[Step]:
    yield work.step


# -- the floor ---------------------------------------------------------------------------------


@contextlib.contextmanager
def hooked(work: Workload, look: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """A hook on every leaf module's output, and one on that output's gradient."""

    def forward(module: Any, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            look(output)
            if output.requires_grad:
                output.register_hook(backward)

    def backward(grad: torch.Tensor) -> None:
        look(grad)

    handles = [leaf.register_forward_hook(forward) for leaf in work.leaves()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


TENSORS = "every leaf module's output and its gradient"


@tool("no-op hooks", TENSORS)
def no_op(work: Workload) -> Iterator[Step]:
    with hooked(work, lambda tensor: None):
        yield work.step


@tool("one sum per tensor", TENSORS)
def floor(work: Workload) -> Iterator[Step]:
    with hooked(work, lambda tensor: tensor.detach().sum()):
        yield work.step


# -- nndiag ------------------------------------------------------------------------------------


@tool("nndiag measure in plain hooks", TENSORS)
def measured(work: Workload) -> Iterator[Step]:
    meter = Meter()

    def look(tensor: torch.Tensor) -> None:
        unit = work.unit if tensor.dim() > work.unit else tensor.dim() - 1
        meter.stats(tensor, Axes(unit, 0, len(tensor)))

    def step() -> list[Any]:
        nonlocal meter
        meter = Meter()
        work.step()
        return meter.collect()

    with hooked(work, look):
        yield step


@tool("nndiag statistics", "every layer's and call's input, output, gradient, in nndiag's capture")
def statistics(work: Workload) -> Iterator[Step]:
    def step() -> list[Any]:
        with gc_paused():  # as a check does
            recorder = record(work)
            layers = recorder.layers()
            recorder.close()
        work.model.zero_grad(set_to_none=True)
        return layers

    yield step


def record(work: Workload) -> Recorder:
    """What a check does in its first forward and its backward; numbers are not collected yet."""
    names = {module: name for name, module in work.model.named_modules()}
    recorder = Recorder(names, dict(work.model.named_parameters()), gradients=True)
    recorder.add_input("input", work.x, len(work.x))
    with recorder.watching():
        output = work.model(work.x)
    loss = work.loss_fn(output, work.target)
    del output  # as in a plain step, it need not outlive the loss
    with recorder.backward():
        loss.backward()
    return recorder


@tool("nndiag check", "all that, the parameters, a virtual update, and every rule's verdict")
def check(work: Workload) -> Iterator[Step]:
    yield lambda: nndiag.check(work.model, work.batch, loss_fn=work.loss_fn, config=False)


# -- peers -------------------------------------------------------------------------------------


@tool("fastai ActivationStats", "every leaf module's output, without gradients", "fastai")
def fastai(work: Workload) -> Iterator[Step]:
    from fastai.callback.hook import ActivationStats, Hooks

    stats = ActivationStats(with_hist=True, include_paramless=True)
    with Hooks(work.leaves(), stats.hook, stats.is_forward, stats.detach, stats.cpu) as hooks:

        def step() -> list[Any]:
            work.step()
            return list(hooks.stored)

        yield step


@tool("wandb.watch", "histograms of parameters and their gradients, no activations", "wandb")
def wandb(work: Workload) -> Iterator[Step]:
    import wandb

    quiet = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, project="benchmark", settings=quiet)
        run.watch(work.model, log="all", log_freq=1)

        def step() -> None:
            loss = work.loss_fn(work.model(work.x), work.target)
            loss.backward()
            run.log({"loss": loss.item()})
            work.model.zero_grad(set_to_none=True)

        try:
            yield step
        finally:
            run.unwatch(work.model)
            run.finish()


def _traced(work: Workload, then: Callable[[Any], object]) -> Iterator[Step]:
    import torchlens
    from torchlens.options import CaptureOptions

    work = copy.deepcopy(work)  # what it leaves on a model must not slow the bare steps

    def step() -> None:
        trace = torchlens.trace(work.model, work.x, capture=CaptureOptions(save_grads=True))
        output = trace[trace.output_layers[0]].out
        trace.log_backward(work.loss_fn(output, work.target))
        then(trace)
        work.model.zero_grad(set_to_none=True)

    try:
        yield step
    finally:
        # It leaves torch's functions wrapped, for other traces and for everybody else.
        small = torch.nn.Linear(1, 1), torch.zeros(1, 1)
        torchlens.trace(*small, capture=CaptureOptions(unwrap_when_done=True))


@tool("torchlens", "keeps every operation's output and gradient", "torchlens")
def torchlens(work: Workload) -> Iterator[Step]:
    yield from _traced(work, lambda trace: None)


@tool("torchlens with its audit", "the same, and its audit_trace", "torchlens")
def torchlens_audit(work: Workload) -> Iterator[Step]:
    from torchlens.debug import audit_trace

    yield from _traced(work, audit_trace)
