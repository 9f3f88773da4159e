"""The registers of a CPU's units: FP, timers, PMU, debug, GIC interface, PSCI firmware.

Source: Arm ARM DDI 0487, C5.2, D23.3 to D23.8; Arm IHI 0069 (GICv3), 12.2; Arm DEN 0022 (PSCI).
"""

from __future__ import annotations

from pyvmm.arm64.bits import Bits, bit, bits, names


class Fpcr(Bits, registers="FPCR"):
    """Floating-point control."""

    AHP = bit(26, "alternative half precision")
    DN = bit(25, "NaNs are the default NaN")
    FZ = bit(24, "denormals are flushed to zero")
    RMode = bits(23, 22, "rounding", names("RN", "RP", "RM", "RZ"))
    Stride = bits(21, 20, "AArch32 vectors: stride")
    FZ16 = bit(19, "half-precision denormals are flushed to zero")
    Len = bits(18, 16, "AArch32 vectors: length")
    IDE = bit(15, "input denormals trap")
    EBF = bit(13, "BFloat16 dot products are extended")
    IXE = bit(12, "inexact results trap")
    UFE = bit(11, "underflows trap")
    OFE = bit(10, "overflows trap")
    DZE = bit(9, "divisions by zero trap")
    IOE = bit(8, "invalid operations trap")
    NEP = bit(2, "scalar results keep the vector's upper elements")
    AH = bit(1, "alternate handling of denormals")
    FIZ = bit(0, "input denormals are flushed to zero")


class Fpsr(Bits, registers="FPSR"):
    """Floating-point status."""

    N = bit(31, "AArch32: negative")
    Z = bit(30, "AArch32: zero")
    C = bit(29, "AArch32: carry")
    V = bit(28, "AArch32: overflow")
    QC = bit(27, "saturated")
    IDC = bit(7, "input denormal")
    IXC = bit(4, "inexact")
    UFC = bit(3, "underflow")
    OFC = bit(2, "overflow")
    DZC = bit(1, "division by zero")
    IOC = bit(0, "invalid operation")


class CntCtl(
    Bits, registers="TIMER_CTL PTIMER_CTL CNTP_CTL_EL0 CNTV_CTL_EL0 CNTHP_CTL_EL2 CNTHV_CTL_EL2"
):
    """Timer control."""

    ISTATUS = bit(2, "the condition is met")
    IMASK = bit(1, "the interrupt is masked")
    ENABLE = bit(0, "the timer runs")


class Cntkctl(Bits, registers="CNTKCTL_EL1"):
    """EL0's access to timers, and the event stream."""

    EVNTIS = bit(17, "EVNTI counts from bit 8")
    EL0PTEN = bit(9, "EL0 has the physical timer")
    EL0VTEN = bit(8, "EL0 has the virtual timer")
    EVNTI = bits(7, 4, "counter bit that makes events")
    EVNTDIR = bit(3, "events when the bit changes to 0")
    EVNTEN = bit(2, "event stream")
    EL0VCTEN = bit(1, "EL0 has the virtual counter")
    EL0PCTEN = bit(0, "EL0 has the physical counter")


class Pmcr(Bits, registers="PMCR_EL0"):
    """Performance monitor control."""

    FZS = bit(32, "counters freeze when profiling stops")
    IMP = bits(31, 24, "implementer")
    IDCODE = bits(23, 16, "identification")
    N = bits(15, 11, "event counters")
    FZO = bit(9, "counters freeze on overflow")
    LP = bit(7, "event counters of 64 bits")
    LC = bit(6, "the cycle counter has 64 bits")
    DP = bit(5, "the cycle counter stops where events must not be counted")
    X = bit(4, "events are exported")
    D = bit(3, "every 64th cycle counts")
    C = bit(2, "reset the cycle counter")
    P = bit(1, "reset the event counters")
    E = bit(0, "the counters run")


class Pmuserenr(Bits, registers="PMUSERENR_EL0"):
    """EL0's access to the performance monitors."""

    TID = bit(6, "ID registers are trapped")
    IR = bit(5, "the instruction counter is read-only")
    UEN = bit(4, "the counters in PMUACR_EL1")
    ER = bit(3, "event counters can be read")
    CR = bit(2, "the cycle counter can be read")
    SW = bit(1, "PMSWINC_EL0 can be written")
    EN = bit(0, "full access")


class Mdscr(Bits, registers="MDSCR_EL1"):
    """Debug control."""

    TDA = bit(21, "breakpoint registers are trapped to an external debugger")
    MDE = bit(15, "breakpoints and watchpoints")
    HDE = bit(14, "breakpoints and watchpoints halt")
    KDE = bit(13, "debug exceptions from EL1 too")
    TDCC = bit(12, "EL0's debug communication is trapped")
    SS = bit(0, "software step")


class Oslsr(Bits, registers="OSLSR_EL1"):
    """The OS lock."""

    OSLM1 = bit(3, "the OS lock is implemented")
    nTT = bit(2, "OSLAR_EL1 needs 32-bit writes")
    OSLK = bit(1, "locked")
    OSLM0 = bit(0, "the OS lock's model, bit 0")


class IccCtlr(Bits, registers="ICC_CTLR_EL1"):
    """CPU interface control."""

    ExtRange = bit(19, "INTIDs 1024 to 8191")
    RSS = bit(18, "SGIs to Aff0 up to 255")
    A3V = bit(15, "SGIs use affinity 3")
    SEIS = bit(14, "SEIs are generated locally")
    IDbits = bits(13, 11, "INTID size", names("BITS_16", "BITS_24"))
    PRIbits = bits(10, 8, "priority bits, less one")
    PMHE = bit(6, "the priority mask is a hint to the distributor")
    EOImode = bit(1, "end of interrupt does not deactivate")
    CBPR = bit(0, "group 1 uses group 0's binary point")


class IccSre(Bits, registers="ICC_SRE_EL1"):
    """System register access."""

    DIB = bit(2, "IRQ bypass is disabled")
    DFB = bit(1, "FIQ bypass is disabled")
    SRE = bit(0, "access by system registers")


class IccIgrpen(Bits, registers="ICC_IGRPEN0_EL1 ICC_IGRPEN1_EL1"):
    """Enable of an interrupt group."""

    Enable = bit(0, "interrupts are signalled")


class IccPmr(Bits, registers="ICC_PMR_EL1"):
    """The priority mask: only higher priorities are signalled."""

    Priority = bits(7, 0, "priority")


class IccBpr(Bits, registers="ICC_BPR0_EL1 ICC_BPR1_EL1"):
    """The split of priorities into group and subpriority."""

    BinaryPoint = bits(2, 0, "binary point")


class PsciVersion(Bits, registers="PSCI_VERSION"):
    """The result of PSCI_VERSION; KVM stores it as a register."""

    MAJOR = bits(31, 16, "major")
    MINOR = bits(15, 0, "minor")
