"""Files of the user's that are complete or as they were before."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from pyvmm.errors import UsageError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, or as it was; what is no file is written to.

    Raises: UsageError, where it cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    try:
        if target.exists() and not target.is_file():  # /dev/stdout, a pipe
            target.write_bytes(data)
            return
        beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            _write_through(beside, data)
            beside.replace(target)
            _flush_directory(target.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _write_through(path: Path, data: bytes) -> None:
    # Made, never found: in /tmp anybody may have laid a link to a file of the user's.
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    """Have the new name on disk, where the file system can do that."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
