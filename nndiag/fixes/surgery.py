"""Layers exchanged and inserted in a model that exists, everything else about it kept.

Names and values of all other parameters and buffers stay, so that a state dict of before loads
(``strict=False`` where something was added). So do hooks and modes; what is new takes the dtype,
the device and the mode of what it stands beside.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import torch
from torch import nn

from nndiag.batch import batches, describe, detached
from nndiag.capture.untouched import untouched
from nndiag.errors import FixError, did_you_mean

BEFORE, AFTER = "norm_before", "norm_after"


def swap(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` in the place of the module called ``name``, wherever that is registered.

    A module that is shared by several places is exchanged once, for the same new one. Its hooks go
    over to the new one.

    Raises:
        FixError: no module has that name; it is the model itself; it has parameters or buffers,
            which would be lost (their optimiser and their name in checkpoints with them); or
            ``new`` is no module, holds the place that it is for, or has hooks where the old one
            has some, too.
    """
    old = _named(model, name)
    owned = _owned(old)
    if owned:
        raise FixError(
            f"swap: {name} ({type(old).__name__}) owns {', '.join(owned[:4])}, which would be lost."
            " Only modules without parameters and buffers can be exchanged, such as activations."
        )
    _check(name, new, [parent for parent, _ in _places(model, old)])
    if _hooked(old) and _hooked(new):
        raise FixError(
            f"swap: {name} ({type(old).__name__}) has hooks, which the new module takes over, but "
            "that has hooks of its own. Register those afterwards."
        )
    _put(model, old, new)


def insert_before(model: nn.Module, name: str, new: nn.Module) -> None:
    """Let ``new`` work on what the module called ``name`` reads.

    In front of a module without parameters and buffers the two become an ``nn.Sequential``. A layer
    keeps its place, its class and the names of its parameters: ``new`` becomes its child
    ``norm_before``, called by a hook on the first argument. Where a module is registered, or
    called, at several places, ``new`` is at all of them.

    Hooks that are there already go on seeing what comes from the layer before (forward pre-hooks)
    and what goes to the next one (forward hooks).

    Raises:
        FixError: no module has that name; it is the model itself; it holds other modules, as it
            does after such an insertion; something is there already; or ``new`` is no module.
    """
    _insert(model, name, new, BEFORE)


def insert_after(model: nn.Module, name: str, new: nn.Module) -> None:
    """Let ``new`` work on the tensor that the module called ``name`` gives.

    Otherwise as `insert_before`; the child is ``norm_after``.
    """
    _insert(model, name, new, AFTER)


def _insert(model: nn.Module, name: str, new: nn.Module, key: str) -> None:
    here = _named(model, name)
    _check(name, new, [here, *(parent for parent, _ in _places(model, here))])
    if hasattr(here, key):
        raise FixError(f"insert: {name} ({type(here).__name__}) has a {key} already.")
    inside = [n for n, _ in here.named_children() if n not in ("parametrizations", BEFORE, AFTER)]
    if inside or isinstance(here, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        # It may call all of its children, as nn.Sequential does: one more would run twice.
        raise FixError(
            f"insert: {name} ({type(here).__name__}) holds other modules. Insert at one of them: "
            f"{', '.join(f'{name}.{n}' for n in inside) or 'there is none yet'}."
        )
    if not _owned(here):
        _put(model, here, nn.Sequential(new, here) if key == BEFORE else nn.Sequential(here, new))
        return
    _match(model, here, new)
    here.add_module(key, new)
    if key == BEFORE:
        here.register_forward_pre_hook(_read_normalized, with_kwargs=True)
    else:
        here.register_forward_hook(_give_normalized, prepend=True)


def _read_normalized(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (layer.norm_before(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: layer.norm_before(kwargs[first])}


def _give_normalized(layer: Any, args: tuple[Any, ...], output: Any) -> Any:
    return layer.norm_after(output)


def recalibrate_(model: nn.Module, batch: Any) -> None:
    """Running statistics of all normalisation layers that run, estimated again from ``batch``.

    Cumulative averages over the batches of a stream (Ioffe & Szegedy 2015, algorithm 2, lines
    10-11: the expectation over training batches), in one forward pass each. Layers normalise as in
    training; dropout is off. Modes, momentum, gradients, and the global random generators are as
    before, and on an error so are the running statistics.

    Args:
        batch: what a DataLoader yields, or a DataLoader, as for :func:`nndiag.check`.

    Raises:
        FixError: no layer of the model keeps running statistics.
        BatchError: the batch does not fit the model.
    """
    norms: list[Any] = [
        m
        for m in model.modules()
        if isinstance(getattr(m, "running_mean", None), torch.Tensor)
        and hasattr(m, "reset_running_stats")  # a frozen BatchNorm of torchvision has none
    ]
    if not norms:
        raise FixError(
            f"recalibrate_: no layer of {type(model).__name__} keeps running statistics."
        )
    modes = [(m, m.training) for m in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    statistics = [(b, b.clone()) for norm in norms for b in norm.buffers(recurse=False)]
    seen: Counter[nn.Module] = Counter()

    def average(norm: Any, args: tuple[Any, ...]) -> None:
        # momentum=None means a cumulative average in BatchNorm, but none at all in InstanceNorm.
        if not seen[norm]:
            norm.reset_running_stats()
        seen[norm] += 1
        norm.momentum = 1 / seen[norm]

    hooks = [norm.register_forward_pre_hook(average) for norm in norms]
    try:
        for module, _ in modes:
            module.training = module in norms
        with untouched(None), torch.no_grad():
            for one in batches(batch, model):
                model(*detached(one.args), **detached(dict(one.kwargs)))
    except BaseException:
        for buffer, before in statistics:
            buffer.copy_(before)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
        for norm, momentum in momenta:
            norm.momentum = momentum


# -- places ----------------------------------------------------------------------------------------


def _named(model: nn.Module, name: str) -> nn.Module:
    if name == "":
        raise FixError("the model itself cannot be exchanged: assign a new one to your variable.")
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [n for n, _ in model.named_modules(remove_duplicate=False) if n]
        raise FixError(
            f"no module of {type(model).__name__} is called {name!r}."
            f"{did_you_mean(str(name), known)}"
        ) from None


def _check(name: str, new: nn.Module, holders: list[nn.Module]) -> None:
    if not isinstance(new, nn.Module):
        got = f"the class {new.__name__}" if isinstance(new, type) else describe(new)
        raise FixError(f"the new module must be an instance of torch.nn.Module, but is {got}.")
    if set(holders) & set(new.modules()):
        raise FixError(f"the new module ({type(new).__name__}) holds the place of {name} itself.")


def _places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where it is registered: the parents and its names in them."""
    parents = list(model.modules())
    return [(p, key) for p in parents for key, child in p._modules.items() if child is module]


def _owned(module: nn.Module) -> list[str]:
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    places = _places(model, old)
    _match(model, old, new)
    if _hooked(old):
        # Exchanged and not copied, so that their handles still remove them.
        for hooks in HOOKS:
            vars(old)[hooks], vars(new)[hooks] = vars(new)[hooks], vars(old)[hooks]
    for parent, key in places:
        parent._modules[key] = new
        if "activation_relu_or_gelu" in vars(parent):
            # By this number nn.TransformerEncoderLayer's fast path knows what activation to use.
            vars(parent)["activation_relu_or_gelu"] = 0


HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def _hooked(module: nn.Module) -> bool:
    return any(vars(module)[hooks] for hooks in HOOKS)


def _match(model: nn.Module, beside: nn.Module, new: nn.Module) -> None:
    """``new`` on the device, in the dtype and in the mode of what it stands beside.

    That is its own parameters, or those that are registered next before it: parts of a model may be
    on different devices.
    """
    before = itertools.takewhile(lambda m: m is not beside, model.modules())
    earlier = [p for m in before for p in m.parameters(recurse=False)]
    for p in (*beside.parameters(), *reversed(earlier), *model.parameters()):
        if p.is_floating_point() and not p.is_meta:
            new.to(device=p.device, dtype=p.dtype)
            break
    new.train(beside.training)
