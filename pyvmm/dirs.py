"""The cache and runtime directories, and how something in the cache becomes complete.

What is in the cache is complete or absent: it is made in a temporary directory beside its
final place, under a lock, flushed, and renamed.  A killed download or build leaves only a
temporary directory, which the next one to hold the lock removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyvmm.errors import HostError


def cache_dir(*below: str) -> Path:
    """What can be made again: packages, tools, kernels, saved hosts (XDG_CACHE_HOME/pyvmm).

    Raises:
        HostError: the directory cannot be made.
    """
    base = _xdg("XDG_CACHE_HOME") or Path.home() / ".cache"
    return _made(base.joinpath("pyvmm", *below))


def remove_cache() -> Path:
    """Remove the cache, out of sight first, so that nothing in it is ever half there.

    Returns:
        Where it was.

    Raises:
        HostError: it cannot be removed.
    """
    cache = cache_dir()
    doomed = cache.with_name(f".{cache.name}.gone-{os.getpid()}")
    try:
        cache.rename(doomed)
        for left in cache.parent.glob(f".{cache.name}.gone-*"):  # and what was interrupted before
            shutil.rmtree(left)
    except OSError as error:
        raise HostError(f"cannot remove {cache}: {error.strerror}") from error
    return cache


def runtime_dir(*below: str) -> Path:
    """Sockets and locks of what runs: XDG_RUNTIME_DIR/pyvmm, else /tmp/pyvmm-UID (0700).

    Raises:
        HostError: it cannot be made, belongs to somebody else, or is open to others.
    """
    base = _xdg("XDG_RUNTIME_DIR")
    path = base / "pyvmm" if base and base.is_dir() else _tmp_runtime_dir()
    made = _made(path, private=True)
    return _made(made.joinpath(*below), private=True) if below else made


def _xdg(variable: str) -> Path | None:
    """The directory a variable names; a relative one does not count, as XDG has it."""
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


def _tmp_runtime_dir() -> Path:
    return Path("/tmp") / f"pyvmm-{os.getuid()}"


def _made(path: Path, *, private: bool = False) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
        status = path.lstat()
    except OSError as error:
        raise HostError(f"cannot make {path}: {error.strerror}") from error
    if private and (
        not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077
    ):
        raise HostError(
            f"{path} is not a directory of yours alone",
            hint="remove it, or set XDG_RUNTIME_DIR to a directory of your own",
        )
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made when absent), waiting for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def try_lock(path: Path) -> int | None:
    """Take an exclusive lock and return its descriptor, or None where somebody has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def cached(path: Path, build: Callable[[Path], None]) -> Path:
    """Return the directory ``path``, which ``build`` fills when it is not there yet.

    Raises:
        HostError: the cache cannot be written (no space, no permission).
    """
    if path.is_dir():
        return path
    try:
        with locked(path.parent / f".{path.name}.lock"):
            if not path.is_dir():
                _make(path, build)
    except OSError as error:
        raise HostError(
            f"cannot fill the cache at {path}: {error.strerror or error}",
            hint="free some space there, or set XDG_CACHE_HOME to another directory"
            if error.errno == errno.ENOSPC
            else "set XDG_CACHE_HOME to another directory",
        ) from error
    return path


def _make(path: Path, build: Callable[[Path], None]) -> None:
    """Build beside the final place and rename; the caller holds the lock."""
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    try:
        build(made)
        _flush(made)
        made.chmod(0o755)
        made.rename(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Have the file system holding ``directory`` on disk, so that a rename means complete."""
    os.sync()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
