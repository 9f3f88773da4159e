"""The sockets of running VMs: one with each VM's name, in the runtime directory (0700).

A VM holds a lock beside its socket while it lives, so a free lock means a dead VM. A stored process
ID would not show that, because the kernel reuses IDs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvmm.base.closing import Closing
from pyvmm.base.dirs import LONGEST_SOCKET, runtime_dir, try_lock
from pyvmm.errors import HostError, UsageError

VMS: Final = "vms"  # below the runtime directory
BACKLOG: Final = 16
TIMEOUT_S: Final = 0.5  # for a lock; `running` holds one for a moment


class Claim(Closing):
    """A VM's name and control socket; a context manager that releases both.

    Raises:
        UsageError: a VM with that name runs, or the name is too long for a socket.
        HostError: another file is in the way, or the socket cannot be made.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _socket_path(name)
        self._lock = _take(self.path.with_suffix(".lock"))
        if self._lock < 0:
            raise UsageError(
                f"a VM called {name} is running already",
                hint="choose another `name`; `pyvmm list` shows the VMs",
            )
        try:
            self.listener = _listen(self.path)
        except BaseException:
            self._unlock()
            raise

    def close(self) -> None:
        """Remove the socket and release the name; idempotent."""
        if self._lock >= 0:
            self.path.unlink(missing_ok=True)
            self.listener.close()
            self._unlock()

    def _unlock(self) -> None:
        self.path.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1


def running() -> Iterator[Path]:
    """Yield the sockets of running VMs, by name; remove those of dead VMs."""
    for path in sorted(runtime_dir(VMS).glob("*.sock")):
        try:
            lock = _try(path.with_suffix(".lock"))
        except HostError:  # no lock file: not a VM of pyvmm
            continue
        if lock is None:
            yield path
            continue
        with contextlib.suppress(OSError, HostError):
            remove_stale(path)
        path.with_suffix(".lock").unlink(missing_ok=True)
        os.close(lock)


def _socket_path(name: str) -> Path:
    path = runtime_dir(VMS) / f"{name}.sock"
    longest = LONGEST_SOCKET - len(os.fsencode(path)) + len(os.fsencode(name))
    if len(os.fsencode(name)) > longest:
        raise UsageError(
            f"`name`={name}: too long for the path of a socket: {longest} bytes fit",
            hint="use a shorter name, or set XDG_RUNTIME_DIR to a directory with a shorter path",
        )
    return path


def _take(path: Path) -> int:
    """Lock a VM's name and return the descriptor, or -1 if another VM has it."""
    deadline = time.monotonic() + TIMEOUT_S
    while (lock := _try(path)) is None:
        if time.monotonic() > deadline:
            return -1
        time.sleep(0.01)
    return lock


def _try(path: Path) -> int | None:
    """Lock a file, and check that a former owner has not just removed it."""
    try:
        while (lock := try_lock(path)) is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
            os.close(lock)
    except OSError as error:
        raise HostError(f"cannot lock {path}: {error.strerror}") from error
    return None


def _listen(path: Path) -> socket.socket:
    """Make a listening socket at ``path``; the caller holds the lock."""
    fresh = path.with_suffix(".new")
    for left in (path, fresh):
        remove_stale(left)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fsencode(fresh))
        fresh.chmod(0o600)
        listener.listen(BACKLOG)
        fresh.rename(path)
    except OSError as error:
        listener.close()
        raise HostError(f"cannot make the control socket {path}: {error.strerror}") from error
    return listener


def remove_stale(path: Path) -> None:
    """Remove a dead VM's socket; raise an error for any other file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path} is in the way: it is not a socket", hint="remove it")
    path.unlink()
