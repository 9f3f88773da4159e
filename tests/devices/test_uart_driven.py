"""The 16550A under Linux's driver, and under random accesses."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.pc16550d import FIFO_DEPTH
from tests.devices.uart import (
    DLL,
    DLM,
    EFR,
    FCR,
    IER,
    IIR,
    LCR,
    LSR,
    MCR,
    MSR,
    NO_INT,
    RBR,
    SCR,
    THR,
    Port,
)

# Linux


def test_linux_autoconfig_finds_a_16550a(port: Port) -> None:
    autoconfig(port)

    assert port.sent == b""


@given(st.binary(min_size=1, max_size=32), st.binary(max_size=40))
def test_linux_driver_loses_no_input_sent_earlier(early: bytes, printed: bytes) -> None:
    """Print by earlycon, probe, print by the console, and open, hang up and open the port."""
    port = Port()
    port.uart.receive(early)
    console(port, printed)

    autoconfig(port)
    console(port, printed)
    startup(port)
    got = port.interrupt()
    port.uart.receive(b"later")
    shutdown(port)
    startup(port)

    assert got + port.interrupt() == early + b"later"
    assert port.sent == 2 * printed


def console(port: Port, printed: bytes) -> None:
    """Print as serial8250_console_write() does."""
    ier = port.read(IER)
    port.write(IER, 0x00)
    for byte in printed:
        port.read(LSR)
        port.write(THR, byte)
    port.read(LSR)
    port.write(IER, ier)


def clear_fifos(port: Port) -> None:
    for fcr in (0x01, 0x07, 0x00):
        port.write(FCR, fcr)


def startup(port: Port) -> None:
    """Do what serial8250_do_startup() and serial8250_do_set_termios() do."""
    clear_fifos(port)
    for offset in (LSR, RBR, IIR, MSR, LSR):
        port.read(offset)
    port.write(LCR, 0x03)
    port.write(MCR, 0x08)
    find_transmitter_bugs(port)
    for offset in (LSR, RBR, IIR, MSR):
        port.read(offset)
    port.write(IER, 0x05)
    port.write(LCR, 0x83)
    port.write(DLL, 0x01)
    port.write(DLM, 0x00)
    port.write(LCR, 0x03)
    port.write(FCR, 0x01)
    port.write(FCR, 0x81)
    port.write(MCR, 0x0B)


def shutdown(port: Port) -> None:
    """Do what serial8250_do_shutdown() does."""
    port.write(IER, 0x00)
    port.write(MCR, 0x08)
    port.write(LCR, port.read(LCR) & ~0x40)
    clear_fifos(port)
    port.read(RBR)


def autoconfig(port: Port) -> None:
    """Run the probes of autoconfig() and autoconfig_16550a() in order."""
    port.write(IER, 0x00)
    assert port.read(IER) & 0x0F == 0x00
    port.write(IER, 0x0F)
    assert port.read(IER) & 0x0F == 0x0F, "there is a UART"
    port.write(IER, 0x00)

    port.write(MCR, 0x10 | 0x0A)
    assert port.read(MSR) & 0xF0 == 0x90, "it loops back"
    port.write(MCR, 0x00)

    port.write(LCR, 0xBF)
    port.write(EFR, 0x00)
    port.write(LCR, 0x00)
    port.write(FCR, 0x01)
    assert port.read(IIR) >> 6 == 3, "it has working FIFOs"

    for lcr in (0x80, 0xBF):
        port.write(LCR, lcr)
        assert port.read(EFR) != 0, "it has no EFR"

    port.write(LCR, 0x00)
    mcr = port.read(MCR)
    port.write(LCR, 0xE0)
    assert not (port.read(EFR) ^ mcr) & 0x10
    port.write(LCR, 0x00)
    port.write(MCR, mcr ^ 0x10)
    port.write(LCR, 0xE0)
    assert not (port.read(EFR) ^ mcr) & 0x10, "it is no National Semiconductor SuperIO"
    port.write(LCR, 0x00)
    port.write(MCR, mcr)

    for lcr in (0x00, 0x80):
        port.write(LCR, lcr)
        port.write(FCR, 0x21)
        assert port.read(IIR) >> 5 == 6, "it has no 64-byte FIFO"
        port.write(FCR, 0x01)
    port.write(LCR, 0x00)

    port.write(IER, 0x40)
    assert not port.read(IER) & 0x40, "it is no XScale"
    assert size_fifo(port) == 16
    clear_fifos(port)
    port.read(RBR)
    port.write(IER, 0x00)


def size_fifo(port: Port) -> int:
    """Return how many of 256 bytes Linux receives in loop-back."""
    port.write(FCR, 0x07)
    port.write(MCR, 0x10)
    port.write(LCR, 0x80)
    port.write(DLL, 0x01)
    port.write(DLM, 0x00)
    port.write(LCR, 0x03)
    for byte in range(256):
        port.write(THR, byte)
    count = 0
    while count < 256 and port.read(LSR) & 0x01:
        port.read(RBR)
        count += 1
    port.write(FCR, 0x00)
    port.write(MCR, 0x00)
    port.write(LCR, 0x00)
    return count


def test_linux_startup_finds_no_transmitter_bugs(port: Port) -> None:
    find_transmitter_bugs(port)


def find_transmitter_bugs(port: Port) -> None:
    """Run serial8250_do_startup()'s tests for UART_BUG_THRE and UART_BUG_TXEN."""
    port.write(IER, 0x02)
    first = port.read(IIR)
    port.write(IER, 0x00)
    port.write(IER, 0x02)
    second = port.read(IIR)
    port.write(IER, 0x00)
    assert not first & NO_INT
    assert not second & NO_INT, "THRE is asserted again"

    port.write(IER, 0x02)
    lsr, iir = port.read(LSR), port.read(IIR)
    port.write(IER, 0x00)

    assert lsr & 0x40
    assert not iir & NO_INT


# Random sequences of the host's and the guest's actions

STEPS = st.lists(
    st.one_of(
        st.binary(max_size=40),  # the host offers input
        st.sampled_from([LSR, IIR, MSR, RBR]),  # the guest reads
        st.tuples(st.sampled_from([IER, SCR, THR]), st.integers(0, 255)),  # the guest writes
        st.tuples(st.just(FCR), st.sampled_from([0x00, 0x01, 0x03, 0x07, 0x81])),
        st.tuples(st.just(LCR), st.sampled_from([0x03, 0x13])),
        st.tuples(st.just(MCR), st.sampled_from([0x00, 0x0B])),
    ),
    max_size=60,
)


@given(fcr=st.sampled_from([0x00, 0x01, 0x81]), steps=STEPS)
def test_no_input_is_lost_or_reordered(
    fcr: int, steps: list[bytes | int | tuple[int, int]]
) -> None:
    port = Port()
    port.write(FCR, fcr)
    given_: bytearray = bytearray()
    got = bytearray()
    sent = bytearray()

    for step in steps:
        match step:
            case bytes(data):
                given_ += data[: port.uart.receive(data)]
            case (offset, value):
                port.write(offset, value)
                sent += bytes([value]) if offset == THR else b""
            case int(offset) if offset != RBR:
                port.read(offset)
            case _:
                got += bytes([port.read(RBR)]) if port.read(LSR) & 0x01 else b""
        raised = port.raised
        assert raised == (not port.read(IIR) & NO_INT)

    assert all(level != before for before, level in pairwise([False, *port.levels]))

    assert got + port.read_all() == given_
    assert port.sent == sent


@given(
    st.binary(max_size=400),
    st.lists(st.integers(1, 50), min_size=1),
    st.sampled_from([0x00, 0x01, 0xC1]),
)
def test_interrupt_driven_guest_gets_all_input(data: bytes, chunks: list[int], fcr: int) -> None:
    """Send more input only after on_room, and read it only after an interrupt."""
    port = Port()
    port.write(FCR, fcr)
    port.write(IER, 0x01)
    waiting = deque(data)
    got = bytearray()
    rooms = 0

    def offer() -> None:
        for _ in range(port.uart.receive(bytes(waiting))):
            waiting.popleft()

    offer()
    turn = 0
    while port.raised:
        for _ in range(chunks[turn % len(chunks)]):
            if port.read(LSR) & 0x01:
                got.append(port.read(RBR))
        turn += 1
        if port.rooms > rooms:
            rooms = port.rooms
            offer()

    assert got == data


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 255), st.booleans()), max_size=80))
def test_no_sequence_of_accesses_breaks_the_line_level(
    steps: list[tuple[int, int, bool]],
) -> None:
    port = Port()

    for offset, value, is_write in steps:
        if is_write:
            port.write(offset, value)
        else:
            assert 0 <= port.read(offset) <= 0xFF
        port.uart.receive(b"x")

    raised = port.raised
    assert raised == (not port.read(IIR) & NO_INT)
    assert len(port.uart.fifo) <= FIFO_DEPTH
    assert len(port.uart.line) <= FIFO_DEPTH
