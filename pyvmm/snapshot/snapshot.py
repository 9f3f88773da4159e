"""The content of a snapshot, on any machine: registers, devices and memory.

with Snapshot("guest.snap") as snapshot:
    snapshot.vcpus[0].z[3].s.signed, snapshot.vcpus[0].sysreg["ESR_EL1"].EC
    snapshot.read(0x8008_0000, 64)
    snapshot.state.devices["uart0"]
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyvmm.arm64 import sysregs
from pyvmm.arm64.lanes import PREDICATE_SHARE
from pyvmm.base.closing import Closing
from pyvmm.base.records import Record
from pyvmm.errors import KvmError, UsageError
from pyvmm.kvm import regs, sve
from pyvmm.kvm.vcpu import VcpuEvents
from pyvmm.kvm.vgic import affinity
from pyvmm.machine.plan import Feature
from pyvmm.machine.registerdump import VcpuRegisters, read_registers
from pyvmm.machine.registers import RegisterView
from pyvmm.snapshot import gic
from pyvmm.snapshot.codec import Damaged
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.state import GicState, State, VcpuState

NEEDED: Final = (regs.PC, regs.PSTATE, regs.MPIDR_EL1)
NEEDED_OF_SVE: Final = (regs.SVE_VLS, regs.lookup("ZCR_EL1", sysregs.ENCODINGS))
GICV2: Final = "gicv2"
_REGISTER_ID: Final = re.compile("0x[0-9a-f]{1,16}")


class SnapshotVcpu(RegisterView):
    """A saved vCPU: every register by name, as a typed value; see RegisterView."""

    def __init__(self, state: VcpuState) -> None:
        self.id = state.id
        self.state = state

    def get_one_reg(self, reg_id: int) -> int:
        """Return a register's value.

        Raises: KvmError, if the vCPU lacked the register, or KVM refused the read.
        """
        if reg_id in self.state.registers:
            return self.state.registers[reg_id]
        reason = self.state.refused.get(f"{reg_id:#x}", "ENOENT")
        number = getattr(errno, reason, errno.ENOENT)
        raise KvmError("saved KVM_GET_ONE_REG", f"vcpu {self.id}, {regs.name(reg_id)}", number)

    def set_one_reg(self, reg_id: int, value: int) -> None:
        """Refuse the write.

        Raises: TypeError, always.
        """
        raise TypeError("a snapshot's registers cannot be written")

    def get_reg_list(self) -> list[int]:
        """Return the ids of all registers, with those that KVM refused to read."""
        return [*self.state.registers, *(int(text, 16) for text in self.state.refused)]

    def get_mp_state(self) -> int:
        """Return whether the vCPU ran, as KVM_GET_MP_STATE did."""
        return self.state.mp_state

    def get_vcpu_events(self) -> VcpuEvents:
        """Return the pending exceptions."""
        return self.state.events.for_kvm()


class GicPart(Record):
    """Registers of an interrupt controller by name, per vCPU or shared (``vcpu`` is None)."""

    part: str
    vcpu: int | None
    registers: dict[str, int]


class Snapshot(Closing):
    """An open snapshot file; a context manager that closes it.

    ``state`` has everything except memory.  ``file`` has the memory, which is checked when it is
    read.  ``vcpus`` have the registers.
    """

    def __init__(self, path: Path | str | os.PathLike[str], *, trust: bool = False) -> None:
        """Open a snapshot and its parents; see SnapshotFile.open() for ``trust``.

        Raises: UsageError, if a file is damaged or not a snapshot, or a parent is missing.
        """
        self.file = SnapshotFile.open(Path(path), trust=trust)
        try:
            self.state = State.of(self.file.document, str(path))
            self._check()
        except BaseException:
            self.file.close()
            raise
        self.vcpus = tuple(map(SnapshotVcpu, self.state.vcpus))

    def close(self) -> None:
        """Close the files; ``state`` stays usable."""
        self.file.close()

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.file.path

    def read(self, gpa: int, length: int) -> bytes:
        """Read guest memory, and check it.

        Raises: UsageError, if the address is outside memory, or memory is damaged.
        """
        for area in self.state.memory:
            if area.base <= gpa and 0 <= length <= area.end - gpa:
                return self.file.read(gpa, length)
        has = ", ".join(f"{a.name} {a.base:#x} to {a.end:#x}" for a in self.state.memory)
        raise UsageError(
            f"{self.path}: {length:#x} bytes at guest address {gpa:#x} are outside its memory",
            hint=f"its memory is {has}",
        )

    def gic_parts(self) -> Iterator[GicPart]:
        """Yield the interrupt controller's registers by Arm's names."""
        state = self.state.gic
        for block in state.blocks:
            known = gic.names(state.kind, block.part, state.nr_irqs)
            registers = {known.get(n, f"{n:#06x}"): value for n, value in block.registers.items()}
            yield GicPart(block.part, block.vcpu, registers)

    def registers(self, vcpu: int, *, whole: bool = False) -> VcpuRegisters:
        """Return a vCPU's registers as JSON-ready text, as `pyvmm debug` prints them.

        Z, P and FFR are cut to the vector length in use; with ``whole`` they are not.
        """
        state = self.state
        has_icc = state.gic.kind != GICV2 and any(b.part == gic.CPU.name for b in state.gic.blocks)
        reader = _CpuInterfaces(state.gic, self.vcpus) if has_icc else None
        return read_registers(
            self.vcpus[vcpu], state.vls, gic=reader, whole=whole,
            aarch32=Feature.AARCH32 in state.features,
        )  # fmt: skip

    def _check(self) -> None:
        """Check memory ranges and registers, which the file's hashes cannot check.

        Raises: Damaged.
        """
        self.file.check_within((area.base, area.end) for area in self.state.memory)
        for vcpu in self.state.vcpus:
            if reason := _damage(vcpu):
                raise Damaged(f"{self.path}: vCPU {vcpu.id}: {reason}")


def _damage(vcpu: VcpuState) -> str:
    """Return the reason why a vCPU's registers are damaged, or an empty text."""
    registers = vcpu.registers
    for reg_id in NEEDED if not vcpu.vls else (*NEEDED, *NEEDED_OF_SVE):
        if reg_id not in registers:
            return f"{regs.name(reg_id, sysregs.NAMES)} is missing"
    if sve.lengths(registers.get(regs.SVE_VLS, 0)) != vcpu.vls:
        return "its vector lengths differ from its SVE_VLS"
    bits = max(vcpu.vls, default=0)
    for kind, width in ((regs.Z_REGISTERS, bits), (regs.P_REGISTERS, bits // PREDICATE_SHARE)):
        for reg_id in kind & registers.keys():
            if registers[reg_id] >> width:
                return f"{regs.name(reg_id)} is longer than the vector length"
    for text in vcpu.refused:
        if not _REGISTER_ID.fullmatch(text):
            return f"malformed register id {text[:20]}"
    return ""


class _CpuInterfaces:
    """The saved CPU interfaces of the GIC, for read_registers()."""

    def __init__(self, state: GicState, vcpus: tuple[SnapshotVcpu, ...]) -> None:
        self._whose = {affinity(vcpu.get_one_reg(regs.MPIDR_EL1)): vcpu.id for vcpu in vcpus}
        self._registers = {b.vcpu: b.registers for b in state.blocks if b.part == gic.CPU.name}

    def get_cpu_sysreg(self, mpidr: int, encoding: int) -> int:
        """Return the value of an ICC_*_EL1 register.

        Raises: KvmError, if it was not saved.
        """
        try:
            return self._registers[self._whose[affinity(mpidr)]][encoding]
        except KeyError:
            name = sysregs.NAMES.get(encoding, f"{encoding:#x}")
            raise KvmError("saved KVM_GET_DEVICE_ATTR", name, errno.ENOENT) from None
