"""The bus: which device answers at a guest physical address."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from typing import Protocol

from pyvmm.layout import Region


class MmioDevice(Protocol):
    """What the bus needs of a device; offsets are from the start of its region."""

    def mmio_read(self, offset: int, length: int) -> int:
        """Answer a guest's read."""

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        """Carry out a guest's write."""


class _Nobody:
    """Answers where there is no device."""

    def mmio_read(self, offset: int, length: int) -> int:
        """Zero."""
        return 0

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        """Nothing happens."""


UNCLAIMED = Region("unclaimed", 0, 0)
NOBODY: MmioDevice = _Nobody()


class Bus:
    """Finds the device of an address and passes the access on, from any thread.

    An access belongs to the device that has its first byte; devices do their own locking.
    What no device claims reads as 0 and ignores writes, as under lkvm.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Devices by address, and the ends of their regions for bisect. Replaced, never changed,
        # so that a lookup sees both as they belong together without a lock.
        self._map: tuple[list[int], list[tuple[Region, MmioDevice]]] = ([], [])

    def __iter__(self) -> Iterator[tuple[Region, MmioDevice]]:
        return iter(self._map[1])

    def add(self, region: Region, device: MmioDevice) -> None:
        """Let ``device`` answer in ``region``.

        Raises:
            ValueError: the region is empty or overlaps one added before.
        """
        if region.size <= 0:
            raise ValueError(f"{region.name} is empty")
        with self._lock:
            for other, _ in self._map[1]:
                if region.base < other.end and other.base < region.end:
                    raise ValueError(
                        f"{region.name} at {region.base:#x} to {region.end:#x} overlaps "
                        f"{other.name} at {other.base:#x} to {other.end:#x}"
                    )
            entries = sorted([*self._map[1], (region, device)], key=lambda entry: entry[0].base)
            self._map = [region.end for region, _ in entries], entries

    def find(self, address: int) -> tuple[Region, MmioDevice]:
        """The region and device at that address; UNCLAIMED and NOBODY where there is none."""
        ends, entries = self._map
        index = bisect_right(ends, address)
        if index < len(entries) and entries[index][0].base <= address:
            return entries[index]
        return UNCLAIMED, NOBODY

    def read(self, address: int, length: int) -> int:
        """What the guest gets that reads ``length`` bytes, little endian."""
        region, device = self.find(address)
        return device.mmio_read(address - region.base, length)

    def write(self, address: int, length: int, value: int) -> None:
        """Carry out a guest's write of ``length`` bytes, little endian."""
        region, device = self.find(address)
        device.mmio_write(address - region.base, length, value)
