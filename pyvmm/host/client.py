"""Running one command inside an emulated host, from outside: the client's half of a session.

The main thread takes frames and writes standard output and error; a second one reads standard
input and sends signals.  Either may wait without holding up the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
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
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pyvmm.errors import EXIT_SIGNAL, HostError
from pyvmm.host.command import Request
from pyvmm.host.dirs import try_lock
from pyvmm.host.running import Running, last_words
from pyvmm.host.share import hidden
from pyvmm.host.wire import (
    LENGTH,
    MAGIC,
    NONCE_SIZE,
    PORTS,
    STDIN_WINDOW,
    Frame,
    FrameReader,
    Synchroniser,
    WireError,
    pack,
)

GREETING_S: Final = 30.0
PORT_WAIT_S: Final = 60.0
CHUNK: Final = 1 << 16
IDLE_VARIABLE: Final = "PYVMM_HOST_IDLE"
IDLE_S: Final = 900.0
# Of the user's environment, what a command inside may see.
PASSED_ON: Final = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "HOME",
                    "USER", "TZ", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # fmt: skip
FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT,
                    signal.SIGUSR1, signal.SIGUSR2)  # fmt: skip


def run(running: Running, argv: list[str], inside: str) -> int:
    """Run ``argv`` in the host, as if it ran here; returns its exit code.

    ``inside`` describes the host to the command (PYVMM_INSIDE).

    Raises:
        HostError: the host ended in the middle of it, or the command would not see its files.
    """
    cwd = Path.cwd()
    if hidden(cwd):
        raise HostError(
            f"the emulated host has its own {Path(*cwd.parts[:2])}: it does not see {cwd}",
            hint="run pyvmm from another directory",
        )
    with _free_port(running) as number, _connected(running, number) as connection:
        return _Session(running, connection, argv, inside).run()


@contextlib.contextmanager
def _free_port(running: Running) -> Iterator[int]:
    """Take a port no other client uses, and give it back afterwards."""
    deadline = time.monotonic() + PORT_WAIT_S
    while time.monotonic() < deadline:
        for number in range(1, PORTS + 1):
            lock = try_lock(running.path / f"p{number}.lock")
            if lock is not None:
                try:
                    yield number
                finally:
                    os.close(lock)
                return
        time.sleep(0.05)
    raise HostError(f"all {PORTS} sessions of the emulated host are in use",
                    hint="wait for one to end")  # fmt: skip


@contextlib.contextmanager
def _connected(running: Running, number: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(running.path / f"p{number}"))
        except OSError as error:
            raise _host_gone(running) from error
        yield connection


def _host_gone(running: Running) -> HostError:
    return HostError(
        f"the emulated host ended in the middle of the command (process {running.pid}: "
        f"{last_words(running.path)})",
        hint="run the command again: it starts a new one",
    )


class _Session:
    """One command, its streams, its terminal."""

    def __init__(
        self, running: Running, connection: socket.socket, argv: list[str], inside: str
    ) -> None:
        self._running = running
        self._connection = connection
        self._terminals = [fd for fd in (0, 1, 2) if _is_terminal(fd)]
        self._request = _request(running, argv, inside, self._terminals)
        self._frames = FrameReader()
        self._send_lock = threading.Lock()
        self._credit = threading.Semaphore(0)
        self._wakeup, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._window = STDIN_WINDOW
        self._tty_out = next((fd for fd in (1, 2, 0) if fd in self._terminals), 1)

    def run(self) -> int:
        rest = self._greet()
        with _signals(self._wake), _raw_terminal(0 in self._terminals) as terminal:
            self._terminal = terminal
            sender = threading.Thread(target=self._carry_input, daemon=True)
            sender.start()
            try:
                return self._carry_output(rest)
            except BrokenPipeError:
                _discard_stdout()
                return EXIT_SIGNAL + signal.SIGPIPE

    def _greet(self) -> bytes:
        nonce = os.urandom(NONCE_SIZE)
        body = json.dumps(asdict(self._request)).encode()
        self._connection.settimeout(GREETING_S)
        finder = Synchroniser(MAGIC + nonce)
        try:
            self._connection.sendall(MAGIC + nonce + LENGTH.pack(len(body)) + body)
            while True:
                data = self._connection.recv(CHUNK)
                if not data:
                    raise _host_gone(self._running)
                rest = finder.feed(data)
                if rest is not None:
                    self._connection.settimeout(None)
                    return rest
        except TimeoutError as error:
            raise HostError(
                f"the emulated host does not answer ({last_words(self._running.path)})",
                hint="pyvmm host stop, then run the command again",
            ) from error
        except OSError as error:
            raise _host_gone(self._running) from error

    def _carry_output(self, data: bytes) -> int:
        while True:
            try:
                for kind, payload in self._frames.feed(data):
                    if kind is Frame.EXIT:
                        return payload[0]
                    self._handle(kind, payload)
                data = self._connection.recv(CHUNK)
            except (WireError, ConnectionError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                raise _host_gone(self._running) from error
            if not data:
                raise _host_gone(self._running)

    def _handle(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.OUT:
            _write_all(1, payload)
        elif kind is Frame.ERR:
            _write_all(2, payload)
        elif kind is Frame.TTY:
            _write_all(self._tty_out, payload)
        elif kind is Frame.CREDIT:
            self._window += LENGTH.unpack(payload)[0]
            os.write(self._wake, b"\0")
        elif kind is Frame.STOPPED:
            self._stop_with_the_command()

    def _stop_with_the_command(self) -> None:
        """^Z was typed inside: stop here too, and go on together."""
        with self._terminal.cooked():
            os.kill(os.getpid(), signal.SIGSTOP)
        self._send(Frame.RESIZE, _window())
        self._send(Frame.SIGNAL, bytes([signal.SIGCONT]))

    def _carry_input(self) -> None:
        """Send standard input and signals until the session is over."""
        reading = True
        try:
            while True:
                poll = select.poll()
                poll.register(self._wakeup, select.POLLIN)
                if reading and self._window > 0:
                    poll.register(0, select.POLLIN)
                events = dict(poll.poll())
                if self._wakeup in events:
                    self._forward_signals(os.read(self._wakeup, 256))
                if 0 in events:
                    reading = self._forward_input()
        except OSError:
            return  # the session is over

    def _forward_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
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
    """The user's terminal in raw mode, or nothing where standard input is none."""

    def __init__(self, wanted: bool) -> None:
        self._saved = termios.tcgetattr(0) if wanted else None

    def enter(self) -> None:
        if self._saved is not None:
            tty.setraw(0, termios.TCSADRAIN)

    def leave(self) -> None:
        if self._saved is not None:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(0, termios.TCSADRAIN, self._saved)

    @contextlib.contextmanager
    def cooked(self) -> Iterator[None]:
        self.leave()
        try:
            yield
        finally:
            self.enter()


@contextlib.contextmanager
def _raw_terminal(wanted: bool) -> Iterator[_RawTerminal]:
    terminal = _RawTerminal(wanted)
    terminal.enter()
    try:
        yield terminal
    finally:
        terminal.leave()


@contextlib.contextmanager
def _signals(wake: int) -> Iterator[None]:
    """Have signals written to ``wake`` as bytes, for the sending thread."""
    before = {number: signal.signal(number, lambda *_: None)
              for number in (*FORWARDED, signal.SIGWINCH)}  # fmt: skip
    old = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)


def _request(running: Running, argv: list[str], inside: str, terminals: list[int]) -> Request:
    environment = {k: v for k, v in os.environ.items() if k in PASSED_ON or k.startswith("PYVMM_")}
    environment["PYVMM_INSIDE"] = inside
    umask = os.umask(0o077)
    os.umask(umask)
    return Request(
        argv=argv, cwd=str(Path.cwd()), uid=os.getuid(), gid=os.getgid(), groups=os.getgroups(),
        umask=umask, environment=environment, start_id=running.start_id, now_ns=time.time_ns(),
        entropy=os.urandom(32).hex(), idle_s=float(os.environ.get(IDLE_VARIABLE, IDLE_S)),
        terminal=terminals, raw_input=0 in terminals,
        window=list(struct.unpack("<HH", _window())),
    )  # fmt: skip


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


def _discard_stdout() -> None:
    """Nobody reads standard output any more: keep the interpreter from complaining at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
