"""The virtio socket device: connections between the guest and its host, by the kernel's vhost.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.10; linux/virtio_vsock.h; Linux,
drivers/vhost/vsock.c, which serves the queues of packets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pyvmm.devices.vhost.device import VhostDevice
from pyvmm.devices.vhost.kernel import INT, U64, WRITE, VhostKernel, request
from pyvmm.devices.virtio.device import ConfigField, Feature, QueueSpec
from pyvmm.devices.virtio.queue import Virtqueue
from pyvmm.errors import HostError
from pyvmm.memory.ram import Memory

SET_GUEST_CID: Final = request(WRITE, 0x60, U64.size)
SET_RUNNING: Final = request(WRITE, 0x61, INT.size)

RX, TX, EVENT = range(3)
EVENT_TRANSPORT_RESET: Final = struct.pack("<I", 0)  # struct virtio_vsock_event: id
QUEUE_SIZE: Final = 128  # as the drivers of other VMMs see


class VhostVsock(VhostKernel):
    """The kernel's end: it answers for a CID, which no other guest of this machine has.

    Raises: HostError, if the kernel has no vhost-vsock, or the CID is taken.
    """

    def __init__(self, cid: int, path: Path) -> None:
        super().__init__(path, "vhost-vsock", "vhost_vsock")
        try:
            self.call("VHOST_VSOCK_SET_GUEST_CID", SET_GUEST_CID, U64.pack(cid))
        except HostError as error:
            self.close()
            raise HostError(
                f"`devices.vsock`={cid}: {error.message}",
                hint="another guest may have this CID: choose another one",
            ) from None

    def _run(self, on: bool) -> None:
        self.call("VHOST_VSOCK_SET_RUNNING", SET_RUNNING, INT.pack(on))


class VirtioVsock(VhostDevice):
    """A socket device. After a restore the driver is told that its connections are gone."""

    device_id = 19
    name = "virtio-vsock"
    features = (Feature(1, "VSOCK_F_SEQPACKET"),)
    queue_specs = (
        QueueSpec("rx", QUEUE_SIZE), QueueSpec("tx", QUEUE_SIZE), QueueSpec("event", QUEUE_SIZE)
    )  # fmt: skip
    theirs = (RX, TX)

    guest_cid = ConfigField(0, 8, "the guest's address, CID")

    def __init__(
        self, memory: Memory, log: Callable[[str], None], backend: VhostVsock, cid: int
    ) -> None:
        super().__init__(memory, log, backend)
        self.guest_cid = cid
        self._owes_reset = False  # the driver has not been told yet

    def notify(self, queue: Virtqueue) -> None:
        """Pass a kick on, or use a new buffer for events."""
        if queue is self.queues[EVENT]:
            self._tell_reset()
        else:
            super().notify(queue)

    def restore(self, state: object, where: str) -> None:
        """Restore a saved state, in which connections existed that exist no more."""
        super().restore(state, where)
        self._owes_reset = True

    def look_into_queues(self) -> None:
        """Tell a restored driver about its connections, and give the queues to the kernel."""
        super().look_into_queues()
        if self._owes_reset:
            self.defer(self._tell_reset)

    def reset(self) -> None:
        """Reset the device; a driver that starts has no connections."""
        super().reset()
        self._owes_reset = False

    def describe(self) -> dict[str, Any]:
        """Return what every device says, and the CID."""
        return {**super().describe(), "cid": self.guest_cid}

    def _tell_reset(self) -> None:
        """Send the event of a restore, once the driver has a buffer for it; without the lock.

        Source: VIRTIO 1.2, 5.10.6.7
        """
        if not self._owes_reset:
            return
        queue = self.queues[EVENT]
        chain = self.pop(queue)
        if chain is None:
            return
        self._owes_reset = False
        self.push(queue, chain, chain.write(EVENT_TRANSPORT_RESET))
