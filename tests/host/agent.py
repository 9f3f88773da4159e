"""The inner half of the command channel on this machine, in place of the emulated host's agent.

``python -m tests.host.agent DIRECTORY`` listens on the sockets DIRECTORY/p1 ... p5, as QEMU does
on a host's ports, and serves each client with the real session code.  It omits the
preparations of a started host (clock, random pool, mounts), and actions that need root.
With a file DIRECTORY/stale, its content is what an earlier client left unread in the port.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from pyvmm.host.inside import command, session

PORTS = 5  # a command with four terminals


def main() -> None:
    """Serve until killed."""
    directory = Path(sys.argv[1])
    with contextlib.ExitStack() as stack:
        for target, name, instead in _root_only(directory):
            stack.enter_context(mock.patch.object(target, name, instead))
        _listen(directory)


def _listen(directory: Path) -> None:
    waiting = selectors.DefaultSelector()
    for number in range(1, PORTS + 1):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / f"p{number}"))
        listener.listen()
        waiting.register(listener, selectors.EVENT_READ)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # sessions bury themselves
    (directory / "ready").touch()
    while True:
        for key, _ in waiting.select():
            assert isinstance(key.fileobj, socket.socket)
            _serve(key.fileobj.accept()[0], directory / "stale")


def _serve(connection: socket.socket, stale: Path) -> None:
    with connection:
        if os.fork():
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        port = os.dup(connection.fileno())
        connection.close()
        with contextlib.suppress(FileNotFoundError):
            os.write(port, stale.read_bytes())
        os.set_blocking(port, False)
        session.serve(port)
        os._exit(0)


def _root_only(directory: Path) -> Iterator[tuple[Any, str, Any]]:
    """Yield the functions to replace, and their replacements."""
    yield session, "_prepare", lambda request: None
    yield command, "_runtime_dir", lambda uid, gid: str(directory)
    if os.getuid():
        yield os, "setgroups", lambda groups: None


if __name__ == "__main__":
    main()
