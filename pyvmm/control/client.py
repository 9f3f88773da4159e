"""Asking running VMs: the other end of their control sockets.

A question is {"vm": name, "request": {...}}, or {"vm": null} for what all of them are; ``relay``
answers such lines for whoever is outside an emulated host.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

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
from pyvmm.errors import EXIT_USAGE, HostError

PATIENCE_S: Final = 10.0  # for a reply
SAVE_S: Final = 3600.0  # for a snapshot
END_S: Final = 20.0  # for a VM that was told to stop
CHUNK: Final = 1 << 20

_Asked = TypeVar("_Asked")
_Reply = TypeVar("_Reply")


class Gone(HostError):
    """The VM ended before it answered."""


def answer(question: Message) -> Message:
    """The answer to a question about this user's VMs on this machine; never raises VmmError."""
    name = question.get("vm")
    if name is None:
        return {"ok": True, "vms": _everyone()}
    for path in running():
        if path.stem == name:
            try:
                return ask(path, question["request"])
            except HostError as error:
                return failure_of(error)
    return failure(f"no VM called {name} is running", "pyvmm list shows those that are", EXIT_USAGE)


def answers(questions: Sequence[Message]) -> list[Message]:
    """The answers to questions, in their order."""
    return at_once(answer, questions)


def relay() -> None:
    """Answer the questions on standard input, a line each, when all have come."""
    for reply in answers([parse(line) for line in sys.stdin.buffer]):
        sys.stdout.write(pack(reply).decode())


def at_once(ask_one: Callable[[_Asked], _Reply], asked: Sequence[_Asked]) -> list[_Reply]:
    """Every reply, in order, asked for at the same time: one that takes long holds up no other."""
    if len(asked) < 2:
        return [ask_one(one) for one in asked]
    replies: list[Future[_Reply]] = [Future() for _ in asked]

    def work(one: _Asked, reply: Future[_Reply]) -> None:
        try:
            reply.set_result(ask_one(one))
        except BaseException as error:
            reply.set_exception(error)

    for one, reply in zip(asked, replies, strict=True):
        # A daemon: Ctrl-C waits for nobody.
        threading.Thread(target=work, args=(one, reply), daemon=True).start()
    return [reply.result() for reply in replies]


def _everyone() -> list[Message]:
    """What every VM is; of one that does not say, its name and why."""
    return [info for info in at_once(_info, list(running())) if info is not None]


def _info(path: Path) -> Message | None:
    """What a VM is, or None where it has just ended."""
    try:
        reply = ask(path, {"do": "info"})
    except Gone:
        return None
    except HostError as error:
        reply = failure_of(error)
    if reply["ok"] and not is_info(reply, path.stem):
        reply = failure(f"{path} is no VM of pyvmm's: that is not what it is", "remove it")
    return reply if reply["ok"] else {**reply, "name": path.stem, "state": "not answering"}


def ask(path: Path, request: Message) -> Message:
    """Send a VM one request; its reply, which may say that it failed.

    After "stop" the VM has ended when this returns, be it by itself in that moment.

    Raises:
        Gone: it ended first.
        HostError: it does not answer, or is no VM of this user's.
    """
    name = path.stem
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        try:
            _connect(connection, path)
            if not is_trusted(connection):
                raise HostError(f"{path} belongs to somebody else", hint="remove it")
            with contextlib.suppress(BrokenPipeError):  # let go at once; it may have said why
                connection.sendall(pack(request))
            reply = parse_reply(_line(connection, patience_of(request)))
            ends = request.get("do") == "stop" or is_last(request)
            if ends and reply.get("ok"):
                _wait_for_end(connection, name)
        except TimeoutError as error:
            raise HostError(
                f"the VM {name} does not answer", hint="pyvmm list shows its process"
            ) from error
        except WireError as error:
            raise HostError(f"{path} is no VM of pyvmm's: {error}", hint="remove it") from error
        except (OSError, EOFError) as error:
            if request.get("do") == "stop":
                return {"ok": True}
            raise Gone(f"the VM {name} has just ended") from error
    return reply


def patience_of(request: Message) -> float:
    """How many seconds a reply may take: to save a large memory takes its time."""
    return SAVE_S if request.get("do") == "save" else PATIENCE_S


def is_last(request: Message) -> bool:
    """Whether a VM that does as it is asked has ended then."""
    return request.get("do") == "save" and request.get("resume") is not True


def _connect(connection: socket.socket, path: Path) -> None:
    """Connect, waiting while the VM has not taken as many clients as may stand in line."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.connect(str(path))
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise TimeoutError from error
            time.sleep(0.02)


def _line(connection: socket.socket, patience_s: float) -> bytes:
    """What comes up to a newline; all of it in good time."""
    deadline = time.monotonic() + patience_s
    line = bytearray()
    while not line.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        data = connection.recv(CHUNK)
        if not data:
            raise EOFError
        line += data
        if len(line) > MAX_REPLY:
            raise WireError("an endless reply")
    return bytes(line)


def _wait_for_end(connection: socket.socket, name: str) -> None:
    """Wait for the end of the connection, which is the VM's."""
    connection.settimeout(END_S)
    try:
        while connection.recv(CHUNK):
            pass
    except TimeoutError as error:
        raise HostError(f"the VM {name} is stopping, but does not end") from error


if __name__ == "__main__":
    relay()
