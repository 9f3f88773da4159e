"""virtio devices whose kicks vCPUs serve, in their exits; a data path may do so without Python.

The queues are lent (loan.py) whenever Python has served a kick, and no chain is out. The next
holder of the device's lock takes them back. So each change of the device's state costs one exit to
Python, at the next kick.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.loan import QueueLock
from pyvmm.devices.virtio.queue import Virtqueue
from pyvmm.memory.ram import Memory


class TakenBack(Protocol):
    """What a data path did during a loan, and what it left."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What to add to the device's counts."""

    @property
    def chains(self) -> int:
        """How many chains of the doorbell's queue it has returned."""

    @property
    def skip(self) -> int:
        """How many bytes of that queue's next chain it has output."""


class ExitPath(Protocol):
    """Code that serves a device's kicks without Python."""

    def lend(self, queues: Sequence[Virtqueue], skip: int = 0, *, ready: bool = True) -> bool:
        """Begin a loan; return whether the data path can serve these queues.

        ``skip`` is as in TakenBack. Only if ``ready`` may it give the driver input.
        """

    def take_back(self, queues: Sequence[Virtqueue]) -> TakenBack:
        """End the loan, wait for the chain in progress, and update ``queues``."""


class ExitServed(VirtioDevice):
    """The base of these devices; each calls `lend_queues` when it has served a kick."""

    def __init__(self, memory: Memory, log: Callable[[str], None]) -> None:
        super().__init__(memory, log)
        self.path: ExitPath | None = None
        self.skip = 0  # bytes of the next chain that a data path has output

    def _make_lock(self) -> threading.Lock:
        self._ownership = QueueLock()
        return cast("threading.Lock", self._ownership)

    @property
    def ready_for_input(self) -> bool:
        """Whether a data path may give the driver input."""
        return True

    def use_data_path(self, path: ExitPath | None) -> None:
        """Lend the queues to ``path`` from the next kick on; None: never."""
        with self.lock:
            self.path = path

    def lend_queues(self) -> None:
        """Lend the queues if Python has no chain of theirs; with the lock."""
        path = self.path
        if path is None or not self.live or any(q.out or not q.ready for q in self.queues):
            return
        if path.lend(self.queues, self.skip, ready=self.ready_for_input):
            self._ownership.lend(self._take_back)

    def taken_back(self, back: TakenBack) -> None:
        """Learn what the data path did; with the lock."""

    def _take_back(self) -> None:
        """Own the queues again; called by the lock."""
        assert self.path is not None
        back = self.path.take_back(self.queues)
        self.skip = back.skip
        for name, number in back.counts.items():
            self.counts[name] += number
        self.taken_back(back)
