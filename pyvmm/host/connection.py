"""Connecting to a new session in an emulated host, on a free port.

A port's earlier session may still be ending its command.  So the client waits for the new
session's hello before it sends anything; without one it tries the next port.
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
PORT_TIMEOUT_S: Final = 60.0


class Unreachable(HostError):
    """A host that ended before it had the command: the command can run in a new one."""


@contextlib.contextmanager
def connected(running: Running, timeout_s: float | None = None) -> Iterator[socket.socket]:
    """Connect to a session on a free port that is ready for a request.

    ``timeout_s`` limits the wait for one; the default is PORT_TIMEOUT_S.

    Raises:
        Unreachable: the host has ended, or is ending.
        HostError: every port is in use, or no session answers.
    """
    deadline = time.monotonic() + (PORT_TIMEOUT_S if timeout_s is None else timeout_s)
    hello_s = HELLO_S
    for number in itertools.cycle(range(1, PORTS + 1)):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        with _port(running, number) as connection:
            if connection is not None:
                if _said_hello(running, connection, min(hello_s, left_s)):
                    yield connection
                    return
                hello_s *= 2  # the host may be slow
        if number == PORTS:
            time.sleep(0.05)
    if hello_s > HELLO_S:
        raise no_answer(running)
    raise HostError(
        f"all {PORTS} sessions of the emulated host are in use", hint="wait for one to end"
    )


def greet(running: Running, connection: socket.socket, request: Request) -> bytes:
    """Send the request to a session; return the output that came with its answer.

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
        raise ended_during_command(running) from error
    raise ended_during_command(running)


def ended_during_command(running: Running) -> HostError:
    """Return the error for a connection that breaks while a command runs."""
    return HostError(
        "the emulated host ended during the command "
        f"(process {running.pid}: {running.last_output})",
        hint="run the command again: it starts a new host",
    )


def no_answer(running: Running) -> HostError:
    """Return the error for a host that runs and does not answer."""
    return HostError(
        f"the emulated host does not answer ({running.last_output})",
        hint="`pyvmm host rm`, then run the command again: it makes a new host",
    )


@contextlib.contextmanager
def _port(running: Running, number: int) -> Iterator[socket.socket | None]:
    """Connect to one port; yield None if another client has it."""
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
    """Return whether a session on that port is ready for a request."""
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
        f"the emulated host has ended (process {running.pid}: {running.last_output})",
        hint="run the command again: it starts a new host",
    )
