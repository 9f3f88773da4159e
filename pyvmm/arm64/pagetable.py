"""The ranges of virtual addresses that a guest's own stage 1 tables map, with their attributes.

The tables are the guest's: they may contain loops, which map the whole address space in small
pages. So a walk reads a limited number of tables, and says where it stopped.

Source: Arm ARM DDI 0487, D8.3 "Translation table descriptor formats" and D8.4 "Memory access
control".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pyvmm.arm64.translation import (
    ATTRIBUTES,
    DESCRIPTOR,
    DESCRIPTOR_BITS,
    TABLE_ATTRIBUTES,
    Half,
    Read,
    Regime,
    half_of,
)
from pyvmm.base.records import Record
from pyvmm.errors import GuestError

TABLES = 64  # that one walk reads: an emulated host takes a second or two for them
RANGES = 10_000  # that one walk returns

AP_EL0, AP_READ_ONLY = 1 << 6, 1 << 7
NOT_GLOBAL, DBM, CONTIGUOUS = 1 << 11, 1 << 51, 1 << 52
PXN, UXN = 1 << 53, 1 << 54
# Bits of the tables above, as Translation.attributes has them
TABLE_PXN, TABLE_UXN, TABLE_NO_EL0, TABLE_READ_ONLY = (1 << 64 + n for n in range(4))
LISTED = ATTRIBUTES & ~CONTIGUOUS & ~DBM | NOT_GLOBAL  # that divide ranges

# The memory types that kernels use.  Source: DDI 0487, D23.2 "MAIR_EL1"
MEMORY_TYPES = {
    0x00: "device-nGnRnE",
    0x04: "device-nGnRE",
    0x08: "device-nGRE",
    0x0C: "device-GRE",
    0x44: "normal-uncached",
    0xBB: "normal-write-through",
    0xF0: "normal-tagged",
    0xFF: "normal",
}


class Range(Record):
    """Contiguous virtual addresses, at contiguous physical ones, with equal attributes."""

    start: int
    end: int
    address: int  # of the first byte
    page: int  # bytes that one descriptor maps
    attributes: int  # see Translation


class Walk:
    """A walk of the tables of one vCPU, from a virtual address on.

    After ``ranges`` has ended, ``next`` is where another walk continues; None at the end.
    ``unreadable`` counts the tables that are outside memory.
    """

    def __init__(self, regime: Regime, read: Read, tables: int = TABLES) -> None:
        self.next: int | None = None
        self.unreadable = 0
        self._regime = regime
        self._read = read
        self._left = tables

    def ranges(self, start: int = 0) -> Iterator[Range]:
        """Yield the mapped ranges, lowest first.

        Raises: GuestError, if TCR_EL1 has a reserved page size.
        """
        last: Range | None = None
        count = 0
        for found in self._pages(start):
            if last is not None and _continues(last, found):
                last = last.replace(end=found.end)
                continue
            if last is not None:
                yield last
                count += 1
                if count >= RANGES:
                    self.next = found.start
                    return
            last = found
        if last is not None:
            yield last

    def _pages(self, start: int) -> Iterator[Range]:
        if not self._regime.sctlr.M:
            return
        for upper in (0, 1):
            half = half_of(upper, self._regime)
            if half.is_off or not half.has_legal_size:
                continue
            base = (1 << 64) - (1 << half.input_bits) if upper else 0
            if start >= base + (1 << half.input_bits):
                continue
            shift = half.shift(half.first_level)
            table = half.first_table(shift)
            entries = 1 << half.input_bits - shift
            first = (table, half.first_level, base, 0, entries)
            yield from self._table(half, first, max(start, base))
            if self.next is not None:
                return

    def _table(
        self, half: Half, table: tuple[int, int, int, int, int], start: int
    ) -> Iterator[Range]:
        """Yield the pages that a table maps from ``start`` on.

        ``table`` is its address and level, the first address that it maps, the limits that the
        tables above it set, and its number of descriptors.
        """
        place, level, base, above, entries = table
        shift = half.shift(level)
        if self._left <= 0:
            self.next = max(start, base)
            return
        self._left -= 1
        first = max(0, start - base) >> shift
        for number, descriptor in self._descriptors(place, entries, first):
            is_table = half.is_table(descriptor, level)
            if is_table is None:
                continue
            va = base + (number << shift)
            address = half.output(descriptor, half.page_bits if is_table else shift)
            if address >> half.output_bits:
                continue
            if is_table:
                limits = above | descriptor >> TABLE_ATTRIBUTES << 64
                below = (address, level + 1, va, limits, 1 << half.page_bits - DESCRIPTOR_BITS)
                yield from self._table(half, below, start)
                if self.next is not None:
                    return
            else:
                attributes = above | descriptor & LISTED
                yield Range(va, va + (1 << shift), address, 1 << shift, attributes)

    def _descriptors(self, table: int, entries: int, first: int) -> Iterator[tuple[int, int]]:
        """Yield the numbers and values of a table's descriptors that are not zero."""
        try:
            raw = self._read(table + first * DESCRIPTOR, (entries - first) * DESCRIPTOR)
        except GuestError:
            self.unreadable += 1
            return
        order = ">" if self._regime.sctlr.EE else "<"
        for number, value in enumerate(struct.unpack(f"{order}{entries - first}Q", raw), first):
            if value:
                yield number, value


def _continues(last: Range, found: Range) -> bool:
    return (
        last.end == found.start
        and last.address + last.end - last.start == found.address
        and last.attributes == found.attributes
        and last.page == found.page
    )


class Access(Record):
    """What the attributes of a page allow: "rwx" at EL1 and at EL0, and its memory type."""

    el1: str
    el0: str
    memory: str
    is_global: bool


def access(attributes: int, regime: Regime, mair: int, *, indirect: bool = False) -> Access:
    """Return what attributes mean with these registers.

    With permission indirection (TCR2_EL1.PIE) the permissions are in other registers, which pyvmm
    does not decode: "???".
    """
    memory = mair >> 8 * (attributes >> 2 & 7) & 0xFF
    kind = MEMORY_TYPES.get(memory, f"type-{memory:#04x}")
    is_global = not attributes & NOT_GLOBAL
    if indirect:
        return Access("???", "???", kind, is_global)
    writes = not attributes & (AP_READ_ONLY | TABLE_READ_ONLY)
    has_el0 = bool(attributes & AP_EL0) and not attributes & TABLE_NO_EL0
    fixed = regime.sctlr.WXN and writes
    el1_runs = not (attributes & (PXN | TABLE_PXN) or fixed or (writes and has_el0))
    el0_runs = not (attributes & (UXN | TABLE_UXN) or (fixed and has_el0))
    return Access(
        el1=_letters(True, writes, el1_runs),
        el0=_letters(has_el0, writes and has_el0, el0_runs),
        memory=kind,
        is_global=is_global,
    )


def _letters(reads: bool, writes: bool, runs: bool) -> str:
    return f"{'r' if reads else '-'}{'w' if writes else '-'}{'x' if runs else '-'}"
