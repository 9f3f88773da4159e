"""Read the state of a stopped machine that rules.py needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyvmm import layout
from pyvmm.arm64 import sysregs
from pyvmm.arm64.translation import INSTRUCTION, Regime, fetch
from pyvmm.errors import GuestError, KvmError
from pyvmm.kvm import regs
from pyvmm.kvm.vgic import Vgic
from pyvmm.machine.board import Board
from pyvmm.machine.diagnosis.rules import Gic, Look, VcpuLook
from pyvmm.machine.nosyndrome import U64, reader
from pyvmm.machine.plan import Feature
from pyvmm.machine.vcpus import MachineVcpu
from pyvmm.memory.ram import Memory

TIMERS: Final = (regs.TIMER_CTL, regs.PTIMER_CTL)
TIMER_ON, TIMER_MASK = 0b01, 0b11  # ENABLE, with IMASK

# The GIC's registers.  Source: Arm IHI 0069, 12.8 and 12.10
GICD_CTLR: Final = 0x0000
GICD_ISENABLER: Final = 0x0100
GICR_ISENABLER0: Final = 0x1_0100
SGIS: Final = 0xFFFF
SPIS: Final = range(32, layout.NR_IRQS, 32)  # the first SPI of each register


def look(board: Board, counts: list[dict[str, int]], kernel: list[dict[str, int]]) -> Look:
    """Read a machine whose vCPUs are stopped.

    ``counts`` are each vCPU's exits, and ``kernel`` KVM's counts from just before the stop.

    Raises: KvmError.
    """
    gic = None if Feature.EL2 in board.plan.features else board.irqchip.gic
    v3 = gic if isinstance(gic, Vgic) else None
    return Look(
        vcpus=tuple(
            _look(vcpu, board.addressable, v3, counts[vcpu.id], kernel[vcpu.id] if kernel else {})
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
    pc = vcpu.get_one_reg(regs.PC)
    regime = Regime.of(vcpu.sysreg)
    before, now = (_instruction(pc - offset & U64, regime, memory) for offset in (INSTRUCTION, 0))
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
        pc=pc,
        pstate=vcpu.get_one_reg(regs.PSTATE),
        esr=vcpu.sysreg["ESR_EL1"],
        elr=vcpu.get_one_reg(regs.ELR_EL1),
        far=vcpu.sysreg["FAR_EL1"],
        vbar=vcpu.sysreg["VBAR_EL1"],
        mmu=bool(regime.sctlr.M),
        words=None if before is None or now is None else (before, now),
        blocked=bool(kernel["blocking"]) if "blocking" in kernel else None,
        timer=any(
            # Linux 6.1 has no register for the physical timer's control
            not isinstance(control, KvmError) and control & TIMER_MASK == TIMER_ON
            for control in vcpu.get_regs(TIMERS).values()
        ),
        exits=exits,
        unclaimed=vcpu.last_unclaimed,
        **interrupts,
    )


def _instruction(address: int, regime: Regime, memory: Memory) -> int | None:
    """Return the instruction at a virtual address; None where the guest has no memory."""
    try:
        return fetch(address, regime, reader(memory))
    except GuestError:
        return None


def _gic(gic: Vgic) -> Gic:
    spis = (gic.get_dist_reg(GICD_ISENABLER + intid // 8) for intid in SPIS)
    return Gic(distributor=gic.get_dist_reg(GICD_CTLR), spis=sum(spis))
