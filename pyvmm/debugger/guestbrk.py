"""A guest's own BRK instruction: the exception that it would have caused without a debugger."""

from __future__ import annotations

from pyvmm.arm64 import sysregs
from pyvmm.arm64.control import Sctlr
from pyvmm.arm64.exception import enter_el1
from pyvmm.arm64.idregs import IdAa64Mmfr1, IdAa64Pfr1
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.errors import VmmError
from pyvmm.kvm import regs
from pyvmm.machine.vcpus import MachineVcpu

MTE2 = 2  # Source: Arm ARM DDI 0487, D23.2 "ID_AA64PFR1_EL1", MTE: PSTATE.TCO exists


def deliver(vcpu: MachineVcpu, syndrome: int) -> None:
    """Enter the guest's handler at EL1 for the BRK at PC.

    Raises: VmmError, at EL2.
    """
    pstate = Pstate(vcpu.get_one_reg(regs.PSTATE))
    if pstate.M in (Mode.EL2t, Mode.EL2h):
        raise VmmError(
            f"vCPU {vcpu.id} executed BRK at EL2 while a debugger was connected: pyvmm cannot "
            "deliver this exception"
        )
    system = vcpu.sysreg
    entry = enter_el1(
        pstate,
        system["VBAR_EL1"],
        Sctlr(system["SCTLR_EL1"]),
        has_pan=bool(IdAa64Mmfr1(system["ID_AA64MMFR1_EL1"]).PAN),
        has_mte=IdAa64Pfr1(system["ID_AA64PFR1_EL1"]).MTE >= MTE2,
    )
    vcpu.set_one_reg(regs.ELR_EL1, vcpu.get_one_reg(regs.PC))
    vcpu.set_one_reg(regs.SPSR_EL1, entry.spsr)
    vcpu.set_one_reg(regs.lookup("ESR_EL1", sysregs.ENCODINGS), syndrome)
    vcpu.set_one_reg(regs.PSTATE, entry.pstate)
    vcpu.set_one_reg(regs.PC, entry.pc)
