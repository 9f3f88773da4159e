"""Memory that a guest plugs while it runs, as memory slots of its VM: one for each plugged block.

An unplugged block has no slot. A guest that reads there leaves KVM_RUN as it does for any address
where nothing is: it reads 0, and takes up no memory of this machine's. Linux does read so, now and
then, past the end of a page (load_unaligned_zeropad() in its asm/word-at-a-time.h).
"""

from __future__ import annotations

from pyvmm.errors import HostError
from pyvmm.machine.slots import MemorySlots
from pyvmm.memory.map import PluggableMemory

NAME = "hotplug"  # of the slots


class PluggedSlots:
    """Makes blocks the guest's memory, and takes them away again."""

    def __init__(self, blocks: PluggableMemory, slots: MemorySlots) -> None:
        """Check that there are slots for all of them.

        Raises: HostError.
        """
        if blocks.blocks > slots.room:
            raise HostError(
                f"--hotplug: {blocks.blocks} blocks take a memory slot each, and this host's KVM "
                f"has {slots.room} more for one VM",
                hint="use larger blocks: --hotplug SIZE,block=SIZE",
            )
        self._blocks = blocks
        self._slots = slots

    def show(self, first: int, count: int, there: bool) -> None:
        """Let ``count`` blocks from the ``first`` on be there, or not; all of them or none.

        Raises: KvmError, when the kernel has no room for them.
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
        self._slots.add(NAME, address, self._blocks.block_size, host_address)
