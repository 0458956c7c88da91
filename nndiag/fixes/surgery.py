"""Replace and insert layers in an existing model, and leave everything else as it is.

Names and values of all other parameters and buffers stay, so that an older state dict still loads
(with ``strict=False`` if something was added). Hooks and modes stay, too. A new module gets the
dtype, device and mode of the module beside it.
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

__all__ = ["AFTER", "BEFORE", "HOOKS", "insert_after", "insert_before", "recalibrate_", "swap"]

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
    old = _module_called(model, name)
    tensors = _tensor_names(old)
    if tensors:
        raise FixError(
            f"swap: {name} ({type(old).__name__}) owns {', '.join(tensors[:4])}, which would be "
            "lost. Only modules without parameters and buffers can be exchanged, such as "
            "activations."
        )
    _check_new(name, new, [parent for parent, _ in _places(model, old)])
    if _has_hooks(old) and _has_hooks(new):
        raise FixError(
            f"swap: {name} ({type(old).__name__}) has hooks, which the new module takes over, but "
            "that has hooks of its own. Register those afterwards."
        )
    _replace(model, old, new)


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
    module = _module_called(model, name)
    _check_new(name, new, [module, *(parent for parent, _ in _places(model, module))])
    if hasattr(module, key):
        raise FixError(f"insert: {name} ({type(module).__name__}) has a {key} already.")
    children = [
        n for n, _ in module.named_children() if n not in ("parametrizations", BEFORE, AFTER)
    ]
    if children or isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        # It may call all of its children, as nn.Sequential does: one more would run twice.
        raise FixError(
            f"insert: {name} ({type(module).__name__}) holds other modules. Insert at one of them: "
            f"{', '.join(f'{name}.{n}' for n in children) or 'there is none yet'}."
        )
    if not _tensor_names(module):
        _replace(
            model,
            module,
            nn.Sequential(new, module) if key == BEFORE else nn.Sequential(module, new),
        )
        return
    _match_device_and_mode(model, module, new)
    module.add_module(key, new)
    if key == BEFORE:
        module.register_forward_pre_hook(_normalize_input, with_kwargs=True)
    else:
        module.register_forward_hook(_normalize_output, prepend=True)


def _normalize_input(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (layer.norm_before(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: layer.norm_before(kwargs[first])}


def _normalize_output(layer: Any, args: tuple[Any, ...], output: Any) -> Any:
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
    batches_seen: Counter[nn.Module] = Counter()

    def average(norm: Any, args: tuple[Any, ...]) -> None:
        # momentum=None means a cumulative average in BatchNorm, but none at all in InstanceNorm.
        if not batches_seen[norm]:
            norm.reset_running_stats()
        batches_seen[norm] += 1
        norm.momentum = 1 / batches_seen[norm]

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


def _module_called(model: nn.Module, name: str) -> nn.Module:
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


def _check_new(name: str, new: nn.Module, holders: list[nn.Module]) -> None:
    if not isinstance(new, nn.Module):
        got = f"the class {new.__name__}" if isinstance(new, type) else describe(new)
        raise FixError(f"the new module must be an instance of torch.nn.Module, but is {got}.")
    if set(holders) & set(new.modules()):
        raise FixError(f"the new module ({type(new).__name__}) holds the place of {name} itself.")


def _places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The places where a module is registered: its parents and its names in them."""
    parents = list(model.modules())
    return [(p, key) for p in parents for key, child in p._modules.items() if child is module]


def _tensor_names(module: nn.Module) -> list[str]:
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    places = _places(model, old)
    _match_device_and_mode(model, old, new)
    if _has_hooks(old):
        # Swapped and not copied, so that the users' handles can still remove them.
        for hooks in HOOKS:
            vars(old)[hooks], vars(new)[hooks] = vars(new)[hooks], vars(old)[hooks]
    for parent, key in places:
        parent._modules[key] = new
        if "activation_relu_or_gelu" in vars(parent):
            # nn.TransformerEncoderLayer's fast path reads its activation from this number.
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


def _has_hooks(module: nn.Module) -> bool:
    return any(vars(module)[hooks] for hooks in HOOKS)


def _match_device_and_mode(model: nn.Module, beside: nn.Module, new: nn.Module) -> None:
    """Give ``new`` the device, dtype and mode of the module beside it.

    Device and dtype are those of its parameters, or of the nearest parameters registered before it:
    parts of a model may be on different devices.
    """
    before = itertools.takewhile(lambda m: m is not beside, model.modules())
    earlier = [p for m in before for p in m.parameters(recurse=False)]
    for p in (*beside.parameters(), *reversed(earlier), *model.parameters()):
        if p.is_floating_point() and not p.is_meta:
            new.to(device=p.device, dtype=p.dtype)
            break
    new.train(beside.training)
