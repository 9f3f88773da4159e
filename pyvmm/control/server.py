"""A VM's end of its control socket: it answers requests in the loop's thread.

No client can harm the VM. A malformed request gets an error, and its connection is closed. The
connection is also closed if a client sends nothing, or does not read its reply, for TIMEOUT_S.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from pyvmm.base.loop import Loop, Timer
from pyvmm.control.sockets import Claim
from pyvmm.control.wire import (
    MAX_DESCRIPTORS,
    MAX_REQUEST,
    Message,
    WireError,
    failure,
    failure_of,
    is_trusted,
    pack,
    parse,
)
from pyvmm.errors import VmmError

# Answers a request; a VmmError becomes a failure reply. The request's "peer" is its Peer.
Handler = Callable[[Message], Message]

CLIENTS: Final = 32  # at a time
TIMEOUT_S: Final = 10.0
RETRY_S: Final = 0.5
CHUNK: Final = 64 << 10


class Peer:
    """The resources of a connection, beside its messages."""

    def __init__(self) -> None:
        self.fds: list[int] = []  # that came with the request; closed after it
        self.on_close: Callable[[], None] | None = None  # called once, when the connection ends
        # Takes over the connection after the reply, with bytes that have been read already
        self.take_over: Callable[[socket.socket, bytes], None] | None = None

    def close_fds(self) -> None:
        """Close the descriptors that no handler has taken."""
        while self.fds:
            os.close(self.fds.pop())


class Server:
    """A server of one VM's clients, in a loop; ``close`` it before the loop ends."""

    def __init__(self, loop: Loop, claim: Claim, handlers: Mapping[str, Handler]) -> None:
        self._loop = loop
        self._listener = claim.listener
        self._fd = claim.listener.fileno()
        self._handlers = handlers
        self._clients: set[_Client] = set()
        self._retry: Timer | None = None
        self._listen()

    def close(self) -> None:
        """Send due replies and disconnect every client; idempotent."""
        if self._retry is not None:
            self._loop.cancel(self._retry)
        self._loop.unwatch(self._fd)
        for client in list(self._clients):
            client.finish()

    def answer(self, line: bytes, peer: Peer | None = None) -> Message:
        """Return the reply to a request.

        Raises: WireError, if it is malformed.
        """
        request = parse(line)
        verb = request.get("do")
        handler = self._handlers.get(verb) if isinstance(verb, str) else None
        if handler is None:
            known = ", ".join(self._handlers)
            return failure(f"unknown request {str(verb)[:40]!r}", f"use one of {known}")
        try:
            return {"ok": True, **handler({**request, "peer": peer or Peer()})}
        except VmmError as error:
            return failure_of(error)
        except Exception as error:  # a bug must not end the VM: the client reports it
            return failure(f"unexpected {type(error).__name__}: {error}")

    def _listen(self) -> None:
        self._retry = None
        self._loop.watch(self._fd, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:  # the client has gone
            return
        except OSError:  # no descriptor is left: retry later, not in a busy loop
            self._loop.unwatch(self._fd)
            self._retry = self._loop.after(RETRY_S, self._listen)
            return
        connection.setblocking(False)
        if len(self._clients) >= CLIENTS or not is_trusted(connection):
            with contextlib.suppress(OSError), connection:
                connection.send(pack(failure("too many clients, or not this VM's owner")))
            return
        self._clients.add(_Client(self._loop, connection, self.answer, self._clients.discard))


class _Client:
    """One connection: reads requests, or writes a reply, never both at once."""

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        answer: Callable[[bytes, Peer], Message],
        gone: Callable[[_Client], None],
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._answer = answer
        self._gone = gone
        self._request = bytearray()
        self._peer = Peer()
        self._reply = memoryview(b"")
        self._last = False  # disconnect after the reply
        self._timer: Timer = loop.after(TIMEOUT_S, self.close)
        loop.watch(connection.fileno(), self._read)

    def finish(self) -> None:
        """Send a due reply without waiting, and end the connection.

        The loop may end in the round that answered a request, when a guest's reset and a stop
        request come together.
        """
        with contextlib.suppress(OSError):
            if self._reply:
                self._connection.send(self._reply)
        self.close()

    def close(self) -> None:
        """End the connection; idempotent."""
        if self._connection.fileno() >= 0:
            self._loop.cancel(self._timer)
            self._loop.unwatch(self._connection.fileno())
            self._connection.close()
            self._peer.close_fds()
            self._gone(self)
            if self._peer.on_close is not None:
                self._peer.on_close()

    def _read(self) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(
                self._connection, CHUNK, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, fds, flags = b"", [], 0
        self._peer.fds += fds
        too_many = len(self._peer.fds) > MAX_DESCRIPTORS or flags & socket.MSG_CTRUNC
        if not data or too_many:
            self.close()
            return
        self._request += data
        self._take()

    def _take(self) -> None:
        """Answer the first complete request, and wait for room to send the reply."""
        line, newline, rest = self._request.partition(b"\n")
        if not newline and len(line) <= MAX_REQUEST:
            return
        self._request = rest
        try:
            if len(line) > MAX_REQUEST:
                raise WireError(f"a request of more than {MAX_REQUEST} bytes")
            reply = self._answer(bytes(line), self._peer)
        except WireError as error:
            reply, self._last = failure(f"malformed request: {error}"), True
        self._peer.close_fds()
        self._loop.cancel(self._timer)
        self._timer = self._loop.after(TIMEOUT_S, self.close)
        self._reply = memoryview(pack(reply))
        self._loop.unwatch(self._connection.fileno())
        self._loop.watch_room(self._connection.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._reply = self._reply[self._connection.send(self._reply) :]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._reply:
            return
        if self._last:
            self._disconnect()
            return
        if self._peer.take_over is not None:
            self._hand_over(self._peer.take_over)
            return
        self._loop.unwatch(self._connection.fileno())
        self._loop.watch(self._connection.fileno(), self._read)
        self._take()

    def _hand_over(self, take_over: Callable[[socket.socket, bytes], None]) -> None:
        """Give the connection to a function, for another protocol."""
        self._loop.cancel(self._timer)
        self._loop.unwatch(self._connection.fileno())
        self._gone(self)
        take_over(self._connection, bytes(self._request))

    def _disconnect(self) -> None:
        """Read the client's last bytes, and end the connection: unread bytes would discard the
        reply.

        Both directions are shut down first, so that this loop ends.
        """
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
            while self._connection.recv(CHUNK):
                pass
        self.close()
