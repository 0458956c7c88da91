"""Load the user's objects by name: ``package.module:attr`` and ``file.py:attr``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nndiag.errors import TargetError, did_you_mean

__all__ = ["load"]


def load(target: str, *, is_function: bool = False) -> Any:
    """The object that ``package.module:attr`` or ``file.py:attr`` names.

    A class or a function without required arguments is called, and its result returned. With
    ``is_function`` (a loss, an optimiser), a function with required arguments is returned as it is,
    and so is an optimiser's class.

    Raises:
        TargetError: it cannot be found, or the user's code raised.
    """
    place, colon, attribute = target.rpartition(":")
    if not colon or not place or not attribute:
        raise TargetError(
            f"{target!r} does not name an object. Write package.module:attr or file.py:attr, "
            "for example net.py:build_model."
        )
    _on_path(Path.cwd())
    is_file = place.endswith(".py") or "/" in place or os.sep in place
    named: Any = _file(place, target) if is_file else _module(place, target)
    for part in attribute.split("."):
        try:
            named = getattr(named, part)
        except AttributeError:
            names = [name for name in dir(named) if not name.startswith("_")]
            raise TargetError(
                f"{target}: {_name_of(named)} has no {part!r}.{did_you_mean(part, names)} "
                f"It has: {_some(_own(named, names))}."
            ) from None
    is_factory = inspect.isclass(named) or inspect.isroutine(named)
    if not is_factory and not isinstance(named, functools.partial):
        return named
    missing = _required(named)
    if is_function and missing and (not inspect.isclass(named) or missing == ["params"]):
        return named
    if missing:
        raise TargetError(
            f"{target} needs arguments ({', '.join(missing)}), but is called without any. "
            "Name a function without arguments that builds the object, or the object itself."
        )
    try:
        return named()
    except (Exception, SystemExit) as error:
        raise TargetError(_raised(f"{target} raised when it was called", error)) from error


def _file(place: str, target: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TargetError(f"{target}: there is no file {place}.{did_you_mean(path.name, near)}")
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module  # the model and its batch often live in one file: run it once
    _on_path(path.parent)
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"{target}: {place} is not a Python file. Write file.py:attr.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as import does: pickle and dataclasses look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = ""
        if isinstance(error, ImportError) and "relative import" in str(error):
            hint = " It belongs to a package: write package.module:attr instead."
        raise TargetError(_raised(f"{place} raised while it was run", error) + hint) from error
    return module


def _module(place: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        # Otherwise the module exists, and something that it imports does not.
        if absent and f"{place}.".startswith(f"{absent}."):
            near = [info.name for info in pkgutil.iter_modules([str(Path.cwd())])]
            raise TargetError(
                f"{target}: there is no module {absent!r}.{did_you_mean(place, near)} It was "
                "looked for in the working directory and among the installed packages. To name a "
                "file, write file.py:attr."
            ) from None
        raise TargetError(_raised(f"{place} raised while it was imported", error)) from error


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _required(factory: Any) -> list[str]:
    """The required arguments; none for functions written in C, which have no signature."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return []
    return [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _raised(what: str, error: BaseException) -> str:
    """What the user's code raised, and the last line of the user's code in the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _is_foreign(f.filename)]
    at = f"\n  at {own[-1].filename}:{own[-1].lineno}, in {own[-1].name}" if own else ""
    message = "".join(traceback.format_exception_only(error)).strip()
    return f"{what}:\n  " + message.replace("\n", "\n  ") + at


def _is_foreign(file: str) -> bool:
    paths = sysconfig.get_paths()
    foreign = (paths["stdlib"], paths["purelib"], paths["platlib"], str(Path(__file__).parent))
    return file.startswith(("<", *(f"{folder}{os.sep}" for folder in foreign)))


def _name_of(named: Any) -> str:
    return str(getattr(named, "__name__", type(named).__name__))


def _own(named: Any, names: list[str]) -> list[str]:
    """The names that a module defines itself, without what it imports."""
    if not isinstance(named, ModuleType):
        return names
    return [
        name
        for name in names
        if getattr(getattr(named, name), "__module__", named.__name__) == named.__name__
        and not isinstance(getattr(named, name), ModuleType)
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "nothing"
