"""The names that registers have for a guest whose EL1 is in AArch32.

KVM has such a guest's registers by their AArch64 names. A name with a colon has two registers in
one: the first is in bits 63 to 32, the second in bits 31 to 0.

Source: Arm ARM DDI 0487, D1.1, "Mapping of the general-purpose registers between the Execution
states", and each register's "Architectural mapping".
"""

from __future__ import annotations

import re
from typing import Final

# AArch64 -> AArch32.  X0 to X12 are R0 to R12.
GENERAL: Final[dict[str, str]] = {
    **{f"X{number}": f"R{number}" for number in range(13)},
    "X13": "SP_usr", "X14": "LR_usr", "X15": "SP_hyp",
    "X16": "LR_irq", "X17": "SP_irq", "X18": "LR_svc", "X19": "SP_svc",
    "X20": "LR_abt", "X21": "SP_abt", "X22": "LR_und", "X23": "SP_und",
    **{f"X{number + 16}": f"R{number}_fiq" for number in range(8, 13)},
    "X29": "SP_fiq", "X30": "LR_fiq",
}  # fmt: skip

STATES: Final[dict[str, str]] = {
    "PSTATE": "CPSR", "SPSR_EL1": "SPSR_svc",
    **{f"SPSR_{mode.upper()}": f"SPSR_{mode}" for mode in ("abt", "und", "irq", "fiq")},
}  # fmt: skip

_SYSTEM: Final[dict[str, str]] = {
    "TCR_EL1": "TTBCR", "ESR_EL1": "DFSR", "IFSR32_EL2": "IFSR", "FAR_EL1": "IFAR:DFAR",
    "AFSR0_EL1": "ADFSR", "AFSR1_EL1": "AIFSR", "MAIR_EL1": "MAIR1:MAIR0",
    "AMAIR_EL1": "AMAIR1:AMAIR0", "DACR32_EL2": "DACR", "FPEXC32_EL2": "FPEXC",
    "TPIDR_EL0": "TPIDRURW", "TPIDRRO_EL0": "TPIDRURO", "TPIDR_EL1": "TPIDRPRW",
    "MDSCR_EL1": "DBGDSCR", "MDCCINT_EL1": "DBGDCCINT", "DBGVCR32_EL2": "DBGVCR",
    "OSLSR_EL1": "DBGOSLSR",
}  # fmt: skip

# Registers whose AArch32 name is the AArch64 name without _EL0 or _EL1
_SAME: Final = re.compile(
    r"(SCTLR|CPACR|ACTLR|TTBR[01]|PAR|VBAR|CONTEXTIDR|CSSELR|CLIDR|CTR|AIDR|MIDR|MPIDR|REVIDR"
    r"|CNTKCTL|CNTFRQ|DISR|ID_(PFR|DFR|AFR|MMFR|ISAR)\d|MVFR\d|ICC_(?!SRE_EL[23])\w+"
    r"|DBG[BW][CV]R\d+|PM\w+)_EL[01]"
)


def name32(name: str) -> str | None:
    """Return a register's name in AArch32, or None if it has none there."""
    for table in (GENERAL, STATES, _SYSTEM):
        if name in table:
            return table[name]
    same = _SAME.fullmatch(name)
    return same[1] if same else None
