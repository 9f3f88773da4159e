"""Running emulated hosts: finding and stopping them.

A running host has a directory of sockets in the runtime directory.  QEMU holds the lock `alive`
there until it ends.  A process id is not enough: another process can get the same one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyvmm.base.dirs import is_locked, runtime_dir, try_lock
from pyvmm.base.records import Record
from pyvmm.errors import HostError
from pyvmm.host.logs import failure
from pyvmm.host.wire import FIRST_PORTS

STOP_S: Final = 30.0  # long enough for a busy machine
QEMU_LOG: Final = "qemu.log"
CONSOLE_LOG: Final = "console.log"
UNCONFINED: Final = "unconfined"  # the fact why its QEMU is not confined; None if it is


class Running(Record):
    """A running host: its directory of sockets, and what it was made of."""

    path: Path
    start_id: str
    pid: int
    facts: dict[str, Any]
    log_size: int = 0  # of QEMU's log when the host was found; later lines say why QEMU ended

    @property
    def last_output(self) -> str:
        """The last output of QEMU since the host was found."""
        return last_output(self.path, self.log_size)

    @property
    def ports(self) -> int:
        """The number of ports it has by now."""
        number = FIRST_PORTS
        while (self.path / f"p{number + 1}").exists():
            number += 1
        return number

    @property
    def is_confined(self) -> bool:
        """Whether QEMU has mounts of its own, and sees the files that running commands name."""
        return UNCONFINED in self.facts and self.facts[UNCONFINED] is None

    @property
    def is_stopped(self) -> bool:
        """Whether SIGSTOP has stopped its process."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:  # it has ended
            return False
        return status.rpartition(")")[2].split()[0] == "T"  # Source: proc(5)

    @property
    def description(self) -> str:
        """The host in a few words, for the results obtained in it."""
        facts, settings = self.facts, self.facts["settings"]
        machine = f", -M {settings['machine']}" if settings.get("machine") else ""
        return f"QEMU {facts['qemu']} (TCG), -cpu {settings['cpu']}{machine}"


def running_at(sockets: Path) -> Running | None:
    """Return the host with those sockets, if it runs and has booted."""
    try:
        about = json.loads((sockets / "about.json").read_text())
        log_size = len(_log(sockets / QEMU_LOG))
        found = Running(sockets, about["start_id"], about["pid"], about, log_size)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if _is_alive(sockets) else None


def _is_alive(sockets: Path) -> bool:
    """Return whether a QEMU holds the lock there."""
    try:
        return is_locked(sockets / "alive")
    except FileNotFoundError:  # it is being removed
        return False


def all_running() -> Iterator[Running]:
    """Yield the running hosts of this user."""
    for path in sorted(runtime_dir().glob("*/about.json")):
        running = running_at(path.parent)
        if running is not None:
            yield running


def stop(running: Running) -> None:
    """End a running host and wait until it has ended."""
    end(running.pid)
    wait_for_end(running)
    shutil.rmtree(running.path, ignore_errors=True)


def wait_for_end(running: Running) -> None:
    """Wait until a host has ended.

    Raises:
        HostError: it does not end in time.
    """
    deadline = time.monotonic() + STOP_S
    while (found := running_at(running.path)) is not None and found.start_id == running.start_id:
        if time.monotonic() > deadline:
            raise HostError(
                f"the emulated host (process {running.pid}) does not end",
                hint=f"kill -9 {running.pid}",
            )
        time.sleep(0.01)


def end_orphans() -> None:
    """End each QEMU whose start was interrupted: no command can use it."""
    for alive in runtime_dir().glob("*/alive"):
        sockets = alive.parent
        start = try_lock(sockets.with_name(f"{sockets.name}.start"))
        if start is None:  # it is being started
            continue
        try:
            if running_at(sockets) is None:
                end_orphan(sockets)
        finally:
            os.close(start)


def end_orphan(sockets: Path) -> None:
    """End a QEMU that runs but has no about.json; the caller holds the start lock."""
    if _is_alive(sockets):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((sockets / "pid").read_text()), signal.SIGKILL)


def end(pid: int) -> None:
    """End a QEMU, also a stopped one; nothing of it is saved."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)


def sessions(running: Running) -> int:
    """Return the number of commands that a host runs now."""
    return sum(is_locked(running.path / f"p{port}.lock") for port in range(1, running.ports + 1))


def last_output(sockets: Path, log_size: int = 0) -> str:
    """Return the last lines of QEMU's log after ``log_size`` bytes, else of the console's log."""
    for name, skipped in ((QEMU_LOG, log_size), (CONSOLE_LOG, 0)):
        text = _log(sockets / name)[skipped:].decode(errors="replace")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if lines:
            return " / ".join(lines[-3:])
    return "no output"


def starting_failed(what: str, sockets: Path, *, hint: str | None = None) -> HostError:
    """Return the error for a failed start, with the last output of QEMU, else of the console."""
    for name in (QEMU_LOG, CONSOLE_LOG):
        text = _log(sockets / name).decode(errors="replace")
        if text.strip():
            return failure(what, text, log=sockets / name, hint=hint)
    return HostError(f"{what}: no output", hint=hint)


def _log(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
