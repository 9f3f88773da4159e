"""Emulated hosts that run: finding and stopping them.

A running host has a directory of sockets in the runtime directory, and QEMU holds the lock
`alive` there for as long as it lives, however it ends: no process id can be mistaken for it.
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

from pyvmm.base.dirs import runtime_dir, try_lock
from pyvmm.base.records import Record
from pyvmm.errors import HostError
from pyvmm.host.logs import failure
from pyvmm.host.wire import PORTS

STOP_S: Final = 30.0  # on a machine that is busy
QEMU_LOG: Final = "qemu.log"
CONSOLE_LOG: Final = "console.log"


class Running(Record):
    """A host that runs: its directory of sockets and what it was started with."""

    path: Path
    start_id: str
    pid: int
    facts: dict[str, Any]
    heard: int = 0  # bytes QEMU had said when it was found: of what ended it later, nothing

    @property
    def last_words(self) -> str:
        """What it said last, since it was found."""
        return last_words(self.path, self.heard)

    @property
    def description(self) -> str:
        """The host in a few words: what every result obtained in it says."""
        facts = self.facts
        return f"QEMU {facts['qemu']} (TCG), -cpu {facts['settings']['cpu']}"


def running_at(sockets: Path) -> Running | None:
    """The host whose sockets are there, if it is alive and up."""
    try:
        about = json.loads((sockets / "about.json").read_text())
        heard = _size(sockets / QEMU_LOG)
        found = Running(sockets, about["start_id"], about["pid"], about, heard)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if _is_alive(sockets) else None


def _is_alive(sockets: Path) -> bool:
    """Whether a QEMU holds the lock there."""
    try:
        lock = try_lock(sockets / "alive")
    except FileNotFoundError:  # it is being removed
        return False
    if lock is None:
        return True
    os.close(lock)
    return False


def all_running() -> Iterator[Running]:
    """Every host of this user that runs."""
    for path in sorted(runtime_dir().glob("*/about.json")):
        running = running_at(path.parent)
        if running is not None:
            yield running


def stop(running: Running) -> None:
    """End a running host and wait until it is gone."""
    end(running.pid)
    wait_for_end(running)
    shutil.rmtree(running.path, ignore_errors=True)


def wait_for_end(running: Running) -> None:
    """Wait until a host that is ending has ended.

    Raises:
        HostError: it does not.
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
    """End every QEMU whose starter was killed before it was up: no command can use it."""
    for alive in runtime_dir().glob("*/alive"):
        sockets = alive.parent
        start = try_lock(sockets.with_name(f"{sockets.name}.start"))
        if start is None:  # it is being started just now
            continue
        try:
            if running_at(sockets) is None:
                end_orphan(sockets)
        finally:
            os.close(start)


def end_orphan(sockets: Path) -> None:
    """End a QEMU that is alive but not up; the caller holds the start lock."""
    if _is_alive(sockets):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((sockets / "pid").read_text()), signal.SIGKILL)


def end(pid: int) -> None:
    """Ask a QEMU to end; it does so at once, its saved state being elsewhere."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def sessions(running: Running) -> int:
    """How many commands a host runs at this moment."""
    busy = 0
    for number in range(1, PORTS + 1):
        lock = try_lock(running.path / f"p{number}.lock")
        if lock is None:
            busy += 1
        else:
            os.close(lock)
    return busy


def last_words(sockets: Path, heard: int = 0) -> str:
    """What QEMU said last, after so many bytes, or else the host's console."""
    for name, skipped in ((QEMU_LOG, heard), (CONSOLE_LOG, 0)):
        file = sockets / name
        text = file.read_bytes()[skipped:].decode(errors="replace") if file.exists() else ""
        lines = text.split("\n")
        said = [line.strip() for line in lines if line.strip()]
        if said:
            return " / ".join(said[-3:])
    return "it said nothing"


def starting_failed(what: str, sockets: Path, *, hint: str | None = None) -> HostError:
    """The error for a host that did not come up: what QEMU said last, or else the console."""
    for name in (QEMU_LOG, CONSOLE_LOG):
        log = sockets / name
        text = log.read_text(errors="replace") if log.exists() else ""
        if text.strip():
            return failure(what, text, log=log, hint=hint)
    return HostError(f"{what}: it said nothing", hint=hint)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
