"""The table of register classes: restore order, and bits that may read back changed."""

from __future__ import annotations

import pytest

from pyvmm.arm64 import sysregs
from pyvmm.errors import KvmError
from pyvmm.kvm import regs
from pyvmm.machine.vcpus import CNTVOFF_EL2
from pyvmm.snapshot import restoreorder, restorestate, save
from pyvmm.snapshot.restoreorder import Setting
from tests.snapshot import sample

NEWER = regs.ARM64 | regs.U64 | 0x77 << 16  # a group that no kernel has


def reg(name: str) -> int:
    return regs.lookup(name, sysregs.ENCODINGS)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("SVE_VLS", "vector lengths"),
        ("ID_AA64PFR0_EL1", "identification"),
        ("MIDR_EL1", "identification"),
        ("CTR_EL0", "identification"),
        ("CLIDR_EL1", "identification"),
        ("CCSIDR3", "identification"),
        ("CSSELR_EL1", "system"),
        ("PSCI_VERSION", "firmware"),
        ("STD_BMAP", "firmware"),
        ("ZCR_EL1", "vector length in use"),
        ("X7", "core"),
        ("FPCR", "core"),
        ("V3", "core"),
        ("Z31", "vectors"),
        ("FFR", "vectors"),
        ("TIMER_CNT", "counters"),
        ("TIMER_CVAL", "timers"),
        ("PTIMER_CTL", "timers"),
        ("CNTHV_CTL_EL2", "timers"),
        ("CNTHP_CVAL_EL2", "timers"),
        ("PMOVSCLR_EL0", "PMU, cleared first"),
        ("PMOVSSET_EL0", "system"),
        ("SCTLR_EL1", "system"),
    ],
)
def test_register_belongs_to_the_expected_class(name: str, row: str) -> None:
    assert restoreorder.class_of(reg(name)).name == row


def test_every_register_of_arm_has_a_known_class() -> None:
    ids = [regs.ARM64 | regs.U64 | regs.SYSREG | number for number in sysregs.NAMES]

    assert restoreorder.UNKNOWN not in map(restoreorder.class_of, ids)
    assert restoreorder.class_of(NEWER) is restoreorder.UNKNOWN


def test_registers_are_restored_before_those_that_depend_on_them() -> None:
    names = ["SCTLR_EL1", "TIMER_CTL", "PMOVSCLR_EL0", "TIMER_CNT", "Z0", "FFR", "ZCR_EL1",
             "PSCI_VERSION", "ID_AA64PFR0_EL1", "PMOVSSET_EL0"]  # fmt: skip
    shuffled = [NEWER, *map(reg, names)]

    order = restoreorder.in_order(shuffled)

    def before(one: int, other: int) -> bool:
        return order.index(one) < order.index(other)

    assert before(reg("ZCR_EL1"), reg("Z0")) and before(reg("ZCR_EL1"), reg("FFR"))
    assert before(reg("TIMER_CNT"), reg("TIMER_CTL"))
    assert before(reg("PMOVSCLR_EL0"), reg("PMOVSSET_EL0"))
    assert order[0] == reg("ID_AA64PFR0_EL1")
    assert order[-1] == NEWER


@pytest.mark.parametrize(
    ("name", "saved", "found", "differs"),
    [
        ("X0", 1, 1, False),
        ("X0", 1, 2, True),
        ("TIMER_CNT", 1, 2, False),
        ("TIMER_CTL", 5, 1, False),
        ("TIMER_CTL", 5, 4, True),
        ("CNTHV_CTL_EL2", 5, 1, False),
        ("PMCR_EL0", 0x4101_30A8, 0x30A8, False),
        ("PMCR_EL0", 0x30A8, 0x28A8, True),
    ],
)
def test_only_ignored_bits_may_read_back_changed(
    name: str, saved: int, found: int, differs: bool
) -> None:
    assert restoreorder.differs(reg(name), saved, found) == differs


class Registers:
    """A fake vCPU whose KVM is newer or older than the table."""

    id = 0

    def __init__(self, refused: dict[int, int]) -> None:
        self.written: list[tuple[int, int]] = []
        self.refused = refused

    def set_regs(self, values: dict[int, int]) -> dict[int, KvmError]:
        self.written = [(k, v) for k, v in values.items() if k not in self.refused]
        return {
            reg_id: KvmError("KVM_SET_ONE_REG", "", errno)
            for reg_id, errno in self.refused.items()
            if reg_id in values
        }

    def get_one_reg(self, reg_id: int) -> int:
        return 0


def test_restore_writes_each_register_as_its_class_demands() -> None:
    saved = sample.vcpu().replace(
        registers={NEWER: 9, regs.SVE_VLS: 3, reg("PMOVSCLR_EL0"): 4, regs.PC: 8},
    )
    vcpu = Registers({})

    losses = restorestate.write_registers(vcpu, saved)  # type: ignore[arg-type]  # a fake vCPU

    assert losses == []
    assert vcpu.written == [(regs.PC, 8), (reg("PMOVSCLR_EL0"), (1 << 64) - 1), (NEWER, 9)]
    assert restoreorder.class_of(regs.SVE_VLS).setting is Setting.EARLY


def test_restore_distinguishes_missing_and_refused_registers() -> None:
    saved = sample.vcpu().replace(registers={regs.PC: 8, regs.X(0): 1})
    vcpu = Registers({regs.PC: 2, regs.X(0): 22})  # ENOENT, EINVAL

    x0, pc = sorted(
        restorestate.write_registers(vcpu, saved),  # type: ignore[arg-type]  # a fake vCPU
        key=lambda loss: loss.reg_id,
    )

    assert (pc.missing, pc.found) == (True, None)
    assert (x0.missing, x0.found) == (False, 0)
    assert "EINVAL" in x0.reason


def test_save_warns_of_registers_of_an_unknown_class() -> None:
    vcpu = sample.vcpu().replace(registers={**sample.vcpu().registers, NEWER: 1})

    (line,) = save._warnings((vcpu,))

    assert f"{NEWER:#x}" in line
    assert "does not know" in line


@pytest.mark.parametrize("offset", [0, 700, -700], ids=["no offset", "later", "earlier"])
def test_saved_counters_are_those_of_the_vm_whatever_cntvoff_is(offset: int) -> None:
    offset &= (1 << 64) - 1  # a guest hypervisor has set it for the guest that it runs
    registers = {
        regs.TIMER_CNT: (5_000 - offset) & (1 << 64) - 1,
        regs.PTIMER_CNT: 9_000,
        CNTVOFF_EL2: offset,
    }

    save._stop_counters(registers, 4_900)

    assert registers == {regs.TIMER_CNT: 4_900, regs.PTIMER_CNT: 8_900, CNTVOFF_EL2: offset}
