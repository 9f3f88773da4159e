"""The memory slots of a VM: few for RAM and device memory, one for each plugged block."""

from __future__ import annotations

import functools
import mmap
from typing import TYPE_CHECKING

from pyvmm.base.records import Record
from pyvmm.errors import HostError, KvmError
from pyvmm.kvm import uapi
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.vm import Vm
from pyvmm.memory.ram import GuestMemory

if TYPE_CHECKING:  # imported lazily: few machines can plug memory
    from pyvmm.memory.map import PluggableMemory

# A memory slot has fewer than 2^31 pages, and a page may be 4 KiB.
# Source: Linux, include/linux/kvm_host.h, KVM_MEM_MAX_NR_PAGES
SLOT_SIZE = 4 << 40
HOTPLUG = "hotplug"  # the name of the slots of plugged memory


@functools.cache
def _bits() -> list[bytes]:
    """Return the bits of a bitmap as bytes, the lowest bit of each byte first."""
    return [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


class Slot(Record):
    """One slot, as KVM has it."""

    number: int
    name: str  # the name of the memory to which the slot belongs
    base: int
    size: int
    host_address: int
    flags: int


class MemorySlots:
    """The memory slots of a VM, with their numbers.

    ``slots`` is replaced as a whole: an iteration sees the slots of one moment. ``saved`` is the
    memory that snapshots contain, by name.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.slots: list[Slot] = []
        self.saved: dict[str, GuestMemory] = {}
        self._used = 0  # every number below is in use or in _free
        self._free: list[int] = []

    @property
    def room(self) -> int:
        """The number of slots that KVM still has for this VM."""
        return self._vm.check_extension(Cap.NR_MEMSLOTS) - len(self.slots)

    def add(
        self, name: str, base: int, size: int, host_address: int, *, read_only: bool = False
    ) -> None:
        """Map memory of this process for the guest at ``base``; large memory takes several slots.

        The memory must stay mapped as long as the VM lives. A guest's write to ``read_only``
        memory becomes an MMIO exit.
        """
        flags = uapi.MEM_READONLY if read_only else 0
        for start in range(0, size, SLOT_SIZE):
            part = min(SLOT_SIZE, size - start)
            number = self._take_number()
            slot = Slot(number, name, base + start, part, host_address + start, flags)
            try:
                self._vm.set_user_memory_region(
                    slot.number, slot.base, slot.size, slot.host_address, slot.flags
                )
            except KvmError:
                self._free.append(number)
                raise
            self.slots = [*self.slots, slot]

    def save(self, name: str, memory: GuestMemory) -> None:
        """Include that memory in snapshots. Snapshots leave out memory in the user's files."""
        self.saved[name] = memory

    def log_writes(self, name: str) -> None:
        """Make KVM log the pages of that memory that the guest writes; see `written`."""
        for slot in self.slots:
            if slot.name == name:
                self._vm.set_user_memory_region(
                    slot.number,
                    slot.base,
                    slot.size,
                    slot.host_address,
                    slot.flags | uapi.MEM_LOG_DIRTY_PAGES,
                )

    def written(self, name: str) -> bytes:
        """Return a byte for each host page: 1 if the guest wrote it since the last call.

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
        """Remove the slot at ``base``: the guest has no memory there any more."""
        (slot,) = (slot for slot in self.slots if slot.base == base)
        self._vm.set_user_memory_region(slot.number, slot.base, 0, slot.host_address)
        self.slots = [other for other in self.slots if other is not slot]
        self._free.append(slot.number)

    def _take_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._used += 1
        return self._used - 1


class PluggedSlots:
    """The slots of plugged memory: one for each plugged block.

    An unplugged block has no slot: a guest's read there is an exit, returns 0, and takes no memory
    of the host. Linux does read past the end of a page (load_unaligned_zeropad() in its
    asm/word-at-a-time.h).

    Raises: HostError, if KVM has too few slots for all blocks.
    """

    def __init__(self, blocks: PluggableMemory, slots: MemorySlots) -> None:
        if blocks.blocks > slots.room:
            raise HostError(
                f"`devices.hotplug`: {blocks.blocks} blocks take a memory slot each, and this "
                f"host's KVM has {slots.room} more for one VM",
                hint="use larger blocks: `devices.hotplug`=SIZE,block=SIZE",
            )
        self._blocks = blocks
        self._slots = slots

    def show(self, first: int, count: int, there: bool) -> None:
        """Map ``count`` blocks from the ``first`` on for the guest, or unmap them: all or none.

        Raises: KvmError, if the kernel has no memory for the slots.
        """
        done = first
        try:
            for block in range(first, first + count):
                self._set(block, there)
                done = block + 1
        except HostError:
            for block in range(first, done):
                self._set(block, not there)
            raise

    def _set(self, block: int, there: bool) -> None:
        address = self._blocks.address(block)
        if not there:
            self._slots.remove(address)
            return
        backing = self._blocks.backing
        host_address = backing.host_address + address - backing.base
        self._slots.add(HOTPLUG, address, self._blocks.block_size, host_address)
