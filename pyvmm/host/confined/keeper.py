"""The program that starts an emulated host's QEMU in mounts of its own, and shares files with it.

QEMU's root has its program, the saved host, its sockets, and a directory of trees (tree.py). The
keeper still sees all of the user's files. A command outside connects to the keeper and names its
files; the keeper makes a tree of them, and removes it when the command has ended. QEMU cannot
reach the keeper's socket. If QEMU or the keeper ends, the other one ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NoReturn

from pyvmm.base.records import Record
from pyvmm.host.confined import mounts, tree
from pyvmm.host.share import WHOLE, Needs

ROOM: Final = "root"  # the directory for QEMU's root, among the host's sockets
SHARE: Final = "share"  # there too: the trees of running commands
OPTIONS: Final = "mode=755,size=4m"
DEVICES: Final = ("null", "zero", "random", "urandom")
# As root, QEMU accesses the files of all users, and changes their owners and modes.
CAPABILITIES: Final = (
    mounts.CAP_CHOWN, mounts.CAP_DAC_OVERRIDE, mounts.CAP_FOWNER, mounts.CAP_FSETID,
)  # fmt: skip
LINGER_S: Final = 120.0  # the time of a command whose client was killed, for example to save
LONGEST: Final = 1 << 20  # bytes of a request
DONE: Final = b"done"


class Order(Record):
    """What the keeper starts: QEMU's command, and what QEMU may see beside the trees."""

    command: list[str]
    sockets: str
    listen: str
    alive: int  # the lock that QEMU holds until it ends
    reads: list[str]
    writes: list[str]
    linger_s: float = LINGER_S  # how long a tree remains when its client was killed


def main() -> None:
    """Start QEMU, report its process id on standard output as JSON, and serve until it ends.

    Without an order, report only whether this machine lets a process confine itself.
    """
    if not sys.argv[1:]:
        print(json.dumps(_probe()))
        return
    order = Order(**json.loads(sys.argv[1]))
    try:
        listener = _listen(order.listen)
        room = _prepare(order)
        process = _start(order, room)
    except OSError as error:
        print(json.dumps({"refusal": error.strerror}), flush=True)
        return
    os.close(order.alive)
    print(json.dumps({"pid": process}), flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        share = room / order.sockets.lstrip("/") / SHARE
        Keeper(listener, share, order.linger_s).serve_until_end(process)
    finally:
        Path(order.listen).unlink(missing_ok=True)


def _probe() -> dict[str, str]:
    """Try the system calls that a keeper needs."""
    try:
        mounts.isolate(network=False)
        with tempfile.TemporaryDirectory() as name:
            mounts.mount("probe", Path(name), "tmpfs", 0)
            mounts.set_writable(Path(name), False)
            mounts.unmount(Path(name))
        mounts.keep_capabilities(*CAPABILITIES)
    except OSError as error:
        return {"refusal": error.strerror or str(error)}
    return {}


def _listen(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)  # of a keeper that was killed
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _prepare(order: Order) -> Path:
    """Make QEMU's root, and return its directory.  Raises: OSError."""
    sockets = Path(order.sockets)
    room = sockets / ROOM
    for path in (room, sockets / SHARE):
        path.mkdir(exist_ok=True)
    mounts.isolate(network=False)
    mounts.mount("room", room, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, OPTIONS)
    mounts.mount("none", room, None, mounts.MS_UNBINDABLE)  # so a tree of all files lacks it
    tree.show([(Path(path), False) for path in order.reads], room)
    tree.show([(Path(path), True) for path in (*order.writes, order.sockets)], room)
    for name in DEVICES:
        target = room / "dev" / name
        target.parent.mkdir(exist_ok=True)
        target.touch()
        mounts.bind(Path("/dev", name), target, writable=True, devices=True)
    for name in ("tmp", "proc/self"):
        (room / name).mkdir(parents=True, exist_ok=True)
    share = room / order.sockets.lstrip("/") / SHARE
    mounts.mount(SHARE, share, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, tree.OPTIONS)
    return room


def _start(order: Order, room: Path) -> int:
    """Start QEMU in its root, and return its process id.

    Raises: OSError, also if QEMU's process cannot confine itself.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    keeper = os.getpid()
    process = os.fork()
    if not process:
        _become_qemu(order, room, keeper, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        problem = pipe.read()
    if problem:
        os.waitpid(process, 0)
        raise OSError(0, problem.decode())
    return process


def _become_qemu(order: Order, room: Path, keeper: int, problem: int) -> NoReturn:
    """Execute QEMU in this forked process, or write the problem to a pipe and end."""
    try:
        os.dup2(2, 1)  # QEMU's log
        mounts.end_with_parent(signal.SIGTERM)
        if os.getppid() != keeper:
            os._exit(1)
        # QEMU opens its own descriptors by name to change modes and extended attributes.
        mounts.mount(f"/proc/{os.getpid()}", room / "proc/self", None, mounts.MS_BIND)
        os.chroot(room)
        os.chdir("/")
        mounts.keep_capabilities(*CAPABILITIES)
        os.execv(order.command[0], order.command)
    except OSError as error:
        os.write(problem, (error.strerror or "").encode())
    finally:
        os._exit(1)


class _Client:
    """A command outside: its connection, and its tree."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.tree: Path | None = None
        self.ends_at: float | None = None  # set when it hangs up before it is done


class Keeper:
    """The trees of the commands that run."""

    def __init__(self, listener: socket.socket, share: Path, linger_s: float) -> None:
        self._listener = listener
        self._share = share
        self._linger_s = linger_s
        self._clients: set[_Client] = set()

    def serve_until_end(self, process: int) -> None:
        """Serve commands until QEMU ends."""
        with selectors.DefaultSelector() as selector:
            end = os.pidfd_open(process)
            selector.register(end, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                lingering = [c.ends_at for c in self._clients if c.ends_at is not None]
                left = max(0.0, min(lingering) - time.monotonic()) if lingering else None
                for key, _ in selector.select(left):
                    if key.fileobj == end:
                        os.waitpid(process, 0)
                        return
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    else:
                        self._receive(key.data, selector)
                for client in [*self._clients]:
                    if client.ends_at is not None and client.ends_at <= time.monotonic():
                        self._remove(client)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            client = _Client(connection)
            self._clients.add(client)
            selector.register(connection, selectors.EVENT_READ, client)

    def _receive(self, client: _Client, selector: selectors.BaseSelector) -> None:
        try:
            data = client.connection.recv(1 << 16)
        except OSError:
            data = b""
        client.received += data
        *lines, client.received = client.received.split(b"\n")
        is_done = DONE in lines
        for line in lines:
            if line != DONE:
                client.connection.sendall(json.dumps(self._grant(client, line)).encode() + b"\n")
        if is_done:
            self._remove(client)
            with contextlib.suppress(OSError):
                client.connection.sendall(b"\n")
        if is_done or not data or len(client.received) > LONGEST:
            selector.unregister(client.connection)
            client.connection.close()
            if not is_done:
                client.ends_at = time.monotonic() + self._linger_s

    def _grant(self, client: _Client, line: bytes) -> dict[str, str]:
        """Make the tree of a request, and return the reply."""
        try:
            request: dict[str, Any] = json.loads(line)
            paths = {kind: tuple(map(Path, request[kind])) for kind in ("reads", "updates",
                                                                        "creates")}  # fmt: skip
            needs = Needs(**paths, everything=request["everything"])
            client.tree = self._share / f"{WHOLE * needs.everything}{secrets.token_hex(16)}"
            client.tree.mkdir()
            tree.make(client.tree, needs, Path(request["cwd"]))
            return {"tree": client.tree.name}
        except OSError as error:
            return {"error": error.strerror or str(error)}

    def _remove(self, client: _Client) -> None:
        """Remove a command's tree."""
        self._clients.discard(client)
        if client.tree is None:
            return
        with contextlib.suppress(OSError):  # it could not be made
            mounts.unmount(client.tree)
        with contextlib.suppress(OSError):
            client.tree.rmdir()


if __name__ == "__main__":
    main()
