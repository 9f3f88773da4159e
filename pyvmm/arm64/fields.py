"""The bit fields of registers, by the register's name.

    decode("ID_AA64PFR0_EL1", 0x1_0000_0011).SVE is Implemented.IMP

Registers have the architecture's names; PSTATE, TIMER_CTL and others have KVM's.
"""

from __future__ import annotations

from pyvmm.arm64 import control, core, cpuid, esr, idregs, pstate, unitregs
from pyvmm.arm64.bits import Bits

FIELDS: dict[str, type[Bits]] = {
    register: layout
    for module in (control, core, cpuid, esr, idregs, pstate, unitregs)
    for layout in vars(module).values()
    if isinstance(layout, type) and issubclass(layout, Bits)
    for register in layout.registers
}


def decode(name: str, value: int) -> Bits | None:
    """Decode a register's value; return None for a register without fields."""
    layout = FIELDS.get(name)
    if layout is None:
        return None
    return pstate.pstate(value) if layout is pstate.Pstate else layout(value)
