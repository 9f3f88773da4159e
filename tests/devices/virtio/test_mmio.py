"""The registers of virtio-mmio: reads, writes, and invalid writes."""

from __future__ import annotations

import pytest

from pyvmm.devices.virtio.mmio import LockedInterruptBits, VirtioMmio
from pyvmm.layout import RAM_BASE
from tests.devices.virtio.conftest import RECEIVEQ, TRANSMITQ, Rig
from tests.devices.virtio.driver import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT,
    F_VERSION_1,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    PAGE,
    Buffer,
)

CONFIG_INTERRUPT = 2
STATUS, INTERRUPT_STATUS, QUEUE_READY, QUEUE_PFN = 0x070, 0x060, 0x044, 0x040


# Identity


def test_registers_identify_a_modern_console(rig: Rig) -> None:
    identity = [rig.driver.read(offset) for offset in (0x000, 0x004, 0x008, 0x00C)]

    assert identity == [0x7472_6976, 2, 3, int.from_bytes(b"pyvm", "little")]


def test_registers_identify_a_legacy_console(legacy: Rig) -> None:
    assert [legacy.driver.read(offset) for offset in (0x000, 0x004, 0x008)] == [0x7472_6976, 1, 3]


def test_registers_are_exactly_those_of_the_header() -> None:
    """Compare with linux/virtio_mmio.h, without QueueReset: its feature is not offered."""
    offsets = {reg.offset for reg in VirtioMmio.registers}

    assert offsets == {
        0x000, 0x004, 0x008, 0x00C, 0x010, 0x014, 0x020, 0x024, 0x028, 0x030, 0x034, 0x038, 0x03C,
        0x040, 0x044, 0x050, 0x060, 0x064, 0x070, 0x080, 0x084, 0x090, 0x094, 0x0A0, 0x0A4, 0x0AC,
        0x0B0, 0x0B4, 0x0B8, 0x0BC, 0x0FC,
    }  # fmt: skip


def test_legacy_registers_are_absent_from_the_modern_device(rig: Rig) -> None:
    rig.driver.write(0x030, 0)
    rig.driver.write(0x028, PAGE)
    rig.driver.write(0x03C, PAGE)
    rig.driver.write(QUEUE_PFN, RAM_BASE // PAGE)

    assert rig.driver.read(QUEUE_PFN) == 0
    assert rig.driver.read(QUEUE_READY) == 0


def test_modern_registers_are_absent_from_the_legacy_device(legacy: Rig) -> None:
    legacy.driver.write(QUEUE_READY, 1)

    assert legacy.driver.read(QUEUE_READY) == 0
    assert legacy.driver.read(0x0FC) == 0
    assert legacy.driver.status & NEEDS_RESET == 0


def test_shared_memory_regions_are_absent(rig: Rig) -> None:
    for region in (0, 1, 255):
        rig.driver.write(0x0AC, region)

        assert [rig.driver.read(at) for at in (0x0B0, 0x0B4, 0x0B8, 0x0BC)] == [0xFFFF_FFFF] * 4


@pytest.mark.parametrize("index", [2, 3, 0xFFFF_FFFF])
def test_unknown_queue_has_no_size_and_ignores_writes(any_rig: Rig, index: int) -> None:
    any_rig.driver.start()

    any_rig.driver.write(0x030, index)
    for offset in (0x038, QUEUE_PFN, QUEUE_READY, 0x080, 0x084, 0x090, 0x0A0):
        any_rig.driver.write(offset, 1)
    any_rig.driver.kick(index)

    assert any_rig.driver.read(0x034) == 0
    assert any_rig.driver.read(QUEUE_READY) == any_rig.driver.read(QUEUE_PFN) == 0
    assert any_rig.lines == []


# Features


def test_modern_device_offers_the_required_features(rig: Rig) -> None:
    offered = rig.driver.offered()

    assert offered >> 24 << 24 == F_INDIRECT | F_EVENT_IDX | F_VERSION_1


def test_legacy_device_does_not_offer_version_1(legacy: Rig) -> None:
    assert legacy.driver.offered() < 1 << 32


def test_features_beyond_64_are_none(rig: Rig) -> None:
    rig.driver.write(0x014, 2)

    assert rig.driver.read(0x010) == 0


@pytest.mark.parametrize(
    "features",
    [0, F_EVENT_IDX, F_VERSION_1 | 1 << 1, F_VERSION_1 | 1 << 33, F_VERSION_1 | 1 << 63],
    ids=["nothing", "no VERSION_1", "MULTIPORT", "ACCESS_PLATFORM", "unknown"],
)
def test_features_ok_is_refused_for_invalid_features(rig: Rig, features: int) -> None:
    rig.driver.add_status(ACKNOWLEDGE | DRIVER)

    rig.driver.accept(features)
    rig.driver.add_status(FEATURES_OK)

    assert rig.driver.status == ACKNOWLEDGE | DRIVER


def test_driver_may_try_again_with_other_features(rig: Rig) -> None:
    rig.driver.add_status(ACKNOWLEDGE | DRIVER)
    rig.driver.accept(0)
    rig.driver.add_status(FEATURES_OK)

    rig.driver.accept(F_VERSION_1)
    rig.driver.add_status(FEATURES_OK)

    assert rig.driver.status & FEATURES_OK


def test_features_ok_ends_the_negotiation(rig: Rig) -> None:
    rig.driver.negotiate(wanted=0)

    rig.driver.accept(F_VERSION_1 | F_EVENT_IDX)

    assert rig.console.driver_features == F_VERSION_1


# Status


def test_status_begins_at_0_and_keeps_what_is_set(rig: Rig) -> None:
    before = rig.driver.status
    rig.driver.write(STATUS, ACKNOWLEDGE)
    rig.driver.write(STATUS, DRIVER)

    assert before == 0
    assert rig.driver.status == ACKNOWLEDGE | DRIVER


def test_driver_cannot_set_needs_reset_or_unknown_bits(rig: Rig) -> None:
    rig.driver.write(STATUS, NEEDS_RESET | 0x30 | ACKNOWLEDGE)

    assert rig.driver.status == ACKNOWLEDGE


def test_driver_ok_without_features_ok_is_refused(rig: Rig) -> None:
    rig.driver.add_status(ACKNOWLEDGE | DRIVER)

    rig.driver.add_status(DRIVER_OK)

    assert rig.driver.status == ACKNOWLEDGE | DRIVER | NEEDS_RESET
    assert len(rig.lines) == 1
    assert rig.interrupts == 0, "DRIVER_OK is not set"


def test_failed_driver_is_not_served(rig: Rig) -> None:
    rig.driver.start()
    rig.driver.add_status(FAILED)

    rig.send(b"x")

    assert rig.sent == b""
    assert rig.lines == []


def test_nothing_is_served_before_driver_ok(rig: Rig) -> None:
    rig.driver.negotiate()
    rig.driver.rings = [rig.driver.make_ring(0), rig.driver.make_ring(1)]
    rig.send(b"early")
    before = bytes(rig.sent)

    rig.driver.add_status(DRIVER_OK)

    assert (before, bytes(rig.sent)) == (b"", b"early")


def test_legacy_driver_may_kick_before_driver_ok(legacy: Rig) -> None:
    legacy.driver.negotiate()
    legacy.driver.rings = [legacy.driver.make_ring(0), legacy.driver.make_ring(1)]

    legacy.send(b"early")

    assert legacy.sent == b"early"


def test_reset_restores_the_initial_state(any_rig: Rig) -> None:
    any_rig.driver.start()
    any_rig.send(b"x")

    any_rig.driver.reset()

    assert any_rig.driver.read(INTERRUPT_STATUS) == 0
    for index in (RECEIVEQ, TRANSMITQ):
        any_rig.driver.write(0x030, index)
        assert any_rig.driver.read(QUEUE_READY) == any_rig.driver.read(QUEUE_PFN) == 0
    assert any_rig.console.driver_features == 0


def test_driver_can_begin_again_after_a_reset(any_rig: Rig) -> None:
    for turn in range(5):
        any_rig.driver.start()
        any_rig.send(b"%d" % turn)

    assert any_rig.sent == b"01234"


# Queues


@pytest.mark.parametrize("offset", [0x038, 0x080, 0x084, 0x090, 0x094, 0x0A0, 0x0A4])
def test_queue_moved_while_live_stops_the_device(rig: Rig, offset: int) -> None:
    rig.driver.start()
    rig.driver.write(0x030, TRANSMITQ)

    rig.driver.write(offset, 0)

    assert_stopped(rig)


def test_legacy_queue_moved_while_live_stops_the_device(legacy: Rig) -> None:
    legacy.driver.start()
    legacy.driver.write(0x030, TRANSMITQ)

    legacy.driver.write(QUEUE_PFN, RAM_BASE // PAGE)

    assert_stopped(legacy)


@pytest.mark.parametrize(
    ("page_size", "align", "words"),
    [
        (0, PAGE, "receiveq got a QueuePFN, but GuestPageSize was never written"),
        (PAGE, 0, "receiveq got a QueuePFN, but QueueAlign was never written"),
        (PAGE, 3, "receiveq has QueueAlign 3, which is no power of 2"),
    ],
)
def test_legacy_queue_without_page_size_or_alignment_stops_the_device(
    legacy: Rig, page_size: int, align: int, words: str
) -> None:
    legacy.driver.add_status(ACKNOWLEDGE | DRIVER)
    for offset, value in ((0x030, RECEIVEQ), (0x038, 8), (0x028, page_size), (0x03C, align)):
        if value or offset == 0x030:
            legacy.driver.write(offset, value)

    legacy.driver.write(QUEUE_PFN, RAM_BASE // PAGE)

    assert legacy.driver.status & NEEDS_RESET
    assert legacy.driver.read(QUEUE_PFN) == 0
    (line,) = legacy.lines
    assert line.endswith(words)


def assert_stopped(rig: Rig) -> None:
    """Check the stopped device's log line, status and interrupt, and that it serves nothing."""
    assert rig.driver.status & NEEDS_RESET
    assert len(rig.lines) == 1
    assert rig.lines[0].startswith("virtio-console: ")
    assert rig.driver.acknowledge() & CONFIG_INTERRUPT
    interrupts = rig.interrupts
    rig.send(b"more")
    rig.driver.kick(RECEIVEQ)
    rig.driver.kick(TRANSMITQ)
    assert rig.console.receive(b"in") == 0
    assert rig.sent == b""
    assert (rig.interrupts, len(rig.lines)) == (interrupts, 1)


def test_stopped_device_works_again_after_a_reset(any_rig: Rig) -> None:
    any_rig.driver.start()
    any_rig.transmitq.publish(999)
    any_rig.driver.kick(TRANSMITQ)
    stopped = any_rig.driver.status & NEEDS_RESET

    any_rig.driver.start()
    any_rig.send(b"again")

    assert stopped
    assert any_rig.sent == b"again"


def test_log_of_a_broken_driver_is_bounded(rig: Rig) -> None:
    for _ in range(100):
        rig.driver.reset()
        rig.driver.write(STATUS, DRIVER_OK)

    assert 1 < len(rig.lines) < 10
    assert rig.lines[-1].endswith("further lines are left out")


def test_disabled_queue_may_be_moved(rig: Rig) -> None:
    rig.driver.start()
    rig.driver.write(0x030, TRANSMITQ)
    rig.driver.write(QUEUE_READY, 0)
    off = rig.driver.read(QUEUE_READY)

    rig.driver.rings[TRANSMITQ] = rig.driver.make_ring(TRANSMITQ, size=4)
    rig.send(b"moved")

    assert off == 0
    assert rig.sent == b"moved"


def test_legacy_queue_is_disabled_by_page_0(legacy: Rig) -> None:
    legacy.driver.start()
    legacy.driver.write(0x030, TRANSMITQ)
    page = legacy.driver.read(QUEUE_PFN)

    legacy.driver.write(QUEUE_PFN, 0)

    assert page == legacy.transmitq.desc // PAGE
    assert legacy.driver.read(QUEUE_PFN) == 0
    legacy.send(b"x")
    assert legacy.sent == b""


@pytest.mark.parametrize("size", [1, 2, 64])
def test_queue_works_at_any_size_allowed(any_rig: Rig, size: int) -> None:
    any_rig.driver.start(size=size)

    for turn in range(3 * size):
        any_rig.send(b"%d" % (turn % 10))

    assert any_rig.sent == b"".join(b"%d" % (turn % 10) for turn in range(3 * size))


@pytest.mark.parametrize("size", [0, 3, 128, 0xFFFF_FFFF])
def test_queue_of_another_size_stops_the_device(rig: Rig, size: int) -> None:
    rig.driver.negotiate()
    rig.driver.write(0x030, 0)
    ring = rig.driver.ram.take(8192)
    for offset in (0x080, 0x090, 0x0A0):
        rig.driver.write(offset, ring)
    rig.driver.write(0x038, size)

    rig.driver.write(QUEUE_READY, 1)

    assert rig.driver.read(QUEUE_READY) == 0
    assert rig.driver.status & NEEDS_RESET
    assert len(rig.lines) == 1


@pytest.mark.parametrize("high", [1, 0xFFFF_FFFF])
def test_queue_address_has_both_halves(rig: Rig, high: int) -> None:
    rig.driver.negotiate()
    rig.driver.make_ring(0)
    rig.driver.write(QUEUE_READY, 0)
    rig.driver.write(0x084, high)

    rig.driver.write(QUEUE_READY, 1)

    assert "outside RAM" in rig.lines[0]


@pytest.mark.parametrize(("page", "align"), [(0, PAGE), (PAGE, 0), (PAGE, 3), (3, PAGE)])
def test_legacy_queue_of_impossible_pages_stops_the_device(
    legacy: Rig, page: int, align: int
) -> None:
    legacy.driver.negotiate()
    legacy.driver.write(0x030, 0)
    legacy.driver.write(0x028, page)
    legacy.driver.write(0x03C, align)

    legacy.driver.write(QUEUE_PFN, RAM_BASE // PAGE)

    assert legacy.driver.status & NEEDS_RESET
    assert len(legacy.lines) == 1


def test_kick_equals_a_write_of_queue_notify(rig: Rig) -> None:
    rig.driver.start()
    rig.transmitq.add(Buffer(rig.driver.ram.put(b"x"), 1))

    rig.mmio.kick(TRANSMITQ)
    rig.mmio.kick(99)

    assert rig.sent == b"x"


# Interrupts


def test_acknowledging_clears_just_those_bits(rig: Rig) -> None:
    rig.driver.start()
    rig.send(b"x")
    rig.console.resize(1, 2)
    both = rig.driver.read(INTERRUPT_STATUS)

    rig.driver.write(0x064, 1)

    assert (both, rig.driver.read(INTERRUPT_STATUS)) == (3, 2)


def test_interrupt_status_moves_to_other_bits_and_back(rig: Rig) -> None:
    rig.driver.start()
    rig.send(b"x")
    bits = LockedInterruptBits()

    rig.mmio.use_interrupt_bits(bits)
    rig.console.resize(1, 2)
    both = bits.get()
    bits.clear(1)  # C clears it, without the transport
    seen = rig.driver.read(INTERRUPT_STATUS)
    rig.mmio.use_interrupt_bits(None)
    bits.set(0xFF)  # no longer in use

    assert (both, seen, rig.driver.read(INTERRUPT_STATUS)) == (3, 2, 2)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_state_includes_the_interrupt_status(rig: Rig, elsewhere: bool) -> None:
    rig.driver.start()
    if elsewhere:
        rig.mmio.use_interrupt_bits(LockedInterruptBits())
    rig.console.resize(1, 2)

    state = rig.mmio.state()
    rig.driver.write(0x064, 2)
    after = rig.driver.read(INTERRUPT_STATUS)
    rig.mmio.restore(state, "virtio0")

    assert state["registers"]["InterruptStatus"] == 2
    assert (after, rig.driver.read(INTERRUPT_STATUS)) == (0, 2)


def test_every_event_is_an_edge_without_an_acknowledgement(rig: Rig) -> None:
    rig.driver.start(wanted=0)

    rig.send(b"x")
    rig.send(b"y")

    assert rig.interrupts == 2


# Configuration space


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_configuration_is_read_at_any_place_and_width(any_rig: Rig, length: int) -> None:
    any_rig.console.resize(0x1122, 0x3344)
    content = bytes.fromhex("22114433") + bytes(0x200)

    for offset in range(0x100):
        value = any_rig.mmio.mmio_read(0x100 + offset, length)

        assert value.to_bytes(length, "little") == content[offset : offset + length]


def test_config_generation_changes_with_every_change(rig: Rig) -> None:
    seen = set()
    for columns in range(1, 10):
        rig.console.resize(columns, 25)
        seen.add(rig.driver.read(0x0FC))

    assert len(seen) == 9
