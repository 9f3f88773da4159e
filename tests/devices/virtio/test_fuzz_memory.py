"""Memory devices with random drivers: 2,000 malicious rings and 1,000 storms each.

A case is its seed, as in test_fuzz.py. Nothing is raised, every case ends, memory outside RAM and
plugged blocks is never touched (GuestMemory.OutOfRange would be raised), a device that stops says
so in one line and works again after a reset, and what it counts is what is so.
"""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator

import pytest

from pyvmm.devices.virtio.balloonpages import PAGE
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory, OutOfRange
from tests.devices.virtio import test_balloon, test_mem
from tests.devices.virtio.driver import NEEDS_RESET, Buffer
from tests.devices.virtio.test_fuzz import Scribbler
from tests.devices.virtio.test_mem import ADDR, BLOCK, BLOCKS

BATCHES = 10
RINGS = 200  # cases a batch
STORMS = 100

RAM_SIZE = 4 * MIB
BUFFERS = 0x4000  # bytes at the start of RAM that descriptors point at
DIFFERENT = 128  # pages or requests of a case: to draw one takes longer than to handle it

Rig = test_balloon.Rig | test_mem.Rig
KINDS = ("balloon", "mem")
QUEUES = {"balloon": 5, "mem": 1}


@pytest.fixture
def ram() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, RAM_SIZE) as memory:
        yield memory


def fresh(kind: str, ram: GuestMemory, rng: random.Random) -> Rig:
    if kind == "balloon":
        return test_balloon.Rig(ram, legacy=rng.random() < 0.3)
    return test_mem.Rig(ram)


def close(rig: Rig) -> None:
    if isinstance(rig, test_mem.Rig):
        rig.close()
    else:
        rig.balloon.stop()


def plausible(kind: str, rng: random.Random) -> bytes:
    """Return buffers' contents, some of them valid."""
    if kind == "balloon":
        first = RAM_BASE // PAGE
        pages = [rng.choice([first + rng.randrange(2000), rng.randrange(4), rng.randrange(1 << 32)])
                 for _ in range(DIFFERENT)]  # fmt: skip
        return struct.pack(f"<{BUFFERS // 4}I", *rng.choices(pages, k=BUFFERS // 4))
    request = struct.Struct("<H6xQH6x")
    requests = [
        request.pack(
            rng.choice([0, 0, 1, 1, 2, 3, 4]),
            ADDR + rng.randrange(-1, BLOCKS + 1) * BLOCK + rng.choice([0, 0, 0, 0, 1]),
            rng.choice([0, 1, 1, 1, 2, 3, 0xFFFF]),
        )
        for _ in range(DIFFERENT)
    ]
    return b"".join(rng.choices(requests, k=BUFFERS // request.size)).ljust(BUFFERS, b"\0")


def wish(rig: Rig, rng: random.Random) -> None:
    """Run a random action of the machine's owner."""
    if isinstance(rig, test_mem.Rig):
        rig.mem.request(rng.randrange(BLOCKS + 1) * BLOCK)
        assert rig.mem.info()["plugged_bytes"] == len(rig.shown) * BLOCK
        return
    match rng.randrange(5):
        case 0:
            rig.balloon.request(rng.randrange(1 << 10))
        case 1:
            rig.balloon.start_hinting()
        case 2:
            rig.balloon.stop_hinting()
        case 3:
            rig.balloon.refresh_statistics(0.0)
        case 4:
            rig.balloon.drain()
    count = sum(count for _, count in rig.balloon.pages.runs())
    assert rig.balloon.info()["actual_bytes"] == count * PAGE


def requests(kind: str, rig: Rig, rng: random.Random) -> None:
    """Return requests of the right size with random content."""
    if kind != "mem":
        return
    for _ in range(rng.randrange(6)):
        head = rng.randrange(8) * 24
        ram, ring = rig.driver.ram, rig.driver.rings[0]
        if not rig.driver.status & NEEDS_RESET:
            ring.start_at(ring.ram.read(ring.used + 2, "<H"))
            ring.raw(0, RAM_BASE + head, 24, 1, 1)
            ring.raw(1, RAM_BASE + 0x3000, 10, 2)
            ram.write(ring.avail + 4 + 2 * (ring.idx % ring.size), "<H", 0)
            ring.idx = (ring.idx + 1) & 0xFFFF
            ram.write(ring.avail + 2, "<H", ring.idx)
            rig.driver.kick(0)


def run_rings(kind: str, rig: Rig, rng: random.Random) -> None:
    driver, scribbler = rig.driver, Scribbler(rng)
    driver.ram.next = RAM_BASE + 0x8000
    driver.start(queues=QUEUES[kind], size=rng.choice([2, 8, 16]))
    driver.ram.memory.write(RAM_BASE, plausible(kind, rng))
    for _ in range(rng.randrange(1, 6)):
        wish(rig, rng)
        requests(kind, rig, rng)
        if kind == "mem" and rng.random() < 0.8:  # few rings have a request of the right size
            continue
        queue = rng.randrange(QUEUES[kind])
        scribbler.ring(driver.rings[queue], queue == 4, False)
        driver.kick(queue)
    wish(rig, rng)


def check_recovery(kind: str, rig: Rig) -> None:
    assert len(rig.lines) == bool(rig.driver.status & NEEDS_RESET)
    rig.driver.ram.next = RAM_BASE
    rig.start()
    if isinstance(rig, test_mem.Rig):
        rig.mem.request(BLOCKS * BLOCK)
        assert rig.ask(2)[0] == 0
        assert rig.ask(0, 0, BLOCKS)[0] == 0
        assert rig.memory.contains(ADDR, BLOCKS * BLOCK)
    else:
        rig.name_pages(test_balloon.INFLATEQ, RAM_BASE + MIB, RAM_BASE + 2 * MIB)
        assert rig.balloon.pages.count == 2
    close(rig)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_malicious_rings_stop_at_most_their_device(ram: GuestMemory, kind: str, batch: int) -> None:
    stopped = served = 0
    for case in range(RINGS):
        rng = random.Random(batch * RINGS + case)
        rig = fresh(kind, ram, rng)
        run_rings(kind, rig, rng)
        stopped += len(rig.lines)
        served += not rig.lines
        check_recovery(kind, rig)

    assert stopped > RINGS // 20
    assert served > RINGS // 20


def random_access(rig: Rig, rng: random.Random) -> None:
    known = [*(reg.offset for reg in type(rig.mmio).registers), *range(0x100, 0x140, 4)]
    offset = rng.choice(known) if rng.random() < 0.8 else rng.randrange(0x200)
    length = 4 if rng.random() < 0.8 else rng.choice([1, 2, 8])
    if rng.random() < 0.3:
        assert 0 <= rig.mmio.mmio_read(offset, length) < 1 << 8 * length
        return
    few = [0, 1, 2, 4, 8, 16, 64, 0x80, 4096, RAM_BASE, RAM_BASE // 4096, 0xFFFF_FFFF]
    value = rng.choice(few) if rng.random() < 0.9 else rng.randrange(1 << 8 * length)
    rig.mmio.mmio_write(offset, length, value & (1 << 8 * length) - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_storm_of_accesses_stops_at_most_the_device(
    ram: GuestMemory, kind: str, batch: int
) -> None:
    for case in range(STORMS):
        rng = random.Random(batch * STORMS + case)
        rig = fresh(kind, ram, rng)
        ram.write(RAM_BASE, rng.randbytes(0x1000))
        rig.driver.ram.next = RAM_BASE + 0x8000
        if rng.random() < 0.7:
            rig.driver.start(queues=QUEUES[kind], size=8)
        for _ in range(60):
            random_access(rig, rng)
            if rng.random() < 0.2:
                wish(rig, rng)
        rig.lines.clear()
        rig.driver.reset()
        check_recovery(kind, rig)


class Fading(GuestMemory):
    """RAM that another vCPU may unplug between any two accesses."""

    rng = random.Random(0)

    def _gone(self) -> None:
        if self.rng.random() < 0.02:
            raise OutOfRange(self.base, 1, "it was here a moment ago")

    def view(self, gpa: int, length: int) -> memoryview:
        found = super().view(gpa, length)
        if gpa < RAM_BASE + BUFFERS:
            self._gone()
        return found

    def discard(self, gpa: int, length: int) -> None:
        self._gone()
        super().discard(gpa, length)

    def prefer_huge_pages(self, gpa: int, length: int, prefer: bool) -> None:
        self._gone()
        super().prefer_huge_pages(gpa, length, prefer)


@pytest.mark.parametrize("batch", range(2))
def test_unplugging_during_a_request_stops_at_most_the_device(batch: int) -> None:
    for case in range(100):
        run_on_fading_memory(batch * 100 + case)


def run_on_fading_memory(seed: int) -> None:
    rng = random.Random(seed)
    with Fading(RAM_BASE, RAM_SIZE) as ram:
        ram.rng = random.Random(seed)
        rig = test_balloon.Rig(ram)
        driver = rig.driver
        driver.ram.next = RAM_BASE + 0x8000
        driver.start(queues=5, size=16)
        rig.balloon.start_hinting()
        for _ in range(30):
            places = [Buffer(RAM_BASE + rng.randrange(BUFFERS), 4, rng.random() < 0.3)]
            queue = rng.randrange(5)
            if not driver.status & NEEDS_RESET:
                ring = driver.rings[queue]
                pages = struct.pack("<2I", (RAM_BASE + MIB) // PAGE, (RAM_BASE >> 12) + 300 + queue)
                with contextlib.suppress(OutOfRange):
                    ram.write(places[0].addr, pages)
                ring.add(*places)
                driver.kick(queue)
        rig.balloon.stop()
