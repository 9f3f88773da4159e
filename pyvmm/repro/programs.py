"""Child processes of a test, such as the programs for an arm64 host; see programs/."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from pyvmm.base.closing import Closing
from pyvmm.errors import VmmError


class ChildEnded(VmmError):
    """A child process that has ended, or does not respond.

    ``signal`` is the signal that killed it, or 0.
    """

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


class Executable(Closing):
    """A temporary copy of a program in memory: its file system may be mounted noexec."""

    def __init__(self, program: Path) -> None:
        self._fd = os.memfd_create(program.name)
        with os.fdopen(os.dup(self._fd), "wb") as copy:
            copy.write(program.read_bytes())
        # For subprocess
        self.options: dict[str, Any] = {
            "executable": f"/proc/self/fd/{self._fd}", "pass_fds": [self._fd], "text": True,
        }  # fmt: skip

    def close(self) -> None:
        """Free the copy."""
        os.close(self._fd)


def how_it_ended(signal_: int, code: int) -> str:
    """Name the signal that killed a process, or else its exit code."""
    return signal.Signals(signal_).name if signal_ else f"exit code {code}"


def numbers(text: str) -> dict[str, int]:
    """Return the NAME=NUMBER words of an answer as a table."""
    pairs = (word.partition("=") for word in text.split())
    return {name: int(value) for name, _, value in pairs}
