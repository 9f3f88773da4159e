"""The pages of guest memory to store, found without a Python loop over pages.

A snapshot stores pages that are not zero.  An incremental one stores those that may differ from
its parent: DirtyPages lists them if tracking started from the parent.  Untracked memory is compared
with the parent.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from operator import ne
from pathlib import Path
from typing import Final, Protocol

from pyvmm.machine.dirty import DirtyPages
from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range, clipped, merged, runs
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import SnapshotFile

ZERO: Final = bytes(PAGE)
PAGEMAP: Final = Path("/proc/self/pagemap")
ENTRY: Final = 8  # bytes of /proc/self/pagemap for a page
# In an entry's highest byte: the page is present, or swapped.
# Source: Linux, Documentation/admin-guide/mm/pagemap.rst
PRESENT: Final = bytes(int(byte & 0xC0 != 0) for byte in range(256))
AT_ONCE: Final = 1 << 30  # bytes of memory whose pagemap is read at once


class MemorySource(Protocol):
    """Guest memory: RAM, or its copy in a file."""

    def view(self, gpa: int, length: int) -> memoryview:
        """Return the bytes at a guest address, without a copy if possible."""


def touched(memory: GuestMemory) -> list[Range]:
    """Return the ranges that can hold data other than zeros, from the kernel's page tables.

    A process that changed its uid cannot read /proc/self/pagemap.  Then the only range is all of
    the memory.
    """
    try:
        with PAGEMAP.open("rb", buffering=0) as file:
            found = list(_present(file.fileno(), memory))
    except OSError:
        return [(memory.base, memory.base + memory.size)]
    return merged([*found, *memory.backed])


def _present(fd: int, memory: GuestMemory) -> Iterator[Range]:
    shift = memory.base - memory.host_address
    for start in range(0, memory.size, AT_ONCE):
        length = min(AT_ONCE, memory.size - start)
        first = (memory.host_address + start) // mmap.PAGESIZE
        entries = os.pread(fd, length // mmap.PAGESIZE * ENTRY, first * ENTRY)
        if len(entries) != length // mmap.PAGESIZE * ENTRY:
            raise OSError("a short read of the page tables")
        present = entries[ENTRY - 1 :: ENTRY].translate(PRESENT)
        yield from runs(present, first * mmap.PAGESIZE + shift, mmap.PAGESIZE)


def used(memory: MemorySource, ranges: Iterable[Range]) -> list[Range]:
    """Return the pages within ``ranges`` that are not zero, as ranges."""
    found: list[Range] = []
    for low, high in ranges:
        for start in range(low, high, BLOCK):
            length = min(BLOCK, high - start)
            with memory.view(start, length) as view:
                flags = not_zero(view)
            found += runs(flags, start, PAGE)
    return merged(found)


def not_zero(view: memoryview) -> bytes:
    """Return 1 for each page of a view that is not zero, else 0."""
    pages = chain.from_iterable(struct.iter_unpack(f"{PAGE}s", view))
    return bytes(map(ne, pages, repeat(ZERO)))


def differing(one: memoryview, other: memoryview) -> bytes:
    """Return 1 for each page that differs between two views, else 0."""
    left, right = (struct.iter_unpack(f"{PAGE}s", view) for view in (one, other))
    return bytes(map(ne, left, right))


def changed(memory: GuestMemory, parent: SnapshotFile, dirty: DirtyPages) -> list[Range]:
    """Return the ranges of ``memory`` that may differ from the parent."""
    if memory is dirty.memory and dirty.since == parent.header.bare_identity:
        return dirty.ranges()
    return list(by_content(memory, parent))


def by_content(memory: GuestMemory, parent: SnapshotFile) -> Iterator[Range]:
    """Compare memory with the parent, and yield the pages that differ as ranges."""
    end = memory.base + memory.size
    stored = clipped(parent.stored(), memory.base, end)
    for low, high in merged([*touched(memory), *stored]):
        for start in range(low, high, BLOCK):
            length = min(BLOCK, high - start)
            with memory.view(start, length) as now, memoryview(parent.read(start, length)) as then:
                flags = differing(now, then)
            yield from runs(flags, start, PAGE)
