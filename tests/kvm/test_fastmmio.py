"""MMIO exits that C completes, and writes that KVM coalesces."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator

import pytest

from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.kvm.fastmmio import NONE_LEFT, FastMmio
from tests.kvm.guest import MMIO, RAM_BASE, Guest, guest

pytestmark = pytest.mark.kvm

SCRIPT, LOG = RAM_BASE + 0x1_0000, RAM_BASE + 0x2_0000
MARK = MMIO + 0x1000  # claimed, but not a UART
THR, IER, LSR = 0, 1, 5
STATUS, ACK = 0x60, 0x64  # of a virtio device at MMIO
UNCLAIMED = 0x80
RTC = 0x40  # the clock, from MMIO on
DR, MR, IMSC, ICR = 0x00, 0x04, 0x10, 0x1C
FAR_S = 1 << 40  # later than every alarm
READ_1, READ_2, READ_4, READ_8, WRITE_1, WRITE_4, AT_MARK = range(7)  # the script's words

Step = tuple[int, int, int]  # what, offset, value
MARKED: Step = (AT_MARK, 0, 0)


@pytest.fixture
def made() -> Iterator[Guest]:
    with guest("script") as made:
        yield made


def fast_mmio(made: Guest, *, complete_unclaimed: bool = True) -> FastMmio:
    """Return a FastMmio with a UART and a virtio device's interrupt status."""
    claimed = [(MMIO, MMIO + UNCLAIMED), (MARK, MARK + 4)]
    return FastMmio(
        made.vcpus,
        claimed,
        [MMIO],
        [MMIO + STATUS],
        MMIO + RTC,
        complete_unclaimed=complete_unclaimed,
    )


def play(made: Guest, *steps: Step) -> Exit:
    """Make these accesses from the guest, then one of MARK; return the first exit to Python."""
    words = [struct.pack("<BBBB", what, at, 0, value) for what, at, value in (*steps, MARKED)]
    made.memory.write(SCRIPT, b"".join(words))
    made.set(x0=SCRIPT, x1=LOG, x2=MMIO, x9=MARK)
    made.vcpu.set_one_reg(regs.PC, RAM_BASE)
    return made.vcpu.run()


def logged(made: Guest) -> int:
    """Return the value of the guest's first read."""
    return int.from_bytes(made.memory.read(LOG, 8), "little")


def counts(made: Guest) -> tuple[list[int], list[int]]:
    """Return the completed reads and writes of the UART, interrupt status and unclaimed."""
    reads, writes = made.vcpu.completed_mmio()
    return [reads[0], *reads[-4:-2]], [writes[0], *writes[-4:-2]]


def clock_counts(made: Guest) -> tuple[int, int]:
    """Return the completed reads and writes of the clock."""
    reads, writes = made.vcpu.completed_mmio()
    return reads[-2], writes[-2]


def test_read_completes_in_c_without_a_side_effect(made: Guest) -> None:
    fast_mmio(made).uart(0).registers = 1 << LSR | 0x60 << 8 * LSR

    leave = play(made, (READ_1, LSR, 0))

    assert (leave.address, logged(made)) == (MARK, 0x60)
    assert counts(made) == ([1, 0, 0], [0, 0, 0])


def test_read_exits_with_a_side_effect(made: Guest) -> None:
    fast_mmio(made).uart(0).registers = 0xFF & ~(1 << LSR)

    assert play(made, (READ_1, LSR, 0)).address == MMIO + LSR


def test_transmitted_bytes_wait_in_order(made: Guest) -> None:
    fast = fast_mmio(made)
    fast.uart(0).complete_thr = 1

    leave = play(made, (WRITE_1, THR, ord("h")), (WRITE_1, THR, ord("i")))

    assert leave.address == MARK
    assert made.vcpu.attention
    assert fast.has_tx(0)
    assert fast.take_tx(0) == b"hi"
    assert not fast.has_tx(0)
    assert counts(made) == ([0, 0, 0], [2, 0, 0])


def test_exit_goes_to_python_when_none_is_left(made: Guest) -> None:
    fast = fast_mmio(made)
    uart = fast.uart(0)
    uart.complete_thr, uart.exits_left = 1, 2

    leave = play(made, (WRITE_1, THR, 1), (WRITE_1, THR, 2), (WRITE_1, THR, 3))

    assert (leave.address, leave.data) == (MMIO, 2)
    assert uart.exits_left == NONE_LEFT
    assert made.vcpu.attention


@pytest.mark.parametrize(("value", "address"), [(0, MARK), (1, MMIO + IER)])
def test_write_of_ier_completes_in_c_when_it_changes_nothing(
    made: Guest, value: int, address: int
) -> None:
    fast_mmio(made).uart(0).registers = 1 << IER

    assert play(made, (WRITE_1, IER, value)).address == address


def test_driver_reads_and_acknowledges_interrupt_status(made: Guest) -> None:
    bits = fast_mmio(made).interrupt_bits(0)
    bits.set(7)
    bits.clear(4)

    leave = play(made, (READ_4, STATUS, 0), (WRITE_4, ACK, 1))

    assert (leave.address, logged(made)) == (MARK, 3)
    assert bits.get() == 2
    assert counts(made) == ([0, 1, 0], [0, 1, 0])


@pytest.mark.parametrize("offset", range(MR, ICR + 1, 4))
def test_clock_register_reads_as_published(made: Guest, offset: int) -> None:
    fast_mmio(made).clock().publish(0, FAR_S, [register + 1 for register in range(8)])

    leave = play(made, (READ_4, RTC + offset, 0))

    assert (leave.address, logged(made)) == (MARK, offset // 4 + 1)
    assert clock_counts(made) == (1, 0)


def test_clock_runs_with_the_host_at_its_offset(made: Guest) -> None:
    fast_mmio(made).clock().publish(-1_000_000_000, FAR_S, [0] * 8)

    before = int(time.time())
    leave = play(made, (READ_4, RTC + DR, 0))
    after = int(time.time())

    assert leave.address == MARK
    assert before <= logged(made) + 1_000_000_000 <= after


def test_python_handles_a_clock_whose_alarm_is_due(made: Guest) -> None:
    fast_mmio(made).clock().publish(0, int(time.time()), [0] * 8)

    assert play(made, (READ_4, RTC + MR, 0)).address == MMIO + RTC + MR
    assert clock_counts(made) == (0, 0)


@pytest.mark.parametrize("read", [READ_1, READ_2, READ_8])
def test_python_handles_reads_of_another_width_than_the_clocks(made: Guest, read: int) -> None:
    fast_mmio(made).clock().publish(0, FAR_S, [0] * 8)

    assert play(made, (read, RTC + MR, 0)).address == MMIO + RTC + MR


@pytest.mark.parametrize(
    ("step", "completes"),
    [
        ((WRITE_4, RTC + IMSC, 1), True),
        ((WRITE_4, RTC + IMSC, 0), False),
        ((WRITE_1, RTC + IMSC, 1), False),
        ((WRITE_4, RTC + MR, 1), False),  # could match again
        ((WRITE_4, RTC + ICR, 1), False),
    ],
)
def test_clock_write_completes_in_c_when_it_changes_nothing(
    made: Guest, step: Step, completes: bool
) -> None:
    fast_mmio(made).clock().publish(0, FAR_S, [1] * 8)

    assert play(made, step).address == (MARK if completes else MMIO + step[1])
    assert clock_counts(made) == (0, int(completes))


def test_coalesced_writes_are_taken_in_order(made: Guest) -> None:
    fast = fast_mmio(made)
    made.vm.register_coalesced_mmio(MMIO, 1)

    play(made, (WRITE_1, THR, ord("h")), (WRITE_1, THR, ord("i")))

    assert made.vcpu.attention
    assert fast.take_tx(0) == b"hi"
    assert counts(made) == ([0, 0, 0], [0, 0, 0])  # no exit


def test_writes_exit_after_the_coalesced_zone_is_unregistered(made: Guest) -> None:
    fast_mmio(made)
    made.vm.register_coalesced_mmio(MMIO, 1)
    made.vm.unregister_coalesced_mmio(MMIO, 1)

    assert play(made, (WRITE_1, THR, 1)).address == MMIO


def test_wait_tx_ends_with_bytes_or_a_stop(made: Guest) -> None:
    fast = fast_mmio(made)
    fast.uart(0).complete_thr = 1
    stop = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        play(made, (WRITE_1, THR, 1))
        assert fast.wait_tx(0, stop, 1, 8)
        fast.take_tx(0)
        os.eventfd_write(stop, 1)
        assert not fast.wait_tx(0, stop, 1, 8)
    finally:
        os.close(stop)


@pytest.mark.parametrize("completed", [True, False])
def test_unclaimed_accesses_complete_in_c_when_enabled(made: Guest, completed: bool) -> None:
    fast_mmio(made, complete_unclaimed=completed)

    leave = play(made, (READ_1, UNCLAIMED, 0), (WRITE_1, UNCLAIMED, 1))

    assert leave.address == (MARK if completed else MMIO + UNCLAIMED)
    assert counts(made) == ([0, 0, int(completed)], [0, 0, int(completed)])
    assert made.vcpu.last_unclaimed == (MMIO + UNCLAIMED if completed else 0)


def test_too_many_uarts_are_refused(made: Guest) -> None:
    with pytest.raises(ValueError, match="5 UARTs, 0 virtio devices: too many"):
        FastMmio(made.vcpus, [], [MMIO] * 5)
