"""The debugger's connections to a running VM, served by the VM's loop: one at a time.

A socket comes from the VM's control socket, or from the listener that `run` makes for gdb.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from pyvmm.base.loop import Loop
from pyvmm.debugger.live import LiveTarget
from pyvmm.debugger.protocol import Session
from pyvmm.debugger.target import Stop
from pyvmm.errors import VmmError
from pyvmm.machine.machine import Machine

CHUNK = 16 << 10
MOST_UNSENT = 4 << 20  # bytes: a client that reads so little is disconnected


class DebugServer:
    """The server of a VM's debugger. ``machine`` returns the machine, ``quit_`` ends the VM."""

    def __init__(
        self, loop: Loop, machine: Callable[[], Machine], quit_: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._machine = machine
        self._quit = quit_
        self._connection: _Connection | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a debugger is connected."""
        return self._connection is not None

    def check(self) -> None:
        """Check that a debugger can connect.  Raises: VmmError."""
        if self.is_busy:
            raise VmmError("a debugger is connected to the VM already")
        if self._machine().has_ended:
            raise VmmError("the guest has ended")

    def serve(self, connection: socket.socket, first: bytes = b"") -> None:
        """Stop the VM, and serve a debugger; ``first`` are bytes that it has sent."""
        if self.is_busy or self._machine().has_ended:
            connection.close()
            return
        connection.setblocking(False)
        made = _Connection(self._loop, connection, self._gone)
        try:
            target = LiveTarget(self._machine, self._loop, made.stopped, self._quit)
        except VmmError:  # KVM refuses: the guest continues
            connection.close()
            return
        self._connection = made
        made.start(target, first)

    def adopt(self) -> None:
        """Continue with a new machine after a reset."""
        if self._connection is not None:
            self._connection.adopt()

    def close(self, code: int) -> None:
        """Report the VM's exit code to the debugger, and disconnect it; idempotent."""
        if self._connection is not None:
            self._connection.end(code)

    def _gone(self) -> None:
        self._connection = None


class _Connection:
    """One debugger's connection."""

    def __init__(self, loop: Loop, connection: socket.socket, gone: Callable[[], None]) -> None:
        self._loop = loop
        self._connection = connection
        self._fd = connection.fileno()
        self._gone = gone
        self._unsent = bytearray()
        self._target: LiveTarget
        self._session: Session

    def start(self, target: LiveTarget, first: bytes) -> None:
        """Begin the conversation."""
        self._target = target
        self._session = Session(target, self._send)
        self._loop.watch(self._fd, self._read)
        self._feed(first)

    def stopped(self, stop: Stop) -> None:
        """Report that the VM has stopped."""
        self._session.stopped(stop)
        self._flush()

    def adopt(self) -> None:
        """Continue with a new machine."""
        self._target.adopt()

    def end(self, code: int) -> None:
        """Report the VM's end, and close the connection."""
        self._session.ended(code)
        self._flush()
        self._close()

    def _read(self) -> None:
        try:
            data = self._connection.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        try:
            self._session.feed(data)
        except Exception:  # a bug must not end the VM: the debugger loses its connection
            self._close()
            return
        self._flush()
        if self._session.is_over or len(self._unsent) > MOST_UNSENT:
            self._close()

    def _send(self, data: bytes) -> None:
        self._unsent += data

    def _flush(self) -> None:
        """Send what there is room for; the rest when there is room."""
        if self._connection.fileno() < 0:
            return
        with contextlib.suppress(OSError):  # a client that has gone is noticed when it is read
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        self._loop.unwatch(self._fd)
        if self._unsent:  # and read no more requests meanwhile
            self._loop.watch_room(self._fd, self._room)
        else:
            self._loop.watch(self._fd, self._read)

    def _room(self) -> None:
        try:
            del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        self._flush()

    def _close(self) -> None:
        if self._connection.fileno() >= 0:
            self._loop.unwatch(self._fd)
            self._connection.close()
            self._session.close()
            self._gone()
