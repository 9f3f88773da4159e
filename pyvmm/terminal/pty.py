"""Pseudo-terminals, and the thread that carries bytes between one and a guest's end of it.

A guest's end is a stream socket. What the guest prints comes over it as it is; what is typed, and
the terminal's size, goes over it in records, which Records takes apart.

Drivers of ptys tell whoever holds the master when a slave is closed, and when it is written to or
read from, but not when it is opened: so everything here goes by edges, and looks at the moment a
byte is to be written whether there is somebody to read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
import tty
from collections.abc import Callable
from typing import Final

from pyvmm.base.closing import Closing
from pyvmm.errors import HostError

CHUNK: Final = 16 << 10
RECORD: Final = struct.Struct("<BH")  # kind, length of what follows
TYPED: Final = 0  # bytes for the guest
SIZE: Final = 1  # of the terminal
ROWS_COLUMNS: Final = struct.Struct("<HH")
RETRY_S: Final = 0.25  # a reader that has not read for so long is looked at again
GRACE_S: Final = 2.0  # without a byte read, until a reader has lost what a guest left behind
DRAIN_S: Final = 0.01


class Pty:
    """A new pseudo-terminal, raw and without echo, its slave at ``path`` for the user alone.

    Raises:
        HostError: there is none left.
    """

    def __init__(self) -> None:
        try:
            self._master, slave = os.openpty()
        except OSError as error:
            raise HostError(
                f"cannot make a pseudo-terminal: {error.strerror}",
                hint="/proc/sys/kernel/pty/max says how many there can be, nr how many there are",
            ) from error
        self.path = os.ttyname(slave)
        tty.setraw(slave)
        # Where devpts lets the group tty write, wall(1) would type into the guest.
        os.fchmod(slave, 0o600)
        os.close(slave)
        os.set_blocking(self._master, False)
        self._poll = select.poll()
        self._poll.register(self._master, 0)

    def fileno(self) -> int:
        """The master's descriptor."""
        return self._master

    def close(self) -> None:
        """Hang up; idempotent."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    @property
    def is_open(self) -> bool:
        """Whether somebody has the slave open."""
        return not self._poll.poll(0)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; 0 for what nobody has said."""
        rows, columns, _, _ = struct.unpack(
            "HHHH", fcntl.ioctl(self._master, termios.TIOCGWINSZ, b"\0" * 8)
        )
        return rows, columns

    def read(self, size: int) -> bytes:
        """What was typed; empty where there is nothing."""
        try:
            return os.read(self._master, size)
        except OSError:  # EAGAIN; EIO where nobody has the slave open
            return b""

    def write(self, data: bytes | bytearray) -> int:
        """Show that; returns how many bytes there was room for."""
        try:
            return os.write(self._master, data)
        except BlockingIOError:
            return 0

    def has_unread(self) -> bool:
        """Whether a reader has not read yet all that was shown: closing would lose it."""
        if not self.is_open:
            return False
        slave = os.open(self.path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            return bool(select.select([slave], [], [], 0)[0])
        finally:
            os.close(slave)


class Carrier(Closing):
    """Carries bytes between a pty and ``guest``, in a thread, until the guest's end is closed.

    A reader of the pty that stalls makes the guest's end wait and loses nothing. While nobody
    has the pty open, what the guest prints is dropped, as on a line that nobody is connected to.
    A context manager; at its end a reader gets what is left, unless it takes nothing for GRACE_S.
    """

    def __init__(self, pty: Pty, guest: socket.socket) -> None:
        self._pty = pty
        self._guest = guest
        self._to_pty = bytearray()
        self._to_guest = bytearray()
        self._size = (0, 0)
        self._guest_gone = False  # nothing comes from it any more
        self._guest_deaf = False  # nothing goes to it any more
        self._ending = False
        self._last_move = 0.0
        guest.setblocking(False)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        for fd in (pty.fileno(), guest.fileno()):
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="pty", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The guest prints nothing more: do not wait for a reader that stalls; from any thread."""
        if not self._ending:
            self._last_move = time.monotonic()
            self._ending = True
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End, and wait for that; then hang up."""
        self.end()
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)
        self._pty.close()

    def _run(self) -> None:
        """The thread."""
        with self._guest:
            while not self._is_over():
                if self._move():
                    self._last_move = time.monotonic()
                else:
                    self._epoll.poll(self._patience_s())
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
        while self._pty.has_unread() and self._is_patient():
            time.sleep(DRAIN_S)

    def _is_over(self) -> bool:
        if self._guest_gone and not self._to_pty:
            return True
        return self._ending and not (self._pty.is_open and self._is_patient())

    def _is_patient(self) -> bool:
        return time.monotonic() - self._last_move < GRACE_S

    def _patience_s(self) -> float | None:
        """How long to wait for an event; the rest is for what might come without one."""
        return RETRY_S if self._to_pty or self._ending else None

    def _move(self) -> bool:
        """Carry what can be carried now; False where that is nothing."""
        moved = self._from_guest()
        moved |= self._show()
        moved |= self._from_pty()
        return self._type() or moved

    def _from_guest(self) -> bool:
        if self._to_pty or self._guest_gone:
            return False
        try:
            data = self._guest.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._guest_gone = not data
        self._to_pty += data
        return True

    def _show(self) -> bool:
        if not self._to_pty:
            return False
        taken = self._pty.write(self._to_pty) if self._pty.is_open else len(self._to_pty)
        del self._to_pty[:taken]
        return taken > 0

    def _from_pty(self) -> bool:
        if len(self._to_guest) >= CHUNK or self._guest_deaf:
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
        except OSError:  # what it has printed may still be on its way
            self._guest_deaf = True
            sent = len(self._to_guest)
        del self._to_guest[:sent]
        return True


def record(kind: int, payload: bytes) -> bytes:
    """One record on its way to a guest."""
    return RECORD.pack(kind, len(payload)) + payload


class Records:
    """Takes records apart, however they come in pieces; ``on_size`` gets columns and rows."""

    def __init__(self) -> None:
        self.on_size: Callable[[int, int], None] | None = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        """What was typed in the records that ``data`` completes."""
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
