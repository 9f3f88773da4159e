"""The lines of a guest's terminals: pseudo-terminals, and the ways to them.

On a machine of its own, pyvmm makes the ptys. In an emulated host, OUTER_VARIABLE names those that
the pyvmm outside has made, and for each the socket of a process that has descriptors to hand over
which lead there.
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
HANDOVER_S: Final = 30.0  # until an emulated host has started the process that hands over
HANDOVER_PAUSE_S: Final = 0.02


class Line:
    """One terminal: where it is found, and the descriptors that lead there."""

    def __init__(self, path: str, reader: int, writer: int, carrier: Carrier | None = None) -> None:
        self.path = path
        self.reader = reader
        self.output = Output(writer)
        self.records = Records()
        self._writer = writer
        self._carrier = carrier
        os.set_blocking(writer, False)  # so that progress shows by the byte, not by the block

    def close(self) -> None:
        """Let what was printed go out, unless its reader takes nothing for GRACE_S."""
        if self._carrier is not None:  # it knows its reader, and when to give up on it
            self._carrier.end()
            done = self.output.close()
        else:
            before = -1
            while not (done := self.output.close(GRACE_S)) and self.output.written > before:
                before = self.output.written
        if done:  # else a thread still writes there
            for fd in {self.reader, self._writer}:
                os.close(fd)

    def split(self, data: bytes) -> tuple[bytes, list[Key]]:
        """All that is typed is the guest's: no key of these terminals is for pyvmm."""
        return self.records.feed(data), []


def make_line(number: int, undo: ExitStack) -> Line:
    """The line of a terminal; ``undo`` gets the way back.

    Raises:
        HostError: there is no pseudo-terminal left, or the way out of the emulated host fails.
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
    """A terminal on a new pty of this machine."""
    pty = Pty()
    guest, ours = socket.socketpair()
    carrier = undo.enter_context(Carrier(pty, guest))
    fd = ours.detach()
    return Line(pty.path, fd, fd, carrier)


def _outer_line(path: str, name: str, undo: ExitStack) -> Line:
    """A terminal outside the emulated host, by the descriptors that lead there."""
    connection = undo.enter_context(socket.socket(socket.AF_UNIX))
    deadline = time.monotonic() + HANDOVER_S
    try:
        while not _connects(connection, name) and time.monotonic() < deadline:
            time.sleep(HANDOVER_PAUSE_S)
        _, fds, _, _ = socket.recv_fds(connection, 1, 2)
        reader, writer = fds
    except (OSError, ValueError) as error:
        raise HostError(f"no way from the emulated host to {path}: {error}") from error
    return Line(path, reader, writer)


def _connects(connection: socket.socket, name: str) -> bool:
    """Whether somebody listens there yet."""
    try:
        connection.connect("\0" + name)
    except ConnectionRefusedError:
        return False
    return True
