"""The optimiser: which parameters it holds, and its own step on a batch, made and undone."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim import optimizer as torch_optimizer

from nndiag.batch import Batch, describe, detached
from nndiag.capture.backward import without_other_gradients
from nndiag.capture.penalty import constant_loss, penalties
from nndiag.capture.untouched import SavedState
from nndiag.errors import OptimizerError
from nndiag.experiment import Group, Optimizer, Update
from nndiag.loss import LossMaker

__all__ = ["AGAIN", "FAR", "NEAR", "Trial", "filled", "held_by", "optimizers_of", "try_steps"]

FAR = (100.0, 1000.0)
"""How many times the step is taken where one of it lowers the loss."""
NEAR = (0.1, 0.01)
"""And where one of it raises the loss."""
AGAIN = 1
"""Further steps, where the first one raises the loss."""


# -- what was given ----------------------------------------------------------------------------


def optimizers_of(given: Any, model: nn.Module) -> list[TorchOptimizer]:
    """The optimisers of ``check(optimizer=…)``: one, a list, or a function of the parameters.

    Raises:
        OptimizerError: it is none of these, or it holds no parameter.
    """
    if isinstance(given, TorchOptimizer):
        found: list[Any] = [given]
    elif isinstance(given, (list, tuple)) and given:
        found = list(given)
    elif callable(given) and not _hint(given):
        found = _made(given, model)
    else:
        found = [given]
    for one in found:
        if not isinstance(one, TorchOptimizer):
            raise OptimizerError(
                "optimizer is a torch optimiser, a list of them, or a function that makes one from "
                f"model.parameters(), but got {describe(one)}.{_hint(one)}"
            )
        if not any(group["params"] for group in one.param_groups):
            raise OptimizerError(
                f"the optimiser ({type(one).__name__}) holds no parameter. Make it from "
                "model.parameters()."
            )
    return found


def _made(make: Callable[..., Any], model: nn.Module) -> list[Any]:
    name = getattr(make, "__qualname__", type(make).__name__)
    try:
        made = make(model.parameters())
    except Exception as error:
        raise OptimizerError(
            f"{name}(model.parameters()) raised {type(error).__name__}: {error}\n"
            "  Pass an optimiser, or a function of the parameters such as "
            "lambda parameters: torch.optim.Adam(parameters, lr=1e-3)."
        ) from error
    return list(made) if isinstance(made, (list, tuple)) and made else [made]


def _hint(given: Any) -> str:
    """What to pass instead; "" if nothing is known of it."""
    if isinstance(given, torch.optim.lr_scheduler.LRScheduler) or hasattr(given, "last_epoch"):
        return " This is a scheduler: pass its optimiser, scheduler.optimizer."
    if isinstance(given, torch.amp.GradScaler):
        return " This scales the loss: pass the optimiser that it steps."
    if isinstance(given, nn.Module):
        return " This is a model: pass for example torch.optim.Adam(model.parameters())."
    if isinstance(given, str):
        return " Pass the optimiser itself, for example torch.optim.Adam."
    return ""


def filled(named: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """The norm of each gradient other than zero that is there before the check."""
    norms = {name: _norm(p.grad) for name, p in named.items() if p.grad is not None}
    return {name: norm for name, norm in norms.items() if norm != 0}


def held_by(optimizers: Iterable[TorchOptimizer], named: Mapping[str, nn.Parameter]) -> Optimizer:
    """Which of the model's parameters the optimisers hold, and with which settings."""
    optimizers = list(optimizers)
    names = {id(p): name for name, p in named.items()}
    memory = {key: name for name, p in named.items() if (key := _memory(p)) is not None}
    groups: list[Group] = []
    times: dict[str, int] = {}
    copies: list[str] = []
    for index, optimizer in enumerate(optimizers):
        for settings in optimizer.param_groups:
            held, shapes = [], []
            for p in settings["params"]:
                name = names.get(id(p))
                if name is not None:
                    held.append(name)
                    times[name] = times.get(name, 0) + 1
                elif (key := _memory(p)) is not None and (name := memory.get(key)) is not None:
                    copies.append(name)
                else:
                    shapes.append(tuple(p.shape))
            groups.append(
                Group(
                    type(optimizer).__name__,
                    index,
                    _number(settings.get("lr")),
                    _number(settings.get("initial_lr")),
                    _number(settings.get("max_lr")),
                    1.0 if optimizer.state else _later(optimizer, settings),
                    _number(settings.get("weight_decay", 0.0)),
                    _is_decoupled(optimizer, settings),
                    tuple(held),
                    tuple(shapes),
                )
            )
    return Optimizer(
        " and ".join(dict.fromkeys(type(o).__name__ for o in optimizers)),
        tuple(groups),
        twice=tuple(name for name, count in times.items() if count > 1),
        copies=tuple(name for name in copies if name not in times),
        has_state=any(bool(o.state) for o in optimizers),
    )


# Their weight decay is a part of the update, not of the gradient.
_DECOUPLED = frozenset(("AdamW", "Lion", "SGDW", "Muon", "Adafactor", "LAMB", "Lamb", "NAdamW"))


def _is_decoupled(optimizer: TorchOptimizer, settings: Mapping[str, Any]) -> bool:
    flag = settings.get("decoupled_weight_decay")
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    return bool(flag) or bool(names & _DECOUPLED)


def _later(optimizer: TorchOptimizer, settings: Mapping[str, Any]) -> float:
    """How long later steps are beside the first one, for gradients that stay the same."""
    momentum, alpha = (_number(settings.get(name)) for name in ("momentum", "alpha"))
    if isinstance(optimizer, torch.optim.RMSprop) and 0 < alpha < 1:
        return math.sqrt(1 - alpha)  # its running mean of squares starts at zero, uncorrected
    if isinstance(optimizer, torch.optim.Adagrad):
        return math.sqrt(0.1)  # after ten steps
    if isinstance(optimizer, torch.optim.SGD) and 0 < momentum < 1:
        return 1 / (1 - momentum)
    return 1.0


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):  # not set, or a structure of the optimiser's own
        return math.nan


def _memory(p: torch.Tensor) -> tuple[int, int] | None:
    """Where its values begin; None where that says nothing (no storage, no elements)."""
    try:
        start = p.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, or a subclass without a storage
        return None
    return (start, int(p.storage_offset())) if start else None


# -- its step ----------------------------------------------------------------------------------


@dataclass
class Trial:
    """A model, its batch and loss, on which steps are tried."""

    model: nn.Module
    batch: Batch
    loss: LossMaker
    saved: SavedState
    named: Mapping[str, nn.Parameter]
    first_function: int  # autograd's functions with lower numbers are the caller's

    def loss_now(self) -> torch.Tensor:
        """The loss with the parameters as they are, and everything random as in the check."""
        args, kwargs = detached((self.batch.args, dict(self.batch.kwargs)))
        output = self.model(*args, **kwargs)
        return self.loss(output, Batch(target=detached(self.batch.target)))[1]

    def loss_at(self, move: Mapping[str, torch.Tensor], times: float) -> float:
        self.saved.reset()
        with torch.no_grad():
            for name, delta in move.items():
                self.named[name].data.add_(delta.to(self.named[name].dtype), alpha=times)
        return _value(self.loss_now())


def try_steps(
    known: Optimizer,
    optimizers: Iterable[TorchOptimizer],
    trial: Trial,
    found: Mapping[str, torch.Tensor | None],
    output: Any,
    before: float,
) -> Optimizer:
    """Make the optimisers' own step on these gradients, and look at the loss along it.

    ``output``: of the model, detached; ``before``: its loss. The parameters are left changed: the
    trial's saved state puts them back. The optimisers are never touched: copies of them make the
    steps, without their hooks.
    """
    gradients = {name: g for name, g in found.items() if g is not None}
    if not any(group.held for group in known.groups):
        return replace(known, no_step_because="it holds none of the model's parameters")
    if not all(bool(torch.isfinite(_dense(g)).all()) for g in gradients.values()):
        return replace(known, no_step_because="gradients are not finite")
    trial.saved.reset()
    target = detached(trial.batch.target)
    known = replace(known, constant=constant_loss(trial.loss, output, target))
    from_penalty = penalties(trial.model, trial.loss.loss_fn, output, target, trial.named)
    trial.saved.reset()
    try:
        copies = [_copy(o, trial.named) for o in optimizers]
        with _without_global_hooks():
            move, updates = _step(copies, known, gradients, from_penalty, trial.named)
    except _SkippedError as reason:
        return replace(known, no_step_because=str(reason))
    if not any(update.moved for update in updates):
        known = replace(known, stuck=_is_stuck(optimizers, gradients, trial))
    slope = sum(_dot(gradients[n], delta) for n, delta in move.items() if n in gradients)
    measured = replace(known, updates=updates, before=before, slope=slope)
    try:
        return _along(measured, trial, copies, move)
    except Exception as error:  # the model or the loss may refuse what the step made of it
        because = f"the model or its loss raised {type(error).__name__} after the step: {error}"
        return replace(measured, no_loss_because=because)


class _SkippedError(Exception):
    """The step cannot be made; the text says why."""


def _copy(optimizer: TorchOptimizer, named: Mapping[str, nn.Parameter]) -> TorchOptimizer:
    """An optimiser over the same parameters with a state of its own, without hooks.

    Of its parameters only the model's: others may have gradients of the caller's.
    """
    required = inspect.signature(type(optimizer).step).parameters.get("closure")
    if required is not None and required.default is inspect.Parameter.empty:
        raise _SkippedError(
            f"{type(optimizer).__name__} runs the model itself, through a closure: its step is not "
            "tried"
        )
    ours = {id(p) for p in named.values()}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    clone = object.__new__(type(optimizer))
    memo: dict[int, Any] = {id(p): p for p in (*every, *named.values())}
    memo[id(optimizer)] = clone
    own = {k: v for k, v in vars(optimizer).items() if k not in _LEFT_OUT and not _is_hook(k)}
    try:
        clone.__dict__.update(copy.deepcopy(own, memo))
    except Exception as error:
        raise _SkippedError(
            f"the state of {type(optimizer).__name__} could not be copied "
            f"({type(error).__name__}: {error})"
        ) from error
    for name in vars(optimizer):
        if _is_hook(name):
            clone.__dict__[name] = OrderedDict()
    for group in clone.param_groups:
        group["params"] = [p for p in group["params"] if id(p) in ours]
        # The same step, without what only a differentiated or a recorded step needs.
        for name in ("differentiable", "capturable"):
            if group.get(name):
                group[name] = False
    if clone.defaults.get("differentiable"):
        clone.defaults["differentiable"] = False
    clone.param_groups[:] = [group for group in clone.param_groups if group["params"]]
    return clone


# A scheduler or a wrapper puts its own step there, which counts and calls the original's.
_LEFT_OUT = frozenset(("step", "grad_scale", "found_inf", "_step_count", "_opt_called"))


def _is_hook(name: str) -> bool:
    return name.startswith("_optimizer_") and name.endswith("_hooks")


@contextlib.contextmanager
def _without_global_hooks() -> Iterator[None]:
    """Context without the hooks that run at every optimiser's step."""
    names = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    hooks = [h for name in names if (h := getattr(torch_optimizer, name, None))]
    before = [dict(h) for h in hooks]
    for h in hooks:
        h.clear()
    try:
        yield
    finally:
        for h, items in zip(hooks, before, strict=True):
            h.update(items)


def _step(
    copies: list[TorchOptimizer],
    known: Optimizer,
    gradients: Mapping[str, torch.Tensor],
    from_penalty: Mapping[str, torch.Tensor],
    named: Mapping[str, nn.Parameter],
) -> tuple[dict[str, torch.Tensor], tuple[Update, ...]]:
    """Make the step; how far it moved each parameter, and numbers about that."""
    held = {name: group for group in known.groups for name in group.held}
    old = {name: named[name].detach().clone() for name in held}
    for name, gradient in gradients.items():
        named[name].grad = gradient.detach().clone()  # an optimiser may change it
    _make_step(copies)
    move: dict[str, torch.Tensor] = {}
    updates = []
    with torch.no_grad():
        for name, values in old.items():
            p, g = named[name], gradients.get(name)
            # In float32 at least: a difference in bfloat16 would be rounded a second time.
            wide = torch.promote_types(p.dtype, torch.float32)
            delta = p.detach().to(wide) - values.to(wide)
            if g is None and not bool(delta.any()):
                continue
            move[name] = delta
            graded = (_dense(g) != 0) if g is not None else torch.ones_like(delta, dtype=torch.bool)
            rest, pull = _parts(held[name], values.to(wide), from_penalty.get(name))
            updates.append(
                Update(
                    name,
                    int(graded.sum()),
                    int((graded & (delta != 0)).sum()),
                    0.0 if g is None else _norm(g),
                    _norm(delta),
                    _norm(values),
                    0.0 if g is None else _norm(_dense(g) - from_penalty.get(name, 0.0)),
                    _norm(rest),
                    _norm(pull),
                    _norm(delta - pull),
                )
            )
    return move, tuple(updates)


def _is_stuck(
    optimizers: Iterable[TorchOptimizer], gradients: Mapping[str, torch.Tensor], trial: Trial
) -> bool:
    """Whether nothing moves even at a rate a million times as high."""
    trial.saved.reset()
    copies = [_copy(o, trial.named) for o in optimizers]
    for group in (group for one in copies for group in one.param_groups):
        group["lr"] = group.get("lr", 0.0) * 1e6
    old = [(p, p.detach().clone()) for one in copies for g in one.param_groups for p in g["params"]]
    for name, gradient in gradients.items():
        trial.named[name].grad = gradient.detach().clone()
    with _without_global_hooks():
        _make_step(copies)
    moved = any(not torch.equal(p.detach(), values) for p, values in old)
    trial.saved.reset()
    return not moved


def _parts(
    group: Group, values: torch.Tensor, penalty: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the gradient what does not come through the output; of the update the weight decay."""
    rest = torch.zeros_like(values) if penalty is None else penalty.to(values.dtype)
    decay = group.weight_decay if math.isfinite(group.weight_decay) else 0.0
    if group.decoupled:
        return rest, values * (-decay * group.lr if math.isfinite(group.lr) else 0.0)
    return rest + decay * values, torch.zeros_like(values)


def _make_step(copies: Iterable[TorchOptimizer]) -> None:
    for one in copies:
        try:
            one.step()
        except Exception as error:
            raise _SkippedError(
                f"the step of {type(one).__name__} raised {type(error).__name__}: {error}"
            ) from error


def _along(
    known: Optimizer,
    trial: Trial,
    copies: list[TorchOptimizer],
    move: Mapping[str, torch.Tensor],
) -> Optimizer:
    """The loss after the step, and then farther along it or, if it rose, less far."""
    trial.saved.start()
    parameters = [p for p in trial.named.values() if p.requires_grad]
    value = trial.loss_now()
    noise = 8 * torch.finfo(value.dtype).eps * abs(known.before)
    losses, again = {1.0: _value(value)}, []
    if not losses[1.0] > known.before + noise:
        del value
        for times in FAR if math.isfinite(losses[1.0]) else ():
            losses[times] = trial.loss_at(move, times)
            if not losses[times] <= known.before + noise:
                break
    elif losses[1.0] < math.inf:
        for _ in range(AGAIN):
            with without_other_gradients(value, parameters, trial.first_function) as is_foreign:
                torch.autograd.backward(value, retain_graph=is_foreign)
            del value
            with _without_global_hooks():
                _make_step(copies)
            trial.saved.start()
            value = trial.loss_now()
            again.append(_value(value))
            if not math.isfinite(again[-1]):
                break
        del value
    if not losses[1.0] <= known.before + noise:
        for times in NEAR:
            losses[times] = trial.loss_at(move, times)
            if losses[times] <= known.before:
                break
    return replace(known, noise=noise, losses=tuple(sorted(losses.items())), again=tuple(again))


def _value(loss: torch.Tensor) -> float:
    return float(loss.detach())


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.layout == torch.strided else x.to_dense()


def _norm(x: torch.Tensor) -> float:
    x = _dense(x.detach())
    wide = torch.promote_types(x.dtype, torch.float32)
    return float(torch.linalg.vector_norm(x.to(wide)))


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    a = _dense(a.detach())
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    # In float64: the slope is compared with differences of the loss.
    return float((a.to(torch.float64) * b.to(torch.float64)).sum())
