"""UARTs that a guest polls and feeds without exits, and other accesses settled without Python.

Among these are the two that a virtio driver makes for each interrupt: so no vCPU waits for Python
while a device's own thread is at work.

While no register of a port changes by being read, they lie in a read-only page of the guest's,
and while writing THR does nothing but send, KVM gathers such writes in its ring: then a guest that
prints never leaves. Neither tells anyone, so a thread looks after the ring; and whatever takes a
vCPU out to Python takes out what was sent before (`FastPaths.attend`).

Both cost about as much to set up as 16 exits, so they wait for as many that would have been saved;
until then, and where pages of the host hold more than one port, exits are settled in C.

Source: Linux, Documentation/virt/kvm/api.rst, KVM_REGISTER_COALESCED_MMIO, KVM_MEM_READONLY.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from pyvmm import layout
from pyvmm.devices.uart8250 import ALL_STEADY, REGISTERS, Uart8250
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.settle import NO_PATIENCE_NEEDED, PATIENCE_OVER, Settler
from pyvmm.kvm.uapi import MemoryFlag
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm
from pyvmm.memory.ram import GuestMemory

if TYPE_CHECKING:
    from pyvmm.devices.virtio.mmio import VirtioMmio

PATIENCE: Final = 16  # exits settled in C before a port is mapped
SOON_MS: Final = 2  # how long what was sent may wait: at first, and
SELDOM_MS: Final = 32  # after a while without any


class Page:
    """Registers of a port's that a guest reads without an exit: in a page, while that is mapped."""

    def __init__(self, vm: Vm, slot: int, base: int) -> None:
        self._vm = vm
        self._slot = slot
        self._memory = GuestMemory(base, layout.UART.size)
        self._registers = self._memory.view(base, REGISTERS).cast("Q")
        self.is_mapped = False

    def close(self) -> None:
        """Give it back; no vCPU uses it any more."""
        self._registers.release()
        self._memory.close()

    def show(self, registers: int) -> None:
        """Have these in the page."""
        self._registers[0] = registers

    def map(self, mapped: bool) -> None:
        """Let the guest have the page, or not."""
        size = self._memory.size if mapped else 0
        self._vm.set_user_memory_region(
            self._slot, self._memory.base, size, self._memory.host_address, MemoryFlag.READONLY
        )
        self.is_mapped = mapped


class FastPort:
    """One UART's shortcut: its registers in C, and at times in a page of the guest's."""

    def __init__(self, vm: Vm, settler: Settler, number: int, uart: Uart8250, slot: int) -> None:
        """Be ready for `Uart8250.take_shortcut`; ``slot`` -1: there is to be no page."""
        self._vm = vm
        self._settler = settler
        self._number = number
        self._uart = uart
        self._base = layout.uart(number).base
        self._slot = slot
        self._state = settler.port(number)
        self._registers = 0
        self._eligible = False  # for going without exits
        self._coalesced = False
        # Most ports are never used, and need neither of these.
        self._page: Page | None = None
        self._stop_fd = -1
        self._thread: threading.Thread | None = None
        self.bytes_sent = 0  # without an exit to Python

    def close(self) -> None:
        """Output what was sent, and give the page back, which no vCPU must use any more."""
        if self._thread is not None:
            os.eventfd_write(self._stop_fd, 1)
            self._thread.join()
            os.close(self._stop_fd)
        self._uart.collect()
        self._uart.send_out()
        self._uart.take_shortcut(None)
        if self._page is not None:
            self._page.close()

    def publish(self, registers: int, *, sends: bool, only_sends: bool) -> bool:
        """Take over how the port is now; see Shortcut."""
        state = self._state
        self._registers = registers
        state.registers = registers
        if self._thread is None and self._uart.has_transmitted:
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
            self._thread = threading.Thread(target=self._look_after, name=f"uart{self._number}")
            self._thread.start()
        state.sends = sends and self._thread is not None
        steady = registers & ALL_STEADY == ALL_STEADY
        if self._page is not None and self._page.is_mapped:
            if steady:
                self._page.show(registers & ~ALL_STEADY)
            else:
                self._page.map(False)
        withdrawn = self._coalesced and not only_sends
        if withdrawn:
            self._vm.unregister_coalesced_mmio(self._base, 1)
            self._coalesced = False
        eligible = steady and only_sends and self._thread is not None
        if eligible and not self._eligible:
            state.patience = PATIENCE
        elif not eligible:
            state.patience = NO_PATIENCE_NEEDED
        self._eligible = eligible
        return withdrawn

    def sent(self) -> bytes:
        """What the guest has sent since the last time."""
        data = self._settler.take(self._number)
        self.bytes_sent += len(data)
        return data

    def speed_up(self) -> None:
        """Save the guest more exits, if it has made enough of them that could be saved."""
        if self._state.patience != PATIENCE_OVER:
            return
        with self._uart.lock:
            self._state.patience = NO_PATIENCE_NEEDED
            if not self._eligible:  # any more
                return
            if not self._coalesced:
                self._vm.register_coalesced_mmio(self._base, 1)
                self._coalesced = True
            if self._slot < 0:
                return
            if self._page is None:
                self._page = Page(self._vm, self._slot, self._base)
            if not self._page.is_mapped:
                self._page.show(self._registers & ~ALL_STEADY)
                self._page.map(True)

    def _look_after(self) -> None:
        """The thread, from the first byte on: output what nothing tells of."""
        while self._settler.wait_sent(self._number, self._stop_fd, SOON_MS, SELDOM_MS):
            self._uart.collect()
            self._uart.send_out()


class FastPaths:
    """The shortcuts of a machine, from its first run on; to be closed before its vCPUs are."""

    def __init__(
        self,
        vm: Vm,
        vcpus: Sequence[Vcpu],
        claimed: Iterable[layout.Region],
        uarts: Sequence[Uart8250],
        slots: Sequence[VirtioMmio] = (),
        *,
        settle_unclaimed: bool,
    ) -> None:
        """Begin; ``claimed`` is what no access may be settled in as nobody's.

        ``slots`` are the virtio devices from the first slot of the map on.
        """
        claimed_ranges = [(region.base, region.end) for region in claimed]
        bases = [layout.uart(number).base for number in range(len(uarts))]
        self._open = True
        latches = [
            layout.virtio(number).base + type(transport).InterruptStatus.offset
            for number, transport in enumerate(slots)
        ]
        self._settler = Settler(vcpus, claimed_ranges, bases, latches, unclaimed=settle_unclaimed)
        self._vcpus = vcpus
        self._uarts = uarts
        has_pages = layout.UART.size == mmap.PAGESIZE and vm.has(Cap.READONLY_MEM)
        last_slot = vm.check_extension(Cap.NR_MEMSLOTS) - 1  # RAM has the first
        with ExitStack() as undo:
            self._ports: list[FastPort] = []
            for number, uart in enumerate(uarts):
                slot = last_slot - number if has_pages else -1
                port = FastPort(vm, self._settler, number, uart, slot)
                undo.callback(port.close)
                uart.take_shortcut(port)
                self._ports.append(port)
            for number, transport in enumerate(slots):
                transport.take_latch(self._settler.latch(number))
                undo.callback(transport.take_latch, None)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Output what was sent, and let go; idempotent."""
        self._open = False  # the ring is the vCPUs', which are about to go
        self._undo.close()

    def attend(self) -> None:
        """Do what is wanted when Vcpu.attention says so."""
        self._collect()
        for uart in self._uarts:
            uart.send_out_unless_busy()
        for port in self._ports:
            port.speed_up()

    def flush(self) -> None:
        """Output all that guests have sent before this was called."""
        if not self._open:
            return
        self._collect()
        for uart in self._uarts:
            uart.send_out()

    def _collect(self) -> None:
        for uart in self._uarts:
            uart.collect()
        if self._settler.has_sent(0):  # the ring was held up by what another port had sent
            for uart in self._uarts:
                uart.collect()

    def settled(self) -> list[dict[str, int]]:
        """How many exits of each vCPU were settled without Python, by what caused them."""
        return [self.settled_of(vcpu) for vcpu in self._vcpus]

    def settled_of(self, vcpu: Vcpu) -> dict[str, int]:
        """How many exits of one vCPU were."""
        return _by_cause(*vcpu.settled())

    def bytes_sent(self) -> dict[str, int]:
        """How many bytes each UART was given without an exit to Python."""
        return {f"uart{number}": port.bytes_sent for number, port in enumerate(self._ports)}


def _by_cause(reads: list[int], writes: list[int]) -> dict[str, int]:
    uarts = range(len(reads) - 2)
    names = [*(f"uart{number}" for number in uarts), "virtio interrupt", "unclaimed"]
    counts = {f"{name} read": count for name, count in zip(names, reads, strict=True)}
    counts |= {f"{name} write": count for name, count in zip(names, writes, strict=True)}
    return {cause: count for cause, count in counts.items() if count}
