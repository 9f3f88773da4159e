"""The self-checking guest of the tests of save and restore."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyvmm.commands.run import GUESTS
from pyvmm.config import Config, SveRequest
from pyvmm.layout import MIB
from pyvmm.machine.machine import Machine
from pyvmm.snapshot.restorer import Restorer, named

TIMEOUT_S = 120
PARAMS = "patience=2"  # seconds without a timer interrupt


class Guest:
    """A machine with the guest, and the guest's output."""

    def __init__(self, make: Callable[[Callable[[bytes], None]], Machine]) -> None:
        self.text = ""
        self.machine = make(self._print)

    def _print(self, data: bytes) -> None:
        self.text += data.decode()

    def __enter__(self) -> Guest:
        self.machine.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()

    def wait_for(self, words: str) -> None:
        """Wait until the guest has printed these words."""
        deadline = time.monotonic() + TIMEOUT_S
        while not re.search(words, self.text):
            assert time.monotonic() < deadline, self.text
            assert not self.machine._runner.has_ended, self.text
            time.sleep(0.01)

    def type(self, keys: str) -> None:
        for key in keys:
            assert self.machine.console.send(key.encode())

    def rounds(self) -> dict[int, int]:
        """Return the number of rounds that each vCPU has completed."""
        self.text = ""
        self.type("s")
        self.wait_for("failures=[0-9]+\n")
        found = re.findall(r"vCPU ([0-9]+): on rounds=([0-9]+)", self.text)
        return {int(number): int(rounds) for number, rounds in found}

    def run_rounds(self, more: int = 3) -> None:
        """Let every vCPU that is on complete some more rounds."""
        before = self.rounds()
        deadline = time.monotonic() + TIMEOUT_S
        while any(now < before.get(n, 0) + more for n, now in self.rounds().items()):
            assert time.monotonic() < deadline, self.text

    def finish(self) -> int:
        """End the guest, and return its exit code: 1 after any failure."""
        self.type("q")
        assert select.select([self.machine.ended_fd], [], [], TIMEOUT_S)[0], self.text
        return self.machine.result()


def boot(vls: frozenset[int] | None = None, params: str = "", **options: Any) -> Guest:
    """Boot the guest with three vCPUs, the last of them off, and wait until it works."""
    shape: dict[str, Any] = {"vcpus": 3, "memory": 16 * MIB, "console": "serial"} | options
    config = Config(
        image=GUESTS / "sve-snapshot", sve=SveRequest(vls=vls), params=f"{PARAMS} {params}", **shape
    )
    guest = Guest(lambda output: Machine(config, output))
    guest.machine.start()
    guest.wait_for("at work\n")
    return guest


def restored(
    path: Path, change: Callable[[Restorer], None] = lambda restorer: None, **how: Any
) -> Guest:
    """Restore the guest from a file without a start; ``change`` may damage the restore."""

    def make(output: Callable[[bytes], None]) -> Machine:
        restorer = Restorer(path, **how)
        change(restorer)
        return Machine(named(restorer.config, None), output, restorer=restorer)

    return Guest(make)
