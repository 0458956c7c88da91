"""Compiled modules run eagerly while they are watched."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

import torch

__all__ = ["eager"]


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Context in which compiled modules run eagerly: nothing is compiled, cached or recompiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with contextlib.ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        # The warning says that our hooks also fire for the compiled wrapper: that is intended.
        warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
        if hasattr(torch.compiler, "set_stance"):
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        else:  # torch 2.4 and 2.5: config.disable would mark what it skips as never to be compiled
            frames = sys.modules["torch._dynamo.eval_frame"]
            for name in ("set_eval_frame", "_maybe_set_eval_frame"):
                if hasattr(frames, name):
                    undo.callback(setattr, frames, name, getattr(frames, name))
                    setattr(frames, name, lambda callback: None)
        yield
