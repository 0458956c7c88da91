"""Leave the model, and the process around it, bitwise as they were."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.modules import module as torch_module

__all__ = ["SavedState", "Undo", "same_state", "seeded", "untouched"]

Undo = Callable[[], object]


class SavedState:
    """The state of modules and of the process, saved so that it can be restored any time."""

    def __init__(self, seed: int | None, *things: object) -> None:
        self._seed = seed
        self.reachable = _reachable(things)
        self._leaves = [t for t in self.reachable.tensors if t.is_leaf]
        self._generators = _generators()
        # Undone from the end: modules get their tensors back before the tensors get their
        # contents back, and nothing draws a random number after the generators are restored.
        self._undo: list[Undo] = [
            *(functools.partial(put, get()) for get, put, _ in self._generators),
            *(functools.partial(put, get()) for get, put in self.reachable.generators),
            *_save_settings(),
            *(_save_array(a) for a in self.reachable.arrays),
            _save_tensors(self.reachable.tensors),
            _save_containers(self.reachable.containers),
            *(_save_attributes(thing) for thing in self.reachable.objects),
            # Else FSDP would take its parameters for still gathered.
            *(thing.reshard for thing in self.reachable.objects if _is_sharded(thing)),
        ]
        self._data: list[Any] = []

    def start(self) -> None:
        """Clear all gradients and seed all random generators."""
        for tensor in self._leaves:
            tensor.grad = None
        self.reseed()

    def reseed(self, offset: int = 0) -> None:
        """Start all random generators from the seed, or so many seeds further.

        Without a seed they go on as they are.
        """
        if self._seed is not None:
            for _, _, seed in self._generators:
                seed(self._seed + offset)

    def random_states(self) -> list[Any]:
        """The states of the process's random generators, to be compared by :func:`same_state`."""
        return [get() for get, _, _ in self._generators]

    def restore(self) -> None:
        """Put everything back as it was saved."""
        torch.clear_autocast_cache()  # it holds parameters as they are now
        _run_all(reversed(self._undo))

    def reset(self) -> None:
        self.restore()
        self.start()

    @contextlib.contextmanager
    def drawing_data(self) -> Iterator[None]:
        """Context with random states of its own, so that resets do not make batches repeat."""
        for (_, put, _), state in zip(self._generators, self._data, strict=False):
            put(state)
        yield
        self._data = [get() for get, _, _ in self._generators]


@contextlib.contextmanager
def untouched(seed: int | None, *things: object) -> Iterator[SavedState]:
    """Context that leaves these modules and the process as they were, whatever happens inside.

    That is: parameters, buffers and other tensors that the modules hold, with their ``.grad``,
    ``requires_grad``, hooks and version counters; every module's attributes, in containers and
    plain objects too (training mode and hooks among them); the random generators of every device,
    Python and NumPy; autograd's and autocast's settings, the deterministic flags and the default
    dtype. Gradients start empty inside, and everything random starts from ``seed``.

    For a function among ``things``, the modules that it refers to are covered.
    """
    with ExitStack() as undo:
        saved = SavedState(seed, *things)
        undo.callback(saved.restore)
        for tensor in saved.reachable.tensors:
            undo.enter_context(_without_optimizer_steps(tensor))
        saved.start()
        yield saved


def same_state(a: Any, b: Any) -> bool:
    """Whether two states of a random generator are equal."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_state, a, b))
    return bool(np.array_equal(a, b))


# -- the state of a module --------------------------------------------------------------------


class _Reachable:
    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.containers: list[Any] = []
        self.objects: list[Any] = []
        self.arrays: list[np.ndarray] = []
        self.generators: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []


_CONTAINERS = (dict, list, set, deque)
_DEPTH = 4  # of containers and plain objects below a module


def _reachable(things: Iterable[object]) -> _Reachable:
    """All mutable state that the modules among ``things`` hold."""
    reachable = _Reachable()
    visited: set[int] = set()
    queue: deque[tuple[Any, int]] = deque((m, 0) for t in things for m in _modules(t))
    while queue:
        item, depth = queue.popleft()
        if id(item) in visited or depth > _DEPTH:
            continue
        visited.add(id(item))
        if isinstance(item, torch.Tensor):
            reachable.tensors.append(item)
            if item.is_leaf and item.grad is not None:
                queue.append((item.grad, depth))
        elif isinstance(item, nn.Module):
            reachable.objects.append(item)
            for value in vars(item).values():
                if value.__class__ in _OFTEN_EMPTY and not value:  # most of a module's dicts
                    reachable.containers.append(value)
                elif value.__class__ not in _ATOMS:
                    queue.append((value, 1))
            if isinstance(item, torch.jit.ScriptModule):
                queue += [(value, 1) for value in (*item.parameters(), *item.buffers())]
        elif isinstance(item, _CONTAINERS):
            reachable.containers.append(item)
            values = item.values() if isinstance(item, dict) else item
            queue += [(value, depth + 1) for value in values if value.__class__ not in _ATOMS]
        elif isinstance(item, np.ndarray):
            reachable.arrays.append(item)
        elif isinstance(item, tuple):
            queue += [(value, depth) for value in item if value.__class__ not in _ATOMS]
        elif (state := _generator_access(item)) is not None:
            reachable.generators.append(state)
        elif hasattr(item, "__dict__") and not _is_foreign(item):
            reachable.objects.append(item)
            queue += [(value, depth + 1) for value in vars(item).values()]
    return reachable


_ATOMS = frozenset((type(None), str, bytes, bool, int, float, complex, type))
_OFTEN_EMPTY = frozenset((dict, OrderedDict, set, list))


def _modules(thing: object) -> Iterator[nn.Module]:
    """A module; or, of a function, the modules it is a method of or refers to."""
    if isinstance(thing, nn.Module):
        yield thing
    elif isinstance(thing, functools.partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _modules(part)
    elif callable(thing):
        parts = [getattr(thing, "__self__", None)]
        parts += [_cell_content(cell) for cell in getattr(thing, "__closure__", None) or ()]
        names = getattr(getattr(thing, "__code__", None), "co_names", ())
        parts += [getattr(thing, "__globals__", {}).get(name) for name in names]
        yield from (part for part in parts if isinstance(part, nn.Module))


def _cell_content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


# Objects of the standard library are skipped, except types made to hold attributes.
_FOREIGN = sys.stdlib_module_names - {"types", "argparse", "collections"} | {"torch"}


def _is_foreign(thing: object) -> bool:
    home = type(thing).__module__.partition(".")[0]
    return isinstance(thing, (type, ModuleType)) or home in _FOREIGN


def _is_sharded(thing: object) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(thing).__mro__)


def _generator_access(thing: object) -> tuple[Callable[[], Any], Callable[[Any], object]] | None:
    """How to read and to set the state of a random generator that the model owns."""
    if isinstance(thing, torch.Generator):
        return thing.get_state, thing.set_state
    if isinstance(thing, np.random.Generator):
        bits = thing.bit_generator
        return lambda: bits.state, functools.partial(setattr, bits, "state")
    if isinstance(thing, np.random.RandomState):
        return thing.get_state, thing.set_state
    if isinstance(thing, random.Random):
        return thing.getstate, thing.setstate
    return None


def _save_tensors(tensors: Iterable[torch.Tensor]) -> Undo:
    undo = [_save_tensor(t) for t in tensors]

    def restore() -> None:
        with torch.no_grad():
            _run_all(reversed(undo))

    return restore


def _run_all(steps: Iterable[Undo]) -> None:
    """Take all steps, even if some fail; then raise the first failure."""
    failure: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _save_tensor(tensor: torch.Tensor) -> Undo:
    # The alias survives even if the model swaps the tensor's storage (``tensor.data = …``).
    alias, copy = tensor.detach(), tensor.detach().clone()
    leaf, requires_grad = tensor.is_leaf, tensor.requires_grad
    grad = tensor.grad if leaf else None
    hooks = dict(tensor._backward_hooks) if tensor._backward_hooks else None
    inference = tensor.is_inference()
    counter = None if inference else _unsafe_preserve_version_counter(tensor)

    def values() -> None:
        if not _same_storage(tensor, alias):
            tensor.data = alias
        if not _same_bits(tensor, copy):
            # Through .data, so that a graph the caller still holds stays valid.
            _write(tensor.data, copy)

    def restore() -> None:
        if counter is None:
            with torch.inference_mode():
                values()
        else:
            values()
            counter.__exit__()
        if leaf:
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            tensor.grad = grad
        now = tensor._backward_hooks
        if (now or hooks) and now is not None and dict(now) != hooks:
            now.clear()
            now.update(hooks or {})

    return restore


def _same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.layout != torch.strided or a.is_nested:
        return True
    return a.dtype == b.dtype and a.data_ptr() == b.data_ptr() and a.shape == b.shape


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all bits are equal; also False where comparing would cost more than writing."""
    if hasattr(a, "to_local"):  # a DTensor
        a, b = a.to_local(), b.to_local()  # type: ignore[attr-defined]
    kind = _BITS.get(a.element_size())
    if kind is None or a.layout != torch.strided or a.is_nested or a.is_quantized:
        return False
    if a.is_meta or a.device.type != "cpu":  # on an accelerator, writing is faster than comparing
        return a.is_meta
    return torch.equal(a.detach().view(kind), b.view(kind))


def _write(tensor: torch.Tensor, values: torch.Tensor) -> None:
    if tensor.layout == torch.strided and not tensor.is_nested:
        for axis, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[axis] > 1:  # an expanded axis cannot be written to
                tensor, values = tensor.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
    tensor.copy_(values)


@contextlib.contextmanager
def _without_optimizer_steps(tensor: torch.Tensor) -> Iterator[None]:
    """Context without the hooks by which an optimiser steps inside backward."""
    hooks = getattr(tensor, "_post_accumulate_grad_hooks", None)
    if not hooks:
        yield
        return
    before = dict(hooks)
    for key, hook in before.items():
        function = getattr(hook, "func", hook)
        if not getattr(function, "__module__", "").startswith("torch.distributed"):
            del hooks[key]
    try:
        yield
    finally:
        hooks.clear()
        hooks.update(before)


def _save_array(array: np.ndarray) -> Undo:
    copy = array.copy()

    def restore() -> None:
        if array.tobytes() != copy.tobytes():
            array[...] = copy

    return restore


def _save_containers(containers: Iterable[Any]) -> Undo:
    saved = [(c, _items(c) if c else None) for c in containers]

    def restore() -> None:
        for container, before in saved:
            if before is None:
                if container:
                    container.clear()
            elif not _same_items(_items(container), before):
                container.clear()
                if isinstance(container, (list, deque)):
                    container.extend(before)
                else:
                    container.update(before)

    return restore


def _items(container: Any) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _same_items(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x is y or (type(x) is tuple and len(x) == 2 and x[0] is y[0] and x[1] is y[1])
        for x, y in zip(a, b, strict=True)
    )


def _save_attributes(thing: Any) -> Undo:
    kind, before = type(thing), dict(vars(thing))
    script = isinstance(thing, torch.jit.ScriptModule)
    training = thing.training if script else None  # a script keeps it elsewhere

    def restore() -> None:
        if type(thing) is not kind:  # a lazy module changes its class
            thing.__class__ = kind
        state = vars(thing)
        if list(state) != list(before) or any(state[k] is not v for k, v in before.items()):
            state.clear()
            state.update(before)
        if script and thing.training != training:
            thing.training = training

    return restore


# -- the state of the process -----------------------------------------------------------------


def _save_settings() -> Iterator[Undo]:
    yield _save_setting(torch.is_grad_enabled, torch.set_grad_enabled)
    yield _save_setting(torch.get_default_dtype, torch.set_default_dtype)
    yield _save_setting(torch.get_num_threads, torch.set_num_threads)
    yield _save_setting(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1]),
    )
    yield _save_setting(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda v: torch.set_anomaly_enabled(*v),
    )
    for flag in ("enabled", "benchmark", "deterministic"):
        yield _save_setting(
            functools.partial(getattr, torch.backends.cudnn, flag),
            functools.partial(setattr, torch.backends.cudnn, flag),
        )
    yield _save_setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)
    for device in ("cpu", "cuda", "xpu"):
        if getattr(torch, device).is_available():
            yield _save_setting(
                functools.partial(torch.is_autocast_enabled, device),
                functools.partial(torch.set_autocast_enabled, device),
            )
            yield _save_setting(
                functools.partial(torch.get_autocast_dtype, device),
                functools.partial(torch.set_autocast_dtype, device),
            )
    for name, hooks in vars(torch_module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            yield _save_containers([hooks])


def _save_setting(get: Callable[[], Any], put: Callable[[Any], object]) -> Undo:
    before = get()

    def restore() -> None:
        if get() != before:
            put(before)

    return restore


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context in which every global random generator starts at ``seed``; restored afterwards."""
    before = [(put, get(), start) for get, put, start in _generators()]
    for *_, start in before:
        start(seed)
    try:
        yield
    finally:
        for put, state, _ in before:
            put(state)


_Generator = tuple[Callable[[], Any], Callable[[Any], object], Callable[[int], object]]


def _generators() -> list[_Generator]:
    """For every global random generator: functions that read, set and seed it."""
    generators: list[_Generator] = [
        (random.getstate, random.setstate, random.seed),
        (np.random.get_state, np.random.set_state, lambda seed: np.random.seed(seed % 2**32)),
        (
            torch.get_rng_state,
            torch.set_rng_state,
            # Not torch.manual_seed: it queues seeds for devices that are not in use.
            torch.default_generator.manual_seed,
        ),
    ]
    for device in (torch.cuda, torch.xpu):
        if device.is_available() and device.is_initialized():
            generators.append(
                (device.get_rng_state_all, device.set_rng_state_all, device.manual_seed_all)
            )
    if torch.backends.mps.is_available():
        generators.append((torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed))
    return generators
