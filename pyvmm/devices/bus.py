"""The bus: the device at each guest physical address."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from typing import Protocol

from pyvmm.layout import Region


class MmioDevice(Protocol):
    """A device on the bus; offsets count from the start of its region."""

    def mmio_read(self, offset: int, length: int) -> int:
        """Return the value of a guest's read, little endian."""

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        """Handle a guest's write."""


class _NoDevice:
    """The device of unclaimed addresses."""

    def mmio_read(self, offset: int, length: int) -> int:
        """Return zero."""
        return 0

    def mmio_write(self, offset: int, length: int, value: int) -> None:
        """Do nothing."""


UNCLAIMED = Region("unclaimed", 0, 0)
NO_DEVICE: MmioDevice = _NoDevice()


class Bus:
    """The devices by address, for any thread. Each device does its own locking.

    An access goes to the device at its first byte. An unclaimed read returns 0 and an unclaimed
    write does nothing, as under lkvm.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The ends of regions, for bisect, and the devices. `add` replaces the pair: a lookup
        # without a lock sees two lists that match.
        self._map: tuple[list[int], list[tuple[Region, MmioDevice]]] = ([], [])

    def __iter__(self) -> Iterator[tuple[Region, MmioDevice]]:
        return iter(self._map[1])

    def add(self, region: Region, device: MmioDevice) -> None:
        """Put ``device`` at ``region``.

        Raises: ValueError, if the region is empty or overlaps another.
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
        """Return the region and device at an address, or UNCLAIMED and NO_DEVICE."""
        ends, entries = self._map
        index = bisect_right(ends, address)
        if index < len(entries) and entries[index][0].base <= address:
            return entries[index]
        return UNCLAIMED, NO_DEVICE
