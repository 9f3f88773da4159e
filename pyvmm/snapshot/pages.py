"""Which pages of guest memory hold something, found without a step of Python for each."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from operator import ne
from pathlib import Path
from typing import Final, Protocol

from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range, merged, runs
from pyvmm.snapshot.format import BLOCK, PAGE

ZERO: Final = bytes(PAGE)
PAGEMAP: Final = Path("/proc/self/pagemap")
ENTRY: Final = 8  # bytes of /proc/self/pagemap for a page
# In an entry's highest byte: the page is present, or swapped.
# Source: Linux, Documentation/admin-guide/mm/pagemap.rst
THERE: Final = bytes(int(byte & 0xC0 != 0) for byte in range(256))
AT_ONCE: Final = 1 << 30  # bytes of memory whose pagemap is read at once


class MemorySource(Protocol):
    """Guest memory: RAM, or what a file holds of it."""

    def view(self, gpa: int, length: int) -> memoryview:
        """The bytes at a guest address, without a copy where that can be."""


def touched(memory: GuestMemory) -> list[Range]:
    """What of a memory may be other than zero, by the kernel's page tables.

    All of it, where the kernel does not tell: /proc/self/pagemap is the user's alone, and a
    process that has changed its uid is nobody's.
    """
    try:
        fd = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return [(memory.base, memory.base + memory.size)]
    try:
        found = list(_present(fd, memory))
    except OSError:
        return [(memory.base, memory.base + memory.size)]
    finally:
        os.close(fd)
    return merged([*found, *memory.backed])


def _present(fd: int, memory: GuestMemory) -> Iterator[Range]:
    shift = memory.base - memory.host_address
    for start in range(0, memory.size, AT_ONCE):
        length = min(AT_ONCE, memory.size - start)
        first = (memory.host_address + start) // mmap.PAGESIZE
        entries = os.pread(fd, length // mmap.PAGESIZE * ENTRY, first * ENTRY)
        if len(entries) != length // mmap.PAGESIZE * ENTRY:
            raise OSError("the page tables were not read in whole")
        there = entries[ENTRY - 1 :: ENTRY].translate(THERE)
        yield from runs(there, first * mmap.PAGESIZE + shift, mmap.PAGESIZE)


def used(memory: MemorySource, ranges: Iterable[Range]) -> list[Range]:
    """The pages within those ranges that are not zero, as ranges."""
    found: list[Range] = []
    for low, high in ranges:
        for start in range(low, high, BLOCK):
            length = min(BLOCK, high - start)
            with memory.view(start, length) as view:
                flags = not_zero(view)
            found += runs(flags, start, PAGE)
    return merged(found)


def not_zero(view: memoryview) -> bytes:
    """For each page of a view 1 where it holds something, else 0."""
    pages = chain.from_iterable(struct.iter_unpack(f"{PAGE}s", view))
    return bytes(map(ne, pages, repeat(ZERO)))


def differing(one: memoryview, other: memoryview) -> bytes:
    """For each page of two views 1 where they differ, else 0."""
    left, right = (struct.iter_unpack(f"{PAGE}s", view) for view in (one, other))
    return bytes(map(ne, left, right))
