"""virtio devices with a hostile driver: registers, rings, and the machine's own requests.

The first byte chooses the device; then each operation is a byte and its arguments.
"""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from fuzz.input import Input
from fuzz.targets.devicestate import disk
from pyvmm.devices.state import StateError
from pyvmm.devices.virtio.balloon import VirtioBalloon
from pyvmm.devices.virtio.console import VirtioConsole
from pyvmm.devices.virtio.mem import VirtioMem
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.layout import RAM_BASE
from tests.devices.live import BLOCK, BLOCKS, PLUGGED, PMEM, SIZE, LiveDevices
from tests.devices.virtio.driver import DRIVER_OK, NEEDS_RESET, Driver

OPERATIONS = 200  # of an input
RINGS = RAM_BASE + 0x1_0000  # below them are buffers
STATUS = 0x70
ADDRESSES = (
    0, RAM_BASE, RAM_BASE + 0x100, RAM_BASE + 0xFFF, RINGS, RAM_BASE + (4 << 20) - 1,
    RAM_BASE + (4 << 20), PLUGGED, PLUGGED + BLOCK, PMEM, PMEM + SIZE - 1, (1 << 64) - 1, 1 << 63,
)  # fmt: skip
LENGTHS = (0, 1, 2, 4, 8, 10, 16, 24, 32, 512, 4096, 1 << 16, 1 << 31, (1 << 32) - 1)
SIZES = (1, 2, 4, 8, 16, 64)
FEATURES = (-1, 0, 1 << 28, 1 << 29, ~(1 << 28), ~(1 << 29), ~(1 << 9), 0xFF)


class Session:
    """A device, its driver, and what the input does with them."""

    def __init__(self, given: Input, made: LiveDevices) -> None:
        self.given = given
        self.made = made
        self.mmio: VirtioMmio = made.virtio[given.below(len(made.virtio))]
        self.device: Any = self.mmio.device
        self.driver = Driver(self.mmio, made.ram)
        self.driver.ram.next = RINGS

    def run(self) -> None:
        """Do what the input says."""
        operations: tuple[Callable[[], None], ...] = (
            self.write_register, self.read_register, self.write_ram, self.start, self.describe,
            self.publish, self.publish, self.host, self.repeat,
        )  # fmt: skip
        for _ in range(OPERATIONS):
            if not self.given.left:
                break
            self.given.choice(operations)()
        self.device.drain()

    def offset(self) -> int:
        """Choose a register, or any offset."""
        known = [reg.offset for reg in type(self.mmio).registers]
        at = self.given.u8()
        return known[at] if at < len(known) else 2 * at

    def write_register(self) -> None:
        """Write a register."""
        length = 4 if (kind := self.given.u8()) & 7 else (1, 2, 8)[kind % 3]
        self.mmio.mmio_write(self.offset(), length, self.given.wide() & (1 << 8 * length) - 1)

    def read_register(self) -> None:
        """Read a register."""
        length = (1, 2, 4, 8)[self.given.below(4)]
        assert 0 <= self.mmio.mmio_read(self.offset(), length) < 1 << 8 * length

    def write_ram(self) -> None:
        """Write guest memory, buffers or rings."""
        content = self.given.take(self.given.u8())
        self.made.ram.write(RAM_BASE + self.given.below(0x2_0000), content)

    def start(self) -> None:
        """Initialise the device as a driver does."""
        self.driver.ram.next = RINGS
        count = 1 + self.given.below(len(self.device.queues))
        wanted, size = self.given.choice(FEATURES), self.given.choice(SIZES)
        try:
            self.driver.start(count, wanted, size)
        except AssertionError as error:  # the driver's own: the device refuses the features
            if not traceback.extract_tb(error.__traceback__)[-1].filename.endswith("driver.py"):
                raise

    def describe(self) -> None:
        """Write a descriptor of a ring, or of an indirect table among the buffers."""
        given = self.given
        address = given.choice(ADDRESSES) + given.u8()
        length, flags, after = given.choice(LENGTHS), given.below(8), given.u16()
        if not self.driver.rings:
            return
        ring = self.driver.rings[given.below(len(self.driver.rings))]
        ring.raw(given.below(ring.size), address & (1 << 64) - 1, length, flags, after % 8)

    def publish(self) -> None:
        """Make a chain available, and kick."""
        if not self.driver.rings:
            return
        queue = self.given.below(len(self.driver.rings))
        ring = self.driver.rings[queue]
        ring.publish(self.given.below(ring.size) if self.given.u8() else self.given.u16())
        ring.set_used_event(self.given.u8())
        self.driver.kick(queue)

    def host(self) -> None:
        """Make a request of the machine's owner, or let its clock pass."""
        number, device = self.given.u8(), self.device
        if isinstance(device, VirtioConsole):
            device.receive(bytes(number))
            device.resize(number, number)
        elif isinstance(device, VirtioMem):
            device.request(number % (BLOCKS + 1) * BLOCK)
        elif isinstance(device, VirtioBalloon):
            actions: tuple[Callable[[], object], ...] = (
                device.start_hinting, device.stop_hinting, lambda: device.refresh_statistics(0.0),
                lambda: device.request(number),
            )  # fmt: skip
            actions[number % len(actions)]()
        device.describe()

    def repeat(self) -> None:
        """Save the device, and restore it from that."""
        self.device.drain()
        with self.device.lock:
            state = json.loads(json.dumps(self.mmio.state()))
        if isinstance(self.device, VirtioMem):
            return  # a restore expects that nothing is plugged
        try:
            self.mmio.restore(state, "it")
        except StateError as error:  # the driver has made its memory impossible since
            assert self.device.status & (NEEDS_RESET | DRIVER_OK) or self.mmio.Status, error
        self.mmio.resume()

    def check(self) -> None:
        """Check that the device works after a reset."""
        self.driver.ram.next = RINGS
        self.driver.start(len(self.device.queues))
        assert self.driver.status & DRIVER_OK and not self.driver.status & NEEDS_RESET


def check(data: bytes) -> None:
    """Run the operations: nothing is raised in any thread, and a reset mends the device."""
    given = Input(data)
    legacy = given.flag()
    failed: list[object] = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        with LiveDevices(disk("virtio"), legacy=legacy) as made:
            session = Session(given, made)
            session.run()
            session.check()
        assert not failed, failed
        assert disk("virtio").stat().st_size == SIZE, "the disk's size"
    finally:
        threading.excepthook = before


def seeds() -> Iterator[bytes]:
    """Yield a start and a request for each device, and register accesses."""
    for device in range(6):
        start = bytes([3, 0, 4, 0, 3])
        descriptor = bytes([4, 1, 0, 6, 0, 0, 0, 0, 0]) + bytes([4, 2, 0, 9, 2, 0, 0, 0, 1])
        kick = bytes([5, 0, 1, 0, 0])
        yield bytes([0, device]) + start + descriptor + kick + bytes([7, 3]) + kick
        yield bytes([0, device]) + start + bytes([8]) + descriptor + kick + bytes([8]) + kick
        yield bytes([1, device]) + start + bytes([0, 1, 3, 5, 1, 2, 9, 7, 1]) + kick
        ram = bytes([2, 16]) + bytes(range(16)) + bytes([0, 1, 0, 0, 0, 0, 0, 0])
        yield bytes([0, device]) + ram + start + descriptor + kick + bytes([0, 1, 18, 0])
