"""A guest in a process of its own, which a bug of the host's may kill without taking the rest."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Self

from pyvmm.config import Config
from pyvmm.errors import VmmError
from pyvmm.machine.machine import Machine

ANSWER_S: Final = 120.0  # an emulated host may be busy, and the machine it is on


class GuestEnded(VmmError):
    """The guest, or the process that runs it, does not answer any more.

    ``signal`` is what killed the process, 0 where nothing did.
    """

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


class GuestProcess:
    """A guest that is told what to do by letters on its console, and answers in lines."""

    def __init__(self, config: Config, elsewhere: frozenset[int]) -> None:
        """Start it; all of its process but the vCPUs stays on the CPUs ``elsewhere``.

        Raises: GuestEnded, with the words of what refused it.
        """
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _be_guest(theirs, config, elsewhere)
        theirs.close()
        self._socket = ours
        self._answers = ours.makefile("r")
        self._status: int | None = None
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, letter: str) -> tuple[str, int]:
        """Type a letter; the line it answers, and how many exits to the VMM there were so far."""
        with contextlib.suppress(BrokenPipeError):  # its end is told below
            self._socket.sendall(letter.encode())
        answer = self._read()
        return answer["said"], answer["exits"]

    def close(self) -> int:
        """End it, if need be by force; the process's wait status."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        if self._status is None:
            self._status = self._wait(ANSWER_S)
        self._answers.close()
        self._socket.close()
        return self._status

    def _read(self) -> dict[str, Any]:
        line = ""
        with contextlib.suppress(ConnectionResetError):  # it died with something unread
            line = self._answers.readline()
        if not line:
            status = self._status = self._wait(ANSWER_S)
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            name = signal.Signals(number).name if number else f"exit code {status >> 8}"
            raise GuestEnded(f"the guest's process died: {name}", number)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise GuestEnded(answer["error"])
        return answer

    def _wait(self, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            if process:
                return status
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitpid(self.pid, 0)[1]


class Console:
    """What the guest writes, in lines."""

    def __init__(self) -> None:
        self._text = b""
        self._changed = threading.Condition()

    def write(self, data: bytes) -> None:
        """Take in what the guest wrote; in the vCPU's thread."""
        with self._changed:
            self._text += data
            self._changed.notify_all()

    def line(self) -> str:
        """The next line.  Raises: TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: b"\n" in self._text, ANSWER_S):
                raise TimeoutError
            line, _, self._text = self._text.partition(b"\n")
        return line.decode(errors="replace").strip()


def _be_guest(connection: socket.socket, config: Config, elsewhere: frozenset[int]) -> None:
    """In the forked process: run the guest until the other end hangs up; never returns."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if elsewhere:
            os.sched_setaffinity(0, elsewhere)
        _serve(connection, config)
        code = 0
    except BaseException as error:
        text = error.message if isinstance(error, VmmError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps({"error": text}).encode() + b"\n")
    finally:
        os._exit(code)


def _serve(connection: socket.socket, config: Config) -> None:
    console = Console()
    with Machine(config, console.write) as vm:
        vm.start()
        _answer(vm, console, connection.sendall)
        while letter := connection.recv(1):
            vm.send(letter)
            _answer(vm, console, connection.sendall)


def _answer(vm: Machine, console: Console, send: Callable[[bytes], None]) -> None:
    try:
        said = console.line()
    except TimeoutError:
        raise GuestEnded(f"the guest said nothing for {ANSWER_S:g} s") from None
    exits = sum(vm.exit_counts()[0].values())
    send(json.dumps({"said": said, "exits": exits}).encode() + b"\n")
