"""The base of vhost devices, with a back end that records what it is told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

import pytest

from pyvmm.devices.vhost.backend import Ring
from pyvmm.devices.vhost.device import VhostDevice
from pyvmm.devices.virtio.device import ConfigField, Feature, QueueSpec
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.errors import HostError
from pyvmm.layout import RAM_BASE
from pyvmm.memory.map import MemoryRegion
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import (
    DRIVER_OK,
    F_EVENT_IDX,
    F_INDIRECT,
    F_VERSION_1,
    NEEDS_RESET,
    RAM_SIZE,
    Buffer,
    Driver,
)  # fmt: skip

KNOWN, UNKNOWN = Feature(3, "KNOWN"), Feature(4, "UNKNOWN")
LOG_ALL = 1 << 26


class Recorder:
    """A back end that serves nothing."""

    name = "recorder"
    features = 1 << KNOWN.bit | F_INDIRECT | F_VERSION_1 | LOG_ALL

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.accepted = 0
        self.memory: Sequence[MemoryRegion] = ()
        self.rings: dict[int, Ring] = {}
        self.bases: dict[int, int] = {}
        self.refuses = ""

    def start(self, features: int, memory: Sequence[MemoryRegion], rings: dict[int, Ring]) -> None:
        self.calls.append("start")
        if self.refuses:
            raise HostError(self.refuses)
        self.accepted, self.memory, self.rings = features, memory, rings

    def stop(self, queues: Sequence[int]) -> dict[int, int]:
        self.calls.append("stop")
        return {index: self.bases.get(index, self.rings[index].next_avail) for index in queues}

    def close(self) -> None:
        self.calls.append("close")


class Lent(VhostDevice):
    device_id = 63
    name = "virtio-lent"
    features = (KNOWN, UNKNOWN)
    queue_specs = (QueueSpec("first", 16), QueueSpec("second", 16), QueueSpec("own", 16))
    theirs: ClassVar = (0, 1)

    answer = ConfigField(0, 4, "a number")


class Rig:
    def __init__(self, memory: GuestMemory) -> None:
        self.backend = Recorder()
        self.lines: list[str] = []
        self.interrupts = 0
        self.device = Lent(memory, self.lines.append, self.backend)
        self.device.call_fd = 77
        self.mmio = VirtioMmio(self.device, self._interrupt)
        self.driver = Driver(self.mmio, memory)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def start(self, queues: Sequence[int] = (0, 1, 2)) -> None:
        self.driver.negotiate()
        self.driver.rings = [self.driver.make_ring(index) for index in queues]
        self.driver.add_status(DRIVER_OK)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with GuestMemory(RAM_BASE, RAM_SIZE) as memory:
        made = Rig(memory)
        yield made
        made.device.stop()


def test_driver_is_offered_what_both_sides_know(rig: Rig) -> None:
    assert rig.driver.offered() == 1 << KNOWN.bit | F_INDIRECT | F_VERSION_1
    assert not rig.driver.offered() & F_EVENT_IDX


def test_back_end_gets_its_queues_and_all_memory_at_driver_ok(rig: Rig) -> None:
    rig.start()

    memory, (region,) = rig.driver.ram.memory, rig.backend.memory
    assert (region.base, region.size) == (memory.base, memory.size)
    assert region.host_address == memory.host_address
    assert rig.backend.accepted == 1 << KNOWN.bit | F_INDIRECT | F_VERSION_1
    assert list(rig.backend.rings) == [0, 1]
    for index, ring in rig.backend.rings.items():
        drivers = rig.driver.rings[index]
        offsets = [at - memory.host_address for at in (ring.desc, ring.avail, ring.used)]
        assert offsets == [at - RAM_BASE for at in (drivers.desc, drivers.avail, drivers.used)]
        assert (ring.size, ring.next_avail, ring.call_fd) == (16, 0, 77)


def test_queue_that_is_not_ready_stays_here(rig: Rig) -> None:
    rig.start(queues=[1])

    assert list(rig.backend.rings) == [1]


def test_back_end_is_kicked_for_chains_from_before_driver_ok(rig: Rig) -> None:
    rig.start()

    assert [os.eventfd_read(fd) for fd in rig.device.kick_fds.values()] == [1, 1]


def test_kick_by_an_exit_reaches_the_back_end(rig: Rig) -> None:
    rig.start()
    os.eventfd_read(rig.device.kick_fds[1])

    rig.driver.write(0x050, 1)

    assert os.eventfd_read(rig.device.kick_fds[1]) == 1
    assert rig.device.doorbell_fd(1) == rig.device.kick_fds[1]
    assert rig.device.doorbell_fd(2) is None


def test_interrupt_status_always_says_used_buffers(rig: Rig) -> None:
    rig.start()
    rig.driver.write(0x064, 3)

    assert rig.driver.read(0x060) == 1


def test_pause_takes_the_queues_back_and_proceed_returns_them(rig: Rig) -> None:
    rig.start()
    ring = rig.driver.rings[0]
    ring.add(Buffer(rig.driver.ram.take(16), 16))
    rig.driver.ram.write(ring.used + 2, "<H", 1)  # the back end has returned it
    rig.backend.bases = {0: 1}

    rig.device.drain()
    rig.device.drain()

    assert rig.backend.calls == ["start", "stop"]
    state = rig.device.state()
    assert [(q["last_avail"], q["used_idx"]) for q in state["queues"]] == [(1, 1), (0, 0), (0, 0)]

    rig.device.proceed()
    rig.device.proceed()

    assert rig.backend.calls == ["start", "stop", "start"]
    assert rig.backend.rings[0].next_avail == 1


def test_restored_device_continues_where_the_saved_one_stopped(rig: Rig) -> None:
    rig.start()
    rig.backend.bases = {0: 5}
    rig.device.drain()
    saved = rig.mmio.state()
    other = Rig(rig.driver.ram.memory)

    other.mmio.restore(saved, "state")
    assert other.backend.calls == []
    other.mmio.resume()

    assert other.backend.calls == ["start"]
    assert other.backend.rings[0].next_avail == 5
    other.device.stop()


def test_reset_takes_the_queues_back(rig: Rig) -> None:
    rig.start()

    rig.driver.reset()
    rig.device.proceed()

    assert rig.backend.calls == ["start", "stop"]


def test_broken_ring_stops_the_device_until_a_reset(rig: Rig) -> None:
    rig.start()
    ((fd, handler),) = rig.device.watched().items()
    os.eventfd_write(fd, 1)

    handler()

    assert rig.driver.status & NEEDS_RESET
    assert rig.backend.calls == ["start", "stop"]
    assert rig.interrupts
    assert "recorder finds a ring or a buffer that breaks the rules" in rig.lines[0]


def test_refusal_of_the_host_stops_the_device_and_is_reported(rig: Rig) -> None:
    rig.backend.refuses = "recorder: VHOST_SET_MEM_TABLE: Cannot allocate memory"

    rig.start()

    assert rig.driver.status & NEEDS_RESET
    assert rig.lines == [
        "virtio-lent: the device stops: recorder: VHOST_SET_MEM_TABLE: Cannot allocate memory"
    ]
    rig.backend.refuses = ""
    rig.start()
    assert rig.driver.status & DRIVER_OK
    assert not rig.driver.status & NEEDS_RESET


def test_end_of_the_machine_stops_the_back_end_before_it_is_closed(rig: Rig) -> None:
    rig.start()
    (handler,) = rig.device.watched().values()

    rig.device.stop()
    rig.device.stop()
    handler()  # for a signal that came late

    assert rig.backend.calls == ["start", "stop", "close"]
