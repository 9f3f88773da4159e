"""Breakpoints and watchpoints: what a debugger asks for, and the registers of the CPU's own.

Source: Arm ARM DDI 0487, D2.8 "Breakpoint exceptions", D2.9 "Watchpoint exceptions", D24.2
"DBGBCR<n>_EL1" and "DBGWCR<n>_EL1".
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from pyvmm.base.records import Record
from pyvmm.errors import VmmError

BRK: Final = 0xD420_0000.to_bytes(4, "little")  # BRK #0
ENABLED: Final = 1 << 0
EL1_AND_EL0: Final = 3 << 1  # DBGBCR.PMC and DBGWCR.PAC
ALL_BYTES: Final = 0xF << 5  # DBGBCR.BAS of an A64 instruction
LSC_SHIFT, BAS_SHIFT, MASK_SHIFT = 3, 5, 24
LOADS, STORES = 1, 2
DOUBLEWORD: Final = 8
LONGEST: Final = 1 << 31  # bytes of a watchpoint with a mask


class Kind(IntEnum):
    """What a debugger inserts: the number in its Z packets."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


NAMES: Final = {Kind.WRITE: "watch", Kind.READ: "rwatch", Kind.ACCESS: "awatch"}
_ACCESSES: Final = {Kind.WRITE: STORES, Kind.READ: LOADS, Kind.ACCESS: LOADS | STORES}


class Point(Record):
    """A breakpoint or watchpoint on ``length`` bytes at a virtual address."""

    kind: Kind
    address: int
    length: int


def breakpoint_registers(point: Point) -> tuple[int, int]:
    """Return DBGBCR and DBGBVR."""
    return (ENABLED | EL1_AND_EL0 | ALL_BYTES, point.address & ~3)


def watchpoint_registers(point: Point) -> tuple[int, int]:
    """Return DBGWCR and DBGWVR.

    Raises: VmmError, if one watchpoint cannot cover the bytes.
    """
    control = ENABLED | EL1_AND_EL0 | _ACCESSES[point.kind] << LSC_SHIFT
    first = point.address % DOUBLEWORD
    length = point.length
    if 0 < length <= DOUBLEWORD - first:
        return (control | ((1 << length) - 1 << first) << BAS_SHIFT, point.address - first)
    if DOUBLEWORD < length <= LONGEST and not length & length - 1 and not point.address % length:
        mask = length.bit_length() - 1
        return (control | 0xFF << BAS_SHIFT | mask << MASK_SHIFT, point.address)
    raise VmmError(
        f"a watchpoint on {length} bytes at {point.address:#x}: it covers bytes of one aligned "
        "doubleword, or a larger power of two aligned to its size"
    )
