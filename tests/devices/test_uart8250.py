"""The 16550A against its data sheet, except for input."""

from __future__ import annotations

import threading
import time

import pytest

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
    SCR,
    THR,
    THRI,
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
