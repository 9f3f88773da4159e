"""Every kind of device, with a driver that uses it: their states, and new devices to restore."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyvmm.base.closing import Closing
from pyvmm.config import Balloon, DeviceConfig, Disk, Hotplug, Pmem, Rng
from pyvmm.devices.device import Device
from pyvmm.devices.diskfile import DiskFile
from pyvmm.devices.exit import ExitRegister
from pyvmm.devices.pl031 import Pl031
from pyvmm.devices.uart8250 import Uart8250
from pyvmm.devices.virtio.balloon import VirtioBalloon
from pyvmm.devices.virtio.blk import VirtioBlk
from pyvmm.devices.virtio.console import VirtioConsole
from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.mem import VirtioMem
from pyvmm.devices.virtio.mmio import VirtioMmio
from pyvmm.devices.virtio.pmem import VirtioPmem
from pyvmm.devices.virtio.rng import VirtioRng
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.file import FileMemory
from pyvmm.memory.map import MemoryMap, PluggableMemory
from pyvmm.memory.ram import GuestMemory
from tests.devices.virtio.driver import Buffer, Driver, Ram

RAM_SIZE = 4 * MIB
BLOCK, BLOCKS = 2 * MIB, 2
PLUGGED, PMEM = RAM_BASE + (64 << 20), RAM_BASE + (128 << 20)
SIZE = 2 * MIB  # of the file of disk and pmem
ENTRIES = 8  # of each queue


def configs(path: Path) -> tuple[DeviceConfig, ...]:
    """Return the devices of a Config that has these, after a virtio console."""
    return (Disk(path=path), Rng(), Balloon(), Hotplug(size=BLOCK * BLOCKS), Pmem(path=path))


class LiveDevices(Closing):
    """The devices of a machine with a virtio console, by their names in the guest physical map.

    ``path`` is a file of SIZE bytes, which they read and write.
    """

    def __init__(self, path: Path, *, legacy: bool = False) -> None:
        self.lines: list[str] = []
        self.output = bytearray()
        self.ram = GuestMemory(RAM_BASE, RAM_SIZE)
        self.disk = DiskFile(path, option="-d", read_only=False)
        self.pmem = FileMemory(self.disk.fd, PMEM, SIZE, read_only=False)
        self.blocks = PluggableMemory(PLUGGED, BLOCK * BLOCKS, BLOCK)
        self.memory = MemoryMap(self.ram, self.pmem, self.blocks)
        self.virtio = [
            VirtioMmio(made, lambda: None, legacy=legacy)
            for made in self._virtio()
            if not (legacy and isinstance(made, VirtioMem))
        ]
        self.devices: dict[str, Device] = {
            "uart0": Uart8250(lambda level: None, self.output.extend),
            "rtc": Pl031(lambda level: None, clock=lambda: 1000.0),
            "exit": ExitRegister(lambda code: None),
            **{f"virtio{slot}": mmio for slot, mmio in enumerate(self.virtio)},
        }

    def _virtio(self) -> list[VirtioDevice]:
        memory, log = self.memory, self.lines.append
        return [
            VirtioConsole(memory, self.output.extend, log, _never),
            VirtioBlk(memory, self.disk, b"serial", log),
            VirtioRng(memory, log),
            VirtioBalloon(memory, log, lambda: 1.0),
            VirtioMem(memory, log, self.blocks, lambda first, count, there: None),
            VirtioPmem(memory, self.disk, self.pmem, log),
        ]

    def use(self) -> None:
        """Let a driver of each device start it, and make a request that stays unserved."""
        self.devices["uart0"].mmio_write(1, 1, 1)
        self.devices["rtc"].mmio_write(4, 4, 2000)
        place = RAM_BASE
        for mmio in self.virtio:
            driver = Driver(mmio, self.ram)
            driver.ram.next = place
            driver.start(queues=len(mmio.device.queues), size=ENTRIES)
            for number, ring in enumerate(driver.rings):
                ring.add(*_request(mmio.device.name.removeprefix("virtio-"), number, driver.ram))
            place = (driver.ram.next + 4095) & -4096

    def states(self) -> dict[str, Any]:
        """Return each device's state, as a snapshot has it."""
        found: dict[str, Any] = json.loads(
            json.dumps({name: device.state() for name, device in self.devices.items()})
        )
        return found

    def restore(self, name: str, state: object) -> None:
        """Restore one device's state, as a restore does.

        Raises: StateError.
        """
        self.devices[name].restore(state, name)

    def run(self) -> None:
        """Let each virtio device serve what is in its queues; drain all."""
        for mmio in self.virtio:
            mmio.resume()
            mmio.device.drain()

    def close(self) -> None:
        """Stop the devices, and release their memory."""
        for mmio in self.virtio:
            mmio.device.stop()
        self.pmem.__exit__(None, None, None)
        self.blocks.backing.close()
        self.disk.close()
        self.ram.close()


def _never(delay_s: float, action: Callable[[], None]) -> Callable[[], None]:
    """Return a function that cancels nothing: the action never runs."""
    return lambda: None


def _request(device: str, queue: int, ram: Ram) -> list[Buffer]:
    """Return the buffers of a valid request to a device's queue."""
    room = Buffer(ram.take(16), 16, write=True)
    pages = Buffer(ram.put(struct.pack("<I", RAM_BASE // 4096 + 900)), 4)
    requests: dict[tuple[str, int], list[Buffer]] = {
        ("console", 0): [room],
        ("console", 1): [Buffer(ram.put(b"hello"), 5)],
        ("blk", 0): [Buffer(ram.put(struct.pack("<IIQ", 0, 0, 1)), 16),
                     Buffer(ram.take(512), 512, write=True), room],
        ("rng", 0): [room],
        ("balloon", 2): [Buffer(ram.put(struct.pack("<HQ", 4, 1 << 20)), 10)],
        ("balloon", 4): [Buffer(RAM_BASE + 3 * MIB, 4096, write=True)],
        ("mem", 0): [Buffer(ram.put(struct.pack("<H6xQH6x", 0, PLUGGED, 1)), 24), room],
        ("pmem", 0): [Buffer(ram.put(bytes(4)), 4), Buffer(ram.take(4), 4, write=True)],
    }  # fmt: skip
    return requests.get((device, queue), [pages])
