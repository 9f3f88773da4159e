"""All the memory a guest's devices may address: RAM, and what was put beside it.

Virtqueues see one `Memory`; a range of addresses is there if it is, all of it, in one of the
pieces. Between pieces there are gaps, so that no buffer lies in two.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.base.closing import Closing
from pyvmm.errors import UsageError
from pyvmm.memory.ram import GuestMemory, Memory, OutOfRange


class PluggableMemory(Closing):
    """Memory in blocks of which only those that are plugged are there; none at first.

    ``backing`` is the mapping behind all of them. An unplugged block takes up no memory of the
    host's, and every access to it is refused. A context manager that unmaps it.
    """

    def __init__(self, base: int, size: int, block_size: int) -> None:
        """Reserve addresses for ``size`` bytes; memory is taken when it is plugged and used.

        Raises:
            UsageError: the sizes do not fit together.
            HostError: there is not so much address space.
        """
        if block_size & (block_size - 1) or base % block_size or size % block_size:
            raise UsageError(f"{size:#x} bytes at {base:#x}: not whole blocks of {block_size:#x}")
        self.block_size = block_size
        self.backing = GuestMemory(base, size, promised=False)
        self._plugged = bytearray(size // block_size)  # a byte a block; 1: plugged

    def close(self) -> None:
        """Unmap the memory; no view of it may be in use."""
        self.backing.close()

    @property
    def base(self) -> int:
        """The first address of the first block."""
        return self.backing.base

    @property
    def size(self) -> int:
        """How many bytes there are when every block is plugged."""
        return self.backing.size

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self._plugged)

    @property
    def plugged_size(self) -> int:
        """How many bytes are plugged."""
        return self._plugged.count(1) * self.block_size

    def plugged_among(self, first: int, count: int) -> int:
        """How many of the ``count`` blocks from the ``first`` on are plugged."""
        return self._plugged.count(1, first, first + count)

    def is_plugged(self, block: int) -> bool:
        """Whether a block is."""
        return bool(self._plugged[block])

    def runs(self) -> Iterator[tuple[int, int]]:
        """The plugged blocks, as runs: the first, and how many."""
        first = self._plugged.find(1)
        while first >= 0:
            end = self._plugged.find(0, first)
            end = end if end >= 0 else self.blocks
            yield first, end - first
            first = self._plugged.find(1, end)

    def set_plugged(self, first: int, count: int, plugged: bool) -> None:
        """Let blocks be there, or not; those that no longer are lose what was in them."""
        self._plugged[first : first + count] = bytes([plugged]) * count
        if not plugged:
            self.backing.discard(self.address(first), count * self.block_size)

    def address(self, block: int) -> int:
        """The guest physical address of a block."""
        return self.base + block * self.block_size

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all of the ``length`` bytes at ``gpa`` are in plugged blocks."""
        if not self.backing.contains(gpa, length):
            return False
        first = (gpa - self.base) // self.block_size
        end = -(-(gpa + length - self.base) // self.block_size)
        return self._plugged.find(0, first, end) < 0

    def view(self, gpa: int, length: int) -> memoryview:
        """The memory itself at ``gpa``, without a copy."""
        self._check(gpa, length)
        return self.backing.view(gpa, length)

    def discard(self, gpa: int, length: int) -> None:
        """Give the whole pages of a range back to the host; what was in them is lost."""
        self._check(gpa, length)
        self.backing.discard(gpa, length)

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Ask for transparent huge pages there, or for none."""
        self._check(gpa, length)
        self.backing.prefer_huge_pages(gpa, length, prefer)

    def _check(self, gpa: int, length: int) -> None:
        if not self.contains(gpa, length):
            raise OutOfRange(gpa, length, f"{self.base:#x} on: some of it is not plugged")


class MemoryMap:
    """Several pieces of memory as one; the first is asked first."""

    def __init__(self, *pieces: Memory) -> None:
        self._pieces = list(pieces)

    def add(self, piece: Memory) -> None:
        """Put one more piece beside the others; from then on devices may address it."""
        self._pieces.append(piece)

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all of the ``length`` bytes at ``gpa`` are in one piece."""
        for piece in self._pieces:  # noqa: SIM110 - any() of a generator takes twice the time
            if piece.contains(gpa, length):
                return True
        return False

    def view(self, gpa: int, length: int) -> memoryview:
        """The memory itself at ``gpa``, without a copy."""
        for piece in self._pieces:
            if piece.contains(gpa, length):
                return piece.view(gpa, length)
        raise _nowhere(gpa, length)

    def discard(self, gpa: int, length: int) -> None:
        """Give the whole pages of a range back to the host; what was in them is lost."""
        self._at(gpa, length).discard(gpa, length)

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        """Ask for transparent huge pages there, or for none."""
        self._at(gpa, length).prefer_huge_pages(gpa, length, prefer)

    def _at(self, gpa: int, length: int) -> Memory:
        """The piece where that is.

        Raises: OutOfRange.
        """
        for piece in self._pieces:
            if piece.contains(gpa, length):
                return piece
        raise _nowhere(gpa, length)


def _nowhere(gpa: int, length: int) -> OutOfRange:
    return OutOfRange(gpa, length, "nor in what was put beside it")
