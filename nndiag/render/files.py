"""Write files so that a failure keeps the old ones."""

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
    """Write all files or none: each to a temporary file beside its path, then all are moved.

    Raises:
        OutputError: a file cannot be written.
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
                    raise IsADirectoryError("it is a folder; give the path of a file in it")
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists() and not place.is_file():
                    place.write_bytes(data)  # a pipe or a device has no old content to keep
                    continue
                # Not tempfile, whose files only the user can read: a report follows the umask.
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
            f"{path} could not be written: {reason}. Old files are unchanged. "
            "Choose a path that can be written to."
        ) from error


def free(paths: Iterable[Path], force: bool) -> None:
    """Check that none of the files exists, unless ``force``.

    Raises:
        OutputError: one exists.
    """
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        raise OutputError(
            f"{', '.join(map(str, existing))} already exists. Nothing was written. Choose another "
            "folder or name, or overwrite it with force=True (--force)."
        )
