"""The handling of vCPUs' exits: the dispatch, and the end of the run.

An MMIO exit goes to the device at its address, as do the accesses that nosyndrome.py decodes. A
guest's write to read-only persistent memory becomes an external abort, as on hardware where no
device accepts the write. Linux then ends the program or kernel thread that wrote. Any other exit
but a kick ends the run.
"""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pyvmm import layout
from pyvmm.devices.bus import UNCLAIMED, Bus
from pyvmm.errors import EXIT_OK, GuestError, HostError, KvmError, VmmError
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit, reason_name
from pyvmm.kvm.uapi import ExitReason, SystemEvent
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.machine.board import Board
from pyvmm.machine.counts import ExitCounts
from pyvmm.machine.fastpath import FastPaths
from pyvmm.machine.vcpus import MachineVcpu

if TYPE_CHECKING:
    from pyvmm.devices.virtio.mmio import VirtioMmio
    from pyvmm.devices.virtio.pmem import VirtioPmem
    from pyvmm.machine.trace import ExitTrace

ISS_WNR = 1 << 6  # the access was a write.  Source: Arm DDI 0487, ESR_EL1, ISS for a Data Abort
# Faster than the class's attributes
MMIO, INTR, ARM_NISV = ExitReason.MMIO, ExitReason.INTR, ExitReason.ARM_NISV
DEBUG = ExitReason.DEBUG

# Gets the vCPU's number and its access to an address without a device or memory.
OnUnclaimed = Callable[[int, Exit], None]
# Gets a vCPU and its debug exit.
OnDebug = Callable[[MachineVcpu, Exit], None]


class ExitHandler:
    """A runner of vCPUs to their exits, and handler of these, in each vCPU's own thread.

    ``end`` is called with what ends the run: the first call counts. ``was_reset`` says that the
    guest ended the run by asking for a reset.
    """

    __slots__ = (
        "_board", "_bus", "_end", "_fast", "_has_ended", "_on_unclaimed", "_virtio", "counts",
        "on_debug", "was_reset",
    )  # fmt: skip

    def __init__(
        self,
        board: Board,
        fast: FastPaths | None,
        on_unclaimed: OnUnclaimed | None,
        *,
        end: Callable[[int | VmmError], None],
        has_ended: Callable[[], bool],
    ) -> None:
        self.counts = {vcpu.id: ExitCounts() for vcpu in board.vcpus}
        self.was_reset = False
        self.on_debug: OnDebug | None = None  # handles KVM_EXIT_DEBUG, in the vCPU's thread
        self._board = board
        self._bus = board.bus
        self._virtio = board.virtio
        self._fast = fast
        self._on_unclaimed = on_unclaimed
        self._end = end
        self._has_ended = has_ended

    def step(self, vcpu: Vcpu) -> None:
        """Run a vCPU to its next exit and handle that exit."""
        try:
            leave = vcpu.run()
        except KvmError as error:
            raise explain(error, self._virtio) from error
        self._handle(vcpu, leave)

    def traced_step(self, trace: ExitTrace, vcpu: Vcpu) -> None:
        """Do what ``step`` does, and record the exit in a trace."""
        try:
            leave = vcpu.run()
        except KvmError as error:
            raise explain(error, self._virtio) from error
        began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        try:
            self._handle(vcpu, leave)
        finally:
            trace.exit(vcpu.id, self._cause(leave), leave, began_ns)
            if self._fast is not None:
                trace.completed(vcpu.id, self._fast.completed_by(vcpu))

    def _cause(self, leave: Exit) -> str:
        """Return the exit's name in the counts: "uart0 read"."""
        if leave.reason != MMIO:
            return reason_name(leave.reason)
        region, _ = self._bus.find(leave.address)
        return f"{region.name} {'write' if leave.is_write else 'read'}"

    def _handle(self, vcpu: Vcpu, leave: Exit) -> None:
        if vcpu.attention and self._fast is not None:
            self._fast.attend()
        if leave.reason is MMIO:
            value = self._access(vcpu, leave)
            if not leave.is_write:
                vcpu.set_mmio_data(value)
            return
        self.counts[vcpu.id].others[leave.reason] += 1
        why = ""
        if leave.reason == ARM_NISV:
            why = self._emulate(vcpu, leave)
            if not why:
                return
        if leave.reason == DEBUG and self.on_debug is not None:
            self.on_debug(self._board.vcpus[vcpu.id], leave)
            return
        if leave.reason != INTR:
            if not self._has_ended():
                self.was_reset = is_system_event(leave, SystemEvent.RESET)
            self._end(result_of(vcpu, leave, self._bus, why))

    def _access(self, vcpu: Vcpu, leave: Exit) -> int:
        """Make an access to a device, and return the value that a read gets."""
        counts = self.counts[vcpu.id]
        region, device = self._bus.find(leave.address)
        if region is UNCLAIMED:
            if refuse_write(vcpu, leave, self._virtio):
                counts.writes["read-only memory"] += 1
                return 0
            vcpu.last_unclaimed = leave.address
            if self._on_unclaimed is not None:
                self._on_unclaimed(vcpu.id, leave)
        offset = leave.address - region.base
        if not leave.is_write:
            counts.reads[region.name] += 1
            return device.mmio_read(offset, leave.length)
        counts.writes[region.name] += 1
        device.mmio_write(offset, leave.length, leave.data)
        return 0

    def _emulate(self, vcpu: Vcpu, leave: Exit) -> str:
        """Handle an access without syndrome; return the reason if pyvmm cannot."""
        if refuse_write(vcpu, leave, self._virtio):
            return ""
        from pyvmm.machine import nosyndrome

        access = functools.partial(self._access, vcpu)
        try:
            nosyndrome.emulate(self._board.vcpus[vcpu.id], leave, self._board, access)
        except nosyndrome.NotEmulated as error:
            return error.message
        return ""


def is_system_event(leave: Exit, *types: int) -> bool:
    """Return whether the exit is a system event of one of those types."""
    return leave.reason == ExitReason.SYSTEM_EVENT and leave.type in types


def result_of(vcpu: Vcpu, leave: Exit, bus: Bus, why: str = "") -> int | VmmError:
    """Return the exit code or the error with which an exit ends the run.

    ``why`` is why pyvmm does not emulate an access without syndrome.
    """
    if is_system_event(leave, SystemEvent.SHUTDOWN, SystemEvent.RESET):
        return EXIT_OK
    where = f"vCPU {vcpu.id} at PC {vcpu.get_one_reg(regs.PC):#x}"
    if is_system_event(leave, SystemEvent.CRASH):
        return GuestError(f"the guest says it has crashed ({where})")
    if leave.reason == ARM_NISV:
        return GuestError(
            f"{where} accessed {place(leave.fields['fault_ipa'], bus)}, without a syndrome: {why} "
            f"(ISS {leave.fields['esr_iss']:#x})",
            hint="devices take loads and stores of one or two registers",
        )
    return GuestError(f"{where} left KVM_RUN with an exit that pyvmm does not handle: {leave}")


def place(address: int, bus: Bus) -> str:
    """Return the device at an address, and the address."""
    region, _ = bus.find(address)
    if region is not UNCLAIMED:
        return f"{region.name} at {address:#x}"
    if layout.GICC.base <= address < layout.GICD.end:
        return f"the interrupt controller at {address:#x}"
    return f"guest address {address:#x}, where there is no device and no RAM"


def refuse_write(vcpu: Vcpu, leave: Exit, slots: Iterable[VirtioMmio]) -> bool:
    """Inject an external abort if the exit is a write to read-only memory; return whether it is.

    Source: Linux, Documentation/virt/kvm/api.rst, KVM_SET_VCPU_EVENTS on arm64: the abort takes
    the place of the access, decoded (KVM_EXIT_MMIO) or not (KVM_EXIT_ARM_NISV).
    """
    address = leave.address
    is_write = leave.is_write
    if leave.reason == ARM_NISV:
        address = leave.fields["fault_ipa"]
        is_write = bool(leave.fields["esr_iss"] & ISS_WNR)
    if not is_write or not any(
        pmem.disk.read_only and pmem.content.contains(address, 1) for pmem in _pmems(slots)
    ):
        return False
    vcpu.set_vcpu_events(vcpu.get_vcpu_events().replace(ext_dabt_pending=True))
    return True


def explain(error: KvmError, slots: Iterable[VirtioMmio]) -> HostError:
    """Return the error to show for a failed KVM_RUN: it names a file that caused the failure."""
    if error.errno == errno.EFAULT:
        for pmem in _pmems(slots):
            if missing := pmem.content.missing:
                return HostError(
                    f"`devices.pmem` {pmem.backing}: the file became {missing} bytes shorter while "
                    "the guest had it as memory, and the guest accessed them",
                    hint=f"{error.message}; the file has the rest of the data that the guest "
                    "flushed",
                )
            if pmem.content.is_full:
                return HostError(
                    f"`devices.pmem` {pmem.backing}: no space is left for what the guest writes",
                    hint=f"{error.message}; fallocate -l {pmem.size} takes the space beforehand",
                )
    return error


def _pmems(slots: Iterable[VirtioMmio]) -> Iterator[VirtioPmem]:
    for transport in slots:
        from pyvmm.devices.virtio.pmem import VirtioPmem

        if isinstance(transport.device, VirtioPmem):
            yield transport.device
