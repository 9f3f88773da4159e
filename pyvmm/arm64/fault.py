"""The status codes of faults: DFSC and IFSC of ESR_ELx, FST of PAR_EL1.

Source: Arm ARM DDI 0487, D23.2 "ESR_EL1"; most texts are those of Linux, arch/arm64/mm/fault.c.
"""

from __future__ import annotations

from pyvmm.arm64.bits import Named, meaning


class FaultStatus(Named):
    """The cause of a fault. Ln is the level of the walk; Lm1 and Lm2 are levels -1 and -2."""

    ADDRSZ_L0 = 0x00, "level 0 address size fault"
    ADDRSZ_L1 = 0x01, "level 1 address size fault"
    ADDRSZ_L2 = 0x02, "level 2 address size fault"
    ADDRSZ_L3 = 0x03, "level 3 address size fault"
    FAULT_L0 = 0x04, "level 0 translation fault"
    FAULT_L1 = 0x05, "level 1 translation fault"
    FAULT_L2 = 0x06, "level 2 translation fault"
    FAULT_L3 = 0x07, "level 3 translation fault"
    ACCESS_L0 = 0x08, "level 0 access flag fault"
    ACCESS_L1 = 0x09, "level 1 access flag fault"
    ACCESS_L2 = 0x0A, "level 2 access flag fault"
    ACCESS_L3 = 0x0B, "level 3 access flag fault"
    PERM_L0 = 0x0C, "level 0 permission fault"
    PERM_L1 = 0x0D, "level 1 permission fault"
    PERM_L2 = 0x0E, "level 2 permission fault"
    PERM_L3 = 0x0F, "level 3 permission fault"
    EXTABT = 0x10, "external abort"
    MTE = 0x11, "memory tag check fault"
    SEA_TTW_Lm2 = 0x12, "level -2 external abort in the translation table walk"
    SEA_TTW_Lm1 = 0x13, "level -1 external abort in the translation table walk"
    SEA_TTW_L0 = 0x14, "level 0 external abort in the translation table walk"
    SEA_TTW_L1 = 0x15, "level 1 external abort in the translation table walk"
    SEA_TTW_L2 = 0x16, "level 2 external abort in the translation table walk"
    SEA_TTW_L3 = 0x17, "level 3 external abort in the translation table walk"
    SECC = 0x18, "parity or ECC error"
    SECC_TTW_Lm1 = 0x1B, "level -1 parity or ECC error in the translation table walk"
    SECC_TTW_L0 = 0x1C, "level 0 parity or ECC error in the translation table walk"
    SECC_TTW_L1 = 0x1D, "level 1 parity or ECC error in the translation table walk"
    SECC_TTW_L2 = 0x1E, "level 2 parity or ECC error in the translation table walk"
    SECC_TTW_L3 = 0x1F, "level 3 parity or ECC error in the translation table walk"
    ALIGNMENT = 0x21, "alignment fault"
    GPF_TTW_Lm2 = 0x22, "level -2 granule protection fault in the translation table walk"
    GPF_TTW_Lm1 = 0x23, "level -1 granule protection fault in the translation table walk"
    GPF_TTW_L0 = 0x24, "level 0 granule protection fault in the translation table walk"
    GPF_TTW_L1 = 0x25, "level 1 granule protection fault in the translation table walk"
    GPF_TTW_L2 = 0x26, "level 2 granule protection fault in the translation table walk"
    GPF_TTW_L3 = 0x27, "level 3 granule protection fault in the translation table walk"
    GPF = 0x28, "granule protection fault"
    ADDRSZ_Lm1 = 0x29, "level -1 address size fault"
    FAULT_Lm2 = 0x2A, "level -2 translation fault"
    FAULT_Lm1 = 0x2B, "level -1 translation fault"
    ADDRSZ_Lm2 = 0x2C, "level -2 address size fault"
    TLB_CONFLICT = 0x30, "TLB conflict abort"
    ATOMIC_UPDATE = 0x31, "unsupported atomic hardware update"
    LOCKDOWN = 0x34, "implementation defined fault (lockdown)"
    EXCL_ATOMIC = 0x35, "implementation defined fault (unsupported exclusive)"


def explain(status: int) -> str:
    """Explain a status code, as "level 3 translation fault"."""
    return meaning(status) or f"unknown fault {status:#04x}"
