"""The balloon, used by its driver and the machine."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from pyvmm.control.service import resident
from pyvmm.devices.state import StateError
from pyvmm.devices.virtio.balloon import PFN_BLOCK, PFN_MOST, VirtioBalloon
from pyvmm.devices.virtio.balloonpages import PAGE
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import INT_CONFIG, NEEDS_RESET, Buffer, Driver

INFLATEQ, DEFLATEQ, STATSQ, FREE_PAGE_VQ, REPORTING_VQ = range(5)
F_STATS_VQ, F_FREE_PAGE_HINT, F_PAGE_POISON = 1 << 1, 1 << 3, 1 << 4
NUM_PAGES, ACTUAL, CMD_ID, POISON_VAL = 0x100, 0x104, 0x108, 0x10C

RAM_SIZE = 16 * MIB
PAGES = RAM_BASE + 8 * MIB  # above the driver's own buffers


class Rig:
    """A balloon with its guest."""

    def __init__(self, memory: GuestMemory, *, legacy: bool = False) -> None:
        self.memory = memory
        self.lines: list[str] = []
        self.now = 100.0
        self.balloon = VirtioBalloon(memory, self.lines.append, lambda: self.now)
        self.on_interrupt: Callable[[], None] = lambda: None
        self.mmio = VirtioMmio(self.balloon, lambda: self.on_interrupt(), legacy=legacy)
        self.driver = Driver(self.mmio, memory)

    def start(self, wanted: int = -1) -> None:
        self.driver.start(queues=5, wanted=wanted, size=16)

    def send(self, queue: int, data: bytes) -> int:
        head = self.driver.rings[queue].add(Buffer(self.driver.ram.put(data), len(data)))
        self.driver.kick_if_wanted(queue)
        return head

    def name_pages(self, queue: int, *addresses: int) -> int:
        return self.send(queue, struct.pack(f"<{len(addresses)}I", *(a // PAGE for a in addresses)))

    def offer(self, queue: int, *places: tuple[int, int]) -> int:
        """Return free pages as writable buffers."""
        head = self.driver.rings[queue].add(*(Buffer(*place, write=True) for place in places))
        self.driver.kick_if_wanted(queue)
        return head

    def used(self, queue: int) -> list[int]:
        return [head for head, _ in self.driver.rings[queue].take_used()]

    def resident_at(self, gpa: int, length: int) -> int:
        assert gpa % length == 0
        data = self.memory.read(gpa, length)
        return len(data) - data.count(0)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, RAM_SIZE) as ram:
        yield ram


@pytest.fixture
def rig(memory: GuestMemory) -> Iterator[Rig]:
    made = Rig(memory)
    yield made
    made.balloon.stop()


@pytest.fixture
def legacy(memory: GuestMemory) -> Iterator[Rig]:
    made = Rig(memory, legacy=True)
    yield made
    made.balloon.stop()


@pytest.fixture(params=["modern", "legacy"])
def any_rig(memory: GuestMemory, request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(memory, legacy=request.param == "legacy")
    yield made
    made.balloon.stop()


def test_inflated_pages_are_discarded(any_rig: Rig) -> None:
    memory = any_rig.memory
    any_rig.start()
    memory.write(PAGES, b"\xff" * 4 * MIB)
    before = resident((memory.host_address, memory.size))

    for start in range(PAGES, PAGES + 4 * MIB, MIB):
        head = any_rig.name_pages(INFLATEQ, *range(start, start + MIB, PAGE))
        assert any_rig.used(INFLATEQ) == [head]

    assert resident((memory.host_address, memory.size)) == before - 4 * MIB
    assert any_rig.balloon.info()["actual_bytes"] == 4 * MIB
    assert memory.read(PAGES, 4 * MIB) == bytes(4 * MIB)


def test_deflated_pages_leave_the_balloon(any_rig: Rig) -> None:
    any_rig.start()
    any_rig.name_pages(INFLATEQ, PAGES, PAGES + PAGE, PAGES + 2 * PAGE)

    head = any_rig.name_pages(DEFLATEQ, PAGES + PAGE)

    assert any_rig.used(DEFLATEQ) == [head]
    assert list(any_rig.balloon.pages.runs()) == [(PAGES // PAGE, 1), (PAGES // PAGE + 2, 1)]


def test_array_of_pages_may_be_divided_anywhere(rig: Rig) -> None:
    rig.start()
    data = struct.pack("<3I", *(PAGES // PAGE + n for n in (0, 1, 2)))
    parts = [data[:3], data[3:10], data[10:]]

    rig.driver.rings[INFLATEQ].add(*(Buffer(rig.driver.ram.put(p), len(p)) for p in parts))
    rig.driver.kick(INFLATEQ)

    assert list(rig.balloon.pages.runs()) == [(PAGES // PAGE, 3)]


def test_request_interrupts_the_guest_once(rig: Rig) -> None:
    rig.start()
    rig.driver.acknowledge()
    interrupts: list[None] = []
    rig.on_interrupt = lambda: interrupts.append(None)

    rig.balloon.request(512)
    rig.balloon.request(512)

    assert rig.driver.read(NUM_PAGES) == 512
    assert rig.driver.acknowledge() == INT_CONFIG
    assert len(interrupts) == 1


def test_request_before_the_driver_waits_for_it(rig: Rig) -> None:
    rig.balloon.request(512)

    assert rig.balloon.info() == {
        "target_bytes": 2 * MIB, "actual_bytes": 0, "has_driver": False,
        "hinting": False, "hinted_bytes": 0, "reported_bytes": 0,
    }  # fmt: skip
    rig.start()
    assert rig.driver.read(NUM_PAGES) == 512
    assert rig.balloon.info()["has_driver"]


def test_legacy_driver_writes_a_field_byte_by_byte(legacy: Rig) -> None:
    legacy.start()

    for at in range(4):
        legacy.mmio.mmio_write(ACTUAL + at, 1, 0x0403_0201 >> 8 * at & 0xFF)

    assert legacy.balloon.actual == 0x0403_0201
    assert [legacy.mmio.mmio_read(ACTUAL + at, 1) for at in range(4)] == [1, 2, 3, 4]


def test_driver_cannot_write_the_devices_fields(rig: Rig) -> None:
    rig.start()
    rig.balloon.request(3)

    for field in (NUM_PAGES, CMD_ID, 0x110, 0x1FF):
        rig.driver.write(field, 77)

    assert rig.driver.read(NUM_PAGES) == 3
    assert rig.driver.read(CMD_ID) == 0


def test_reset_returns_all_pages_and_keeps_the_target(rig: Rig) -> None:
    rig.start()
    rig.balloon.request(2)
    rig.name_pages(INFLATEQ, PAGES, PAGES + PAGE)

    rig.driver.reset()

    assert rig.balloon.info()["actual_bytes"] == 0
    assert rig.driver.read(NUM_PAGES) == 2


def test_reset_in_the_middle_of_a_long_array_ends_it(rig: Rig) -> None:
    """Release the lock between blocks of a long array."""
    rig.start()
    guard = rig.balloon.guard
    blocks: list[None] = []

    class Resetting:
        """Return a guard; after its first use another vCPU resets the device."""

        def __enter__(self) -> None:
            guard.__enter__()

        def __exit__(self, *error: Any) -> bool:
            swallowed = guard.__exit__(*error)
            if rig.balloon.pages.count:
                blocks.append(None)
                rig.driver.reset()
            return swallowed

    rig.balloon.guard = cast("Any", Resetting())
    data = struct.pack("<I", PAGES // PAGE) * (3 * PFN_BLOCK // 4)

    rig.send(INFLATEQ, data)

    assert len(blocks) == 1
    assert rig.balloon.pages.count == 0
    assert rig.lines == []


# Statistics


def stats(**values: int) -> bytes:
    tags = {"swap_in": 0, "free": 4, "total": 5, "unknown": 999}
    return b"".join(struct.pack("<HQ", tags[name], value) for name, value in values.items())


def test_statistics_are_requested_anew_each_time(rig: Rig) -> None:
    rig.start()
    rig.send(STATSQ, stats(free=1))
    first = rig.balloon.statistics
    answers = iter([stats(total=2 * MIB, unknown=5, free=MIB)])

    def answer() -> None:
        """Refill the returned buffer from another vCPU, as the driver does."""

        def work() -> None:
            if rig.used(STATSQ):
                rig.now = 107.0
                rig.send(STATSQ, next(answers))

        threading.Thread(target=work).start()

    rig.on_interrupt = answer
    found = rig.balloon.refresh_statistics(10.0)

    assert first is not None
    assert first.values == {"free_bytes": 1}
    assert found is not None
    assert found.values == {"total_bytes": 2 * MIB, "free_bytes": MIB}
    assert found.at == 107.0


def test_statistics_do_not_wait_for_a_guest_without_them(rig: Rig) -> None:
    rig.start(wanted=~F_STATS_VQ)

    assert rig.balloon.refresh_statistics(60.0) is None


def test_statistics_stay_the_old_ones_when_the_guest_stalls(rig: Rig) -> None:
    rig.start()
    rig.send(STATSQ, stats(free=1))

    found = rig.balloon.refresh_statistics(0.01)

    assert found is not None
    assert found.values == {"free_bytes": 1}


def test_first_statistics_of_a_legacy_driver_are_ignored(legacy: Rig) -> None:
    legacy.start()

    legacy.send(STATSQ, stats(free=1))
    assert legacy.balloon.statistics is None
    legacy.balloon.refresh_statistics(0.0)
    legacy.send(STATSQ, stats(free=2))

    assert legacy.balloon.statistics is not None


# Reports and hints


def test_reported_pages_are_discarded(rig: Rig) -> None:
    rig.start()
    rig.memory.write(PAGES, b"\xff" * 4 * MIB)

    head = rig.offer(REPORTING_VQ, (PAGES, 2 * MIB), (PAGES + 3 * MIB, MIB))

    assert rig.used(REPORTING_VQ) == [head]
    assert rig.balloon.info()["reported_bytes"] == 3 * MIB
    left = rig.memory.read(PAGES, 4 * MIB)
    assert left == bytes(2 * MIB) + b"\xff" * MIB + bytes(MIB)


@pytest.mark.parametrize("poison", [0, 0xAA])
def test_poisoned_pages_are_not_discarded(rig: Rig, poison: int) -> None:
    rig.driver.negotiate()
    rig.driver.write(POISON_VAL, poison)
    rig.driver.rings = [rig.driver.make_ring(index, 16) for index in range(5)]
    rig.driver.add_status(4)
    rig.memory.write(PAGES, b"\xaa" * PAGE)

    head = rig.offer(REPORTING_VQ, (PAGES, PAGE))

    assert rig.used(REPORTING_VQ) == [head]
    assert rig.memory.read(PAGES, 1) == (b"\xaa" if poison else b"\0")
    assert rig.balloon.info()["reported_bytes"] == (0 if poison else PAGE)


def command(number: int) -> bytes:
    return struct.pack("<I", number)


def test_round_of_hints_discards_the_hinted_pages(rig: Rig) -> None:
    rig.start()
    rig.memory.write(PAGES, b"\xff" * 4 * MIB)

    assert rig.balloon.start_hinting()
    number = rig.driver.read(CMD_ID)
    assert number >= 2
    rig.send(FREE_PAGE_VQ, command(number))
    rig.offer(FREE_PAGE_VQ, (PAGES, 2 * MIB))
    assert rig.memory.read(PAGES, 2 * MIB) == bytes(2 * MIB)  # when the kick returns
    assert rig.balloon.is_hinting
    rig.send(FREE_PAGE_VQ, command(0))

    assert rig.driver.read(CMD_ID) == 1
    assert not rig.balloon.info()["hinting"]
    assert rig.balloon.info()["hinted_bytes"] == 2 * MIB
    assert len(rig.used(FREE_PAGE_VQ)) == 3
    assert rig.balloon.start_hinting()
    assert rig.driver.read(CMD_ID) == number + 1


@pytest.mark.parametrize("begin", [None, 0, 1, 77])
def test_hints_of_another_round_are_ignored(rig: Rig, begin: int | None) -> None:
    rig.start()
    rig.memory.write(PAGES, b"\xff")
    rig.balloon.start_hinting()

    if begin is not None:
        rig.send(FREE_PAGE_VQ, command(begin))
    head = rig.offer(FREE_PAGE_VQ, (PAGES, PAGE))

    assert head in rig.used(FREE_PAGE_VQ)
    assert rig.memory.read(PAGES, 1) == b"\xff"


def test_hints_after_the_end_of_their_round_are_ignored(rig: Rig) -> None:
    rig.start()
    rig.memory.write(PAGES, b"\xff")
    rig.balloon.start_hinting()
    rig.send(FREE_PAGE_VQ, command(rig.driver.read(CMD_ID)))

    rig.balloon.stop_hinting()
    rig.offer(FREE_PAGE_VQ, (PAGES, PAGE))

    assert rig.driver.read(CMD_ID) == 1
    assert rig.memory.read(PAGES, 1) == b"\xff"


def test_late_stop_of_a_stopped_round_does_not_end_the_next(rig: Rig) -> None:
    """Send a stop as Linux does after the round has changed (send_free_pages())."""
    rig.start()
    rig.memory.write(PAGES, b"\xff" * MIB)
    rig.balloon.start_hinting()
    rig.send(FREE_PAGE_VQ, command(rig.driver.read(CMD_ID)))
    rig.balloon.stop_hinting()
    rig.balloon.start_hinting()

    rig.send(FREE_PAGE_VQ, command(0))
    assert rig.balloon.is_hinting
    rig.send(FREE_PAGE_VQ, command(rig.driver.read(CMD_ID)))
    rig.offer(FREE_PAGE_VQ, (PAGES, MIB))
    rig.send(FREE_PAGE_VQ, command(0))

    assert not rig.balloon.info()["hinting"]
    assert rig.balloon.info()["hinted_bytes"] == MIB
    assert rig.memory.read(PAGES, MIB) == bytes(MIB)


def test_reset_in_a_round_of_hints_ends_it(rig: Rig) -> None:
    rig.start()
    rig.memory.write(PAGES, b"\xff")
    rig.balloon.start_hinting()
    rig.send(FREE_PAGE_VQ, command(rig.driver.read(CMD_ID)))

    rig.driver.reset()
    rig.start()
    rig.offer(FREE_PAGE_VQ, (PAGES, PAGE))

    assert not rig.balloon.is_hinting
    assert rig.memory.read(PAGES, 1) == b"\xff"


def test_no_round_of_hints_begins_without_a_driver_that_hints(rig: Rig) -> None:
    assert not rig.balloon.start_hinting()
    rig.start(wanted=~F_FREE_PAGE_HINT)
    assert not rig.balloon.start_hinting()


# Invalid requests


@pytest.mark.parametrize(
    ("queue", "data", "write", "words"),
    [
        (INFLATEQ, struct.pack("<I", RAM_BASE // PAGE - 1), False, "0x7ffff to 0x7ffff"),
        (INFLATEQ, struct.pack("<I", (1 << 32) - 1), False, "not all RAM"),
        (INFLATEQ, b"123", False, "not an array of page numbers"),
        (INFLATEQ, bytes(PFN_MOST + 4), False, "of at most 65536 bytes"),
        (DEFLATEQ, b"1", False, "not an array of page numbers"),
        (STATSQ, bytes(10), True, "has a writable buffer"),
        (FREE_PAGE_VQ, b"12345", False, "not a command id"),
        (REPORTING_VQ, b"1234", False, "has a readable buffer"),
    ],
)
def test_driver_that_breaks_a_rule_stops_its_device(
    rig: Rig, queue: int, data: bytes, write: bool, words: str
) -> None:
    rig.start()

    rig.driver.rings[queue].add(Buffer(rig.driver.ram.put(data), len(data), write=write))
    rig.driver.kick(queue)

    assert rig.driver.status & NEEDS_RESET
    assert len(rig.lines) == 1
    assert words in rig.lines[0]
    rig.start()
    rig.name_pages(INFLATEQ, PAGES)
    assert rig.balloon.pages.count == 1


# Snapshots


def test_restored_balloon_has_its_pages_and_target(rig: Rig) -> None:
    rig.start()
    rig.balloon.request(5)
    rig.name_pages(INFLATEQ, PAGES, PAGES + PAGE, PAGES + 9 * PAGE)
    rig.driver.write(ACTUAL, 3)
    rig.send(STATSQ, stats(free=1))
    rig.balloon.drain()
    state = json.loads(json.dumps(rig.mmio.state()))
    with GuestMemory(RAM_BASE, RAM_SIZE) as memory:
        memory.write(RAM_BASE, rig.memory.read(RAM_BASE, RAM_SIZE))
        other = Rig(memory)
        other.mmio.restore(state, "it")

        assert other.mmio.state() == state
        assert other.balloon.info()["actual_bytes"] == 3 * PAGE
        assert other.driver.read(ACTUAL) == 3
        assert other.driver.read(NUM_PAGES) == 5
        assert not other.driver.status & NEEDS_RESET
        other.balloon.stop()
    assert len(rig.used(STATSQ)) == 1  # returned to the driver


@pytest.mark.parametrize(
    "pages",
    [
        None, 5, [5], [[1]], [[1, 2, 3]], [[-1, 2]], [[0, 0]], [[511, 2]], [[0, 513]],
        [[1 << 32, 1]], [["0", 1]], [[True, 1]], [[0, 1], {}],
    ],
)  # fmt: skip
def test_restore_refuses_invalid_pages(rig: Rig, pages: object) -> None:
    state = rig.balloon.state()
    state["own"]["pages"] = pages

    with pytest.raises(StateError, match="pages"):
        rig.balloon.restore(state, "it")
