"""The virtio entropy device: random bytes of this machine's kernel.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.4; linux/virtio_rng.h.
"""

from __future__ import annotations

import os

from pyvmm.devices.virtio.device import QueueSpec, VirtioDevice
from pyvmm.devices.virtio.queue import Virtqueue

MOST = 64 << 10  # bytes a request gets, however much room it has: the driver asks again


class VirtioRng(VirtioDevice):
    """Fills buffers from getrandom(2), the same source as /dev/urandom's.

    The vCPU that kicks does that itself, as nothing is waited for.
    """

    device_id = 4
    name = "virtio-rng"
    queue_specs = (QueueSpec("requestq", 64, by_exit=True),)
    counted = ("requests", "bytes")

    def notify(self, queue: Virtqueue) -> None:
        """Fill the buffers there are."""
        while (chain := self.pop(queue)) is not None:
            written = chain.write(os.getrandom(min(chain.writable_size, MOST)))
            if not written or chain.readable:
                with self.lock:
                    self.fail(f"requestq chain {chain.head}: not a buffer to write to")
            self.count(requests=1, bytes=written)
            self.push(queue, chain, written)
