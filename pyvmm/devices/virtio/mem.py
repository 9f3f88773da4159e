"""virtio-mem: memory in blocks that the guest plugs and unplugs while it runs.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.15; linux/virtio_mem.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from pyvmm.devices.state import StateError, StateField
from pyvmm.devices.virtio.device import (
    STATUS_DRIVER_OK,
    ConfigField,
    Feature,
    QueueSpec,
    VirtioDevice,
)
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.errors import HostError
from pyvmm.memory.map import PluggableMemory
from pyvmm.memory.ram import Memory

F_UNPLUGGED_INACCESSIBLE = Feature(1, "MEM_F_UNPLUGGED_INACCESSIBLE")

UINT64 = (1 << 64) - 1

REQUEST = struct.Struct("<H6xQH6x")  # struct virtio_mem_req: type, addr, nb_blocks
RESPONSE = struct.Struct("<H6xH")  # struct virtio_mem_resp: type, state


class Request(IntEnum):
    """What a driver asks.  Source: linux/virtio_mem.h, VIRTIO_MEM_REQ_*"""

    PLUG = 0
    UNPLUG = 1
    UNPLUG_ALL = 2
    STATE = 3


class Response(IntEnum):
    """What the device answers.  Source: linux/virtio_mem.h, VIRTIO_MEM_RESP_*"""

    ACK = 0
    NACK = 1
    BUSY = 2
    ERROR = 3


class State(IntEnum):
    """What blocks are.  Source: linux/virtio_mem.h, VIRTIO_MEM_STATE_*"""

    PLUGGED = 0
    UNPLUGGED = 1
    MIXED = 2


class VirtioMem(VirtioDevice):
    """Memory of which the guest plugs as much as `ask` says, block by block.

    ``show`` makes blocks the guest's memory, or takes them away again: it is called with the
    first, how many there are, and which of the two; a HostError of it makes the guest try again
    later. An unplugged block is no memory to anybody: neither guest nor devices reach it, and
    what was in it is gone.

    A driver must know of that (F_UNPLUGGED_INACCESSIBLE, Linux 5.16); others are refused.
    """

    device_id = 24
    name = "virtio-mem"
    features = (F_UNPLUGGED_INACCESSIBLE,)
    queue_specs = (QueueSpec("guest-request", 16, by_exit=True),)

    counted = ("plugs", "unplugs", "refusals")
    gives_memory = True
    state_fields = (StateField("plugged_size", 0, UINT64), StateField("requested_size", 0, UINT64))

    block_size = ConfigField(0, 8, "bytes in a block, and its alignment")
    node_id = ConfigField(8, 2, "an ACPI proximity domain, with F_ACPI_PXM, which is not offered")
    addr = ConfigField(16, 8, "where the first block is")
    region_size = ConfigField(24, 8, "bytes in all blocks")
    usable_region_size = ConfigField(32, 8, "bytes in those that may be plugged: all of them")
    plugged_size = ConfigField(40, 8, "bytes that are plugged")
    requested_size = ConfigField(48, 8, "bytes that are to be plugged")

    def __init__(
        self,
        memory: Memory,
        log: Callable[[str], None],
        blocks: PluggableMemory,
        show: Callable[[int, int, bool], None],
    ) -> None:
        super().__init__(memory, log)
        self.blocks = blocks
        self.show = show
        (self.guest_request,) = self.queues
        self.block_size, self.addr = blocks.block_size, blocks.base
        self.region_size = self.usable_region_size = blocks.size
        self.plugged_size = blocks.plugged_size

    # For whoever runs the machine

    def ask(self, size: int) -> None:
        """Say how many bytes should be plugged, in whole blocks; the guest does what it can."""
        with self.lock:
            if size != self.requested_size:
                self.requested_size = size
                self.config_changed()

    @property
    def has_driver(self) -> bool:
        """Whether the guest has a driver that works."""
        return self.live and bool(self.status & STATUS_DRIVER_OK)

    def info(self) -> dict[str, Any]:
        """The memory as JSON has it; bytes."""
        with self.lock:
            return {
                "requested_bytes": self.requested_size,
                "plugged_bytes": self.plugged_size,
                "most_bytes": self.region_size,
                "block_bytes": self.block_size,
                "has_driver": self.has_driver,
            }

    def own_state(self) -> dict[str, Any]:
        """The plugged blocks, as runs: the first, and how many."""
        return {"plugged": [list(run) for run in self.blocks.runs()]}

    def restore_own(self, state: object, where: str) -> None:
        """Plug the blocks that `own_state` gave, into a machine that has none plugged.

        What is in them is restored with the rest of the memory, before or after.
        """
        for first, count in _checked_runs(state, self.blocks.blocks, where):
            self.show(first, count, True)
            self.blocks.set_plugged(first, count, True)
        if self.plugged_size != self.blocks.plugged_size:
            raise StateError(f"{where}.plugged is not what plugged_size says")

    # For the driver

    def notify(self, queue: Virtqueue) -> None:
        """The driver has made requests."""
        while (chain := self.pop(queue)) is not None:
            written = 0
            with self.guard:
                written = self._answer(chain)
            self.push(queue, chain, written)

    def _acceptable(self) -> bool:
        return super()._acceptable() and self.has(F_UNPLUGGED_INACCESSIBLE)

    def _answer(self, chain: Chain) -> int:
        """Do what a request asks; returns how many bytes the answer has. In ``guard``."""
        if not self.guest_request.owns(chain):
            return 0
        if chain.readable_size != REQUEST.size or chain.writable_size < RESPONSE.size:
            raise QueueError(
                f"guest-request chain {chain.head}: a request of {chain.readable_size} bytes "
                f"with room for {chain.writable_size}"
            )
        kind, address, count = REQUEST.unpack(chain.read())
        state = State.PLUGGED
        match kind:
            case Request.PLUG:
                response = self._plug(address, count)
            case Request.UNPLUG:
                response = self._unplug(address, count)
            case Request.UNPLUG_ALL:
                response = self._unplug_all()
            case Request.STATE:
                response, state = self._state(address, count)
            case _:
                response = Response.ERROR
        return chain.write(RESPONSE.pack(response, state))

    def _first(self, address: int, count: int) -> int | None:
        """The number of the block at an address, if it begins there and ``count`` are there."""
        block, rest = divmod(address - self.addr, self.block_size)
        there = not rest and count > 0 and block >= 0 and block + count <= self.blocks.blocks
        return block if there else None

    def _plug(self, address: int, count: int) -> Response:
        first = self._first(address, count)
        if first is None or self.blocks.plugged_among(first, count):
            return Response.ERROR
        if self.plugged_size + count * self.block_size > self.requested_size:
            return Response.NACK
        if not self._show(first, count, True):
            return Response.BUSY
        self.blocks.set_plugged(first, count, True)
        self.plugged_size = self.blocks.plugged_size
        return Response.ACK

    def _unplug(self, address: int, count: int) -> Response:
        first = self._first(address, count)
        if first is None or self.blocks.plugged_among(first, count) < count:
            return Response.ERROR
        return self._take_away(first, count)

    def _unplug_all(self) -> Response:
        for first, count in list(self.blocks.runs()):
            response = self._take_away(first, count)
            if response != Response.ACK:
                return response
        return Response.ACK

    def _take_away(self, first: int, count: int) -> Response:
        if not self._show(first, count, False):
            return Response.BUSY
        self.blocks.set_plugged(first, count, False)
        self.plugged_size = self.blocks.plugged_size
        return Response.ACK

    def _state(self, address: int, count: int) -> tuple[Response, State]:
        first = self._first(address, count)
        if first is None:
            return Response.ERROR, State.UNPLUGGED
        plugged = self.blocks.plugged_among(first, count)
        if plugged == count:
            return Response.ACK, State.PLUGGED
        return Response.ACK, State.MIXED if plugged else State.UNPLUGGED

    def _show(self, first: int, count: int, there: bool) -> bool:
        """Tell the machine; False, and a line in the log the first time, where it cannot."""
        try:
            self.show(first, count, there)
        except HostError as error:
            self.counts["refusals"] += 1
            if self.counts["refusals"] == 1:
                self.log(f"{self.name}: the guest has to wait: {error}")
            return False
        self.counts["plugs" if there else "unplugs"] += count
        return True


def _checked_runs(state: object, blocks: int, where: str) -> list[tuple[int, int]]:
    """Runs of blocks from a snapshot, in order, with others between them.

    Raises: StateError.
    """
    runs = state.get("plugged") if isinstance(state, Mapping) else None
    if not isinstance(runs, list):
        raise StateError(f"{where} has no plugged blocks")
    free = 0
    for run in runs:
        if not (isinstance(run, list) and [type(number) for number in run] == [int, int]):
            raise StateError(f"{where}.plugged has {str(run)[:40]}, no run of blocks")
        first, count = run
        if first < free or count < 1 or first + count > blocks:
            raise StateError(f"{where}.plugged has {count} blocks from {first} on, of {blocks}")
        free = first + count
    return [(first, count) for first, count in runs]
