"""What has changed in a machine's memory since a snapshot, for one that has only that.

KVM notes what the guest writes to RAM, when it is asked to, and GuestMemory what pyvmm writes; of
what nobody noted the content is held against the parent's.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from pyvmm.board import Board
from pyvmm.devices.virtio.queue import DEVICE_AREA
from pyvmm.memory import GuestMemory
from pyvmm.snapshot import pages
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.pages import Range
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.state import RAM


class Changes:
    """Notes which pages of a machine's RAM are written to; no vCPU runs while it is asked."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._flags = bytearray()  # of every host page: it was written to since ``since``
        self.since: str | None = None  # the identity of the snapshot they are counted from

    def start(self, identity: str) -> None:
        """Note what is written from now on, when a snapshot was just taken."""
        if self.since is None:
            self._board.slots.log_writes(RAM)
        self._board.slots.written(RAM)  # what was before does not count
        self._board.memory.note_writes()
        self._flags = bytearray(self._board.memory.size // mmap.PAGESIZE)
        self.since = identity

    def within(self, memory: GuestMemory, parent: SnapshotFile) -> list[Range]:
        """The ranges of a memory in which it may be other than in the parent."""
        if memory is not self._board.memory or self.since != parent.identity:
            return list(by_content(memory, parent))
        return pages.merged(self._written())

    def settle(self) -> None:
        """Take over what has been noted, before a saver's own reading is.

        What a failed save has taken from KVM's log stays noted here.
        """
        if self.since is None:
            return
        memory = self._board.memory
        log = self._board.slots.written(RAM)
        both = int.from_bytes(log, "little") | int.from_bytes(memory.noted, "little")
        both |= int.from_bytes(self._flags, "little")
        self._flags = bytearray(both.to_bytes(len(self._flags), "little"))
        for gpa, length in self._rings():
            first = (gpa - memory.base) // mmap.PAGESIZE
            last = (gpa + length - 1 - memory.base) // mmap.PAGESIZE
            self._flags[first : last + 1] = b"\1" * (last + 1 - first)
        memory.note_writes()

    def _written(self) -> Iterator[Range]:
        memory = self._board.memory
        unit = mmap.PAGESIZE // PAGE
        for low, high in pages.runs(bytes(self._flags), 0):
            yield memory.base + low * unit, memory.base + high * unit

    def _rings(self) -> Iterator[tuple[int, int]]:
        """What devices hold views of all the time: the used rings in RAM."""
        for transport in self._board.virtio:
            for queue in transport.device.queues:
                size = DEVICE_AREA.size(queue.size)
                if queue.ready and self._board.memory.contains(queue.device, size):
                    yield queue.device, size


def by_content(memory: GuestMemory, parent: SnapshotFile) -> Iterator[Range]:
    """The pages that hold something else than in the parent, as ranges."""
    end = memory.base + memory.size
    stored = pages.clipped(parent.stored(), memory.base, end)
    for low, high in pages.merged([*pages.touched(memory), *stored]):
        for start in range(low, high, BLOCK):
            length = min(BLOCK, high - start)
            with memory.view(start, length) as now, memoryview(parent.read(start, length)) as then:
                flags = pages.differing(now, then)
            yield from pages.runs(flags, start)
