"""The registers that a UART publishes to its fast path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.uartfastpath import ALL_READABLE

THR, IER, FCR, LCR, MCR, LSR = 0, 1, 2, 3, 4, 5


@dataclass
class Direct:
    """A guest of a port without a fast path."""

    output: bytearray = field(default_factory=bytearray)
    levels: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uart = Uart8250(self.levels.append, self.output.extend)

    def read(self, offset: int, width: int) -> int:
        return self.uart.mmio_read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        self.uart.mmio_write(offset, width, value)

    def flush(self) -> None:
        """Do nothing: no bytes wait."""


class Fast(Direct):
    """A guest with a fast path in Python, in place of C and KVM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.registers = 0
        self.completes = False
        self.coalesces = False
        self.waiting = bytearray()
        self.used = 0
        self.level_when_published: list[bool] = []
        self.uart.use_fast_path(self)

    def publish(self, registers: int, *, complete_thr: bool, coalesce_thr: bool) -> bool:
        self.registers, self.completes = registers, complete_thr
        withdrawn = self.coalesces and not coalesce_thr
        self.coalesces = coalesce_thr
        return withdrawn

    def lend(self, *, thr_emptied: bool, raised: bool) -> None:
        """Decline: test_uart_lent.py lends to C."""

    def retake(self) -> None:
        """Return that nothing is lent."""

    def sent(self) -> bytes:
        data, self.waiting = bytes(self.waiting), bytearray()
        return data

    def read(self, offset: int, width: int) -> int:
        asked = ((1 << width) - 1) << offset & ALL_READABLE
        if offset < 8 and self.registers & asked == asked:
            self.used += 1
            everything = self.registers & ~ALL_READABLE
            return everything >> 8 * offset & ((1 << 8 * width) - 1)
        self.flush()
        return super().read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        if offset == THR and (self.completes or (self.coalesces and width == 1)):
            self.used += 1
            self.waiting.append(value & 0xFF)
            return
        self.flush()
        super().write(offset, width, value)

    def flush(self) -> None:
        self.uart.collect()
        self.uart.send_out()


Step = Callable[[Direct], Any]

widths = st.sampled_from([1, 1, 1, 1, 2, 4, 8])
telling = st.sampled_from([0x00, 0x01, 0x02, 0x03, 0x07, 0x0F, 0x10, 0x1B, 0x80, 0x83, 0xC1])
reads = st.builds(lambda o, w: lambda guest: guest.read(o, w), st.integers(0, 9), widths)
writes = st.builds(
    lambda o, w, v: lambda guest: guest.write(o, w, v),
    st.integers(0, 8), widths, telling | st.integers(0, 255),
)  # fmt: skip
prints = st.builds(
    lambda text: lambda guest: [(guest.read(LSR, 1), guest.write(THR, 1, b)) for b in text],
    st.binary(max_size=4),
)


def calm(guest: Direct) -> list[int]:
    """Bring the UART to a state that allows the fast path, unless input waits."""
    guest.write(LCR, 1, 3)
    guest.write(MCR, 1, 8)
    guest.write(IER, 1, 0)
    return [guest.read(offset, 1) for offset in range(8)]


calms = st.just(calm)
inputs = st.builds(lambda data: lambda guest: guest.uart.receive(data), st.binary(max_size=20))
breaks = st.just(lambda guest: guest.uart.receive_break())
looks = st.just(lambda guest: guest.flush())
steps = st.lists(
    st.one_of(reads, reads, writes, writes, prints, prints, calms, inputs, breaks, looks),
    max_size=40,
)


@settings(max_examples=400)
@given(steps)
def test_guest_reads_the_same_values_with_a_fast_path(script: list[Step]) -> None:
    plain, fast = Direct(), Fast()

    for step in script:
        assert step(fast) == step(plain)
        assert fast.levels == plain.levels
    fast.flush()

    assert fast.output == plain.output
    assert fast.uart.state() == plain.uart.state()


def test_polled_byte_takes_the_fast_path() -> None:
    guest = Fast()

    for byte in b"hello":
        assert guest.read(LSR, 1) == 0x60
        guest.write(THR, 1, byte)

    assert guest.used == 10
    assert not guest.output
    guest.flush()
    assert guest.output == b"hello"


@pytest.mark.parametrize(
    ("make", "offset"),
    [
        (lambda guest: guest.uart.receive(b"x"), 0),
        (lambda guest: guest.uart.receive_break(), 5),
        (lambda guest: (guest.write(FCR, 1, 1), guest.uart.receive(b"x")), 5),
        (lambda guest: (guest.write(FCR, 1, 1), guest.uart.receive(b"x")), 0),
        (lambda guest: guest.write(IER, 1, 0x02), 2),
        (lambda guest: guest.write(LCR, 1, 0x80), 0),
        (lambda guest: guest.write(MCR, 1, 0x10), 6),
    ],
    ids=[
        "input",
        "break",
        "input waits: LSR",
        "input waits: RBR",
        "transmitter interrupt",
        "divisor latch",
        "modem inputs changed",
    ],
)
def test_read_with_a_side_effect_is_not_published(make: Step, offset: int) -> None:
    guest = Fast()
    assert guest.registers & ALL_READABLE == ALL_READABLE

    make(guest)

    assert not guest.registers >> offset & 1


@pytest.mark.parametrize("offset", [LCR, MCR, IER])
def test_thr_write_is_not_published_with_another_effect(offset: int) -> None:
    guest = Fast()
    assert (guest.completes, guest.coalesces) == (True, True)

    guest.write(offset, 1, {LCR: 0x80, MCR: 0x10, IER: 0x02}[offset])
    assert not guest.coalesces
    assert guest.completes == (offset == IER)  # THRI is pending already
    guest.read(2, 1)  # clears THRI

    assert not guest.completes


def test_publish_comes_before_the_interrupt() -> None:
    """Check that a vCPU finds the interrupt's cause on any CPU."""
    found: list[int] = []
    guest = Fast()
    guest.uart.irq = lambda level: found.append(guest.registers >> 16 & 0xFF)

    guest.write(IER, 1, 0x01)
    guest.uart.receive(b"x")

    assert found == [0x04]


def test_coalesced_bytes_are_collected_when_coalescing_ends() -> None:
    """Avoid a late interrupt: KVM does not signal a coalesced write."""
    guest = Fast()
    guest.write(THR, 1, 0x41)

    guest.uart.mmio_write(IER, 1, 0x02)

    assert not guest.waiting
    assert guest.output == b"A"
