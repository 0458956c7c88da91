"""From a model and its batches to a :class:`~nndiag.stats.Snapshot`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

import nndiag
from nndiag.batch import Batch, LossMaker, argument_names, describe, detached, tensors_in
from nndiag.capture.recorder import ROOT, Recorder, is_script, is_torch_leaf
from nndiag.capture.untouched import Kept, untouched
from nndiag.errors import BatchError, CaptureError, LossError, ModelError, NNDiagError
from nndiag.measure import Axes, Pending, collect, measure, readable
from nndiag.stats import (
    Environment,
    Layer,
    Loss,
    Node,
    Parameter,
    Shift,
    Snapshot,
    TensorStats,
    merge_parts,
)

# The virtual update moves every parameter by this share of its own norm along its gradient.
STEP = 0.01
# Comparing rows of a weight sorts them: beyond this size it would dominate a check.
MOST_COMPARED = 30_000_000

Tick = Callable[[str], None]


def validate(model: Any) -> None:
    """Raises ModelError for what cannot be run at all."""
    if not isinstance(model, nn.Module):
        hint = " Create one first: check(Net(), batch)." if isinstance(model, type) else ""
        raise ModelError(
            f"check() needs a torch.nn.Module, but got {describe(model)}.{hint}"
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)):
            raise ModelError(
                f"{name} is not initialised yet: the model has lazy modules. Run one forward with a "
                "real batch first, then check it."
            )
        if tensor.device.type == "meta":
            raise ModelError(
                f"{name} is on the meta device: it has a shape but no values. Materialise the model "
                "first, for example with model.to_empty(device='cpu') and an initialisation."
            )


@dataclass
class _Run:
    """What is gathered over the batches of one check."""

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
    batches: int = 0
    no_gradients: str = ""
    backward_error: str = ""
    shifts: dict[str, Shift] = field(default_factory=dict)
    no_step: str = ""
    device: str = ""


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
    parameters = {id(p): name for name, p in model.named_parameters()}
    run = _Run()
    with untouched(model, seed) as kept, _eager(), torch.inference_mode(False), torch.enable_grad():
        iterator = iter(stream)
        while run.batches < max_batches:
            batch = next(iterator, None)
            if batch is None:
                break
            kept.reset()
            _one_batch(model, batch, run, names, parameters, needs, loss, kept, tick)
        else:
            if next(iterator, None) is not None:
                run.not_observed[
                    f"the stream goes on: only its first {max_batches} batches were looked at "
                    "(setting max-batches)"
                ] = None
    return _snapshot(model, run, names, needs, seed)


def _one_batch(
    model: nn.Module,
    batch: Batch,
    run: _Run,
    names: Mapping[nn.Module, str],
    parameters: Mapping[int, str],
    needs: frozenset[str],
    loss: LossMaker,
    kept: Kept,
    tick: Tick,
) -> None:
    gradients = bool(needs & {"gradients", "step"})
    _same_device(model, batch)
    recorder = Recorder(model, names, parameters, gradients=gradients, tick=tick)
    try:
        output, inputs = _forward(model, batch, recorder)
        outputs = _output_nodes(output, recorder)
        value = _backward(model, output, batch, recorder, loss, run) if gradients else None
        del output
        recorder.gradients = value is not None
        layers = recorder.layers()
    finally:
        recorder.close()
    first = run.batches == 0
    samples = _samples(batch)
    if value is not None:
        _measure_parameters(model, layers, recorder.used, run)
    elif first:
        _measure_parameters(model, layers, recorder.used, run, gradients=False)
    _merge(run, recorder, layers, outputs, first)
    for name, index in inputs.items():
        if index is not None:
            found = recorder.numbers[index]
            run.inputs[name] = run.inputs[name].merge(found) if name in run.inputs else found
    run.samples += samples
    run.batches += 1
    if first:
        run.device = str(next((t.device for t in tensors_in((batch.args, batch.kwargs))), "cpu"))
        if "step" in needs and value is not None:
            _virtual_step(model, batch, run, names, parameters, kept, tick)


def _forward(
    model: nn.Module, batch: Batch, recorder: Recorder
) -> tuple[Any, dict[str, int | None]]:
    given = Batch(detached(batch.args), detached(batch.kwargs), batch.target)
    samples = _samples(batch)
    inputs = {
        name: recorder.add_input(name, tensor, samples)
        for name, tensor in argument_names(given, model).items()
    }
    try:
        with recorder.watching():
            output = model(*given.args, **given.kwargs)
    except NNDiagError:
        raise
    except Exception as error:
        raise _model_raised(error, model, batch, recorder) from error
    return output, inputs


def _model_raised(
    error: Exception, model: nn.Module, batch: Batch, recorder: Recorder
) -> CaptureError:
    total = sum(1 for m in recorder.names if not any(True for _ in m.children()))
    done = sum(row.output is not None and row.kind != "function" for row in recorder.rows)
    where = type(model).__name__
    if recorder.failed is not None:
        where = f"{recorder.failed.name or ROOT} ({type(recorder.failed.module).__name__})"
    return CaptureError(
        f"the model raised in {where}, after {done} of {total} layers.\n"
        f"  {type(error).__name__}: {error}\n"
        f"  batch: {describe(batch)}\n"
        "  Hooks are removed and the model is as you passed it."
    )


def _output_nodes(output: Any, recorder: Recorder) -> tuple[int, ...]:
    trails = [recorder.trails[t] for t in tensors_in(output)]
    return tuple(dict.fromkeys(t.node for t in trails if t is not None))


def _backward(
    model: nn.Module, output: Any, batch: Batch, recorder: Recorder, loss: LossMaker, run: _Run
) -> torch.Tensor | None:
    if not any(p.requires_grad for p in model.parameters()):
        run.no_gradients = "no parameter of the model requires a gradient"
        return None
    kind, value = loss(output, batch)
    if not value.requires_grad:
        raise LossError(
            f"the {kind} is not connected to the model: no gradient would reach any parameter. Was "
            "it computed under no_grad, from a detached output, or with argmax?"
        )
    number = float(value.detach())
    run.loss = Loss(kind, number if run.batches == 0 else (run.loss.value * run.batches + number) / (run.batches + 1))
    try:
        value.backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # the forward was seen: the report can still say much, and this too
        run.backward_error = f"{type(error).__name__}: {error}"
        run.no_gradients = f"the backward pass raised {type(error).__name__}"
        return None
    return value.detach()


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
    run.not_observed.update(recorder.not_observed)
    run.called |= recorder.called
    run.used |= recorder.used


def _samples(batch: Batch) -> int:
    for tensor in tensors_in((batch.args, batch.kwargs)):
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    return 1


def _same_device(model: nn.Module, batch: Batch) -> None:
    homes = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(homes) != 1:
        return
    home = homes.pop()
    for name, tensor in argument_names(batch, model).items():
        if tensor.dim() > 0 and tensor.device != home:
            raise BatchError(
                f"the model is on {home} but {name} is on {tensor.device}. Move one of them: "
                f"batch.to({str(home)!r}) or model.to({str(tensor.device)!r})."
            )


# -- parameters --------------------------------------------------------------------------------


def _measure_parameters(
    model: nn.Module, layers: list[Layer], used: set[str], run: _Run, gradients: bool = True
) -> None:
    use = {layer.weight.name: layer.weight for layer in layers if layer.weight is not None}
    named = dict(model.named_parameters())
    pending: list[Pending] = []
    plan: list[tuple[str, nn.Parameter, int | None, int | None, int | None]] = []

    def add(item: Pending) -> int:
        pending.append(item)
        return len(pending) - 1

    for name, p in named.items():
        value = add(measure(p, histogram=False)) if name not in run.parameters else None
        grad = p.grad if gradients else None
        g = add(measure(grad, histogram=False)) if grad is not None else None
        weight = use.get(name)
        rows = None
        if p.dim() >= 2 and p.numel() <= MOST_COMPARED and p.layout == torch.strided:
            axis = weight.unit_axis if weight is not None else 0
            bias = named.get(weight.bias) if weight is not None and weight.bias else None
            rows = add(_compare_rows(p, grad, axis, bias))
        plan.append((name, p, value, g, rows))
    numbers = collect(pending)
    for name, p, value, g, rows in plan:
        grad_stats = None if g is None else numbers[g]
        found = dict.fromkeys(_ROW_FACTS, 0) if rows is None else numbers[rows]
        if value is not None:
            run.parameters[name] = Parameter(
                name=name,
                shape=tuple(p.shape),
                dtype=str(p.dtype).removeprefix("torch."),
                trainable=p.requires_grad,
                value=numbers[value],
                grad=grad_stats,
                **found,
            )
            continue
        known = run.parameters[name]
        grad_stats = merge_parts(known.grad, grad_stats) or known.grad or grad_stats
        run.parameters[name] = dataclasses.replace(
            known,
            grad=grad_stats,
            duplicate_kept=min(known.duplicate_kept, found["duplicate_kept"]),
            one_sign_rows=known.one_sign_rows + found["one_sign_rows"],
            graded_rows=known.graded_rows + found["graded_rows"],
        )


_ROW_FACTS = ("duplicate_units", "duplicate_kept", "zero_units", "one_sign_rows", "graded_rows")


@torch.no_grad()
def _compare_rows(
    p: torch.Tensor, grad: torch.Tensor | None, axis: int, bias: torch.Tensor | None
) -> Pending:
    """Which units (rows) of a weight are equal, and what their gradients look like.

    Equal rows have equal projections on a fixed direction, so after sorting by it they are
    neighbours; those are then compared exactly.
    """
    rows = readable(p).movedim(axis, 0).reshape(p.shape[axis], -1)
    whole = rows
    if bias is not None and bias.numel() == rows.shape[0]:
        whole = torch.cat([rows, readable(bias).reshape(-1, 1).to(rows.dtype)], 1)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(whole.shape[1], generator=generator).to(whole.device, whole.dtype)
    order = torch.argsort(whole @ direction)
    ordered = whole[order]
    equal = (ordered[1:] == ordered[:-1]).all(1)
    zero = (rows == 0).all(1).sum()
    kept = torch.zeros((), device=rows.device)
    one_sign = graded = torch.zeros((), device=rows.device)
    if grad is not None:
        g = readable(grad).movedim(axis, 0).reshape(rows.shape)
        nonzero = (g != 0).any(1)
        one_sign = (nonzero & ((g >= 0).all(1) | (g <= 0).all(1))).sum()
        graded = nonzero.sum()
        sorted_g = g[order]
        size = torch.linalg.vector_norm(sorted_g, dim=1)
        gap = torch.linalg.vector_norm(sorted_g[1:] - sorted_g[:-1], dim=1)
        kept = _members(equal & (gap <= 1e-4 * torch.maximum(size[1:], size[:-1])))
    counts = torch.stack([v.double() for v in (_members(equal), kept, zero, one_sign, graded)])
    return Pending(counts, lambda v: dict(zip(_ROW_FACTS, map(int, v), strict=True)))


def _members(equal: torch.Tensor) -> torch.Tensor:
    """How many elements have an equal neighbour."""
    false = torch.zeros(1, dtype=torch.bool, device=equal.device)
    return (torch.cat([equal, false]) | torch.cat([false, equal])).sum()


# -- the virtual update ------------------------------------------------------------------------


def _virtual_step(
    model: nn.Module,
    batch: Batch,
    run: _Run,
    names: Mapping[nn.Module, str],
    parameters: Mapping[int, str],
    kept: Kept,
    tick: Tick,
) -> None:
    """Move every parameter by ``STEP`` of its norm against its gradient and look again."""
    steps = []
    for p in model.parameters():
        if p.grad is not None and p.requires_grad and p.grad.layout == torch.strided:
            steps.append((p, p.grad))
    kept.reset()
    with torch.no_grad():
        for p, grad in steps:
            g = readable(grad)
            size, length = torch.linalg.vector_norm(readable(p)), torch.linalg.vector_norm(g)
            move = torch.where((length > 0) & torch.isfinite(length), STEP * size / length, 0.0)
            p.data.sub_((g * move).to(p.dtype))
    del steps
    recorder = Recorder(model, names, parameters, gradients=False, tick=tick)
    try:
        with torch.no_grad():
            _forward(model, batch, recorder)
        after = {layer.name: layer for layer in recorder.layers()}
    except CaptureError as error:
        run.no_step = f"the model raised after the virtual update: {error.__cause__}"
        return
    finally:
        recorder.close()
        kept.reset()
    for name, layer in run.layers.items():
        shift = _shift(layer, after.get(name))
        if shift is not None:
            run.shifts[name] = shift


def _shift(before: Layer, after: Layer | None) -> Shift | None:
    if after is None or before.input is None or after.input is None:
        return None
    old, new = before.input.units, after.input.units
    if old is None or new is None or len(old) != len(new):
        return None
    varied = old.std > 1e-6 * max(before.input.rms, 1e-30)
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
    names: Mapping[nn.Module, str],
    needs: frozenset[str],
    seed: int | None,
) -> Snapshot:
    asked = bool(needs & {"gradients", "step"})
    because = run.no_gradients or ("" if asked else "no selected rule asks for them")
    layers = [
        dataclasses.replace(layer, shift=run.shifts.get(layer.name)) for layer in run.layers.values()
    ]
    never, direct = _never_called(names, run)
    observed = dict(run.not_observed)
    for name in direct:
        observed[f"{name}: never called as a module; its parameters were used by a direct call"] = None
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


def _never_called(names: Mapping[nn.Module, str], run: _Run) -> tuple[list[str], list[str]]:
    """The topmost modules that never ran, and those whose parameters were used without them."""
    never: list[str] = []
    direct: list[str] = []
    for module, name in names.items():
        if not name or any(m in run.called for m in module.modules()):
            continue
        if any(name.startswith(f"{other}.") for other in never + direct):
            continue
        if _inside_leaf(name, names):
            continue
        own = [f"{name}.{p}" for p, _ in module.named_parameters()]
        if own and all(p in run.used for p in own):
            direct.append(name)
        elif own or not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
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
    elif hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:  # torch 2.4 and 2.5
        config = sys.modules["torch._dynamo"].config
        before = config.disable
        config.disable = True
        try:
            yield
        finally:
            config.disable = before


