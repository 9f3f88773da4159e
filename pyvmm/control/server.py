"""A VM's end of its control socket: takes requests in the loop's thread, and answers.

Nothing a client does harms the VM: one that sends rubbish is told so and let go, as is one that
says nothing, or does not take its answer, for a while.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Final

from pyvmm.base.loop import Loop, Timer
from pyvmm.control.sockets import Claim
from pyvmm.control.wire import (
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

# Answers a request; what it raises as a VmmError is the reply that says so.
Handler = Callable[[Message], Message]

CLIENTS: Final = 32  # at a time
PATIENCE_S: Final = 10.0
REST_S: Final = 0.5
CHUNK: Final = 64 << 10


class Server:
    """Serves the clients of one VM from a loop; ``close`` before the loop ends."""

    def __init__(self, loop: Loop, claim: Claim, handlers: Mapping[str, Handler]) -> None:
        self._loop = loop
        self._listener = claim.listener
        self._fd = claim.listener.fileno()
        self._handlers = handlers
        self._clients: set[_Client] = set()
        self._rest: Timer | None = None
        self._listen()

    def close(self) -> None:
        """Let every client go, with the reply that is due; idempotent."""
        if self._rest is not None:
            self._loop.cancel(self._rest)
        self._loop.unwatch(self._fd)
        for client in list(self._clients):
            client.finish()

    def answer(self, line: bytes) -> Message:
        """The reply to a request.

        Raises: WireError, when it is none.
        """
        request = parse(line)
        verb = request.get("do")
        handler = self._handlers.get(verb) if isinstance(verb, str) else None
        if handler is None:
            known = ", ".join(self._handlers)
            return failure(f"unknown request {str(verb)[:40]!r}", f"there are {known}")
        try:
            return {"ok": True, **handler(request)}
        except VmmError as error:
            return failure_of(error)
        except Exception as error:  # a bug of ours is the client's to report, not the VM's end
            return failure(f"unexpected {type(error).__name__}: {error}")

    def _listen(self) -> None:
        self._rest = None
        self._loop.watch(self._fd, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:  # it has gone again
            return
        except OSError:  # no descriptor is left: the client waits, and the loop must not spin
            self._loop.unwatch(self._fd)
            self._rest = self._loop.after(REST_S, self._listen)
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
        answer: Callable[[bytes], Message],
        gone: Callable[[_Client], None],
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._answer = answer
        self._gone = gone
        self._request = bytearray()
        self._reply = memoryview(b"")
        self._last = False  # let go when the reply is out
        self._timer: Timer = loop.after(PATIENCE_S, self.close)
        loop.watch(connection.fileno(), self._read)

    def finish(self) -> None:
        """Send what a socket takes at once of a reply that is due, and end the connection.

        The loop may have ended in the round in which a request was answered: a guest's own reset
        and the request to stop come together.
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
            self._gone(self)

    def _read(self) -> None:
        try:
            data = self._connection.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._request += data
        self._take()

    def _take(self) -> None:
        """Answer the first whole request there is, and wait for room to send the reply."""
        line, newline, rest = self._request.partition(b"\n")
        if not newline and len(line) <= MAX_REQUEST:
            return
        self._request = rest
        try:
            if len(line) > MAX_REQUEST:
                raise WireError(f"a request of more than {MAX_REQUEST} bytes")
            reply = self._answer(bytes(line))
        except WireError as error:
            reply, self._last = failure(f"that is no request: {error}"), True
        self._wait()
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
            self._let_go()
            return
        self._loop.unwatch(self._connection.fileno())
        self._loop.watch(self._connection.fileno(), self._read)
        self._take()

    def _let_go(self) -> None:
        """End the connection so that the reply still arrives: unread bytes would reset it.

        Both ways: a client that sends without end would hold the loop here.
        """
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
            while self._connection.recv(CHUNK):
                pass
        self.close()

    def _wait(self) -> None:
        """Be patient anew."""
        self._loop.cancel(self._timer)
        self._timer = self._loop.after(PATIENCE_S, self.close)
