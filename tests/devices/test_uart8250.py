"""The 16550A against its data sheet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pyvmm.devices.uart8250 import FIFO_DEPTH, HOLD_READS
from tests.devices.uart import (
    DLL,
    DLM,
    FCR,
    IER,
    IIR,
    LCR,
    LSR,
    MCR,
    MSI,
    MSR,
    NO_INT,
    RBR,
    RDI,
    RLSI,
    SCR,
    THR,
    THRI,
    TIMEOUT,
    Port,
)

# Transmitting


def test_transmitted_bytes_are_output_in_order(port: Port) -> None:
    for byte in b"hello":
        port.write(THR, byte)

    assert port.sent == b"hello"


def test_all_eight_bits_are_transmitted_before_anything_is_set_up(port: Port) -> None:
    port.write(THR, 0xFF)

    assert port.sent == b"\xff"


def test_transmitter_is_always_empty(port: Port) -> None:
    port.write(THR, 0x41)

    assert port.read(LSR) == 0x60


def test_divisor_writes_are_not_transmitted(port: Port) -> None:
    port.write(LCR, 0x83)
    port.write(DLL, 0x0C)
    port.write(DLM, 0x01)
    divisor = (port.read(DLL), port.read(DLM))
    port.write(LCR, 0x03)

    assert divisor == (0x0C, 0x01)
    assert port.sent == b""
    assert port.read(IER) == 0


def test_thr_interrupt_is_raised_by_enabling_and_cleared_by_reading_iir(port: Port) -> None:
    port.write(IER, 0x02)
    raised = port.raised
    iir = port.read(IIR)

    assert raised
    assert iir == THRI
    assert not port.raised
    assert port.read(IIR) == NO_INT


def test_thr_interrupt_comes_again_after_transmitting(port: Port) -> None:
    port.write(IER, 0x02)
    port.read(IIR)

    port.write(THR, 0x41)

    assert port.raised
    assert port.read(IIR) == THRI


def test_slow_output_does_not_hold_up_input(port: Port) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(data: bytes) -> None:
        entered.set()
        release.wait(120)

    port.uart.output = slow
    vcpu = threading.Thread(target=port.write, args=(THR, 0x41))

    vcpu.start()
    assert entered.wait(120)
    taken = port.uart.receive(b"x")
    got = port.read_all()
    release.set()
    vcpu.join(120)

    assert (taken, got) == (1, b"x")


def test_output_is_called_by_one_vcpu_at_a_time(port: Port) -> None:
    inside = threading.Semaphore(1)
    met: list[bytes] = []

    def output(data: bytes) -> None:
        alone = inside.acquire(blocking=False)
        time.sleep(0.001)
        if alone:
            inside.release()
        else:
            met.append(data)

    port.uart.output = output
    vcpus = [threading.Thread(target=port.write, args=(THR, byte)) for byte in range(20)]
    for vcpu in vcpus:
        vcpu.start()
    for vcpu in vcpus:
        vcpu.join()

    assert met == []


def test_bytes_of_two_vcpus_are_all_output(port: Port) -> None:
    def send(byte: int) -> None:
        for _ in range(500):
            port.write(THR, byte)

    vcpus = [threading.Thread(target=send, args=(byte,)) for byte in b"ab"]

    for vcpu in vcpus:
        vcpu.start()
    for vcpu in vcpus:
        vcpu.join()

    assert sorted(port.sent) == sorted(b"a" * 500 + b"b" * 500)


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


def test_reset_with_the_interrupt_enabled_hides_nothing(port: Port) -> None:
    port.write(IER, 0x01)
    port.uart.receive(b"x")

    port.write(FCR, 0x01)  # as Linux's set_termios() does

    assert port.raised
    assert port.read(LSR) == 0x61


def test_masked_interrupt_hides_no_input_again(port: Port) -> None:
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
def test_input_waits_for_no_guest_for_ever(port: Port, turn: Callable[[Port], object]) -> None:
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


def test_wait_is_restored_from_a_snapshot(port: Port) -> None:
    port.write(FCR, 0x07)
    port.uart.receive(b"held")
    port.read(LSR)
    other = Port()

    other.uart.restore(port.uart.state(), "uart0")

    assert other.uart.state() == port.uart.state()
    assert other.read(LSR) == 0x60
    assert other.read_all() == b"held"


def test_input_of_an_older_snapshot_is_read(port: Port) -> None:
    """Older versions kept input on the line while the FIFO was empty, and saved neither field."""
    state = port.uart.state()
    del state["hold"], state["looped"]

    port.uart.restore({**state, "line": [0x41]}, "uart0")

    assert port.read_all() == b"A"


def test_unread_input_is_what_the_guest_has_not_read(port: Port) -> None:
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


# Line status


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


# Modem control and loop-back


def test_modem_inputs_are_always_connected(port: Port) -> None:
    assert port.read(MSR) == 0xB0


@pytest.mark.parametrize(
    ("mcr", "msr"), [(0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1A, 0x90)]
)
def test_loop_back_connects_each_output_to_an_input(port: Port, mcr: int, msr: int) -> None:
    port.write(MCR, mcr)

    assert port.read(MSR) & 0xF0 == msr


def test_modem_inputs_interrupt_when_they_change(port: Port) -> None:
    port.write(IER, 0x08)

    port.write(MCR, 0x10)
    iir, msr = port.read(IIR), port.read(MSR)

    assert iir == MSI
    assert msr == 0x0B  # DCD, DSR and CTS changed
    assert port.read(MSR) == 0x00
    assert port.levels == [True, False]


def test_modem_status_reports_only_the_end_of_a_ring(port: Port) -> None:
    port.write(MCR, 0x10)
    port.read(MSR)

    port.write(MCR, 0x14)
    begin = port.read(MSR)
    port.write(MCR, 0x10)
    end = port.read(MSR)

    assert (begin, end) == (0x40, 0x04)


def test_loop_back_returns_what_is_transmitted(port: Port) -> None:
    port.write(FCR, 0x01)
    port.write(MCR, 0x10)

    port.write(THR, 0x41)

    assert port.read_all() == b"A"
    assert port.sent == b""


def test_loop_back_keeps_the_first_sixteen_and_reports_overrun(port: Port) -> None:
    port.write(FCR, 0x01)
    port.write(MCR, 0x10)

    for byte in range(20):
        port.write(THR, byte)

    assert port.read(LSR) == 0x63
    assert port.read_all() == bytes(range(16))


def test_loop_back_without_fifos_keeps_the_last_one(port: Port) -> None:
    port.write(MCR, 0x10)

    for byte in b"ab":
        port.write(THR, byte)

    assert port.read(LSR) == 0x63
    assert port.read_all() == b"b"


def test_loop_back_holds_up_input_and_loses_none(port: Port) -> None:
    port.write(MCR, 0x10)
    port.uart.receive(b"later")
    during = port.read_all()

    port.write(MCR, 0x00)

    assert (during, port.read_all()) == (b"", b"later")


def test_break_loops_back(port: Port) -> None:
    port.write(MCR, 0x10)

    port.write(LCR, 0x43)

    assert port.read(LSR) & 0x11 == 0x11


# Registers


@pytest.mark.parametrize(("offset", "mask"), [(IER, 0x0F), (LCR, 0xFF), (MCR, 0x1F), (SCR, 0xFF)])
def test_register_keeps_its_implemented_bits(port: Port, offset: int, mask: int) -> None:
    port.write(offset, 0xFF if offset != LCR else 0x7F)

    assert port.read(offset) == mask & (0xFF if offset != LCR else 0x7F)


def test_divisor_is_not_zero_after_reset(port: Port) -> None:
    port.write(LCR, 0x80)

    assert (port.read(DLL), port.read(DLM)) == (1, 0)


def test_wide_write_touches_one_register(port: Port) -> None:
    port.uart.mmio_write(THR, 4, 0x0F0F_0F41)

    assert port.sent == b"A"
    assert port.read(IER) == 0


def test_wide_read_reads_each_register_in_turn(port: Port) -> None:
    port.write(SCR, 0x5A)
    port.uart.receive(b"xy")

    assert port.uart.mmio_read(LSR, 4) == 0x5A_B0_61
    assert port.uart.mmio_read(RBR, 2) == ord("x")
    assert port.uart.mmio_read(RBR, 8) == 0x5A_B0_60_00_00_01_00_00 | ord("y")
