"""Inside the host: runs one command after the other, each timed to what it prints.

A task is read from standard input as JSON, and what was found is printed as JSON. Nothing of
pyvmm is imported: this is a stop watch.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

DISK_SIZE: Final = 64 << 20
# Of the host's clock, which jumps ahead where time counts instructions and nothing has any.
TIMEOUT_S: Final = 1e6


class Run:
    """A command that runs: its output so far, and when the time began."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        reader, writer = os.pipe()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        null = os.open(os.devnull, os.O_RDONLY)
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_DUP2, self.errors.fileno(), 2),
        ]
        self.output = b""
        self.began_ns = time.monotonic_ns()
        self.pid = os.posix_spawnp(
            argv[0], argv, {**os.environ, **environment}, file_actions=actions
        )
        os.close(writer)
        os.close(null)
        self._reader = reader

    def wait_for(self, text: bytes) -> int:
        """How many ns of it had passed when ``text`` was there."""
        while text not in self.output:
            ready, _, _ = select.select([self._reader], [], [], TIMEOUT_S)
            data = os.read(self._reader, 1 << 16) if ready else b""
            if not data:
                self.errors.seek(0)
                said = self.errors.read().decode(errors="replace")[-2000:]
                raise SystemExit(f"no {text!r} in {self.output[-500:]!r}; it said {said}")
            self.output += data
        return time.monotonic_ns() - self.began_ns

    def read_all(self) -> bytes:
        """What it prints to its end."""
        while data := os.read(self._reader, 1 << 16):
            self.output += data
        return self.output

    def resident_kib(self) -> int:
        """Its RSS now."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0])

    def end(self) -> None:
        """Kill it, where it still runs, and bury it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)


def first(task: dict[str, Any]) -> dict[str, float]:
    """From exec to the first byte of output; and the RSS then."""
    run = Run(task["argv"], task["environment"])
    passed = run.wait_for(b"\n")
    resident = run.resident_kib()
    run.end()
    return {"ns": passed, "rss_kib": resident}


def linux(task: dict[str, Any]) -> dict[str, float]:
    """From exec to a Linux guest's init, its RSS there, and what 64 lines of 64 bytes took."""
    run = Run(task["argv"], task["environment"])
    to_init = run.wait_for(b"pyvmm-bench: init")
    resident = run.resident_kib()
    to_first_line = run.wait_for(b"0123456789abcdefghijklmnop\r\n")
    to_end = run.wait_for(b"pyvmm-bench: end")
    run.end()
    return {
        "ns": to_init,
        "rss_kib": resident,
        "bytes": len(run.output),
        "line_ns": (to_end - to_first_line) / 63,
    }


def lines(task: dict[str, Any]) -> dict[str, float]:
    """What the exits guest says of itself, in ns for each access."""
    run = Run(task["argv"], task["environment"])
    run.wait_for(b"polled_byte ")
    said = [line.split() for line in run.read_all().decode().replace(".", "").splitlines()]
    run.end()
    found = {line[0]: int(line[1]) / int(line[2]) for line in said if len(line) == 3}
    frequency = found.pop("frequency")
    return {name: ticks * 1e9 / frequency for name, ticks in found.items()}


def disk(task: dict[str, Any]) -> dict[str, float]:
    """What the block guest says of itself, in ns for each request; its disk is made anew."""
    Path(task["disk"]).write_bytes(bytes(DISK_SIZE))
    run = Run(task["argv"], task["environment"])
    run.wait_for(b"frequency ")
    run.wait_for(b"reboot: Power down")
    run.end()
    said = [line.split() for line in run.output.decode().splitlines()]
    found = {line[0]: int(line[1]) / int(line[2]) for line in said if len(line) == 3}
    frequency = found.pop("frequency")
    return {name: ticks * 1e9 / frequency for name, ticks in found.items()}


def number(task: dict[str, Any]) -> dict[str, float]:
    """What a program prints, which is one number."""
    done = subprocess.run(task["argv"], capture_output=True, check=True)
    return {"ns": float(done.stdout)}


KINDS: Final = {"first": first, "linux": linux, "lines": lines, "number": number, "disk": disk}


def main() -> None:
    """Do the tasks of standard input."""
    os.chdir("/")  # what Python is asked to import, it looks for here first
    tasks = json.load(sys.stdin)
    found: dict[str, list[dict[str, float]]] = {}
    for task in tasks:
        for _ in range(task["times"]):
            found.setdefault(task["name"], []).append(KINDS[task["kind"]](task))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
