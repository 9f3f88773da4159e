"""The package's directory, the cache, the runtime directory, and filling the cache.

A directory in the cache is complete or absent. It is filled in a temporary directory beside its
final place, under a lock, flushed, and renamed. A killed download or build leaves a temporary
directory, which the next holder of the lock removes.
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
    """Return the error to show if ``error`` is about one of pyvmm's own files, else None."""
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
    """Return a directory of the cache (XDG_CACHE_HOME/pyvmm): packages, kernels, saved hosts.

    Raises:
        HostError: the directory cannot be made.
    """
    return _made(_cache_path().joinpath(*below))


def size_on_disk(path: Path) -> int:
    """Return the bytes that a directory takes on disk; files removed meanwhile count as 0."""
    total = 0
    for file in path.rglob("*"):
        with suppress(OSError):
            total += file.lstat().st_blocks * 512
    return total


def remove_cache() -> Path:
    """Remove the cache and return its path; it is renamed first, so that no part stays visible.

    Raises: HostError, if it cannot be removed.
    """
    cache = cache_dir()
    doomed = cache.with_name(f".{cache.name}.gone-{os.getpid()}")
    try:
        cache.rename(doomed)
        for left in cache.parent.glob(f".{cache.name}.gone-*"):  # and of interrupted removals
            _rmtree(left)
    except OSError as error:
        raise HostError(f"cannot remove {cache}: {error.strerror}") from error
    return cache


def runtime_dir(*below: str) -> Path:
    """Return the directory of sockets and locks: XDG_RUNTIME_DIR/pyvmm, else /tmp/pyvmm-UID.

    Raises:
        HostError: it cannot be made, belongs to another user, or contains another user's files.
    """
    base = _xdg("XDG_RUNTIME_DIR")
    made = _private(base / "pyvmm" if base and base.is_dir() else _tmp_runtime_dir())
    return _private(made.joinpath(*below)) if below else made


def state_path() -> Path:
    """Return the directory of pyvmm's permanent state (XDG_STATE_HOME/pyvmm)."""
    return state_home() / "pyvmm"


def state_home() -> Path:
    """Return the directory in which the user's programs keep their state."""
    return _xdg("XDG_STATE_HOME") or _home() / ".local" / "state"


def state_dir() -> Path:
    """Return state_path(), which only this user can access, and make it if it is missing.

    Raises: HostError, if it cannot be made, or belongs to another user.
    """
    return _private(state_path())


def _cache_path() -> Path:
    return (_xdg("XDG_CACHE_HOME") or _home() / ".cache") / "pyvmm"


def _home() -> Path:
    """Return the user's home directory: HOME if it is a path, else the password database's."""
    home = _xdg("HOME")
    if home is not None:
        return home
    import pwd  # imported lazily: rarely used

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError as error:
        raise HostError(
            f"user {os.getuid()} has no home directory, and HOME is not an absolute path",
            hint="set HOME, or XDG_CACHE_HOME, to a directory",
        ) from error


def _xdg(variable: str) -> Path | None:
    """Return the absolute path in a variable, else None: XDG ignores relative paths."""
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
    """Return a directory that only this user can access, and make it if it is missing.

    A copy of the file system may have lost the directory's mode: the mode is restored. The
    directory is refused if it then contains another user's files.
    """
    _made(path, 0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:  # a link or a file, or no permission
        raise _not_ours(path) from error
    try:
        status = os.fstat(fd)
        if status.st_uid != os.getuid():
            raise _not_ours(path)
        if status.st_mode & 0o077:
            os.fchmod(fd, 0o700)
            _refuse_foreign_files(path, fd, status)
    finally:
        os.close(fd)
    return path


def _refuse_foreign_files(path: Path, fd: int, was: os.stat_result) -> None:
    """Raise an error if a directory that others could write to contains their files."""
    if not was.st_mode & 0o022:
        return
    for directory, names, files, at in os.fwalk(dir_fd=fd):
        for name in (*names, *files):
            if os.lstat(name, dir_fd=at).st_uid != was.st_uid:
                os.fchmod(fd, stat.S_IMODE(was.st_mode))  # the next run must refuse it too
                raise HostError(
                    f"other users could write to {path}, and {path / directory / name} is not "
                    f"yours",
                    hint=f"remove {path}, or set XDG_RUNTIME_DIR to a directory of your own",
                )


def _not_ours(path: Path) -> HostError:
    return HostError(
        f"{path} is not a directory of yours alone",
        hint="remove it, or set XDG_RUNTIME_DIR to a directory of your own",
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` in the block; wait for it, and make the file if missing.

    The directory must exist: a runtime directory made here would be open to others.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def try_lock(path: Path) -> int | None:
    """Take an exclusive lock and return its descriptor, or None if another process has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def is_locked(path: Path) -> bool:
    """Return whether a process has the lock on ``path``."""
    lock = try_lock(path)
    if lock is not None:
        os.close(lock)
    return lock is None


def cached(path: Path, build: Callable[[Path], None]) -> Path:
    """Return the directory ``path``; ``build`` fills it if it is missing.

    Raises:
        HostError: the cache cannot be written, or a file that ``build`` reads is missing.
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
    """Return the error to show: about the cache, or about another file that ``error`` names."""
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
    """Fill a directory beside the final place and rename it; the caller holds the lock."""
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        _rmtree(stale, ignore_errors=True)
    import tempfile  # imported lazily: large

    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    try:
        build(made)
        _flush(made)
        made.chmod(0o755)
        made.rename(path)
    finally:
        _rmtree(made, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Flush the file system of ``directory``, so that a renamed directory is complete."""
    os.sync()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rmtree(path: Path, *, ignore_errors: bool = False) -> None:
    import shutil  # imported lazily: it imports every compressor

    shutil.rmtree(path, ignore_errors=ignore_errors)
