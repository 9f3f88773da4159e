"""A guest's terminals on pseudo-terminals of the machine its user sits at.

Terminal 0 is the guest's console, 1 to 3 are its other UARTs. On a machine of its own, pyvmm
makes the ptys. In an emulated host, OUTER_VARIABLE names those that the pyvmm outside has made,
and for each the socket of a process that has descriptors to hand over which lead there.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Final, Protocol

from pyvmm.closing import Closing
from pyvmm.console import Input, Key, Output
from pyvmm.errors import HostError
from pyvmm.loop import Loop
from pyvmm.ptys import GRACE_S, Carrier, Pty, Records

OUTER_VARIABLE: Final = "PYVMM_OUTER_TTYS"  # JSON: number -> [path, name of an abstract socket]
HANDOVER_S: Final = 30.0  # until an emulated host has started the process that hands over
HANDOVER_PAUSE_S: Final = 0.02


class Guest(Protocol):
    """What terminals need of a machine."""

    def send(self, data: bytes, terminal: int = 0) -> int:
        """Type; returns how many bytes there was room for."""

    def on_room(self, callback: Callable[[], None], terminal: int = 0) -> None:
        """Say what to call when there is room again."""

    def resize(self, columns: int, rows: int) -> None:
        """Tell the size of terminal 0."""


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


class Terminals(Closing):
    """The terminals of those numbers, from when they are made until closed; a context manager.

    Raises:
        HostError: there is no pseudo-terminal left, or the way out of the emulated host fails.
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        outer = json.loads(os.environ.get(OUTER_VARIABLE, "{}"))
        self._lines: dict[int, Line] = {}
        with ExitStack() as undo:
            for number in sorted(numbers):
                if str(number) in outer:
                    path, name = outer[str(number)]
                    line = _outer_line(path, name, undo)
                else:
                    line = _own_line(undo)
                undo.callback(line.close)
                self._lines[number] = line
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Hang up, when readers have what was printed; idempotent."""
        self._undo.close()

    @property
    def paths(self) -> Mapping[int, str]:
        """Where each is found, as /dev/pts/5."""
        return {number: line.path for number, line in self._lines.items()}

    @property
    def outputs(self) -> Mapping[int, Callable[[bytes], None]]:
        """What takes that which the guest prints on each; it waits for a reader that stalls."""
        return {number: line.output.write for number, line in self._lines.items()}

    def let_go(self, hurry: bool = True) -> None:
        """Let nobody wait for a reader while vCPUs are to stop; ``hurry`` False: they run again."""
        for line in self._lines.values():
            line.output.let_go(hurry)

    def attach(self, guest: Guest, loop: Loop) -> Callable[[], None]:
        """Carry what is typed to a guest, in that loop, until what this returns is called."""
        undo = ExitStack()
        for number, line in self._lines.items():
            send = functools.partial(guest.send, terminal=number)
            keyboard = Input(loop, send, _no_key, line.reader, line.split)
            guest.on_room(keyboard.resume, terminal=number)
            line.records.on_size = guest.resize if number == 0 else None
            keyboard.start()
            undo.callback(keyboard.pause)
        return undo.close


def _no_key(key: Key) -> None:
    """Where no keys come from."""


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
