"""New VMs and guests for one case, and outcomes in words."""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from collections.abc import Callable, Iterable, Mapping

from pyvmm.arm64.vl import VlSet
from pyvmm.base.closing import Closing
from pyvmm.base.records import Record
from pyvmm.errors import GuestError, KvmError
from pyvmm.kvm import regs, sve
from pyvmm.kvm.system import System
from pyvmm.kvm.uapi import ExitReason, VcpuFeature
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm
from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import GuestMemory
from pyvmm.svecheck import ids
from pyvmm.svecheck.programs import code

PLAIN = (VcpuFeature.PSCI_0_2,)
SVE = (VcpuFeature.PSCI_0_2, VcpuFeature.SVE)

RAM_SIZE = 0x20_0000
REPORT = 0x100_0000  # unmapped: a guest's write is an MMIO exit
REPORT_REGISTER = 20  # X20 has that address
VECTORS = RAM_BASE + 0x800  # VBAR_EL1 for the program "handler"
SYNC_FROM_EL1 = 0x200  # the offset of synchronous exceptions with SP_EL1.  Source: DDI 0487, D1.3.1
TIMEOUT_S = 60.0  # for a guest to report on a busy machine


class SveHost(Record):
    """The vector lengths, in bits, that KVM offers to guests, and those of the host's programs."""

    vls: VlSet
    own: VlSet


class Skip(Exception):
    """The reason why a host cannot run a case."""


class Bench(Closing):
    """The VMs and vCPUs of one case; the ``with`` block closes them."""

    def __init__(self, system: System, host: SveHost) -> None:
        self.system = system
        self.host = host
        self._undo = contextlib.ExitStack()

    def close(self) -> None:
        """Close every VM and vCPU; idempotent."""
        self._undo.close()

    def need_lengths(self, count: int) -> None:
        """Skip the case if the host has fewer vector lengths."""
        if len(self.host.vls) < count:
            raise Skip(f"needs a host with {count} vector lengths or more")

    def vm(self) -> Vm:
        """Make a VM without memory."""
        return self._undo.enter_context(self.system.create_vm(sve.MIN_IPA_BITS))

    def created(self, vm: Vm | None = None, number: int = 0) -> Vcpu:
        """Create a vCPU without INIT; without ``vm`` in a new VM."""
        return self._undo.enter_context((vm or self.vm()).create_vcpu(number))

    def init(self, vcpu: Vcpu, features: Iterable[int] = SVE) -> None:
        """Run INIT on a vCPU."""
        vcpu.init(self.preferred_target, features)

    def vcpu(self, features: Iterable[int] = SVE, vm: Vm | None = None, number: int = 0) -> Vcpu:
        """Create a vCPU and run INIT."""
        vcpu = self.created(vm, number)
        self.init(vcpu, features)
        return vcpu

    def final(
        self, vls: Iterable[int] | None = None, vm: Vm | None = None, number: int = 0
    ) -> Vcpu:
        """Create a vCPU with SVE and finalize it; the default lengths are the host's."""
        vcpu = self.vcpu(SVE, vm, number)
        if vls is not None:
            sve.write_vls(vcpu, vls)
        vcpu.finalize(VcpuFeature.SVE)
        return vcpu

    @functools.cached_property
    def preferred_target(self) -> int:
        """The target for INIT on this host."""
        with self.system.create_vm(sve.MIN_IPA_BITS) as vm:
            return vm.preferred_target()

    def vm_with(self, program: str) -> Vm:
        """Make a VM with a program at the start of its memory, and the exception handler."""
        vm = self.vm()
        memory = self._undo.enter_context(GuestMemory(RAM_BASE, RAM_SIZE))
        # GuestMemory.load says why code is not written with write().
        for address, name in ((RAM_BASE, program), (VECTORS + SYNC_FROM_EL1, "handler")):
            words = code(name)
            memory.load_from(address, len(words), io.BytesIO(words), 0)
        vm.set_user_memory_region(0, RAM_BASE, RAM_SIZE, memory.host_address)
        return vm

    def reports(self, vcpu: Vcpu, count: int) -> list[int]:
        """Run the VM's program from its start, and return its first ``count`` reports.

        Raises: GuestError, if the guest causes another exit.
        """
        vcpu.set_one_reg(regs.PC, RAM_BASE)
        vcpu.set_one_reg(regs.X(REPORT_REGISTER), REPORT)
        vcpu.set_one_reg(ids.VBAR_EL1, VECTORS)
        values: list[int] = []
        guard = threading.Timer(TIMEOUT_S, vcpu.kick)
        guard.start()
        try:
            while len(values) < count:
                left = vcpu.run()
                if left.reason != ExitReason.MMIO or left.address != REPORT or not left.is_write:
                    raise GuestError(f"the guest reported {len(values)} of {count}, then: {left}")
                values.append(left.data)
        finally:
            guard.cancel()
            guard.join()
        # Complete the last write, so that the guest's registers are those after it.
        vcpu.kick()
        vcpu.run()
        return values


def outcome(call: Callable[[], object]) -> str:
    """Make a call, and return ``ok`` or the name of the kernel's errno."""
    try:
        call()
    except KvmError as error:
        return error.errno_name
    return "ok"


def alike(outcomes: Mapping[str, str]) -> str:
    """Return the outcome if all are equal, else each outcome with its names."""
    groups: dict[str, list[str]] = {}
    for name, word in outcomes.items():
        groups.setdefault(word, []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{word}: {some(names)}" for word, names in groups.items())


def each(calls: Mapping[str, Callable[[], object]]) -> str:
    """Make all calls, and return their outcome."""
    return alike({name: outcome(call) for name, call in calls.items()})


def values(vcpu: Vcpu, registers: Mapping[str, int]) -> str:
    """Return the value of all these registers."""
    return alike({name: f"{vcpu.get_one_reg(reg):#x}" for name, reg in registers.items()})


def some(names: list[str], most: int = 6) -> str:
    """Return the first few names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return " ".join(names[:most]) + more
