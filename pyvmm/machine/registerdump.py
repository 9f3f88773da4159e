"""All registers of a vCPU by name, as JSON values.

Values are hexadecimal text with all of a register's digits: a JSON number loses digits beyond
2^53. Z, P and FFR are cut to the guest's current vector length.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NotRequired, Protocol, TypedDict

from pyvmm.arm64 import sysregs, vl
from pyvmm.arm64.aarch32 import name32
from pyvmm.arm64.lanes import PREDICATE_SHARE
from pyvmm.errors import KvmError
from pyvmm.kvm import regs
from pyvmm.kvm.uapi import MpState
from pyvmm.kvm.vcpu import VcpuEvents

# The GIC's CPU interface, which KVM_GET_REG_LIST leaves out. Every GIC has AP0R0 and AP1R0; only a
# GIC with more priority bits has further ones.
ICC_REGISTERS = (
    "ICC_PMR_EL1", "ICC_CTLR_EL1", "ICC_SRE_EL1", "ICC_IGRPEN0_EL1", "ICC_IGRPEN1_EL1",
    "ICC_BPR0_EL1", "ICC_BPR1_EL1", "ICC_AP0R0_EL1", "ICC_AP1R0_EL1",
)  # fmt: skip


class Parked(regs.RegisterFile, Protocol):
    """A vCPU that does not run, or a saved one."""

    id: int

    def get_mp_state(self) -> int:
        """Return KVM_GET_MP_STATE."""

    def get_vcpu_events(self) -> VcpuEvents:
        """Return KVM_GET_VCPU_EVENTS."""


class CpuInterfaces(Protocol):
    """The vCPUs' interfaces to a GICv3."""

    def get_cpu_sysreg(self, mpidr: int, encoding: int) -> int:
        """Read an ICC_*_EL1 register of the vCPU with that affinity."""


class PendingEvents(TypedDict):
    """Pending exceptions (KVM_GET_VCPU_EVENTS)."""

    serror_pending: bool
    serror_has_esr: bool
    serror_esr: str
    ext_dabt_pending: bool


class VcpuRegisters(TypedDict):
    """A vCPU's registers, ready for JSON.

    ``vls`` are its vector lengths in bits, none without SVE. Its instructions use ``current_vl``;
    Z, P and FFR are cut to ``shown_vl``; both are 0 without SVE. ``errors`` has the errno's name
    for each register that could not be read. For a guest in AArch32, ``names32`` maps a register's
    name to its name there.
    """

    vcpu: int
    mp_state: str
    events: PendingEvents
    vls: list[int]
    current_vl: int
    shown_vl: int
    registers: dict[str, str]
    errors: dict[str, str]
    names32: NotRequired[dict[str, str]]


def read_registers(
    vcpu: Parked,
    vls: vl.VlSet,
    *,
    gic: CpuInterfaces | None = None,
    whole: bool = False,
    aarch32: bool = False,
) -> VcpuRegisters:
    """Read the registers of a parked vCPU, whose vector lengths are ``vls``.

    With ``gic`` the registers of its CPU interface too; then all vCPUs must be parked. With
    ``whole`` Z, P and FFR have their longest length, even if the guest uses a shorter one.
    ``aarch32`` is for a guest whose EL1 is in that state.
    """
    values, errors = _read_all(vcpu, gic)
    current = vl.in_use(vls, values) if vls else 0
    shown = max(vls, default=0) if whole else current
    found = VcpuRegisters(
        vcpu=vcpu.id,
        mp_state=MpState(vcpu.get_mp_state()).name,
        events=_events(vcpu.get_vcpu_events()),
        vls=sorted(vls),
        current_vl=current,
        shown_vl=shown,
        registers={name: _text(name, value, shown) for name, value in values.items()},
        errors=errors,
    )
    if aarch32:
        found["names32"] = {name: other for name in values if (other := name32(name))}
    return found


def _read_all(vcpu: Parked, gic: CpuInterfaces | None) -> tuple[dict[str, int], dict[str, str]]:
    """Return the values by name, and the errno of each register that KVM refuses to read."""
    values: dict[str, int] = {}
    errors: dict[str, str] = {}
    for held in chain(regs.read_all(vcpu), _cpu_interface(vcpu, gic)):
        name = regs.name(held.id, sysregs.NAMES)
        if held.value is None:
            errors[name] = held.error
        else:
            values[name] = held.value
    return values, errors


def _cpu_interface(vcpu: Parked, gic: CpuInterfaces | None) -> Iterator[regs.Held]:
    """Yield the GIC's registers of that vCPU."""
    if gic is None:
        return
    mpidr = vcpu.get_one_reg(regs.MPIDR_EL1)
    for name in ICC_REGISTERS:
        reg_id = regs.lookup(name, sysregs.ENCODINGS)
        try:
            yield regs.Held(reg_id, gic.get_cpu_sysreg(mpidr, sysregs.ENCODINGS[name]))
        except KvmError as error:
            yield regs.Held(reg_id, None, error.errno_name)


def _text(name: str, value: int, vector_bits: int) -> str:
    """Return a value in hexadecimal, as wide as its register at that vector length."""
    reg_id = regs.lookup(name, sysregs.ENCODINGS)
    bits = 8 * regs.size(reg_id)
    if reg_id in regs.Z_REGISTERS:
        bits = vector_bits
    elif reg_id in regs.P_REGISTERS:
        bits = vector_bits // PREDICATE_SHARE
    return f"{value & (1 << bits) - 1:#0{2 + bits // 4}x}"


def _events(events: VcpuEvents) -> PendingEvents:
    return PendingEvents(
        serror_pending=events.serror_pending,
        serror_has_esr=events.serror_has_esr,
        serror_esr=f"{events.serror_esr:#018x}",
        ext_dabt_pending=events.ext_dabt_pending,
    )
