"""What pyvmm sees of a stopped machine, for diagnosis.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyvmm import layout
from pyvmm.arm64 import sysregs
from pyvmm.arm64.control import Sctlr
from pyvmm.errors import KvmError
from pyvmm.kvm import regs
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vgic import Vgic
from pyvmm.machine.board import Board
from pyvmm.machine.diagnosis import Gic, Look, VcpuLook
from pyvmm.machine.plan import Feature
from pyvmm.machine.vcpus import MachineVcpu
from pyvmm.memory.ram import Memory

# The registers of a VcpuLook by its fields
FIELDS: Final = {
    "pc": regs.PC,
    "pstate": regs.PSTATE,
    "elr": regs.ELR_EL1,
    **{
        field: regs.lookup(name, sysregs.ENCODINGS)
        for field, name in (("esr", "ESR_EL1"), ("far", "FAR_EL1"), ("vbar", "VBAR_EL1"))
    },
}
SCTLR_EL1: Final = regs.lookup("SCTLR_EL1", sysregs.ENCODINGS)
TIMERS: Final = (regs.TIMER_CTL, regs.PTIMER_CTL)
TIMER_ON, TIMER_MASK = 0b01, 0b11  # ENABLE, with IMASK

# The GIC's registers.  Source: Arm IHI 0069, 12.8 and 12.10
GICD_CTLR: Final = 0x0000
GICD_ISENABLER: Final = 0x0100
GICR_ISENABLER0: Final = 0x1_0100
SGIS: Final = 0xFFFF
SPIS: Final = range(32, layout.NR_IRQS, 32)  # the first of each register


def has_mmu_on(vcpu: Vcpu) -> bool:
    """Return whether the vCPU's EL0 and EL1 use virtual addresses."""
    return bool(Sctlr(vcpu.get_one_reg(SCTLR_EL1)).M)


def instruction(vcpu: Vcpu, memory: Memory, address: int) -> int | None:
    """Return the instruction at an address; None outside memory, or where the MMU translates."""
    if has_mmu_on(vcpu) or not memory.contains(address, 4):
        return None
    with memory.view(address, 4) as view:
        return int.from_bytes(view, "little")


def look(board: Board, counts: list[dict[str, int]], kernel: list[dict[str, int]]) -> Look:
    """Read a machine whose vCPUs are stopped.

    ``counts`` are each vCPU's exits, and ``kernel`` KVM's counts from just before the stop.

    Raises: KvmError.
    """
    gic = None if Feature.EL2 in board.plan.features else board.irqchip.gic
    v3 = gic if isinstance(gic, Vgic) else None
    return Look(
        vcpus=tuple(
            _look(vcpu, board.memory, v3, counts[vcpu.id], kernel[vcpu.id] if kernel else {})
            for vcpu in board.vcpus
        ),
        gic=None if v3 is None else _gic(v3),
    )


def _look(
    vcpu: MachineVcpu,
    memory: Memory,
    gic: Vgic | None,
    exits: dict[str, int],
    kernel: Mapping[str, int],
) -> VcpuLook:
    values = {field: vcpu.get_one_reg(reg_id) for field, reg_id in FIELDS.items()}
    before, now = (instruction(vcpu, memory, values["pc"] - offset) for offset in (4, 0))
    interrupts = {}
    if gic is not None:
        mpidr = vcpu.get_one_reg(regs.MPIDR_EL1)
        interrupts = {
            "priority": gic.get_cpu_sysreg(mpidr, sysregs.ENCODINGS["ICC_PMR_EL1"]),
            "ppis": gic.get_redist_reg(mpidr, GICR_ISENABLER0) & ~SGIS,
        }
    return VcpuLook(
        id=vcpu.id,
        mp_state=vcpu.get_mp_state(),
        mmu=has_mmu_on(vcpu),
        words=None if before is None or now is None else (before, now),
        blocked=bool(kernel["blocking"]) if "blocking" in kernel else None,
        timer=any(
            # Linux 6.1 has no register for the physical timer's control
            not isinstance(control, KvmError) and control & TIMER_MASK == TIMER_ON
            for control in vcpu.get_regs(TIMERS).values()
        ),
        exits=exits,
        unclaimed=vcpu.last_unclaimed,
        **values,
        **interrupts,
    )


def _gic(gic: Vgic) -> Gic:
    spis = (gic.get_dist_reg(GICD_ISENABLER + intid // 8) for intid in SPIS)
    return Gic(distributor=gic.get_dist_reg(GICD_CTLR), spis=sum(spis))
