"""virtio-mem, used by its driver and the machine."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import pytest

from pyvmm.devices.state import StateError
from pyvmm.devices.virtio.mem import RequestType, ResponseType, State, VirtioMem
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.errors import HostError
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.map import MemoryMap, PluggableMemory
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import FEATURES_OK, NEEDS_RESET, RAM_SIZE, Buffer, Driver

ADDR = 0x1_0000_0000
BLOCK = 2 * MIB
BLOCKS = 16
CONFIG = 0x100
PLUGGED_SIZE, REQUESTED_SIZE = CONFIG + 40, CONFIG + 48


class Rig:
    """A memory device with its guest; ``shown`` are the mapped blocks."""

    def __init__(self, ram: GuestMemory) -> None:
        self.lines: list[str] = []
        self.shown: set[int] = set()
        self.refuse = False
        self.blocks = PluggableMemory(ADDR, BLOCKS * BLOCK, BLOCK)
        self.memory = MemoryMap(ram, self.blocks)
        self.mem = VirtioMem(self.memory, self.lines.append, self.blocks, self.show)
        self.mmio = VirtioMmio(self.mem, lambda: None)
        self.driver = Driver(self.mmio, ram)

    def show(self, first: int, count: int, there: bool) -> None:
        if self.refuse:
            raise HostError("no slots are left")
        blocks = set(range(first, first + count))
        assert self.shown.isdisjoint(blocks) if there else blocks <= self.shown
        self.shown ^= blocks

    def start(self) -> None:
        self.driver.start(queues=1, size=16)

    def ask(self, kind: int, block: int = 0, count: int = 0, offset: int = 0) -> tuple[int, int]:
        """Make a request; return the response's type and state."""
        data = struct.pack("<H6xQHHHH", kind, ADDR + block * BLOCK + offset, count, 7, 7, 7)
        answer = self.driver.ram.take(10)
        ring = self.driver.rings[0]
        head = ring.add(
            Buffer(self.driver.ram.put(data), len(data)), Buffer(answer, 10, write=True)
        )
        self.driver.kick_if_wanted(0)
        assert ring.take_used() == [(head, 10)]
        response, state = struct.unpack("<H6xH", self.driver.ram.memory.read(answer, 10))
        return response, state

    def config(self, offset: int) -> int:
        return self.mmio.mmio_read(offset, 8)

    def close(self) -> None:
        self.mem.stop()
        self.blocks.backing.close()


@pytest.fixture
def ram() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, RAM_SIZE) as memory:
        yield memory


@pytest.fixture
def rig(ram: GuestMemory) -> Iterator[Rig]:
    made = Rig(ram)
    made.start()
    yield made
    made.close()


def test_configuration_has_the_regions_sizes(rig: Rig) -> None:
    fields = struct.unpack("<QH6xQQQQQ", b"".join(
        rig.mmio.mmio_read(CONFIG + at, 8).to_bytes(8, "little") for at in range(0, 56, 8)
    ))  # fmt: skip

    assert fields == (BLOCK, 0, ADDR, BLOCKS * BLOCK, BLOCKS * BLOCK, 0, 0)


def test_guest_plugs_the_requested_blocks(rig: Rig) -> None:
    rig.mem.request(4 * BLOCK)

    assert rig.config(REQUESTED_SIZE) == 4 * BLOCK
    assert rig.driver.acknowledge() & 2
    assert rig.ask(RequestType.PLUG, 3, 4)[0] == ResponseType.ACK
    assert rig.config(PLUGGED_SIZE) == 4 * BLOCK
    assert rig.shown == {3, 4, 5, 6}
    assert rig.memory.contains(ADDR + 3 * BLOCK, 4 * BLOCK)


def test_plug_beyond_the_requested_size_is_denied(rig: Rig) -> None:
    rig.mem.request(2 * BLOCK)

    assert rig.ask(RequestType.PLUG, 0, 3)[0] == ResponseType.NACK
    assert rig.ask(RequestType.PLUG, 0, 2)[0] == ResponseType.ACK
    assert rig.ask(RequestType.PLUG, 5, 1)[0] == ResponseType.NACK
    assert rig.shown == {0, 1}


def test_unplugged_memory_is_inaccessible(rig: Rig) -> None:
    rig.mem.request(BLOCK)
    rig.ask(RequestType.PLUG, 0, 1)
    with rig.memory.view(ADDR, 4) as view:
        view[:] = b"data"

    assert rig.ask(RequestType.UNPLUG, 0, 1)[0] == ResponseType.ACK
    assert not rig.memory.contains(ADDR, 1)
    assert rig.shown == set()
    assert rig.config(PLUGGED_SIZE) == 0
    rig.ask(RequestType.PLUG, 0, 1)
    assert bytes(rig.memory.view(ADDR, 4)) == bytes(4)


def test_unplug_all_unplugs_every_block(rig: Rig) -> None:
    rig.mem.request(BLOCKS * BLOCK)
    for first, count in ((0, 1), (4, 3), (15, 1)):
        rig.ask(RequestType.PLUG, first, count)

    assert rig.ask(RequestType.UNPLUG_ALL)[0] == ResponseType.ACK
    assert rig.shown == set()
    assert rig.mem.info()["plugged_bytes"] == 0


@pytest.mark.parametrize(
    ("kind", "block", "count", "offset"),
    [
        (RequestType.PLUG, 0, 0, 0),
        (RequestType.PLUG, 0, 1, 4096),
        (RequestType.PLUG, -1, 1, 0),
        (RequestType.PLUG, -1, 2, 0),
        (RequestType.PLUG, BLOCKS, 1, 0),
        (RequestType.PLUG, BLOCKS - 1, 2, 0),
        (RequestType.PLUG, 0, 0xFFFF, 0),
        (RequestType.PLUG, 1, 2, 0),
        (RequestType.UNPLUG, 0, 1, 0),
        (RequestType.UNPLUG, 2, 2, 0),
        (RequestType.UNPLUG, 2, 0, 0),
        (RequestType.UNPLUG, 2, 1, 1),
        (RequestType.STATE, 0, 0, 0),
        (RequestType.STATE, BLOCKS, 1, 0),
        (4, 0, 1, 0),
        (0xFFFF, 0, 1, 0),
    ],
)
def test_invalid_request_is_an_error_and_changes_nothing(
    rig: Rig, kind: int, block: int, count: int, offset: int
) -> None:
    rig.mem.request(BLOCKS * BLOCK)
    rig.ask(RequestType.PLUG, 2, 1)

    assert rig.ask(kind, block, count, offset)[0] == ResponseType.ERROR
    assert rig.shown == {2}
    assert not rig.lines


def test_state_request_returns_the_state_of_blocks(rig: Rig) -> None:
    rig.mem.request(BLOCKS * BLOCK)
    rig.ask(RequestType.PLUG, 2, 3)

    assert rig.ask(RequestType.STATE, 2, 3) == (ResponseType.ACK, State.PLUGGED)
    assert rig.ask(RequestType.STATE, 5, 4) == (ResponseType.ACK, State.UNPLUGGED)
    assert rig.ask(RequestType.STATE, 1, 2) == (ResponseType.ACK, State.MIXED)


def test_response_is_busy_when_the_host_cannot_map(rig: Rig) -> None:
    rig.mem.request(2 * BLOCK)
    rig.refuse = True

    assert rig.ask(RequestType.PLUG, 0, 1)[0] == ResponseType.BUSY
    assert rig.ask(RequestType.PLUG, 0, 1)[0] == ResponseType.BUSY
    assert rig.mem.info()["plugged_bytes"] == 0
    assert len(rig.lines) == 1
    assert "no slots are left" in rig.lines[0]
    rig.refuse = False
    assert rig.ask(RequestType.PLUG, 0, 1)[0] == ResponseType.ACK


def test_reset_leaves_plugged_blocks_unchanged(rig: Rig) -> None:
    rig.mem.request(BLOCK)
    rig.ask(RequestType.PLUG, 1, 1)
    with rig.memory.view(ADDR + BLOCK, 4) as view:
        view[:] = b"kept"

    rig.driver.reset()

    assert rig.shown == {1}
    assert bytes(rig.memory.view(ADDR + BLOCK, 4)) == b"kept"
    rig.start()
    assert rig.config(PLUGGED_SIZE) == BLOCK
    assert rig.config(REQUESTED_SIZE) == BLOCK


def test_driver_that_may_touch_unplugged_memory_is_refused(ram: GuestMemory) -> None:
    rig = Rig(ram)
    driver = rig.driver
    driver.reset()
    driver.add_status(1)
    driver.add_status(2)
    driver.accept(1 << 32)

    driver.add_status(FEATURES_OK)

    assert not driver.status & FEATURES_OK
    rig.close()


@pytest.mark.parametrize(("readable", "writable"), [(23, 10), (25, 10), (0, 10), (24, 9), (24, 0)])
def test_request_of_another_size_stops_the_device(rig: Rig, readable: int, writable: int) -> None:
    ram = rig.driver.ram
    buffers = [Buffer(ram.put(bytes(readable)), readable)] if readable else []
    buffers += [Buffer(ram.take(writable), writable, write=True)] if writable else []

    rig.driver.rings[0].add(*buffers)
    rig.driver.kick(0)

    assert rig.driver.status & NEEDS_RESET
    assert len(rig.lines) == 1
    rig.start()
    assert rig.ask(RequestType.STATE, 0, 1) == (ResponseType.ACK, State.UNPLUGGED)


# Snapshots


def test_restored_memory_has_its_plugged_blocks(rig: Rig) -> None:
    rig.mem.request(4 * BLOCK)
    rig.ask(RequestType.PLUG, 2, 1)
    rig.ask(RequestType.PLUG, 9, 2)
    state = json.loads(json.dumps(rig.mmio.state()))
    with GuestMemory(RAM_BASE, RAM_SIZE) as ram:
        ram.write(RAM_BASE, rig.driver.ram.memory.read(RAM_BASE, RAM_SIZE))
        other = Rig(ram)
        other.mmio.restore(state, "it")

        assert other.mmio.state() == state
        assert other.shown == rig.shown == {2, 9, 10}
        assert other.mem.info() == rig.mem.info()
        assert other.memory.contains(ADDR + 9 * BLOCK, 2 * BLOCK)
        other.close()


@pytest.mark.parametrize(
    "plugged",
    [
        None, [[1]], [[0, 0]], [[-1, 2]], [[0, BLOCKS + 1]], [[BLOCKS, 1]], [[2, 2], [3, 1]],
        [[5, 1], [1, 1]], [["1", 1]], [[True, 1]], [[0, 1]],
    ],
)  # fmt: skip
def test_restore_refuses_invalid_plugged_blocks(rig: Rig, plugged: object) -> None:
    state = rig.mem.state()
    state["own"]["plugged"] = plugged

    with pytest.raises(StateError, match="plugged"):
        rig.mem.restore(state, "it")


def test_restore_refuses_a_region_of_another_size(rig: Rig) -> None:
    state = rig.mem.state()
    state["config"]["region_size"] *= 2

    with pytest.raises(StateError, match="region_size"):
        rig.mem.restore(state, "it")
