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

__all__ = ["Kept", "Undo", "seeded", "untouched"]

Undo = Callable[[], object]


class Kept:
    """How everything was: to go back to in between, and at the end."""

    def __init__(self, seed: int | None, *things: object) -> None:
        self._seed = seed
        self.found = _reachable(things)
        self._leaves = [t for t in self.found.tensors if t.is_leaf]
        self._generators = _generators()
        # What is last here is undone first: modules get their tensors back before the tensors
        # get their contents back, and nothing draws a random number after the generators.
        self._undo: list[Undo] = [
            *(functools.partial(put, get()) for get, put, _ in self._generators),
            *(functools.partial(put, get()) for get, put in self.found.generators),
            *_settings(),
            *(_array(a) for a in self.found.arrays),
            _tensors(self.found.tensors),
            _containers(self.found.containers),
            *(_attributes(thing) for thing in self.found.objects),
            # FSDP would believe that its parameters are still gathered.
            *(thing.reshard for thing in self.found.objects if _is_sharded(thing)),
        ]
        self._data: list[Any] = []

    def start(self) -> None:
        """Gradients empty, and everything random at the seed."""
        for tensor in self._leaves:
            tensor.grad = None
        if self._seed is not None:
            for _, _, seed in self._generators:
                seed(self._seed)

    def restore(self) -> None:
        """Everything as it was."""
        torch.clear_autocast_cache()  # it holds parameters as they are now
        _all(reversed(self._undo))

    def reset(self) -> None:
        self.restore()
        self.start()

    @contextlib.contextmanager
    def drawing_data(self) -> Iterator[None]:
        """Random numbers for the data: resetting the model's must not make batches repeat."""
        for (_, put, _), state in zip(self._generators, self._data, strict=False):
            put(state)
        yield
        self._data = [get() for get, _, _ in self._generators]


@contextlib.contextmanager
def untouched(seed: int | None, *things: object) -> Iterator[Kept]:
    """Whatever happens inside, afterwards these modules and the process are as before.

    That is: parameters, buffers and other tensors that the modules hold, with their ``.grad``,
    ``requires_grad``, hooks and version counters; every module's attributes, in containers and
    plain objects too (training mode and hooks among them); the random generators of every device,
    Python and NumPy; autograd's and autocast's settings, the deterministic flags and the default
    dtype. Gradients start empty inside, and everything random starts from ``seed``.

    Of a function among ``things``, the modules that it refers to are meant.
    """
    with ExitStack() as undo:
        kept = Kept(seed, *things)
        undo.callback(kept.restore)
        for tensor in kept.found.tensors:
            undo.enter_context(_no_step(tensor))
        kept.start()
        yield kept


# -- what hangs on a module -------------------------------------------------------------------


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
    """All that the modules among ``things`` hold. Torch's own objects look after themselves."""
    found = _Reachable()
    seen: set[int] = set()
    todo: deque[tuple[Any, int]] = deque((m, 0) for t in things for m in _modules(t))
    while todo:
        thing, depth = todo.popleft()
        if id(thing) in seen or depth > _DEPTH:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found.tensors.append(thing)
            if thing.is_leaf and thing.grad is not None:
                todo.append((thing.grad, depth))
        elif isinstance(thing, nn.Module):
            found.objects.append(thing)
            for value in vars(thing).values():
                if value.__class__ in _EMPTY_MAYBE and not value:  # most of a module's dicts
                    found.containers.append(value)
                elif value.__class__ not in _ATOMS:
                    todo.append((value, 1))
            if isinstance(thing, torch.jit.ScriptModule):
                todo += [(value, 1) for value in (*thing.parameters(), *thing.buffers())]
        elif isinstance(thing, _CONTAINERS):
            found.containers.append(thing)
            values = thing.values() if isinstance(thing, dict) else thing
            todo += [(value, depth + 1) for value in values if value.__class__ not in _ATOMS]
        elif isinstance(thing, np.ndarray):
            found.arrays.append(thing)
        elif isinstance(thing, tuple):
            todo += [(value, depth) for value in thing if value.__class__ not in _ATOMS]
        elif (state := _own_state(thing)) is not None:
            found.generators.append(state)
        elif hasattr(thing, "__dict__") and not _foreign(thing):
            found.objects.append(thing)
            todo += [(value, depth + 1) for value in vars(thing).values()]
    return found


_ATOMS = frozenset((type(None), str, bytes, bool, int, float, complex, type))
_EMPTY_MAYBE = frozenset((dict, OrderedDict, set, list))


def _modules(thing: object) -> Iterator[nn.Module]:
    """A module; or, of a function, the modules it is a method of or refers to."""
    if isinstance(thing, nn.Module):
        yield thing
    elif isinstance(thing, functools.partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _modules(part)
    elif callable(thing):
        parts = [getattr(thing, "__self__", None)]
        parts += [_content(cell) for cell in getattr(thing, "__closure__", None) or ()]
        names = getattr(getattr(thing, "__code__", None), "co_names", ())
        parts += [getattr(thing, "__globals__", {}).get(name) for name in names]
        yield from (part for part in parts if isinstance(part, nn.Module))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


# Of the standard library, only what is there to hold other people's attributes.
_FOREIGN = sys.stdlib_module_names - {"types", "argparse", "collections"} | {"torch"}


def _foreign(thing: object) -> bool:
    home = type(thing).__module__.partition(".")[0]
    return isinstance(thing, (type, ModuleType)) or home in _FOREIGN


def _is_sharded(thing: object) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(thing).__mro__)


def _own_state(thing: object) -> tuple[Callable[[], Any], Callable[[Any], object]] | None:
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


def _tensors(tensors: Iterable[torch.Tensor]) -> Undo:
    undo = [_tensor(t) for t in tensors]

    def restore() -> None:
        with torch.no_grad():
            _all(reversed(undo))

    return restore


def _all(steps: Iterable[Undo]) -> None:
    """A step that fails keeps no other from being taken."""
    failure: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _tensor(tensor: torch.Tensor) -> Undo:
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
            _put(tensor.data, copy)

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
    """NaN is NaN and -0 is not 0; False, too, where bits cannot be compared without waiting."""
    if hasattr(a, "to_local"):  # a DTensor
        a, b = a.to_local(), b.to_local()  # type: ignore[attr-defined]
    kind = _BITS.get(a.element_size())
    if kind is None or a.layout != torch.strided or a.is_nested or a.is_quantized:
        return False
    if a.is_meta or a.device.type != "cpu":  # an accelerator is quicker to write than to ask
        return a.is_meta
    return torch.equal(a.detach().view(kind), b.view(kind))


def _put(tensor: torch.Tensor, values: torch.Tensor) -> None:
    if tensor.layout == torch.strided and not tensor.is_nested:
        for axis, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[axis] > 1:  # one cannot write to what is expanded
                tensor, values = tensor.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
    tensor.copy_(values)


@contextlib.contextmanager
def _no_step(tensor: torch.Tensor) -> Iterator[None]:
    """An optimiser that steps inside backward must not step because we look."""
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


def _array(array: np.ndarray) -> Undo:
    copy = array.copy()

    def restore() -> None:
        if array.tobytes() != copy.tobytes():
            array[...] = copy

    return restore


def _containers(containers: Iterable[Any]) -> Undo:
    kept = [(c, _items(c) if c else None) for c in containers]

    def restore() -> None:
        for container, before in kept:
            if before is None:
                if container:
                    container.clear()
            elif not _same(_items(container), before):
                container.clear()
                if isinstance(container, (list, deque)):
                    container.extend(before)
                else:
                    container.update(before)

    return restore


def _items(container: Any) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x is y or (type(x) is tuple and len(x) == 2 and x[0] is y[0] and x[1] is y[1])
        for x, y in zip(a, b, strict=True)
    )


def _attributes(thing: Any) -> Undo:
    kind, before = type(thing), dict(vars(thing))
    script = isinstance(thing, torch.jit.ScriptModule)
    training = thing.training if script else None  # a script keeps it elsewhere

    def restore() -> None:
        if type(thing) is not kind:  # a lazy module turns itself into another class
            thing.__class__ = kind
        state = vars(thing)
        if list(state) != list(before) or any(state[k] is not v for k, v in before.items()):
            state.clear()
            state.update(before)
        if script and thing.training != training:
            thing.training = training

    return restore


# -- what hangs on the process ----------------------------------------------------------------


def _settings() -> Iterator[Undo]:
    yield _setting(torch.is_grad_enabled, torch.set_grad_enabled)
    yield _setting(torch.get_default_dtype, torch.set_default_dtype)
    yield _setting(torch.get_num_threads, torch.set_num_threads)
    yield _setting(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1]),
    )
    yield _setting(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda v: torch.set_anomaly_enabled(*v),
    )
    for flag in ("enabled", "benchmark", "deterministic"):
        yield _setting(
            functools.partial(getattr, torch.backends.cudnn, flag),
            functools.partial(setattr, torch.backends.cudnn, flag),
        )
    yield _setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)
    for device in ("cpu", "cuda", "xpu"):
        if getattr(torch, device).is_available():
            yield _setting(
                functools.partial(torch.is_autocast_enabled, device),
                functools.partial(torch.set_autocast_enabled, device),
            )
            yield _setting(
                functools.partial(torch.get_autocast_dtype, device),
                functools.partial(torch.set_autocast_dtype, device),
            )
    for name, hooks in vars(torch_module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            yield _containers([hooks])


def _setting(get: Callable[[], Any], put: Callable[[Any], object]) -> Undo:
    before = get()

    def restore() -> None:
        if get() != before:
            put(before)

    return restore


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every global random generator at this seed inside, and where it was afterwards."""
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
    """Of every global random generator: how to read, to set and to seed it."""
    found: list[_Generator] = [
        (random.getstate, random.setstate, random.seed),
        (np.random.get_state, np.random.set_state, lambda seed: np.random.seed(seed % 2**32)),
        (
            torch.get_rng_state,
            torch.set_rng_state,
            # Not torch.manual_seed: it queues seeds for devices that nobody has started.
            torch.default_generator.manual_seed,
        ),
    ]
    for device in (torch.cuda, torch.xpu):
        if device.is_available() and device.is_initialized():
            found.append(
                (device.get_rng_state_all, device.set_rng_state_all, device.manual_seed_all)
            )
    if torch.backends.mps.is_available():
        found.append((torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed))
    return found
