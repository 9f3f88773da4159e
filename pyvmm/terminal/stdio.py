"""A guest's serial line on this process's stdin and stdout.

Terminal puts a terminal into raw mode and back. Output carries the guest's output. Input carries
input to the guest, without the keys for pyvmm. Each is usable alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import threading
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Self

from pyvmm.base.closing import Closing
from pyvmm.base.loop import Loop

if TYPE_CHECKING:  # imported lazily: few consoles use it
    from pyvmm.terminal.direct import Direct

ESCAPE = 0x01  # Ctrl-A
KEYS_HELP = """\
Ctrl-A x       stop the guest
Ctrl-A Ctrl-A  send a Ctrl-A to the guest
Ctrl-A h       show this
"""


class Terminal(Closing):
    """Raw mode for a terminal, until closed; a context manager.

    It does not change a file that is not a terminal.

    Output processing stays on, as in lkvm: a guest's bare newline starts a line. With
    ``raw_output`` it is off, for output that another terminal has processed. A background job
    leaves the terminal alone: changing it would stop the job (SIGTTOU).
    """

    def __init__(self, fd: int = 0, *, raw_output: bool = False) -> None:
        self._fd = fd
        self._raw_output = raw_output
        self._saved: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> Self:
        self.enter_raw_mode()
        return self

    @property
    def usable(self) -> bool:
        """Whether ``fd`` is no terminal, or this process may read it without being stopped."""
        if not os.isatty(self._fd):
            return True
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # a terminal, but not the one that controls this process
            return True

    def enter_raw_mode(self) -> bool:
        """Set raw mode, also after SIGTSTP and SIGCONT; return False for a background job."""
        if not self.usable:
            return False
        if os.isatty(self._fd):
            with contextlib.suppress(termios.error):  # the terminal has hung up
                self._set_raw_mode()
        return True

    def _set_raw_mode(self) -> None:
        mode = termios.tcgetattr(self._fd)
        if self._saved is None:
            self._saved = list(mode)
        mode[0] &= ~(
            termios.BRKINT | termios.ICRNL | termios.IGNCR | termios.INLCR
            | termios.INPCK | termios.ISTRIP | termios.IXON
        )  # fmt: skip
        if self._raw_output:
            mode[1] &= ~termios.OPOST
        mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        mode[6] = list(mode[6])
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        # TCSANOW: the other modes wait for output, for ever if Ctrl-S has stopped the terminal.
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def close(self) -> None:
        """Restore the terminal's first mode; idempotent, and silent if the terminal is gone."""
        saved, self._saved = self._saved, None
        if saved is None or not self.usable:
            return
        # A shell may take the terminal back at any moment: that must not stop this process.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, saved)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class Output(Closing):
    """A writer of a guest's output to a descriptor, which blocks no vCPU for each byte.

    A thread of its own, which starts with the first byte, writes the bytes, after a newline or a
    few milliseconds. Only that thread
    waits for a full pipe or a stopped terminal. A guest that prints faster waits once ROOM bytes
    are pending. After a failed write, ``error`` has the reason, and ``on_gone`` is called.

    Code in C writes output too, by `direct`, while nothing is pending here.
    """

    ROOM = 256 << 10  # bytes
    GATHER_S = 0.004  # seconds before a prompt without a newline is written
    BLOCK = 64 << 10  # bytes of one write(2)
    GRACE_S = 1.0  # for the rest of the output after an error

    def __init__(self, fd: int = 1) -> None:
        self.error: OSError | None = None
        self.written = 0  # bytes
        self.on_gone: Callable[[], None] | None = None
        self._fd = fd
        self._changed = threading.Condition()
        self._pending = bytearray()
        self._is_blocking = True  # writers wait for room
        self._ending = False
        self._thread = threading.Thread(target=self._pump, name="output", daemon=True)
        self._direct: Direct | None = None

    def direct(self) -> Direct | None:
        """Return a descriptor for code in C, if there is one; it is open until the end.

        ``busy`` is 1 until the first output has passed through `write`, which may start its reader.
        """
        from pyvmm.terminal.direct import Direct, open_again

        if self._direct is None and (fd := open_again(self._fd)) is not None:
            self._direct = Direct(fd, bytearray(b"\1"))
        return self._direct

    def __exit__(self, *error: object) -> None:
        if self.drain(self.GRACE_S if error[0] else None):
            self.close_direct()

    def write(self, data: bytes) -> None:
        """Take output of the guest; safe from any thread."""
        with self._changed:
            while len(self._pending) >= self.ROOM and self._is_blocking:
                self._changed.wait()
            if self.error is not None:
                return
            was_empty = not self._pending
            self._pending += data
            if self._direct is not None:
                self._direct.busy[0] = 1
            if self._thread.ident is None:
                self._thread.start()
            if was_empty or b"\n" in data:
                self._changed.notify_all()

    def set_blocking(self, blocking: bool) -> None:
        """Set whether writers wait for room: vCPUs that are being stopped must not wait."""
        with self._changed:
            self._is_blocking = blocking and self.error is None
            self._changed.notify_all()

    def close(self) -> None:
        """Write the pending output, and end the thread; idempotent."""
        self.drain(None)
        self.close_direct()

    def drain(self, grace_s: float | None) -> bool:
        """Write the pending output, waiting at most ``grace_s`` seconds (None: without limit).

        Returns:
            Whether all is written; if not, another call waits again.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            if self._thread.ident is None:  # nothing was written
                return True
        self._thread.join(grace_s)
        return not self._thread.is_alive()

    def close_direct(self) -> None:
        """Close the descriptor of `direct`, which no code in C may use any more; idempotent."""
        if self._direct is not None:
            os.close(self._direct.fd)
            self._direct = None

    def _pump(self) -> None:
        """Write output until closed and empty, in the output's thread."""
        while block := self._take():
            try:
                self._write_all(block)
            except OSError as error:
                self.error = error
                self.set_blocking(False)
                if self.on_gone is not None:
                    self.on_gone()
                return
            with self._changed:
                if self._direct is not None and not self._pending:
                    self._direct.busy[0] = 0

    def _take(self) -> bytes:
        """Wait for a line or GATHER_S, and return the pending output; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._ending)
            self._changed.wait_for(self._worth_writing, timeout=self.GATHER_S)
            block = bytes(self._pending[: self.BLOCK])
            del self._pending[: self.BLOCK]
            self._changed.notify_all()
            return block

    def _worth_writing(self) -> bool:
        if self._direct is not None:  # C waits
            return True
        return self._ending or b"\n" in self._pending or len(self._pending) >= self.BLOCK

    def _write_all(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            try:
                written = os.write(self._fd, view)
                self.written += written
                view = view[written:]
            except BlockingIOError:  # another process made the descriptor non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()


class Key(Enum):
    """The meaning of a key after Ctrl-A."""

    STOP = "x"
    HELP = "h"


KEYS = {ord(key.value): key for key in Key}

# Splits a piece of input into bytes for the guest and keys for pyvmm.
Splitter = Callable[[bytes], tuple[bytes, list[Key]]]


class Escapes:
    """A splitter of input: bytes for the guest, and keys for pyvmm."""

    def __init__(self) -> None:
        self._escaped = False

    def split(self, data: bytes) -> tuple[bytes, list[Key]]:
        """Split the next piece of input."""
        guest = bytearray()
        keys = []
        at = 0
        while at < len(data):
            if self._escaped:
                self._escaped = False
                if data[at] in KEYS:
                    keys.append(KEYS[data[at]])
                else:
                    guest.append(data[at])
                at += 1
                continue
            found = data.find(ESCAPE, at)
            self._escaped = found >= 0
            end = found if self._escaped else len(data)
            guest += data[at:end]
            at = end + self._escaped
        return bytes(guest), keys


class Input:
    """A reader of input for the guest, no faster than the guest reads it.

    ``receive`` takes bytes for the guest and returns how many it accepted. After it refused some,
    ``resume`` must be called (from any thread) when there is room. ``split`` separates the keys for
    pyvmm, and ``on_key`` gets them. By default only a terminal has keys: nobody typed other input.
    Input without keys may bypass this process: ``read`` reads a descriptor for the guest, without
    waiting, and returns the number of bytes. If it returns 0, `receive` gets the input.
    """

    CHUNK = 4096  # bytes read at once
    OFFER = 4096  # bytes offered at once; a UART takes 16, a virtio buffer of Linux all
    BACKLOG = 64 << 10  # bytes read ahead, so that keys stop a guest that reads nothing

    def __init__(
        self,
        loop: Loop,
        receive: Callable[[bytes], int],
        on_key: Callable[[Key], None],
        fd: int = 0,
        split: Splitter | None = None,
        read: Callable[[int], int] | None = None,
    ) -> None:
        self._loop = loop
        self._receive = receive
        self._on_key = on_key
        self._fd = fd
        self._split = split or (Escapes().split if os.isatty(fd) else _without_keys)
        self._read_direct = read if self._split is _without_keys else None
        self._backlog = bytearray()
        self._watching = False
        self._ended = False
        self._is_full = False  # not reading: the backlog is full

    def start(self) -> None:
        """Start reading. Call this, like all methods except ``resume``, in the loop's thread."""
        if not self._watching and not self._ended and len(self._backlog) < self.BACKLOG:
            self._loop.watch(self._fd, self._read)
            self._watching = True

    def pause(self) -> None:
        """Stop reading until ``start``."""
        self._loop.unwatch(self._fd)
        self._watching = self._is_full = False

    def resume(self) -> None:
        """Offer the guest the pending input again; safe from any thread."""
        self._loop.call(self._offer)

    def put_back(self, data: bytes) -> None:
        """Offer the guest these bytes before all others."""
        self._backlog[:0] = data

    def _read(self) -> None:
        if self._read_direct is not None and not self._backlog and self._read_direct(self._fd):
            return
        try:
            data = os.read(self._fd, self.CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal that hung up: the end of input
            data = b""
        if not data:
            self._ended = True
            self.pause()
            return
        typed, keys = self._split(data)
        self._backlog += typed
        self._offer()
        for key in keys:
            self._on_key(key)

    def _offer(self) -> None:
        while self._backlog and (taken := self._receive(bytes(self._backlog[: self.OFFER]))):
            del self._backlog[:taken]
        full = len(self._backlog) >= self.BACKLOG
        if full and self._watching:
            self.pause()
            self._is_full = True
        elif self._is_full and not full:
            self._is_full = False
            self.start()


def _without_keys(data: bytes) -> tuple[bytes, list[Key]]:
    """Return all input for the guest, and no keys."""
    return data, []
