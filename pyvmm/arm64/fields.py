"""The bit fields of registers, by the register's name.

    decode("ID_AA64PFR0_EL1", 0x1_0000_0011).SVE is Implemented.IMP

Registers have the architecture's names; PSTATE, TIMER_CTL and others have KVM's.
"""

from __future__ import annotations

from pyvmm.arm64 import control, cpuid, idregs, psci, unitregs
from pyvmm.arm64.bits import Bits
from pyvmm.arm64.core import Mpidr
from pyvmm.arm64.esr import Esr
from pyvmm.arm64.pstate import Pstate, pstate

CCSIDRS = 14  # the architecture's limit: 7 levels, data and instructions

FIELDS: dict[str, type[Bits]] = {
    # Identification
    "MIDR_EL1": cpuid.Midr,
    "MPIDR_EL1": Mpidr,
    "CTR_EL0": cpuid.Ctr,
    "DCZID_EL0": cpuid.Dczid,
    "CLIDR_EL1": cpuid.Clidr,
    "CSSELR_EL1": cpuid.Csselr,
    **{f"CCSIDR{n}": cpuid.Ccsidr for n in range(CCSIDRS)},
    # Features
    "ID_AA64PFR0_EL1": idregs.IdAa64Pfr0,
    "ID_AA64PFR1_EL1": idregs.IdAa64Pfr1,
    "ID_AA64PFR2_EL1": idregs.IdAa64Pfr2,
    "ID_AA64ZFR0_EL1": idregs.IdAa64Zfr0,
    "ID_AA64SMFR0_EL1": idregs.IdAa64Smfr0,
    "ID_AA64FPFR0_EL1": idregs.IdAa64Fpfr0,
    "ID_AA64DFR0_EL1": idregs.IdAa64Dfr0,
    "ID_AA64DFR1_EL1": idregs.IdAa64Dfr1,
    "ID_AA64DFR2_EL1": idregs.IdAa64Dfr2,
    "ID_AA64ISAR0_EL1": idregs.IdAa64Isar0,
    "ID_AA64ISAR1_EL1": idregs.IdAa64Isar1,
    "ID_AA64ISAR2_EL1": idregs.IdAa64Isar2,
    "ID_AA64ISAR3_EL1": idregs.IdAa64Isar3,
    "ID_AA64MMFR0_EL1": idregs.IdAa64Mmfr0,
    "ID_AA64MMFR1_EL1": idregs.IdAa64Mmfr1,
    "ID_AA64MMFR2_EL1": idregs.IdAa64Mmfr2,
    "ID_AA64MMFR3_EL1": idregs.IdAa64Mmfr3,
    "ID_AA64MMFR4_EL1": idregs.IdAa64Mmfr4,
    # State
    "PSTATE": Pstate,
    **{f"SPSR_{mode}": Pstate for mode in ("EL1", "EL2", "ABT", "UND", "IRQ", "FIQ")},
    **{f"ESR_EL{el}": Esr for el in (1, 2)},
    # Configuration
    "SCTLR_EL1": control.Sctlr,
    "SCTLR2_EL1": control.Sctlr2,
    "CPACR_EL1": control.Cpacr,
    "ZCR_EL1": control.Zcr,
    "ZCR_EL2": control.Zcr,
    "TCR_EL1": control.Tcr,
    "TCR2_EL1": control.Tcr2,
    "TTBR0_EL1": control.Ttbr,
    "TTBR1_EL1": control.Ttbr,
    "MAIR_EL1": control.Mair,
    "MAIR_EL2": control.Mair,
    "CONTEXTIDR_EL1": control.ContextId,
    # FP, timers, PMU, debug, GIC
    "FPCR": unitregs.Fpcr,
    "FPSR": unitregs.Fpsr,
    "TIMER_CTL": unitregs.CntCtl,
    "PTIMER_CTL": unitregs.CntCtl,
    **{f"CNT{timer}_CTL_EL0": unitregs.CntCtl for timer in "PV"},
    **{f"CNTH{timer}_CTL_EL2": unitregs.CntCtl for timer in "PV"},
    "CNTKCTL_EL1": unitregs.Cntkctl,
    "PMCR_EL0": unitregs.Pmcr,
    "PMUSERENR_EL0": unitregs.Pmuserenr,
    "MDSCR_EL1": unitregs.Mdscr,
    "OSLSR_EL1": unitregs.Oslsr,
    "ICC_CTLR_EL1": unitregs.IccCtlr,
    "ICC_SRE_EL1": unitregs.IccSre,
    "ICC_IGRPEN0_EL1": unitregs.IccIgrpen,
    "ICC_IGRPEN1_EL1": unitregs.IccIgrpen,
    "ICC_PMR_EL1": unitregs.IccPmr,
    "ICC_BPR0_EL1": unitregs.IccBpr,
    "ICC_BPR1_EL1": unitregs.IccBpr,
    # KVM's firmware
    "PSCI_VERSION": psci.Version,
}


def decode(name: str, value: int) -> Bits | None:
    """Decode a register's value; return None for a register without fields."""
    layout = FIELDS.get(name)
    if layout is None:
        return None
    return pstate(value) if layout is Pstate else layout(value)
