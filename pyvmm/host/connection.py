"""Connecting to a new session in an emulated host, on a free port.

A port's earlier session may still be ending its command.  So the client waits for the new
session's hello before it sends anything; if no hello comes, it tries the next port.

Every running VM has a port.  When all are in use, the client adds some, up to PORTS.  A few are
reserved for commands that control VMs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Final

from pyvmm.base.dirs import locked, try_lock
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
    CommandRequest,
    Synchroniser,
)

HELLO_S: Final = 0.5  # usually 30 ms
BUSY_S: Final = 10.0  # to wait for a free port
ADDED: Final = 4  # ports at once
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
    VMs (``control``) may use a reserved port.

    Raises:
        Unreachable: the host has ended, or is ending.
        HostError: every port is in use, or no session answers.
    """
    began = time.monotonic()
    deadline = began + (PORT_TIMEOUT_S if timeout_s is None else timeout_s)
    hello_s = HELLO_S
    while True:
        ports = [number for number in range(1, running.ports + 1) if number not in RESERVED]
        if control:
            ports = [*RESERVED, *ports]
        used = 0
        for number in ports:
            with _port(running, number) as connection:
                if connection is None:
                    used += 1
                    continue
                left_s = deadline - time.monotonic()
                if _said_hello(running, number, connection, min(hello_s, left_s)):
                    yield connection
                    return
                hello_s *= 2  # the host may be slow
            if running.is_stopped or time.monotonic() > deadline:
                raise no_answer(running)
        if used == len(ports) and not control and running.ports < PORTS:
            _add_ports(running)
        elif used == len(ports) and time.monotonic() > min(deadline, began + BUSY_S):
            raise _full(running, used)
        time.sleep(0.05)


def greet(running: Running, connection: socket.socket, request: CommandRequest) -> bytes:
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
            hint=f"resume it with `kill -CONT {running.pid}`",
        )
    return HostError(
        f"the emulated host does not answer ({running.last_output})",
        hint="`pyvmm host rm`, then run the command again: it makes a new host",
    )


def _full(running: Running, used: int) -> HostError:
    return HostError(
        f"{used} commands run in the emulated host {running.path.name}, and it takes no more",
        hint="end one, or choose another host with `host.kernel`, `host.qemu` or `host.cpu`",
    )


def _add_ports(running: Running) -> None:
    """Add ports to a host whose ports are in use, unless another command does."""
    if running.is_stopped:
        raise no_answer(running)
    known = running.ports
    try:
        with locked(running.path / "ports.lock"):
            if running.ports == known:
                from pyvmm.host import qemu  # imported lazily: large, and rarely used

                qemu.add_ports(running.path, range(known + 1, min(known + ADDED, PORTS) + 1))
    except OSError as error:
        raise _unreachable(running) from error


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
