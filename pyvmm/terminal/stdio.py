"""A guest's serial line on this process's stdin and stdout.

Three parts, each usable alone: Terminal puts a terminal into raw mode and back, Output carries
what the guest prints, Input carries what is typed, less the keys that are for pyvmm.
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
from types import TracebackType
from typing import Self

from pyvmm.base.loop import Loop

ESCAPE = 0x01  # Ctrl-A
KEYS_HELP = """\
Ctrl-A x       stop the guest
Ctrl-A Ctrl-A  send a Ctrl-A to the guest
Ctrl-A h       show this
"""


class Terminal:
    """Raw mode for a terminal, and its way back; does nothing where ``fd`` is no terminal.

    Output processing stays on (as in lkvm), so that a guest's bare newline starts a line.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._saved: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> Self:
        self.enter_raw_mode()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    @property
    def usable(self) -> bool:
        """Whether reading ``fd`` cannot stop the process: no terminal, or one it owns."""
        if not os.isatty(self._fd):
            return True
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # a terminal, but not the one that controls this process
            return True

    def enter_raw_mode(self) -> None:
        """Give the guest every key; again after a stop (SIGCONT) is fine.

        A background job leaves the terminal alone: changing it would stop the job (SIGTTOU).
        """
        if not os.isatty(self._fd) or not self.usable:
            return
        mode = termios.tcgetattr(self._fd)
        if self._saved is None:
            self._saved = list(mode)
        mode[0] &= ~(
            termios.BRKINT | termios.ICRNL | termios.IGNCR | termios.INLCR
            | termios.INPCK | termios.ISTRIP | termios.IXON
        )  # fmt: skip
        mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        mode[6] = list(mode[6])
        mode[6][termios.VMIN] = 1
        mode[6][termios.VTIME] = 0
        # TCSANOW: the draining kinds would wait for ever behind a terminal stopped by Ctrl-S.
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def restore(self) -> None:
        """Put the terminal back as it was found; idempotent, and quiet if it has gone."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        # A shell that took the terminal back must not stop us on the way out.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, saved)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class Output:
    """Carries what guests print to a descriptor, without making a vCPU wait for each byte.

    Bytes are gathered until a newline or a few milliseconds, then written by a thread of its
    own, so that no kind of descriptor (a full pipe, a stopped terminal) can hold up more than
    that thread. A guest that prints faster than the reader reads waits once ROOM bytes stand
    in line. When nothing can be written any more, ``error`` says why, and ``on_gone`` is called.
    """

    ROOM = 256 << 10  # bytes
    GATHER_S = 0.004  # a prompt without a newline appears after that
    BLOCK = 64 << 10  # bytes handed to one write(2)
    GRACE_S = 1.0  # for what is left when the run ends with an error

    def __init__(self, fd: int = 1) -> None:
        self.error: OSError | None = None
        self.written = 0  # bytes
        self.on_gone: Callable[[], None] | None = None
        self._fd = fd
        self._changed = threading.Condition()
        self._pending = bytearray()
        self._waits = True  # writers wait while there is no room
        self._ending = False
        self._thread = threading.Thread(target=self._pump, name="output", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(self.GRACE_S if error else None)

    def write(self, data: bytes) -> None:
        """Take bytes from the guest; safe from any thread."""
        with self._changed:
            while len(self._pending) >= self.ROOM and self._waits:
                self._changed.wait()
            if self.error is not None:
                return
            was_empty = not self._pending
            self._pending += data
            if was_empty or b"\n" in data:
                self._changed.notify_all()

    def let_go(self, hurry: bool = True) -> None:
        """Let nobody wait for room while vCPUs are to stop: little more can come.

        ``hurry`` False: they run again, and wait again.
        """
        with self._changed:
            self._waits = not hurry and self.error is None
            self._changed.notify_all()

    def close(self, grace_s: float | None = None) -> bool:
        """Write what is left, waiting at most ``grace_s`` seconds (None: as long as it takes).

        Returns:
            Whether nothing is left; if not, closing again waits again.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(grace_s)
        return not self._thread.is_alive()

    def _pump(self) -> None:
        """The thread: write whatever comes, until closed and empty."""
        while block := self._take():
            try:
                self._write_all(block)
            except OSError as error:
                self.error = error
                self.let_go()
                if self.on_gone is not None:
                    self.on_gone()
                return

    def _take(self) -> bytes:
        """Wait for a line, or for what has stood there long enough; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._ending)
            self._changed.wait_for(self._worth_writing, timeout=self.GATHER_S)
            block = bytes(self._pending[: self.BLOCK])
            del self._pending[: self.BLOCK]
            self._changed.notify_all()
            return block

    def _worth_writing(self) -> bool:
        return self._ending or b"\n" in self._pending or len(self._pending) >= self.BLOCK

    def _write_all(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            try:
                written = os.write(self._fd, view)
                self.written += written
                view = view[written:]
            except BlockingIOError:  # somebody made our descriptor non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()


class Key(Enum):
    """What a key after Ctrl-A asks of pyvmm."""

    STOP = "x"
    HELP = "h"


KEYS = {ord(key.value): key for key in Key}

# The next piece of input, as bytes for the guest and keys for pyvmm.
Splitter = Callable[[bytes], tuple[bytes, list[Key]]]


class Escapes:
    """Splits what is typed into the guest's part and pyvmm's."""

    def __init__(self) -> None:
        self._escaped = False

    def split(self, data: bytes) -> tuple[bytes, list[Key]]:
        """The bytes for the guest, and the keys for pyvmm, of the next piece of input."""
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
    """Carries what is typed to the guest, no faster than the guest takes it.

    ``receive`` takes bytes for the guest and returns how many it accepted; whoever refused
    some calls ``resume`` (from any thread) when there is room. ``on_key`` gets pyvmm's keys.
    ``split`` tells the one from the other; it is that of Escapes where none is given.
    """

    CHUNK = 4096  # bytes read at once
    OFFER = 4096  # bytes offered at once; a UART takes 16, a virtio buffer of Linux's all of them
    BACKLOG = 64 << 10  # bytes read ahead of the guest, so that a stuck one can still be stopped

    def __init__(
        self,
        loop: Loop,
        receive: Callable[[bytes], int],
        on_key: Callable[[Key], None],
        fd: int = 0,
        split: Splitter | None = None,
    ) -> None:
        self._loop = loop
        self._receive = receive
        self._on_key = on_key
        self._fd = fd
        self._split = split or Escapes().split
        self._backlog = bytearray()
        self._watching = False
        self._ended = False
        self._held = False  # not reading, because the backlog is full

    def start(self) -> None:
        """Begin, or go on, to read; in the loop's thread, like all but ``resume``."""
        if not self._watching and not self._ended and len(self._backlog) < self.BACKLOG:
            self._loop.watch(self._fd, self._read)
            self._watching = True

    def pause(self) -> None:
        """Stop reading until ``start``."""
        self._loop.unwatch(self._fd)
        self._watching = self._held = False

    def resume(self) -> None:
        """Offer the guest again what it had no room for; safe from any thread."""
        self._loop.call(self._offer)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, self.CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal that hung up: the end of input, like any other
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
            self._held = True
        elif self._held and not full:
            self._held = False
            self.start()
