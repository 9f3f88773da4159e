"""Split virtqueues, from the device's side.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 2.7; names are those of linux/virtio_ring.h.

The queue checks all of the driver's input before its use. A broken rule raises QueueError, and
nothing else raises. Work is bounded: neither the ring's chains nor a chain's descriptors may
outnumber the ring's entries.

Memory ordering. Driver and device run on different CPUs and share the rings without a lock. Beyond
plain accesses they need two things:

- Single-copy atomic accesses to an index. CPython's memoryview accesses an item of its own format
  with one load or store (a memcpy of constant size); slices and struct access single bytes.
- Barriers, `Virtqueue._fence`: between an index and the entries before it, and between the store
  of an index and the load of the other side's flags.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from typing import Any

from pyvmm.base.records import Record
from pyvmm.devices.state import StateError, StateField, restore_fields, save_fields
from pyvmm.errors import GuestError
from pyvmm.memory.ram import Memory, OutOfRange

MAX_QUEUE_SIZE = 32768  # 2.7
MAX_CHAIN_BYTES = 1 << 32  # 2.7.5.2
INDEX = 0xFFFF  # indices are 16 bits wide and run freely

ADDRESS = (1 << 64) - 1

# The saved state of a queue, without the features: its device saves them.
STATE_FIELDS = (
    StateField("size", 0, (1 << 32) - 1),  # unchecked, as the driver wrote it
    StateField("desc", 0, ADDRESS),
    StateField("driver", 0, ADDRESS),
    StateField("device", 0, ADDRESS),
    StateField("ready", 0, 1),
    StateField("last_avail", 0, INDEX),
    StateField("used_idx", 0, INDEX),
    StateField("signalled", 0, INDEX),
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


class Area(Record):
    """A part of a queue: its alignment, and its size, base + each * Queue Size, in bytes."""

    name: str
    align: int
    base: int
    each: int

    def size(self, queue_size: int) -> int:
        """Return the size in bytes."""
        return self.base + self.each * queue_size


# Source: VIRTIO 1.2, 2.7, the table of virtqueue parts
DESC_AREA = Area("descriptor table", 16, 0, 16)
DRIVER_AREA = Area("available ring", 2, 6, 2)
DEVICE_AREA = Area("used ring", 4, 6, 8)


class QueueError(GuestError):
    """A driver's violation of its queue's rules."""


class Chain:
    """A driver's buffer: its readable and its writable parts.

    The views are guest RAM itself, in order and not empty, until the device returns the chain.
    ``places`` are the guest addresses and sizes of the writable parts.
    """

    __slots__ = (
        "epoch", "head", "places", "readable", "readable_size", "writable", "writable_size"
    )  # fmt: skip

    def __init__(self, head: int, epoch: int) -> None:
        self.head = head
        self.epoch = epoch  # the queue's epoch: a reset begins the next one, and drops the chain
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.places: list[tuple[int, int]] = []
        self.readable_size = 0
        self.writable_size = 0

    def pieces(self, most: int) -> Iterator[bytes]:
        """Copy the readable part out of the guest, at most ``most`` bytes at a time."""
        for view in self.readable:
            if len(view) <= most:
                yield bytes(view)
                continue
            for start in range(0, len(view), most):
                yield bytes(view[start : start + most])

    def read(self) -> bytes:
        """Return the readable part in one copy; the caller has checked its size."""
        return b"".join(self.readable)

    def release(self) -> None:
        """Release guest RAM, once the chain is returned."""
        for view in (*self.readable, *self.writable):
            view.release()

    def write(self, data: bytes) -> int:
        """Put ``data`` into the writable part, up to its size; return the number of bytes."""
        return scatter(data, self.writable)


def scatter(data: bytes, views: list[memoryview]) -> int:
    """Put ``data`` into consecutive views, up to their size; return the number of bytes."""
    done = 0
    for view in views:
        part = data[done : done + len(view)]
        view[: len(part)] = part
        done += len(part)
        if done == len(data):
            break
    return done


class Virtqueue:
    """The split virtqueue of one device; callers hold the device's lock.

    A transport sets ``size`` and the addresses ``desc``, ``driver`` and ``device``, then calls
    `enable`. Then the device takes chains (`pop`) and returns them (`push`) in any order.
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
        """Reset the queue, and drop the chains not returned; leave guest memory alone."""
        self.disable()
        self.size = self.max_size
        self.desc = self.driver = self.device = 0
        self.event_idx = self.indirect = False

    def enable(self) -> None:
        """Begin to use the rings at the addresses set.

        Raises: QueueError, for a size or an address that the specification forbids.
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
        """Return a view of a part of the queue in guest memory."""
        if address % area.align:
            raise self._error(f"has its {area.name} at {address:#x}: not {area.align}-aligned")
        try:
            return self.memory.view(address, area.size(self.size))
        except OutOfRange:
            raise self._error(f"has its {area.name} at {address:#x}, outside RAM") from None

    def disable(self) -> None:
        """Release the rings, and drop the chains not returned."""
        self.ready = False
        self.epoch += 1
        for view in (self._desc, self._avail, self._used, self._entries):
            view.release()
        self.last_avail = 0  # the next entry of the available ring
        self.used_idx = 0
        self.waiting = 0  # how many entries are known from last_avail on
        self.out = 0  # chains taken and not returned
        self.signalled = 0  # used_idx at the last call of needs_interrupt

    def state(self) -> dict[str, Any]:
        """Return the queue's state, for JSON, while no chain is out."""
        return save_fields(self, STATE_FIELDS)

    def restore(self, state: object, where: str) -> None:
        """Restore a saved state, after the device's features.

        Raises: StateError, for a state that is invalid or has rings outside this RAM.
        """
        self.disable()
        restore_fields(self, STATE_FIELDS, state, where)
        if self.ready:
            try:
                self.enable()
            except QueueError as error:
                self.ready = False
                raise StateError(f"{where}: {error.message}") from None

    def adopt(self, last_avail: int) -> None:
        """Continue where another server of the rings stopped, which has returned every chain."""
        self.last_avail = last_avail
        self.used_idx = self.signalled = self._used[IDX]
        self.waiting = self.out = 0

    def pop(self) -> Chain | None:
        """Take the next available chain, or None.

        Raises: QueueError, if the ring or the chain breaks the rules.
        """
        if not self.waiting and not self.has_chains():
            return None
        head = self._avail[RING + self.last_avail % self.size]
        chain = self._walk(head)
        self.last_avail = (self.last_avail + 1) & INDEX
        self.waiting -= 1
        self.out += 1
        return chain

    def retake(self, head: int) -> Chain:
        """Take a chain that a data path has popped, but not pushed.

        Raises: QueueError, if the driver has broken the chain since.
        """
        chain = self._walk(head)
        self.out += 1
        return chain

    def has_chains(self) -> bool:
        """Return whether `pop` would find a chain.

        Raises: QueueError, if the driver claims more chains than the ring has entries.
        """
        if not self.ready:
            return False
        waiting = (self._avail[IDX] - self.last_avail) & INDEX
        if waiting > self.size:
            raise self._error(f"has {waiting} chains available in a ring of {self.size}")
        if waiting:
            self._fence()  # read the entries after the index
        self.waiting = waiting
        return waiting > 0

    def push(self, chain: Chain, written: int) -> None:
        """Return a chain with ``written`` bytes in it; drop a chain from before a reset."""
        chain.release()
        if not self.owns(chain):
            return
        self.out -= 1
        at = self.used_idx % self.size * 2
        self._entries[at] = chain.head
        self._entries[at + 1] = written & 0xFFFF_FFFF
        self._fence()  # write the chain and the entry before the index
        self.used_idx = (self.used_idx + 1) & INDEX
        self._used[IDX] = self.used_idx

    def owns(self, chain: Chain) -> bool:
        """Return whether the chain was taken since the last `enable`."""
        return self.ready and chain.epoch == self.epoch

    def describe(self) -> dict[str, Any]:
        """Return the queue's addresses and both sides' indices, for JSON."""
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
        """Return whether the driver wants an interrupt for chains pushed since the last call."""
        old, self.signalled = self.signalled, self.used_idx
        if not self.ready or old == self.used_idx:
            return False
        self._fence()  # store the index before this load: else both sides might sleep
        if self.event_idx:
            return _crossed(self._avail[RING + self.size], self.used_idx, old)
        return not self._avail[FLAGS] & AVAIL_F_NO_INTERRUPT

    def enable_kicks(self) -> bool:
        """Ask for a kick at the next chain; return whether there are chains already.

        Raises: QueueError, as `has_chains` does.
        """
        if not self.ready:
            return False
        if self.event_idx:
            self._used[RING + 4 * self.size] = self.last_avail  # avail_event
        else:
            self._used[FLAGS] = 0
        self._fence()  # store the request before the next load: else both sides might sleep
        return self.has_chains()

    def disable_kicks(self) -> None:
        """Suppress kicks; with EVENT_IDX an event index in the past does so already."""
        if self.ready and not self.event_idx:
            self._used[FLAGS] = USED_F_NO_NOTIFY

    def _walk(self, head: int) -> Chain:
        """Return the chain that begins at a descriptor."""
        chain = Chain(head, self.epoch)
        table, entries, index, indirect = self._desc, self.size, head, False
        for _ in range(self.size + 1):  # one more for an indirect table's descriptor
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
            raise self._error(f"chain {chain.head}: a readable buffer after a writable one")
        if not length:
            return
        if chain.readable_size + chain.writable_size + length > MAX_CHAIN_BYTES:
            raise self._error(f"chain {chain.head}: more than {MAX_CHAIN_BYTES:#x} bytes")
        try:  # without a check before: memory can be unplugged in between
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
        """Act as a full memory barrier: no access to guest RAM moves across this call.

        It releases a lock and acquires it again. On arm64 these are a Store-Release and a
        Load-Acquire, which stay in order and together are a full barrier (Arm DDI 0487, B2.3,
        barrier-ordered-before). On x86 each locked instruction is a full barrier.
        """
        self._order.release()
        self._order.acquire()


def _crossed(event: int, new: int, old: int) -> bool:
    """Return whether an index passed ``event`` on its way from ``old`` to ``new``.

    Source: vring_need_event() in linux/virtio_ring.h
    """
    return (new - event - 1) & INDEX < (new - old) & INDEX
