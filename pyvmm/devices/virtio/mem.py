"""virtio-mem: memory in blocks that the guest plugs and unplugs while it runs.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.15; linux/virtio_mem.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from pyvmm.devices.state import StateError, StateField, checked_runs
from pyvmm.devices.virtio.device import (
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


class RequestType(IntEnum):
    """A request's type.  Source: linux/virtio_mem.h, VIRTIO_MEM_REQ_*"""

    PLUG = 0
    UNPLUG = 1
    UNPLUG_ALL = 2
    STATE = 3


class ResponseType(IntEnum):
    """A response's type.  Source: linux/virtio_mem.h, VIRTIO_MEM_RESP_*"""

    ACK = 0
    NACK = 1
    BUSY = 2
    ERROR = 3


class State(IntEnum):
    """The state of blocks.  Source: linux/virtio_mem.h, VIRTIO_MEM_STATE_*"""

    PLUGGED = 0
    UNPLUGGED = 1
    MIXED = 2


class VirtioMem(VirtioDevice):
    """Memory in blocks; the guest plugs as many bytes as `request` says.

    ``map_blocks(first, count, plug)`` maps blocks into the guest or unmaps them. If it raises
    HostError, the device responds BUSY and the guest tries again later. Neither the guest nor a
    device can access an unplugged block. Unplugging loses its content.

    The device refuses drivers without F_UNPLUGGED_INACCESSIBLE (Linux before 5.16).
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
    addr = ConfigField(16, 8, "address of the first block")
    region_size = ConfigField(24, 8, "bytes in all blocks")
    usable_region_size = ConfigField(32, 8, "bytes in the blocks that may be plugged: in all")
    plugged_size = ConfigField(40, 8, "plugged bytes")
    requested_size = ConfigField(48, 8, "bytes that the guest should plug")

    def __init__(
        self,
        memory: Memory,
        log: Callable[[str], None],
        blocks: PluggableMemory,
        map_blocks: Callable[[int, int, bool], None],
    ) -> None:
        super().__init__(memory, log)
        self.blocks = blocks
        self.map_blocks = map_blocks
        (self.guest_request,) = self.queues
        self.block_size, self.addr = blocks.block_size, blocks.base
        self.region_size = self.usable_region_size = blocks.size
        self.plugged_size = blocks.plugged_size

    # For the machine

    def request(self, size: int) -> None:
        """Request that the guest plug that many bytes, in whole blocks."""
        with self.lock:
            if size != self.requested_size:
                self.requested_size = size
                self.config_changed()

    def info(self) -> dict[str, Any]:
        """Return the memory's sizes in bytes, for JSON."""
        with self.lock:
            return {
                "requested_bytes": self.requested_size,
                "plugged_bytes": self.plugged_size,
                "most_bytes": self.region_size,
                "block_bytes": self.block_size,
                "has_driver": self.has_driver,
            }

    def own_state(self) -> dict[str, Any]:
        """Return the plugged blocks as runs: the first block and the count."""
        return {"plugged": [list(run) for run in self.blocks.runs()]}

    def restore_own(self, state: object, where: str) -> None:
        """Plug the saved blocks, in a machine without plugged blocks.

        The rest of the restore sets their content, before or after.
        """
        runs = checked_runs(state, "plugged", where)
        free, blocks = 0, self.blocks.blocks
        for first, count in runs:  # in order, without overlaps
            if first < free or count < 1 or first + count > blocks:
                raise StateError(f"{where}.plugged has {count} blocks from {first} on, of {blocks}")
            free = first + count
        for first, count in runs:
            self.map_blocks(first, count, True)
            self.blocks.set_plugged(first, count, True)
        if self.plugged_size != self.blocks.plugged_size:
            raise StateError(f"{where}.plugged does not match plugged_size")

    # For the driver

    def notify(self, queue: Virtqueue) -> None:
        """Serve the driver's requests."""
        while (chain := self.pop(queue)) is not None:
            written = 0
            with self.guard:
                written = self._serve(chain)
            self.push(queue, chain, written)

    def _acceptable(self) -> bool:
        return super()._acceptable() and self.has(F_UNPLUGGED_INACCESSIBLE)

    def _serve(self, chain: Chain) -> int:
        """Serve a request; return the size of the response. In ``guard``."""
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
            case RequestType.PLUG:
                response = self._plug(address, count)
            case RequestType.UNPLUG:
                response = self._unplug(address, count)
            case RequestType.UNPLUG_ALL:
                response = self._unplug_all()
            case RequestType.STATE:
                response, state = self._state(address, count)
            case _:
                response = ResponseType.ERROR
        return chain.write(RESPONSE.pack(response, state))

    def _first(self, address: int, count: int) -> int | None:
        """Return the index of the first block of a valid range."""
        block, rest = divmod(address - self.addr, self.block_size)
        valid = not rest and count > 0 and block >= 0 and block + count <= self.blocks.blocks
        return block if valid else None

    def _plug(self, address: int, count: int) -> ResponseType:
        first = self._first(address, count)
        if first is None or self.blocks.plugged_among(first, count):
            return ResponseType.ERROR
        if self.plugged_size + count * self.block_size > self.requested_size:
            return ResponseType.NACK
        if not self._map(first, count, True):
            return ResponseType.BUSY
        self.blocks.set_plugged(first, count, True)
        self.plugged_size = self.blocks.plugged_size
        return ResponseType.ACK

    def _unplug(self, address: int, count: int) -> ResponseType:
        first = self._first(address, count)
        if first is None or self.blocks.plugged_among(first, count) < count:
            return ResponseType.ERROR
        return self._unplug_run(first, count)

    def _unplug_all(self) -> ResponseType:
        for first, count in list(self.blocks.runs()):
            response = self._unplug_run(first, count)
            if response != ResponseType.ACK:
                return response
        return ResponseType.ACK

    def _unplug_run(self, first: int, count: int) -> ResponseType:
        if not self._map(first, count, False):
            return ResponseType.BUSY
        self.blocks.set_plugged(first, count, False)
        self.plugged_size = self.blocks.plugged_size
        return ResponseType.ACK

    def _state(self, address: int, count: int) -> tuple[ResponseType, State]:
        first = self._first(address, count)
        if first is None:
            return ResponseType.ERROR, State.UNPLUGGED
        plugged = self.blocks.plugged_among(first, count)
        if plugged == count:
            return ResponseType.ACK, State.PLUGGED
        return ResponseType.ACK, State.MIXED if plugged else State.UNPLUGGED

    def _map(self, first: int, count: int, plug: bool) -> bool:
        """Map or unmap blocks; after an error return False, and log the first one."""
        try:
            self.map_blocks(first, count, plug)
        except HostError as error:
            self.counts["refusals"] += 1
            if self.counts["refusals"] == 1:
                self.log(f"{self.name}: the guest has to wait: {error}")
            return False
        self.counts["plugs" if plug else "unplugs"] += count
        return True
