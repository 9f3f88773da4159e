"""One client's session in the emulated host, from the greeting to the command's exit code.

A session is a process.  It forks the command.  Between the command and the port it carries the
standard streams, a terminal if the client has one, signals, and the exit code.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import termios
import time
from pathlib import Path
from typing import Any, Final

from pyvmm.base.records import Record, made
from pyvmm.errors import EXIT_HOST
from pyvmm.host.inside import clock, files
from pyvmm.host.inside.command import run_command
from pyvmm.host.wire import (
    CHUNK,
    HELLO,
    LENGTH,
    MAGIC,
    MAX_REQUEST,
    NONCE_SIZE,
    CommandRequest,
    Frame,
    FrameReader,
    Synchroniser,
    WireError,
    pack,
)

STATE: Final = Path("/run/pyvmm")
HIGH_WATER: Final = 1 << 20  # bytes queued for a client before its command has to wait
PIPE_SIZE: Final = 1 << 20
GRACE_S: Final = 2.0  # between asking an abandoned command to end and killing it
GREETING_S: Final = 10.0


class ClientGone(Exception):
    """A client that closed its connection."""


def serve(port: int) -> None:
    """Serve the client on ``port``: greeting, command, exit code."""
    try:
        _say(port, HELLO)
        nonce, request, rest = _greeting(port)
        problem = _prepare(request)
        _say(port, MAGIC + nonce)
        if problem is None:
            Session(port, request).run(rest)
        else:
            text = f"pyvmm: the emulated host cannot be prepared: {problem}\n".encode()
            _say(port, pack(Frame.ERR, text) + pack(Frame.EXIT, bytes([EXIT_HOST])))
    except ClientGone:
        return


class _Child(Record, frozen=False):
    """The command's process, and this side of its file descriptors."""

    process: int
    outputs: dict[int, Frame] = made(dict)
    stdin: int | None = None  # a pipe or the terminal; None when closed
    terminal: int | None = None


class Session:
    """The traffic between a command and its client."""

    def __init__(self, port: int, request: CommandRequest) -> None:
        self._port = port
        self._frames = FrameReader()
        self._to_client = bytearray()
        self._to_child = bytearray()
        self._input_ended = False
        self._wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._child = _spawn(request)

    def run(self, rest: bytes) -> None:
        """Carry bytes until the command has ended and the client has its exit code."""
        code = None
        try:
            self._take(rest)
            while code is None:
                self._step(None)
                code = self._exit_code()
            self._drain()
            self._send(Frame.EXIT, bytes([code]))
            self._flush()
        except (ClientGone, WireError):
            if code is None:
                self._abandon()

    def _step(self, timeout_ms: int | None) -> bool:
        """Wait for events and handle them; return False at a timeout."""
        poll = select.poll()
        poll.register(self._port, select.POLLIN | (select.POLLOUT if self._to_client else 0))
        poll.register(self._wakeup, select.POLLIN)
        if len(self._to_client) < HIGH_WATER:
            for fd in self._child.outputs:
                poll.register(fd, select.POLLIN)
        sink = self._child.stdin
        if sink is not None and self._to_child:
            current = select.POLLIN if sink in self._child.outputs else 0
            poll.register(sink, select.POLLOUT | current)
        events = dict(poll.poll(timeout_ms))
        self._serve_port(events.get(self._port, 0))
        if self._wakeup in events:
            os.read(self._wakeup, 4096)
        for fd in [fd for fd in self._child.outputs if events.get(fd, 0) & ~select.POLLOUT]:
            self._from_child(fd)
        if sink is not None and events.get(sink, 0) & (select.POLLOUT | select.POLLERR):
            self._feed_child(sink)
        return bool(events)

    def _serve_port(self, event: int) -> None:
        if event & select.POLLHUP:
            raise ClientGone
        if event & select.POLLIN:
            self._take(_read(self._port))
        if event & select.POLLOUT:
            self._write_port()

    def _take(self, data: bytes) -> None:
        for kind, payload in self._frames.feed(data):
            if kind is Frame.STDIN and self._child.stdin is not None:
                self._to_child += payload
            elif kind is Frame.EOF:
                self._input_ended = True
                self._close_input_when_done()
            elif kind is Frame.SIGNAL:
                self._signal(payload[0])
            elif kind is Frame.PING:
                self._send(Frame.PONG, b"")
            elif kind is Frame.RESIZE and self._child.terminal is not None:
                termios.tcsetwinsize(self._child.terminal, struct.unpack("<HH", payload))

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._child.process, number)
        except ProcessLookupError:  # it has no process group yet, or has ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.process, number)

    def _feed_child(self, sink: int) -> None:
        try:
            written = os.write(sink, self._to_child[:CHUNK])
        except BlockingIOError:
            return
        except OSError:  # the command closed its standard input: discard the rest
            written = len(self._to_child)
            self._input_ended = True
        del self._to_child[:written]
        self._send(Frame.CREDIT, LENGTH.pack(written))
        self._close_input_when_done()

    def _close_input_when_done(self) -> None:
        stdin = self._child.stdin
        if self._input_ended and not self._to_child and stdin is not None:
            if stdin != self._child.terminal:
                os.close(stdin)
            self._child.stdin = None

    def _from_child(self, fd: int) -> int:
        """Read the command's output and send it; return the number of bytes."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return 0
        except OSError:  # the terminal's last process has ended
            data = b""
        if data:
            self._send(self._child.outputs[fd], data)
        else:
            del self._child.outputs[fd]
        return len(data)

    def _exit_code(self) -> int | None:
        process, status = os.waitpid(self._child.process, os.WNOHANG)
        if process == 0:
            return None
        if os.WIFSIGNALED(status):
            return 128 + os.WTERMSIG(status)
        return os.WEXITSTATUS(status)

    def _drain(self) -> None:
        """Send the rest of the ended command's output; do not wait for processes that it left."""
        for fd in list(self._child.outputs):
            left = PIPE_SIZE
            while left > 0 and (taken := self._from_child(fd)):
                left -= taken
                if len(self._to_client) >= HIGH_WATER:
                    self._flush()

    def _send(self, kind: Frame, payload: bytes) -> None:
        self._to_client += pack(kind, payload)
        self._write_port()

    def _write_port(self) -> None:
        while self._to_client:
            try:
                written = os.write(self._port, self._to_client[: 1 << 18])
            except BlockingIOError:
                return
            except OSError as error:
                raise ClientGone from error
            if written == 0:
                return
            del self._to_client[:written]

    def _flush(self) -> None:
        while self._to_client:
            _wait_for(self._port, select.POLLOUT)
            self._write_port()

    def _abandon(self) -> None:
        """End a command whose client has gone: SIGHUP, then SIGKILL."""
        self._signal(signal.SIGHUP)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            if os.waitpid(self._child.process, os.WNOHANG)[0]:
                break
            time.sleep(0.02)
        self._signal(signal.SIGKILL)


def _greeting(port: int) -> tuple[bytes, CommandRequest, bytes]:
    """Wait for a client's greeting; return its nonce, its request and the bytes after it."""
    deadline = time.monotonic() + GREETING_S
    finder = Synchroniser(MAGIC)
    found = finder.feed(b"")
    while True:
        if found is not None:
            greeting = _parse_greeting(found)
            if greeting is not None:
                return greeting
        _wait_for(port, select.POLLIN, deadline)
        data = _read(port)
        found = finder.feed(data) if found is None else found + data


def _say(port: int, marker: bytes) -> None:
    """Write a whole marker to a client; wait if it does not read yet."""
    deadline = time.monotonic() + GREETING_S
    while marker:
        _wait_for(port, select.POLLOUT, deadline)
        with contextlib.suppress(BlockingIOError):
            marker = marker[os.write(port, marker) :]


def _wait_for(port: int, event: int, deadline: float | None = None) -> None:
    """Wait until the port can be read or written.

    Raises: ClientGone, if the client closes its connection, or does nothing until the deadline.
    """
    poll = select.poll()
    poll.register(port, event)
    left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
    events = poll.poll(None if left_s is None else int(left_s * 1000))
    if not events or events[0][1] & select.POLLHUP:
        raise ClientGone


def _parse_greeting(data: bytes) -> tuple[bytes, CommandRequest, bytes] | None:
    start = NONCE_SIZE + LENGTH.size
    if len(data) < start:
        return None
    (length,) = LENGTH.unpack_from(data, NONCE_SIZE)
    if length > MAX_REQUEST:
        raise WireError(f"a request of {length} bytes")
    if len(data) < start + length:
        return None
    fields: dict[str, Any] = json.loads(data[start : start + length])
    return data[:NONCE_SIZE], CommandRequest(**fields), data[start + length :]


def _read(port: int) -> bytes:
    try:
        return os.read(port, CHUNK)
    except BlockingIOError:
        return b""


def _prepare(request: CommandRequest) -> OSError | None:
    """Prepare the host for a command: clock and random pool once per start, then the files.

    The session answers the client after this, so the client detects a host that hangs here.
    """
    try:
        (STATE / "idle_s").write_text(str(request.idle_s))
        with (STATE / "setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = STATE / "started"
            if not done.exists() or done.read_text() != request.start_id:
                clock.correct(request.now_ns)
                files.reseed(bytes.fromhex(request.entropy))
                files.mount_user_files(whole=request.tree is None)
                done.write_text(request.start_id)
            if request.tree is None:
                files.show_top_level()
    except OSError as error:
        return error
    return None


def _spawn(request: CommandRequest) -> _Child:
    """Fork the command; its descriptors are pipes, or a terminal where the client has one."""
    child = _Child(0)
    child_fds: list[int] = []
    slave = -1
    if request.terminal:
        child.terminal, slave = pty.openpty()
        rows, columns = request.window
        termios.tcsetwinsize(child.terminal, (rows, columns))
        if not request.raw_input:
            _plain_output(slave)
        child.outputs[child.terminal] = Frame.TTY
        os.set_blocking(child.terminal, False)
    for number, kind in ((0, None), (1, Frame.OUT), (2, Frame.ERR)):
        if number in request.terminal:
            child_fds.append(slave)
            if kind is None:
                child.stdin = child.terminal
            continue
        reader, writer = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        own_fd = writer if kind is None else reader
        os.set_blocking(own_fd, False)
        if kind is None:
            child.stdin = own_fd
        else:
            child.outputs[own_fd] = kind
        child_fds.append(reader if kind is None else writer)
    child.process = os.fork()
    if child.process == 0:
        run_command(request, child_fds, slave)
    for fd in {*child_fds} - {-1}:
        os.close(fd)
    return child


def _plain_output(slave: int) -> None:
    """Turn newline mapping off: the client's terminal, which is not raw, maps newlines."""
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
