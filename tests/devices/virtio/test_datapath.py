"""The data path in C against its specification, Python's queue and disk: the same input to both.

Rings are valid, nearly valid or hostile. Guest memory, used rings, buffers, errors, interrupts, the
log of written pages and the disk must be equal. test_datapath_checked.py runs this file with
sanitizers.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.devices.diskfile import DiskFile
from pyvmm.devices.virtio.blk import VirtioBlk
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.kvm.datapath.disk import set_memory, set_queue
from pyvmm.kvm.native import Native
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.map import MemoryMap, PluggableMemory, regions
from pyvmm.memory.ram import GuestMemory
from tests.devices.builtc import CHECKS
from tests.devices.virtio.driver import NEEDS_RESET, Buffer
from tests.devices.virtio.plain import PlainPath, plain
from tests.devices.virtio.rig import ENOUGH_S, DeviceRig
from tests.devices.virtio.test_fuzz import Scribbler

CASES = int(os.environ.get("PYVMM_DATA_PATH_CASES", "300"))
CHECKED = "PYVMM_DATA_PATH_CHECKED"  # set: build the C code with sanitizers

RAM_SIZE = 0x10000
PLUG, BLOCK, BLOCKS = RAM_BASE + 0x10_0000, 0x4000, 4
PLUGGED = (0, 2)
DESC, DRIVER, DEVICE = RAM_BASE, RAM_BASE + 0x400, RAM_BASE + 0x800
TABLE = RAM_BASE + 0x1000  # of indirect descriptors
BROKEN, TOO_LONG = -1, -2

ADDRESSES = st.one_of(
    st.integers(RAM_BASE, RAM_BASE + RAM_SIZE - 0x200),
    st.sampled_from([
        0, RAM_BASE - 1, RAM_BASE, DEVICE, TABLE, TABLE + 48, RAM_BASE + RAM_SIZE - 1,
        RAM_BASE + RAM_SIZE, PLUG, PLUG + BLOCK - 16, PLUG + BLOCK, PLUG + 2 * BLOCK,
        PLUG + 3 * BLOCK - 1, PLUG + BLOCKS * BLOCK, (1 << 64) - 16, (1 << 64) - 1,
    ]),
)  # fmt: skip
LENGTHS = st.one_of(
    st.integers(0, 0x200),
    st.sampled_from([16, 32, 48, 0x4000, RAM_SIZE, RAM_SIZE + 1, 1 << 31, (1 << 32) - 1]),
)
FLAGS = st.one_of(st.sampled_from([0, 1, 2, 3, 4]), st.integers(0, 0xFFFF))
DESCRIPTORS = st.lists(
    st.tuples(ADDRESSES, LENGTHS, FLAGS, st.integers(0, 17)), min_size=1, max_size=16
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 17)),
        st.tuples(st.just("publish"), st.integers(0, 0xFFFF)),
        st.tuples(st.just("pop"), st.just(0)),
        st.tuples(st.just("push"), st.integers(0, 1 << 33)),
        st.tuples(st.just("flags"), st.integers(0, 0xFFFF)),
        st.tuples(st.just("interrupt"), st.just(0)),
        st.tuples(st.just("kicks"), st.just(0)),
        st.tuples(st.just("unplug"), st.integers(0, BLOCKS - 1)),
    ),
    max_size=24,
)


class Setup(NamedTuple):
    """A queue as the driver sets it up."""

    size: int
    event_idx: bool
    indirect: bool
    begin: int  # both rings' index
    heads: list[int]
    table: list[tuple[int, int, int, int]]
    direct: list[tuple[int, int, int, int]]


SETUPS = st.builds(
    Setup,
    st.sampled_from([1, 2, 4, 16]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1, 0xFFFE, 0xFFFF]),
    st.lists(st.integers(0, 17), min_size=16, max_size=16),
    DESCRIPTORS,
    DESCRIPTORS,
)


def extension() -> Native:
    return plain(*CHECKS) if os.environ.get(CHECKED) else plain()


class Side:
    """One of two equal memories with a queue."""

    def __init__(self, setup: Setup, stack: ExitStack) -> None:
        self.ram = stack.enter_context(GuestMemory(RAM_BASE, RAM_SIZE))
        self.plug = stack.enter_context(PluggableMemory(PLUG, BLOCK * BLOCKS, BLOCK))
        self.memory = MemoryMap(self.ram, self.plug)
        for block in PLUGGED:
            self.plug.set_plugged(block, 1, True)
        for place, rows in ((DESC, setup.direct), (TABLE, setup.table)):
            self.ram.write(place, b"".join(struct.pack("<QIHH", *row) for row in rows))
        heads = struct.pack(f"<{setup.size}H", *setup.heads[: setup.size])
        self.ram.write(DRIVER, struct.pack("<HH", 0, setup.begin) + heads)
        self.ram.write(DEVICE, struct.pack("<HH", 0, setup.begin))
        self.ram.log_writes()
        self.queue = Virtqueue(self.memory, "q", setup.size)
        self.queue.desc, self.queue.driver, self.queue.device = DESC, DRIVER, DEVICE
        self.queue.event_idx, self.queue.indirect = setup.event_idx, setup.indirect
        self.queue.enable()
        stack.callback(self.queue.disable)
        self.queue.last_avail = self.queue.used_idx = self.queue.signalled = setup.begin
        self.logged = bytearray(self.ram.size // os.sysconf("SC_PAGE_SIZE"))

    def content(self) -> list[bytes]:
        """Return all of the memory."""
        backing = self.plug.backing
        return [bytes(self.ram._ram), bytes(backing._ram)]

    def drive(self, what: str, value: int) -> None:
        """Do a step of the driver or of the memory's owner, the same on each side."""
        size = self.queue.size
        if what == "publish":
            (index,) = struct.unpack("<H", self.ram._ram[DRIVER + 2 - RAM_BASE :][:2])
            at = DRIVER + 2 - RAM_BASE
            self.ram._ram[at : at + 2] = struct.pack("<H", (index + value) & 0xFFFF)
        elif what == "flags":
            for address in (DRIVER, DRIVER + 4 + 2 * size):
                at = address - RAM_BASE
                self.ram._ram[at : at + 2] = struct.pack("<H", value)
        elif what == "unplug":
            self.plug.set_plugged(value, 1, not self.plug.plugged_among(value, 1))

    def guest_address(self, host: int) -> int:
        for region in regions(self.memory):
            if region.host_address <= host <= region.host_address + region.size:
                return host - region.host_address + region.base
        raise AssertionError(f"{host:#x} is not guest memory")


Found = tuple[Any, ...]  # a step's result


class Specification(Side):
    """The queue in Python."""

    def __init__(self, setup: Setup, stack: ExitStack) -> None:
        super().__init__(setup, stack)
        self.out: list[Chain] = []
        stack.callback(self._release)

    def step(self, what: str, value: int) -> Found:
        try:
            return self._step(what, value)
        except QueueError:
            return ("broken",)

    def _step(self, what: str, value: int) -> Found:
        if what == "pop":
            chain = self.queue.pop()
            if chain is None:
                return ()
            self.out.append(chain)
            return chain.head, self._places(chain.readable), self._places(chain.writable)
        if what == "push" and self.out:
            self.queue.push(self.out.pop(0), value)
        if what == "interrupt":
            return (self.queue.needs_interrupt(),)
        return (self.queue.enable_kicks(),) if what == "kicks" else ()

    def _release(self) -> None:
        for chain in self.out:
            chain.release()

    def _places(self, views: list[memoryview]) -> list[tuple[int, int]]:
        return [
            (self.guest_address(ctypes.addressof(ctypes.c_char.from_buffer(view))), len(view))
            for view in views
        ]


class InC(Side):
    """The queue in C."""

    def __init__(self, setup: Setup, stack: ExitStack) -> None:
        super().__init__(setup, stack)
        self.native = extension()
        self.lent = self.native.ffi.new("struct pyvmm_split_queue *")
        self.kept = set_memory(self.native, self.lent, regions(self.memory))
        set_queue(self.lent, self.queue)
        assert self.native.lib.pyvmm_queue_place(self.lent)
        self.out: list[int] = []

    def step(self, what: str, value: int) -> Found:
        lib = self.native.lib
        if what == "pop":
            return self._pop()
        if what == "push" and self.out:
            lib.pyvmm_queue_push(self.lent, self.out.pop(0), value & 0xFFFF_FFFF)
        if what == "interrupt":
            return (bool(lib.pyvmm_queue_needs_interrupt(self.lent)),)
        if what == "kicks":
            found = lib.pyvmm_queue_enable_kicks(self.lent)
            return ("broken",) if found < 0 else (bool(found),)
        return ()

    def _pop(self) -> Found:
        chain = self.native.ffi.new("struct pyvmm_chain *")
        found = self.native.lib.pyvmm_queue_pop(self.lent, chain)
        if found <= 0:
            assert found in (0, BROKEN)
            return () if found == 0 else ("broken",)
        self.out.append(chain.head)
        places = []
        for n in range(chain.readable + chain.writable):
            host = int(self.native.ffi.cast("uintptr_t", chain.buffer[n].iov_base))
            places.append((self.guest_address(host), int(chain.buffer[n].iov_len)))
        readable, writable = places[: chain.readable], places[chain.readable :]
        assert chain.readable_size == sum(length for _, length in readable)
        assert chain.writable_size == sum(length for _, length in writable)
        return chain.head, readable, writable


def pages(places: list[tuple[int, int]], memory: GuestMemory) -> set[int]:
    """Return the pages of RAM that have a part of these places."""
    unit = os.sysconf("SC_PAGE_SIZE")
    return {
        (page * unit - memory.base % unit) // unit - memory.base // unit
        for address, length in places
        if memory.contains(address, length)
        for page in range(address // unit, (address + length - 1) // unit + 1)
    }


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(setup=SETUPS, steps=STEPS)
def test_queue_in_c_does_as_the_queue_in_python(setup: Setup, steps: list[tuple[str, int]]) -> None:
    with ExitStack() as stack:
        python, in_c = Specification(setup, stack), InC(setup, stack)
        written: set[int] = set()
        for what, value in steps:
            python.drive(what, value)
            in_c.drive(what, value)
            found = python.step(what, value)
            assert in_c.step(what, value) == found
            if len(found) == 3:
                written |= pages(found[2], in_c.ram)
        assert in_c.content() == python.content()
        lent, queue = in_c.lent, python.queue
        assert (lent.last_avail, lent.used_idx) == (queue.last_avail, queue.used_idx)
        assert lent.signalled == queue.signalled
        logged = {page for page, flag in enumerate(in_c.ram.written) if flag}
        assert written <= logged


def test_chain_with_too_many_buffers_stays_in_the_ring() -> None:
    many = 300
    rows = [(RAM_BASE, 1, 1, n + 1) for n in range(many - 1)] + [(RAM_BASE, 1, 0, 0)]
    setup = Setup(512, False, False, 0, [0] * 512, [], [])
    with ExitStack() as stack:
        in_c = InC(setup._replace(size=16), stack)
        in_c.lent.size, in_c.lent.driver = 512, RAM_BASE + 0x8000
        in_c.ram.write(DESC, b"".join(struct.pack("<QIHH", *row) for row in rows))
        in_c.ram.write(RAM_BASE + 0x8000, struct.pack("<HHH", 0, 1, 0))
        in_c.lent.device = RAM_BASE + 0xA000
        assert in_c.native.lib.pyvmm_queue_place(in_c.lent)
        chain = in_c.native.ffi.new("struct pyvmm_chain *")

        assert in_c.native.lib.pyvmm_queue_pop(in_c.lent, chain) == TOO_LONG
        assert in_c.lent.last_avail == 0


# Disks

SECTORS = 64
DISK_RAM = MIB
BUFFERS = 0x4000


class OneByOne(VirtioBlk):
    """A disk that serves requests in sequence: their order is the same in each run."""

    threads = 1


class Disk:
    """A disk with its driver; its queue is lent to C if ``in_c``."""

    def __init__(
        self, path: Path, *, in_c: bool, read_only: bool, legacy: bool, sectors: int = SECTORS
    ) -> None:
        path.write_bytes(random.Random(5).randbytes(sectors * 512))
        self.file = path
        self.ram = GuestMemory(RAM_BASE, DISK_RAM)
        self.disk = DiskFile(path, option="-d", read_only=read_only)
        kind = OneByOne if sectors == SECTORS else VirtioBlk
        self.rig: DeviceRig[VirtioBlk] = DeviceRig(
            self.ram, lambda ram, log: kind(ram, self.disk, b"s" * 20, log), legacy=legacy
        )
        self.path = PlainPath(self.rig.device, extension()) if in_c else None
        if self.path is not None:
            self.rig.mmio.use_interrupt_bits(self.path.bits)

    def close(self) -> None:
        if self.path is not None:
            self.path.close()
        self.rig.device.stop()
        self.disk.close()
        self.ram.close()

    def wait(self) -> None:
        """Wait until the device has served its ring or stopped, without its lock."""
        ring, device = self.rig.driver.rings[0], self.rig.device
        deadline = time.monotonic() + ENOUGH_S
        while ring.ram.read(ring.used + 2, "<H") != ring.idx and not device.status & NEEDS_RESET:
            assert time.monotonic() < deadline
            time.sleep(0)

    def result(self) -> dict[str, Any]:
        device = self.rig.device
        with device.lock:
            counts = dict(device.counts)
            indices = device.queues[0].last_avail, device.queues[0].used_idx
        ring = self.rig.driver.rings[0]
        self.ram.write(ring.used + 4 + 8 * ring.size, bytes(2))  # avail_event: set a little later
        return {
            "ram": self.ram.read(RAM_BASE, DISK_RAM),
            "disk": self.file.read_bytes(),
            "counts": counts,
            "indices": indices,
            "status": device.status,
            "log": [line.partition(": ")[2] for line in self.rig.lines],
            "isr": self.rig.driver.acknowledge(),
        }


def submit(disk: Disk, rng: random.Random) -> None:
    """Submit a request: of a kind that C knows, of one that it does not, or a hostile one."""
    driver = disk.rig.driver
    ring = driver.rings[0]
    if rng.random() < 0.15:
        scribbler = Scribbler(rng)
        scribbler.descriptors(ring.ram, ring.desc, ring.size, rng.random() < 0.5, True)
        for entry in range(ring.size):
            head = rng.randrange(1 << 16) if scribbler.wild() else rng.randrange(ring.size)
            ring.ram.write(ring.avail + 4 + 2 * entry, "<H", head)
        ring.idx = (ring.idx + rng.choice([1, 1, 2, 99])) & 0xFFFF
        ring.ram.write(ring.avail + 2, "<H", ring.idx)  # at once: the device may be looking
        return
    kind = rng.choice([0, 0, 0, 1, 1, 1, 4, 4, 8, 11, 13, 99])
    sector = rng.choice([0, 1, 7, SECTORS - 1, SECTORS, (1 << 64) - 1, 1 << 55])
    header = RAM_BASE + 16 * rng.randrange(64)
    ring.ram.write(header, "<IIQ", kind, 0, sector)
    writes = kind in (0, 8) if rng.random() < 0.9 else rng.random() < 0.5
    sizes = [rng.choice([1, 16, 511, 512, 512, 1024, 4096]) for _ in range(rng.randrange(4))]
    data = [Buffer(RAM_BASE + 0x1000 + rng.randrange(BUFFERS), size, writes) for size in sizes]
    cut = rng.choice([16, 16, 16, 4, 1])
    heads = [Buffer(header, cut), *([Buffer(header + cut, 16 - cut)] if cut < 16 else [])]
    status = Buffer(RAM_BASE + 0x7000 + rng.randrange(64), rng.choice([1, 1, 1, 2]), True)
    buffers = [*heads, *data, status]
    if rng.random() < 0.3 and ring.size > 1 and driver.features & 1 << 28:
        ring.publish(ring.indirect(buffers))
    else:
        ring.add(*buffers)


def run(disk: Disk, seed: int) -> dict[str, Any]:
    """Run a seed's driver; return what a driver and a user can see."""
    rng = random.Random(seed)
    driver = disk.rig.driver
    driver.ram.next = RAM_BASE + 0x8000
    disk.ram.write(RAM_BASE, rng.randbytes(0x8000))
    driver.start(queues=1, wanted=rng.choice([-1, ~(1 << 9), ~(1 << 29)]), size=16)
    disk.ram.log_writes()
    ring = driver.rings[0]
    for _ in range(rng.randrange(1, 12)):
        ring.set_no_interrupt(rng.random() < 0.3)
        ring.set_used_event(ring.idx if rng.random() < 0.7 else rng.randrange(1 << 16))
        submit(disk, rng)
        driver.kick(0)
        disk.wait()
        if disk.rig.device.status & NEEDS_RESET:
            break
    return disk.result()


@contextmanager
def disks(directory: Path, seed: int) -> Iterator[tuple[Disk, Disk]]:
    rng = random.Random(seed)
    options = {"read_only": rng.random() < 0.2, "legacy": rng.random() < 0.3}
    pair = [Disk(directory / str(in_c), in_c=in_c, **options) for in_c in (False, True)]
    try:
        yield pair[0], pair[1]
    finally:
        for disk in pair:
            disk.close()


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 1 << 32))
def test_disk_in_c_does_as_the_disk_in_python(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    directory = tmp_path_factory.getbasetemp()
    with disks(directory, seed) as (python, in_c):
        before = in_c.ram.written
        expected, found = run(python, seed), run(in_c, seed)
        assert found == expected
        assert before.count(1) == 0


def test_loan_serves_in_c_all_that_it_should(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", in_c=True, read_only=False, legacy=False)
    assert disk.path is not None
    served: list[int] = []
    take_back = disk.path.path.take_back

    def counted(queue: Virtqueue) -> Any:
        back = take_back(queue)
        served.append(sum(back.counts[name] for name in ("reads", "writes", "flushes")))
        return back

    disk.path.path.take_back = counted  # type: ignore[method-assign, assignment]  # counts
    driver = disk.rig.driver
    driver.start(queues=1)
    ram, ring = driver.ram, driver.rings[0]
    for kind in (0, 1, 4) * 20:
        header, status = ram.put(struct.pack("<IIQ", kind, 0, 8)), ram.put(b"\xff")
        data = [Buffer(ram.take(512), 512, kind == 0)] if kind != 4 else []
        ring.add(Buffer(header, 16), *data, Buffer(status, 1, True))
        driver.kick(0)
        disk.wait()

    with disk.rig.device.lock:
        counts = disk.rig.device.counts
        assert (counts["reads"], counts["writes"], counts["flushes"]) == (20, 20, 20)
    assert sum(served) == 60
    disk.close()


def test_failure_beside_a_sleeping_leader_reaches_python(tmp_path: Path) -> None:
    size, sectors = 8 * MIB, 16384
    short = size - 4096
    disk = Disk(tmp_path / "disk", in_c=True, read_only=False, legacy=False, sectors=sectors)
    os.truncate(disk.file, short)
    disk.rig.device.listen()
    driver = disk.rig.driver
    driver.start(queues=1)
    ram, ring = driver.ram, driver.rings[0]
    buffers = [Buffer(ram.take(0x80000), 0x80000, True)] * 10  # so much takes some time
    found = []
    # Another request waits, so each large one makes another thread the leader. That one sleeps
    # when the second large ones fail.
    for sector in [0, (size - 10 * 0x80000) // 512] * 8:
        statuses = []
        for place, data in ((sector, buffers), (0, [Buffer(ram.take(512), 512, True)])):
            header, status = ram.put(struct.pack("<IIQ", 0, 0, place)), ram.put(b"\xff")
            ring.publish(ring.chain([Buffer(header, 16), *data, Buffer(status, 1, True)]))
            statuses.append(status)
        os.eventfd_write(disk.rig.device.kick_fd, 1)  # like a doorbell: without the lock
        disk.wait()
        found.append([ram.read(status, "<B") for status in statuses])

    assert found == [[0, 0], [1, 0]] * 8
    disk.close()
