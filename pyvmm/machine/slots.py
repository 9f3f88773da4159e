"""The memory slots of a VM: numbered as they are added, large memory split as KVM asks."""

from __future__ import annotations

import functools
import mmap

from pyvmm.base.records import Record
from pyvmm.errors import KvmError
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.uapi import MemoryFlag
from pyvmm.kvm.vm import Vm
from pyvmm.memory.ram import GuestMemory

# A memory slot has fewer than 2^31 pages, which may be of 4 KiB.
# Source: Linux, include/linux/kvm_host.h, KVM_MEM_MAX_NR_PAGES
SLOT_SIZE = 4 << 40


@functools.cache
def _bits() -> list[bytes]:
    """A byte of a bitmap as a byte for each of its bits, the lowest first."""
    return [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


class Slot(Record):
    """One slot as KVM was told of it."""

    number: int
    name: str  # of the memory it is a part of
    base: int
    size: int
    host_address: int
    flags: int


class MemorySlots:
    """Hands out a VM's memory slots, and remembers them.

    ``slots`` changes in whole steps: who looks through it sees those of one moment.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.slots: list[Slot] = []
        self.kept: dict[str, GuestMemory] = {}  # what snapshots take along, by name
        self._used = 0  # numbers below are taken, or free again
        self._free: list[int] = []

    @property
    def room(self) -> int:
        """How many more slots KVM has for this VM."""
        return self._vm.check_extension(Cap.NR_MEMSLOTS) - len(self.slots)

    def add(
        self, name: str, base: int, size: int, host_address: int, *, read_only: bool = False
    ) -> None:
        """Make memory of this process the guest's at ``base``, in as many slots as it takes.

        The memory must stay mapped as long as the VM lives. A guest's write to what is
        ``read_only`` becomes an MMIO exit.
        """
        flags = MemoryFlag.READONLY if read_only else 0
        for start in range(0, size, SLOT_SIZE):
            part = min(SLOT_SIZE, size - start)
            number = self._take_number()
            slot = Slot(number, name, base + start, part, host_address + start, int(flags))
            try:
                self._vm.set_user_memory_region(
                    slot.number, slot.base, slot.size, slot.host_address, slot.flags
                )
            except KvmError:
                self._free.append(number)
                raise
            self.slots = [*self.slots, slot]

    def keep(self, name: str, memory: GuestMemory) -> None:
        """Have snapshots take that memory along; what lies in the user's files they leave there."""
        self.kept[name] = memory

    def log_writes(self, name: str) -> None:
        """Have KVM note which pages of that memory the guest writes to; see `written`."""
        for slot in self.slots:
            if slot.name == name:
                self._vm.set_user_memory_region(
                    slot.number,
                    slot.base,
                    slot.size,
                    slot.host_address,
                    slot.flags | MemoryFlag.LOG_DIRTY_PAGES,
                )

    def written(self, name: str) -> bytes:
        """For each host page of that memory 1 where the guest has written to it since last asked.

        Source: Linux, Documentation/virt/kvm/api.rst, KVM_GET_DIRTY_LOG.
        """
        flags = bytearray()
        for slot in sorted(self.slots, key=lambda slot: slot.base):
            if slot.name == name:
                pages = slot.size // mmap.PAGESIZE
                bitmap = self._vm.get_dirty_log(slot.number, pages)
                flags += b"".join(map(_bits().__getitem__, bitmap))[:pages]
        return bytes(flags)

    def remove(self, base: int) -> None:
        """Take the slot at ``base`` away from the guest: there is no memory there any more."""
        (slot,) = (slot for slot in self.slots if slot.base == base)
        self._vm.set_user_memory_region(slot.number, slot.base, 0, slot.host_address)
        self.slots = [other for other in self.slots if other is not slot]
        self._free.append(slot.number)

    def _take_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._used += 1
        return self._used - 1
