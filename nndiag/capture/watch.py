"""From a model and its batches to a :class:`~nndiag.stats.Snapshot`."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nndiag.batch import Batch, argument_names, describe, detached, tensors_in
from nndiag.capture.again import look_again, unexplained
from nndiag.capture.backward import backward
from nndiag.capture.constant_output import Outputs, baseline, outputs_of
from nndiag.capture.data import columns
from nndiag.capture.eager import eager
from nndiag.capture.environment import environment
from nndiag.capture.forward import forward
from nndiag.capture.leaves import unregistered
from nndiag.capture.libraries import of_libraries
from nndiag.capture.lineage import next_function
from nndiag.capture.losses import experiment
from nndiag.capture.modules import is_script, is_torch_leaf
from nndiag.capture.optimizing import Trial, filled, held_by, optimizers_of, try_steps
from nndiag.capture.output_gradient import OutputGradient
from nndiag.capture.parameters import measure_parameters
from nndiag.capture.probes import gap, mixing
from nndiag.capture.recorder import Recorder
from nndiag.capture.step import shifts, step
from nndiag.capture.untouched import SavedState, same_state, untouched
from nndiag.capture.weights import RunningStatistics
from nndiag.errors import LossError, ModelError
from nndiag.experiment import Baseline, Experiment, LossCall, Optimizer
from nndiag.loss import LossMaker
from nndiag.stats import (
    Layer,
    Loss,
    Node,
    Parameter,
    Shift,
    Snapshot,
    TensorStats,
)

__all__ = ["NEED_GRADIENTS", "Tick", "validate", "watch"]

Tick = Callable[[str], None]

NEED_GRADIENTS = frozenset(("gradients", "step", "optimizer"))


def validate(model: Any) -> None:
    """Raises ModelError for what cannot be run at all."""
    if not isinstance(model, nn.Module):
        got, hint = describe(model), ""
        if isinstance(model, type):
            got = f"the class {model.__qualname__}"
            hint = f" Create one first: check({model.__qualname__}(…), batch)."
        elif callable(model) and hasattr(model, "__qualname__"):
            hint = f" If it builds one, call it: check({model.__qualname__}(), batch)."
        raise ModelError(f"check() needs a torch.nn.Module, but got {got}.{hint}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ModelError(
                f"{name} is not initialised yet: the model has lazy modules. Run one forward with "
                "a real batch first, then check it."
            )
        if tensor.is_meta:
            raise ModelError(
                f"{name} is on the meta device: it has a shape but no values. Materialise the "
                "model first, for example with model.to_empty(device='cpu') and an initialisation."
            )


@dataclass
class _CheckState:
    """Results of one check so far, accumulated over its batches."""

    names: dict[nn.Module, str]
    model_parameters: dict[str, nn.Parameter]
    first_function: int  # autograd's functions with lower numbers were there before the check
    axis: int = 0
    layers: dict[str, Layer] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    inputs: dict[str, TensorStats] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    not_observed: dict[str, None] = field(default_factory=dict)
    called: set[nn.Module] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    loss: Loss = field(default_factory=lambda: Loss("none"))
    samples: int = 0
    largest_batch: int = 0  # in samples
    batches: int = 0
    no_gradients: str = ""
    backward_error: str = ""
    shifts: dict[str, Shift] = field(default_factory=dict)
    running_statistics: dict[str, RunningStatistics] = field(default_factory=dict)
    no_step: str = ""
    again: dict[str, str] = field(default_factory=dict)
    device: str = ""
    experiment: Experiment = field(default_factory=Experiment)
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    optimizer: Optimizer | None = None

    def recorder(self, *, gradients: bool, tick: Tick, only_inputs: bool = False) -> Recorder:
        return Recorder(
            self.names,
            self.model_parameters,
            gradients=gradients,
            only_inputs=only_inputs,
            axis=self.axis,
            tick=tick,
        )


def watch(
    model: nn.Module,
    stream: Iterable[Batch],
    *,
    needs: frozenset[str],
    loss: LossMaker,
    optimizer: Any = None,
    seed: int | None,
    max_batches: int,
    tick: Tick = lambda _: None,
) -> Snapshot:
    """Run the model over the batches and record what happens; leave the model as it was.

    Raises:
        CaptureError: the model raised.
        BatchError, LossError: a batch or the loss does not fit.
    """
    names = {module: name for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    is_judged = optimizer is not None and "optimizer" in needs
    there = filled(parameters) if is_judged else {}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        eager(),
        untouched(seed, model, loss.loss_fn) as saved,
    ):
        run = _CheckState(names, parameters, next_function())
        if is_judged:
            run.optimizers = optimizers_of(optimizer, model)
            run.optimizer = dataclasses.replace(held_by(run.optimizers, parameters), filled=there)
        iterator = iter(stream)
        for _ in range(max_batches):
            with saved.drawing_data():
                batch = next(iterator, None)
            if batch is None:
                break
            _record_batch(model, batch, run, needs, loss, saved, tick)
            if run.batches > 1 and not gc.isenabled():  # paused by api.gc_paused
                gc.collect(1)
        else:
            run.not_observed[
                f"only the first {max_batches} batches were looked at, however many there are "
                "(setting max-batches)"
            ] = None
    return _snapshot(model, run, needs, seed)


def _record_batch(
    model: nn.Module,
    batch: Batch,
    run: _CheckState,
    needs: frozenset[str],
    loss: LossMaker,
    saved: SavedState,
    tick: Tick,
) -> None:
    gradients = bool(needs & NEED_GRADIENTS)
    wants_loss = gradients or ("loss" in needs and loss.loss_fn is not None)
    first = run.batches == 0
    if first:  # nothing ran yet, but drawing the batch may have drawn random numbers
        saved.start()
    else:
        saved.reset()
    recorder = run.recorder(gradients=gradients, tick=tick)
    try:
        output, inputs = forward(model, batch, recorder)
        axis = recorder.paths.axis_found
        if axis != run.axis:  # a layer takes its samples from another axis: run again
            run.axis = axis
            recorder.close()
            del output
            saved.reset()
            recorder = run.recorder(gradients=gradients, tick=tick)
            output, inputs = forward(model, batch, recorder)
        outputs = _output_nodes(output, recorder)
        at_output = OutputGradient(output if first and "second look" in needs else ())
        value = _loss(output, batch, loss, run, recorder) if wants_loss else None
        shapes = tuple(tuple(x.shape) for x in tensors_in(output))
        alone = _only_output(output, recorder) if first and "loss" in needs else None
        kept = detached(output) if first and run.optimizers else None
        del output  # free what only the loss needed before the backward runs
        reached = gradients and value is not None and _backward(value, recorder, run)
        del value
        recorder.gradients = reached
        layers = recorder.layers()
        if first:
            with torch._C.DisableTorchFunction():  # a tensor's own class has no say in this
                rows, zero_rows = at_output.counted()
                found = _baseline(recorder.loss_calls, run.loss.value, alone, batch, loss)
                run.experiment = dataclasses.replace(
                    experiment(batch, recorder.loss_calls, unregistered(model, recorder)),
                    inputs=columns(
                        argument_names(batch, model), recorder.paths.nodes, layers,
                        recorder.paths.samples,
                    ),
                    outputs=shapes,
                    baseline=found,
                    output_rows=rows,
                    output_zero_rows=zero_rows,
                    samples=recorder.paths.samples,
                )  # fmt: skip
    finally:
        recorder.close()
    if reached or first:
        run.parameters = measure_parameters(
            run.model_parameters,
            layers,
            run.parameters,
            run.not_observed,
            recorder.paths.samples,
            run.largest_batch,
        )
        run.largest_batch = max(run.largest_batch, recorder.paths.samples)
    _merge(run, recorder, layers, outputs, first)
    for name, index in inputs.items():
        if index is not None:
            stats = recorder.numbers[index]
            run.inputs[name] = run.inputs[name].merge(stats) if name in run.inputs else stats
    run.samples += recorder.paths.samples
    run.batches += 1
    if first:
        run.device = str(next((t.device for t in tensors_in((batch.args, batch.kwargs))), "cpu"))
        grads = {name: p.grad for name, p in run.model_parameters.items()} if reached else {}
        if reached:
            waiting, random = _waiting(run, layers, needs, saved)
            if "step" in needs:
                _virtual_step(model, batch, run, saved, grads, tick)
            if waiting:
                run.again = look_again(
                    model, batch, loss, waiting, grads, saved, run.first_function, random
                )
        if run.optimizer is not None:
            because = run.no_gradients or ("" if _is_real(run) else "pass target= and loss_fn=")
            if because:
                run.optimizer = dataclasses.replace(run.optimizer, no_step_because=because)
            else:
                trial = Trial(model, batch, loss, saved, run.model_parameters, run.first_function)
                run.optimizer = try_steps(
                    run.optimizer, run.optimizers, trial, grads, kept, run.loss.value
                )
            run.experiment = dataclasses.replace(run.experiment, optimizer=run.optimizer)
        del grads
        _probe(model, batch, run, recorder, needs, loss, saved)


def _is_real(run: _CheckState) -> bool:
    return run.loss.kind in ("loss_fn", "output.loss") or bool(run.experiment.calls)


def _output_nodes(output: Any, recorder: Recorder) -> tuple[int, ...]:
    trails = [recorder.paths.trail_of(t) for t in tensors_in(output)]
    return tuple(dict.fromkeys(t.node for t in trails if t is not None))


def _only_output(output: Any, recorder: Recorder) -> Outputs | None:
    if recorder.loss_runs_layers:  # each of many more evaluations would run the model
        return None
    made = recorder.paths.made.get(output) if isinstance(output, torch.Tensor) else None
    return outputs_of(output, made, recorder.paths.samples)


def _baseline(
    calls: Sequence[LossCall],
    number: float,
    outputs: Outputs | None,
    batch: Batch,
    loss: LossMaker,
) -> Baseline | None:
    """What the loss of the first batch would be without looking at its input."""
    target = detached(batch.target)

    def loss_at(values: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the caller has seen them
            return loss(values, Batch(target=target))[1]

    return baseline(calls, number, outputs, target, loss_at if loss.loss_fn is not None else None)


def _loss(
    output: Any, batch: Batch, loss: LossMaker, run: _CheckState, recorder: Recorder
) -> torch.Tensor | None:
    trains = any(p.requires_grad for p in run.model_parameters.values())
    if not trains:
        run.no_gradients = "no parameter of the model requires a gradient"
        if loss.loss_fn is None:
            return None
    target = detached(batch.target)
    with contextlib.ExitStack() as traced:
        if loss.loss_fn is not None:
            traced.enter_context(recorder.watching_loss(output, target))
        kind, value = loss(output, Batch(target=target))
    if trains and not value.requires_grad:
        raise LossError(
            f"the loss ({kind}) is not connected to the model: no gradient would reach any "
            "parameter. Was it computed under no_grad, from a detached output, or with argmax?"
        )
    number = float(value.detach())
    mean = run.loss.value + (number - run.loss.value) / (run.batches + 1) if run.batches else number
    run.loss = Loss(kind, mean)
    return value if trains else None


def _backward(value: torch.Tensor, recorder: Recorder, run: _CheckState) -> bool:
    """Run the backward; whether it succeeded."""
    error = backward(value, recorder, run.model_parameters.values(), run.first_function)
    if error is not None:
        run.backward_error = f"{type(error).__name__}: {error}"
        run.no_gradients = f"the backward pass raised {type(error).__name__}"
    return error is None


def _merge(
    run: _CheckState, recorder: Recorder, layers: list[Layer], outputs: tuple[int, ...], first: bool
) -> None:
    if first:
        run.nodes, run.outputs = recorder.paths.nodes, outputs
        run.layers = {layer.name: layer for layer in layers}
    else:
        for layer in layers:
            known = run.layers.get(layer.name)
            if known is not None:
                run.layers[layer.name] = known.merge(layer)
            else:  # a branch that only this batch took
                run.nodes.append(Node(layer.op, (), len(run.layers)))
                run.layers[layer.name] = dataclasses.replace(layer, node=len(run.nodes) - 1)
    run.running_statistics.update(recorder.running_statistics)
    run.not_observed.update(recorder.not_observed)
    run.called |= recorder.called
    run.used |= recorder.used


def _waiting(
    run: _CheckState, layers: list[Layer], needs: frozenset[str], saved: SavedState
) -> tuple[frozenset[str], bool]:
    """The parameters that a second look is worth, and whether the model draws random numbers.

    Not in a job of several processes: each would decide for itself how often to run, while its
    backward waits for the others.
    """
    trainable = [p for p in run.parameters.values() if p.trainable]
    all_reached = all(p.grad is not None and p.grad.zeros < p.grad.total for p in trainable)
    if "second look" not in needs or all_reached or _distributed():
        return frozenset(), False
    after = saved.random_states()
    saved.reset()
    random = not same_state(saved.random_states(), after)
    weight_of = {
        layer.weight.bias: layer.weight.name
        for layer in layers
        if layer.weight is not None and layer.weight.bias is not None
    }
    return unexplained(run.parameters, weight_of, random), random


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _virtual_step(
    model: nn.Module,
    batch: Batch,
    run: _CheckState,
    saved: SavedState,
    gradients: Mapping[str, torch.Tensor | None],
    tick: Tick,
) -> None:
    saved.reset()
    step(run.model_parameters, gradients, run.parameters)
    recorder = run.recorder(gradients=False, only_inputs=True, tick=tick)
    run.shifts, run.no_step = shifts(model, batch, recorder, run.layers)


def _probe(
    model: nn.Module,
    batch: Batch,
    run: _CheckState,
    recorder: Recorder,
    needs: frozenset[str],
    loss: LossMaker,
    saved: SavedState,
) -> None:
    """Short forwards in evaluation mode, where something hangs on them."""
    mixes, paths = None, recorder.paths
    if "mixing" in needs and (paths.loses_samples or paths.axis):
        mixes = mixing(model, batch, paths.axis, saved.reset)

    def in_this_mode() -> float:
        args, kwargs = detached((batch.args, dict(batch.kwargs)))
        output = model(*args, **kwargs)
        return float(loss(output, Batch(target=detached(batch.target)))[1].detach())

    differ = None
    if "evaluation" in needs and run.loss.kind in ("loss_fn", "output.loss"):
        try:
            differ = gap(model, run.loss.value, in_this_mode, saved.reset)
        except Exception as error:  # reported: the rest can still be judged
            run.not_observed[f"evaluation mode: the model raised {type(error).__name__}"] = None
    run.experiment = dataclasses.replace(run.experiment, mixing=mixes, gap=differ)


# -- the snapshot ------------------------------------------------------------------------------


def _snapshot(
    model: nn.Module,
    run: _CheckState,
    needs: frozenset[str],
    seed: int | None,
) -> Snapshot:
    wants_gradients = bool(needs & NEED_GRADIENTS)
    because = run.no_gradients or ("" if wants_gradients else "no selected rule asks for them")
    layers = [_completed(layer, run) for layer in run.layers.values()]
    never_called, used_directly = _never_called(run)
    library = of_libraries(model)
    observed = dict(run.not_observed)
    for name in used_directly:
        observed[f"{name}: never called as a module; its parameters were used by a direct call"] = (
            None
        )
    return Snapshot(
        model=type(model).__name__,
        layers=tuple(layers),
        nodes=tuple(run.nodes),
        parameters=tuple(
            dataclasses.replace(
                p,
                used=p.name in run.used or p.grad is not None,
                again=run.again.get(p.name, ""),
                library=library.get(p.name),
            )
            for p in run.parameters.values()
        ),
        inputs=run.inputs,
        loss=run.loss,
        samples=run.samples,
        batches=run.batches,
        outputs=run.outputs,
        has_gradients=wants_gradients and not because,
        has_step=bool(run.shifts),
        no_gradients_because=because,
        backward_error=run.backward_error,
        no_step_because=run.no_step or because,
        never_called=tuple(never_called),
        lists=tuple(name for module, name in run.names.items() if isinstance(module, _LISTS)),
        not_observed=tuple(observed),
        environment=environment(model, run.device or "cpu", seed),
        experiment=run.experiment,
    )


def _completed(layer: Layer, run: _CheckState) -> Layer:
    """The layer with its shift and running statistics, known only after all batches."""
    shift, running = run.shifts.get(layer.name), run.running_statistics.get(layer.name)
    if shift is None and running is None:
        return layer
    facts = layer.facts if running is None else layer.facts | running.compare(layer.input)
    return dataclasses.replace(layer, shift=shift, facts=facts)


_LISTS = (nn.ModuleList, nn.ModuleDict)


def _never_called(run: _CheckState) -> tuple[list[str], list[str]]:
    """The outermost modules that never ran, and those of which only the parameters were used."""
    never_called: list[str] = []
    used_directly: list[str] = []
    for module, name in run.names.items():
        if not name or any(m in run.called for m in module.modules()):
            continue
        if any(name.startswith(f"{other}.") for other in never_called + used_directly):
            continue
        if _inside_leaf(name, run.names):
            continue
        parameters = [f"{name}.{p}" for p, _ in module.named_parameters()]
        if isinstance(module, (nn.ParameterList, nn.ParameterDict)):
            continue  # they cannot be called
        if parameters and all(p in run.used for p in parameters):
            used_directly.append(name)
        elif parameters or not isinstance(module, (*_LISTS, nn.Sequential)):
            never_called.append(name)
    return never_called, used_directly


def _inside_leaf(name: str, names: Mapping[nn.Module, str]) -> bool:
    return any(
        name.startswith(f"{other}." if other else "") and other != name
        for module, other in names.items()
        if is_torch_leaf(module) or is_script(module)
    )
