"""The entropy device and its driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvmm.devices.virtio.rng import MOST, VirtioRng
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import NEEDS_RESET, Buffer
from tests.devices.virtio.rig import DeviceRig

Rig = DeviceRig[VirtioRng]


@pytest.fixture(params=["modern", "legacy"])
def rig(memory: GuestMemory, request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(memory, VirtioRng, legacy=request.param == "legacy")
    made.driver.start(queues=1)
    yield made
    made.device.stop()


def test_request_fills_its_buffers_only(rig: Rig) -> None:
    address = rig.driver.ram.take(4096)
    rig.memory.zero(address, 4096)

    written = rig.do(Buffer(address, 1000, True), Buffer(address + 2000, 1000, True))

    assert written == 2000
    first, second = rig.memory.read(address, 1000), rig.memory.read(address + 2000, 1000)
    assert len(set(first)) > 200
    assert first != second
    assert rig.memory.read(address + 1000, 1000) == bytes(1000)
    assert rig.memory.read(address + 3000, 1096) == bytes(1096)
    assert rig.interrupts >= 1


def test_each_request_gets_other_bytes(rig: Rig) -> None:
    address = rig.driver.ram.take(64)
    seen = set()

    for _ in range(300):
        assert rig.do(Buffer(address, 16, True)) == 16
        seen.add(rig.memory.read(address, 16))

    assert len(seen) == 300
    assert rig.device.counts == {"requests": 300, "bytes": 4800}


def test_large_request_is_filled_in_part(rig: Rig) -> None:
    address = rig.driver.ram.take(1 << 20)

    assert rig.do(Buffer(address, 1 << 20, True)) == MOST


@pytest.mark.parametrize("wrong", ["readable", "empty"])
def test_request_without_room_stops_only_the_device(rig: Rig, wrong: str) -> None:
    address = rig.driver.ram.take(64)

    rig.submit(Buffer(address, 64 * (wrong == "readable"), wrong == "empty"))
    rig.device.drain()

    assert rig.driver.status & NEEDS_RESET
    assert len(rig.lines) == 1
    assert "must have writable buffers only" in rig.lines[0]
    rig.driver.start(queues=1)
    assert rig.do(Buffer(address, 64, True)) == 64
