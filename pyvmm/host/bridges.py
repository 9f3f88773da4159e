"""Ptys of this machine for the terminals of a guest in an emulated host.

For each terminal a second session runs the module ``handover`` inside.  It passes its standard
input and output to the command there.  The other end of that session is a pty here.  So each
terminal has its own channel and flow control, and cannot block another.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from socket import socket as Socket
from typing import Protocol

from pyvmm.errors import HostError
from pyvmm.host import client
from pyvmm.host.running import Running
from pyvmm.host.share import ALL, Needs
from pyvmm.terminal.line import OUTER_VARIABLE
from pyvmm.terminal.pty import Carrier, Pty

GDB_VARIABLE = "PYVMM_GDB_SOCKET"  # as in pyvmm.control.debugging
DEBUGGING = "pyvmm.control.debugging"
HANDOVER = "pyvmm.host.inside.handover"


class Listener(Protocol):
    """A listening socket for debuggers: control.debugging.DebugListener is one."""

    @property
    def socket(self) -> Socket:
        """The socket."""

    def accept(self) -> Socket | None:
        """Wait for a debugger; return None if it may not connect."""

    def close(self) -> None:
        """Close the socket."""


def run_with_ttys(
    running: Running,
    argv: list[str],
    ttys: Iterable[int],
    needs: Needs = ALL,
    debuggers: Listener | None = None,
) -> int:
    """Run a command in a host, with those terminals of its guest on ptys of this machine.

    Its guest's debuggers connect to a listener of this machine.

    Raises:
        Unreachable: the host ended before it had the command.
        HostError: the host ended during the command, or no pty is left.
    """
    with ExitStack() as stack:
        outer = {number: _bridge(running, stack) for number in sorted(ttys)}
        environment = {OUTER_VARIABLE: json.dumps(outer)} if outer else {}
        if debuggers is not None:
            name = f"pyvmm-gdb-{secrets.token_hex(16)}"
            environment[GDB_VARIABLE] = name
            stack.enter_context(forwarded(running, debuggers, f"@{name}"))
        return client.run(running, argv, environment, needs)


def _bridge(running: Running, stack: ExitStack) -> tuple[str, str]:
    """Connect one terminal; return the pty's path and the name of the handover's socket."""
    name = f"pyvmm-tty-{secrets.token_hex(16)}"
    pty = Pty()
    stack.callback(pty.close)
    guest, end = map(stack.enter_context, socket.socketpair())
    command = ["python3", "-m", HANDOVER, name]
    stack.enter_context(client.bridged(running, command, end))
    stack.enter_context(Carrier(pty, guest).start())  # closed first, while the session still runs
    return pty.path, name


@contextlib.contextmanager
def forwarded(running: Running, listener: Listener, name: str) -> Iterator[None]:
    """Forward debuggers that connect to a listener during the block to a VM in a host.

    ``name`` is the VM's name, as `pyvmm.control.debugging` takes it.
    """
    command = ["python3", "-m", DEBUGGING, name]

    def carry(connection: socket.socket) -> None:
        with (
            contextlib.suppress(HostError),
            connection,
            client.bridged(running, command, connection) as thread,
        ):
            thread.join()

    with serving(listener, carry):
        yield


@contextlib.contextmanager
def serving(listener: Listener, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve each debugger that connects to a listener during the block, in a thread of its own."""
    listener.socket.setblocking(True)

    def accept() -> None:
        while listener.socket.fileno() >= 0:
            connection = listener.accept()
            if connection is not None:
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        listener.close()
