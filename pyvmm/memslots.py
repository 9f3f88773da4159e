"""The memory slots of a VM: numbered as they are added, large memory split as KVM asks."""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.kvm.uapi import MemoryFlag
from pyvmm.kvm.vm import Vm

# A memory slot has fewer than 2^31 pages, which may be of 4 KiB.
# Source: Linux, include/linux/kvm_host.h, KVM_MEM_MAX_NR_PAGES
SLOT_SIZE = 4 << 40


class Slot(NamedTuple):
    """One slot as KVM was told of it."""

    number: int
    name: str  # of the memory it is a part of
    base: int
    size: int
    host_address: int
    flags: int


class MemorySlots:
    """Hands out a VM's memory slots, and remembers them."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.slots: list[Slot] = []

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
            slot = Slot(len(self.slots), name, base + start, part, host_address + start, int(flags))
            self._vm.set_user_memory_region(
                slot.number, slot.base, slot.size, slot.host_address, slot.flags
            )
            self.slots.append(slot)
