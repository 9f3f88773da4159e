"""Single steps without interrupts: a step ends in the program, not in an interrupt handler.

KVM on arm64 cannot hold interrupts back (KVM_GUESTDBG_BLOCKIRQ is for x86). So they are masked in
PSTATE for the step. They are not masked for an instruction that reads or changes the masks itself.
"""

from __future__ import annotations

from pyvmm.arm64.exception import is_vector
from pyvmm.arm64.pstate import Mode, Pstate
from pyvmm.arm64.translation import Read, fetch
from pyvmm.base.records import Record
from pyvmm.debugger.addresses import regime_of
from pyvmm.errors import VmmError
from pyvmm.kvm import regs
from pyvmm.machine.vcpus import MachineVcpu

I_AND_F = 3 << 6
# (mask, value) of instructions.  Source: Arm ARM DDI 0487, C6.2
OF_MASKS = (
    (0xFFFF_F0DF, 0xD503_40DF),  # MSR DAIFSet and DAIFClr
    (0xFFDF_FFE0, 0xD51B_4220),  # MSR and MRS DAIF
    (0xFFFF_F3FF, 0xD69F_03E0),  # ERET
    (0xFFFF_FBFF, 0xD69F_0BFF),  # ERETAA and ERETAB
)


class Hidden(Record):
    """What a step has changed: the mask bits that PSTATE had before; None if nothing."""

    masks: int | None


def hide_interrupts(vcpu: MachineVcpu, read: Read) -> Hidden:
    """Mask a vCPU's interrupts for one instruction."""
    try:
        instruction = fetch(vcpu.get_one_reg(regs.PC), regime_of(vcpu), read)
    except VmmError:  # the step ends in the handler of this abort
        instruction = 0
    pstate = vcpu.get_one_reg(regs.PSTATE)
    if any(instruction & mask == value for mask, value in OF_MASKS) or Pstate(pstate).nRW:
        return Hidden(None)
    vcpu.set_one_reg(regs.PSTATE, pstate | I_AND_F)
    return Hidden(pstate & I_AND_F)


def show_interrupts(vcpu: MachineVcpu, hidden: Hidden) -> None:
    """Give a vCPU its own masks again: in SPSR_EL1, if the step has entered a handler."""
    if hidden.masks is None:
        return
    pstate = vcpu.get_one_reg(regs.PSTATE)
    entered = Mode.EL1h == Pstate(pstate).M and is_vector(
        vcpu.get_one_reg(regs.PC), vcpu.sysreg["VBAR_EL1"]
    )
    where = regs.SPSR_EL1 if entered else regs.PSTATE
    vcpu.set_one_reg(where, vcpu.get_one_reg(where) & ~I_AND_F | hidden.masks)
