"""The command channel's frames: one session is one connection to one virtio-serial port.

A session begins with a greeting.  It also resynchronises a port after a client that died:

    agent    HELLO, when a new session is ready for the connected client
    client   MAGIC, 16 random bytes, length (u32), a JSON request
    agent    MAGIC, the same 16 bytes

Each side discards the bytes before that.  Then both send frames: type (u8), length of the payload
(u32, little endian), payload.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from pyvmm.base.records import Record, made

MAGIC: Final = b"\x00\xffPYVMM\x01"
HELLO: Final = b"\x00\xffPYVMM hello"
CHUNK: Final = 1 << 16  # bytes to read at once
NONCE_SIZE: Final = 16
HEADER: Final = struct.Struct("<BI")
LENGTH: Final = struct.Struct("<I")
MAX_PAYLOAD: Final = 1 << 16
MAX_REQUEST: Final = 1 << 20
# The limit of bytes of standard input that are sent but unread: a full pipe must not delay signals.
STDIN_WINDOW: Final = 1 << 18
# One session uses one port; QEMU keeps port 0 for a console.  A port takes 4 MiB of the host's
# memory and lengthens its cold boot: Linux fills a queue of 1024 buffers.  So a host boots with
# few.
FIRST_PORTS: Final = 15
PORTS: Final = 63  # at most; the others are added when they are needed
RESERVED: Final = range(12, FIRST_PORTS + 1)  # for commands that control VMs


class Frame(IntEnum):
    """Frame types, their senders and payloads."""

    STDIN = 1  # client: bytes for the command's standard input (or its terminal)
    EOF = 2  # client: the end of standard input
    SIGNAL = 3  # client: u8, a signal for the command
    RESIZE = 4  # client: u16 rows, u16 columns
    PING = 5  # client: asks for a PONG
    OUT = 16  # agent: bytes of standard output
    ERR = 17  # agent: bytes of standard error
    TTY = 18  # agent: bytes of the command's terminal
    CREDIT = 19  # agent: u32, the bytes of STDIN that were consumed
    PONG = 21  # agent: the answer to a PING
    EXIT = 20  # agent: u8, the command's exit code; the last frame


class CommandRequest(Record):
    """A command that a client asks for, and the surroundings that it sees."""

    argv: list[str]
    cwd: str
    uid: int
    gid: int
    groups: list[int]
    umask: int
    environment: dict[str, str]
    start_id: str  # differs for each start of the host
    now_ns: int
    entropy: str  # hexadecimal
    idle_s: float
    terminal: list[int] = made(list)  # which of the descriptors 0, 1, 2 are terminals
    raw_input: bool = False  # the client reads its terminal in raw mode
    window: list[int] = made(lambda: [24, 80])  # rows, columns
    tree: str | None = None  # the name of the user's files that it sees; None for all of them


# The payloads of a fixed size: each side trusts the other no further than that.
SIZES: Final = {
    Frame.SIGNAL: 1, Frame.RESIZE: 4, Frame.CREDIT: LENGTH.size, Frame.EXIT: 1,
}  # fmt: skip


def pack(kind: Frame, payload: bytes = b"") -> bytes:
    """Return a frame, or several if the payload is too long for one."""
    if len(payload) <= MAX_PAYLOAD:
        return HEADER.pack(kind, len(payload)) + payload
    pieces = (payload[i : i + MAX_PAYLOAD] for i in range(0, len(payload), MAX_PAYLOAD))
    return b"".join(HEADER.pack(kind, len(piece)) + piece for piece in pieces)


class WireError(Exception):
    """Bytes on the channel that are not a frame."""


class FrameReader:
    """A parser that turns bytes into whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Frame, bytes]]:
        """Add bytes, and yield the frames that they complete.

        Raises:
            WireError: the stream is damaged.
        """
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            if (
                length > MAX_PAYLOAD
                or kind not in Frame._value2member_map_
                or length != SIZES.get(Frame(kind), length)
            ):
                raise WireError(f"frame of type {kind}, {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Frame(kind), payload


class Synchroniser:
    """A filter that discards a stream up to the end of a marker."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._buffer = b""

    def feed(self, data: bytes) -> bytes | None:
        """Add bytes; return those after the marker, or None if it has not arrived."""
        self._buffer += data
        at = self._buffer.find(self._marker)
        if at >= 0:
            return self._buffer[at + len(self._marker) :]
        self._buffer = self._buffer[-(len(self._marker) - 1) :]
        return None
