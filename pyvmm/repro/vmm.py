"""A guest in a child process: a bug of the host may kill it without ending the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from pyvmm.base.closing import Closing
from pyvmm.config import Config
from pyvmm.errors import VmmError
from pyvmm.machine.machine import Machine
from pyvmm.repro.programs import ChildEnded, how_it_ended

ANSWER_S: Final = 120.0  # for a busy machine


class GuestProcess(Closing):
    """A guest that takes commands as letters on its console, and responds with lines."""

    def __init__(self, config: Config, elsewhere: frozenset[int]) -> None:
        """Start the guest's process; its threads, except vCPUs, run on the CPUs ``elsewhere``.

        Raises: ChildEnded, with the reason.
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

    def ask(self, letter: str) -> tuple[str, int]:
        """Send a letter; return the guest's line, and the number of VM exits so far."""
        with contextlib.suppress(BrokenPipeError):  # _read() reports the end
            self._socket.sendall(letter.encode())
        answer = self._read()
        return answer["said"], answer["exits"]

    def close(self) -> None:
        """End the process, and kill it after a timeout; idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self.wait()
        self._answers.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = ""
        with contextlib.suppress(ConnectionResetError):  # the process died with unread input
            line = self._answers.readline()
        if not line:
            number = os.WTERMSIG(self.wait())
            how = how_it_ended(number, os.waitstatus_to_exitcode(self.wait()))
            raise ChildEnded(f"the guest's process died: {how}", number)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildEnded(answer["error"])
        return answer

    def wait(self) -> int:
        """Wait for the end of the process, and return its wait status; kill it after a timeout."""
        deadline = time.monotonic() + ANSWER_S
        while self._status is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            if process:
                self._status = status
            elif time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        return self._status


class Console:
    """The guest's output, in lines."""

    def __init__(self) -> None:
        self._text = b""
        self._changed = threading.Condition()

    def write(self, data: bytes) -> None:
        """Store output; the vCPU's thread calls it."""
        with self._changed:
            self._text += data
            self._changed.notify_all()

    def line(self) -> str:
        """Return the next line.  Raises: VmmError."""
        with self._changed:
            if not self._changed.wait_for(lambda: b"\n" in self._text, ANSWER_S):
                raise VmmError(f"the guest printed nothing for {ANSWER_S:g} s")
            line, _, self._text = self._text.partition(b"\n")
        return line.decode(errors="replace").strip()


def _be_guest(connection: socket.socket, config: Config, elsewhere: frozenset[int]) -> None:
    """Run the guest in the forked process until the parent disconnects; never return."""
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
            vm.console.send(letter)
            _answer(vm, console, connection.sendall)


def _answer(vm: Machine, console: Console, send: Callable[[bytes], None]) -> None:
    said = console.line()
    exits = sum(vm.counts.exits()[0].values())
    send(json.dumps({"said": said, "exits": exits}).encode() + b"\n")
