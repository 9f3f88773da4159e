"""Running one command inside an emulated host, from outside: the client's half of a session.

The main thread takes frames and writes standard output and error; a second one reads standard
input and sends signals.  Either may wait without holding up the other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvmm.errors import EXIT_SIGNAL, HostError, UsageError
from pyvmm.host.command import Request
from pyvmm.host.connection import connected, ended_in_the_middle, greet
from pyvmm.host.running import Running
from pyvmm.host.wire import CHUNK, LENGTH, STDIN_WINDOW, Frame, FrameReader, WireError, pack

IDLE_VARIABLE: Final = "PYVMM_HOST_IDLE"
IDLE_S: Final = 900.0
BACKGROUND_MS: Final = 300  # not every shell tells a job that it is in the foreground again
# Of the user's environment, what a command inside may see.
PASSED_ON: Final = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "HOME",
                    "USER", "TZ", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # fmt: skip
FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT,
                    signal.SIGUSR1, signal.SIGUSR2)  # fmt: skip


def run(running: Running, argv: list[str], inside: str) -> int:
    """Run ``argv`` in the host, as if it ran here; returns its exit code.

    ``inside`` describes the host to the command (PYVMM_INSIDE).

    Raises:
        Unreachable: the host ended before it had the command.
        HostError: the host ended in the middle of it.
    """
    with connected(running) as connection:
        return _Session(running, connection, argv, inside).run()


class _OutputError(Exception):
    """Standard output, error or the terminal takes nothing any more."""


class _Session:
    """One command, its streams, its terminal."""

    def __init__(
        self, running: Running, connection: socket.socket, argv: list[str], inside: str
    ) -> None:
        self._running = running
        self._connection = connection
        self._terminals = [fd for fd in (0, 1, 2) if _is_terminal(fd)]
        self._terminal = _RawTerminal(0 in self._terminals)
        self._request = request_for(running, argv, inside, self._terminals)
        self._frames = FrameReader()
        self._send_lock = threading.Lock()
        self._wakeup, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._window = STDIN_WINDOW  # the sending thread's own
        self._credits: deque[int] = deque()  # on their way to it
        self._tty_out = next((fd for fd in (1, 2, 0) if fd in self._terminals), 1)

    def run(self) -> int:
        rest = greet(self._running, self._connection, self._request)
        with _signals(self._wake), self._terminal:
            sender = threading.Thread(target=self._carry_input, daemon=True)
            sender.start()
            try:
                return self._carry_output(rest)
            except _OutputError as error:
                return self._give_up(error.args[0])

    def _carry_output(self, data: bytes) -> int:
        while True:
            try:
                for kind, payload in self._frames.feed(data):
                    if kind is Frame.EXIT:
                        return payload[0]
                    self._handle(kind, payload)
                data = self._connection.recv(CHUNK)
            except (WireError, OSError) as error:
                raise ended_in_the_middle(self._running) from error
            if not data:
                raise ended_in_the_middle(self._running)

    def _handle(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.OUT:
            _write_all(1, payload)
        elif kind is Frame.ERR:
            _write_all(2, payload)
        elif kind is Frame.TTY:
            _write_all(self._tty_out, payload)
        elif kind is Frame.CREDIT:
            self._credits.append(LENGTH.unpack(payload)[0])
            with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
                os.write(self._wake, b"\0")

    def _give_up(self, reason: int) -> int:
        """End without the rest of the output: a signal's exit code, where it stands for one."""
        _discard_stdout()
        if reason == errno.EPIPE:
            return EXIT_SIGNAL + signal.SIGPIPE
        if reason == errno.EIO:  # the terminal hung up
            return EXIT_SIGNAL + signal.SIGHUP
        raise HostError(f"cannot write what the command prints: {os.strerror(reason)}")

    def _carry_input(self) -> None:
        """Send standard input and signals until the session is over."""
        reading = True
        try:
            while True:
                ours = self._terminal.take()
                poll = select.poll()
                poll.register(self._wakeup, select.POLLIN)
                if reading and self._window > 0 and ours:
                    poll.register(0, select.POLLIN)
                events = dict(poll.poll(None if ours else BACKGROUND_MS))
                if self._wakeup in events:
                    self._forward_signals(os.read(self._wakeup, 256))
                    while self._credits:
                        self._window += self._credits.popleft()
                if 0 in events:
                    reading = self._forward_input()
        except OSError:
            return  # the session is over

    def _forward_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCONT:  # a shell has had the terminal meanwhile
                self._terminal.lose()
            if number in (signal.SIGCONT, signal.SIGWINCH):
                self._send(Frame.RESIZE, _window())
            elif number:
                self._send(Frame.SIGNAL, bytes([number]))

    def _forward_input(self) -> bool:
        try:
            data = os.read(0, min(CHUNK, self._window))
        except OSError:
            data = b""
        if data:
            self._window -= len(data)
            self._send(Frame.STDIN, data)
        elif 0 in self._terminals:  # a terminal that hung up
            self._send(Frame.SIGNAL, bytes([signal.SIGHUP]))
        else:
            self._send(Frame.EOF)
        return bool(data)

    def _send(self, kind: Frame, payload: bytes = b"") -> None:
        with self._send_lock:
            self._connection.sendall(pack(kind, payload))


class _RawTerminal:
    """The user's terminal in raw mode, or nothing where standard input is none.

    A background job does not touch it: that would stop the job.
    """

    def __init__(self, wanted: bool) -> None:
        self._saved = termios.tcgetattr(0) if wanted else None
        self._taken = False

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *error: object) -> None:
        if self._saved is not None and self._usable():
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(0, termios.TCSANOW, self._saved)

    def take(self) -> bool:
        """Enter raw mode where that is not done yet; False in the background."""
        if self._saved is None or self._taken:
            return True
        if self._usable():
            self._taken = True
            with contextlib.suppress(termios.error):
                tty.setraw(0, termios.TCSANOW)
        return self._taken

    def lose(self) -> None:
        """Raw mode wants to be entered again: this process was stopped for a while."""
        self._taken = False

    def _usable(self) -> bool:
        try:
            return os.tcgetpgrp(0) == os.getpgrp()
        except OSError:  # not the terminal that controls this process, or it has gone
            return True


@contextlib.contextmanager
def _signals(wake: int) -> Iterator[None]:
    """Have signals written to ``wake`` as bytes, for the sending thread.

    What the caller has this process ignore (as nohup does) stays ignored.
    """
    before = {number: signal.signal(number, lambda *_: None)
              for number in (*FORWARDED, signal.SIGWINCH, signal.SIGCONT)
              if signal.getsignal(number) is not signal.SIG_IGN}  # fmt: skip
    old = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)


def request_for(running: Running, argv: list[str], inside: str, terminals: list[int]) -> Request:
    """What asks the host to run ``argv`` as if it ran here, now."""
    environment = {k: v for k, v in os.environ.items() if k in PASSED_ON or k.startswith("PYVMM_")}
    environment["PYVMM_INSIDE"] = inside
    umask = os.umask(0o077)
    os.umask(umask)
    return Request(
        argv=argv, cwd=str(Path.cwd()), uid=os.getuid(), gid=os.getgid(), groups=os.getgroups(),
        umask=umask, environment=environment, start_id=running.start_id, now_ns=time.time_ns(),
        entropy=os.urandom(32).hex(), idle_s=_idle_s(),
        terminal=terminals, raw_input=0 in terminals,
        window=list(struct.unpack("<HH", _window())),
    )  # fmt: skip


def _idle_s() -> float:
    """How long the host is to stay without a command."""
    text = os.environ.get(IDLE_VARIABLE)
    with contextlib.suppress(ValueError):
        seconds = IDLE_S if text is None else float(text)
        if 0 <= seconds < float("inf"):
            return seconds
    raise UsageError(f"{IDLE_VARIABLE}={text}: not a time in seconds")


def _window() -> bytes:
    """Rows and columns of the user's terminal, as a RESIZE frame has them."""
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            rows, columns, _, _ = struct.unpack(
                "HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8)
            )
            if rows and columns:
                return struct.pack("<HH", rows, columns)
    return struct.pack("<HH", 24, 80)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError as error:
            raise _OutputError(error.errno) from error


def _discard_stdout() -> None:
    """Nobody reads standard output any more: keep the interpreter from complaining at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
