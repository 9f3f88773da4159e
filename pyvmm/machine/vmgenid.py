"""The VM generation ID: 16 random bytes that change each time a snapshot is restored.

The random number generators of two guests from one snapshot are in the same state. Linux's driver
(drivers/virt/vmgenid.c, with a device tree since v6.10) reseeds the kernel's when the bytes change.

Source: Linux, Documentation/devicetree/bindings/rng/microsoft,vmgenid.yaml; Microsoft, "Virtual
Machine Generation ID".
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Final

from pyvmm import layout
from pyvmm.kvm.vm import Vm, spi
from pyvmm.machine.slots import MemorySlots
from pyvmm.memory.ram import GuestMemory

SPI: Final = layout.VMGENID.spi or 0
UNUSED_SPI: Final = SPI - 1  # of no device


class GenerationId:
    """A machine's VM generation ID, in memory of its own, with an edge-triggered interrupt."""

    def __init__(self, vm: Vm, slots: MemorySlots, undo: ExitStack) -> None:
        """Map the memory, and choose a value."""
        region = layout.VMGENID
        self._vm = vm
        self._memory = undo.enter_context(GuestMemory(region.base, region.size))
        slots.add(region.name, region.base, region.size, self._memory.host_address)
        slots.save(region.name, self._memory)
        self._choose()

    @property
    def value(self) -> bytes:
        """The current value."""
        return self._memory.read(layout.VMGENID.base, layout.VMGENID_SIZE)

    def renew(self, *, interrupt: bool) -> None:
        """Change the value, and interrupt the guest; its GIC is restored, and no vCPU has run.

        The interrupt stays pending if the guest has masked it, as Linux does while it is suspended.
        Nothing stays in a Linux without a driver, which has made it level-triggered.

        Linux reads the value through an uncached mapping, which sees no later write in the host's
        cache. KVM cleans the cache when the guest first accesses the page.
        """
        self._choose()
        for level in (True, False) if interrupt else ():
            self._vm.irq_line(spi(SPI), level)

    def _choose(self) -> None:
        self._memory.write(layout.VMGENID.base, os.urandom(layout.VMGENID_SIZE))
