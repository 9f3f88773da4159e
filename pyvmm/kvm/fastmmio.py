"""MMIO exits that C completes without Python; fastmmio.c lists them.

A device publishes here the registers that C may access: those of UARTs and of the real-time clock,
and a virtio device's interrupt status.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pyvmm.kvm.native import native
from pyvmm.kvm.vcpu import Vcpu

# Values of UartState.exits_left
NONE_LEFT: Final = 0  # Python is called
UNLIMITED: Final = -1  # C completes any number of exits


class InterruptBits:
    """A virtio device's InterruptStatus; see struct pyvmm_isr. Each change is atomic."""

    def __init__(self, lib: Any, state: Any, number: int) -> None:
        self._lib = lib
        self._state = state
        self._number = number

    def get(self) -> int:
        """Return the bits that are set."""
        state = self._state.isr[self._number]
        return int(state.bits | state.always)

    def set(self, bits: int) -> None:
        """Set more bits."""
        self._lib.pyvmm_isr_set(self._state, self._number, bits)

    def always_set(self, bits: int) -> None:
        """Let each read have these bits, whatever is cleared; while no vCPU runs."""
        self._state.isr[self._number].always = bits

    def serve_doorbell(self, queue: int, serve: Any, device: Any) -> None:
        """Let C serve a queue's doorbell: with ``device``, a function in C; while no vCPU runs."""
        self._lib.pyvmm_set_doorbell(self._state, self._number, queue, serve, device)

    def leave_doorbell(self) -> None:
        """Let Python serve the doorbell again; while no vCPU runs."""
        null = native().ffi.NULL
        self._lib.pyvmm_set_doorbell(self._state, self._number, 0, null, null)

    @property
    def address(self) -> int:
        """The address of the bits in this process, for a data path in C."""
        ffi = native().ffi
        return int(ffi.cast("uintptr_t", ffi.addressof(self._state.isr[self._number], "bits")))

    def clear(self, bits: int) -> None:
        """Clear bits."""
        self._lib.pyvmm_isr_clear(self._state, self._number, bits & 0xFFFF_FFFF)


class ClockRegisters:
    """The state of a PL031 that C uses; see struct pyvmm_rtc."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def publish(self, offset: int, alarm_at: int, registers: Sequence[int]) -> None:
        """Replace the state. Times are seconds; ``registers`` are those from DR to ICR."""
        for number, value in enumerate(registers):
            self._state.registers[number] = value
        self._state.offset = offset
        self._state.alarm_at = alarm_at


class FastMmio:
    """The completion of a VM's MMIO exits in C. It must not be used after the vCPUs are closed.

    ``claimed`` are the regions of devices, each as its first address and its end. C completes
    accesses outside them all, if ``complete_unclaimed``: a read returns 0, a write does nothing.
    ``uarts`` are the addresses of 16550As, at most 4 (0: no UART of that number). ``isrs`` are the
    addresses of virtio devices' InterruptStatus registers. ``rtc`` is the address of a PL031, 0 for
    none.
    """

    def __init__(
        self,
        vcpus: Sequence[Vcpu],
        claimed: Iterable[tuple[int, int]],
        uarts: Sequence[int],
        isrs: Sequence[int] = (),
        rtc: int = 0,
        *,
        complete_unclaimed: bool = True,
    ) -> None:
        extension = native()
        self._ffi, self._lib = extension.ffi, extension.lib
        self._state = self._ffi.new("struct pyvmm_fast_mmio *")
        self._lib.pyvmm_fast_mmio_init(self._state)
        regions = list(claimed)
        if (
            len(regions) > self._lib.PYVMM_REGIONS
            or len(uarts) > self._lib.PYVMM_UARTS
            or len(isrs) > self._lib.PYVMM_ISRS
        ):
            counts = f"{len(regions)} regions, {len(uarts)} UARTs, {len(isrs)} virtio devices"
            raise ValueError(f"{counts}: too many")
        for number, (base, end) in enumerate(regions):
            self._state.region[number].base, self._state.region[number].end = base, end
        self._state.regions = len(regions)
        self._state.complete_unclaimed = int(complete_unclaimed)
        for number, base in enumerate(uarts):
            self._state.uart[number].base = base
            self._state.uart[number].exits_left = UNLIMITED
        for number, address in enumerate(isrs):
            self._state.isr[number].address = address
        self._state.isrs = len(isrs)
        self._state.rtc.base = rtc  # with an alarm_at of 0, Python handles each access
        for vcpu in vcpus:
            vcpu.use_fast_mmio(self._state)

    def uart(self, number: int) -> Any:
        """Return a UART's published registers: see struct pyvmm_uart.

        Byte n of ``registers`` is the value of register n. Bit n of byte 0 is set if a read of it
        has no side effect. With bit 1 set, a write of IER's own value has no side effect either.
        ``complete_thr`` is set if a write of THR only transmits. After C has completed
        ``exits_left`` exits, it sets Vcpu.attention.
        """
        return self._state.uart[number]

    def set_line(self, number: int, vm_fd: int, irq: int, exits_first: int) -> None:
        """Name a UART's interrupt, before it is lent. ``irq`` is a number from spi().

        When C disables THRI, it sets ``exits_left`` to ``exits_first``.
        """
        uart = self._state.uart[number]
        uart.vm, uart.irq, uart.exits_first = vm_fd, irq, exits_first

    def lend(self, number: int, *, thr_emptied: bool, raised: bool) -> None:
        """Let C own the UART's IER and the transmitter's interrupt, until it is retaken.

        No other interrupt may become pending, and a write of THR must only transmit.
        """
        self._lib.pyvmm_lend_uart(self._state, number, thr_emptied, raised)

    def retake(self, number: int) -> tuple[int, bool, bool] | None:
        """Take back what was lent: IER, THRI's condition and the line; None: it was not lent."""
        state = int(self._lib.pyvmm_retake_uart(self._state, number))
        return None if state < 0 else (state & 0xFF, bool(state >> 8 & 1), bool(state >> 9 & 1))

    def interrupt_bits(self, number: int) -> InterruptBits:
        """Return the interrupt status of that virtio device."""
        return InterruptBits(self._lib, self._state, number)

    def clock(self) -> ClockRegisters:
        """Return the PL031's state for C, to which the device publishes."""
        return ClockRegisters(self._state.rtc)

    def has_tx(self, number: int) -> bool:
        """Return whether bytes of this UART, or any in the coalesced ring, are pending."""
        return bool(self._lib.pyvmm_has_tx(self._state, number))

    def take_tx(self, number: int) -> bytes:
        """Take the bytes that the UART has transmitted without Python, oldest first.

        One call takes everything, unless another UART's bytes block the coalesced ring.
        """
        size = self._lib.PYVMM_TX_SIZE
        buffer = bytearray(size)
        taken = self._lib.pyvmm_take_tx(self._state, number, self._ffi.from_buffer(buffer), size)
        return bytes(buffer[:taken])

    def wait_tx(self, number: int, stop_fd: int, min_ms: int, max_ms: int) -> bool:
        """Wait for transmitted bytes; return False once ``stop_fd`` is readable.

        KVM does not signal a coalesced write. So this polls, after ``min_ms`` at first, then less
        often, at least every ``max_ms``.
        """
        return bool(self._lib.pyvmm_wait_tx(self._state, number, stop_fd, min_ms, max_ms))
