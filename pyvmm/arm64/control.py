"""The registers that configure a CPU: system control, address translation, SVE.

Source: Arm ARM DDI 0487, D23.2; Linux, arch/arm64/tools/sysreg.
"""

from __future__ import annotations

from enum import IntEnum

from pyvmm.arm64.bits import Bits, bit, bits, names
from pyvmm.arm64.idregs import PaRange

_TAG_FAULT = names("NONE", "SYNC", "ASYNC", "ASYMM")
_ENABLE = names("TRAP", "TRAP_EL0", NO_TRAP=3)  # 2 traps like 0


class Sctlr(Bits, registers="SCTLR_EL1"):
    """System control."""

    TIDCP = bit(63, "EL0's IMPLEMENTATION DEFINED registers are trapped")
    SPINTMASK = bit(62, "PSTATE.SP masks interrupts")
    NMI = bit(61, "non-maskable interrupts")
    EnTP2 = bit(60, "EL0 has TPIDR2_EL0")
    TCSO = bit(59, "EL1: tag checks of stores only")
    TCSO0 = bit(58, "EL0: tag checks of stores only")
    EPAN = bit(57, "PAN applies to execute-only memory")
    EnALS = bit(56, "EL0 has LD64B and ST64B")
    EnAS0 = bit(55, "EL0 has ST64BV0")
    EnASR = bit(54, "EL0 has ST64BV")
    TWEDEL = bits(49, 46, "delay before WFE is trapped")
    TWEDEn = bit(45, "TWEDEL is used")
    DSSBS = bit(44, "value of SSBS on an exception")
    ATA = bit(43, "EL1: tags can be accessed")
    ATA0 = bit(42, "EL0: tags can be accessed")
    TCF = bits(41, 40, "EL1: tag check faults", _TAG_FAULT)
    TCF0 = bits(39, 38, "EL0: tag check faults", _TAG_FAULT)
    ITFSB = bit(37, "exceptions wait for tag check faults")
    BT1 = bit(36, "EL1: BTYPE 3 cannot branch to PACIxSP")
    BT0 = bit(35, "EL0: BTYPE 3 cannot branch to PACIxSP")
    EnFPM = bit(34, "EL0 has FPMR")
    MSCEn = bit(33, "EL0 has memory copy and set")
    CMOW = bit(32, "EL0's cache maintenance needs write permission")
    EnIA = bit(31, "instruction key A")
    EnIB = bit(30, "instruction key B")
    LSMAOE = bit(29, "load and store multiple as before Armv8.2")
    nTLSMD = bit(28, "load and store multiple to Device memory: no trap")
    EnDA = bit(27, "data key A")
    UCI = bit(26, "EL0 has cache maintenance")
    EE = bit(25, "EL1 is big-endian")
    E0E = bit(24, "EL0 is big-endian")
    SPAN = bit(23, "exceptions leave PSTATE.PAN unchanged")
    EIS = bit(22, "exception entry synchronizes")
    IESB = bit(21, "implicit error synchronization")
    TSCXT = bit(20, "EL0 lacks SCXTNUM_EL0")
    WXN = bit(19, "writable memory is not executable")
    nTWE = bit(18, "EL0 has WFE")
    nTWI = bit(16, "EL0 has WFI")
    UCT = bit(15, "EL0 has CTR_EL0")
    DZE = bit(14, "EL0 has DC ZVA")
    EnDB = bit(13, "data key B")
    I = bit(12, "instruction caches")  # noqa: E741 - Arm's name
    EOS = bit(11, "exception exit synchronizes")
    EnRCTX = bit(10, "EL0 has prediction restriction")
    UMA = bit(9, "EL0 has DAIF")
    SED = bit(8, "EL0 lacks SETEND")
    ITD = bit(7, "EL0 lacks most of IT")
    nAA = bit(6, "unaligned acquire and release accesses are allowed")
    CP15BEN = bit(5, "EL0 has CP15 barriers")
    SA0 = bit(4, "EL0: SP must be aligned")
    SA = bit(3, "EL1: SP must be aligned")
    C = bit(2, "data caches")
    A = bit(1, "accesses must be aligned")
    M = bit(0, "address translation")


class Sctlr2(Bits, registers="SCTLR2_EL1"):
    """System control, continued."""

    CPTM0 = bit(12, "EL0: checked pointer arithmetic of multiplication")
    CPTM = bit(11, "EL1: checked pointer arithmetic of multiplication")
    CPTA0 = bit(10, "EL0: checked pointer arithmetic")
    CPTA = bit(9, "EL1: checked pointer arithmetic")
    EnPACM0 = bit(8, "EL0 has PACM")
    EnPACM = bit(7, "EL1 has PACM")
    EnIDCP128 = bit(6, "EL0 has 128-bit IMPLEMENTATION DEFINED registers")
    EASE = bit(5, "external aborts go to the SError vector")
    EnANERR = bit(4, "asynchronous errors of memory reads")
    EnADERR = bit(3, "asynchronous errors of device reads")
    NMEA = bit(2, "PSTATE.A does not mask SErrors")


class Cpacr(Bits, registers="CPACR_EL1"):
    """Traps of extensions to EL1."""

    TCPAC = bit(31, "CPACR_EL1 is trapped to EL2")
    TAM = bit(30, "activity monitors are trapped")
    E0POE = bit(29, "EL0 has POR_EL0")
    TTA = bit(28, "trace registers are trapped")
    SMEN = bits(25, 24, "SME", _ENABLE)
    FPEN = bits(21, 20, "floating point and Advanced SIMD", _ENABLE)
    ZEN = bits(17, 16, "SVE", _ENABLE)


class Zcr(Bits, registers="ZCR_EL1 ZCR_EL2"):
    """SVE control."""

    LEN = bits(3, 0, "the vector length is at most (LEN + 1) * 128 bits")


class Granule0(IntEnum):
    """TCR_EL1.TG0: the page size of the lower half."""

    KIB_4 = 0
    KIB_64 = 1
    KIB_16 = 2


class Granule1(IntEnum):
    """TCR_EL1.TG1: the page size of the upper half; its numbers differ from TG0's."""

    KIB_16 = 1
    KIB_4 = 2
    KIB_64 = 3


_SHARED = names(NONE=0, OUTER=2, INNER=3)
_CACHED = names("NC", "WBWA", "WT", "WBnWA")


class Tcr(Bits, registers="TCR_EL1"):
    """Address translation: 0 is the lower half of the addresses, 1 the upper."""

    MTX1 = bit(61, "tags are not address bits")
    MTX0 = bit(60, "tags are not address bits")
    DS = bit(59, "52-bit addresses with 4 and 16 KiB pages")
    TCMA1 = bit(58, "no tag checks with tag 0xf")
    TCMA0 = bit(57, "no tag checks with tag 0")
    E0PD1 = bit(56, "EL0 has no access")
    E0PD0 = bit(55, "EL0 has no access")
    NFD1 = bit(54, "non-fault SVE loads do not walk")
    NFD0 = bit(53, "non-fault SVE loads do not walk")
    TBID1 = bit(52, "top byte ignored for data only")
    TBID0 = bit(51, "top byte ignored for data only")
    HWU162 = bit(50, "hardware uses bit 62 of descriptors")
    HWU161 = bit(49, "hardware uses bit 61 of descriptors")
    HWU160 = bit(48, "hardware uses bit 60 of descriptors")
    HWU159 = bit(47, "hardware uses bit 59 of descriptors")
    HWU062 = bit(46, "hardware uses bit 62 of descriptors")
    HWU061 = bit(45, "hardware uses bit 61 of descriptors")
    HWU060 = bit(44, "hardware uses bit 60 of descriptors")
    HWU059 = bit(43, "hardware uses bit 59 of descriptors")
    HPD1 = bit(42, "no hierarchical permissions")
    HPD0 = bit(41, "no hierarchical permissions")
    HD = bit(40, "dirty state by hardware")
    HA = bit(39, "access flag by hardware")
    TBI1 = bit(38, "top byte ignored")
    TBI0 = bit(37, "top byte ignored")
    AS = bit(36, "16-bit ASIDs")
    IPS = bits(34, 32, "physical address size", PaRange)
    TG1 = bits(31, 30, "page size", Granule1)
    SH1 = bits(29, 28, "walks: shareability", _SHARED)
    ORGN1 = bits(27, 26, "walks: outer caches", _CACHED)
    IRGN1 = bits(25, 24, "walks: inner caches", _CACHED)
    EPD1 = bit(23, "no walks")
    A1 = bit(22, "the ASID is in TTBR1_EL1")
    T1SZ = bits(21, 16, "64 less the address bits")
    TG0 = bits(15, 14, "page size", Granule0)
    SH0 = bits(13, 12, "walks: shareability", _SHARED)
    ORGN0 = bits(11, 10, "walks: outer caches", _CACHED)
    IRGN0 = bits(9, 8, "walks: inner caches", _CACHED)
    EPD0 = bit(7, "no walks")
    T0SZ = bits(5, 0, "64 less the address bits")


class Tcr2(Bits, registers="TCR2_EL1"):
    """Address translation, continued."""

    FNGNA1 = bit(21, "non-global depends on the ASID")
    FNGNA0 = bit(20, "non-global depends on the ASID")
    FNG1 = bit(18, "forced non-global")
    FNG0 = bit(17, "forced non-global")
    A2 = bit(16, "two ASIDs")
    DisCH1 = bit(15, "contiguous hint disabled")
    DisCH0 = bit(14, "contiguous hint disabled")
    HAFT = bit(11, "access flag of tables by hardware")
    PTTWI = bit(10, "writes to tables use RCW")
    D128 = bit(5, "128-bit descriptors")
    AIE = bit(4, "attribute indexing")
    POE = bit(3, "permission overlays")
    E0POE = bit(2, "EL0's permission overlays")
    PIE = bit(1, "permission indirection")
    PnCH = bit(0, "protected attribute instead of contiguous hint")


class Ttbr(Bits, registers="TTBR0_EL1 TTBR1_EL1"):
    """A translation table's address; LPA2 changes the layout of BADDR."""

    ASID = bits(63, 48, "address space")
    BADDR = bits(47, 1, "address, less its lowest bit")
    CnP = bit(0, "common not private")


class MemoryType(IntEnum):
    """The common attributes of MAIR_ELx."""

    DEVICE_nGnRnE = 0x00
    DEVICE_nGnRE = 0x04
    DEVICE_nGRE = 0x08
    DEVICE_GRE = 0x0C
    NORMAL_NC = 0x44
    NORMAL_iNC_oWB = 0x4F
    NORMAL_WT = 0xBB
    NORMAL_TAGGED = 0xF0
    NORMAL = 0xFF


class Mair(Bits, registers="MAIR_EL1 MAIR_EL2"):
    """The memory types that translation tables refer to."""

    Attr7 = bits(63, 56, "type 7", MemoryType)
    Attr6 = bits(55, 48, "type 6", MemoryType)
    Attr5 = bits(47, 40, "type 5", MemoryType)
    Attr4 = bits(39, 32, "type 4", MemoryType)
    Attr3 = bits(31, 24, "type 3", MemoryType)
    Attr2 = bits(23, 16, "type 2", MemoryType)
    Attr1 = bits(15, 8, "type 1", MemoryType)
    Attr0 = bits(7, 0, "type 0", MemoryType)


class ContextId(Bits, registers="CONTEXTIDR_EL1"):
    """The current process, for debuggers."""

    PROCID = bits(31, 0, "process")
