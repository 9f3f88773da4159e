"""A person at a terminal: a command on a pty; a test types and reads the screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from typing import Any

from pyvmm.base.closing import Closing

ENOUGH_S = 120.0  # a deadline for any event


class Terminal(Closing):
    """A new terminal, and the commands started on it; the window is 24 rows of 80 columns."""

    def __init__(self) -> None:
        self._person, self._program = pty.openpty()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.resize(24, 80)
        self.shown = b""

    def close(self) -> None:
        """End the commands, and close the terminal."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        os.close(self._program)
        if self._person >= 0:
            os.close(self._person)

    def start(self, command: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
        """Start a command with this controlling terminal, which is 0, 1, 2 unless given."""
        # The shell opens the terminal, which becomes the controlling one of a new session.
        opening = 'exec 9<>"$0"; exec 9<&-; exec "$@"'
        on_terminal = {"stdin": self._program, "stdout": self._program, "stderr": self._program}
        process = subprocess.Popen(
            ["sh", "-c", opening, os.ttyname(self._program), *command],
            start_new_session=True,
            **{**on_terminal, **streams},
        )
        self._processes.append(process)
        return process

    def type(self, text: bytes) -> None:
        """Press keys."""
        os.write(self._person, text)

    def expect(self, text: bytes) -> bytes:
        """Wait until the screen shows a text, and forget the output up to it."""
        deadline = time.monotonic() + ENOUGH_S
        while text not in self.shown:
            assert time.monotonic() < deadline, f"no {text!r} after {self.shown!r}"
            self._look(0.2)
        before, self.shown = self.shown.split(text, 1)
        return before

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Read on until the command has ended, and return its exit code."""
        deadline = time.monotonic() + ENOUGH_S
        while process.poll() is None:
            assert time.monotonic() < deadline, f"{process.args!r} does not end: {self.shown!r}"
            self._look(0.02)
        self._look(0)
        return process.returncode

    def resize(self, rows: int, columns: int) -> None:
        """Change the window."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._program, termios.TIOCSWINSZ, size)

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self._person)
        self._person = -1

    @property
    def mode(self) -> list[Any]:
        """Return the output of stty."""
        return termios.tcgetattr(self._program)

    @property
    def is_raw(self) -> bool:
        """Return whether keys reach the program unchanged and at once, ^C too."""
        return not self.mode[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def wait_for_raw_mode(self) -> None:
        """Wait until the program has put the terminal into raw mode."""
        deadline = time.monotonic() + ENOUGH_S
        while not self.is_raw:
            assert time.monotonic() < deadline, "the terminal is not in raw mode"
            time.sleep(0.01)

    def _look(self, timeout_s: float) -> None:
        while self._person >= 0 and select.select([self._person], [], [], timeout_s)[0]:
            with contextlib.suppress(OSError):  # EIO: no process has it open at the moment
                self.shown += os.read(self._person, 1 << 16)
            timeout_s = 0
