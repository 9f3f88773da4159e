"""The client's half of a session: it runs one command inside an emulated host.

One thread receives frames and writes standard output and error.  A second one reads standard
input and sends signals.  Neither blocks the other.

``run`` connects this process's own streams to the command, ``bridged`` those of a socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import state_home
from pyvmm.base.output import discard_stdout
from pyvmm.base.records import Record
from pyvmm.base.signals import handling
from pyvmm.errors import EXIT_SIGNAL, HostError, UsageError
from pyvmm.host.connection import connected, ended_during_command, greet
from pyvmm.host.grant import granted
from pyvmm.host.running import Running
from pyvmm.host.share import ALL, NO_TREE, Needs
from pyvmm.host.wire import (
    CHUNK,
    LENGTH,
    STDIN_WINDOW,
    CommandRequest,
    Frame,
    FrameReader,
    WireError,
    pack,
)
from pyvmm.terminal.stdio import Terminal

IDLE_VARIABLE: Final = "PYVMM_HOST_IDLE"
IDLE_S: Final = 900.0
BACKGROUND_MS: Final = 300  # not every shell signals a job that returns to the foreground
# The variables of the user's environment that a command inside gets.
PASSED_ON: Final = ("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "HOME",
                    "USER", "TZ", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # fmt: skip
ANSWER_S: Final = 8.0  # the host's time to answer after a signal that ends the command
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# A confined QEMU sees files of other groups with this one; it checks the access itself.
OVERFLOW_GID: Final = 65534  # Source: user_namespaces(7), overflowgid
FORWARDED: Final = (*ENDING, signal.SIGUSR1, signal.SIGUSR2)


def run(
    running: Running, argv: list[str], environment: Mapping[str, str], needs: Needs = ALL
) -> int:
    """Run ``argv`` in the host, as if it ran here; return its exit code.

    ``environment`` is added to the user's.  The command sees the files that it ``needs``.

    Raises:
        Unreachable: the host ended before it had the command.
        HostError: the host ended during the command.
    """
    terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]
    terminal = Terminal(raw_output=True)
    with granted(running, needs) as grant, connected(running) as connection:
        request = request_for(running, argv, terminals, grant.tree)
        request.environment.update(environment)
        session = _Session(running, connection, _Streams(terminals=terminals), terminal)
        rest = greet(running, connection, request)
        with _signals(session.wake), terminal:
            try:
                grant.is_over = False
                code = session.carry(rest)
                grant.is_over = not session.given_up
                return code
            except _OutputError as error:
                return _give_up(error.args[0])


@contextlib.contextmanager
def bridged(running: Running, argv: list[str], end: socket.socket) -> Iterator[threading.Thread]:
    """Run ``argv`` in the host during the block; a socket is its standard input and output.

    When the command ends, the socket is closed, and the yielded thread ends.  The
    command is ended when the block ends.

    Raises:
        Unreachable, HostError: the host ended before it had the command.
    """
    with granted(running, None) as grant, connected(running) as connection:
        streams = _Streams(stdin=end.fileno(), stdout=end.fileno())
        session = _Session(running, connection, streams, Terminal(end.fileno()))
        rest = greet(running, connection, request_for(running, argv, [], grant.tree))
        thread = threading.Thread(target=_bridge, args=(session, rest, end), daemon=True)
        thread.start()
        try:
            yield thread
        finally:
            session.hang_up()
            thread.join()


def _bridge(session: _Session, rest: bytes, end: socket.socket) -> None:
    """Run a bridged session in its thread; always close the socket at the end."""
    with end:
        try:
            with contextlib.suppress(HostError, _OutputError):
                session.carry(rest)
        finally:
            session.hang_up()
            session.wait_for_input()


class _OutputError(Exception):
    """A failed write to standard output, error or the terminal."""


class _Streams(Record):
    """A command's descriptors, and which of them are terminals."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2
    terminals: Sequence[int] = ()


class _Session:
    """One command, its streams, its terminal."""

    def __init__(
        self,
        running: Running,
        connection: socket.socket,
        streams: _Streams,
        terminal: Terminal,
    ) -> None:
        self._running = running
        self._connection = connection
        self._streams = streams
        self._terminal = terminal
        self._frames = FrameReader()
        self._send_lock = threading.Lock()
        self._wakeup, self.wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._window = STDIN_WINDOW  # used by the sending thread alone
        self._credits: deque[int] = deque()  # for the sending thread
        self._tty_out = next((fd for fd in (1, 2, 0) if fd in streams.terminals), 1)
        self._over = False
        self._is_raw = False  # the user's terminal, if there is one
        self._terminated = False  # a SIGTERM was sent; a second one gives up
        self.given_up = 0  # the signal that ended the session
        self._ending = 0  # the signal after which a PING was sent
        self._ping_at = self._received_at = 0.0
        self._sender = threading.Thread(target=self._carry_input, daemon=True)

    def carry(self, data: bytes) -> int:
        """Carry the streams until the command has ended; return its exit code.

        ``data`` is output that came with the answer to the request.

        Raises:
            HostError: the host ended during the command.
            _OutputError: its output cannot be written.
        """
        self._sender.start()
        while True:
            try:
                for kind, payload in self._frames.feed(data):
                    if kind is Frame.EXIT:
                        return payload[0]
                    self._handle(kind, payload)
                data = self._connection.recv(CHUNK)
            except (WireError, OSError) as error:
                raise ended_during_command(self._running) from error
            self._received_at = time.monotonic()
            if not data and self.given_up:
                return EXIT_SIGNAL + self.given_up
            if not data:
                raise ended_during_command(self._running)

    def hang_up(self) -> None:
        """End the command and the session; safe from any thread."""
        self._over = True
        with contextlib.suppress(OSError):  # no longer connected
            self._connection.shutdown(socket.SHUT_RDWR)
        self._wake_sender()

    def wait_for_input(self) -> None:
        """Wait, after hanging up, until the sending thread has ended."""
        self._sender.join()

    def _handle(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.OUT:
            _write_all(self._streams.stdout, payload)
        elif kind is Frame.ERR:
            _write_all(self._streams.stderr, payload)
        elif kind is Frame.TTY:
            _write_all(self._tty_out, payload)
        elif kind is Frame.CREDIT:
            self._credits.append(LENGTH.unpack(payload)[0])
            self._wake_sender()

    def _wake_sender(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self.wake, b"\0")

    def _carry_input(self) -> None:
        """Send standard input and signals until the session is over."""
        reading = True
        try:
            while not self._over:
                ours = self._is_raw = self._is_raw or self._terminal.enter_raw_mode()
                poll = select.poll()
                poll.register(self._wakeup, select.POLLIN)
                if reading and self._window > 0 and ours:
                    poll.register(self._streams.stdin, select.POLLIN)
                left_ms = self._check_answer()
                events = dict(poll.poll(left_ms if ours else BACKGROUND_MS))
                if self._wakeup in events:
                    self._forward_signals(os.read(self._wakeup, 256))
                    while self._credits:
                        self._window += self._credits.popleft()
                if self._streams.stdin in events:
                    reading = self._forward_input()
        except OSError:
            return  # the session is over

    def _forward_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCONT:  # a shell used the terminal in the meantime
                self._is_raw = False
            if number in (signal.SIGCONT, signal.SIGWINCH):
                self._send(Frame.RESIZE, _window())
            elif number:
                self._note_signal(number)
                self._send(Frame.SIGNAL, bytes([number]))

    def _note_signal(self, number: int) -> None:
        """Give up at a second SIGTERM; after the first ending signal, ping the host."""
        if number == signal.SIGTERM and self._terminated:
            self._give_up(number)
        self._terminated |= number == signal.SIGTERM
        if number in ENDING and not self._ending:
            self._ending, self._ping_at = number, time.monotonic()
            self._send(Frame.PING)

    def _check_answer(self) -> int | None:
        """Give up on a host that does not answer a ping; return the ms it has left, or None."""
        if self._received_at >= self._ping_at:
            self._ending = 0
        if not self._ending:
            return None
        left_s = self._ping_at + ANSWER_S - time.monotonic()
        if left_s <= 0:
            self._give_up(self._ending)
        return max(0, int(left_s * 1000) + 1)

    def _give_up(self, number: int) -> None:
        self.given_up = number
        self.hang_up()

    def _forward_input(self) -> bool:
        try:
            data = os.read(self._streams.stdin, min(CHUNK, self._window))
        except OSError:
            data = b""
        if data:
            self._window -= len(data)
            self._send(Frame.STDIN, data)
        elif self._streams.stdin in self._streams.terminals:  # the terminal hung up
            self._send(Frame.SIGNAL, bytes([signal.SIGHUP]))
        else:
            self._send(Frame.EOF)
        return bool(data)

    def _send(self, kind: Frame, payload: bytes = b"") -> None:
        with self._send_lock:
            self._connection.sendall(pack(kind, payload))


@contextlib.contextmanager
def _signals(wake: int) -> Iterator[None]:
    """Write signals to ``wake`` as bytes, for the sending thread."""
    with handling((*FORWARDED, signal.SIGWINCH, signal.SIGCONT), lambda *_: None):
        old = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old)


def request_for(
    running: Running, argv: list[str], terminals: list[int], tree: str | None = None
) -> CommandRequest:
    """Return the request to run ``argv`` in the host as if it ran here.

    ``tree`` is the name of the files that it sees; the default is all of them.
    """
    environment = {k: v for k, v in os.environ.items() if k in PASSED_ON or k.startswith("PYVMM_")}
    environment["PYVMM_INSIDE"] = running.description
    environment["XDG_STATE_HOME"] = str(state_home())  # inside, HOME may be unset
    umask = os.umask(0o077)
    os.umask(umask)
    groups = [*os.getgroups(), *([OVERFLOW_GID] if tree and os.getuid() else [])]
    cwd = "/" if tree == NO_TREE else str(Path.cwd())
    return CommandRequest(
        argv=argv, cwd=cwd, uid=os.getuid(), gid=os.getgid(), groups=groups, tree=tree,
        umask=umask, environment=environment, start_id=running.start_id, now_ns=time.time_ns(),
        entropy=os.urandom(32).hex(), idle_s=_idle_s(),
        terminal=terminals, raw_input=0 in terminals,
        window=list(struct.unpack("<HH", _window())),
    )  # fmt: skip


def _idle_s() -> float:
    """Return how long the host stays up without a command."""
    text = os.environ.get(IDLE_VARIABLE)
    with contextlib.suppress(ValueError):
        seconds = IDLE_S if text is None else float(text)
        if 0 <= seconds < float("inf"):
            return seconds
    raise UsageError(f"{IDLE_VARIABLE}={text}: not a number of seconds")


def _window() -> bytes:
    """Return the rows and columns of the user's terminal, encoded for a RESIZE frame."""
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            if rows and columns:
                return struct.pack("<HH", rows, columns)
    return struct.pack("<HH", 24, 80)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError as error:
            raise _OutputError(error.errno) from error


def _give_up(reason: int) -> int:
    """Discard the rest of the output; return the exit code of the signal that the error means."""
    discard_stdout()
    if reason == errno.EPIPE:
        return EXIT_SIGNAL + signal.SIGPIPE
    if reason == errno.EIO:  # the terminal hung up
        return EXIT_SIGNAL + signal.SIGHUP
    raise HostError(f"cannot write the command's output: {os.strerror(reason)}")
