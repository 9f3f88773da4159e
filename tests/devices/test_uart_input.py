"""Input of the 16550A: bytes and breaks from the host, and the interrupts for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm.devices.pc16550d import FIFO_DEPTH
from pyvmm.devices.uart8250 import HOLD_READS
from tests.devices.uart import FCR, IER, IIR, LSR, RBR, RDI, RLSI, THR, TIMEOUT, Port

# Receiving


def test_received_bytes_are_read_in_order(port: Port) -> None:
    port.write(FCR, 0x01)
    port.uart.receive(b"hello")

    assert port.read_all() == b"hello"
    assert port.read(LSR) == 0x60
    assert port.read(RBR) == 0


def test_received_bytes_are_read_without_fifos_too(port: Port) -> None:
    port.uart.receive(b"hello")

    assert port.read_all() == b"hello"


def test_receive_takes_up_to_the_room(port: Port) -> None:
    assert port.uart.receive(bytes(2 * FIFO_DEPTH - 1)) == 2 * FIFO_DEPTH - 1
    assert port.uart.receive(b"ab") == 1
    assert port.uart.receive(b"b") == 0


def test_on_room_is_called_once_after_receive_left_bytes(port: Port) -> None:
    port.uart.receive(bytes(2 * FIFO_DEPTH + 4))
    for _ in range(FIFO_DEPTH - 1):
        port.read(RBR)
    before = port.rooms

    port.read(RBR)
    port.read(RBR)

    assert (before, port.rooms) == (0, 1)


def test_on_room_is_not_called_after_receive_took_all(port: Port) -> None:
    port.uart.receive(bytes(2 * FIFO_DEPTH))

    port.read_all()

    assert port.rooms == 0


# Input that waits after a reset of the FIFO


@pytest.mark.parametrize("fcr", [0x07, 0x03, 0x01, 0x00, 0x02])
def test_reset_of_the_fifo_empties_it_and_loses_no_input(port: Port, fcr: int) -> None:
    port.write(FCR, 0x01 if not fcr & 0x01 else 0x00)
    port.uart.receive(b"early, and longer than a FIFO")
    while not port.read(LSR) & 0x01 and fcr & 0x01:
        pass

    port.write(FCR, fcr)
    shown = [port.read(LSR), port.read(RBR), port.read(IIR), port.read(LSR)]

    assert (shown[0], shown[1], shown[3]) == (0x60, 0x00, 0x60)
    assert port.read_all() == b"early, and longer than a FIFO"


def test_input_waits_until_the_interrupt_is_enabled(port: Port) -> None:
    port.write(FCR, 0x07)
    port.uart.receive(b"early")
    before = port.raised

    port.write(IER, 0x05)

    assert (before, port.raised) == (False, True)
    assert port.interrupt() == b"early"


def test_reset_hides_no_input_when_the_interrupt_is_enabled(port: Port) -> None:
    port.write(IER, 0x01)
    port.uart.receive(b"x")

    port.write(FCR, 0x01)  # as Linux's set_termios() does

    assert port.raised
    assert port.read(LSR) == 0x61


def test_masking_the_interrupt_does_not_hide_input_again(port: Port) -> None:
    """Let a driver mask the interrupt while it reads."""
    port.write(FCR, 0x07)
    port.write(IER, 0x01)
    port.uart.receive(b"ab")

    port.write(IER, 0x00)

    assert port.read(LSR) == 0x61
    assert port.read(RBR) == ord("a")


def test_polling_guest_gets_input_after_a_few_reads(port: Port) -> None:
    port.write(FCR, 0x07)
    port.uart.receive(b"x")
    reads = 1

    while not port.read(LSR) & 0x01:
        reads += 1

    assert 4 < reads <= 10
    assert port.read(RBR) == ord("x")


@pytest.mark.parametrize(
    "turn",
    [
        lambda port: port.read(RBR),
        lambda port: (port.write(THR, 0x2E), port.read(LSR)),
        lambda port: (port.read(LSR), port.read(RBR)),
    ],
    ids=["RBR alone", "a byte out for each LSR", "LSR and RBR in turn"],
)
def test_input_wait_ends_for_every_way_of_polling(
    port: Port, turn: Callable[[Port], object]
) -> None:
    port.write(FCR, 0x07)
    port.uart.receive(b"x")

    for _ in range(HOLD_READS):
        turn(port)

    assert port.read(LSR) & 0x01 or port.uart.unread == b""


def test_console_output_does_not_end_the_wait(port: Port) -> None:
    """Print a line, as Linux's console does, between two resets."""
    port.write(FCR, 0x07)
    port.uart.receive(b"x")

    for byte in b"[    0.123456] a line of a kernel's log, which is rather long, on its console\n":
        port.read(LSR)
        port.write(THR, byte)

    assert port.read(LSR) == 0x60
    assert port.read_all() == b"x"


def test_restore_continues_the_wait_of_input(port: Port) -> None:
    port.write(FCR, 0x07)
    port.uart.receive(b"held")
    port.read(LSR)
    other = Port()

    other.uart.restore(port.uart.state(), "uart0")

    assert other.uart.state() == port.uart.state()
    assert other.read(LSR) == 0x60
    assert other.read_all() == b"held"


def test_restore_reads_input_of_an_older_snapshot(port: Port) -> None:
    """Older versions kept input on the line while the FIFO was empty, and saved neither field."""
    state = port.uart.state()
    del state["hold"], state["looped"]

    port.uart.restore({**state, "line": [0x41]}, "uart0")

    assert port.read_all() == b"A"


def test_unread_returns_pending_input_without_breaks(port: Port) -> None:
    port.uart.receive(b"abc" * 10)
    port.uart.receive_break()
    port.read(RBR)

    assert port.uart.unread == (b"abc" * 10)[1:]


# Trigger levels and interrupts


def test_clear_bit_without_the_enable_bit_does_nothing(port: Port) -> None:
    port.uart.receive(b"x")
    port.read(LSR)

    port.write(FCR, 0x02)

    assert port.read_all() == b"x"


@pytest.mark.parametrize(
    ("fcr", "waiting", "iir"),
    [
        (0x00, 1, RDI),
        (0x01, 1, 0xC0 | RDI),
        (0x41, 3, 0xC0 | TIMEOUT),
        (0x41, 4, 0xC0 | RDI),
        (0x81, 7, 0xC0 | TIMEOUT),
        (0x81, 8, 0xC0 | RDI),
        (0xC1, 13, 0xC0 | TIMEOUT),
        (0xC1, 16, 0xC0 | RDI),
    ],
)
def test_receive_interrupt_shows_whether_the_trigger_is_reached(
    port: Port, fcr: int, waiting: int, iir: int
) -> None:
    port.write(FCR, fcr)
    port.write(IER, 0x01)

    port.uart.receive(bytes(waiting))

    assert port.raised
    assert port.read(IIR) == iir


def test_receive_interrupt_is_cleared_by_the_last_byte(port: Port) -> None:
    port.write(FCR, 0x01)
    port.write(IER, 0x01)
    port.uart.receive(b"ab")

    port.read(RBR)
    after_one = port.raised
    port.read(RBR)

    assert after_one
    assert port.levels == [True, False]


def test_enabling_the_receive_interrupt_raises_it_for_earlier_input(port: Port) -> None:
    port.uart.receive(b"x")

    port.write(IER, 0x01)

    assert port.raised


def test_disabling_the_interrupt_lowers_the_line(port: Port) -> None:
    port.write(IER, 0x01)
    port.uart.receive(b"x")

    port.write(IER, 0x00)

    assert port.levels == [True, False]


# Breaks


def test_break_is_a_zero_byte_with_its_bit_set(port: Port) -> None:
    port.write(FCR, 0x01)

    port.uart.receive_break()
    lsr = port.poll()

    assert lsr == 0x60 | 0x80 | 0x10 | 0x01
    assert port.read(LSR) == 0x61
    assert port.read(RBR) == 0


def test_break_is_shown_before_its_byte_is_read(port: Port) -> None:
    port.write(FCR, 0x01)
    port.uart.receive(b"a")
    port.uart.receive_break()

    before = port.poll()
    port.read(RBR)
    after = port.read(LSR)

    assert before == 0x60 | 0x80 | 0x01
    assert after == 0x60 | 0x80 | 0x10 | 0x01


def test_break_interrupts_before_its_byte_does(port: Port) -> None:
    port.write(FCR, 0x01)
    port.write(IER, 0x05)

    port.uart.receive_break()
    first = port.read(IIR)
    port.read(LSR)
    second = port.read(IIR)

    assert (first, second) == (0xC0 | RLSI, 0xC0 | RDI)


def test_break_is_refused_without_room(port: Port) -> None:
    port.uart.receive(bytes(2 * FIFO_DEPTH))

    assert not port.uart.receive_break()
