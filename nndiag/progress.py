"""A progress bar on stderr for long runs. It disappears when the run ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display

__all__ = ["PACE", "PATIENCE", "Progress", "silenced"]

PATIENCE = 1.0
"""Seconds before the bar appears: a quick run ends first, so that no bar flickers."""

PACE = 0.1
"""Seconds between two updates of the bar."""

_silent: ContextVar[bool] = ContextVar("nndiag_silent", default=False)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """No progress inside, whatever the terminal."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


class Progress:
    """``with Progress("checking") as progress: progress.update(done, total, "encoder.3")``.

    ``update`` itself draws, after the first second. rich would draw from a thread, whose errors
    cannot be caught. If drawing fails, the bar is dropped and the run goes on.
    """

    def __init__(
        self,
        text: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text = text
        self._console = console
        self._clock = clock
        self._began = self._drawn = clock()
        self._display: Display | None = None
        self._off = _silent.get()

    def __enter__(self) -> Progress:
        self._began = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._off = True
        if self._display is not None:
            with contextlib.suppress(*_FAILURES):
                self._display.stop()

    def update(self, done: float | None = None, total: float | None = None, text: str = "") -> None:
        """Show how much is done, of how much; None where that is unknown."""
        now = self._clock()
        if self._off or now - self._began < PATIENCE or now - self._drawn < PACE:
            return
        self._drawn = now
        try:
            if self._display is None:
                self._start()
            if self._display is not None:
                described = f"{self._text} {text}".rstrip()
                self._display.update(
                    self._display.task_ids[0], completed=done, total=total, description=described
                )
                self._display.refresh()
        except _FAILURES:
            self._off = True

    def _start(self) -> None:
        from rich import get_console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Display

        console = self._console or _console()
        self._off = (
            not console.is_terminal
            or console.is_jupyter
            or console.is_dumb_terminal
            or _is_live(get_console())
        )
        if self._off:
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        # stdout is left alone: it may be a pipe that carries JSON.
        self._display = Display(
            *columns, console=console, transient=True, auto_refresh=False, redirect_stdout=False
        )
        self._display.add_task(self._text, total=None)
        self._display.start()


# A closed stderr, a lost terminal, another live display; on a broken pipe rich raises SystemExit.
_FAILURES = (Exception, SystemExit)


def _console() -> Console:
    from rich.console import Console

    class Stderr(Console):
        def on_broken_pipe(self) -> None:
            # rich's own method closes stdout and exits the program.
            self.quiet = True

    return Stderr(stderr=True)


def _is_live(console: Console) -> bool:
    # rich has no public way to ask this. Two live displays garble one screen, and the user's is
    # almost always on rich's global console.
    return bool(getattr(console, "_live_stack", None) or getattr(console, "_live", None))
