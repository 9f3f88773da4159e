"""The data paths of consoles and entropy devices against their specification: Python's devices.

A seed is a driver and a user: valid, nearly valid or hostile. Guest memory, used rings, output,
input, counts, status and interrupts must be equal. test_datapath_checked.py runs this file with
sanitizers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.devices.virtio.console import VirtioConsole
from pyvmm.devices.virtio.device import INT_VRING, QueueSpec
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.rng import MOST, VirtioRng
from pyvmm.kvm.datapath.exits import ConsolePath, ExitPath, RngPath
from pyvmm.layout import RAM_BASE
from pyvmm.machine.datapaths import console_path, rng_path
from pyvmm.memory.ram import GuestMemory
from pyvmm.terminal.stdio import Output
from tests.devices.virtio.conftest import RECEIVEQ, TRANSMITQ
from tests.devices.virtio.driver import NEEDS_RESET, Buffer, Driver, Ring
from tests.devices.virtio.plain import Bits
from tests.devices.virtio.rig import ENOUGH_S
from tests.devices.virtio.test_datapath import CASES, extension
from tests.devices.virtio.test_fuzz import Scribbler

RAM_SIZE = 0x20000
BUFFERS = 0x8000
SIZE = 16  # of each ring
STEPS = [
    *["out"] * 6, *["room"] * 4, *["in"] * 5, *["settle"] * 3, *["read"] * 3, *["flags"] * 2,
    "resize", "time", "config", "reset", "emergency",
]  # fmt: skip
PIPE = 4096


class Side:
    """A device with its driver; a kick goes to the data path first, as a vCPU's exit does."""

    device: VirtioConsole | VirtioRng

    def __init__(self) -> None:
        self.ram = GuestMemory(RAM_BASE, RAM_SIZE)
        self.native = extension()
        self.bits = Bits(self.native)
        self.irq = os.eventfd(0, os.EFD_NONBLOCK)
        self.lines: list[str] = []
        self.path: ExitPath | None = None
        self.in_c = 0  # kicks that Python did not see

    def connect(self, *, legacy: bool) -> None:
        self.mmio = VirtioMmio(self.device, self._interrupt, legacy=legacy)
        self.mmio.use_interrupt_bits(self.bits)
        self.driver = Driver(self.mmio, self.ram)

    def _interrupt(self) -> None:
        os.eventfd_write(self.irq, 1)

    def start(self, queues: int, wanted: int) -> None:
        self.driver.ram.next = RAM_BASE + 0x10000
        self.driver.start(queues=queues, wanted=wanted, size=SIZE)

    def kick(self, queue: int) -> None:
        path = self.path
        if path is not None and queue == path.doorbell and path.ring():
            self.in_c += 1
        else:
            self.driver.kick(queue)

    def close(self) -> None:
        self.device.stop()
        os.close(self.irq)
        self.ram.close()

    def result(self) -> dict[str, Any]:
        """Return what a driver and a user can see."""
        device = self.device
        with device.lock:
            indices = [(q.last_avail, q.used_idx, q.signalled) for q in device.queues]
            counts = dict(device.counts)
        interrupted = False
        with contextlib.suppress(BlockingIOError):
            interrupted = os.eventfd_read(self.irq) > 0
        return {
            "ram": self.ram.read(RAM_BASE, RAM_SIZE),
            "counts": counts,
            "indices": indices,
            "status": device.status,
            "log": [line.partition(": ")[2] for line in self.lines],
            "isr": self.bits.get(),
            "interrupted": interrupted,
        }


class ConsoleSide(Side):
    """A console whose output goes to a small pipe, and whose input comes from one."""

    device: VirtioConsole

    def __init__(self, *, in_c: bool, legacy: bool) -> None:
        super().__init__()
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE)
        os.set_blocking(self.reader, False)
        self.stdin, self.typist = os.pipe()
        self.output = Output(self.writer)
        self.output.set_blocking(False)
        self.shown = bytearray()
        self.timers: list[Callable[[], None]] = []
        self.device = VirtioConsole(self.ram, self.output.write, self.lines.append, self._later)
        self.connect(legacy=legacy)
        self.backlog = b""
        self.rooms = 0
        self.device.on_room = self._room
        self.direct = self.output.direct()
        assert self.direct is not None
        if in_c:
            path = console_path(self.device, self.direct, self.irq, self.bits.address, self.native)
            self.path = path
            self.device.use_input_path(path)

    def _later(self, delay_s: float, action: Callable[[], None]) -> Callable[[], None]:
        self.timers.append(action)
        return lambda: self.timers.remove(action)

    def _room(self) -> None:
        self.rooms += 1

    def pass_time(self) -> None:
        for action in self.timers[:]:
            self.timers.remove(action)
            action()

    def type(self, data: bytes, *, directly: bool) -> None:
        """Give the guest input: what it has no room for stays in the backlog."""
        if directly and not self.backlog:
            os.write(self.typist, data)
            while self.device.read(self.stdin):
                pass
            data = b""
            if select.select([self.stdin], [], [], 0)[0]:
                data = os.read(self.stdin, PIPE)
        self.backlog += data
        while self.backlog and (taken := self.device.receive(self.backlog)):
            self.backlog = self.backlog[taken:]

    def read(self, size: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self.shown += os.read(self.reader, size)

    def settle(self) -> None:
        """Read until all output has arrived."""
        assert self.direct is not None
        deadline = time.monotonic() + ENOUGH_S
        while self.output._pending or (self.output._thread.ident and self.direct.busy[0]):
            assert time.monotonic() < deadline
            self.read(PIPE)
            time.sleep(0)
        self.read(PIPE)

    def result(self) -> dict[str, Any]:
        while not self.output.drain(0):
            self.read(PIPE)
        self.read(1 << 20)
        seen = super().result()
        waits = len(self.timers), self.rooms > 0
        return {**seen, "shown": bytes(self.shown), "backlog": self.backlog, "waits": waits}

    def close(self) -> None:
        super().close()
        self.output.close()
        for fd in (self.reader, self.writer, self.stdin, self.typist):
            os.close(fd)


def buffers(ring: Ring, rng: random.Random, write: bool) -> list[Buffer]:
    sizes = [rng.choice([0, 1, 16, 100, 1000, 4096, 9000]) for _ in range(rng.randrange(1, 4))]
    wrong = rng.random() < 0.03
    return [
        Buffer(RAM_BASE + rng.randrange(BUFFERS - 9000), size, write != wrong) for size in sizes
    ]


def submit(ring: Ring, rng: random.Random, write: bool, indirect: bool) -> None:
    """Make chains available: valid ones, or hostile ones."""
    if rng.random() < 0.08:
        scribbler = Scribbler(rng)
        scribbler.descriptors(ring.ram, ring.desc, ring.size, write, indirect)
        for entry in range(ring.size):
            head = rng.randrange(1 << 16) if scribbler.wild() else rng.randrange(ring.size)
            ring.ram.write(ring.avail + 4 + 2 * entry, "<H", head)
        ring.idx = (ring.idx + rng.choice([1, 1, 2, 99])) & 0xFFFF
        ring.ram.write(ring.avail + 2, "<H", ring.idx)
        return
    for _ in range(rng.choice([1, 1, 2, 5])):
        found = buffers(ring, rng, write)
        if indirect and rng.random() < 0.3:
            ring.publish(ring.indirect(found))
        else:
            ring.add(*found)


def use_console(side: ConsoleSide, seed: int) -> dict[str, Any]:
    """Run a seed's driver and user."""
    rng = random.Random(seed)
    side.ram.write(RAM_BASE, rng.randbytes(0x10000))
    wanted = rng.choice([-1, ~1, ~(1 << 29), ~(1 << 28)])
    side.start(2, wanted)
    if rng.random() < 0.8:
        send(side, b"first\n")
        side.settle()
    for _ in range(rng.randrange(1, 25)):
        what = rng.choice(STEPS)
        rings = side.driver.rings
        indirect = bool(side.driver.features & 1 << 28)
        if what in ("out", "room"):
            queue = TRANSMITQ if what == "out" else RECEIVEQ
            submit(rings[queue], rng, queue == RECEIVEQ, indirect)
            side.kick(queue)
        elif what == "in":
            side.type(rng.randbytes(rng.choice([1, 50, 1000, 4000])), directly=rng.random() < 0.5)
        elif what == "settle":
            side.settle()
        elif what == "read":
            side.read(rng.choice([1, 100, 5000]))
        elif what == "flags":
            for ring in rings:
                ring.set_no_interrupt(rng.random() < 0.3)
                ring.set_used_event(rng.choice([ring.idx, rng.randrange(1 << 16)]))
        elif what == "resize":
            side.device.resize(rng.randrange(1 << 16), rng.randrange(1 << 16))
        elif what == "time":
            side.pass_time()
        elif what == "config":
            side.mmio.mmio_read(0x100 + rng.randrange(8), rng.choice([1, 2, 4]))
        elif what == "emergency":
            side.mmio.mmio_write(0x108, 4, rng.randrange(256))
        else:
            side.start(2, wanted)
        if side.device.status & NEEDS_RESET and rng.random() < 0.5:
            break
    return side.result()


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 1 << 32))
def test_console_in_c_does_as_the_console_in_python(seed: int) -> None:
    legacy = random.Random(seed).random() < 0.3
    found = []
    for in_c in (False, True):
        side = ConsoleSide(in_c=in_c, legacy=legacy)
        try:
            found.append(use_console(side, seed))
        finally:
            side.close()
    assert found[1] == found[0]


class RngSide(Side):
    """An entropy device."""

    device: VirtioRng

    def __init__(self, *, in_c: bool, legacy: bool) -> None:
        super().__init__()
        self.native.lib.plain_random_from(0)
        self.device = VirtioRng(self.ram, self.lines.append)
        self.connect(legacy=legacy)
        if in_c:
            self.path = rng_path(self.device, self.irq, self.bits.address, self.native)
            self.device.use_data_path(self.path)


class Stream:
    """The bytes that plain.c has in place of random ones; both sides draw from one counter."""

    def __init__(self, side: RngSide) -> None:
        self.side = side

    def __call__(self, size: int) -> bytes:
        ffi, lib = self.side.native.ffi, self.side.native.lib
        data = ffi.new("uint8_t[]", size)
        lib.plain_random(data, size)
        return bytes(data)


def what_the_driver_wants(ring: Ring) -> bytes:
    """Return the flags, index and event index that tell the device when to interrupt."""
    event = ring.avail + 4 + 2 * ring.size
    return ring.ram.memory.read(ring.avail, 4) + ring.ram.memory.read(event, 2)


def without_interrupts(seen: dict[str, Any]) -> dict[str, Any]:
    """Leave out what depends on the moment when the device looks at the available ring.

    Buffers of a hostile driver can lie in that ring. Then the device itself changes it: Python
    looks after each chain, C after all chains of a kick.
    """
    return {**seen, "isr": seen["isr"] & ~INT_VRING, "interrupted": None}


def use_rng(side: RngSide, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    side.ram.write(RAM_BASE, rng.randbytes(0x10000))
    wanted = rng.choice([-1, ~(1 << 29), ~(1 << 28)])
    side.start(1, wanted)
    for _ in range(rng.randrange(1, 12)):
        (ring,) = side.driver.rings
        ring.set_no_interrupt(rng.random() < 0.3)
        ring.set_used_event(rng.choice([ring.idx, rng.randrange(1 << 16)]))
        submit(ring, rng, True, bool(side.driver.features & 1 << 28))
        wanted_then = what_the_driver_wants(ring)
        side.kick(0)
        if what_the_driver_wants(ring) != wanted_then:
            return without_interrupts(side.result())
        if rng.random() < 0.05:
            side.start(1, wanted)
        if side.device.status & NEEDS_RESET and rng.random() < 0.5:
            break
    return side.result()


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 1 << 32))
def test_rng_in_c_does_as_the_rng_in_python(seed: int) -> None:
    legacy = random.Random(seed).random() < 0.3
    found = []
    for in_c in (False, True):
        side = RngSide(in_c=in_c, legacy=legacy)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getrandom", Stream(side))
            try:
                found.append(use_rng(side, seed))
            finally:
                side.close()
    assert found[1] == found[0]


def quiet_console(*, legacy: bool = False) -> ConsoleSide:
    """Return a console in C whose driver is ready, and whose first output is through."""
    side = ConsoleSide(in_c=True, legacy=legacy)
    side.start(2, -1)
    send(side, b"first\n")
    side.settle()
    side.driver.rings[TRANSMITQ].take_used()
    return side


def send(side: ConsoleSide, data: bytes) -> None:
    ram = side.driver.ram
    side.driver.rings[TRANSMITQ].add(Buffer(ram.put(data), len(data)))
    side.kick(TRANSMITQ)


def test_output_goes_around_python_while_there_is_room() -> None:
    side = quiet_console()
    send(side, b"second")  # the data path has the queues since the end of the first

    assert side.in_c == 1
    side.settle()
    assert bytes(side.shown) == b"first\nsecond"
    assert side.driver.rings[TRANSMITQ].take_used() == [(1, 0)]
    assert side.device.has_transmitted
    side.close()


def test_full_pipe_keeps_the_order_and_every_byte() -> None:
    side = quiet_console()
    sent = [bytes([65 + n]) * 3000 for n in range(8)]
    for data in sent:
        send(side, data)
    stopped_at = side.in_c
    used = side.driver.rings[TRANSMITQ].take_used()
    side.settle()
    send(side, b"last")

    side.settle()
    assert bytes(side.shown) == b"first\n" + b"".join(sent) + b"last"
    assert 1 <= stopped_at < 8  # the pipe has 4096 bytes
    assert len(used) == 8  # no driver waits for a slow reader
    assert side.in_c == stopped_at + 1
    side.close()


def test_input_is_read_into_the_guests_buffers_without_python() -> None:
    side = quiet_console()
    address = side.driver.ram.take(8000)
    ring = side.driver.rings[RECEIVEQ]
    for n in range(2):
        ring.add(Buffer(address + 4000 * n, 4000, True))
    side.kick(RECEIVEQ)
    send(side, b"lend")  # a notification is Python's
    os.write(side.typist, b"x" * 4096)

    assert side.device.read(side.stdin) == 4096
    assert ring.take_used() == [(0, 4000), (1, 96)]
    assert side.ram.read(address, 4096) == b"x" * 4096
    assert side.device.read(side.stdin) == 0
    side.close()


def test_end_of_input_is_left_to_python() -> None:
    side = quiet_console()
    ring = side.driver.rings[RECEIVEQ]
    ring.add(Buffer(side.driver.ram.take(100), 100, True))
    os.close(side.typist)
    side.typist = os.open(os.devnull, os.O_RDONLY)

    assert side.device.read(side.stdin) == 0
    assert ring.take_used() == []
    side.close()


def test_requests_for_entropy_reach_no_python() -> None:
    side = RngSide(in_c=True, legacy=False)
    side.start(1, -1)
    ring = side.driver.rings[0]
    address = side.driver.ram.take(0x8000)
    for _ in range(10):
        ring.add(Buffer(address, 16, True))
        side.kick(0)

    assert side.in_c == 9  # Python serves the first, and lends the queue
    with side.device.lock:
        assert side.device.counts == {"requests": 10, "bytes": 160}
    assert [written for _, written in ring.take_used()] == [16] * 10
    side.close()


def test_request_for_much_entropy_is_filled_in_part() -> None:
    side = RngSide(in_c=True, legacy=False)
    side.start(1, -1)
    ring = side.driver.rings[0]
    for _ in range(2):
        ring.add(*[Buffer(RAM_BASE, 0x8000, True)] * 3)
        side.kick(0)

    assert side.in_c == 1
    assert [written for _, written in ring.take_used()] == [MOST] * 2
    side.close()


def test_paths_serve_the_queues_that_exits_serve() -> None:
    pairs: list[tuple[type[ExitPath], tuple[QueueSpec, ...]]] = [
        (ConsolePath, VirtioConsole.queue_specs),
        (RngPath, VirtioRng.queue_specs),
    ]
    for path, queues in pairs:
        assert [n for n, spec in enumerate(queues) if spec.by_exit] == [path.doorbell]
