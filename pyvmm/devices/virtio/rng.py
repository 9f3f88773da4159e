"""The virtio entropy device: random bytes of this machine's kernel.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.4; linux/virtio_rng.h.
"""

from __future__ import annotations

import os

from pyvmm.devices.virtio.device import QueueSpec
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.devices.virtio.served import ServedDevice

MOST = 64 << 10  # bytes a request gets, however much room it has: the driver asks again


class VirtioRng(ServedDevice):
    """Fills buffers from getrandom(2), the same source as /dev/urandom's."""

    device_id = 4
    name = "virtio-rng"
    queue_specs = (QueueSpec("requestq", 64),)
    counted = ("requests", "bytes")

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Fill one buffer."""
        if chain.readable or not chain.writable:
            raise QueueError(f"requestq chain {chain.head}: not a buffer to write to")
        written = chain.write(os.getrandom(min(chain.writable_size, MOST)))
        self.count(requests=1, bytes=written)
        return written
