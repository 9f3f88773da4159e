"""Files of the user's that are complete or as they were before."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from pyvmm.errors import HostError, UsageError, VmmError

# What a disk says that has no room, or none for this user or this process, or is broken.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
USUAL = 0o666  # less the user's umask
PRIVATE = 0o600  # for what holds a guest's secrets


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, or as it was; what is no file is written to.

    Raises: UsageError or HostError, where it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_bytes(data)
            return
    except OSError as error:
        raise cannot_write(path, error) from error
    with replacing(path) as fd:
        write_all(fd, data)


@contextlib.contextmanager
def replacing(path: Path, mode: int = USUAL) -> Iterator[int]:
    """The descriptor of a file beside ``path``, which takes its place when the block has ended.

    What a killed writer has left beside the same path is removed first; what another one is at
    work on is not, and the last to end has the name.  An OSError in the block is told of as one
    of writing the file; after any error the old file is there as it was.

    Raises: UsageError or HostError, where the file cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    try:
        if target.exists() and not target.is_file():
            raise UsageError(f"{path}: cannot be written: it is there, and not a regular file")
        _remove_debris(target)
        beside, fd = _make_beside(target, mode)
        try:
            yield fd
            os.fsync(fd)
            beside.replace(target)
            _flush_directory(target.parent)
        finally:
            beside.unlink(missing_ok=True)
            os.close(fd)  # and with it the lock
    except OSError as error:
        raise cannot_write(path, error) from error


def write_all(fd: int, data: bytes | memoryview, offset: int = 0) -> None:
    """Write everything at an offset of a file, however little the kernel takes at a time."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            # Released here: an error's traceback keeps frames alive, and guest RAM that a frame
            # holds a view of cannot be unmapped.
            with view[done:] as rest:
                done += os.pwrite(fd, rest, offset + done)


def cannot_write(path: Path, error: OSError) -> VmmError:
    """What a failed write comes to: the disk's fault, or the path's."""
    message = f"{path}: cannot be written: {error.strerror}"
    if error.errno in FULL:
        return HostError(message, hint="free some space there, or write to another disk")
    return UsageError(message)


def _make_beside(target: Path, mode: int) -> tuple[Path, int]:
    """A new file beside ``target``, locked as being worked on, until it is closed."""
    while True:
        beside = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
        # Made, never found: in /tmp anybody may have laid a link to a file of the user's.
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with contextlib.suppress(OSError):  # a file system without locks: nobody takes it there
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:  # else somebody took it for debris before the lock was there
            return beside, fd
        os.close(fd)


def _remove_debris(target: Path) -> None:
    """Remove what killed writers left: files beside ``target`` that nobody holds a lock on.

    Locks do not cross into or out of an emulated host: a writer over there can lose its file
    here, and says so; no file that is complete is ever touched.
    """
    for found in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):  # gone already, not the user's: it stays
            fd = os.open(found, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.unlink()
            finally:
                os.close(fd)


def _flush_directory(path: Path) -> None:
    """Have the new name on disk, where the file system can do that."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
