"""What an emulated host sends on its command channel, to the two clients that read it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fuzz.input import Input
from pyvmm.errors import VmmError
from pyvmm.host import capture, client
from pyvmm.host.wire import LENGTH, MAGIC, NONCE_SIZE, Frame, pack
from pyvmm.terminal.stdio import Terminal

RUNNING: Any = SimpleNamespace(
    pid=1,
    last_output="",
    is_stopped=False,
    is_confined=False,
    description="",
    start_id="",
    ports=1,
)


class Connection:
    """A socket whose other end is hostile: it gives pieces of the input."""

    def __init__(self, data: bytes) -> None:
        self._given = Input(data)
        self._greeting = b""

    def sendall(self, data: bytes) -> None:
        """Answer the greeting: its nonce comes back."""
        if data.startswith(MAGIC):
            self._greeting = data[: len(MAGIC) + NONCE_SIZE]

    def recv(self, size: int) -> bytes:
        """Return the greeting, then pieces; nothing at the end."""
        greeting, self._greeting = self._greeting, b""
        return greeting or self._given.take(min(size, self._given.u8() or size))

    def settimeout(self, timeout_s: float | None) -> None:
        """Do nothing: it never waits."""

    def shutdown(self, how: int) -> None:
        """Do nothing."""


def check(data: bytes) -> None:
    """Run a command that captures output, and one that carries it."""

    def connected(*_: object, **__: object) -> contextlib.AbstractContextManager[Connection]:
        return contextlib.nullcontext(Connection(data))

    with mock.patch.object(capture, "connected", connected):
        try:
            capture.capture(RUNNING, ["true"], b"")
        except VmmError as error:
            assert error.exit_code in (1, 3)
    _carry(Connection(data))


def _carry(connection: Any) -> None:
    streams = client._Streams(stdin=null(), stdout=null(), stderr=null())
    session = client._Session(RUNNING, connection, streams, Terminal(null()))
    session._sender = SimpleNamespace(start=lambda: None)  # type: ignore[assignment]  # a fake
    session._tty_out = null()
    try:
        assert session.carry(b"") in range(256)
    except (VmmError, client._OutputError):
        pass
    finally:
        os.close(session.wake)
        os.close(session._wakeup)


@functools.cache
def null() -> int:
    """Return /dev/null, open."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def seeds() -> Iterator[bytes]:
    """Yield sessions: output, credit, an exit code, a wrong frame."""
    end = pack(Frame.EXIT, b"\0")
    said = pack(Frame.OUT, b"out") + pack(Frame.ERR, b"err") + pack(Frame.TTY, b"tty")
    yield b"\0" + said + pack(Frame.CREDIT, LENGTH.pack(3)) + pack(Frame.PONG) + end
    yield b"\x05" + said + b"\3" + end
    yield b"\0" + pack(Frame.EXIT, b"\3") + said
    yield b"\0" + b"\x63\1\0\0\0x"
