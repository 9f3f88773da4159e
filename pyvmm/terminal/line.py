"""The lines of a guest's terminals: a pseudo-terminal each, and the descriptors that reach it.

Outside an emulated host, pyvmm makes the ptys. In an emulated host, OUTER_VARIABLE names the ptys
that the pyvmm outside has made. For each it names the socket of a process that passes descriptors
connected to that pty.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import ExitStack
from typing import Final

from pyvmm.errors import HostError
from pyvmm.terminal.pty import GRACE_S, Carrier, Pty, Records
from pyvmm.terminal.stdio import Key, Output

OUTER_VARIABLE: Final = "PYVMM_OUTER_TTYS"  # JSON: number -> [path, name of an abstract socket]
HANDOVER_S: Final = 30.0  # until an emulated host has started the process that passes descriptors
HANDOVER_PAUSE_S: Final = 0.02


class Line:
    """One terminal: its path, and the descriptors connected to it."""

    def __init__(self, path: str, reader: int, writer: int, carrier: Carrier | None = None) -> None:
        self.path = path
        self.reader = reader
        self.output = Output(writer)
        self.records = Records()
        self._writer = writer
        self._carrier = carrier
        os.set_blocking(writer, False)  # so that Output.written counts bytes, not blocks

    def close(self) -> None:
        """Write the pending output, but give up after GRACE_S in which the reader reads nothing."""
        if self._carrier is not None:  # the carrier itself gives up on a reader
            self._carrier.end()
            done = self.output.drain(None)
        else:
            before = -1
            while not (done := self.output.drain(GRACE_S)) and self.output.written > before:
                before = self.output.written
        if done:  # otherwise a thread still writes to it
            self.output.close_direct()
            for fd in {self.reader, self._writer}:
                os.close(fd)

    @property
    def is_own(self) -> bool:
        """Whether the pty is this process's."""
        return self._carrier is not None

    def start(self) -> None:
        """Start to carry bytes, unless that has begun."""
        if self._carrier is not None:
            self._carrier.start()

    def write(self, data: bytes) -> None:
        """Take output of the guest; block if the reader stalls."""
        self.start()
        self.output.write(data)

    def split(self, data: bytes) -> tuple[bytes, list[Key]]:
        """Return all input for the guest, and no keys: these terminals have no keys for pyvmm."""
        return self.records.feed(data), []


def make_line(number: int, undo: ExitStack) -> Line:
    """Make the line of a terminal; ``undo`` gets the cleanup.

    Raises:
        HostError: no pseudo-terminal is left, or the emulated host cannot reach one outside.
    """
    outer = json.loads(os.environ.get(OUTER_VARIABLE, "{}"))
    if str(number) in outer:
        path, name = outer[str(number)]
        line = _outer_line(path, name, undo)
    else:
        line = _own_line(undo)
    undo.callback(line.close)
    return line


def _own_line(undo: ExitStack) -> Line:
    """Make a terminal on a new pty of this machine."""
    pty = Pty()
    guest, ours = socket.socketpair()
    carrier = undo.enter_context(Carrier(pty, guest))
    fd = ours.detach()
    return Line(pty.path, fd, fd, carrier)


def _outer_line(path: str, name: str, undo: ExitStack) -> Line:
    """Make a terminal outside the emulated host, from descriptors connected to it."""
    connection = undo.enter_context(socket.socket(socket.AF_UNIX))
    deadline = time.monotonic() + HANDOVER_S
    try:
        while not _connects(connection, name) and time.monotonic() < deadline:
            time.sleep(HANDOVER_PAUSE_S)
        _, fds, _, _ = socket.recv_fds(connection, 1, 2)
        reader, writer = fds
    except (OSError, ValueError) as error:
        raise HostError(f"cannot reach {path} from the emulated host: {error}") from error
    return Line(path, reader, writer)


def _connects(connection: socket.socket, name: str) -> bool:
    """Return whether a process listens there yet."""
    try:
        connection.connect("\0" + name)
    except ConnectionRefusedError:
        return False
    return True
