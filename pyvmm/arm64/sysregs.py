"""AArch64 system registers: Arm's name and encoding of each that makes up a CPU's state.

Source: Arm ARM DDI 0487, D23 "AArch64 System Register Descriptions".  The debug and performance
monitor registers that come in numbers are made from their pattern at the end.
"""

from __future__ import annotations

from enum import IntEnum

from pyvmm.arm64.bits import Bits, bit, bits

# name: (op0, op1, CRn, CRm, op2)
_TABLE: dict[str, tuple[int, int, int, int, int]] = {
    # Debug
    "MDCCINT_EL1": (2, 0, 0, 2, 0),
    "MDSCR_EL1": (2, 0, 0, 2, 2),
    "OSLSR_EL1": (2, 0, 1, 1, 4),
    "DBGVCR32_EL2": (2, 4, 0, 7, 0),
    # Identification
    "MIDR_EL1": (3, 0, 0, 0, 0),
    "MPIDR_EL1": (3, 0, 0, 0, 5),
    "REVIDR_EL1": (3, 0, 0, 0, 6),
    "ID_PFR0_EL1": (3, 0, 0, 1, 0),
    "ID_PFR1_EL1": (3, 0, 0, 1, 1),
    "ID_DFR0_EL1": (3, 0, 0, 1, 2),
    "ID_AFR0_EL1": (3, 0, 0, 1, 3),
    "ID_MMFR0_EL1": (3, 0, 0, 1, 4),
    "ID_MMFR1_EL1": (3, 0, 0, 1, 5),
    "ID_MMFR2_EL1": (3, 0, 0, 1, 6),
    "ID_MMFR3_EL1": (3, 0, 0, 1, 7),
    "ID_ISAR0_EL1": (3, 0, 0, 2, 0),
    "ID_ISAR1_EL1": (3, 0, 0, 2, 1),
    "ID_ISAR2_EL1": (3, 0, 0, 2, 2),
    "ID_ISAR3_EL1": (3, 0, 0, 2, 3),
    "ID_ISAR4_EL1": (3, 0, 0, 2, 4),
    "ID_ISAR5_EL1": (3, 0, 0, 2, 5),
    "ID_MMFR4_EL1": (3, 0, 0, 2, 6),
    "ID_ISAR6_EL1": (3, 0, 0, 2, 7),
    "MVFR0_EL1": (3, 0, 0, 3, 0),
    "MVFR1_EL1": (3, 0, 0, 3, 1),
    "MVFR2_EL1": (3, 0, 0, 3, 2),
    "ID_PFR2_EL1": (3, 0, 0, 3, 4),
    "ID_DFR1_EL1": (3, 0, 0, 3, 5),
    "ID_MMFR5_EL1": (3, 0, 0, 3, 6),
    "ID_AA64PFR0_EL1": (3, 0, 0, 4, 0),
    "ID_AA64PFR1_EL1": (3, 0, 0, 4, 1),
    "ID_AA64PFR2_EL1": (3, 0, 0, 4, 2),
    "ID_AA64ZFR0_EL1": (3, 0, 0, 4, 4),
    "ID_AA64SMFR0_EL1": (3, 0, 0, 4, 5),
    "ID_AA64FPFR0_EL1": (3, 0, 0, 4, 7),
    "ID_AA64DFR0_EL1": (3, 0, 0, 5, 0),
    "ID_AA64DFR1_EL1": (3, 0, 0, 5, 1),
    "ID_AA64DFR2_EL1": (3, 0, 0, 5, 2),
    "ID_AA64AFR0_EL1": (3, 0, 0, 5, 4),
    "ID_AA64AFR1_EL1": (3, 0, 0, 5, 5),
    "ID_AA64ISAR0_EL1": (3, 0, 0, 6, 0),
    "ID_AA64ISAR1_EL1": (3, 0, 0, 6, 1),
    "ID_AA64ISAR2_EL1": (3, 0, 0, 6, 2),
    "ID_AA64ISAR3_EL1": (3, 0, 0, 6, 3),
    "ID_AA64MMFR0_EL1": (3, 0, 0, 7, 0),
    "ID_AA64MMFR1_EL1": (3, 0, 0, 7, 1),
    "ID_AA64MMFR2_EL1": (3, 0, 0, 7, 2),
    "ID_AA64MMFR3_EL1": (3, 0, 0, 7, 3),
    "ID_AA64MMFR4_EL1": (3, 0, 0, 7, 4),
    "CLIDR_EL1": (3, 1, 0, 0, 1),
    "AIDR_EL1": (3, 1, 0, 0, 7),
    "CSSELR_EL1": (3, 2, 0, 0, 0),
    "CTR_EL0": (3, 3, 0, 0, 1),
    "DCZID_EL0": (3, 3, 0, 0, 7),
    # System control
    "SCTLR_EL1": (3, 0, 1, 0, 0),
    "ACTLR_EL1": (3, 0, 1, 0, 1),
    "CPACR_EL1": (3, 0, 1, 0, 2),
    "SCTLR2_EL1": (3, 0, 1, 0, 3),
    "RGSR_EL1": (3, 0, 1, 0, 5),
    "GCR_EL1": (3, 0, 1, 0, 6),
    "ZCR_EL1": (3, 0, 1, 2, 0),
    # Memory
    "TTBR0_EL1": (3, 0, 2, 0, 0),
    "TTBR1_EL1": (3, 0, 2, 0, 1),
    "TCR_EL1": (3, 0, 2, 0, 2),
    "TCR2_EL1": (3, 0, 2, 0, 3),
    "PAR_EL1": (3, 0, 7, 4, 0),
    "MAIR_EL1": (3, 0, 10, 2, 0),
    "PIRE0_EL1": (3, 0, 10, 2, 2),
    "PIR_EL1": (3, 0, 10, 2, 3),
    "POR_EL1": (3, 0, 10, 2, 4),
    "AMAIR_EL1": (3, 0, 10, 3, 0),
    "POR_EL0": (3, 3, 10, 2, 4),
    # Pointer authentication keys
    "APIAKeyLo_EL1": (3, 0, 2, 1, 0),
    "APIAKeyHi_EL1": (3, 0, 2, 1, 1),
    "APIBKeyLo_EL1": (3, 0, 2, 1, 2),
    "APIBKeyHi_EL1": (3, 0, 2, 1, 3),
    "APDAKeyLo_EL1": (3, 0, 2, 2, 0),
    "APDAKeyHi_EL1": (3, 0, 2, 2, 1),
    "APDBKeyLo_EL1": (3, 0, 2, 2, 2),
    "APDBKeyHi_EL1": (3, 0, 2, 2, 3),
    "APGAKeyLo_EL1": (3, 0, 2, 3, 0),
    "APGAKeyHi_EL1": (3, 0, 2, 3, 1),
    # Exceptions
    "AFSR0_EL1": (3, 0, 5, 1, 0),
    "AFSR1_EL1": (3, 0, 5, 1, 1),
    "ESR_EL1": (3, 0, 5, 2, 0),
    "TFSR_EL1": (3, 0, 5, 6, 0),
    "TFSRE0_EL1": (3, 0, 5, 6, 1),
    "FAR_EL1": (3, 0, 6, 0, 0),
    "VBAR_EL1": (3, 0, 12, 0, 0),
    "DISR_EL1": (3, 0, 12, 1, 1),
    # Software's own
    "CONTEXTIDR_EL1": (3, 0, 13, 0, 1),
    "TPIDR_EL1": (3, 0, 13, 0, 4),
    "SCXTNUM_EL1": (3, 0, 13, 0, 7),
    "TPIDR_EL0": (3, 3, 13, 0, 2),
    "TPIDRRO_EL0": (3, 3, 13, 0, 3),
    "TPIDR2_EL0": (3, 3, 13, 0, 5),
    "SCXTNUM_EL0": (3, 3, 13, 0, 7),
    # Performance monitors
    "PMINTENSET_EL1": (3, 0, 9, 14, 1),
    "PMINTENCLR_EL1": (3, 0, 9, 14, 2),
    "PMMIR_EL1": (3, 0, 9, 14, 6),
    "PMCR_EL0": (3, 3, 9, 12, 0),
    "PMCNTENSET_EL0": (3, 3, 9, 12, 1),
    "PMCNTENCLR_EL0": (3, 3, 9, 12, 2),
    "PMOVSCLR_EL0": (3, 3, 9, 12, 3),
    "PMSWINC_EL0": (3, 3, 9, 12, 4),
    "PMSELR_EL0": (3, 3, 9, 12, 5),
    "PMCCNTR_EL0": (3, 3, 9, 13, 0),
    "PMUSERENR_EL0": (3, 3, 9, 14, 0),
    "PMOVSSET_EL0": (3, 3, 9, 14, 3),
    "PMCCFILTR_EL0": (3, 3, 14, 15, 7),
    # Timers
    "CNTKCTL_EL1": (3, 0, 14, 1, 0),
    "CNTFRQ_EL0": (3, 3, 14, 0, 0),
    "CNTPCT_EL0": (3, 3, 14, 0, 1),
    "CNTVCT_EL0": (3, 3, 14, 0, 2),
    "CNTP_CTL_EL0": (3, 3, 14, 2, 1),
    "CNTP_CVAL_EL0": (3, 3, 14, 2, 2),
    "CNTV_CTL_EL0": (3, 3, 14, 3, 1),
    "CNTV_CVAL_EL0": (3, 3, 14, 3, 2),
    # The GIC's CPU interface
    "ICC_PMR_EL1": (3, 0, 4, 6, 0),
    "ICC_BPR0_EL1": (3, 0, 12, 8, 3),
    "ICC_AP0R0_EL1": (3, 0, 12, 8, 4),
    "ICC_AP0R1_EL1": (3, 0, 12, 8, 5),
    "ICC_AP0R2_EL1": (3, 0, 12, 8, 6),
    "ICC_AP0R3_EL1": (3, 0, 12, 8, 7),
    "ICC_AP1R0_EL1": (3, 0, 12, 9, 0),
    "ICC_AP1R1_EL1": (3, 0, 12, 9, 1),
    "ICC_AP1R2_EL1": (3, 0, 12, 9, 2),
    "ICC_AP1R3_EL1": (3, 0, 12, 9, 3),
    "ICC_BPR1_EL1": (3, 0, 12, 12, 3),
    "ICC_CTLR_EL1": (3, 0, 12, 12, 4),
    "ICC_SRE_EL1": (3, 0, 12, 12, 5),
    "ICC_IGRPEN0_EL1": (3, 0, 12, 12, 6),
    "ICC_IGRPEN1_EL1": (3, 0, 12, 12, 7),
    # AArch32 state, seen from AArch64
    "DACR32_EL2": (3, 4, 3, 0, 0),
    "IFSR32_EL2": (3, 4, 5, 0, 1),
    "FPEXC32_EL2": (3, 4, 5, 3, 0),
    # EL2, for a guest that is a hypervisor
    "VPIDR_EL2": (3, 4, 0, 0, 0),
    "VMPIDR_EL2": (3, 4, 0, 0, 5),
    "SCTLR_EL2": (3, 4, 1, 0, 0),
    "ACTLR_EL2": (3, 4, 1, 0, 1),
    "SCTLR2_EL2": (3, 4, 1, 0, 3),
    "HCR_EL2": (3, 4, 1, 1, 0),
    "MDCR_EL2": (3, 4, 1, 1, 1),
    "CPTR_EL2": (3, 4, 1, 1, 2),
    "HSTR_EL2": (3, 4, 1, 1, 3),
    "HFGRTR_EL2": (3, 4, 1, 1, 4),
    "HFGWTR_EL2": (3, 4, 1, 1, 5),
    "HFGITR_EL2": (3, 4, 1, 1, 6),
    "HACR_EL2": (3, 4, 1, 1, 7),
    "ZCR_EL2": (3, 4, 1, 2, 0),
    "HCRX_EL2": (3, 4, 1, 2, 2),
    "TTBR0_EL2": (3, 4, 2, 0, 0),
    "TTBR1_EL2": (3, 4, 2, 0, 1),
    "TCR_EL2": (3, 4, 2, 0, 2),
    "TCR2_EL2": (3, 4, 2, 0, 3),
    "VTTBR_EL2": (3, 4, 2, 1, 0),
    "VTCR_EL2": (3, 4, 2, 1, 2),
    "VNCR_EL2": (3, 4, 2, 2, 0),
    "HDFGRTR2_EL2": (3, 4, 3, 1, 0),
    "HDFGWTR2_EL2": (3, 4, 3, 1, 1),
    "HFGRTR2_EL2": (3, 4, 3, 1, 2),
    "HFGWTR2_EL2": (3, 4, 3, 1, 3),
    "HDFGRTR_EL2": (3, 4, 3, 1, 4),
    "HDFGWTR_EL2": (3, 4, 3, 1, 5),
    "HAFGRTR_EL2": (3, 4, 3, 1, 6),
    "HFGITR2_EL2": (3, 4, 3, 1, 7),
    "SPSR_EL2": (3, 4, 4, 0, 0),
    "ELR_EL2": (3, 4, 4, 0, 1),
    "SP_EL1": (3, 4, 4, 1, 0),
    "AFSR0_EL2": (3, 4, 5, 1, 0),
    "AFSR1_EL2": (3, 4, 5, 1, 1),
    "ESR_EL2": (3, 4, 5, 2, 0),
    "VSESR_EL2": (3, 4, 5, 2, 3),
    "FAR_EL2": (3, 4, 6, 0, 0),
    "HPFAR_EL2": (3, 4, 6, 0, 4),
    "MAIR_EL2": (3, 4, 10, 2, 0),
    "PIRE0_EL2": (3, 4, 10, 2, 2),
    "PIR_EL2": (3, 4, 10, 2, 3),
    "POR_EL2": (3, 4, 10, 2, 4),
    "AMAIR_EL2": (3, 4, 10, 3, 0),
    "VBAR_EL2": (3, 4, 12, 0, 0),
    "VDISR_EL2": (3, 4, 12, 1, 1),
    "CONTEXTIDR_EL2": (3, 4, 13, 0, 1),
    "TPIDR_EL2": (3, 4, 13, 0, 2),
    "CNTVOFF_EL2": (3, 4, 14, 0, 3),
    "CNTHCTL_EL2": (3, 4, 14, 1, 0),
    "CNTHP_CTL_EL2": (3, 4, 14, 2, 1),
    "CNTHP_CVAL_EL2": (3, 4, 14, 2, 2),
    "CNTHV_CTL_EL2": (3, 4, 14, 3, 1),
    "CNTHV_CVAL_EL2": (3, 4, 14, 3, 2),
    "SP_EL2": (3, 6, 4, 1, 0),
    # Registers that come in numbers
    **{f"DBGBVR{n}_EL1": (2, 0, 0, n, 4) for n in range(16)},
    **{f"DBGBCR{n}_EL1": (2, 0, 0, n, 5) for n in range(16)},
    **{f"DBGWVR{n}_EL1": (2, 0, 0, n, 6) for n in range(16)},
    **{f"DBGWCR{n}_EL1": (2, 0, 0, n, 7) for n in range(16)},
    **{f"PMEVCNTR{n}_EL0": (3, 3, 14, 8 + n // 8, n % 8) for n in range(31)},
    **{f"PMEVTYPER{n}_EL0": (3, 3, 14, 12 + n // 8, n % 8) for n in range(31)},
}

ENCODINGS: dict[str, int] = {
    name: op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    for name, (op0, op1, crn, crm, op2) in _TABLE.items()
}
NAMES: dict[int, str] = {encoding: name for name, encoding in ENCODINGS.items()}


class Implemented(IntEnum):
    """An ID field that only says whether a feature is there."""

    NO = 0
    YES = 1


class PaRange(IntEnum):
    """ID_AA64MMFR0_EL1.PARange: how many physical address bits."""

    BITS_32 = 0
    BITS_36 = 1
    BITS_40 = 2
    BITS_42 = 3
    BITS_44 = 4
    BITS_48 = 5
    BITS_52 = 6
    BITS_56 = 7


class IdAa64Pfr0(Bits):
    """Processor features (ID_AA64PFR0_EL1)."""

    CSV3 = bits(63, 60, "speculative use of faulting data")
    CSV2 = bits(59, 56, "speculative use of out of context branch targets")
    RME = bits(55, 52, "Realm Management Extension")
    DIT = bits(51, 48, "data independent timing")
    AMU = bits(47, 44, "activity monitors")
    MPAM = bits(43, 40, "MPAM, major version")
    SEL2 = bits(39, 36, "Secure EL2")
    SVE = bits(35, 32, "Scalable Vector Extension", Implemented)
    RAS = bits(31, 28, "RAS extension")
    GIC = bits(27, 24, "GIC system registers")
    AdvSIMD = bits(23, 20, "Advanced SIMD; 0xf is none")
    FP = bits(19, 16, "floating point; 0xf is none")
    EL3 = bits(15, 12, "EL3")
    EL2 = bits(11, 8, "EL2")
    EL1 = bits(7, 4, "EL1; 2 runs AArch32 too")
    EL0 = bits(3, 0, "EL0; 2 runs AArch32 too")


class IdAa64Zfr0(Bits):
    """SVE features (ID_AA64ZFR0_EL1)."""

    F64MM = bits(59, 56, "FP64 matrix multiplication")
    F32MM = bits(55, 52, "FP32 matrix multiplication")
    I8MM = bits(47, 44, "Int8 matrix multiplication")
    SM4 = bits(43, 40, "SM4")
    SHA3 = bits(35, 32, "SHA3")
    BF16 = bits(23, 20, "BFloat16")
    BitPerm = bits(19, 16, "bit permutation")
    AES = bits(7, 4, "AES")
    SVEver = bits(3, 0, "SVE version: 0 is SVE, 1 is SVE2")


class IdAa64Mmfr0(Bits):
    """Memory model features (ID_AA64MMFR0_EL1)."""

    ECV = bits(63, 60, "enhanced counter virtualization")
    FGT = bits(59, 56, "fine-grained traps")
    TGran4 = bits(31, 28, "4 KiB pages; 0xf is none")
    TGran64 = bits(27, 24, "64 KiB pages; 0xf is none")
    TGran16 = bits(23, 20, "16 KiB pages; 0 is none")
    BigEnd = bits(11, 8, "both byte orders")
    ASIDBits = bits(7, 4, "ASID size: 0 is 8 bits, 2 is 16 bits")
    PARange = bits(3, 0, "physical address size", PaRange)


class Zcr(Bits):
    """SVE control (ZCR_EL1, ZCR_EL2)."""

    LEN = bits(3, 0, "vector length at most (LEN + 1) * 128 bits")


class CntCtl(Bits):
    """A timer's control (CNTV_CTL_EL0, CNTP_CTL_EL0)."""

    ISTATUS = bit(2, "the condition is met")
    IMASK = bit(1, "the interrupt is masked")
    ENABLE = bit(0, "the timer runs")
