"""The status codes of faults: DFSC and IFSC of ESR_ELx, FST of PAR_EL1.

Source: Arm ARM DDI 0487, D23.2 "ESR_EL1"; most texts are those of Linux, arch/arm64/mm/fault.c.
"""

from __future__ import annotations

from enum import IntEnum


class FaultStatus(IntEnum):
    """The cause of a fault. Ln is the level of the walk; Lm1 and Lm2 are levels -1 and -2."""

    ADDRSZ_L0 = 0x00
    ADDRSZ_L1 = 0x01
    ADDRSZ_L2 = 0x02
    ADDRSZ_L3 = 0x03
    FAULT_L0 = 0x04
    FAULT_L1 = 0x05
    FAULT_L2 = 0x06
    FAULT_L3 = 0x07
    ACCESS_L0 = 0x08
    ACCESS_L1 = 0x09
    ACCESS_L2 = 0x0A
    ACCESS_L3 = 0x0B
    PERM_L0 = 0x0C
    PERM_L1 = 0x0D
    PERM_L2 = 0x0E
    PERM_L3 = 0x0F
    EXTABT = 0x10
    MTE = 0x11
    SEA_TTW_Lm2 = 0x12
    SEA_TTW_Lm1 = 0x13
    SEA_TTW_L0 = 0x14
    SEA_TTW_L1 = 0x15
    SEA_TTW_L2 = 0x16
    SEA_TTW_L3 = 0x17
    SECC = 0x18
    SECC_TTW_Lm1 = 0x1B
    SECC_TTW_L0 = 0x1C
    SECC_TTW_L1 = 0x1D
    SECC_TTW_L2 = 0x1E
    SECC_TTW_L3 = 0x1F
    ALIGNMENT = 0x21
    GPF_TTW_Lm2 = 0x22
    GPF_TTW_Lm1 = 0x23
    GPF_TTW_L0 = 0x24
    GPF_TTW_L1 = 0x25
    GPF_TTW_L2 = 0x26
    GPF_TTW_L3 = 0x27
    GPF = 0x28
    ADDRSZ_Lm1 = 0x29
    FAULT_Lm2 = 0x2A
    FAULT_Lm1 = 0x2B
    ADDRSZ_Lm2 = 0x2C
    TLB_CONFLICT = 0x30
    ATOMIC_UPDATE = 0x31
    LOCKDOWN = 0x34
    EXCL_ATOMIC = 0x35


_KINDS = {
    "ADDRSZ": "address size fault",
    "FAULT": "translation fault",
    "ACCESS": "access flag fault",
    "PERM": "permission fault",
    "EXTABT": "external abort",
    "MTE": "memory tag check fault",
    "SEA_TTW": "external abort in the translation table walk",
    "SECC": "parity or ECC error",
    "SECC_TTW": "parity or ECC error in the translation table walk",
    "ALIGNMENT": "alignment fault",
    "GPF": "granule protection fault",
    "GPF_TTW": "granule protection fault in the translation table walk",
    "TLB_CONFLICT": "TLB conflict abort",
    "ATOMIC_UPDATE": "unsupported atomic hardware update",
    "LOCKDOWN": "implementation defined fault (lockdown)",
    "EXCL_ATOMIC": "implementation defined fault (unsupported exclusive)",
}


def explain(status: int) -> str:
    """Explain a status code, as "level 3 translation fault"."""
    if not isinstance(status, FaultStatus):
        return f"unknown fault {status:#04x}"
    kind, separator, level = status.name.partition("_L")
    if kind in _KINDS and separator and level.lstrip("m").isdecimal():
        return f"level {level.replace('m', '-')} {_KINDS[kind]}"
    return _KINDS[status.name]
