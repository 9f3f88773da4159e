"""Memory devices on a real machine: a guest's accesses to plugged and unplugged memory.

The tests drive the device from outside; a tiny guest accesses the memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.config import Balloon, Config, Hotplug
from pyvmm.control.service import resident
from pyvmm.devices.virtio.mem import RequestType, ResponseType, VirtioMem
from pyvmm.errors import HostError
from pyvmm.kvm import regs
from pyvmm.kvm.exits import Exit
from pyvmm.layout import GIB, MIB
from pyvmm.machine.machine import Machine
from pyvmm.machine.slots import HOTPLUG
from pyvmm.snapshot.restorer import Reading, restore
from pyvmm.snapshot.save import save
from tests import programs
from tests.devices.virtio.driver import NEEDS_RESET, Buffer, Driver

pytestmark = pytest.mark.kvm

BLOCK = 2 * MIB
BLOCKS = 8


class Rig:
    """A machine that runs a program which accesses X3 or X2 in pluggable memory."""

    def __init__(self, stack: ExitStack, directory: Path, program: str) -> None:
        self.unclaimed: list[int] = []
        self.lines: list[str] = []
        config = Config(
            image=programs.write(program, directory),
            vcpus=1,
            memory=16 * MIB,
            timeout_s=120.0,
            devices=(Hotplug(size=BLOCKS * BLOCK), Balloon()),
        )
        self.machine = stack.enter_context(
            Machine(config, lambda data: None, on_unclaimed=self._note, log=self.lines.append)
        )
        transport = self.machine.board.virtio[0]
        assert isinstance(transport.device, VirtioMem)
        self.mem = transport.device
        self.driver = Driver(transport, self.machine.memory)
        self.driver.ram.next = self.machine.memory.base + 8 * MIB
        self.driver.start(queues=1, size=16)
        self.machine.resizing.resize_memory(16 * MIB + BLOCKS * BLOCK)

    def _note(self, vcpu: int, leave: Exit) -> None:
        self.unclaimed.append(leave.address)

    def request(self, kind: RequestType, block: int, count: int = 1) -> int:
        ram = self.driver.ram
        data = struct.pack("<H6xQH6x", kind, self.mem.blocks.address(block), count)
        answer = ram.take(10)
        self.driver.rings[0].add(Buffer(ram.put(data), 24), Buffer(answer, 10, write=True))
        self.driver.kick(0)
        return ram.read(answer, "<H")

    def run(self, **registers: int) -> int:
        for name, value in registers.items():
            self.machine.vcpus[0].set_one_reg(regs.X(int(name[1:])), value)
        return self.machine.run()

    def backed(self) -> int:
        """Return how much host memory the pluggable memory takes."""
        found = self.machine.resizing.plugged_host_range()
        assert found is not None
        return resident(found)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def test_memory_lies_above_ram_with_a_gap(stack: ExitStack, tmp_path: Path) -> None:
    rig = Rig(stack, tmp_path, "load")

    assert rig.mem.addr == layout.RAM_BASE + GIB
    assert rig.backed() == 0


def test_guest_can_use_plugged_memory(stack: ExitStack, tmp_path: Path) -> None:
    rig = Rig(stack, tmp_path, "load")
    assert rig.request(RequestType.PLUG, 3) == ResponseType.ACK
    assert rig.machine.resizing.size == 16 * MIB + BLOCK
    place = rig.mem.blocks.address(4) - 4
    with rig.mem.blocks.view(place, 4) as view:
        view[:] = struct.pack("<I", 77)

    assert rig.run(x2=layout.EXIT.base, x3=place) == 77
    assert rig.unclaimed == []


@pytest.mark.parametrize("was_plugged", [False, True])
def test_unplugged_memory_reads_as_zero(
    stack: ExitStack, tmp_path: Path, was_plugged: bool
) -> None:
    rig = Rig(stack, tmp_path, "load")
    place = rig.mem.blocks.address(3)
    if was_plugged:
        rig.request(RequestType.PLUG, 2, 3)
        with rig.mem.blocks.view(place, 4) as view:
            view[:] = struct.pack("<I", 77)
        assert rig.request(RequestType.UNPLUG, 3) == ResponseType.ACK

    assert rig.run(x2=layout.EXIT.base, x3=place) == 0
    assert rig.unclaimed == [place]
    assert rig.backed() == 0


def test_write_to_unplugged_memory_takes_no_host_memory(stack: ExitStack, tmp_path: Path) -> None:
    rig = Rig(stack, tmp_path, "store flood")
    place = rig.mem.blocks.address(1)

    assert rig.run(x1=layout.EXIT.base, x2=place, x3=rig.mem.blocks.address(BLOCKS)) == 0
    assert rig.unclaimed == list(range(place, rig.mem.blocks.address(BLOCKS), BLOCK // 2))
    assert rig.backed() == 0


def test_blocks_can_be_plugged_while_the_guest_runs(stack: ExitStack, tmp_path: Path) -> None:
    rig = Rig(stack, tmp_path, "load until not 0")
    place = rig.mem.blocks.address(5)
    rig.machine.vcpus[0].set_one_reg(regs.X(2), layout.EXIT.base)
    rig.machine.vcpus[0].set_one_reg(regs.X(3), place)
    rig.machine.start()

    for _ in range(20):
        assert rig.request(RequestType.PLUG, 0, BLOCKS) == ResponseType.ACK
        assert rig.request(RequestType.UNPLUG, 0, BLOCKS) == ResponseType.ACK
    rig.request(RequestType.PLUG, 5)
    with rig.mem.blocks.view(place, 4) as view:
        view[:] = struct.pack("<I", 99)
    rig.machine._runner.join()

    assert rig.machine.result() == 99


def test_hostile_balloon_driver_stops_its_device_and_no_other(
    stack: ExitStack, tmp_path: Path
) -> None:
    rig = Rig(stack, tmp_path, "load")
    hostile = Driver(rig.machine.board.virtio[1], rig.machine.memory)
    hostile.ram.next = rig.machine.memory.base + 12 * MIB
    hostile.start(queues=5, size=16)

    for page in (0, layout.GICD.base // 4096, rig.mem.blocks.address(0) // 4096, (1 << 32) - 1):
        data = struct.pack("<I", page)
        hostile.rings[0].add(Buffer(hostile.ram.put(data), 4))
        hostile.kick(0)
        assert hostile.status & NEEDS_RESET
        hostile.ram.next = rig.machine.memory.base + 12 * MIB
        hostile.start(queues=5, size=16)

    assert len(rig.lines) == 4
    assert rig.request(RequestType.PLUG, 0, BLOCKS) == ResponseType.ACK
    place = rig.mem.blocks.address(0)
    with rig.mem.blocks.view(place, 4) as view:
        view[:] = struct.pack("<I", 42)
    assert rig.run(x2=layout.EXIT.base, x3=place) == 42


def test_memory_in_the_balloon_returns_to_the_host(stack: ExitStack, tmp_path: Path) -> None:
    rig = Rig(stack, tmp_path, "load")
    rig.request(RequestType.PLUG, 0, BLOCKS)
    size = BLOCKS * BLOCK
    with rig.mem.blocks.view(rig.mem.addr, size) as view:
        view[:] = b"\xff" * size
    driver = Driver(rig.machine.board.virtio[1], rig.machine.memory)
    driver.ram.next = rig.machine.memory.base + 12 * MIB
    driver.start(queues=5, size=16)
    assert rig.backed() == size

    pages = struct.pack(
        f"<{size // 8192}I", *(rig.mem.addr // 4096 + n for n in range(size // 8192))
    )
    driver.rings[0].add(Buffer(driver.ram.put(pages), len(pages)))
    driver.kick(0)

    assert rig.backed() == size // 2
    info = rig.machine.resizing.balloon_info()
    assert info is not None
    assert info["actual_bytes"] == size // 2
    assert rig.run(x2=layout.EXIT.base, x3=rig.mem.addr) == 0  # new pages, as from an empty block


@pytest.mark.parametrize("reading", Reading)
def test_plugged_blocks_and_balloon_are_restored_from_a_snapshot(
    stack: ExitStack, tmp_path: Path, reading: Reading
) -> None:
    rig = Rig(stack, tmp_path, "load")
    rig.request(RequestType.PLUG, 1)
    rig.request(RequestType.PLUG, 4, 3)
    rig.request(RequestType.UNPLUG, 6)
    place = rig.mem.blocks.address(5)
    with rig.mem.blocks.view(place, 4) as view:
        view[:] = struct.pack("<I", 55)
    driver = Driver(rig.machine.board.virtio[1], rig.machine.memory)
    driver.ram.next = rig.machine.memory.base + 12 * MIB
    driver.start(queues=5, size=16)
    rig.machine.resizing.resize_balloon(3 * 4096)
    pages = (place // 4096 + 7, place // 4096 + 8, rig.machine.memory.base // 4096 + 0x900)
    driver.rings[0].add(Buffer(driver.ram.put(struct.pack("<3I", *pages)), 12))
    driver.kick(0)
    file = tmp_path / "machine.snap"

    save(rig.machine, file)
    with restore(file, lambda data: None, reading=reading) as other:
        resized = other.resizing
        assert resized.plugged_info() == rig.machine.resizing.plugged_info()
        assert resized.balloon_info() == rig.machine.resizing.balloon_info()
        assert resized.size == 16 * MIB + 3 * BLOCK
        addresses = [slot.base for slot in other.board.slots.slots if slot.name == HOTPLUG]
        assert sorted(addresses) == [rig.mem.blocks.address(block) for block in (1, 4, 5)]
        other.vcpus[0].set_one_reg(regs.X(2), layout.EXIT.base)
        other.vcpus[0].set_one_reg(regs.X(3), place)
        assert other.run() == 55


def test_too_many_blocks_for_this_hosts_slots_are_refused(tmp_path: Path) -> None:
    many = Config(
        image=programs.write("load", tmp_path),
        vcpus=1,
        memory=16 * MIB,
        devices=(Hotplug(size=(1 << 15) * BLOCK, block_size=BLOCK),),
    )

    with pytest.raises(HostError, match="take a memory slot each"):
        Machine(many, lambda data: None)
