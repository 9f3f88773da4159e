"""The package's, the cache and the runtime directory, and how what is cached becomes complete.

What is in the cache is complete or absent: it is made in a temporary directory beside its
final place, under a lock, flushed, and renamed.  A killed download or build leaves only a
temporary directory, which the next one to hold the lock removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pyvmm.errors import HostError

PACKAGE: Final = Path(__file__).resolve().parents[1]
LONGEST_SOCKET: Final = 107  # bytes of a path.  Source: unix(7), sun_path less its final NUL
BUILT: Final = {"guests", "programs"}  # directories of the package that `make guests` fills


def missing_part(error: OSError) -> HostError | None:
    """Return the error to show where ``error`` is about a file of pyvmm's own, else None."""
    try:
        name = Path(os.fsdecode(error.filename)).resolve().relative_to(PACKAGE)
    except (TypeError, ValueError):  # no name, or outside the package
        return None
    from_clone = name.parts[0] in BUILT and (PACKAGE.parent / "Makefile").exists()
    return HostError(
        f"pyvmm's installation at {PACKAGE} lacks {name}: {error.strerror}"
        if error.errno == errno.ENOENT
        else f"cannot read {name} of pyvmm's installation at {PACKAGE}: {error.strerror}",
        hint="make guests" if from_clone else "install pyvmm again",
    )


def cache_dir(*below: str) -> Path:
    """What can be made again: packages, tools, kernels, saved hosts (XDG_CACHE_HOME/pyvmm).

    Raises:
        HostError: the directory cannot be made.
    """
    return _made(_cache_path().joinpath(*below))


def size_on_disk(path: Path) -> int:
    """Bytes a directory takes on disk; what is removed meanwhile does not count."""
    total = 0
    for file in path.rglob("*"):
        with suppress(OSError):
            total += file.lstat().st_blocks * 512
    return total


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
            _rmtree(left)
    except OSError as error:
        raise HostError(f"cannot remove {cache}: {error.strerror}") from error
    return cache


def runtime_dir(*below: str) -> Path:
    """Sockets and locks of what runs: XDG_RUNTIME_DIR/pyvmm, else /tmp/pyvmm-UID (0700).

    Raises:
        HostError: it cannot be made, belongs to somebody else, or was open to others, who laid
            something into it.
    """
    base = _xdg("XDG_RUNTIME_DIR")
    made = _private(base / "pyvmm" if base and base.is_dir() else _tmp_runtime_dir())
    return _private(made.joinpath(*below)) if below else made


def _cache_path() -> Path:
    return (_xdg("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvmm"


def _xdg(variable: str) -> Path | None:
    """The directory a variable names; a relative one does not count, as XDG has it."""
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


def _tmp_runtime_dir() -> Path:
    return Path("/tmp") / f"pyvmm-{os.getuid()}"


def _made(path: Path, mode: int = 0o777) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise HostError(f"cannot make {path}: {error.strerror}") from error
    return path


def _private(path: Path) -> Path:
    """A directory of this user alone, made so where it is not.

    One of ours that is open to others may come from a copy of the file system that lost its modes;
    it is closed to them, and good if there is nothing of theirs in it.
    """
    _made(path, 0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:  # a link, a file, somebody else's
        raise _not_ours(path) from error
    try:
        status = os.fstat(fd)
        if status.st_uid != os.getuid():
            raise _not_ours(path)
        if status.st_mode & 0o077:
            os.fchmod(fd, 0o700)
            _refuse_gifts(path, fd, status)
    finally:
        os.close(fd)
    return path


def _refuse_gifts(path: Path, fd: int, was: os.stat_result) -> None:
    """Refuse what others could lay into a directory that was open: none can now, or ever again."""
    if not was.st_mode & 0o022:
        return
    for directory, names, files, at in os.fwalk(dir_fd=fd):
        for name in (*names, *files):
            if os.lstat(name, dir_fd=at).st_uid != was.st_uid:
                os.fchmod(fd, stat.S_IMODE(was.st_mode))  # as found: the next one is to see it too
                raise HostError(
                    f"{path} was open to others, and {path / directory / name} is not yours",
                    hint=f"remove {path}, or set XDG_RUNTIME_DIR to a directory of your own",
                )


def _not_ours(path: Path) -> HostError:
    return HostError(
        f"{path} is not a directory of yours alone",
        hint="remove it, or set XDG_RUNTIME_DIR to a directory of your own",
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made when absent), waiting for whoever has it.

    Its directory is there: made here, a runtime directory that was just removed would be open.
    """
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
        HostError: the cache cannot be written (no space, no permission), or something that
            ``build`` reads is missing.
    """
    if path.is_dir():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / f".{path.name}.lock"):
            if not path.is_dir():
                _make(path, build)
    except OSError as error:
        raise missing_part(error) or _cannot_fill(path, error) from error
    return path


def _cannot_fill(path: Path, error: OSError) -> HostError:
    """Return the error to show: of the cache, or of the other file that ``error`` names."""
    if isinstance(error.filename, str):
        about = Path(error.filename)
        ours = {path.parent, _cache_path()}
        if about not in path.parents and not ours & {about, *about.parents}:
            return HostError(f"cannot fill the cache at {path}: {about}: {error.strerror}")
    return HostError(
        f"cannot fill the cache at {path}: {error.strerror or error}",
        hint="free some space there, or set XDG_CACHE_HOME to another directory"
        if error.errno == errno.ENOSPC
        else "set XDG_CACHE_HOME to another directory",
    )


def _make(path: Path, build: Callable[[Path], None]) -> None:
    """Build beside the final place and rename; the caller holds the lock."""
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        _rmtree(stale, ignore_errors=True)
    import tempfile  # late: it takes much along

    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    try:
        build(made)
        _flush(made)
        made.chmod(0o755)
        made.rename(path)
    finally:
        _rmtree(made, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Have the file system holding ``directory`` on disk, so that a rename means complete."""
    os.sync()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rmtree(path: Path, *, ignore_errors: bool = False) -> None:
    import shutil  # late: it takes every compressor along

    if ignore_errors:
        shutil.rmtree(path, ignore_errors=True)
    else:
        shutil.rmtree(path)
