"""Connecting to a new session in an emulated host, on a free port.

A port's earlier session may still be ending its command.  So the client waits for the new
session's hello before it sends anything; without one it tries the next port.

Every running VM has a port.  Some ports are reserved for commands that control VMs.
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
from pyvmm.host.wire import (
    CHUNK,
    HELLO,
    LENGTH,
    MAGIC,
    NONCE_SIZE,
    PORTS,
    RESERVED,
    Request,
    Synchroniser,
)

HELLO_S: Final = 0.5  # usually 30 ms
BUSY_S: Final = 10.0  # to wait for a free port
ANSWER_S: Final = 30.0
PORT_TIMEOUT_S: Final = 60.0


class Unreachable(HostError):
    """A host that ended before it had the command: the command can run in a new one."""


@contextlib.contextmanager
def connected(
    running: Running, timeout_s: float | None = None, *, control: bool = False
) -> Iterator[socket.socket]:
    """Connect to a session on a free port that is ready for a request.

    ``timeout_s`` limits the wait for one; the default is PORT_TIMEOUT_S.  A command that controls
    VMs (``control``) may have a reserved port.

    Raises:
        Unreachable: the host has ended, or is ending.
        HostError: every port is in use, or no session answers.
    """
    ports = range(PORTS, 0, -1) if control else range(1, PORTS - RESERVED + 1)
    began = time.monotonic()
    deadline = began + (PORT_TIMEOUT_S if timeout_s is None else timeout_s)
    hello_s = HELLO_S
    for number in itertools.cycle(ports):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        with _port(running, number) as connection:
            if connection is not None:
                if _said_hello(running, number, connection, min(hello_s, left_s)):
                    yield connection
                    return
                hello_s *= 2  # the host may be slow
                if running.is_stopped:
                    break
        if number == ports[-1]:
            if hello_s == HELLO_S and time.monotonic() - began > BUSY_S:
                break
            time.sleep(0.05)
    if hello_s > HELLO_S:
        raise no_answer(running)
    raise HostError(
        f"{len(ports)} commands run in the emulated host {running.path.name}, and it takes no more",
        hint="end one, or choose another host with `host.kernel`, `host.qemu` or `host.cpu`",
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
    if running.is_stopped:
        return HostError(
            f"the emulated host does not answer: its process {running.pid} is stopped",
            hint=f"`kill -CONT {running.pid}`, or `pyvmm host stop --all`",
        )
    return HostError(
        f"the emulated host does not answer ({running.last_output})",
        hint="`pyvmm host rm`, then run the command again: it makes a new host",
    )


@contextlib.contextmanager
def _port(running: Running, number: int) -> Iterator[socket.socket | None]:
    """Yield a socket for one port, or None if another client has the port."""
    path = running.path / f"p{number}"
    with contextlib.ExitStack() as stack:
        try:
            lock = try_lock(path.with_suffix(".lock"))
            if lock is not None:
                stack.callback(os.close, lock)
                connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        except OSError as error:
            raise _unreachable(running) from error
        yield None if lock is None else connection


def _said_hello(running: Running, number: int, connection: socket.socket, timeout_s: float) -> bool:
    """Connect to a port; return whether a session there is ready for a request."""
    finder = Synchroniser(HELLO)
    deadline = time.monotonic() + timeout_s
    is_connected = False
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            if not is_connected:
                connection.connect(str(running.path / f"p{number}"))
                is_connected = True
            data = connection.recv(CHUNK)
        except TimeoutError:
            break
        except BlockingIOError:  # the backlog is full: QEMU accepts no connection
            time.sleep(min(left, 0.02))
            continue
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
