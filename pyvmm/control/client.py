"""Requests to running VMs, over their control sockets.

A question is {"vm": name, "request": {...}}, or {"vm": null} for the info of every VM. ``relay``
answers questions from a client outside the emulated host, one on each line.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

from pyvmm.base.files import PRIVATE, Replacement
from pyvmm.base.paths import check_path
from pyvmm.control.sockets import running
from pyvmm.control.wire import (
    MAX_REPLY,
    Message,
    WireError,
    failure,
    failure_of,
    is_info,
    is_trusted,
    pack,
    parse,
    parse_reply,
)
from pyvmm.errors import EXIT_USAGE, HostError, VmmError

TIMEOUT_S: Final = 10.0  # for a reply
SAVE_S: Final = 3600.0  # for a snapshot
STOP_S: Final = 60.0  # for a debugger's connection, before it stops a VM on a busy host
END_S: Final = 20.0  # for the VM's end after a stop request
CHUNK: Final = 1 << 20

_Asked = TypeVar("_Asked")
_Reply = TypeVar("_Reply")


class Gone(HostError):
    """A VM ended before it replied."""


def answer(question: Message) -> Message:
    """Answer a question about this user's VMs on this machine; never raise a VmmError."""
    name = question.get("vm")
    if name is None:
        infos = at_once(_info, list(running()))
        return {"ok": True, "vms": [info for info in infos if info is not None]}
    for path in running():
        if path.stem == name:
            request = question["request"]
            try:
                return OPENING.get(str(request.get("do")), ask)(path, request)
            except VmmError as error:
                return failure_of(error)
    return failure(f"no VM called {name} is running", "`pyvmm list` shows the VMs", EXIT_USAGE)


def relay() -> None:
    """Read questions from standard input, one on each line, then answer all of them."""
    for reply in at_once(answer, [parse(line) for line in sys.stdin.buffer]):
        sys.stdout.write(pack(reply).decode())


def at_once(ask_one: Callable[[_Asked], _Reply], asked: Sequence[_Asked]) -> list[_Reply]:
    """Ask all VMs at once, and return their replies in order."""
    if len(asked) < 2:
        return [ask_one(one) for one in asked]
    replies: list[Future[_Reply]] = [Future() for _ in asked]

    def work(one: _Asked, reply: Future[_Reply]) -> None:
        try:
            reply.set_result(ask_one(one))
        except BaseException as error:
            reply.set_exception(error)

    for one, reply in zip(asked, replies, strict=True):
        # A daemon thread: Ctrl-C does not wait for it.
        threading.Thread(target=work, args=(one, reply), daemon=True).start()
    return [reply.result() for reply in replies]


def _info(path: Path) -> Message | None:
    """Return a VM's info, or its name and the error; None if it has just ended."""
    try:
        reply = ask(path, {"do": "info"})
    except Gone:
        return None
    except HostError as error:
        reply = failure_of(error)
    if reply["ok"] and not is_info(reply, path.stem):
        reply = failure(f"{path} is not the socket of a pyvmm VM: its info is wrong", "remove it")
    return reply if reply["ok"] else {**reply, "name": path.stem, "state": "not answering"}


def ask(path: Path, request: Message) -> Message:
    """Send a VM one request and return its reply, which may be a failure.

    If the request ends the VM, wait for its end.

    Raises:
        Gone: the VM ended first.
        HostError: the VM does not answer, or belongs to another user.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        return ask_on(connection, path, request)


def save(path: Path, request: Message) -> Message:
    """Save a VM to "file", which this process opens, marks and names; then end or resume the VM.

    "parent" is a snapshot of the VM. If this process dies before the file has its name, the VM
    continues.

    Raises: VmmError, also if a file cannot be opened or written.
    """
    from pyvmm.snapshot.reader import SnapshotFile  # imported lazily: only saves need them
    from pyvmm.snapshot.writer import finish

    with socket.socket(socket.AF_UNIX) as connection, contextlib.ExitStack() as undo:
        file = Path(request["file"])
        check_path(file, "the file")
        new = undo.enter_context(Replacement(file, PRIVATE))
        chain: list[SnapshotFile] = []
        if request.get("parent") is not None:
            check_path(Path(request["parent"]), "`parent`")
            parent = undo.enter_context(SnapshotFile.open(Path(request["parent"]), trust=True))
            chain = parent.chain()[::-1]
        asked = request | {"parents": [os.path.realpath(file.path) for file in chain]}
        reply = ask_on(connection, path, asked, [new.fd, *(file.fd for file in chain)])
        if reply["ok"]:
            reply["identity"], told = finish(new.fd, file)
            warnings = reply.get("warnings")
            reply["warnings"] = [*(warnings if isinstance(warnings, list) else ()), *told]
            new.commit()
            if request.get("resume") is not True:
                ask_on(connection, path, {"do": "stop"})
        return reply


def dump(path: Path, request: Message) -> Message:
    """Write a VM's core to "file", which this process opens and names.

    Raises: VmmError, also if the file cannot be written.
    """
    file = Path(request["file"])
    check_path(file, "the file")
    with socket.socket(socket.AF_UNIX) as connection, Replacement(file, PRIVATE) as new:
        reply = ask_on(connection, path, request, [new.fd])
        if reply["ok"]:
            new.commit()
        return reply


# The verbs whose files the client opens, because a confined VM opens none
OPENING: Final = {"save": save, "dump": dump}


def ask_on(
    connection: socket.socket, path: Path, request: Message, fds: Sequence[int] = ()
) -> Message:
    """Ask on a connection, which is made by the first request; see ``ask``."""
    name = path.stem
    verb = request.get("do")
    connection.settimeout(TIMEOUT_S)
    try:
        if not _is_connected(connection):
            connect(connection, path)
            if not is_trusted(connection):
                raise HostError(f"{path} belongs to another user", hint="remove it")
        with contextlib.suppress(BrokenPipeError):  # it has hung up, perhaps after a reply
            _send(connection, pack(request), fds)
        reply = parse_reply(_line(connection, timeout_of(request)))
        if verb == "stop" and reply.get("ok"):
            _wait_for_end(connection, name)
        return reply
    except TimeoutError as error:
        raise HostError(
            f"the VM {name} does not answer", hint="`pyvmm list` shows its process"
        ) from error
    except WireError as error:
        raise HostError(
            f"{path} is not the socket of a pyvmm VM: {error}", hint="remove it"
        ) from error
    except (OSError, EOFError) as error:
        if verb == "stop":
            return {"ok": True}
        raise Gone(f"the VM {name} has just ended") from error


def timeout_of(request: Message) -> float:
    """Return how many seconds the reply may take; saving a large memory takes long."""
    verb = str(request.get("do"))
    return SAVE_S if verb in OPENING else STOP_S if verb == "gdb" else TIMEOUT_S


def connect(connection: socket.socket, path: Path) -> None:
    """Connect; wait while the socket's backlog is full."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection.connect(str(path))
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise TimeoutError from error
            time.sleep(0.02)


def _is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


def _send(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send all bytes, and the descriptors with the first of them."""
    if fds:
        data = data[socket.send_fds(connection, [data], fds) :]
    connection.sendall(data)


def _line(connection: socket.socket, timeout_s: float) -> bytes:
    """Read up to a newline, within that time."""
    deadline = time.monotonic() + timeout_s
    line = bytearray()
    while not line.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        data = connection.recv(CHUNK)
        if not data:
            raise EOFError
        line += data
        if len(line) > MAX_REPLY:
            raise WireError("its reply is too long")
    return bytes(line)


def _wait_for_end(connection: socket.socket, name: str) -> None:
    """Wait until the VM ends, which closes the connection."""
    connection.settimeout(END_S)
    try:
        while connection.recv(CHUNK):
            pass
    except TimeoutError as error:
        raise HostError(f"the VM {name} has not ended {END_S:g} s after its stop") from error


if __name__ == "__main__":
    relay()
