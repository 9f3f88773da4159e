"""The front end of the vhost-user protocol: a daemon serves the queues, told over a Unix socket.

Source: QEMU, docs/interop/vhost-user.rst; the names of messages and features are its own.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from pyvmm.devices.vhost.backend import Ring
from pyvmm.errors import HostError
from pyvmm.memory.map import MemoryRegion

HEADER: Final = struct.Struct("=III")  # request, flags, size
VERSION: Final = 1
REPLY: Final = 1 << 2
NEED_REPLY: Final = 1 << 3
LARGEST: Final = 4096  # bytes of a reply
PATIENCE_S: Final = 30.0  # for a daemon that scans a directory, on a busy machine

U64: Final = struct.Struct("=Q")
STATE: Final = struct.Struct("=II")  # index, num
ADDRESSES: Final = struct.Struct("=IIQQQQ")  # index, flags, descriptor, used, available, log
TABLE: Final = struct.Struct("=II")  # regions, padding
REGION: Final = struct.Struct("=QQQQ")  # guest address, size, user address, mmap offset
MOST_REGIONS: Final = 8  # descriptors of one message

REQUESTS: Final = {
    "GET_FEATURES": 1, "SET_FEATURES": 2, "SET_OWNER": 3, "SET_MEM_TABLE": 5,
    "SET_VRING_NUM": 8, "SET_VRING_ADDR": 9, "SET_VRING_BASE": 10, "GET_VRING_BASE": 11,
    "SET_VRING_KICK": 12, "SET_VRING_CALL": 13, "SET_VRING_ERR": 14,
    "GET_PROTOCOL_FEATURES": 15, "SET_PROTOCOL_FEATURES": 16, "SET_VRING_ENABLE": 18,
}  # fmt: skip
F_PROTOCOL_FEATURES: Final = 1 << 30
PROTOCOL_F_MQ: Final = 1 << 0
PROTOCOL_F_REPLY_ACK: Final = 1 << 3
WANTED: Final = PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK


class VhostUser:
    """A daemon's service for one device, over a connected socket, which this object owns.

    Each answer comes within PATIENCE_S. A message whose failure a daemon cannot report (without
    REPLY_ACK) is followed by one that it must answer.

    Raises: HostError, if the daemon ends, does not answer, or speaks another protocol.
    """

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.name = name
        self._connection = connection
        connection.settimeout(PATIENCE_S)
        self._acknowledges = False
        self.features = self._get("GET_FEATURES")
        self._has_protocol = bool(self.features & F_PROTOCOL_FEATURES)
        if self._has_protocol:
            chosen = self._get("GET_PROTOCOL_FEATURES") & WANTED
            self._send("SET_PROTOCOL_FEATURES", U64.pack(chosen))
            self._acknowledges = bool(chosen & PROTOCOL_F_REPLY_ACK)
        self._set("SET_OWNER")

    def fileno(self) -> int:
        """Return the connection's descriptor: it is readable when the daemon has ended."""
        return self._connection.fileno()

    def has_ended(self) -> bool:
        """Return whether the daemon has closed the connection; while no reply is awaited."""
        readable, _, _ = select.select([self._connection], [], [], 0)
        try:
            return bool(readable) and not self._connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def start(self, features: int, memory: Sequence[MemoryRegion], rings: dict[int, Ring]) -> None:
        """Give the daemon the memory and the queues; it serves them at once."""
        kept = F_PROTOCOL_FEATURES if self._has_protocol else 0
        self._set("SET_FEATURES", U64.pack(features | kept))
        self._set_memory(memory)
        for index, ring in rings.items():
            addresses = ADDRESSES.pack(index, 0, ring.desc, ring.used, ring.avail, 0)
            self._set("SET_VRING_NUM", STATE.pack(index, ring.size))
            self._set("SET_VRING_BASE", STATE.pack(index, ring.next_avail))
            self._set("SET_VRING_ADDR", addresses)
            self._set("SET_VRING_ERR", U64.pack(index), [ring.error_fd])
            self._set("SET_VRING_CALL", U64.pack(index), [ring.call_fd])
            self._set("SET_VRING_KICK", U64.pack(index), [ring.kick_fd])
            if self._has_protocol:
                self._set("SET_VRING_ENABLE", STATE.pack(index, 1))

    def stop(self, queues: Sequence[int]) -> dict[int, int]:
        """Stop each queue: the daemon completes its requests, and returns the index."""
        bases = {}
        for index in queues:
            self._send("GET_VRING_BASE", STATE.pack(index, 0))
            bases[index] = STATE.unpack(self._receive("GET_VRING_BASE", STATE.size))[1]
        return bases

    def close(self) -> None:
        """Close the connection; a daemon of one guest ends then."""
        self._connection.close()

    def _set_memory(self, memory: Sequence[MemoryRegion]) -> None:
        if any(piece.fd < 0 for piece in memory):
            raise HostError(f"{self.name}: a piece of guest memory is not shared")
        if len(memory) > MOST_REGIONS:
            raise HostError(
                f"{self.name}: guest memory has {len(memory)} pieces, and vhost-user takes "
                f"{MOST_REGIONS}"
            )
        table = [
            REGION.pack(piece.base, piece.size, piece.host_address, piece.offset)
            for piece in memory
        ]
        packed = TABLE.pack(len(table), 0) + b"".join(table)
        self._set("SET_MEM_TABLE", packed, [piece.fd for piece in memory])

    def _get(self, name: str) -> int:
        self._send(name)
        (value,) = U64.unpack(self._receive(name, U64.size))
        return int(value)

    def _set(self, name: str, payload: bytes = b"", fds: Iterable[int] = ()) -> None:
        """Send a message that has no reply of its own, and wait until the daemon has handled it."""
        if not self._acknowledges:
            self._send(name, payload, fds)
            self._get("GET_FEATURES")
            return
        self._send(name, payload, fds, NEED_REPLY)
        (failed,) = U64.unpack(self._receive(name, U64.size))
        if failed:
            raise HostError(f"{self.name} refuses {name}", hint="its own message says why")

    def _send(
        self, name: str, payload: bytes = b"", fds: Iterable[int] = (), flags: int = 0
    ) -> None:
        message = HEADER.pack(REQUESTS[name], VERSION | flags, len(payload)) + payload
        try:
            sent = socket.send_fds(self._connection, [message], list(fds))
            self._connection.sendall(message[sent:])
        except OSError as error:
            raise self._gone(name, error) from error

    def _receive(self, name: str, size: int) -> bytes:
        """Return the payload of the reply to that message."""
        request, flags, length = HEADER.unpack(self._exactly(name, HEADER.size))
        if (request, flags & 3, flags & REPLY) != (REQUESTS[name], VERSION, REPLY):
            raise HostError(f"{self.name} answers {name} with something else")
        if length != size:
            raise HostError(f"{self.name} answers {name} with {length} bytes, not {size}")
        return self._exactly(name, size)

    def _exactly(self, name: str, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part, fds, *_ = socket.recv_fds(self._connection, size - len(data), 8)
            except OSError as error:
                raise self._gone(name, error) from error
            for fd in fds:
                os.close(fd)
            if not part:
                raise self._gone(name, None)
            data += part
        return data

    def _gone(self, name: str, error: OSError | None) -> HostError:
        if isinstance(error, TimeoutError):
            return HostError(f"{self.name} does not answer {name} within {PATIENCE_S:.0f} s")
        reason = f": {error.strerror}" if error is not None else ""
        return HostError(f"{self.name} has ended at {name}{reason}")
