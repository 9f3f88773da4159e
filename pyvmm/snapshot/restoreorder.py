"""Every class of vCPU register: in which order they are restored, and what is special about it.

Save, restore, show, diff and check walk this one table.  The order of its rows is the order of
restoring; a register belongs to the row that names it, else to the row of its group.  One that no
row has, because KVM is newer than this table, is saved and restored as it is, last of all, and
named in a warning.

What is said of orders was measured on Linux 6.1, 6.12 and 7.2; sources of the rest are Linux's
Documentation/virt/kvm/api.rst (KVM_SET_ONE_REG) and arch/arm64/kvm/.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from pyvmm.arm64 import sysregs
from pyvmm.kvm import regs


class Setting(Enum):
    """How a class is restored."""

    WRITE = "written"
    EARLY = "given before FINALIZE, and fixed since"
    CLEAR = "written as all ones first: another register has its value"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterClass:
    """One row of the table.

    ``ids`` are its registers, ``groups`` those of KVM's groups that no other row names.
    ``ignored`` has bits that need not read back as they were written, by register;
    ``ticks`` says that values go on by themselves.  ``dispensable`` tells why a guest goes on
    without a register that the host lacks; where it is empty, only if the register held 0.
    """

    name: str
    ids: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    setting: Setting = Setting.WRITE
    ignored: dict[int, int] = field(default_factory=dict)
    ticks: bool = False
    dispensable: str = ""


def _named(*names: str) -> frozenset[int]:
    return frozenset(regs.lookup(name, sysregs.ENCODINGS) for name in names)


def _space(op1: int, crns: Iterable[int]) -> frozenset[int]:
    """Every system register there may be with op0 3, that op1 and those CRn."""
    return frozenset(
        regs.sysreg(3, op1, crn, crm, op2) for crn in crns for crm in range(16) for op2 in range(8)
    )


# MIDR, MPIDR, REVIDR and the ID registers; CCSIDR, CLIDR, AIDR; CTR, DCZID.  Not CSSELR_EL1
# (op1 2), which the guest writes.  Source: Arm ARM DDI 0487, D23.1, "System register encodings"
IDENTIFICATION: Final = _space(0, [0]) | _space(1, [0]) | _space(3, [0])
# What sets bits of the same register that the *SET one shows.  Linux 6.12 clears it when either
# is written after the other (set_pmreg() in sys_regs.c); written as ones before, it is right
# everywhere.
PMU_CLEARING: Final = _named("PMCNTENCLR_EL0", "PMINTENCLR_EL1", "PMOVSCLR_EL0")
TIMER_ISTATUS: Final = 1 << 2  # of CNT*_CTL: whether the timer has fired; not the guest's to set

CLASSES: Final = (
    RegisterClass(
        name="vector lengths",
        ids=frozenset({regs.SVE_VLS}),
        setting=Setting.EARLY,
    ),
    # First, as they decide which other registers there are.
    RegisterClass(
        name="identification",
        ids=IDENTIFICATION,
        groups=frozenset({regs.DEMUX}),
    ),
    RegisterClass(
        name="firmware",
        groups=frozenset({regs.FW, regs.FW_FEAT_BMAP}),
        dispensable="what the guest knows of this firmware it has asked for already",
    ),
    # Before the vectors: QEMU's model forgets of Z and P what is beyond ZCR_EL1.LEN.
    RegisterClass(name="vector length in use", ids=_named("ZCR_EL1")),
    RegisterClass(name="core", groups=frozenset({regs.CORE})),
    RegisterClass(name="vectors", groups=frozenset({regs.SVE})),
    # Before the timers that compare with them; once more when the guest goes on.
    RegisterClass(
        name="counters",
        ids=frozenset({regs.TIMER_CNT, regs.PTIMER_CNT}),
        ticks=True,
        dispensable="this host's physical counter goes on as it is",
    ),
    RegisterClass(
        name="timers",
        ids=frozenset({regs.TIMER_CVAL, regs.TIMER_CTL, regs.PTIMER_CVAL, regs.PTIMER_CTL}),
        # Linux 7.2 gives it anew when the vCPU runs.
        ignored={regs.TIMER_CTL: TIMER_ISTATUS, regs.PTIMER_CTL: TIMER_ISTATUS},
    ),
    RegisterClass(name="PMU, cleared first", ids=PMU_CLEARING, setting=Setting.CLEAR),
    RegisterClass(
        name="system",
        groups=frozenset({regs.SYSREG}),
        # IMP and IDCODE, which say whose PMU the host's is: newer kernels show guests none.
        ignored=dict.fromkeys(_named("PMCR_EL0"), 0xFFFF_0000),
    ),
)
UNKNOWN: Final = RegisterClass(name="unknown")

_BY_ID: Final = {reg_id: row for row in CLASSES for reg_id in row.ids}
_BY_GROUP: Final = {group: row for row in CLASSES for group in row.groups}
_ORDER: Final = {row.name: number for number, row in enumerate((*CLASSES, UNKNOWN))}


def class_of(reg_id: int) -> RegisterClass:
    """The row of a register; UNKNOWN where there is none."""
    return _BY_ID.get(reg_id) or _BY_GROUP.get(regs.group(reg_id), UNKNOWN)


def in_order(reg_ids: Iterable[int]) -> list[int]:
    """Registers in the order of restoring; KVM's own order within a class."""
    return sorted(reg_ids, key=lambda reg_id: _ORDER[class_of(reg_id).name])


def name(reg_id: int) -> str:
    """Arm's name of a register, or the number of one that is not known here."""
    return regs.name(reg_id, sysregs.NAMES)


def ones(reg_id: int) -> int:
    """The register with every bit set."""
    return (1 << 8 * regs.size(reg_id)) - 1


def differs(reg_id: int, saved: int, found: int) -> bool:
    """Whether a register reads back as something that its class does not allow."""
    row = class_of(reg_id)
    return not row.ticks and (saved ^ found) & ~row.ignored.get(reg_id, 0) != 0
