"""Stage 1 address translation at EL1 and EL0: a walk of a guest's own tables.

    regime = Regime.of(vcpu.sysreg)
    translate(0xFFFF_8000_0010_0000, regime, read).address

The tables are the guest's: a walk has at most five steps, whatever they contain. It checks no
permissions: debuggers need none, and hardware has checked the accesses that pyvmm emulates.
128-bit descriptors (FEAT_D128) are not supported; KVM offers none to guests.

Source: Arm ARM DDI 0487, D8 "The AArch64 Virtual Memory System Architecture".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from pyvmm.arm64 import fault
from pyvmm.arm64.control import Granule0, Granule1, Sctlr, Tcr
from pyvmm.arm64.fault import FaultStatus
from pyvmm.base.records import Record
from pyvmm.errors import GuestError

# Reads that many bytes at a guest physical address.  Raises: GuestError, if they are not in memory.
Read = Callable[[int, int], bytes]

INSTRUCTION = 4  # bytes
LAST_LEVEL = 3
DESCRIPTOR = 8  # bytes
DESCRIPTOR_BITS = 3  # log2 of it
_VALID, _TABLE_OR_PAGE, _ACCESSED = 1 << 0, 1 << 1, 1 << 10
# The bits of a block or page descriptor besides the address, the access flag and nG: permissions,
# memory type.  Bits 63:59 of a table descriptor limit the permissions below it.
ATTRIBUTES = 0xFFF8_0000_0000_00FC
TABLE_ATTRIBUTES = 59

OUTPUT_BITS = (32, 36, 40, 42, 44, 48, 52, 52)  # by TCR_EL1.IPS
KIB_64 = 16  # log2 of the largest page size
LONGEST = 52  # bits of any address
PLAIN = 48  # bits of an address without FEAT_LPA, FEAT_LPA2 and FEAT_LVA
# log2 of the page size, by TG0 and by TG1
PAGE_BITS: tuple[dict[int, int], ...] = (
    {Granule0.KIB_4: 12, Granule0.KIB_16: 14, Granule0.KIB_64: 16},
    {Granule1.KIB_4: 12, Granule1.KIB_16: 14, Granule1.KIB_64: 16},
)
# (page bits, with 52-bit addresses): the first level that may have blocks
FIRST_BLOCKS = {
    (12, False): 1,
    (12, True): 0,
    (14, False): 2,
    (14, True): 1,
    (16, False): 1,  # level 1 needs a CPU with 52-bit addresses, whatever TCR_EL1.IPS is
    (16, True): 1,
}


class TranslationFault(GuestError):
    """An address that the tables do not translate; ``status`` is the reason."""

    def __init__(self, va: int, kind: str, level: int) -> None:
        self.status = FaultStatus[f"{kind}_L{level}".replace("-", "m")]
        super().__init__(f"virtual address {va:#x}: {fault.explain(self.status)}")


class Regime(Record):
    """The registers that control a vCPU's stage 1 translation at EL1 and EL0."""

    sctlr: Sctlr
    tcr: Tcr
    ttbr0: int
    ttbr1: int

    @classmethod
    def of(cls, registers: Mapping[str, int]) -> Self:
        """Return the regime of a vCPU with these system registers, by name."""
        return cls(
            sctlr=Sctlr(registers["SCTLR_EL1"]),
            tcr=Tcr(registers["TCR_EL1"]),
            ttbr0=registers["TTBR0_EL1"],
            ttbr1=registers["TTBR1_EL1"],
        )


class Translation(Record):
    """A guest physical address.

    Pages with equal ``attributes`` have equal permissions and memory types: bits 63:0 come from the
    page's or block's descriptor. Bits 68:64 combine bits 63:59 of all tables above it.
    """

    address: int
    attributes: int = 0
    shift: int = 0  # log2 of the size of the page or block; 0 without tables


class Half(Record):
    """The settings for the lower or the upper half of the virtual addresses."""

    ttbr: int
    page_bits: int
    input_bits: int  # of a virtual address
    output_bits: int  # of a physical address
    is_wide: bool  # descriptors have 52-bit addresses
    is_off: bool
    ignores_tag: bool  # the top byte

    @property
    def has_legal_size(self) -> bool:
        """Whether the architecture allows TxSZ; else it is a fault or IMPLEMENTATION DEFINED."""
        longest = LONGEST if self.is_wide or self.page_bits == KIB_64 else PLAIN
        return (17 if self.page_bits == KIB_64 else 16) <= self.input_bits <= longest

    def contains(self, va: int) -> bool:
        """Return whether the bits above the input size are copies of bit 55."""
        bits = (56 if self.ignores_tag else 64) - self.input_bits
        top = va >> self.input_bits & (1 << bits) - 1
        return top == ((1 << bits) - 1 if va >> 55 & 1 else 0)

    @property
    def first_level(self) -> int:
        """The level of the first table: -1 to 3."""
        stride = self.page_bits - DESCRIPTOR_BITS
        return LAST_LEVEL - (self.input_bits - self.page_bits - 1) // stride

    def shift(self, level: int) -> int:
        """Return log2 of the bytes that one descriptor of a level maps."""
        return self.page_bits + (self.page_bits - DESCRIPTOR_BITS) * (LAST_LEVEL - level)

    def is_table(self, descriptor: int, level: int) -> bool | None:
        """Return whether a descriptor leads to a table, or to memory; None if it is invalid."""
        has_type = bool(descriptor & _TABLE_OR_PAGE)
        first_blocks = FIRST_BLOCKS[self.page_bits, self.is_wide]
        if not (descriptor & _VALID and (has_type or first_blocks <= level < LAST_LEVEL)):
            return None
        return has_type and level < LAST_LEVEL

    def check_size(self, address: int, va: int, level: int) -> None:
        """Check a physical address at a level of the walk.  Raises: TranslationFault."""
        if address >> self.output_bits:
            raise TranslationFault(va, "ADDRSZ", level)

    def first_table(self, shift: int) -> int:
        """Return the first table's address; its index begins at bit ``shift`` of an address."""
        size_bits = self.input_bits - shift + DESCRIPTOR_BITS
        address = self.ttbr & (1 << PLAIN) - 1
        if self.is_wide:
            size_bits = max(size_bits, 6)
            address |= (self.ttbr >> 2 & 0xF) << PLAIN
        return address & -1 << size_bits

    def output(self, descriptor: int, shift: int) -> int:
        """Return a descriptor's address, which has ``shift`` zero bits at its end."""
        address = descriptor & (1 << PLAIN) - 1
        if self.is_wide and self.page_bits == KIB_64:
            address |= (descriptor >> 12 & 0xF) << PLAIN
        elif self.is_wide:
            address |= descriptor & 0x3 << PLAIN | (descriptor >> 8 & 0x3) << 50
        return address & -1 << shift


def translate(va: int, regime: Regime, read: Read) -> Translation:
    """Translate a virtual address.

    Raises:
        TranslationFault: the tables do not translate it.
        GuestError: TCR_EL1 has a reserved page size.
    """
    upper = va >> 55 & 1
    if not regime.sctlr.M:
        ignores_tag = regime.tcr.TBI1 if upper else regime.tcr.TBI0
        address = va & (1 << 56) - 1 if ignores_tag else va
        if address >> LONGEST:
            raise TranslationFault(va, "ADDRSZ", 0)
        return Translation(address)
    half = half_of(upper, regime)
    if half.is_off or not half.has_legal_size or not half.contains(va):
        raise TranslationFault(va, "FAULT", 0)
    return _walk(va, half, regime, read)


def fetch(va: int, regime: Regime, read: Read) -> int:
    """Return the instruction at a virtual address.  Raises: GuestError, if there is none."""
    return int.from_bytes(read(translate(va, regime, read).address, INSTRUCTION), "little")


def half_of(upper: int, regime: Regime) -> Half:
    """Return the settings of the lower (0) or upper (1) half of the addresses.

    Raises: GuestError, for a reserved page size.
    """
    tcr = regime.tcr
    ttbr, granule, size, is_off, ignores_tag = (
        (regime.ttbr1, tcr.TG1, tcr.T1SZ, tcr.EPD1, tcr.TBI1)
        if upper
        else (regime.ttbr0, tcr.TG0, tcr.T0SZ, tcr.EPD0, tcr.TBI0)
    )
    page_bits = PAGE_BITS[upper].get(granule)
    if page_bits is None:
        raise GuestError(f"TCR_EL1.TG{upper}={granule} is a reserved page size")
    output_bits = OUTPUT_BITS[tcr.IPS]
    is_wide = output_bits > PLAIN if page_bits == KIB_64 else bool(tcr.DS)
    return Half(
        ttbr=ttbr,
        page_bits=page_bits,
        input_bits=64 - size,
        output_bits=output_bits if is_wide else min(output_bits, PLAIN),
        is_wide=is_wide,
        is_off=bool(is_off),
        ignores_tag=bool(ignores_tag),
    )


def _walk(va: int, half: Half, regime: Regime, read: Read) -> Translation:
    stride = half.page_bits - DESCRIPTOR_BITS
    level = half.first_level
    shift = half.shift(level)  # the lowest bit of the level's index
    index_mask = (1 << half.input_bits - shift) - 1
    address = half.first_table(shift)
    half.check_size(address, va, 0)
    attributes = 0
    while True:
        entry = address + (va >> shift & index_mask) * DESCRIPTOR
        try:
            raw = read(entry, DESCRIPTOR)
        except GuestError as error:
            raise TranslationFault(va, "SEA_TTW", level) from error
        descriptor = int.from_bytes(raw, "big" if regime.sctlr.EE else "little")
        is_table = half.is_table(descriptor, level)
        if is_table is None:
            raise TranslationFault(va, "FAULT", level)
        address = half.output(descriptor, half.page_bits if is_table else shift)
        half.check_size(address, va, level)
        if not is_table:
            break
        attributes |= descriptor >> TABLE_ATTRIBUTES << 64
        level += 1
        shift -= stride
        index_mask = (1 << stride) - 1
    if not descriptor & _ACCESSED and not regime.tcr.HA:
        raise TranslationFault(va, "ACCESS", level)
    attributes |= descriptor & ATTRIBUTES
    return Translation(address | va & (1 << shift) - 1, attributes, shift)
