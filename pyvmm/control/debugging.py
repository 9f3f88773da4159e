"""A debugger's way to a running VM: its control socket, or the listener that `run` makes for gdb.

``python3 -m pyvmm.control.debugging NAME`` carries standard input and output to the VM with that
name, ``@NAME`` to the abstract socket with that name. Clients outside an emulated host use it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyvmm.base.closing import Closing
from pyvmm.base.dirs import LONGEST_SOCKET
from pyvmm.base.loop import Loop
from pyvmm.control.client import ask_on, connect
from pyvmm.control.sockets import remove_stale, running
from pyvmm.control.wire import is_trusted
from pyvmm.errors import EXIT_OK, HostError, UsageError, VmmError

CHUNK: Final = 64 << 10
BACKLOG: Final = 4
LOOPBACK: Final = "127.0.0.1"
START_S: Final = 120.0  # for a VM to start, in a busy emulated host
LARGEST_PORT: Final = 0xFFFF
SUFFIX: Final = ".gdb"  # of a VM's default socket, beside its control socket
OUTER_VARIABLE: Final = "PYVMM_GDB_SOCKET"  # inside: the abstract socket to listen at


class DebugListener(Closing):
    """A listening socket for debuggers; a context manager that closes it.

    ``place`` is a TCP port of the loopback, the path of a Unix socket that only this user can open,
    or an abstract socket's name after @. Make it before the process is confined.

    Raises: UsageError or HostError, if it cannot be made.
    """

    def __init__(self, place: str) -> None:
        self.path: Path | None = None
        if place.isascii() and place.isdigit():
            self.socket = self._tcp(int(place))
        elif place.startswith("@"):
            self.socket = self._unix("\0" + place[1:], place)
        else:
            self.path = Path(place).absolute()
            self.socket = self._at_path(self.path)
        self.socket.setblocking(False)

    @property
    def address(self) -> str:
        """The argument of gdb's `target remote`."""
        if self.path is not None:
            return str(self.path)
        if self.socket.family == socket.AF_INET:
            return f"{LOOPBACK}:{self.socket.getsockname()[1]}"
        return ""

    def close(self) -> None:
        """Close the socket, and remove its path where this process still may; idempotent."""
        if self.socket.fileno() >= 0:
            if self.path is not None:
                with contextlib.suppress(OSError):
                    self.path.unlink()
            self.socket.close()

    def accept(self) -> socket.socket | None:
        """Accept a debugger; return None if it has gone, or is another user's."""
        try:
            connection, _ = self.socket.accept()
        except OSError:
            return None
        if connection.family == socket.AF_UNIX and not is_trusted(connection):
            connection.close()
            return None
        return connection

    def serve(self, loop: Loop, serve: Callable[[socket.socket], None]) -> None:
        """Give each debugger that connects to a function, in a loop's thread."""

        def accept() -> None:
            if (connection := self.accept()) is not None:
                serve(connection)

        loop.watch(self.socket.fileno(), accept)

    def _tcp(self, port: int) -> socket.socket:
        if port > LARGEST_PORT:
            raise UsageError(f"`gdb`={port}: a port is 0 to {LARGEST_PORT}")
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        return _listening(made, (LOOPBACK, port), f"{LOOPBACK}:{port}")

    def _unix(self, address: str, shown: str) -> socket.socket:
        return _listening(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), address, shown)

    def _at_path(self, path: Path) -> socket.socket:
        if len(os.fsencode(path)) > LONGEST_SOCKET:
            raise UsageError(
                f"`gdb`={path}: too long for a socket's path: {LONGEST_SOCKET} bytes fit"
            )
        remove_stale(path)
        mask = os.umask(0o177)
        try:
            return self._unix(str(path), str(path))
        finally:
            os.umask(mask)


def _listening(made: socket.socket, address: object, shown: str) -> socket.socket:
    try:
        made.bind(address)  # type: ignore[arg-type]  # a path or a pair, as the family wants
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise HostError(f"cannot listen at {shown} for a debugger: {error.strerror}") from error
    return made


def dial(name: str) -> socket.socket:
    """Connect to a VM of this machine as a debugger; the VM stops.

    ``name`` is a VM's. After @ it is an abstract socket's: this waits for the socket.

    Raises: VmmError.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        if name.startswith("@"):
            _await(connection, "\0" + name[1:])
        else:
            path = next((path for path in running() if path.stem == name), None)
            if path is None:
                raise UsageError(f"no VM called {name} is running")
            connect(connection, path)
            if not is_trusted(connection):
                raise HostError(f"{path} belongs to another user", hint="remove it")
            reply = ask_on(connection, path, {"do": "gdb"})
            if not reply["ok"]:
                raise VmmError(reply["error"], hint=reply["hint"])
    except BaseException:
        connection.close()
        raise
    connection.settimeout(None)
    return connection


def _await(connection: socket.socket, address: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            connection.connect(address)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise HostError(f"the VM accepts no debugger: {error.strerror}") from error
            time.sleep(0.1)


def carry(connection: socket.socket, given: int, taken: int) -> None:
    """Carry bytes between a connection and two descriptors until one end closes."""
    ends = {given: connection.fileno(), connection.fileno(): taken}
    poll = select.poll()
    for fd in ends:
        poll.register(fd, select.POLLIN)
    with contextlib.suppress(OSError):
        while True:
            for fd, _ in poll.poll():
                data = os.read(fd, CHUNK)
                if not data:
                    return
                while data:
                    data = data[os.write(ends[fd], data) :]


def main() -> int:
    """Carry standard input and output to a VM."""
    try:
        with dial(sys.argv[1]) as connection:
            carry(connection, 0, 1)
    except VmmError as error:
        sys.stderr.write(f"pyvmm: {error}\n")
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
