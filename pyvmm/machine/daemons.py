"""The processes that serve a machine's vhost-user devices.

Each belongs to one machine. It ends when its connection is closed, and is killed if pyvmm is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyvmm.base.records import Record
from pyvmm.config import Share
from pyvmm.errors import HostError, UsageError

# Where distributions put virtiofsd, which is not on PATH
DIRECTORIES: Final = ("/usr/libexec", "/usr/lib/virtiofsd", "/usr/lib")
PR_SET_PDEATHSIG: Final = 1  # Source: linux/prctl.h
END_S: Final = 5.0  # for a daemon whose connection is closed


class Daemon(Record):
    """A process, and the connection on which it speaks vhost-user."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    def close(self) -> None:
        """Close the connection, and wait for the end of the process.

        A confined VM may not send signals. The kernel kills a process that stays, with pyvmm.
        """
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)


def virtiofsd(asked: Share) -> Daemon:
    """Start virtiofsd for a shared directory.

    Its sandbox confines it to the directory, and its seccomp filter to the calls that it needs.

    Raises:
        UsageError: there is no such directory.
        HostError: there is no virtiofsd, or it cannot be executed.
    """
    if not asked.path.is_dir():
        raise UsageError(f"{asked}: there is no such directory")
    words = [
        "--shared-dir", str(asked.path), "--log-level", "error",
        "--sandbox", "namespace" if os.geteuid() else "chroot",
        *(["--readonly"] if asked.read_only else []),
    ]  # fmt: skip
    return _start([*_found(asked.program), *words])


def _found(program: Sequence[str]) -> list[str]:
    """Return the command with the program's path."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *DIRECTORIES))
    first = shutil.which(program[0], path=path)
    if first is None:
        raise HostError(
            f"there is no {program[0]}, which serves shared directories",
            hint="apt-get install virtiofsd, or set PYVMM_VIRTIOFSD to its command",
        )
    return [first, *program[1:]]


def _start(command: Sequence[str]) -> Daemon:
    """Start a daemon that accepts one connection on a socket that it inherits."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as directory, contextlib.ExitStack() as undo:
        place = str(Path(directory) / "socket")
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(place)
        listener.listen(1)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(place)
        fd = listener.fileno()
        try:
            process = subprocess.Popen(
                [*command, "--fd", str(fd)], pass_fds=[fd], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        except OSError as error:
            connection.close()
            raise HostError(f"cannot execute {command[0]}: {error.strerror}") from error
    return Daemon(process, connection)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
