"""The client's way to a session in an emulated host: a free port, and somebody who answers.

A port's session may still be busy ending what an earlier client left behind.  So a client says
nothing before a new session has said hello; where none does, the next port is tried.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Final

from pyvmm.base.dirs import try_lock
from pyvmm.errors import HostError
from pyvmm.host.running import Running
from pyvmm.host.wire import CHUNK, HELLO, LENGTH, MAGIC, NONCE_SIZE, PORTS, Request, Synchroniser

HELLO_S: Final = 0.5  # usually 30 ms
ANSWER_S: Final = 30.0
PORT_WAIT_S: Final = 60.0


class Unreachable(HostError):
    """The host ended before it was given the command: another one can be started for it."""


@contextlib.contextmanager
def connected(running: Running, wait_s: float | None = None) -> Iterator[socket.socket]:
    """A connection to a session that waits for a request, on a port no other client uses.

    One is waited for that long, PORT_WAIT_S where nothing else is said.

    Raises:
        Unreachable: the host has ended, or ends just now.
        HostError: every port is in use, or nobody answers.
    """
    deadline = time.monotonic() + (PORT_WAIT_S if wait_s is None else wait_s)
    patience_s = HELLO_S
    for number in itertools.cycle(range(1, PORTS + 1)):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        with _port(running, number) as connection:
            if connection is not None:
                if _said_hello(running, connection, min(patience_s, left_s)):
                    yield connection
                    return
                patience_s *= 2  # the host may be slow
        if number == PORTS:
            time.sleep(0.05)
    if patience_s > HELLO_S:
        raise no_answer(running)
    raise HostError(
        f"all {PORTS} sessions of the emulated host are in use", hint="wait for one to end"
    )


def greet(running: Running, connection: socket.socket, request: Request) -> bytes:
    """Hand a session the request; returns what came of its output together with the answer.

    Raises:
        HostError: the host ended, or does not answer.
    """
    nonce = os.urandom(NONCE_SIZE)
    body = json.dumps(vars(request)).encode()
    finder = Synchroniser(MAGIC + nonce)
    connection.settimeout(ANSWER_S)
    try:
        connection.sendall(MAGIC + nonce + LENGTH.pack(len(body)) + body)
        while data := connection.recv(CHUNK):
            rest = finder.feed(data)
            if rest is not None:
                connection.settimeout(None)
                return rest
    except TimeoutError as error:
        raise no_answer(running) from error
    except OSError as error:
        raise ended_in_the_middle(running) from error
    raise ended_in_the_middle(running)


def ended_in_the_middle(running: Running) -> HostError:
    """What to say when the connection breaks while a command runs."""
    return HostError(
        f"the emulated host ended in the middle of the command (process {running.pid}: "
        f"{running.last_words})",
        hint="run the command again: it starts a new one",
    )


def no_answer(running: Running) -> HostError:
    """What to say when a host is there, and silent."""
    return HostError(
        f"the emulated host does not answer ({running.last_words})",
        hint="pyvmm host rm, then run the command again: it makes the host anew",
    )


@contextlib.contextmanager
def _port(running: Running, number: int) -> Iterator[socket.socket | None]:
    """A connection to one port, or None where another client has it."""
    path = running.path / f"p{number}"
    with contextlib.ExitStack() as stack:
        try:
            lock = try_lock(path.with_suffix(".lock"))
            if lock is not None:
                stack.callback(os.close, lock)
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
                connection.connect(str(path))
        except OSError as error:
            raise _unreachable(running) from error
        yield None if lock is None else connection


def _said_hello(running: Running, connection: socket.socket, timeout_s: float) -> bool:
    """Whether a session is there, and waits for a request."""
    finder = Synchroniser(HELLO)
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            data = connection.recv(CHUNK)
        except TimeoutError:
            break
        except OSError as error:
            raise _unreachable(running) from error
        if not data:
            raise _unreachable(running)
        if finder.feed(data) is not None:
            return True
    return False


def _unreachable(running: Running) -> Unreachable:
    return Unreachable(
        f"the emulated host has ended (process {running.pid}: {running.last_words})",
        hint="run the command again: it starts a new one",
    )
