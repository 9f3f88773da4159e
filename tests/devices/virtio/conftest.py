"""A console and its guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pyvmm.devices.virtio.console import VirtioConsole
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.layout import RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import RAM_SIZE, Buffer, Driver, Ring

RECEIVEQ, TRANSMITQ = 0, 1


class Rig:
    """A virtio console and its driver, before any access."""

    def __init__(self, memory: GuestMemory, *, legacy: bool = False) -> None:
        self.memory = memory
        self.sent = bytearray()
        self.lines: list[str] = []
        self.interrupts = 0
        self.rooms = 0
        self.timers: list[Callable[[], None]] = []
        self.console = VirtioConsole(memory, self.sent.extend, self.lines.append, self.later)
        self.console.on_room = self.room
        self.mmio = VirtioMmio(self.console, self.interrupt, legacy=legacy)
        self.driver = Driver(self.mmio, memory)

    def interrupt(self) -> None:
        self.interrupts += 1

    def room(self) -> None:
        self.rooms += 1

    def later(self, delay_s: float, action: Callable[[], None]) -> Callable[[], None]:
        assert delay_s > 0
        self.timers.append(action)
        return lambda: self.timers.remove(action)

    def pass_time(self) -> None:
        """Fire the timers that are set now."""
        for action in self.timers[:]:
            self.timers.remove(action)
            action()

    @property
    def receiveq(self) -> Ring:
        return self.driver.rings[RECEIVEQ]

    @property
    def transmitq(self) -> Ring:
        return self.driver.rings[TRANSMITQ]

    def send(self, *parts: bytes) -> int:
        """Send bytes from the guest, each part in its own buffer; return the chain."""
        buffers = [Buffer(self.driver.ram.put(part), len(part)) for part in parts]
        head = self.transmitq.add(*buffers)
        self.driver.kick_if_wanted(TRANSMITQ)
        return head

    def give_room(self, *sizes: int) -> dict[int, int]:
        """Add the guest's buffers for input; return each chain's address."""
        places = {}
        for size in sizes:
            address = self.driver.ram.take(size)
            places[self.receiveq.add(Buffer(address, size, write=True))] = address
        self.driver.kick_if_wanted(RECEIVEQ)
        return places

    def take_input(self, places: dict[int, int]) -> bytes:
        """Return the input in those buffers."""
        used = self.receiveq.take_used()
        return b"".join(self.memory.read(places[head], length) for head, length in used)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(RAM_BASE, RAM_SIZE) as ram:
        yield ram


@pytest.fixture
def rig(memory: GuestMemory) -> Iterator[Rig]:
    made = Rig(memory)
    yield made
    made.console.stop()


@pytest.fixture
def legacy(memory: GuestMemory) -> Iterator[Rig]:
    made = Rig(memory, legacy=True)
    yield made
    made.console.stop()


@pytest.fixture(params=["modern", "legacy"])
def any_rig(memory: GuestMemory, request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(memory, legacy=request.param == "legacy")
    yield made
    made.console.stop()
