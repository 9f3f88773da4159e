"""Split virtqueues, from the device's side.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 2.7; names are those of linux/virtio_ring.h.

All that a driver hands over is checked before it is used; what breaks the rules is a QueueError,
and nothing else is ever raised. Work is bounded: no more chains than the ring has entries, no more
descriptors in a chain.

Memory ordering. Driver and device run on different CPUs and share the rings without a lock. Two
things are needed beyond plain accesses:

- An index must be read and written in one piece. CPython's memoryview does that for an item of its
  own format (a memcpy of constant size, one load or store); slices and struct do it byte by byte.
- On arm64 the order between an index and what it vouches for must be forced, and that between
  publishing an index and looking whether the other side sleeps. `Virtqueue._fence` is that.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyvmm.devices.state import StateError, StateField, restore_fields, save_fields
from pyvmm.errors import GuestError
from pyvmm.memory.ram import Memory, OutOfRange

MAX_QUEUE_SIZE = 32768  # 2.7
MAX_CHAIN_BYTES = 1 << 32  # 2.7.5.2
INDEX = 0xFFFF  # indices are 16 bits wide and run freely

ADDRESS = (1 << 64) - 1

# What snapshots have of a queue; features and the rest of its device come from elsewhere.
STATE_FIELDS = (
    StateField("size", 0, (1 << 32) - 1),  # as the driver wrote it, who may write anything
    StateField("desc", 0, ADDRESS),
    StateField("driver", 0, ADDRESS),
    StateField("device", 0, ADDRESS),
    StateField("ready", 0, 1),
    StateField("last_avail", 0, INDEX),
    StateField("used_idx", 0, INDEX),
    StateField("_signalled", 0, INDEX),
)

# struct vring_desc: addr, len, flags, next
DESC = struct.Struct("<QIHH")
DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

AVAIL_F_NO_INTERRUPT = 1  # the driver: do not interrupt
USED_F_NO_NOTIFY = 1  # the device: do not kick

# Both rings as 16-bit words: flags, idx, then the entries, then the other side's event index.
FLAGS, IDX, RING = 0, 1, 2


class Area(NamedTuple):
    """A part of a queue: its alignment, and its size as base + each * Queue Size, in bytes."""

    name: str
    align: int
    base: int
    each: int

    def size(self, queue_size: int) -> int:
        """How many bytes the part has."""
        return self.base + self.each * queue_size


# Source: VIRTIO 1.2, 2.7, the table of virtqueue parts
DESC_AREA = Area("descriptor table", 16, 0, 16)
DRIVER_AREA = Area("available ring", 2, 6, 2)
DEVICE_AREA = Area("used ring", 4, 6, 8)


class QueueError(GuestError):
    """A driver broke the rules of its queue."""


class Chain:
    """One buffer of the driver's: what the device may read of it, and what it may write.

    The views are guest RAM itself, in order, none of them empty, until the chain is given back.
    ``places`` are where the writable ones are in the guest, and how long.
    """

    __slots__ = (
        "epoch", "head", "places", "readable", "readable_size", "writable", "writable_size"
    )  # fmt: skip

    def __init__(self, head: int, epoch: int) -> None:
        self.head = head
        self.epoch = epoch  # of the queue; it goes with a reset, and the chain with it
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.places: list[tuple[int, int]] = []
        self.readable_size = 0
        self.writable_size = 0

    def pieces(self, most: int) -> Iterator[bytes]:
        """Copy what is readable out of the guest, at most ``most`` bytes at a time."""
        for view in self.readable:
            if len(view) <= most:
                yield bytes(view)
                continue
            for start in range(0, len(view), most):
                yield bytes(view[start : start + most])

    def read(self) -> bytes:
        """All that is readable, in one copy: for requests whose size the caller has checked."""
        return b"".join(self.readable)

    def release(self) -> None:
        """Let go of guest RAM; the chain has been given back."""
        for view in (*self.readable, *self.writable):
            view.release()

    def write(self, data: bytes) -> int:
        """Put ``data`` into the writable part, as far as there is room; returns how much it was."""
        done = 0
        for view in self.writable:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
            if done == len(data):
                break
        return done


class Virtqueue:
    """One queue; not thread-safe, its device's lock is held around every call.

    A transport sets ``size`` and the addresses ``desc``, ``driver`` and ``device``, then calls
    `enable`. From then on the device takes chains (`pop`) and gives them back (`push`) in any
    order.
    """

    def __init__(self, memory: Memory, name: str, max_size: int) -> None:
        self.memory = memory
        self.name = name
        self.max_size = max_size
        self.event_idx = False  # VIRTIO_F_EVENT_IDX was negotiated
        self.indirect = False  # VIRTIO_F_INDIRECT_DESC was negotiated
        self.epoch = 0
        self._order = threading.Lock()
        self._order.acquire()
        self._desc = self._avail = self._used = self._entries = memoryview(b"")
        self.reset()

    def reset(self) -> None:
        """Forget everything; chains not given back yet are dropped, the guest's memory is left."""
        self.disable()
        self.size = self.max_size
        self.desc = self.driver = self.device = 0
        self.event_idx = self.indirect = False

    def enable(self) -> None:
        """Begin to work with the rings where they were put.

        Raises:
            QueueError: size or addresses are not what the specification allows.
        """
        size = self.size
        if not 0 < size <= min(self.max_size, MAX_QUEUE_SIZE) or size & (size - 1):
            raise self._error(f"has size {size}: not a power of two up to {self.max_size}")
        places = (DESC_AREA, self.desc), (DRIVER_AREA, self.driver), (DEVICE_AREA, self.device)
        desc, driver, device = (self._part(area, address) for area, address in places)
        self._desc = desc
        self._avail = driver.cast("H")
        self._used = device.cast("H")
        self._entries = device[4 : 4 + 8 * size].cast("I")
        self.ready = True

    def _part(self, area: Area, address: int) -> memoryview:
        """A part of the queue in the guest's memory."""
        if address % area.align:
            raise self._error(f"has its {area.name} at {address:#x}: not {area.align}-aligned")
        try:
            return self.memory.view(address, area.size(self.size))
        except OutOfRange:
            raise self._error(f"has its {area.name} at {address:#x}, outside RAM") from None

    def disable(self) -> None:
        """Let go of the rings, and drop the chains not given back yet."""
        self.ready = False
        self.epoch += 1
        for view in (self._desc, self._avail, self._used, self._entries):
            view.release()
        self.last_avail = 0  # the entry of the available ring to take next
        self.used_idx = 0
        self.waiting = 0  # entries from last_avail on that are known to be there
        self.out = 0  # chains taken and not given back
        self._signalled = 0  # used_idx when the need of an interrupt was last looked at

    def state(self) -> dict[str, Any]:
        """The queue as JSON has it; no chain is out."""
        return save_fields(self, STATE_FIELDS)

    def restore(self, state: object, where: str) -> None:
        """Become what `state` gave, after the device's features.

        Raises: StateError, for what no queue in this RAM can be.
        """
        self.disable()
        restore_fields(self, STATE_FIELDS, state, where)
        if self.ready:
            try:
                self.enable()
            except QueueError as error:
                self.ready = False
                raise StateError(f"{where}: {error.message}") from None

    def pop(self) -> Chain | None:
        """Take the next chain the driver has made available; None if there is none.

        Raises:
            QueueError: the ring or the chain breaks the rules.
        """
        if not self.waiting and not self.has_chains():
            return None
        head = self._avail[RING + self.last_avail % self.size]
        chain = self._walk(head)
        self.last_avail = (self.last_avail + 1) & INDEX
        self.waiting -= 1
        self.out += 1
        return chain

    def has_chains(self) -> bool:
        """Whether `pop` would find one.

        Raises:
            QueueError: the driver claims more chains than the ring has entries.
        """
        if not self.ready:
            return False
        waiting = (self._avail[IDX] - self.last_avail) & INDEX
        if waiting > self.size:
            raise self._error(f"has {waiting} chains available in a ring of {self.size}")
        if waiting:
            self._fence()  # the entries are read after the index that vouches for them
        self.waiting = waiting
        return waiting > 0

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back with ``written`` bytes in it; one of before a reset is dropped."""
        chain.release()
        if not self.owns(chain):
            return
        self.out -= 1
        at = self.used_idx % self.size * 2
        self._entries[at] = chain.head
        self._entries[at + 1] = written & 0xFFFF_FFFF
        self._fence()  # what was written to the chain, and the entry, come before the index
        self.used_idx = (self.used_idx + 1) & INDEX
        self._used[IDX] = self.used_idx

    def owns(self, chain: Chain) -> bool:
        """Whether the chain is one of those taken since the queue was last enabled."""
        return self.ready and chain.epoch == self.epoch

    def describe(self) -> dict[str, Any]:
        """How the queue stands, as JSON has it: its place, and both sides' indices."""
        return {
            "name": self.name,
            "ready": self.ready,
            "size": self.size,
            "max_size": self.max_size,
            "desc": f"{self.desc:#x}",
            "driver": f"{self.driver:#x}",
            "device": f"{self.device:#x}",
            "avail_idx": self._avail[IDX] if self.ready else 0,
            "last_avail": self.last_avail,
            "used_idx": self.used_idx,
        }

    def needs_interrupt(self) -> bool:
        """Whether the driver wants to be told of what was pushed since this was last asked."""
        old, self._signalled = self._signalled, self.used_idx
        if not self.ready or old == self.used_idx:
            return False
        self._fence()  # the index is seen before we look: else both sides might go to sleep
        if self.event_idx:
            return _crossed(self._avail[RING + self.size], self.used_idx, old)
        return not self._avail[FLAGS] & AVAIL_F_NO_INTERRUPT

    def enable_kicks(self) -> bool:
        """Ask to be kicked when chains come; returns whether some have come already.

        Raises:
            QueueError: see `has_chains`.
        """
        if not self.ready:
            return False
        if self.event_idx:
            self._used[RING + 4 * self.size] = self.last_avail  # avail_event
        else:
            self._used[FLAGS] = 0
        self._fence()  # the wish is seen before we look: else both sides might go to sleep
        return self.has_chains()

    def disable_kicks(self) -> None:
        """Say that kicks are not needed; with EVENT_IDX an event index left behind says so."""
        if self.ready and not self.event_idx:
            self._used[FLAGS] = USED_F_NO_NOTIFY

    def _walk(self, head: int) -> Chain:
        """The chain that begins at a descriptor."""
        chain = Chain(head, self.epoch)
        table, entries, index, indirect = self._desc, self.size, head, False
        for _ in range(self.size + 1):  # the descriptor of an indirect table is not one of them
            if index >= entries:
                raise self._error(f"chain {head}: descriptor {index} of a table of {entries}")
            addr, length, flags, next_ = DESC.unpack_from(table, index * DESC.size)
            if flags & DESC_F_INDIRECT:
                if indirect:
                    raise self._error(f"chain {head}: an indirect table in an indirect table")
                table = self._indirect_table(head, addr, length, flags)
                entries, index, indirect = length // DESC.size, 0, True
                continue
            self._add(chain, addr, length, flags)
            if not flags & DESC_F_NEXT:
                break
            index = next_
        else:
            raise self._error(f"chain {head}: a loop, or more than {self.size} descriptors")
        return chain

    def _indirect_table(self, head: int, addr: int, length: int, flags: int) -> memoryview:
        if not self.indirect:
            raise self._error(f"chain {head}: an indirect table, which was not negotiated")
        if flags & DESC_F_NEXT:
            raise self._error(f"chain {head}: an indirect table that has a next descriptor")
        if not length or length % DESC.size:
            raise self._error(f"chain {head}: an indirect table of {length} bytes")
        try:
            return self.memory.view(addr, length)
        except OutOfRange:
            raise self._error(
                f"chain {head}: an indirect table at {addr:#x}, outside RAM"
            ) from None

    def _add(self, chain: Chain, addr: int, length: int, flags: int) -> None:
        """Add a descriptor's buffer to its chain."""
        if not flags & DESC_F_WRITE and chain.writable_size:
            raise self._error(f"chain {chain.head}: something to read after something to write")
        if not length:
            return
        if chain.readable_size + chain.writable_size + length > MAX_CHAIN_BYTES:
            raise self._error(f"chain {chain.head}: more than {MAX_CHAIN_BYTES:#x} bytes")
        try:  # without asking whether it is there: memory can be unplugged between two looks
            view = self.memory.view(addr, length)
        except OutOfRange:
            what = f"chain {chain.head}: {length:#x} bytes at {addr:#x}, outside RAM"
            raise self._error(what) from None
        if flags & DESC_F_WRITE:
            chain.writable.append(view)
            chain.places.append((addr, length))
            chain.writable_size += length
        else:
            chain.readable.append(view)
            chain.readable_size += length

    def _error(self, what: str) -> QueueError:
        return QueueError(f"{self.name} {what}")

    def _fence(self) -> None:
        """Order every access to guest RAM before this against every one after it.

        A lock's release followed by its acquisition: on arm64 a Store-Release and a Load-Acquire,
        which CPUs keep in order, and around them nothing may move across both (Arm DDI 0487, B2.3,
        barrier-ordered-before); on x86 locked instructions, each of them a full barrier.
        """
        self._order.release()
        self._order.acquire()


def _crossed(event: int, new: int, old: int) -> bool:
    """Whether an index went past ``event`` on its way from ``old`` to ``new``.

    Source: vring_need_event() in linux/virtio_ring.h
    """
    return (new - event - 1) & INDEX < (new - old) & INDEX
