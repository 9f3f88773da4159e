"""Requests to resize a machine's memory, without a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyvmm.devices.virtio.balloon import VirtioBalloon
from pyvmm.devices.virtio.mem import VirtioMem
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.errors import UsageError, VmmError
from pyvmm.layout import GIB, MIB, RAM_BASE
from pyvmm.machine.resizing import Resizing
from pyvmm.memory.map import MemoryMap, PluggableMemory
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import Driver

RAM = 64 * MIB
ROOM = 32 * MIB


class Rig:
    def __init__(self, ram: GuestMemory, blocks: PluggableMemory) -> None:
        memory = MemoryMap(ram, blocks)
        self.balloon = VirtioBalloon(memory, self.broken)
        self.mem = VirtioMem(memory, self.broken, blocks, lambda first, count, there: None)
        self.resizing = Resizing(RAM, [self.balloon, self.mem])
        self.driver = Driver(VirtioMmio(self.balloon, lambda: None), ram)
        self.blocks = blocks

    def broken(self, line: str) -> None:
        raise AssertionError(line)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with (
        GuestMemory(RAM_BASE, RAM) as ram,
        PluggableMemory(4 * GIB, ROOM, 2 * MIB) as blocks,
    ):
        made = Rig(ram, blocks)
        yield made
        made.balloon.stop()


def test_balloon_size_is_in_bytes(rig: Rig) -> None:
    rig.resizing.resize_balloon(8 * MIB)
    rig.resizing.inflate_balloon(3 * MIB)
    rig.resizing.inflate_balloon(-MIB)

    assert rig.balloon.num_pages == 10 * MIB // 4096
    info = rig.resizing.balloon_info()
    assert info is not None
    assert info["target_bytes"] == 10 * MIB


def test_memory_size_includes_the_ram(rig: Rig) -> None:
    rig.resizing.resize_memory(RAM + 6 * MIB)
    assert rig.mem.requested_size == 6 * MIB
    rig.resizing.resize_memory(RAM + ROOM)
    assert rig.mem.requested_size == ROOM
    rig.resizing.resize_memory(RAM)
    assert rig.mem.requested_size == 0


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda r: r.resize_balloon(RAM + 4096), "more than the guest has: 64 MiB"),
        (lambda r: r.resize_balloon(1 << 60), "more than the guest has"),
        (lambda r: r.resize_balloon(100), "a balloon has whole pages of 4 KiB"),
        (
            lambda r: r.inflate_balloon(-4096),
            "size is 0 bytes: it cannot be made 4 KiB smaller",
        ),
        (lambda r: r.inflate_balloon(RAM + 4096), "more than the guest has"),
        (lambda r: r.resize_memory(RAM - 4096), "less than the guest's RAM"),
        (lambda r: r.resize_memory(0), "less than the guest's RAM"),
        (
            lambda r: r.resize_memory(RAM + ROOM + 2 * MIB),
            "98 MiB is more than there is room for: "
            "64 MiB of RAM and `devices.hotplug`=32 MiB, 96 MiB",
        ),
        (lambda r: r.resize_memory(RAM + MIB), "in blocks of 2 MiB beside 64 MiB of RAM"),
    ],
)
def test_impossible_sizes_are_refused_and_change_nothing(
    rig: Rig, ask: Callable[[Resizing], None], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ask(rig.resizing)

    assert words in caught.value.message
    assert (rig.balloon.num_pages, rig.mem.requested_size) == (0, 0)


def test_balloon_can_take_plugged_memory(rig: Rig) -> None:
    rig.blocks.set_plugged(0, 2, True)
    rig.mem.plugged_size = 4 * MIB

    rig.resizing.resize_balloon(RAM + 4 * MIB)
    with pytest.raises(UsageError, match="68 MiB"):
        rig.resizing.resize_balloon(RAM + 6 * MIB)


def test_rebooted_machine_gets_the_same_requests(rig: Rig) -> None:
    rig.resizing.resize_balloon(8 * MIB)
    rig.resizing.resize_memory(RAM + 6 * MIB)
    with (
        GuestMemory(RAM_BASE, RAM) as ram,
        PluggableMemory(4 * GIB, ROOM, 2 * MIB) as blocks,
    ):
        other = Rig(ram, blocks)
        other.resizing.adopt(rig.resizing)

    assert other.balloon.num_pages == rig.balloon.num_pages == 8 * MIB // 4096
    assert other.mem.requested_size == rig.mem.requested_size == 6 * MIB


def test_resizing_without_devices_is_refused_with_a_hint() -> None:
    bare = Resizing(RAM, [])

    for ask, option in (
        (bare.resize_balloon, "`devices.balloon`"),
        (bare.inflate_balloon, "`devices.balloon`"),
        (bare.resize_memory, "`devices.hotplug`"),
    ):
        with pytest.raises(UsageError) as caught:
            ask(RAM)
        assert option in (caught.value.hint or "")
    assert bare.balloon_info() is None
    assert bare.plugged_info() is None
    assert bare.statistics() is None
    assert bare.plugged_host_range() is None
    assert bare.size == RAM


def test_free_pages_are_collected_if_the_driver_can_report_them(rig: Rig) -> None:
    with pytest.raises(VmmError, match="no driver for that"):
        rig.resizing.collect_free_pages()

    rig.driver.start(queues=5, size=16)
    rig.resizing.collect_free_pages()
    with pytest.raises(VmmError, match="it is reporting them"):
        rig.resizing.collect_free_pages()
    rig.resizing.stop_collecting()
    rig.resizing.collect_free_pages()
