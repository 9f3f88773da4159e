"""A 16550A serial port, for Linux's 8250 driver and earlycon.

Source: Texas Instruments PC16550D data sheet (SNLS378C), section 8; Linux's autoconfig(), in
drivers/tty/serial/8250/8250_port.c.

The line is infinitely fast. A transmitted byte leaves at once, so THRE and TEMT are always set.
Four character times without a new character have always passed. Word length, parity and divisor
have no effect: every character has 8 bits.

No input is lost: the line has flow control, and a character leaves it when the guest reads RBR.

- A reset of the FIFO by FCR empties what the guest sees, as in the data sheet. From then on input
  waits: LSR.DR and RBR stay 0 until the guest enables the receive interrupt, or polls.
- The reason is Linux's driver, which drops the values of some reads. serial8250_do_startup() resets
  the FIFO, reads LSR and RBR twice to clear them, and then enables the interrupt. autoconfig() and
  the shutdown end with a reset and a read of RBR.
- A guest polls if it has read LSR or RBR HOLD_READS times since the reset. A console reads LSR once
  for each byte that it sends. So a read of LSR counts POLL_READS times if the guest has sent
  nothing since the previous read.
- Without a reset nothing waits: a guest that only polls gets its input at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pyvmm.devices.device import Device, Irq, Reg
from pyvmm.devices.pc16550d import (
    CHARACTER,
    CLOCK_HZ,
    FCR_CLEAR_RCVR,
    FCR_ENABLE_FIFO,
    FCR_TRIGGER,
    FIFO_DEPTH,
    IER_BITS,
    IER_MSI,
    IER_RDI,
    IER_RLSI,
    IER_THRI,
    IIR_FIFO_ENABLED,
    IIR_MSI,
    IIR_NO_INT,
    IIR_RDI,
    IIR_RLSI,
    IIR_RX_TIMEOUT,
    IIR_THRI,
    LCR_DLAB,
    LCR_SBC,
    LOOPED,
    LSR_BI,
    LSR_DR,
    LSR_FIFO_ERROR,
    LSR_IDLE,
    LSR_OE,
    LSR_OF_CHARACTER,
    MCR_LOOP,
    MSR_CONNECTED,
    MSR_DELTA,
    MSR_RI,
)
from pyvmm.devices.state import StateField
from pyvmm.devices.uartfastpath import FastPath

# Input that waits after a reset of the FIFO
HOLD_READS = 256  # reads of LSR and RBR: more than the lines a kernel prints during the startup
POLL_READS = 32  # the weight of a read of LSR by a guest that polls

MUCH = 4096  # bytes sent but not output; with this many, vCPUs wait


class Uart8250(Device):
    """One port: ``output`` gets the guest's output, `receive` takes its input.

    The port calls ``irq`` at every change of the interrupt line. ``output`` may block: then the
    transmitting vCPU waits, but input continues. After `receive` has left bytes with its caller,
    the port calls ``on_room``, if set, once there is room.

    Up to 32 bytes of host input wait in ``fifo`` and on the ``line`` until the guest reads them.

    A wide read reads each register in turn; a wide write writes its first register only. With a
    ``fast_path`` many accesses never reach this class. The fast path's owner calls `collect` and
    `send_out` for its bytes. While only the transmitter can interrupt, the fast path owns that
    interrupt: each method that uses the state takes it back first.
    """

    register_size = 1

    node_name = "serial"
    compatible = ("ns16550a",)
    properties: ClassVar = {"clock-frequency": CLOCK_HZ}

    RBR = Reg(0, "received character", ro=True)
    THR = Reg(0, "character to transmit", wo=True)
    IER = Reg(1, "interrupts enabled: 0 received data, 1 THR empty, 2 line status, 3 modem status")
    IIR = Reg(2, "bits 3:0 the interrupt pending, 7:6 FIFOs enabled", ro=True, reset=IIR_NO_INT)
    FCR = Reg(2, "0 FIFOs enabled, 1 clear the receiver's, 7:6 trigger level", wo=True)
    LCR = Reg(3, "line control: 6 break, 7 offsets 0 and 1 are the divisor latch")
    MCR = Reg(4, "modem control: 0 DTR, 1 RTS, 2 OUT1, 3 OUT2, 4 loop-back")
    LSR = Reg(5, "line status", ro=True, reset=LSR_IDLE)
    MSR = Reg(6, "modem status: 7:4 DCD RI DSR CTS, 3:0 changed", ro=True, reset=MSR_CONNECTED)
    SCR = Reg(7, "scratch")
    # Not 0: Linux's earlycon divides by the divisor.
    DLL = Reg(0, "divisor latch, low byte", bank=1, reset=1)
    DLM = Reg(1, "divisor latch, high byte", bank=1)

    state_fields: ClassVar = (
        StateField("fifo", 0, CHARACTER, room=FIFO_DEPTH),
        StateField("line", 0, CHARACTER, room=FIFO_DEPTH),
        StateField("looped", 0, CHARACTER, room=FIFO_DEPTH, optional=True),
        StateField("hold", 0, HOLD_READS, optional=True),
        StateField("thr_emptied", 0, 1),
        StateField("_raised", 0, 1),
    )

    def __init__(self, irq: Irq, output: Callable[[bytes], None]) -> None:
        super().__init__()
        self.irq = irq
        self.output = output
        self.on_room: Callable[[], None] | None = None
        # A character is its byte, and its LSR bits above that.
        self.fifo: deque[int] = deque()  # the host's input; LSR.DR shows it, unless it waits
        self.line: deque[int] = deque()  # not yet in the FIFO
        self.looped: deque[int] = deque()  # sent in loop-back; the guest reads these first
        self.hold = 0  # reads of LSR and RBR until the input no longer waits
        self._has_polled = False  # the last counted read was of LSR, and nothing was sent since
        self.thr_emptied = False  # the THRI interrupt's condition: an event, not THRE itself
        self._raised = False
        self._starved = False  # receive() left bytes with its caller
        self._room_due = False  # on_room must be called
        self._sent = bytearray()  # by the guest, not yet output
        self.has_transmitted = False
        self.fast_path: FastPath | None = None
        self._output_lock = threading.Lock()  # held from taking _sent to its output: keeps order

    def mmio_read(self, offset: int, length: int) -> int:
        """Return a guest's read, which may make room for input."""
        value = 0
        with self.lock:
            lent = self._retake()
            for number in range(length):
                if (reader := self._readers.get(offset + number)) is not None:
                    value |= (reader(self) & 0xFF) << 8 * number
            if lent:
                self._publish()
                self._lend()
        if self._room_due:
            self._tell_room()
        return value

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        """Handle a guest's write; output its bytes before this returns."""
        with self.lock:
            lent = self._retake()
            if (writer := self._writers.get(offset)) is not None:
                writer(self, value & 0xFF)
            if lent:
                self._publish()
                self._lend()
        if self._sent:
            self.send_out()
        if self._room_due:
            self._tell_room()

    def use_fast_path(self, fast_path: FastPath | None) -> None:
        """Use that fast path from now on, or none."""
        with self.lock:
            self._retake()
            self.fast_path = fast_path
            self._publish()
            self._lend()

    def collect(self) -> None:
        """Take the bytes and the state from the fast path; `send_out` outputs the bytes."""
        with self.lock:
            lent = self._retake()
            self._collect()
            if lent:
                self._publish()
                self._lend()

    def receive(self, data: bytes) -> int:
        """Put host input on the line; return the number of bytes taken."""
        taken = 0
        with self.lock:
            self._retake()
            self._starved = False
            while taken < len(data) and (room := FIFO_DEPTH - len(self.line)) > 0:
                part = data[taken : taken + room]
                self.line.extend(part)
                taken += len(part)
                self._update()
            self._starved = taken < len(data)
            self._lend()
        return taken

    def receive_break(self) -> bool:
        """Put a break on the line; return False if there is no room."""
        with self.lock:
            self._retake()
            room = len(self.line) < FIFO_DEPTH
            if room:
                self.line.append(LSR_BI << 8)
                self._update()
        return room

    @property
    def unread(self) -> bytes:
        """The input that the guest has not read, without breaks."""
        with self.lock:
            return bytes(byte for byte in (*self.fifo, *self.line) if byte <= 0xFF)

    @property
    def is_raised(self) -> bool:
        """Whether the interrupt line is raised."""
        return self._raised

    def restored(self) -> None:
        """Select the saved register bank, and publish to the fast path."""
        self.select_bank(1 if self.LCR & LCR_DLAB else 0)
        self._arrive()
        self._publish()

    @RBR.read
    def _(self) -> int:
        if self.hold and self.fifo:
            self._count_read(is_status=False)
        if not (shown := self._shown()):
            return 0
        character = shown.popleft()
        self._update()
        return character & 0xFF

    @THR.write
    def _(self, value: int) -> None:
        if self.MCR & MCR_LOOP:
            self._loop_back(value)
        else:
            self._sent.append(value)
            self.has_transmitted = True
        self._has_polled = False
        self.thr_emptied = True
        self._update()

    @IER.write
    def _(self, value: int) -> None:
        if value & ~self.IER & IER_THRI:
            self.thr_emptied = True  # enabling it while THR is empty interrupts at once
        self.IER = value & IER_BITS
        if value & IER_RDI:
            self.hold = 0
        self._update()

    @IIR.read
    def _(self) -> int:
        pending = self._pending()
        if pending == IIR_THRI:
            self.thr_emptied = False
            self._update()
        return pending | (IIR_FIFO_ENABLED if self.FCR & FCR_ENABLE_FIFO else 0)

    @FCR.write
    def _(self, value: int) -> None:
        # Without bit 0 the write leaves the other bits unprogrammed.
        new = value & 0xC9 if value & FCR_ENABLE_FIFO else 0
        switched = (new ^ self.FCR) & FCR_ENABLE_FIFO
        if switched or (new and value & FCR_CLEAR_RCVR):
            self.looped.clear()
            self.LSR &= ~LSR_OF_CHARACTER
            self.hold = 0 if self.IER & IER_RDI else HOLD_READS
            self._has_polled = False
        self.FCR = new
        self._update()

    @LCR.write
    def _(self, value: int) -> None:
        if value & ~self.LCR & LCR_SBC and self.MCR & MCR_LOOP:
            self._loop_back(LSR_BI << 8)
        self.LCR = value
        self.select_bank(1 if value & LCR_DLAB else 0)
        self._update()

    @MCR.write
    def _(self, value: int) -> None:
        self.MCR = value & 0x1F
        inputs = MSR_CONNECTED
        if value & MCR_LOOP:
            inputs = sum(seen for driven, seen in LOOPED if value & driven)
        changed = (self.MSR ^ inputs) & 0xF0
        if inputs & MSR_RI:
            changed &= ~MSR_RI  # only the end of a ring counts as a change
        self.MSR = inputs | changed >> 4 | self.MSR & MSR_DELTA
        self._update()

    @LSR.read
    def _(self) -> int:
        if self.hold and self.fifo:
            self._count_read(is_status=True)
        status = self.LSR
        if (self.fifo or self.looped) and (shown := self._shown()):
            errors = any(character > 0xFF for character in shown)
            status |= LSR_DR | shown[0] >> 8
            shown[0] &= 0xFF
            if errors and self.FCR & FCR_ENABLE_FIFO:
                status |= LSR_FIFO_ERROR
        self.LSR = LSR_IDLE  # reading clears the errors
        if status & ~(LSR_IDLE | LSR_DR):
            self._update()
        return status

    @MSR.read
    def _(self) -> int:
        status = self.MSR
        self.MSR = status & ~MSR_DELTA
        self._update()
        return status

    @SCR.write
    def _(self, value: int) -> None:
        self.SCR = value
        self._update()

    def _depth(self) -> int:
        return FIFO_DEPTH if self.FCR & FCR_ENABLE_FIFO else 1

    def _shown(self) -> deque[int]:
        """Return the characters that the guest can read; loop-back disconnects the line."""
        waits = self.hold or self.MCR & MCR_LOOP
        return self.looped if self.looped or waits else self.fifo

    def _count_read(self, *, is_status: bool) -> None:
        """Count a read of LSR or RBR while input waits; enough reads end the wait."""
        self._collect()
        reads = POLL_READS if is_status and self._has_polled else 1
        self._has_polled = is_status
        self.hold = max(0, self.hold - reads)
        if not self.hold:
            self._update()

    def _arrive(self) -> None:
        """Move characters from the line to the FIFO."""
        while self.line and len(self.fifo) < FIFO_DEPTH:
            self.fifo.append(self.line.popleft())
        if self._starved and not self.line:  # a wake-up for each character would be slow
            self._starved, self._room_due = False, True

    def _loop_back(self, character: int) -> None:
        """Put a transmitted character into the receiver."""
        if len(self.looped) >= self._depth():
            self.LSR |= LSR_OE
            if self.FCR & FCR_ENABLE_FIFO:
                return  # the character in the shift register is lost
            self.looped.clear()  # without FIFOs, an overrun loses the unread character
        self.looped.append(character)

    def _pending(self) -> int:
        """Return the pending interrupt of highest priority, as IIR shows it."""
        enabled = self.IER
        shown = self._shown()
        status = self.LSR | shown[0] >> 8 if shown else self.LSR
        if enabled & IER_RLSI and status & (LSR_OE | LSR_OF_CHARACTER):
            return IIR_RLSI
        if enabled & IER_RDI and shown:
            at_trigger = len(shown) >= FCR_TRIGGER[self.FCR >> 6]
            return IIR_RDI if at_trigger or not self.FCR & FCR_ENABLE_FIFO else IIR_RX_TIMEOUT
        if enabled & IER_THRI and self.thr_emptied:
            return IIR_THRI
        if enabled & IER_MSI and self.MSR & MSR_DELTA:
            return IIR_MSI
        return IIR_NO_INT

    def _update(self) -> None:
        """Update the fast path, and then the interrupt line."""
        if self.line or self._starved:
            self._arrive()
        self._publish()
        raised = self.IER != 0 and self._pending() != IIR_NO_INT
        if raised != self._raised:
            self._raised = raised
            self.irq(raised)
        self._lend()

    def _publish(self) -> None:
        """Publish to the fast path, if there is one, the accesses that it may complete."""
        if self.fast_path is None:
            return
        diverted = self.MCR & MCR_LOOP or self.LCR & LCR_DLAB  # writes at THR's offset
        coalesce = not diverted and not self.IER & IER_THRI
        # While THRI is pending, an empty THR raises no other interrupt.
        complete = coalesce or (not diverted and self.thr_emptied)
        registers = self._readable()
        if self.fast_path.publish(registers, complete_thr=complete, coalesce_thr=coalesce):
            self._collect()

    def _readable(self) -> int:
        """Return the registers in bytes 1 to 7; byte 0 has a bit for each without read effects."""
        pending = self._pending()
        free = 1 << 3 | 1 << 4 | 1 << 7  # LCR, MCR, SCR
        shown = self._shown()
        if not (self.hold and self.fifo):  # otherwise reads of LSR and RBR count
            if self.LSR == LSR_IDLE and (not shown or max(shown) <= 0xFF):
                free |= 1 << 5
            if not shown and not self.LCR & LCR_DLAB:
                free |= 1 << 0
        if not self.LCR & LCR_DLAB:
            free |= 1 << 1
        if pending != IIR_THRI:
            free |= 1 << 2
        if not self.MSR & MSR_DELTA:
            free |= 1 << 6
        iir = pending | (IIR_FIFO_ENABLED if self.FCR & FCR_ENABLE_FIFO else 0)
        status = LSR_IDLE | LSR_DR if shown else LSR_IDLE
        values = (free, self.IER, iir, self.LCR, self.MCR, status, self.MSR, self.SCR)
        return int.from_bytes(values, "little")

    def _lend(self) -> None:
        """Lend the transmitter's interrupt, if the guest's accesses can cause no other one."""
        if self.fast_path is None or self._shown() or self.hold or self.line or self.fifo:
            return
        if self.MCR & MCR_LOOP or self.LCR & LCR_DLAB or self.MSR & MSR_DELTA:
            return
        if self.LSR == LSR_IDLE:
            self.fast_path.lend(thr_emptied=self.thr_emptied, raised=self._raised)

    def end_loan(self) -> None:
        """Take back what is lent, if it is, and publish it; with the lock."""
        if self._retake():
            self._publish()

    def _retake(self) -> bool:
        """Take back what is lent; return whether it was."""
        if self.fast_path is None or (state := self.fast_path.retake()) is None:
            return False
        self.IER, self.thr_emptied, self._raised = state
        return True

    def _collect(self) -> None:
        """Take the bytes from the fast path; with the lock."""
        if self.fast_path is not None and (data := self.fast_path.sent()):
            self._sent += data
            self._has_polled = False
            if not self.IER & IER_THRI:  # else it is set: `complete_thr` requires that
                self.thr_emptied = True

    def send_out(self) -> None:
        """Output the guest's bytes, without blocking input."""
        with self._output_lock:
            self._send_out()

    def send_out_unless_busy(self) -> None:
        """Output the guest's bytes, unless another thread does so and few bytes wait."""
        while self._sent:
            if not self._output_lock.acquire(blocking=len(self._sent) >= MUCH):
                return
            try:
                self._send_out()
            finally:
                self._output_lock.release()

    def _send_out(self) -> None:
        with self.lock:
            data, self._sent = bytes(self._sent), bytearray()
        if data:
            self.output(data)

    def _tell_room(self) -> None:
        """Call on_room once, without the lock: it may call receive."""
        with self.lock:
            due, self._room_due = self._room_due, False
        if due and self.on_room is not None:
            self.on_room()
