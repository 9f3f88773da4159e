"""What a UART publishes to its shortcut, taken at its word: no guest could tell the difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.uart8250 import ALL_STEADY, Uart8250

THR, IER, FCR, LCR, MCR, LSR = 0, 1, 2, 3, 4, 5


@dataclass
class Direct:
    """A guest at a port without a shortcut."""

    output: bytearray = field(default_factory=bytearray)
    levels: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uart = Uart8250(self.levels.append, self.output.extend)

    def read(self, offset: int, width: int) -> int:
        return self.uart.mmio_read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        self.uart.mmio_write(offset, width, value)

    def look_after(self) -> None:
        """Nothing waits."""


class Short(Direct):
    """One that uses every shortcut there is, as C and KVM do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.registers = 0
        self.sends = False
        self.gathers = False  # KVM does
        self.waiting = bytearray()
        self.used = 0
        self.level_when_published: list[bool] = []
        self.uart.take_shortcut(self)

    def publish(self, registers: int, *, sends: bool, only_sends: bool) -> bool:
        self.registers, self.sends = registers, sends
        withdrawn = self.gathers and not only_sends
        self.gathers = only_sends
        return withdrawn

    def sent(self) -> bytes:
        data, self.waiting = bytes(self.waiting), bytearray()
        return data

    def read(self, offset: int, width: int) -> int:
        asked = ((1 << width) - 1) << offset & ALL_STEADY
        if offset < 8 and self.registers & asked == asked:
            self.used += 1
            everything = self.registers & ~ALL_STEADY
            return everything >> 8 * offset & ((1 << 8 * width) - 1)
        self.look_after()
        return super().read(offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        if offset == THR and (self.sends or (self.gathers and width == 1)):
            self.used += 1
            self.waiting.append(value & 0xFF)
            return
        self.look_after()
        super().write(offset, width, value)

    def look_after(self) -> None:
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
    """Have the fast path possible again, unless input is in the way."""
    guest.write(LCR, 1, 3)
    guest.write(MCR, 1, 8)
    guest.write(IER, 1, 0)
    return [guest.read(offset, 1) for offset in range(8)]


calms = st.just(calm)
inputs = st.builds(lambda data: lambda guest: guest.uart.receive(data), st.binary(max_size=20))
breaks = st.just(lambda guest: guest.uart.receive_break())
looks = st.just(lambda guest: guest.look_after())
steps = st.lists(
    st.one_of(reads, reads, writes, writes, prints, prints, calms, inputs, breaks, looks),
    max_size=40,
)


@settings(max_examples=400)
@given(steps)
def test_nothing_tells_the_shortcut_from_the_port(script: list[Step]) -> None:
    plain, short = Direct(), Short()

    for step in script:
        assert step(short) == step(plain)
        assert short.levels == plain.levels
    short.look_after()

    assert short.output == plain.output
    assert short.uart.state() == plain.uart.state()


def test_a_polled_byte_takes_the_shortcut() -> None:
    guest = Short()

    for byte in b"hello":
        assert guest.read(LSR, 1) == 0x60
        guest.write(THR, 1, byte)

    assert guest.used == 10
    assert not guest.output
    guest.look_after()
    assert guest.output == b"hello"


@pytest.mark.parametrize(
    ("make", "offset"),
    [
        (lambda guest: guest.uart.receive(b"x"), 0),
        (lambda guest: guest.uart.receive_break(), 5),
        (lambda guest: guest.write(IER, 1, 0x02), 2),
        (lambda guest: guest.write(LCR, 1, 0x80), 0),
        (lambda guest: guest.write(MCR, 1, 0x10), 6),
    ],
    ids=["input", "break", "transmitter interrupt", "divisor latch", "modem inputs changed"],
)
def test_read_that_changes_something_is_not_offered(make: Step, offset: int) -> None:
    guest = Short()
    assert guest.registers & ALL_STEADY == ALL_STEADY

    make(guest)

    assert not guest.registers >> offset & 1


@pytest.mark.parametrize("offset", [LCR, MCR, IER])
def test_sending_is_not_offered_where_it_is_more_than_that(offset: int) -> None:
    guest = Short()
    assert (guest.sends, guest.gathers) == (True, True)

    guest.write(offset, 1, {LCR: 0x80, MCR: 0x10, IER: 0x02}[offset])
    assert not guest.gathers
    assert guest.sends == (offset == IER)  # its interrupt waits already
    guest.read(2, 1)  # and now it does not

    assert not guest.sends


def test_what_is_published_comes_before_the_interrupt() -> None:
    """Whoever takes the interrupt finds its cause, on whatever CPU."""
    found: list[int] = []
    guest = Short()
    guest.uart.irq = lambda level: found.append(guest.registers >> 16 & 0xFF)

    guest.write(IER, 1, 0x01)
    guest.uart.receive(b"x")

    assert found == [0x04]


def test_what_another_cpu_sent_is_taken_when_that_is_not_offered_any_more() -> None:
    """Its interrupt would come late else: nothing tells of what is gathered."""
    guest = Short()
    guest.write(THR, 1, 0x41)

    guest.uart.mmio_write(IER, 1, 0x02)

    assert not guest.waiting
    assert guest.output == b"A"
