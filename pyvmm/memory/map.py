"""All memory that a guest's devices may address: RAM, and memory added to it.

Virtqueues use a `Memory`. A range of addresses is valid if one piece has all of it. The gaps
between pieces ensure that no buffer lies in two.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from pyvmm.base.closing import Closing
from pyvmm.base.records import Record
from pyvmm.errors import UsageError
from pyvmm.memory.ram import GuestMemory, Memory, OutOfRange


class MemoryRegion(Record):
    """A piece of memory in this process, for code in C.

    ``plugged`` has a byte for each block, 1 if it may be used. ``log`` is the address of a
    GuestMemory's ``log_word``. ``fd`` is the file of shared memory, which begins at ``offset``.
    """

    base: int
    size: int
    host_address: int
    plugged: bytearray | None = None
    block_size: int = 0
    log: int = 0
    fd: int = -1
    offset: int = 0


class PluggableMemory(Closing):
    """Memory in blocks that can be plugged and unplugged; none is plugged at first.

    ``backing`` is the mapping of all blocks. An unplugged block takes no memory of the host, and
    neither the guest nor a device can access it. A context manager that unmaps it.
    """

    def __init__(self, base: int, size: int, block_size: int) -> None:
        """Reserve addresses for ``size`` bytes; plugged blocks take memory when they are used.

        Raises:
            UsageError: base or size is not a multiple of the block size.
            HostError: the address space is too small.
        """
        if block_size & (block_size - 1) or base % block_size or size % block_size:
            raise UsageError(f"{size:#x} bytes at {base:#x}: not whole blocks of {block_size:#x}")
        self.base = base
        self.size = size  # of all blocks, plugged or not
        self.block_size = block_size
        self.blocks = size // block_size
        self.backing = GuestMemory(base, size, field="devices.hotplug")
        self._plugged = bytearray(self.blocks)  # a byte a block; 1: plugged

    def close(self) -> None:
        """Unmap the memory; no view of it may be in use."""
        self.backing.close()

    def region(self) -> MemoryRegion:
        """Return all blocks, with the state of each."""
        address = self.backing.host_address
        return MemoryRegion(self.base, self.size, address, self._plugged, self.block_size)

    @property
    def plugged_size(self) -> int:
        """The size in bytes of the plugged blocks."""
        return self._plugged.count(1) * self.block_size

    def plugged_among(self, first: int, count: int) -> int:
        """Return how many of the ``count`` blocks from ``first`` on are plugged."""
        return self._plugged.count(1, first, first + count)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield each run of plugged blocks: its first block and its length."""
        first = self._plugged.find(1)
        while first >= 0:
            end = self._plugged.find(0, first)
            end = end if end >= 0 else self.blocks
            yield first, end - first
            first = self._plugged.find(1, end)

    def set_plugged(self, first: int, count: int, plugged: bool) -> None:
        """Plug or unplug blocks; an unplugged block loses its content."""
        self._plugged[first : first + count] = bytes([plugged]) * count
        if not plugged:
            self.backing.discard(self.address(first), count * self.block_size)

    def address(self, block: int) -> int:
        """Return the guest physical address of a block."""
        return self.base + block * self.block_size

    def contains(self, gpa: int, length: int) -> bool:
        """Return whether all of the ``length`` bytes at ``gpa`` are in plugged blocks."""
        if not self.backing.contains(gpa, length):
            return False
        first = (gpa - self.base) // self.block_size
        end = -(-(gpa + length - self.base) // self.block_size)
        return self._plugged.find(0, first, end) < 0

    def view(self, gpa: int, length: int) -> memoryview:
        """Return a view of the memory at ``gpa``."""
        self._check(gpa, length)
        return self.backing.view(gpa, length)

    def discard(self, gpa: int, length: int) -> None:
        """Return the whole pages of a range to the host; their content is lost."""
        self._check(gpa, length)
        self.backing.discard(gpa, length)

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Enable or disable transparent huge pages in a range."""
        self._check(gpa, length)
        self.backing.prefer_huge_pages(gpa, length, prefer)

    def _check(self, gpa: int, length: int) -> None:
        if not self.contains(gpa, length):
            raise OutOfRange(gpa, length, f"from {self.base:#x}: part of it is not plugged")


class MemoryMap:
    """Several pieces of memory as one, searched in order."""

    def __init__(self, *pieces: Memory) -> None:
        self._pieces = list(pieces)

    def add(self, piece: Memory) -> None:
        """Add a piece that devices may address."""
        self._pieces.append(piece)

    def regions(self) -> list[MemoryRegion]:
        """Return the pieces, in the order of the search."""
        return [region for piece in self._pieces for region in regions(piece)]

    def contains(self, gpa: int, length: int) -> bool:
        """Return whether all of the ``length`` bytes at ``gpa`` are in one piece."""
        for piece in self._pieces:  # noqa: SIM110 - any() takes twice the time
            if piece.contains(gpa, length):
                return True
        return False

    def view(self, gpa: int, length: int) -> memoryview:
        """Return a view of the memory at ``gpa``."""
        for piece in self._pieces:
            if piece.contains(gpa, length):
                return piece.view(gpa, length)
        raise _nowhere(gpa, length)

    def discard(self, gpa: int, length: int) -> None:
        """Return the whole pages of a range to the host; their content is lost."""
        self._at(gpa, length).discard(gpa, length)

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Enable or disable transparent huge pages in a range."""
        self._at(gpa, length).prefer_huge_pages(gpa, length, prefer)

    def _at(self, gpa: int, length: int) -> Memory:
        """Return the piece with that range.

        Raises: OutOfRange.
        """
        for piece in self._pieces:
            if piece.contains(gpa, length):
                return piece
        raise _nowhere(gpa, length)


def regions(memory: Memory) -> list[MemoryRegion]:
    """Return the pieces of a memory."""
    from pyvmm.memory.file import FileMemory

    if isinstance(memory, MemoryMap):
        return memory.regions()
    if isinstance(memory, PluggableMemory):
        return [memory.region()]
    if isinstance(memory, FileMemory):
        return [MemoryRegion(memory.base, memory.size, memory.host_address)]
    assert isinstance(memory, GuestMemory)
    log = ctypes.addressof(memory.log_word)
    return [
        MemoryRegion(memory.base, memory.size, memory.host_address, log=log, fd=memory.shared_fd)
    ]


def _nowhere(gpa: int, length: int) -> OutOfRange:
    return OutOfRange(gpa, length, "nor in memory added to it")
