"""A virtio device and its driver, before any access."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import Buffer, Driver

ENOUGH_S = 120.0

D = TypeVar("D", bound=VirtioDevice)


class DeviceRig(Generic[D]):
    """A device whose own threads return the requests."""

    def __init__(
        self,
        memory: GuestMemory,
        make: Callable[[GuestMemory, Callable[[str], None]], D],
        *,
        legacy: bool = False,
    ) -> None:
        self.memory = memory
        self.lines: list[str] = []
        self.interrupts = 0
        self.device = make(memory, self.lines.append)
        self.mmio = VirtioMmio(self.device, self._interrupt, legacy=legacy)
        self.driver = Driver(self.mmio, memory)

    def _interrupt(self) -> None:
        self.interrupts += 1

    def submit(self, *buffers: Buffer, queue: int = 0) -> int:
        """Submit a request; return its head."""
        head = self.driver.rings[queue].add(*buffers)
        self.driver.kick_if_wanted(queue)
        return head

    def collect(self, count: int = 1, queue: int = 0) -> dict[int, int]:
        """Wait for that many returned requests; return the bytes written to each, by head."""
        found: dict[int, int] = {}
        deadline = time.monotonic() + ENOUGH_S
        while len(found) < count:
            found |= dict(self.driver.rings[queue].take_used())
            assert time.monotonic() < deadline, f"{len(found)} of {count} came back"
            time.sleep(0.0005)
        return found

    def do(self, *buffers: Buffer, queue: int = 0) -> int:
        """Submit a request and wait for its end; return the number of bytes written."""
        head = self.submit(*buffers, queue=queue)
        return self.collect(queue=queue)[head]
