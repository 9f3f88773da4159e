"""Disks, persistent memory and entropy with random drivers: 800 rings and 200 storms each.

A case is its seed, as in test_fuzz.py. Nothing is raised, in no thread; every case ends; memory
outside RAM is never touched (GuestMemory.OutOfRange would be raised) and neither is what lies
around the disk in its file; a device that stops says so in one line and works again after a reset;
another device goes on meanwhile.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.devices.diskfile import DiskFile
from pyvmm.devices.virtio.blk import VirtioBlk
from pyvmm.devices.virtio.pmem import VirtioPmem
from pyvmm.devices.virtio.rng import VirtioRng
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.file import FileMemory
from pyvmm.memory.map import MemoryMap
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import NEEDS_RESET, Buffer
from tests.devices.virtio.rig import DeviceRig
from tests.devices.virtio.test_fuzz import Scribbler

BATCHES = 4
RINGS = 200  # cases a batch
STORMS = 50

RAM_SIZE = MIB
BUFFERS = 0x4000  # bytes at the start of RAM that descriptors point at
DIFFERENT = 64  # headers of a case: to draw one takes longer than to handle it
SECTORS = 64
WINDOW = RAM_BASE + 64 * MIB
TAIL = b"what is no whole sector is nobody's"

Rig = DeviceRig[VirtioBlk] | DeviceRig[VirtioPmem] | DeviceRig[VirtioRng]
KINDS = ("blk", "blk,ro", "pmem", "rng")


class Bench:
    """The memory and the files of a batch's devices."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.path = directory / "disk"
        self.path.write_bytes(bytes(SECTORS * 512) + TAIL)
        self.ram = GuestMemory(RAM_BASE, RAM_SIZE)
        self.disk = DiskFile(self.path, option="-d", read_only=kind == "blk,ro")
        self.pmem = FileMemory(self.disk.fd, WINDOW, 4096, read_only=kind == "blk,ro")
        self.map = MemoryMap(self.ram, self.pmem)

    def rig(self, rng: random.Random) -> Rig:
        legacy = rng.random() < 0.3
        if self.kind == "rng":
            return DeviceRig(self.ram, lambda _, log: VirtioRng(self.map, log), legacy=legacy)
        if self.kind == "pmem":
            return DeviceRig(
                self.ram, lambda _, log: VirtioPmem(self.map, self.disk, self.pmem, log)
            )
        return DeviceRig(
            self.ram, lambda _, log: VirtioBlk(self.map, self.disk, b"x" * 20, log), legacy=legacy
        )

    def close(self) -> None:
        self.pmem.__exit__(None, None, None)
        self.disk.close()
        self.ram.close()


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(request.param, tmp_path)
    yield made
    made.close()


def plausible(rng: random.Random) -> bytes:
    """Write headers and ranges, some of them valid, to the addresses of descriptors."""
    pieces = []
    for _ in range(DIFFERENT):
        type_ = rng.choice([0, 0, 1, 1, 4, 8, 11, 13, rng.randrange(1 << 32)])
        sector = rng.choice([0, 1, SECTORS - 1, SECTORS, rng.randrange(SECTORS), (1 << 64) - 1])
        pieces.append(struct.pack("<IIQ", type_, rng.choice([0, 1, 64, 1 << 31]), sector))
    return b"".join(rng.choices(pieces, k=BUFFERS // 16))


def request(rig: Rig, rng: random.Random) -> None:
    """Return a request of about the right size with random content."""
    ring = rig.driver.rings[0]
    if isinstance(rig.device, VirtioPmem) and rng.random() < 0.8:
        ring.add(Buffer(RAM_BASE, 4), Buffer(RAM_BASE + rng.randrange(BUFFERS), 4, True))
        return
    if isinstance(rig.device, VirtioRng) and rng.random() < 0.8:
        ring.add(Buffer(RAM_BASE, rng.choice([1, 64, BUFFERS]), True))
        return
    header = RAM_BASE + 16 * rng.randrange(BUFFERS // 16)
    sizes = [rng.choice([1, 4, 16, 20, 511, 512, 1024, 4096]) for _ in range(rng.randrange(3))]
    write = rng.random() < 0.5
    data = [Buffer(rng.choice([RAM_BASE, WINDOW]) + rng.randrange(512), n, write) for n in sizes]
    head = Buffer(header, rng.choice([4, 16, 16, 16, 32]))
    ring.add(head, *data, Buffer(RAM_BASE + rng.randrange(BUFFERS), rng.choice([1, 4]), True))


def run_rings(rig: Rig, rng: random.Random) -> None:
    driver, scribbler = rig.driver, Scribbler(rng)
    driver.ram.next = RAM_BASE + 0x8000
    driver.start(queues=1, wanted=rng.choice([-1, 0, ~(1 << 9)]), size=rng.choice([8, 64]))
    rig.memory.write(RAM_BASE, plausible(rng))
    for _ in range(rng.randrange(1, 5)):
        if rng.random() < 0.7:
            ring = driver.rings[0]
            ring.start_at(ring.ram.read(ring.used + 2, "<H"))
            for _ in range(rng.randrange(1, 4)):
                request(rig, rng)
        else:
            scribbler.ring(driver.rings[0], rng.random() < 0.5, indirect=False)
        driver.kick(0)
        rig.device.drain()


def works(bench: Bench, rig: Rig) -> None:
    """Check that the device works after a reset."""
    rig.driver.ram.next = RAM_BASE
    rig.driver.start(queues=1)
    ram = rig.driver.ram
    answer = ram.put(b"\xff" * 8)
    if bench.kind == "rng":
        assert rig.do(Buffer(answer, 8, True)) == 8
    elif bench.kind == "pmem":
        assert rig.do(Buffer(ram.put(bytes(4)), 4), Buffer(answer, 4, True)) == 4
        assert ram.read(answer, "<I") == 0
    else:
        room = ram.take(512)
        header = Buffer(ram.put(struct.pack("<IIQ", 0, 0, 3)), 16)
        assert rig.do(header, Buffer(room, 512, True), Buffer(answer, 1, True)) == 513
        assert ram.read(answer, "<B") == 0
        assert rig.memory.read(room, 512) == bench.path.read_bytes()[3 * 512 : 4 * 512]


def check(bench: Bench, rig: Rig) -> None:
    stopped = [line for line in rig.lines if "driver is broken" in line]
    assert len(stopped) == bool(rig.driver.status & NEEDS_RESET)
    works(bench, rig)
    rig.device.stop()
    assert bench.path.stat().st_size == SECTORS * 512 + len(TAIL)
    assert bench.path.read_bytes().endswith(TAIL)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_malicious_rings_stop_at_most_their_device(bench: Bench, batch: int) -> None:
    other = DeviceRig(bench.ram, VirtioRng)
    stopped = served = 0
    for case in range(RINGS):
        rng = random.Random(batch * RINGS + case)
        rig = bench.rig(rng)
        run_rings(rig, rng)
        stopped += bool(rig.driver.status & NEEDS_RESET)
        served += not rig.driver.status & NEEDS_RESET
        check(bench, rig)

    assert stopped > RINGS // 20
    assert served > RINGS // 20
    other.driver.start(queues=1)
    assert other.do(Buffer(other.driver.ram.take(8), 8, True)) == 8
    other.device.stop()


def random_access(rig: Rig, rng: random.Random) -> None:
    """Return a random access of any width, to a register or the configuration."""
    known = [reg.offset for reg in type(rig.mmio).registers]
    offset = rng.choice(known) if rng.random() < 0.7 else rng.randrange(0x200)
    length = 4 if rng.random() < 0.7 else rng.choice([1, 2, 8])
    if rng.random() < 0.4:
        assert 0 <= rig.mmio.mmio_read(offset, length) < 1 << 8 * length
        return
    values = [0, 1, 2, 4, 8, 16, 64, 0x80, 4096, RAM_BASE, RAM_BASE // 4096, 0xFFFF_FFFF]
    value = rng.choice(values) if rng.random() < 0.9 else rng.randrange(1 << 8 * length)
    rig.mmio.mmio_write(offset, length, value & (1 << 8 * length) - 1)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_storm_of_accesses_stops_at_most_the_device(bench: Bench, batch: int) -> None:
    for case in range(STORMS):
        rng = random.Random(batch * STORMS + case)
        rig = bench.rig(rng)
        rig.driver.ram.next = RAM_BASE + 0x8000
        rig.memory.write(RAM_BASE, plausible(rng))
        if rng.random() < 0.7:
            rig.driver.start(queues=1, size=8)
        for _ in range(100):
            random_access(rig, rng)
        rig.device.drain()
        rig.lines.clear()
        rig.driver.reset()
        check(bench, rig)
