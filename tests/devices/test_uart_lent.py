"""The transmitter's interrupt in C against its specification, the UART in Python.

Two guests do the same: one has a UART alone, the other has C and the same UART behind it. All that
they read, their output, and the interrupt line after each step must be equal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.uart8250 import Uart8250
from pyvmm.kvm.fastmmio import NONE_LEFT, FastMmio
from pyvmm.kvm.vm import Vm
from pyvmm.layout import UART
from pyvmm.machine.fastpath import FastUart
from tests.devices.builtc import CHECKS
from tests.devices.plainmmio import PlainFastMmio
from tests.devices.uart import FCR, IER, IIR, LCR, LSR, MCR, MSR, NO_INT, RBR, RDI, THR, THRI

CASES: Final = int(os.environ.get("PYVMM_UART_CASES", "200"))
CHECKED: Final = "PYVMM_UART_CHECKED"  # set: build the C code with sanitizers
IRQ: Final = 32
RDI_AND_THRI: Final = 0x03
FIFO: Final = 16
RX_CHARS: Final = 256  # in serial8250_rx_chars(); with DLAB set, RBR is not read and LSR stays


class Guest:
    """A guest of a UART without a fast path."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.line = False
        self.in_python = 0  # accesses
        self.uart = Uart8250(self._set_line, self.output.extend)

    def _set_line(self, level: bool) -> None:
        self.line = level

    def level(self) -> bool:
        return self.line

    def read(self, offset: int, width: int = 1) -> int:
        self.in_python += 1
        return self.uart.mmio_read(offset, width)

    def write(self, offset: int, value: int, width: int = 1) -> None:
        self.in_python += 1
        self.uart.mmio_write(offset, width, value)

    def flush(self) -> None:
        """Do nothing: no bytes wait."""


class PlainVm:
    """KVM's part: whether it coalesces writes of THR."""

    fd = -1

    def __init__(self) -> None:
        self.coalesces = False

    def register_coalesced_mmio(self, _: int, __: int) -> None:
        self.coalesces = True

    def unregister_coalesced_mmio(self, _: int, __: int) -> None:
        self.coalesces = False


class FastGuest(Guest):
    """A guest whose accesses C completes, if it can."""

    def __init__(self) -> None:
        super().__init__()
        options = CHECKS if os.environ.get(CHECKED) else ()
        self.c = PlainFastMmio(UART.base, *options)
        self.c.lib.plain_set_level(IRQ, 0)
        self.vm = PlainVm()
        self.fast = FastUart(
            cast("Vm", self.vm), cast("FastMmio", self.c), 0, self.uart, slot=-1, line=IRQ
        )
        self.uart.use_fast_path(self.fast)

    def close(self) -> None:
        self.fast.close()
        self.c.close()

    def _set_line(self, level: bool) -> None:
        self.c.lib.plain_set_level(IRQ, level)

    def level(self) -> bool:
        return bool(self.c.lib.plain_level(IRQ))

    def read(self, offset: int, width: int = 1) -> int:
        value = self.c.read(offset, width)
        if value is None:
            self._attend()
            value = super().read(offset, width)
        return value

    def write(self, offset: int, value: int, width: int = 1) -> None:
        if self.vm.coalesces and (offset, width) == (THR, 1) and self.c.coalesce(value & 0xFF):
            return
        if not self.c.write(offset, width, value):
            self._attend()
            super().write(offset, value, width)

    def _attend(self) -> None:
        """Do as FastPaths.attend before an access in Python."""
        if self.c.has_tx(0) or self.c.uart(0).exits_left == NONE_LEFT:
            self.flush()
            self.fast.speed_up()

    def flush(self) -> None:
        self.uart.collect()
        self.uart.send_out()


@contextmanager
def both() -> Iterator[tuple[Guest, FastGuest]]:
    fast = FastGuest()
    try:
        yield Guest(), fast
    finally:
        fast.close()


@pytest.fixture
def guest() -> Iterator[FastGuest]:
    with both() as (_, fast):
        yield fast


Step = Callable[[Guest], Any]


def interrupt(guest: Guest, text: bytes, fifo: int = FIFO) -> list[int]:
    """Handle an interrupt as Linux's driver does: serial8250_handle_irq(); return what it reads."""
    found = []
    left = list(text)
    for _ in range(64):
        iir = guest.read(IIR)
        found.append(iir)
        if iir & NO_INT:
            break
        found += [status := guest.read(LSR), guest.read(MSR)]
        for _ in range(RX_CHARS):
            if not status & 1:
                break
            found += [guest.read(RBR), status := guest.read(LSR)]
        for byte in left[:fifo]:
            guest.write(THR, byte)
        left = left[fifo:]
        if not left:
            guest.write(IER, guest.read(IER) & ~0x02)
    return found


def send(guest: Guest, text: bytes, ier: int = RDI_AND_THRI) -> list[int]:
    """Send a text as Linux's tty does: serial8250_start_tx(), then interrupts."""
    guest.write(IER, ier)
    return interrupt(guest, text) if guest.level() else []


def print_polled(guest: Guest, text: bytes) -> list[int]:
    """Print a text as Linux's console does: serial8250_console_write()."""
    ier = guest.read(IER)
    guest.write(IER, 0)
    found = [ier]
    for byte in text:
        found.append(guest.read(LSR))
        guest.write(THR, byte)
    guest.write(IER, ier)
    return found


def calm(guest: Guest) -> list[int]:
    """Bring the UART to a state in which only the transmitter can interrupt."""
    guest.write(LCR, 3)
    guest.write(MCR, 8)
    found = [guest.read(offset) for _ in range(40) for offset in (LSR, RBR)]
    return [*found, guest.read(MSR)]


widths = st.sampled_from([1, 1, 1, 1, 2, 4, 8])
telling = st.sampled_from([0x00, 0x01, 0x02, 0x03, 0x07, 0x0F, 0x10, 0x1B, 0x80, 0x83, 0xC1])
reads = st.builds(lambda o, w: lambda guest: guest.read(o, w), st.integers(0, 9), widths)
writes = st.builds(
    lambda o, v, w: lambda guest: guest.write(o, v, w),
    st.integers(0, 8), telling | st.integers(0, 255), widths,
)  # fmt: skip
toggles = st.builds(lambda v: lambda guest: guest.write(IER, v), st.integers(0, 15))
looks = st.builds(lambda: lambda guest: guest.read(IIR))
bytes_out = st.builds(lambda v: lambda guest: guest.write(THR, v), st.integers(0, 255))
texts = st.binary(max_size=40)
sends = st.builds(lambda t, e: lambda guest: send(guest, t, e), texts, telling)
prints = st.builds(lambda text: lambda guest: print_polled(guest, text), texts)
inputs = st.builds(lambda data: lambda guest: guest.uart.receive(data), st.binary(max_size=20))
breaks = st.just(lambda guest: guest.uart.receive_break())
flushes = st.just(lambda guest: guest.flush())
steps = st.lists(
    st.one_of(
        toggles, toggles, looks, looks, bytes_out, bytes_out, sends, sends, prints, reads, writes,
        st.just(calm), st.just(calm), inputs, breaks, flushes,
    ),
    max_size=30,
)  # fmt: skip


@pytest.mark.timeout(3 * CASES)  # each case has a thread; the machine may be busy
@settings(max_examples=CASES, deadline=None)
@given(steps)
def test_guest_and_user_see_the_same_with_the_interrupt_in_c(script: list[Step]) -> None:
    with both() as (plain, fast):
        for step in (lambda guest: guest.write(THR, 1), calm, *script):
            assert step(fast) == step(plain)
            assert fast.level() == plain.level()
        fast.flush()

        assert fast.output == plain.output
        assert fast.uart.values == plain.uart.values


def test_line_of_a_program_needs_no_python(guest: FastGuest) -> None:
    guest.write(FCR, 0x01)
    guest.write(THR, ord("."))  # the first byte starts the thread that outputs
    guest.write(IER, 0x01)
    guest.in_python = 0

    for _ in range(20):
        send(guest, b"x" * 65)

    assert guest.in_python == 0
    guest.flush()
    assert guest.output == b"." + b"x" * 65 * 20


def test_input_ends_the_loan_and_interrupts(guest: FastGuest) -> None:
    guest.write(THR, ord("."))
    guest.write(IER, 0x01)
    guest.write(IER, RDI_AND_THRI)
    assert guest.read(IIR) == THRI
    assert not guest.level()

    guest.uart.receive(b"a")

    assert guest.level()
    assert guest.read(IIR) == RDI
    assert guest.read(RBR) == ord("a")
    guest.write(THR, ord("b"))
    assert guest.read(IIR) == THRI


def test_state_is_current_after_a_flush(guest: FastGuest) -> None:
    guest.write(THR, ord("."))
    guest.write(IER, RDI_AND_THRI)
    guest.in_python = 0
    guest.write(IER, 0x01)
    guest.write(IER, RDI_AND_THRI)
    assert guest.in_python == 0

    guest.flush()

    assert guest.uart.state()["registers"]["IER"] == RDI_AND_THRI
    assert guest.uart.thr_emptied
    assert guest.uart.is_raised


def test_byte_sent_while_the_loan_ends_interrupts(
    guest: FastGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.write(THR, ord("."))
    guest.write(IER, RDI_AND_THRI)
    assert guest.read(IIR) == THRI
    assert not guest.level()
    retake = guest.c.retake

    def retake_beside_a_vcpu(number: int) -> tuple[int, bool, bool] | None:
        monkeypatch.undo()
        state = retake(number)
        completed.append(guest.c.write(THR, 1, ord("x")))
        return state

    completed: list[bool] = []
    monkeypatch.setattr(guest.c, "retake", retake_beside_a_vcpu)
    guest.flush()  # as the thread that outputs does every few milliseconds
    if completed == [False]:
        Guest.write(guest, THR, ord("x"))

    assert guest.level()
    guest.flush()
    assert guest.output == b".x"


def test_byte_sent_while_iir_is_published_interrupts(
    guest: FastGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.write(THR, ord("."))
    guest.uart.receive(b"a")  # while it waits, Python owns the transmitter's interrupt
    guest.write(IER, 0x02)
    state = guest.c.uart(0)

    class BesideAVcpu:
        """The UART's state in C, with a vCPU that sends a byte once IIR shows no interrupt."""

        def __setattr__(self, name: str, value: int) -> None:
            setattr(state, name, value)
            if name == "registers" and guest.c.read(IIR, 1) == NO_INT:
                monkeypatch.undo()
                completed.append(guest.c.write(THR, 1, ord("x")))

    completed: list[bool] = []
    monkeypatch.setattr(guest.fast, "_state", BesideAVcpu())
    assert guest.read(IIR) == THRI
    if completed == [False]:
        Guest.write(guest, THR, ord("x"))

    assert len(completed) == 1
    assert guest.level()
    guest.flush()
    assert guest.output == b".x"


def test_loan_ends_before_kvm_coalesces(guest: FastGuest) -> None:
    guest.write(THR, ord("."))
    guest.write(IER, 0x01)
    guest.c.uart(0).exits_left = NONE_LEFT

    guest.fast.speed_up()
    guest.write(IER, RDI_AND_THRI)  # by another vCPU, before the first one's access
    assert guest.read(IIR) == THRI
    guest.write(THR, ord("x"))

    assert not guest.vm.coalesces
    assert guest.level()


def test_loan_that_enabled_thri_keeps_kvm_from_coalescing(guest: FastGuest) -> None:
    guest.write(THR, ord("."))
    guest.write(IER, RDI_AND_THRI)
    guest.c.uart(0).exits_left = NONE_LEFT  # read before another vCPU's write of IER

    guest.fast.speed_up()

    assert not guest.vm.coalesces


def test_polled_output_gets_coalesced_again_after_a_program_has_sent(guest: FastGuest) -> None:
    guest.write(THR, ord("."))
    send(guest, b"x" * 65)
    guest.write(IER, 0)

    for _ in range(60):
        guest.read(LSR)
        guest.write(THR, ord("y"))

    assert guest.vm.coalesces
