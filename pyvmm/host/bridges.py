"""Ptys of this machine for the terminals of a guest in an emulated host.

For each terminal a second session runs the module ``handover`` inside.  It passes its standard
input and output to the command there.  The other end of that session is a pty here.  So each
terminal has its own channel and flow control, and cannot block another.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterable
from contextlib import ExitStack

from pyvmm.host import client
from pyvmm.host.running import Running
from pyvmm.host.share import ALL, Needs
from pyvmm.terminal.line import OUTER_VARIABLE
from pyvmm.terminal.pty import Carrier, Pty

HANDOVER = "pyvmm.host.inside.handover"


def run_with_ttys(
    running: Running, argv: list[str], ttys: Iterable[int], needs: Needs = ALL
) -> int:
    """Run a command in a host, with those terminals of its guest on ptys of this machine.

    Raises:
        Unreachable: the host ended before it had the command.
        HostError: the host ended during the command, or no pty is left.
    """
    with ExitStack() as stack:
        outer = {number: _bridge(running, stack) for number in sorted(ttys)}
        environment = {OUTER_VARIABLE: json.dumps(outer)} if outer else {}
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
