"""The place in the user's source where a call was made."""

from __future__ import annotations

import functools
import os
import sys
from types import CodeType, FrameType
from typing import Literal

import torch

__all__ = ["Kind", "location", "raised_at"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PACKAGE = os.path.dirname(_HERE.rstrip(os.sep)) + os.sep
# Where a check enters the model or the loss: frames above these did not make the call.
_ENTRIES = (_HERE + "watch.py", _PACKAGE + "api.py", _PACKAGE + "loss.py")
# Not the whole package: its demo holds models of its own.
_OURS = (_HERE, _PACKAGE + "batch.py", _PACKAGE + "measure.py", _PACKAGE + "fixes" + os.sep)


Kind = Literal["entry", "skip", "user"]

# By id, since hashing a code object is slow; the value keeps the code alive.
_kinds: dict[int, tuple[CodeType, Kind]] = {}


def _kind(code: CodeType) -> Kind:
    known = _kinds.get(id(code))
    if known is None:
        if len(_kinds) > 4096:
            _kinds.clear()
        known = _kinds[id(code)] = code, _kind_of_file(code.co_filename)
    return known[1]


@functools.lru_cache(maxsize=1024)
def _kind_of_file(name: str) -> Kind:
    if name in _ENTRIES:
        return "entry"
    return "skip" if name.startswith((_TORCH, *_OURS, "<")) else "user"


def location() -> str | None:
    """``file:line`` of the innermost frame outside torch and nndiag, up to the check.

    The file is relative to the working directory where it lies under it. None where there is no
    such frame: the layers of a root ``nn.Sequential`` are called by torch alone.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        kind = _kind(frame.f_code)
        if kind == "user":
            return f"{_relative(frame.f_code.co_filename, os.getcwd())}:{frame.f_lineno}"
        if kind == "entry":
            return None
        frame = frame.f_back
    return None


def raised_at(error: BaseException) -> str | None:
    """``file:line`` of the innermost of the user's frames that an exception came through."""
    place, trace = None, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if _kind(code) == "user":
            place = f"{_relative(code.co_filename, os.getcwd())}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


@functools.lru_cache(maxsize=1024)
def _relative(path: str, folder: str) -> str:
    path = os.path.abspath(os.path.join(folder, path))
    inside = path.startswith(folder.rstrip(os.sep) + os.sep)
    return os.path.relpath(path, folder).replace(os.sep, "/") if inside else path
