"""A virtio driver in Python that uses only the device's registers and guest RAM.

Written from the specification (VIRTIO 1.2, 3.1.1, 2.7.13, 2.7.14 and 4.2.3), not from the device.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory

RAM_SIZE = 4 * MIB

NEXT, WRITE, INDIRECT = 1, 2, 4
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80
F_INDIRECT, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32

INT_USED, INT_CONFIG = 1, 2

PAGE = 4096


class Buffer(NamedTuple):
    """A descriptor to be written."""

    addr: int
    length: int
    write: bool = False


class Mmio(Protocol):
    def mmio_read(self, offset: int, length: int) -> int: ...
    def mmio_write(self, offset: int, length: int, value: int) -> None: ...


class Ram:
    """An allocator of guest RAM that frees nothing."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.next = RAM_BASE

    def take(self, size: int, align: int = 16) -> int:
        address = (self.next + align - 1) & -align
        self.next = address + size
        assert self.next <= self.memory.end
        return address

    def put(self, data: bytes) -> int:
        address = self.take(len(data))
        self.memory.write(address, data)
        return address

    def read(self, address: int, form: str) -> int:
        data = self.memory.read(address, struct.calcsize(form))
        return int(struct.unpack(form, data)[0])

    def write(self, address: int, form: str, *values: int) -> None:
        self.memory.write(address, struct.pack(form, *values))


class Ring:
    """The driver's side of a split virtqueue; it reuses descriptors in turn."""

    def __init__(self, ram: Ram, size: int, *, event_idx: bool = False, align: int = 0) -> None:
        self.ram, self.size, self.event_idx = ram, size, event_idx
        avail_size = 6 + 2 * size
        if align:  # the legacy layout, in one piece
            self.desc = ram.take(0, align)
            self.avail = self.desc + 16 * size
            self.used = (self.avail + avail_size + align - 1) & -align
            ram.take(self.used + 6 + 8 * size - self.desc)
        else:
            self.desc = ram.take(16 * size, 16)
            self.avail = ram.take(avail_size, 2)
            self.used = ram.take(6 + 8 * size, 4)
        ram.memory.zero(self.desc, self.used + 6 + 8 * size - self.desc)
        self.idx = 0
        self.seen = 0  # entries of the used ring taken
        self._kicked = 0  # idx at the last call of wants_kick
        self._next_desc = 0

    def start_at(self, index: int) -> None:
        """Set the indices as after that many buffers."""
        self.idx = self.seen = self._kicked = index
        self.ram.write(self.avail + 2, "<H", index)
        self.ram.write(self.used + 2, "<H", index)

    def describe(self, table: int, index: int, buffer: Buffer, next_: int | None) -> None:
        flags = (WRITE if buffer.write else 0) | (NEXT if next_ is not None else 0)
        self.ram.write(table + 16 * index, "<QIHH", buffer.addr, buffer.length, flags, next_ or 0)

    def raw(self, index: int, addr: int, length: int, flags: int, next_: int = 0) -> None:
        self.ram.write(self.desc + 16 * index, "<QIHH", addr, length, flags, next_)

    def chain(self, buffers: Sequence[Buffer]) -> int:
        """Put buffers into descriptors; return the first one."""
        indices = [(self._next_desc + n) % self.size for n in range(len(buffers))]
        self._next_desc = (indices[-1] + 1) % self.size
        for buffer, index, next_ in zip(buffers, indices, [*indices[1:], None], strict=True):
            self.describe(self.desc, index, buffer, next_)
        return indices[0]

    def indirect(self, buffers: Sequence[Buffer], flags: int = INDIRECT) -> int:
        """Put buffers into an indirect table; return its descriptor."""
        table = self.ram.take(16 * len(buffers))
        for n, buffer in enumerate(buffers):
            self.describe(table, n, buffer, n + 1 if n + 1 < len(buffers) else None)
        head = self._next_desc
        self._next_desc = (head + 1) % self.size
        self.raw(head, table, 16 * len(buffers), flags)
        return head

    def publish(self, *heads: int) -> None:
        """Make chains available."""
        for head in heads:
            self.ram.write(self.avail + 4 + 2 * (self.idx % self.size), "<H", head)
            self.idx = (self.idx + 1) & 0xFFFF
        self.ram.write(self.avail + 2, "<H", self.idx)

    def add(self, *buffers: Buffer) -> int:
        head = self.chain(buffers)
        self.publish(head)
        return head

    def wants_kick(self) -> bool:
        """Return whether the device wants a kick for chains published since the last call."""
        old, self._kicked = self._kicked, self.idx
        if not self.event_idx:
            return not self.ram.read(self.used, "<H") & 1
        event = self.ram.read(self.used + 4 + 8 * self.size, "<H")
        return (self.idx - event - 1) & 0xFFFF < (self.idx - old) & 0xFFFF

    def take_used(self) -> list[tuple[int, int]]:
        """Return (head, bytes written) of each chain returned since the last call."""
        index = self.ram.read(self.used + 2, "<H")
        found = []
        while self.seen != index:
            at = self.used + 4 + 8 * (self.seen % self.size)
            found.append((self.ram.read(at, "<I"), self.ram.read(at + 4, "<I")))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def set_no_interrupt(self, on: bool) -> None:
        self.ram.write(self.avail, "<H", int(on))

    def set_used_event(self, index: int) -> None:
        self.ram.write(self.avail + 4 + 2 * self.size, "<H", index)


class Driver:
    """The driver of one virtio-mmio device, in the order of the specification."""

    def __init__(self, mmio: Mmio, memory: GuestMemory) -> None:
        self.mmio = mmio
        self.ram = Ram(memory)
        self.rings: list[Ring] = []
        self.features = 0

    def read(self, offset: int) -> int:
        return self.mmio.mmio_read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.mmio.mmio_write(offset, 4, value)

    @property
    def status(self) -> int:
        return self.read(0x070)

    @property
    def legacy(self) -> bool:
        return self.read(0x004) == 1

    def add_status(self, bits: int) -> None:
        self.write(0x070, self.status | bits)

    def reset(self) -> None:
        self.write(0x070, 0)
        assert self.status == 0

    def offered(self) -> int:
        words = []
        for word in range(2):
            self.write(0x014, word)
            words.append(self.read(0x010))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> None:
        for word in range(2):
            self.write(0x024, word)
            self.write(0x020, features >> 32 * word & 0xFFFF_FFFF)
        self.features = features

    def negotiate(self, wanted: int = -1) -> None:
        """Initialise from reset to FEATURES_OK (modern); accept the wanted features offered."""
        self.reset()
        self.add_status(ACKNOWLEDGE)
        self.add_status(DRIVER)
        must = 0 if self.legacy else F_VERSION_1
        self.accept(self.offered() & (wanted | must))
        if not self.legacy:
            self.add_status(FEATURES_OK)
            assert self.status & FEATURES_OK

    def make_ring(self, index: int, size: int | None = None) -> Ring:
        """Set up a queue."""
        self.write(0x030, index)
        event_idx = bool(self.features & F_EVENT_IDX)
        size = size or self.read(0x034)
        ring = Ring(self.ram, size, event_idx=event_idx, align=PAGE if self.legacy else 0)
        self.write(0x038, size)
        if self.legacy:
            assert self.read(0x040) == 0
            self.write(0x028, PAGE)
            self.write(0x03C, PAGE)
            self.write(0x040, ring.desc // PAGE)
        else:
            assert self.read(0x044) == 0
            self.place(ring)
            self.write(0x044, 1)
        return ring

    def place(self, ring: Ring) -> None:
        for offset, address in ((0x080, ring.desc), (0x090, ring.avail), (0x0A0, ring.used)):
            self.write(offset, address & 0xFFFF_FFFF)
            self.write(offset + 4, address >> 32)

    def start(self, queues: int = 2, wanted: int = -1, size: int | None = None) -> None:
        """Run the whole initialisation."""
        self.negotiate(wanted)
        self.rings = [self.make_ring(index, size) for index in range(queues)]
        self.add_status(DRIVER_OK)
        self.look_at_config()

    def look_at_config(self) -> None:
        """Read the configuration after a change interrupt."""
        if self.acknowledge() & INT_CONFIG:
            self.mmio.mmio_read(0x100, 4)

    def kick(self, index: int) -> None:
        self.write(0x050, index)

    def kick_if_wanted(self, index: int) -> bool:
        wanted = self.rings[index].wants_kick()
        if wanted:
            self.kick(index)
        return wanted

    def acknowledge(self) -> int:
        """Acknowledge the interrupts and return them."""
        reasons = self.read(0x060)
        self.write(0x064, reasons)
        return reasons
