"""From a model and its batches to a :class:`~nndiag.stats.Snapshot`."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import platform
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import nndiag
from nndiag.batch import (
    Batch,
    LossMaker,
    argument_names,
    describe,
    detached,
    length,
    tensors_in,
)
from nndiag.capture.lineage import next_function
from nndiag.capture.locate import raised_at
from nndiag.capture.parameters import measure_parameters
from nndiag.capture.recorder import ROOT, Recorder, has_layers, is_script, is_torch_leaf
from nndiag.capture.untouched import Kept, untouched
from nndiag.capture.weights import Running
from nndiag.errors import BatchError, CaptureError, LossError, ModelError
from nndiag.stats import (
    Environment,
    Layer,
    Loss,
    Node,
    Parameter,
    Shift,
    Snapshot,
    TensorStats,
)

# The virtual update moves every parameter by this share of its own norm along its gradient.
STEP = 0.01

Tick = Callable[[str], None]


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
class _Run:
    """What is gathered over the batches of one check."""

    names: dict[nn.Module, str]
    named: dict[str, nn.Parameter]
    first_function: int  # autograd numbers its functions: those before it were there before us
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
    most: int = 0  # in one batch
    batches: int = 0
    no_gradients: str = ""
    backward_error: str = ""
    shifts: dict[str, Shift] = field(default_factory=dict)
    memories: dict[str, Running] = field(default_factory=dict)
    no_step: str = ""
    device: str = ""

    def recorder(self, *, gradients: bool, tick: Tick, only_inputs: bool = False) -> Recorder:
        return Recorder(
            self.names,
            self.named,
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
    seed: int | None,
    max_batches: int,
    tick: Tick = lambda _: None,
) -> Snapshot:
    """Run the model over the batches and say what happened; the model is as before afterwards."""
    names = {module: name for name, module in model.named_modules()}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _eager(),
        untouched(seed, model, loss.loss_fn) as kept,
    ):
        run = _Run(names, dict(model.named_parameters()), next_function())
        iterator = iter(stream)
        for _ in range(max_batches):
            with kept.drawing_data():
                batch = next(iterator, None)
            if batch is None:
                break
            _one_batch(model, batch, run, needs, loss, kept, tick)
            if run.batches > 1 and not gc.isenabled():  # check() put it off
                gc.collect(1)
        else:
            run.not_observed[
                f"only the first {max_batches} batches were looked at, however many there are "
                "(setting max-batches)"
            ] = None
    return _snapshot(model, run, needs, seed)


def _one_batch(
    model: nn.Module,
    batch: Batch,
    run: _Run,
    needs: frozenset[str],
    loss: LossMaker,
    kept: Kept,
    tick: Tick,
) -> None:
    gradients = bool(needs & {"gradients", "step"})
    first = run.batches == 0
    if first:  # nothing ran yet, but drawing the batch may have drawn random numbers
        kept.start()
    else:
        kept.reset()
    recorder = run.recorder(gradients=gradients, tick=tick)
    try:
        output, inputs = _forward(model, batch, recorder)
        if recorder.axis_found != run.axis:  # the model says where its samples lie: look again
            run.axis = recorder.axis_found
            recorder.close()
            del output
            kept.reset()
            recorder = run.recorder(gradients=gradients, tick=tick)
            output, inputs = _forward(model, batch, recorder)
        outputs = _output_nodes(output, recorder)
        value = _loss(output, batch, loss, run) if gradients else None
        del output  # what only the loss needed need not lie about during the backward
        reached = value is not None and _backward(value, recorder, run)
        del value
        recorder.gradients = reached
        layers = recorder.layers()
    finally:
        recorder.close()
    if reached or first:
        run.parameters = measure_parameters(
            run.named, layers, run.parameters, run.not_observed, recorder.samples, run.most
        )
        run.most = max(run.most, recorder.samples)
    _merge(run, recorder, layers, outputs, first)
    for name, index in inputs.items():
        if index is not None:
            found = recorder.numbers[index]
            run.inputs[name] = run.inputs[name].merge(found) if name in run.inputs else found
    run.samples += recorder.samples
    run.batches += 1
    if first:
        run.device = str(next((t.device for t in tensors_in((batch.args, batch.kwargs))), "cpu"))
        if "step" in needs and reached:
            _virtual_step(model, batch, run, kept, tick)


def _forward(
    model: nn.Module, batch: Batch, recorder: Recorder
) -> tuple[Any, dict[str, int | None]]:
    args, kwargs = detached((batch.args, dict(batch.kwargs)))
    given = Batch(args, kwargs)
    samples = length(given, recorder.axis)
    inputs = {
        name: recorder.add_input(name, tensor, samples)
        for name, tensor in argument_names(given, model).items()
    }
    for module in recorder.names:
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            # Its replicas would run in other threads, where nobody looks.
            module.device_ids = module.device_ids[:1]
    try:
        with recorder.watching():
            output = model(*given.args, **given.kwargs)
    except Exception as error:
        raise _model_raised(error, model, batch, recorder) from error
    return output, inputs


def _model_raised(
    error: Exception, model: nn.Module, batch: Batch, recorder: Recorder
) -> CaptureError | BatchError:
    apart = _apart(model, batch)
    if apart is not None:
        return BatchError(apart)
    leaves = {m for m in recorder.names if is_script(m) or not has_layers(m)}
    where = type(model).__name__
    if recorder.failed is not None and recorder.failed[0] is error:
        scope = recorder.failed[1]
        where = f"{scope.name or ROOT} ({type(scope.module).__name__})"
    return CaptureError(
        f"the model raised in {where}, after {len(leaves & recorder.finished)} of {len(leaves)} "
        f"layers.\n"
        f"  {type(error).__name__}: {error}\n"
        + (f"  at {place}\n" if (place := raised_at(error)) else "")
        + f"  batch: {describe(batch)}\n"
        "  Hooks are removed and the model is as you passed it."
    )


def _apart(model: nn.Module, batch: Batch) -> str | None:
    """The model and a tensor of the batch are on different devices: what to do about it."""
    homes = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(homes) != 1:
        return None
    home = homes.pop()
    for name, tensor in argument_names(batch, model).items():
        if tensor.dim() > 0 and tensor.device != home:
            return (
                f"the model is on {home} but {name} is on {tensor.device}. Move one of them: "
                f"batch.to({str(home)!r}) or model.to({str(tensor.device)!r})."
            )
    return None


def _output_nodes(output: Any, recorder: Recorder) -> tuple[int, ...]:
    trails = [recorder.trail_of(t) for t in tensors_in(output)]
    return tuple(dict.fromkeys(t.node for t in trails if t is not None))


def _loss(output: Any, batch: Batch, loss: LossMaker, run: _Run) -> torch.Tensor | None:
    if not any(p.requires_grad for p in run.named.values()):
        run.no_gradients = "no parameter of the model requires a gradient"
        return None
    kind, value = loss(output, Batch(target=detached(batch.target)))
    if not value.requires_grad:
        raise LossError(
            f"the loss ({kind}) is not connected to the model: no gradient would reach any "
            "parameter. Was it computed under no_grad, from a detached output, or with argmax?"
        )
    number = float(value.detach())
    mean = run.loss.value + (number - run.loss.value) / (run.batches + 1) if run.batches else number
    run.loss = Loss(kind, mean)
    return value


def _backward(value: torch.Tensor, recorder: Recorder, run: _Run) -> bool:
    """Whether there are gradients now."""
    try:
        with _foreign(value, run) as older, recorder.backward():
            torch.autograd.backward(value, retain_graph=older)
    except Exception as error:  # the forward was seen: the report can still say much, and this too
        run.backward_error = f"{type(error).__name__}: {error}"
        run.no_gradients = f"the backward pass raised {type(error).__name__}"
        return False
    return True


@contextlib.contextmanager
def _foreign(value: torch.Tensor, run: _Run) -> Iterator[bool]:
    """Keep the gradients of tensors that are not the model's; is part of the graph not ours?

    A loss may have parameters, a model may use a tensor that the caller's own graph made: that
    graph has to stay usable.
    """
    own = {id(p) for p in run.named.values()}
    older = False
    with contextlib.ExitStack() as undo:
        for function in _graph(value):
            if type(function).__name__ != "AccumulateGrad":
                older |= function._sequence_nr() < run.first_function
            elif id(function.variable) not in own:
                undo.callback(setattr, function.variable, "grad", function.variable.grad)
                function.variable.grad = None
        yield older


def _graph(value: torch.Tensor) -> Iterator[Any]:
    todo: list[Any] = [value.grad_fn]
    seen = {None}
    while todo:
        function = todo.pop()
        if function not in seen:
            seen.add(function)
            yield function
            todo += [f for f, _ in function.next_functions]


def _merge(
    run: _Run, recorder: Recorder, layers: list[Layer], outputs: tuple[int, ...], first: bool
) -> None:
    if first:
        run.nodes, run.outputs = recorder.nodes, outputs
        run.layers = {layer.name: layer for layer in layers}
    else:
        for layer in layers:
            known = run.layers.get(layer.name)
            if known is not None:
                run.layers[layer.name] = known.merge(layer)
            else:  # a branch that only this batch took
                run.nodes.append(Node(layer.op, (), len(run.layers)))
                run.layers[layer.name] = dataclasses.replace(layer, node=len(run.nodes) - 1)
    run.memories.update(recorder.memories)
    run.not_observed.update(recorder.not_observed)
    run.called |= recorder.called
    run.used |= recorder.used


# -- the virtual update ------------------------------------------------------------------------


def _virtual_step(model: nn.Module, batch: Batch, run: _Run, kept: Kept, tick: Tick) -> None:
    """Move every parameter by ``STEP`` of its norm against its gradient and look again."""
    steps = [(p, p.grad, _move(run.parameters.get(name))) for name, p in run.named.items()]
    kept.reset()
    with torch.no_grad():
        for p, grad, move in steps:
            if grad is None or grad.layout != torch.strided or move is None:
                continue
            largest, share = move
            grad = grad.to(p.dtype)
            if share / torch.finfo(p.dtype).max < largest / 2:
                p.data.add_(grad, alpha=-share / largest)
            else:  # of a vanished gradient; in two steps, since one factor would be no number
                p.data.add_(grad / largest, alpha=-share)
    del steps
    recorder = run.recorder(gradients=False, only_inputs=True, tick=tick)
    try:
        with torch.no_grad():
            _forward(model, batch, recorder)
        after = recorder.inputs()
    except CaptureError as error:
        run.no_step = f"the model raised after the virtual update: {error.__cause__}"
        return
    finally:
        recorder.close()
    for name, layer in run.layers.items():
        shift = _shift(layer.input, after.get(name))
        if shift is not None:
            run.shifts[name] = shift


def _move(parameter: Parameter | None) -> tuple[float, float] | None:
    """The step along a parameter's gradient: what to divide that by, and what to multiply it by."""
    if parameter is None or parameter.grad is None or not 0 < parameter.grad.norm < math.inf:
        return None
    largest = max(abs(parameter.grad.min), abs(parameter.grad.max))
    share = STEP * parameter.value.norm * (largest / parameter.grad.norm)
    return (largest, share) if math.isfinite(share) else None


def _shift(before: TensorStats | None, after: TensorStats | None) -> Shift | None:
    if before is None or after is None:
        return None
    old, new = before.units, after.units
    if old is None or new is None or len(old) != len(new):
        return None
    varied = old.std > 1e-6 * max(before.rms, 1e-30)
    if not varied.any():
        return None
    # Ratios of sums: in a sum of ratios one nearly dead unit outweighs all others.
    before_variance, after_variance = old.variance[varied].mean(), new.variance[varied].mean()
    moved = ((new.mean - old.mean)[varied] ** 2).mean()
    if not (np.isfinite(moved) and np.isfinite(after_variance)):
        return None
    return Shift(
        mean=math.sqrt(moved / before_variance),
        scale=0.5 * math.log(max(after_variance / before_variance, 1e-30)),
        units=int(varied.sum()),
    )


# -- the snapshot ------------------------------------------------------------------------------


def _snapshot(
    model: nn.Module,
    run: _Run,
    needs: frozenset[str],
    seed: int | None,
) -> Snapshot:
    asked = bool(needs & {"gradients", "step"})
    because = run.no_gradients or ("" if asked else "no selected rule asks for them")
    layers = [_completed(layer, run) for layer in run.layers.values()]
    never, direct = _never_called(run)
    observed = dict(run.not_observed)
    for name in direct:
        observed[f"{name}: never called as a module; its parameters were used by a direct call"] = (
            None
        )
    return Snapshot(
        model=type(model).__name__,
        layers=tuple(layers),
        nodes=tuple(run.nodes),
        parameters=tuple(
            dataclasses.replace(p, used=p.name in run.used or p.grad is not None)
            for p in run.parameters.values()
        ),
        inputs=run.inputs,
        loss=run.loss,
        samples=run.samples,
        batches=run.batches,
        outputs=run.outputs,
        has_gradients=asked and not because,
        has_step=bool(run.shifts),
        no_gradients_because=because,
        backward_error=run.backward_error,
        no_step_because=run.no_step or because,
        never_called=tuple(never),
        lists=tuple(name for module, name in run.names.items() if isinstance(module, _LISTS)),
        not_observed=tuple(observed),
        environment=Environment(
            nndiag=nndiag.__version__,
            torch=str(torch.__version__),
            python=platform.python_version(),
            device=run.device or "cpu",
            dtype=_dtype(model),
            seed=seed,
            mode=_mode(model),
        ),
    )


def _completed(layer: Layer, run: _Run) -> Layer:
    """With what only the whole run can tell."""
    shift, memory = run.shifts.get(layer.name), run.memories.get(layer.name)
    if shift is None and memory is None:
        return layer
    facts = layer.facts if memory is None else layer.facts | memory.compare(layer.input)
    return dataclasses.replace(layer, shift=shift, facts=facts)


_LISTS = (nn.ModuleList, nn.ModuleDict)


def _never_called(run: _Run) -> tuple[list[str], list[str]]:
    """The topmost modules that never ran, and those whose parameters were used without them."""
    never: list[str] = []
    direct: list[str] = []
    for module, name in run.names.items():
        if not name or any(m in run.called for m in module.modules()):
            continue
        if any(name.startswith(f"{other}.") for other in never + direct):
            continue
        if _inside_leaf(name, run.names):
            continue
        own = [f"{name}.{p}" for p, _ in module.named_parameters()]
        if isinstance(module, (nn.ParameterList, nn.ParameterDict)):
            continue  # they cannot be called
        if own and all(p in run.used for p in own):
            direct.append(name)
        elif own or not isinstance(module, (*_LISTS, nn.Sequential)):
            never.append(name)
    return never, direct


def _inside_leaf(name: str, names: Mapping[nn.Module, str]) -> bool:
    return any(
        name.startswith(f"{other}." if other else "") and other != name
        for module, other in names.items()
        if is_torch_leaf(module) or is_script(module)
    )


def _dtype(model: nn.Module) -> str:
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    return ", ".join(sorted(kinds)) or str(torch.get_default_dtype()).removeprefix("torch.")


def _mode(model: nn.Module) -> str:
    modes = {m.training for m in model.modules()}
    return "mixed" if len(modes) == 2 else "train" if modes == {True} else "eval"


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Run compiled modules eagerly: nothing is compiled, cached or splintered by our watching."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with contextlib.ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        # That our hooks fire for the compiled wrapper, too, is as it should be.
        warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
        if hasattr(torch.compiler, "set_stance"):
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        else:  # torch 2.4 and 2.5; config.disable would mark what it skips, never to be compiled
            frames = sys.modules["torch._dynamo.eval_frame"]
            for name in ("set_eval_frame", "_maybe_set_eval_frame"):
                if hasattr(frames, name):
                    undo.callback(setattr, frames, name, getattr(frames, name))
                    setattr(frames, name, lambda callback: None)
        yield
