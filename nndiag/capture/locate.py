"""Where in the user's source a call was made."""

from __future__ import annotations

import functools
import os
import sys
from types import CodeType, FrameType

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep
_PACKAGE = os.path.dirname(_HERE.rstrip(os.sep)) + os.sep
_ENTRY = os.path.join(_PACKAGE, "api.py")


@functools.lru_cache(maxsize=4096)
def _kind(code: CodeType) -> str:
    name = code.co_filename
    if name == _ENTRY:
        return "entry"
    if name.startswith((_TORCH, _HERE, "<")) or os.path.dirname(name) + os.sep == _PACKAGE and (
        os.path.basename(name) in ("batch.py", "measure.py")
    ):
        return "skip"
    return "user"


def location(depth: int = 1) -> str | None:
    """``file:line`` of the innermost frame outside torch and nndiag, up to ``nndiag.check``.

    The file is relative to the working directory where it lies under it. None where there is no
    such frame: the layers of a root ``nn.Sequential`` are called by torch alone.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        kind = _kind(frame.f_code)
        if kind == "user":
            return f"{_relative(frame.f_code.co_filename)}:{frame.f_lineno}"
        if kind == "entry":
            return None
        frame = frame.f_back
    return None


@functools.lru_cache(maxsize=1024)
def _short(path: str, folder: str) -> str:
    inside = path.startswith(folder + os.sep)
    return os.path.relpath(path, folder).replace(os.sep, "/") if inside else path


def _relative(path: str) -> str:
    return _short(os.path.abspath(path), os.getcwd())
