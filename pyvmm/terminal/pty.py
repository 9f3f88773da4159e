"""Pseudo-terminals, and the thread that carries bytes between a pty and the guest's end.

The guest's end is a stream socket. The guest's output comes over it unchanged. Input and the
terminal's size go over it in records, which Records takes apart.

A pty's master reports when a slave is closed, read or written, but not when it is opened. So
everything here is edge-triggered, and checks for a reader just before it writes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
import tty
from collections.abc import Callable
from typing import Final, Self

from pyvmm.base.closing import Closing
from pyvmm.errors import HostError

CHUNK: Final = 16 << 10
RECORD: Final = struct.Struct("<BH")  # kind, length of what follows
TYPED: Final = 0  # bytes for the guest
SIZE: Final = 1  # of the terminal
ROWS_COLUMNS: Final = struct.Struct("<HH")
RETRY_S: Final = 0.25  # between checks of a reader that reads nothing
GRACE_S: Final = 2.0  # without a byte read, until the rest of the output is dropped
DRAIN_S: Final = 0.01


class Pty:
    """A new pseudo-terminal, raw and without echo; only the user may open its slave at ``path``.

    Raises: HostError: no pseudo-terminal is left.
    """

    def __init__(self) -> None:
        try:
            self._master, slave = os.openpty()
        except OSError as error:
            raise HostError(
                f"cannot make a pseudo-terminal: {error.strerror}",
                hint="raise the limit in /proc/sys/kernel/pty/max; nr beside it shows the use",
            ) from error
        self.path = os.ttyname(slave)
        tty.setraw(slave)
        # If devpts lets the group tty write, wall(1) writes into the guest.
        os.fchmod(slave, 0o600)
        os.close(slave)
        os.set_blocking(self._master, False)
        self._poll = select.poll()
        self._poll.register(self._master, 0)

    def fileno(self) -> int:
        """Return the master's descriptor."""
        return self._master

    def close(self) -> None:
        """Hang up; idempotent."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    @property
    def is_open(self) -> bool:
        """Whether a process has the slave open."""
        return not self._poll.poll(0)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; 0 if not set."""
        columns, rows = os.get_terminal_size(self._master)
        return rows, columns

    def read(self, size: int) -> bytes:
        """Read input; return nothing if there is none."""
        try:
            return os.read(self._master, size)
        except OSError:  # EAGAIN; EIO while no process has the slave open
            return b""

    def write(self, data: bytes | bytearray) -> int:
        """Write output; return how many bytes there was room for."""
        try:
            return os.write(self._master, data)
        except BlockingIOError:
            return 0

    def has_unread(self) -> bool:
        """Return whether output is unread: closing would lose it."""
        if not self.is_open:
            return False
        slave = os.open(self.path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            return bool(select.select([slave], [], [], 0)[0])
        finally:
            os.close(slave)


class Carrier(Closing):
    """A carrier of bytes between a pty and ``guest``, until the guest's end is closed.

    ``start`` starts its thread.

    If a reader stalls, the guest's end blocks and no output is lost. While no process has the pty
    open, the guest's output is dropped, as on an unconnected line. A context manager; at its end
    a reader gets the rest, unless it reads nothing for GRACE_S.
    """

    def __init__(self, pty: Pty, guest: socket.socket) -> None:
        self._pty = pty
        self._guest = guest
        self._to_pty = bytearray()
        self._to_guest = bytearray()
        self._size = (0, 0)
        self._output_ended = False  # the guest sends nothing more
        self._input_ended = False  # the guest takes nothing more
        self._ending = False
        self._last_move = 0.0
        guest.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        for fd in (pty.fileno(), guest.fileno()):
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="pty", daemon=True)

    def start(self) -> Self:
        """Start the thread, if it has not started; return the carrier."""
        if self._thread.ident is None:
            self._thread.start()
        return self

    def end(self) -> None:
        """Stop waiting for a stalled reader, after the guest's end; safe from any thread."""
        if not self._ending:
            self._last_move = time.monotonic()
            self._ending = True
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread, then hang up."""
        if self._thread.ident is not None:
            self.end()
            self._thread.join()
        self._epoll.close()
        os.close(self._wake)
        self._pty.close()

    def _run(self) -> None:
        """Carry bytes until the end, in the pty's thread."""
        with self._guest:
            while not self._is_over():
                if self._move():
                    self._last_move = time.monotonic()
                else:
                    self._epoll.poll(self._timeout_s())
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
        while self._pty.has_unread() and self._has_moved():
            time.sleep(DRAIN_S)

    def _is_over(self) -> bool:
        if self._output_ended and not self._to_pty:
            return True
        return self._ending and not (self._pty.is_open and self._has_moved())

    def _has_moved(self) -> bool:
        return time.monotonic() - self._last_move < GRACE_S

    def _timeout_s(self) -> float | None:
        """Return how long to wait for an event; some changes cause none."""
        return RETRY_S if self._to_pty or self._ending else None

    def _move(self) -> bool:
        """Carry bytes without waiting; return whether there were any."""
        moved = self._from_guest()
        moved |= self._show()
        moved |= self._from_pty()
        return self._type() or moved

    def _from_guest(self) -> bool:
        if self._to_pty or self._output_ended:
            return False
        try:
            data = self._guest.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._output_ended = not data
        self._to_pty += data
        return True

    def _show(self) -> bool:
        if not self._to_pty:
            return False
        taken = self._pty.write(self._to_pty) if self._pty.is_open else len(self._to_pty)
        del self._to_pty[:taken]
        return taken > 0

    def _from_pty(self) -> bool:
        if len(self._to_guest) >= CHUNK or self._input_ended:
            return False
        size = self._pty.size
        if size != self._size:
            self._size = size
            self._to_guest += record(SIZE, ROWS_COLUMNS.pack(*size))
        data = self._pty.read(CHUNK)
        if data:
            self._to_guest += record(TYPED, data)
        return bool(data)

    def _type(self) -> bool:
        if not self._to_guest:
            return False
        try:
            sent = self._guest.send(self._to_guest)
        except BlockingIOError:
            return False
        except OSError:  # its earlier output may still be in the socket
            self._input_ended = True
            sent = len(self._to_guest)
        del self._to_guest[:sent]
        return True


def record(kind: int, payload: bytes) -> bytes:
    """Encode a record for a guest."""
    return RECORD.pack(kind, len(payload)) + payload


class Records:
    """A decoder of records in a stream of bytes; ``on_size`` gets columns and rows."""

    def __init__(self) -> None:
        self.on_size: Callable[[int, int], None] | None = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Return the input in the records that ``data`` completes."""
        self._buffer += data
        typed = bytearray()
        while len(self._buffer) >= RECORD.size:
            kind, length = RECORD.unpack_from(self._buffer)
            end = RECORD.size + length
            if len(self._buffer) < end:
                break
            payload = self._buffer[RECORD.size : end]
            del self._buffer[:end]
            if kind == TYPED:
                typed += payload
            elif self.on_size is not None:
                rows, columns = ROWS_COLUMNS.unpack(payload)
                self.on_size(columns, rows)
        return bytes(typed)
