from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.pl031 import Pl031

DR, MR, LR, CR, IMSC, RIS, MIS, ICR = range(0, 0x20, 4)


class Clocked:
    """A PL031 whose time the test sets."""

    def __init__(self, now: float = 1_000_000.25) -> None:
        self.now = now
        self.levels: list[bool] = []
        self.rearmed = 0
        self.rtc = Pl031(self.levels.append, clock=lambda: self.now)
        self.rtc.on_rearm = self.count

    def count(self) -> None:
        self.rearmed += 1

    def read(self, offset: int) -> int:
        return self.rtc.mmio_read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.rtc.mmio_write(offset, 4, value)


class Published:
    """The state that a fast path got last, and the interrupt line at that moment."""

    def __init__(self, clocked: Clocked) -> None:
        self.clocked = clocked
        self.state: tuple[int, int, Sequence[int]] | None = None

    def publish(self, offset: int, alarm_at: int, registers: Sequence[int]) -> None:
        self.state = offset, alarm_at, registers

    def check(self) -> None:
        """Check that a fast path reads what the clock itself returns, if it may read at all."""
        assert self.state is not None
        offset, alarm_at, registers = self.state
        if self.clocked.now < alarm_at:
            assert self.clocked.read(DR) == int(self.clocked.now + offset) & 0xFFFF_FFFF
            assert [self.clocked.read(at) for at in range(MR, 0x20, 4)] == list(registers[1:])


@pytest.fixture
def clocked() -> Clocked:
    return Clocked()


def test_clock_starts_at_the_host_time(clocked: Clocked) -> None:
    assert clocked.read(DR) == 1_000_000


def test_clock_runs(clocked: Clocked) -> None:
    clocked.now += 60

    assert clocked.read(DR) == 1_000_060


def test_write_to_load_register_moves_the_clock(clocked: Clocked) -> None:
    clocked.write(LR, 5_000)
    clocked.now += 60

    assert clocked.read(DR) == 5_060
    assert clocked.read(LR) == 5_000


def test_clock_wraps_at_32_bits(clocked: Clocked) -> None:
    clocked.write(LR, 0xFFFF_FFFF)
    clocked.now += 2

    assert clocked.read(DR) == 1


def test_clock_is_running_and_cannot_be_stopped(clocked: Clocked) -> None:
    clocked.write(CR, 0)
    clocked.now += 1

    assert clocked.read(CR) == 1
    assert clocked.read(DR) == 1_000_001


def test_identification_is_the_one_linux_expects(clocked: Clocked) -> None:
    peripheral = [clocked.read(offset) for offset in range(0xFE0, 0xFF0, 4)]
    cell = [clocked.read(offset) for offset in range(0xFF0, 0x1000, 4)]

    # amba_device_try_add(), and the amba_id of drivers/rtc/rtc-pl031.c
    assert int.from_bytes(bytes(cell), "little") == 0xB105_F00D
    assert int.from_bytes(bytes(peripheral), "little") & 0x000F_FFFF == 0x0004_1031


def test_linux_alarm_interrupts_at_its_second(clocked: Clocked) -> None:
    clocked.write(MR, 1_000_010)
    clocked.write(ICR, 1)
    clocked.write(IMSC, 1)
    due = clocked.rtc.next_alarm()

    clocked.now = 1_000_009.99
    clocked.rtc.tick()
    early = list(clocked.levels)
    assert due is not None
    clocked.now = due
    clocked.rtc.tick()

    assert due == 1_000_010
    assert early == []
    assert clocked.levels == [True]
    assert (clocked.read(RIS), clocked.read(MIS)) == (1, 1)


def test_clearing_lowers_the_interrupt_for_good(clocked: Clocked) -> None:
    clocked.write(MR, 1_000_001)
    clocked.write(IMSC, 1)
    clocked.now += 5
    clocked.rtc.tick()

    clocked.write(ICR, 1)
    clocked.rtc.tick()

    assert clocked.levels == [True, False]
    assert clocked.read(RIS) == 0


def test_masked_alarm_is_due_without_an_interrupt(clocked: Clocked) -> None:
    clocked.write(MR, 1_000_001)
    clocked.now += 5

    assert clocked.read(RIS) == 1
    assert clocked.read(MIS) == 0
    assert clocked.levels == []


def test_unmasking_a_due_alarm_interrupts(clocked: Clocked) -> None:
    clocked.write(MR, 1_000_001)
    clocked.now += 5

    clocked.write(IMSC, 1)

    assert clocked.levels == [True]


def test_masking_lowers_the_interrupt(clocked: Clocked) -> None:
    clocked.write(MR, 1_000_000)
    clocked.write(IMSC, 1)

    clocked.write(IMSC, 0)

    assert clocked.levels == [True, False]


def test_alarm_of_the_current_second_is_due(clocked: Clocked) -> None:
    clocked.write(IMSC, 1)

    clocked.write(MR, 1_000_000)

    assert clocked.levels == [True]


def test_alarm_in_the_past_waits_for_the_clock_to_wrap(clocked: Clocked) -> None:
    clocked.write(IMSC, 1)

    clocked.write(MR, 999_999)

    assert clocked.levels == []
    assert clocked.rtc.next_alarm() == 999_999 + (1 << 32)


def test_setting_the_clock_moves_the_alarm(clocked: Clocked) -> None:
    clocked.write(MR, 2_000)
    clocked.write(IMSC, 1)

    clocked.write(LR, 1_990)

    assert clocked.rtc.next_alarm() == 1_000_010


def test_next_alarm_is_none_without_a_possible_interrupt(clocked: Clocked) -> None:
    masked = clocked.rtc.next_alarm()
    clocked.write(MR, 1_000_000)
    clocked.write(IMSC, 1)

    assert masked is None
    assert clocked.rtc.next_alarm() is None


@pytest.mark.parametrize(("offset", "value"), [(MR, 5), (LR, 5), (IMSC, 1), (ICR, 1)])
def test_write_that_may_move_the_alarm_calls_on_rearm(
    clocked: Clocked, offset: int, value: int
) -> None:
    clocked.write(offset, value)

    assert clocked.rearmed == 1


def test_other_accesses_do_not_call_on_rearm(clocked: Clocked) -> None:
    clocked.write(CR, 1)
    clocked.read(DR)

    assert clocked.rearmed == 0


@given(
    now=st.floats(1, 2**32 - 1),
    load=st.integers(1, 2**32 - 1),  # at 0 the alarm of reset is due
    match=st.integers(0, 2**32 - 1),
)
def test_clock_shows_the_match_when_the_alarm_is_due(now: float, load: int, match: int) -> None:
    clocked = Clocked(now)
    clocked.write(LR, load)
    clocked.write(MR, match)
    clocked.write(IMSC, 1)

    due = clocked.rtc.next_alarm()
    if due is not None:
        clocked.now = due
        clocked.rtc.tick()

    assert clocked.levels == [True]
    assert clocked.read(DR) == match


@given(
    st.lists(
        st.tuples(
            st.sampled_from([MR, LR, CR, IMSC, ICR, "pass"]),
            st.integers(0, 8) | st.integers(0, 2**32 - 1),
        )
    )
)
def test_fast_path_reads_what_the_clock_returns(steps: list[tuple[int | str, int]]) -> None:
    clocked = Clocked(5.5)
    published = Published(clocked)
    clocked.rtc.use_fast_path(published)
    published.check()

    for what, value in steps:
        if isinstance(what, int):
            clocked.write(what, value)
        else:
            clocked.now += value
        published.check()


def test_restored_clock_is_published() -> None:
    clocked, other = Clocked(), Clocked()
    clocked.write(LR, 5_000)
    published = Published(other)
    other.rtc.use_fast_path(published)

    other.rtc.restore(clocked.rtc.state(), "rtc")
    other.rtc.restored()

    published.check()
    assert published.state is not None
    assert published.state[0] == 5_000 - 1_000_000
