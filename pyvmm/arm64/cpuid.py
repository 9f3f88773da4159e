"""The registers that identify a CPU and its caches.

Source: Arm ARM DDI 0487, D23.2.
"""

from __future__ import annotations

from pyvmm.arm64.bits import Bits, Named, bit, bits, meaning, names

WORD = 4  # bytes; CTR_EL0 and DCZID_EL0 give sizes as log2 of words
CCSIDRS = 14  # the architecture's limit: 7 levels, data and instructions


class Implementer(Named):
    """MIDR_EL1.Implementer.  Source: as above; Linux, arch/arm64/include/asm/cputype.h."""

    SOFTWARE = 0x00, "software (QEMU)"
    ARM = 0x41, "Arm"
    BRCM = 0x42, "Broadcom"
    CAVIUM = 0x43, "Cavium"
    FUJITSU = 0x46, "Fujitsu"
    HISI = 0x48, "HiSilicon"
    NVIDIA = 0x4E, "NVIDIA"
    APM = 0x50, "Applied Micro"
    QCOM = 0x51, "Qualcomm"
    APPLE = 0x61, "Apple"
    MICROSOFT = 0x6D, "Microsoft"
    AMPERE = 0xC0, "Ampere"


class Midr(Bits, registers="MIDR_EL1"):
    """The maker and the model of a CPU."""

    Implementer = bits(31, 24, "maker", Implementer)
    Variant = bits(23, 20, "major revision")
    Architecture = bits(19, 16, "architecture; 0xf means see the ID registers")
    PartNum = bits(15, 4, "model")
    Revision = bits(3, 0, "minor revision")


class Ctr(Bits, registers="CTR_EL0"):
    """The caches as a whole; sizes are log2 of 4-byte words."""

    TminLine = bits(37, 32, "shortest line with memory tags")
    DIC = bit(29, "instruction caches need no invalidation")
    IDC = bit(28, "instruction fetches see data without cleaning")
    CWG = bits(27, 24, "largest write-back")
    ERG = bits(23, 20, "reservation granule of exclusives")
    DminLine = bits(19, 16, "shortest data cache line")
    L1Ip = bits(15, 14, "L1 instruction cache", names(VIPT=2, PIPT=3))
    IminLine = bits(3, 0, "shortest instruction cache line")


class Dczid(Bits, registers="DCZID_EL0"):
    """The effect of DC ZVA."""

    DZP = bit(4, "DC ZVA is not allowed")
    BS = bits(3, 0, "log2 of the words it zeroes")


_CTYPE = names("NO_CACHE", "INSTRUCTION", "DATA", "SEPARATE", "UNIFIED")


class Clidr(Bits, registers="CLIDR_EL1"):
    """The caches at each level."""

    Ttype7 = bits(46, 45, "memory tags at level 7")
    Ttype6 = bits(44, 43, "memory tags at level 6")
    Ttype5 = bits(42, 41, "memory tags at level 5")
    Ttype4 = bits(40, 39, "memory tags at level 4")
    Ttype3 = bits(38, 37, "memory tags at level 3")
    Ttype2 = bits(36, 35, "memory tags at level 2")
    Ttype1 = bits(34, 33, "memory tags at level 1")
    ICB = bits(32, 30, "inner cache boundary")
    LoUU = bits(29, 27, "level of unification, this CPU")
    LoC = bits(26, 24, "level of coherency")
    LoUIS = bits(23, 21, "level of unification, inner shareable")
    Ctype7 = bits(20, 18, "cache at level 7", _CTYPE)
    Ctype6 = bits(17, 15, "cache at level 6", _CTYPE)
    Ctype5 = bits(14, 12, "cache at level 5", _CTYPE)
    Ctype4 = bits(11, 9, "cache at level 4", _CTYPE)
    Ctype3 = bits(8, 6, "cache at level 3", _CTYPE)
    Ctype2 = bits(5, 3, "cache at level 2", _CTYPE)
    Ctype1 = bits(2, 0, "cache at level 1", _CTYPE)


class Csselr(Bits, registers="CSSELR_EL1"):
    """The cache that CCSIDR_EL1 describes."""

    TnD = bit(4, "memory tags")
    Level = bits(3, 1, "level, less one")
    InD = bit(0, "the instruction cache")


class Ccsidr(Bits, registers=" ".join(f"CCSIDR{n}" for n in range(CCSIDRS))):
    """The shape of a cache (CCSIDR_EL1), where ID_AA64MMFR2_EL1.CCIDX is BITS_32."""

    NumSets = bits(27, 13, "sets, less one")
    Associativity = bits(12, 3, "ways, less one")
    LineSize = bits(2, 0, "log2 of the line's bytes, less 4")


def line_bytes(log2_words: int) -> int:
    """Return the bytes of a size in CTR_EL0 or DCZID_EL0."""
    return WORD << log2_words


def describe(midr_el1: int) -> str:
    """Describe a CPU: its maker and its numbers."""
    midr = Midr(midr_el1)
    maker = meaning(midr.Implementer) or f"implementer {midr.Implementer:#04x}"
    return f"{maker}, part {midr.PartNum:#05x}, MIDR_EL1 {midr_el1:#010x}"
