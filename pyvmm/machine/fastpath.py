"""UARTs that a guest polls and writes without exits, and MMIO exits that C completes.

C also completes the two accesses that a virtio driver makes at each interrupt, and reads of the
real-time clock. So no vCPU waits for Python while a device's thread holds the interpreter.

`Uart8250` owns a UART's registers. Only it changes them, under its lock. C and the page hold copies
that the guest may read. `publish` sets these copies: the UART publishes each change before the
guest can see it. A guest's access takes the first step that fits:

    step                                  who completes it             cost
    1 a load, and the page is mapped      the page (Page)              no exit
    2 a store to THR, coalesced           KVM's ring ----+             no exit
    3 a load without a side effect        C: registers   |             exit to C
    4 a store that only transmits         C: tx ring <---+             exit to C
    5 THRI: IER, IIR, THR, while lent     C: what is lent              exit to C
    6 anything else                       Uart8250.mmio_read, _write   exit to Python

A driver that sends by interrupts makes step 5 and Uart8250 each the owner of the transmitter's
interrupt in turn:

    Uart8250 --- lend(): only THRI can become pending, no page, no coalesced writes ---> C
    Uart8250 <-- retake(): an access of step 6, input, a flush ------------------------- C

A byte that the guest sends is in KVM's ring, then in the tx ring of C (kvm/fastmmio.c), then in
Uart8250. `collect` moves it to Uart8250, and `send_out` outputs it.

Setting up the page and the ring costs about as much as 16 exits. So a UART gets the page and the
ring after 16 exits that they would have saved. C completes these exits. On a host whose pages hold
more than one UART, C completes the later ones too. KVM signals neither a read of the page nor a
coalesced write. So a thread polls the ring, and a vCPU that exits to Python first outputs all
earlier bytes (`FastPaths.attend`).

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
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.uartfastpath import ALL_READABLE, REGISTERS
from pyvmm.kvm import uapi
from pyvmm.kvm.caps import Cap
from pyvmm.kvm.fastmmio import NONE_LEFT, UNLIMITED, FastMmio
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm
from pyvmm.memory.ram import GuestMemory

if TYPE_CHECKING:
    from pyvmm.devices.virtio.mmio import VirtioMmio
    from pyvmm.terminal.direct import Direct

EXITS_FIRST: Final = 16  # C completes so many before a UART gets its page and coalesced writes
MIN_WAIT_MS: Final = 2  # between two polls of the ring while there is output
MAX_WAIT_MS: Final = 32  # the same after some time without output


class Page:
    """A UART's registers in a page, which the guest reads without an exit while it is mapped."""

    def __init__(self, vm: Vm, slot: int, base: int) -> None:
        self._vm = vm
        self._slot = slot
        self._memory = GuestMemory(base, layout.UART.size)
        self._registers = self._memory.view(base, REGISTERS).cast("Q")
        self.is_mapped = False

    def close(self) -> None:
        """Free the page; no vCPU may use it any more."""
        self._registers.release()
        self._memory.close()

    def show(self, registers: int) -> None:
        """Write the registers' values into the page."""
        self._registers[0] = registers

    def map(self, mapped: bool) -> None:
        """Map the page into the guest, or unmap it."""
        size = self._memory.size if mapped else 0
        self._vm.set_user_memory_region(
            self._slot, self._memory.base, size, self._memory.host_address, uapi.MEM_READONLY
        )
        self.is_mapped = mapped


class FastUart:
    """The fast path of one UART: its registers in C, and at times in a page of the guest."""

    def __init__(
        self,
        vm: Vm,
        fast: FastMmio,
        number: int,
        uart: Uart8250,
        slot: int,
        line: int | None = None,
    ) -> None:
        """Prepare for `Uart8250.use_fast_path`. ``slot`` -1: no page.

        ``line`` is the UART's interrupt, a number from spi(). Without it C never owns the
        interrupt.
        """
        self._vm = vm
        self._fast = fast
        self._number = number
        self._uart = uart
        self._base = layout.uart(number).base
        self._slot = slot
        self._state = fast.uart(number)
        self._lends = line is not None
        if line is not None:
            fast.set_line(number, vm.fd, line, EXITS_FIRST)
        self._registers = 0
        self._eligible = False  # it may get a page and coalesced writes
        self._coalesced = False
        # Most UARTs are never used, and need neither of these.
        self._page: Page | None = None
        self._stop_fd = -1
        self._thread: threading.Thread | None = None
        self.bytes_sent = 0  # bytes sent without an exit to Python

    def close(self) -> None:
        """Output what was sent, and free the page; no vCPU may use it any more."""
        if self._thread is not None:
            os.eventfd_write(self._stop_fd, 1)
            self._thread.join()
            os.close(self._stop_fd)
        self._uart.collect()
        self._uart.send_out()
        self._uart.use_fast_path(None)
        if self._page is not None:
            self._page.close()

    def publish(self, registers: int, *, complete_thr: bool, coalesce_thr: bool) -> bool:
        """Take over the UART's state; see FastPath."""
        state = self._state
        if not complete_thr:  # before a vCPU can read in IIR that its next byte interrupts
            state.complete_thr = False
        self._registers = registers
        state.registers = registers
        if self._thread is None and self._uart.has_transmitted:
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
            self._thread = threading.Thread(target=self._poll, name=f"uart{self._number}")
            self._thread.start()
        state.complete_thr = complete_thr and self._thread is not None
        readable = registers & ALL_READABLE == ALL_READABLE
        if self._page is not None and self._page.is_mapped:
            if readable:
                self._page.show(registers & ~ALL_READABLE)
            else:
                self._page.map(False)
        withdrawn = self._coalesced and not coalesce_thr
        if withdrawn:
            self._vm.unregister_coalesced_mmio(self._base, 1)
            self._coalesced = False
        eligible = readable and coalesce_thr and self._thread is not None
        if eligible and not self._eligible:
            state.exits_left = EXITS_FIRST
        elif not eligible:
            state.exits_left = UNLIMITED
        self._eligible = eligible
        return withdrawn

    def lend(self, *, thr_emptied: bool, raised: bool) -> None:
        """Let C own the transmitter's interrupt, unless the page shows IER; see FastPath."""
        is_mapped = self._page is not None and self._page.is_mapped
        if self._lends and self._thread is not None and not is_mapped and not self._coalesced:
            self._fast.lend(self._number, thr_emptied=thr_emptied, raised=raised)

    def retake(self) -> tuple[int, bool, bool] | None:
        """Take back what C owned."""
        return self._fast.retake(self._number) if self._lends else None

    def sent(self) -> bytes:
        """Take what the guest has sent since the last call."""
        data = self._fast.take_tx(self._number)
        self.bytes_sent += len(data)
        return data

    def speed_up(self) -> None:
        """Map the page and coalesce writes, if the guest has made enough exits."""
        if self._state.exits_left != NONE_LEFT:
            return
        with self._uart.lock:
            self._uart.end_loan()  # C may have enabled THRI, and must not while KVM coalesces
            self._state.exits_left = UNLIMITED
            if not self._eligible:  # any longer
                return
            if not self._coalesced:
                self._vm.register_coalesced_mmio(self._base, 1)
                self._coalesced = True
            if self._slot < 0:
                return
            if self._page is None:
                self._page = Page(self._vm, self._slot, self._base)
            if not self._page.is_mapped:
                self._page.show(self._registers & ~ALL_READABLE)
                self._page.map(True)

    def _poll(self) -> None:
        """Output what the guest sends without an exit; in a thread, from the first byte on."""
        while self._fast.wait_tx(self._number, self._stop_fd, MIN_WAIT_MS, MAX_WAIT_MS):
            self._uart.collect()
            self._uart.send_out()


class FastPaths:
    """The fast paths of a machine, from its first run on. Close them before its vCPUs."""

    def __init__(
        self,
        vm: Vm,
        vcpus: Sequence[Vcpu],
        claimed: Iterable[layout.Region],
        uarts: Sequence[Uart8250],
        slots: Sequence[VirtioMmio] = (),
        rtc: Pl031 | None = None,
        direct: Direct | None = None,
        lines: Sequence[int] = (),
        *,
        complete_unclaimed: bool,
        pages: bool = True,
    ) -> None:
        """Begin. C completes accesses outside ``claimed``, if ``complete_unclaimed``.

        ``slots`` are the virtio devices from the first slot of the map on. ``rtc`` is the real-time
        clock. A virtio console's output may go to ``direct``. ``lines`` are the interrupts of the
        UARTs, which C may then own. Without ``pages`` the memory slots never change.
        """
        claimed_ranges = [(region.base, region.end) for region in claimed]
        bases = [layout.uart(number).base for number in range(len(uarts))]
        self._open = True
        isrs = [
            layout.virtio(number).base + type(transport).InterruptStatus.offset
            for number, transport in enumerate(slots)
        ]
        self._fast = FastMmio(
            vcpus,
            claimed_ranges,
            bases,
            isrs,
            layout.RTC.base if rtc is not None else 0,
            complete_unclaimed=complete_unclaimed,
        )
        self._vcpus = vcpus
        self._uarts = uarts
        has_pages = pages and layout.UART.size == mmap.PAGESIZE and vm.has(Cap.READONLY_MEM)
        last_slot = vm.check_extension(Cap.NR_MEMSLOTS) - 1  # RAM has the first
        with ExitStack() as undo:
            self._fast_uarts: list[FastUart] = []
            for number, uart in enumerate(uarts):
                slot = last_slot - number if has_pages else -1
                line = lines[number] if lines else None
                fast_uart = FastUart(vm, self._fast, number, uart, slot, line)
                undo.callback(fast_uart.close)
                uart.use_fast_path(fast_uart)
                self._fast_uarts.append(fast_uart)
            for number, transport in enumerate(slots):
                bits = self._fast.interrupt_bits(number)
                transport.use_interrupt_bits(bits)
                undo.callback(transport.use_interrupt_bits, None)
                from pyvmm.machine.datapaths import data_path

                undo.enter_context(data_path(transport, bits, direct))
            if rtc is not None:
                rtc.use_fast_path(self._fast.clock())
                undo.callback(rtc.use_fast_path, None)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Output what was sent, and end every fast path; idempotent."""
        self._open = False  # the ring is in memory of the vCPUs, which close next
        self._undo.close()

    def attend(self) -> None:
        """Output what was sent, and set up fast paths; called when Vcpu.attention is set."""
        self._collect()
        for uart in self._uarts:
            uart.send_out_unless_busy()
        for fast_uart in self._fast_uarts:
            fast_uart.speed_up()

    def flush(self) -> None:
        """Output all that guests sent before this call."""
        if not self._open:
            return
        self._collect()
        for uart in self._uarts:
            uart.send_out()

    def _collect(self) -> None:
        for uart in self._uarts:
            uart.collect()
        if self._fast.has_tx(0):  # another UART's bytes blocked the ring
            for uart in self._uarts:
                uart.collect()

    def completed(self) -> list[dict[str, int]]:
        """Count the exits of each vCPU that C completed, by cause."""
        return [self.completed_by(vcpu) for vcpu in self._vcpus]

    def completed_by(self, vcpu: Vcpu) -> dict[str, int]:
        """Count the exits of one vCPU that C completed, by cause."""
        reads, writes = vcpu.completed_mmio()
        uarts = [f"uart{number}" for number in range(len(reads) - 4)]
        names = [*uarts, "virtio interrupt", "unclaimed", layout.RTC.name, "virtio doorbell"]
        counts = {f"{name} read": count for name, count in zip(names, reads, strict=True)}
        counts |= {f"{name} write": count for name, count in zip(names, writes, strict=True)}
        return {cause: count for cause, count in counts.items() if count}

    def bytes_sent(self) -> dict[str, int]:
        """Count the bytes that each UART got without an exit to Python."""
        return {f"uart{number}": fast.bytes_sent for number, fast in enumerate(self._fast_uarts)}
