"""Writing files so that a failure leaves what was there before."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from nndiag.errors import OutputError

__all__ = ["free", "write"]


def write(texts: Mapping[Path, str | bytes]) -> None:
    """Write all of these files or none: each beside its place first, then all moved there.

    Raises:
        OutputError: one of them cannot be written.
    """
    waiting: list[tuple[Path, Path]] = []
    path = Path()
    try:
        try:
            for path, text in texts.items():
                # A lone surrogate (a name that came from broken bytes) has no UTF-8.
                data = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
                place = Path(os.path.realpath(path))
                if place.is_dir():
                    raise IsADirectoryError("it is a folder; name a file in it")
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists() and not place.is_file():
                    place.write_bytes(data)  # a pipe or a device: nothing there to keep
                    continue
                # Not tempfile: its files are private, and a report should be as readable as the
                # user's umask says.
                beside = place.with_name(f".nndiag-{uuid.uuid4().hex}.tmp")
                waiting.append((beside, place))
                beside.write_bytes(data)
                if place.exists():
                    shutil.copymode(place, beside)
            for beside, path in waiting:
                os.replace(beside, path)
        finally:
            for beside, _ in waiting:
                with contextlib.suppress(OSError):
                    beside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a path that holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path} could not be written: {reason}. What was there before is "
            "still there. Choose a place that can be written to."
        ) from error


def free(paths: Iterable[Path], force: bool) -> None:
    """That nothing of the user's is there already, unless ``force``.

    Raises:
        OutputError: something is.
    """
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise OutputError(
            f"{', '.join(map(str, there))} exists already and may be worth keeping. Nothing was "
            "written. Choose another place or name, or say force (--force) to overwrite it."
        )
