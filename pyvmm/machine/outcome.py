"""What an exit that ends a run makes of it: an exit code, or an error."""

from __future__ import annotations

from pyvmm.errors import EXIT_OK, GuestError, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.uapi import ExitReason, SystemEvent
from pyvmm.kvm.vcpu import Vcpu


def is_system_event(leave: Exit, *types: int) -> bool:
    """Whether the guest has asked for one of those."""
    return leave.reason == ExitReason.SYSTEM_EVENT and leave.type in types


def outcome(vcpu: Vcpu, leave: Exit) -> int | VmmError:
    """What an exit that is not the guest's daily business means for the run."""
    if is_system_event(leave, SystemEvent.SHUTDOWN, SystemEvent.RESET):
        return EXIT_OK
    where = f"vCPU {vcpu.id} at PC {vcpu.get_one_reg(regs.PC):#x}"
    if is_system_event(leave, SystemEvent.CRASH):
        return GuestError(f"the guest says it has crashed ({where})")
    if leave.reason == ExitReason.ARM_NISV:
        address, iss = leave.fields["fault_ipa"], leave.fields["esr_iss"]
        return GuestError(
            f"{where} accessed guest address {address:#x}, where there is no RAM, with an "
            f"instruction that no device can answer (ISS {iss:#x})",
            hint="devices take single loads and stores of one general-purpose register",
        )
    return GuestError(f"{where} left KVM_RUN for a reason pyvmm has no answer to: {leave}")
