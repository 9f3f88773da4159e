"""Random drivers: 6,000 malicious rings and 1,500 storms of register accesses.

A case is its seed: `pytest -k "rings and 17"` runs batch 17 again. What counts is that nothing is
raised (an access outside RAM would be: GuestMemory.OutOfRange), that every case ends, and that a
device that stops says so in one line and works again after a reset.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.conftest import RECEIVEQ, TRANSMITQ, Rig
from tests.devices.virtio.driver import DRIVER_OK, F_INDIRECT, NEEDS_RESET, Ram, Ring

BATCHES = 30
RINGS = 200  # cases a batch
STORMS = 50

RAM_SIZE = 0x10000
END = RAM_BASE + RAM_SIZE
OUTPUT_MOST = 1 << 20  # bytes; a case that outputs more ends there

ADDRESSES = [
    0, 1, RAM_BASE - 1, RAM_BASE, RAM_BASE + 0x8000, END - 1, END, 1 << 32, (1 << 64) - 1,
]  # fmt: skip
LENGTHS = [0, 1, 2, 15, 16, 17, 32, 48, 256, RAM_SIZE, RAM_SIZE + 1, (1 << 31), (1 << 32) - 1]


class Enough(Exception):
    """A case that ends early."""


@pytest.fixture
def small() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, RAM_SIZE) as ram:
        yield ram


def fresh(memory: GuestMemory, rng: random.Random) -> Rig:
    rig = Rig(memory, legacy=rng.random() < 0.3)

    def output(data: bytes) -> None:
        rig.sent += data
        if len(rig.sent) > OUTPUT_MOST:
            raise Enough

    rig.console.output = output
    return rig


class Scribbler:
    """A driver that makes a share of its descriptors random, another share in each case."""

    TABLES = RAM_BASE + 0x4000  # indirect ones

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.share = rng.choice([0.0, 0.01, 0.1, 0.5])

    def wild(self) -> bool:
        return self.rng.random() < self.share

    def descriptors(self, ram: Ram, table: int, count: int, write: bool, indirect: bool) -> None:
        rng = self.rng
        for index in range(count):
            address, length = RAM_BASE + rng.randrange(0x4000), 1 + rng.randrange(0x100)
            flags = 2 * write + (index + 1 < count and rng.random() < 0.5)
            next_ = index + 1
            if indirect and rng.random() < 0.2:
                address, length, flags = self.TABLES + 0x1000 * write, 16 * 8, 4
            if self.wild():
                address = rng.choice(ADDRESSES)
            if self.wild():
                length = rng.choice(LENGTHS)
            if self.wild():
                flags = rng.choice([*range(8), rng.randrange(1 << 16)])
            if self.wild():
                next_ = rng.choice([index, 0, count, rng.randrange(1 << 16)])
            ram.write(table + 16 * index, "<QIHH", address, length, flags, next_)

    def ring(self, ring: Ring, write: bool, indirect: bool) -> None:
        """Fill a ring, and make some of it available."""
        rng = self.rng
        self.descriptors(ring.ram, ring.desc, ring.size, write, indirect)
        for entry in range(ring.size):
            head = rng.randrange(1 << 16) if self.wild() else rng.randrange(ring.size)
            ring.ram.write(ring.avail + 4 + 2 * entry, "<H", head)
        more = rng.randrange(1 << 16) if self.wild() else rng.randrange(ring.size + 1)
        used = ring.ram.read(ring.used + 2, "<H")
        ring.idx = (used + more) & 0xFFFF
        ring.ram.write(ring.avail, "<HH", rng.randrange(1 << 16), ring.idx)
        ring.set_used_event(rng.randrange(1 << 16))


def run_rings(rig: Rig, rng: random.Random) -> None:
    driver, scribbler = rig.driver, Scribbler(rng)
    driver.ram.next = RAM_BASE + 0x8000  # rings above, buffers and tables below
    driver.start(wanted=rng.choice([-1, 0, 1 << 28, 1 << 29]), size=rng.choice([1, 2, 8, 64]))
    indirect = bool(driver.features & F_INDIRECT)
    for write in (False, True):
        scribbler.descriptors(
            driver.ram,
            scribbler.TABLES + 0x1000 * write,
            min(8, driver.rings[0].size),
            write,
            False,
        )
    for _ in range(rng.randrange(1, 5)):
        queue = rng.choice([RECEIVEQ, TRANSMITQ])
        scribbler.ring(driver.rings[queue], queue == RECEIVEQ, indirect)
        driver.kick(queue)
        rig.console.receive(rng.randbytes(rng.randrange(2000)))


def check_recovery(rig: Rig) -> None:
    """Check the log, one line if the device stopped, and that it works again."""
    stopped = bool(rig.driver.status & NEEDS_RESET)
    assert len(rig.lines) == stopped
    rig.sent.clear()
    rig.driver.ram.next = RAM_BASE
    rig.driver.start()
    rig.send(b"well again")
    assert rig.sent == b"well again"
    rig.console.stop()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_malicious_rings_stop_at_most_their_device(small: GuestMemory, batch: int) -> None:
    stopped = served = 0
    for case in range(RINGS):
        rng = random.Random(batch * RINGS + case)
        rig = fresh(small, rng)
        with contextlib.suppress(Enough):
            run_rings(rig, rng)
        stopped += len(rig.lines)
        served += not rig.lines
        check_recovery(rig)

    assert stopped > RINGS // 10
    assert served > RINGS // 10


def random_access(rig: Rig, rng: random.Random) -> None:
    """Return a random access of any width, more often to important registers."""
    known = [reg.offset for reg in type(rig.mmio).registers]
    offset = rng.choice(known) if rng.random() < 0.8 else rng.randrange(0x200)
    length = 4 if rng.random() < 0.8 else rng.choice([1, 2, 8])
    if rng.random() < 0.3:
        value = rig.mmio.mmio_read(offset, length)
        assert 0 <= value < 1 << 8 * length
        return
    small_values = [0, 1, 2, 4, 8, 16, 64, 0x80, 4096, RAM_BASE, RAM_BASE // 4096, 0xFFFF_FFFF]
    value = rng.choice(small_values) if rng.random() < 0.9 else rng.randrange(1 << 8 * length)
    rig.mmio.mmio_write(offset, length, value & (1 << 8 * length) - 1)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_storm_of_accesses_stops_at_most_the_device(small: GuestMemory, batch: int) -> None:
    for case in range(STORMS):
        rng = random.Random(batch * STORMS + case)
        small.write(RAM_BASE, rng.randbytes(0x1000))
        rig = fresh(small, rng)
        rig.driver.ram.next = RAM_BASE + 0x8000
        with contextlib.suppress(Enough):
            if rng.random() < 0.7:
                rig.driver.start(size=8)
            for _ in range(100):
                random_access(rig, rng)
                rig.console.receive(b"typed")
                rig.console.resize(rng.randrange(1 << 16), rng.randrange(1 << 16))
        rig.lines.clear()
        rig.driver.reset()
        check_recovery(rig)
        assert rig.driver.status & DRIVER_OK
