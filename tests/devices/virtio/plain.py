"""The data path in C, built for this machine and used with plain memory: no KVM, no arm64."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Final

from pyvmm.devices.virtio.blk import VirtioBlk
from pyvmm.kvm._build import DATA_PATH, data_path_declarations
from pyvmm.kvm.native import Native
from pyvmm.machine.datapaths import disk_path
from tests.devices.builtc import load

SOURCE: Final = Path(__file__).with_name("plain.c")
OWN: Final = """
void plain_random_from(uint64_t next);
void plain_random(uint8_t *buffer, size_t size);
"""


@functools.cache
def plain(*options: str) -> Native:
    """Build the data path, and load it."""
    return Native(*load(SOURCE, data_path_declarations() + OWN, f"-I{DATA_PATH}", *options))


class Bits:
    """InterruptStatus in memory that C can write to."""

    def __init__(self, native: Native) -> None:
        self.word = native.ffi.new("uint32_t *")
        self.address = int(native.ffi.cast("uintptr_t", self.word))

    def get(self) -> int:
        return int(self.word[0])

    def set(self, bits: int) -> None:
        self.word[0] |= bits

    def clear(self, bits: int) -> None:
        self.word[0] &= ~bits & 0xFFFF_FFFF

    def always_set(self, bits: int) -> None:
        assert not bits, "no device with a data path has such bits"


class PlainPath:
    """A disk whose queue is lent to C; its interrupt is an eventfd that no thread reads."""

    def __init__(self, device: VirtioBlk, native: Native) -> None:
        self.bits = Bits(native)
        self.irq = os.eventfd(0, os.EFD_NONBLOCK)
        self.device = device
        self.path = disk_path(device, self.irq, self.bits.address, native)
        device.use_data_path(self.path)

    def interrupts(self) -> int:
        """Return the number of interrupts since the last call."""
        try:
            return os.eventfd_read(self.irq)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self.device.use_data_path(None)
        self.path.close()
        os.close(self.irq)
