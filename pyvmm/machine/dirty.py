"""The pages of a machine's RAM that were written since a snapshot, for the next one.

KVM logs the guest's writes to RAM, and GuestMemory logs pyvmm's. Devices write the used rings
through views that stay open: those rings always count as written.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pyvmm.layout import RAM
from pyvmm.machine.slots import MemorySlots
from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range, merged, runs

if TYPE_CHECKING:
    from pyvmm.devices.virtio.mmio import VirtioMmio


class DirtyPages:
    """The pages of RAM that were written.  No vCPU runs while a method is called.

    ``since`` is the identity of the snapshot that the writes are counted from; None before
    tracking starts.
    """

    def __init__(
        self, memory: GuestMemory, slots: MemorySlots, virtio: Sequence[VirtioMmio]
    ) -> None:
        self.memory = memory
        self.since: str | None = None
        self._slots = slots
        self._virtio = virtio
        self._flags = bytearray()  # one byte a host page: 1 where it was written to

    def start(self, identity: str) -> None:
        """Track writes from now on: the snapshot ``identity`` was just taken."""
        if self.since is None:
            self._slots.log_writes(RAM)
        self._slots.written(RAM)  # reading KVM's log clears it
        self.memory.log_writes()
        self._flags = bytearray(self.memory.size // mmap.PAGESIZE)
        self.since = identity

    def collect(self) -> None:
        """Add the logs of KVM and of GuestMemory to the flags.

        Call it before a save reads memory: a save that fails must not lose what it took from
        KVM's log.
        """
        if self.since is None:
            return
        memory = self.memory
        log = self._slots.written(RAM)
        written = int.from_bytes(log, "little") | int.from_bytes(memory.written, "little")
        written |= int.from_bytes(self._flags, "little")
        self._flags = bytearray(written.to_bytes(len(self._flags), "little"))
        for gpa, length in self._used_rings():
            first = (gpa - memory.base) // mmap.PAGESIZE
            last = (gpa + length - 1 - memory.base) // mmap.PAGESIZE
            self._flags[first : last + 1] = b"\1" * (last + 1 - first)
        memory.log_writes()

    def ranges(self) -> list[Range]:
        """Return the ranges of RAM that were written to, as of the last collect()."""
        return merged(runs(bytes(self._flags), self.memory.base, mmap.PAGESIZE))

    def _used_rings(self) -> Iterator[Range]:
        """Yield the address and length of each used ring in RAM."""
        if not self._virtio:
            return
        from pyvmm.devices.virtio.queue import DEVICE_AREA  # imported lazily

        for transport in self._virtio:
            for queue in transport.device.queues:
                size = DEVICE_AREA.size(queue.size)
                if queue.ready and self.memory.contains(queue.device, size):
                    yield queue.device, size
