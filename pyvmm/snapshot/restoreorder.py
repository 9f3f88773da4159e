"""The order in which a vCPU's registers are restored: a table of register classes.

Save, restore, show, diff and check use this one table.  The order of its rows is the restore
order.  A register belongs to the row that names it, otherwise to the row of its group.  A newer KVM
may have registers that no row covers.  They are restored last, and the save prints a warning.

The order was measured on Linux 6.1, 6.12 and 7.2.  Source of the rest: Linux,
Documentation/virt/kvm/api.rst (KVM_SET_ONE_REG) and arch/arm64/kvm/.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from pyvmm.arm64 import sysregs
from pyvmm.base.records import Record, made
from pyvmm.kvm import regs


class Setting(Enum):
    """A method to restore the registers of a class."""

    WRITE = "written"
    EARLY = "written before FINALIZE, read-only afterwards"
    CLEAR = "written as all ones, before the register that sets the same bits"


class RegisterClass(Record, kw_only=True):
    """One row of the table.

    ``ids`` are its registers.  ``groups`` are KVM's groups, for registers that no row names.
    ``ignored`` maps a register to the bits that may read back changed.  ``ticks`` marks counters.
    ``dispensable`` is the reason why a guest can run without these registers.  If it is empty, a
    guest can only lack a register that held 0.
    """

    name: str
    ids: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    setting: Setting = Setting.WRITE
    ignored: dict[int, int] = made(dict)
    ticks: bool = False
    dispensable: str = ""


def _named(*names: str) -> frozenset[int]:
    return frozenset(regs.lookup(name, sysregs.ENCODINGS) for name in names)


def _space(op1: int, crns: Iterable[int]) -> frozenset[int]:
    """Return every possible system register with op0 3, this op1 and these CRn."""
    return frozenset(
        regs.sysreg(3, op1, crn, crm, op2) for crn in crns for crm in range(16) for op2 in range(8)
    )


# MIDR, MPIDR, REVIDR and the ID registers; CCSIDR, CLIDR, AIDR; CTR, DCZID.  Not CSSELR_EL1
# (op1 2): the guest writes it.  Source: Arm ARM DDI 0487, D23.1, "System register encodings"
IDENTIFICATION: Final = _space(0, [0]) | _space(1, [0]) | _space(3, [0])
# Each shares its bits with the *SET register of the same name.  On Linux 6.12 a write to either
# clears bits of both (set_pmreg() in sys_regs.c).  A write of all ones here, and then of the *SET
# register, works on every kernel.
PMU_CLEARING: Final = _named("PMCNTENCLR_EL0", "PMINTENCLR_EL1", "PMOVSCLR_EL0")
# The timers of EL2.  They compare with the same counters.
EL2_TIMERS: Final = _named("CNTHP_CVAL_EL2", "CNTHV_CVAL_EL2")
TIMER_CTLS: Final = frozenset({regs.TIMER_CTL, regs.PTIMER_CTL}) | _named(
    "CNTHP_CTL_EL2", "CNTHV_CTL_EL2"
)
TIMER_ISTATUS: Final = 1 << 2  # CNT*_CTL: the timer condition is met; read-only for the guest

CLASSES: Final = (
    RegisterClass(name="vector lengths", ids=frozenset({regs.SVE_VLS}), setting=Setting.EARLY),
    # First: they decide which other registers the vCPU has.
    RegisterClass(name="identification", ids=IDENTIFICATION, groups=frozenset({regs.DEMUX})),
    RegisterClass(
        name="firmware",
        groups=frozenset({regs.FW, regs.FW_FEAT_BMAP}),
        dispensable="the guest has already read this firmware's version",
    ),
    # Before the vectors: QEMU's model loses the bits of Z and P beyond ZCR_EL1.LEN.
    RegisterClass(name="vector length in use", ids=_named("ZCR_EL1")),
    RegisterClass(name="core", groups=frozenset({regs.CORE})),
    RegisterClass(name="vectors", groups=frozenset({regs.SVE})),
    # Before the timers that compare with them.  Written again just before the guest resumes.
    RegisterClass(
        name="counters",
        ids=frozenset({regs.TIMER_CNT, regs.PTIMER_CNT}),
        ticks=True,
        dispensable="the guest reads this host's physical counter",
    ),
    RegisterClass(
        name="timers",
        ids=frozenset({regs.TIMER_CVAL, regs.PTIMER_CVAL}) | TIMER_CTLS | EL2_TIMERS,
        # Linux 7.2 computes it when the vCPU runs.
        ignored=dict.fromkeys(TIMER_CTLS, TIMER_ISTATUS),
    ),
    RegisterClass(name="PMU, cleared first", ids=PMU_CLEARING, setting=Setting.CLEAR),
    RegisterClass(
        name="system",
        groups=frozenset({regs.SYSREG}),
        # IMP and IDCODE, the implementer of the host's PMU: newer kernels hide them from guests.
        ignored=dict.fromkeys(_named("PMCR_EL0"), 0xFFFF_0000),
    ),
)
UNKNOWN: Final = RegisterClass(name="unknown")

_BY_ID: Final = {reg_id: row for row in CLASSES for reg_id in row.ids}
_BY_GROUP: Final = {group: row for row in CLASSES for group in row.groups}
_ORDER: Final = {row.name: number for number, row in enumerate((*CLASSES, UNKNOWN))}


def class_of(reg_id: int) -> RegisterClass:
    """Return the class of a register, or UNKNOWN."""
    return _BY_ID.get(reg_id) or _BY_GROUP.get(regs.group(reg_id), UNKNOWN)


def in_order(reg_ids: Iterable[int]) -> list[int]:
    """Sort registers by restore order; within a class KVM's order stays."""
    return sorted(reg_ids, key=lambda reg_id: _ORDER[class_of(reg_id).name])


def name(reg_id: int) -> str:
    """Return Arm's name of a register, or the number of an unknown one."""
    return regs.name(reg_id, sysregs.NAMES)


def ones(reg_id: int) -> int:
    """Return the register's value with every bit set."""
    return (1 << 8 * regs.size(reg_id)) - 1


def differs(reg_id: int, saved: int, found: int) -> bool:
    """Return whether a register read back differs in bits that its class does not ignore."""
    row = class_of(reg_id)
    return not row.ticks and (saved ^ found) & ~row.ignored.get(reg_id, 0) != 0
