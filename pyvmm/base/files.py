"""Writing the user's files: a file is written completely, or stays unchanged."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pyvmm.base.closing import Closing
from pyvmm.errors import HostError, UsageError, VmmError

# The errors of a full or faulty disk.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
USUAL = 0o666  # the umask applies
PRIVATE = 0o600  # for files with a guest's memory


def write_whole(path: Path, data: bytes) -> None:
    """Write a file completely, or leave the old one; write directly to a device or pipe.

    Raises: UsageError or HostError, if it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_bytes(data)
            return
    except OSError as error:
        raise cannot_write(path, error) from error
    with replacing(path) as fd:
        write_all(fd, data)


class Replacement(Closing):
    """A new file beside ``path``, with the descriptor ``fd``; ``commit`` renames it to ``path``.

    Temporary files of killed writers beside the same path are removed first. If two writers run at
    once, the file of the later one stays. A context manager; without a commit it removes the file.
    ``commit`` calls ``finish`` first, which completes the file.

    Raises: UsageError or HostError, if the file cannot be written.
    """

    def __init__(
        self, path: Path, mode: int = USUAL, finish: Callable[[int], None] | None = None
    ) -> None:
        self.path = path
        self._finish = finish
        self._target = Path(os.path.realpath(path))  # a link stays a link
        try:
            if self._target.exists() and not self._target.is_file():
                raise UsageError(f"{path}: cannot be written: it is not a regular file")
            _remove_stale(self._target)
            self._beside, self.fd = _make_beside(self._target, mode)
        except OSError as error:
            raise cannot_write(path, error) from error

    def commit(self) -> None:
        """Flush the file to disk, and give it its name.

        Raises: UsageError or HostError.
        """
        if self._finish is not None:
            self._finish(self.fd)
        try:
            os.fsync(self.fd)
            self._beside.replace(self._target)
            _flush_directory(self._target.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file, and remove it if it has no name yet; idempotent."""
        if self.fd >= 0:
            self._beside.unlink(missing_ok=True)
            os.close(self.fd)  # also releases the lock
            self.fd = -1


@contextlib.contextmanager
def replacing(path: Path, mode: int = USUAL) -> Iterator[int]:
    """Yield the descriptor of a Replacement of ``path``, and commit it at the end.

    An OSError in the block is reported as a write error; after any error the old file is unchanged.

    Raises: UsageError or HostError, if the file cannot be written.
    """
    with Replacement(path, mode) as new:
        try:
            yield new.fd
        except OSError as error:
            raise cannot_write(path, error) from error
        new.commit()


def write_all(fd: int, data: bytes | memoryview, offset: int = 0) -> None:
    """Write all of ``data`` at an offset of a file."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            # Released here: an error's traceback keeps this frame alive, and guest RAM cannot be
            # unmapped while a frame has a view of it.
            with view[done:] as rest:
                done += os.pwrite(fd, rest, offset + done)


def cannot_write(path: Path, error: OSError) -> VmmError:
    """Return the error for a failed write: HostError for a full or faulty disk, else UsageError."""
    message = f"{path}: cannot be written: {error.strerror}"
    if error.errno in FULL:
        return HostError(message, hint="free some space there, or write to another disk")
    return UsageError(message)


def _make_beside(target: Path, mode: int) -> tuple[Path, int]:
    """Make a file beside ``target``, locked until it is closed."""
    while True:
        beside = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
        # O_EXCL: in /tmp another user may have made a link to a file of this user.
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:  # otherwise another writer has removed it before the lock
            return beside, fd
        os.close(fd)


def _remove_stale(target: Path) -> None:
    """Remove the unlocked temporary files beside ``target``, which killed writers left.

    An emulated host and this machine do not share locks. So a writer on the other side can lose its
    temporary file, and then reports an error. Complete files are never removed.
    """
    for found in _unlocked(target.parent, glob.escape(target.name)):
        with contextlib.suppress(OSError):  # gone
            found.unlink()


def left_beside(path: Path) -> list[Path]:
    """Return the temporary files of killed writers in a file's directory, whatever their names.

    They are not removed: a writer on the other side of an emulated host may still need them.
    """
    return list(_unlocked(Path(os.path.realpath(path)).parent, "*"))


def _unlocked(directory: Path, name: str) -> Iterator[Path]:
    """Yield the unlocked temporary files for that name, each with a lock while it is in use."""
    for found in sorted(directory.glob(f".{name}.{'[0-9a-f]' * 8}.tmp")):
        with contextlib.suppress(OSError):  # gone, locked, or another user's
            fd = os.open(found, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield found
            finally:
                os.close(fd)


def _flush_directory(path: Path) -> None:
    """Flush the new name to disk, if the file system can do that."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
