"""The mark of a user's own snapshots: an HMAC with a key that no other user has.

The key is a file in the user's state directory (XDG_STATE_HOME/pyvmm), made by the first save.  An
emulated host sees it through the shared file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import state_dir, state_path
from pyvmm.base.files import write_all
from pyvmm.errors import HostError

KEY: Final = "snapshot-key"
KEY_BYTES: Final = 32
PURPOSE: Final = b"pyvmm snapshot mark\n"  # the key marks nothing else


def mark_of(key: bytes, data: bytes) -> str:
    """Return the mark of data, in hexadecimal."""
    return hmac.new(key, PURPOSE + data, hashlib.sha256).hexdigest()


def key_path() -> Path:
    """Return the path of this user's key, which may be missing."""
    return state_path() / KEY


def own_key() -> bytes | None:
    """Return this user's key, or None if no save has made one.

    Raises: HostError, if others may know it, or it cannot be read.
    """
    path = key_path()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        key = os.read(fd, KEY_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(fd)
    secret = status.st_uid == os.getuid() and not status.st_mode & 0o077
    if not secret or len(key) != KEY_BYTES:
        raise HostError(
            f"{path} is not a key of {KEY_BYTES} bytes that only you can read",
            hint=f"rm {path}: a restore of your older snapshots then needs `trust`",
        )
    return key


def made_key() -> bytes:
    """Return this user's key, and make it if there is none.

    Raises: HostError, if it cannot be made or read.
    """
    if (key := own_key()) is not None:
        return key
    path = state_dir() / KEY
    beside = path.with_name(f".{KEY}.{os.urandom(4).hex()}")
    try:
        _write(beside, os.urandom(KEY_BYTES))
        with contextlib.suppress(FileExistsError):  # another save was faster: its key stays
            os.link(beside, path)
        beside.unlink()
    except OSError as error:
        raise HostError(f"cannot make {path}: {error.strerror}") from error
    if (key := own_key()) is None:
        raise HostError(f"{path} has just been removed")
    return key


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
