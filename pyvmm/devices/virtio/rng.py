"""The virtio entropy device: random bytes from the host's kernel.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.4; linux/virtio_rng.h.
"""

from __future__ import annotations

import os

from pyvmm.devices.virtio.device import QueueSpec
from pyvmm.devices.virtio.exitserved import ExitServed
from pyvmm.devices.virtio.queue import Virtqueue

MOST = 64 << 10  # bytes of a request, at most; a driver that wants more asks again


class VirtioRng(ExitServed):
    """An entropy source that fills buffers from getrandom(2), as /dev/urandom does.

    The kicking vCPU does this: getrandom(2) does not block. Mostly C does it (kvm/datapath/rng.c).
    """

    device_id = 4
    name = "virtio-rng"
    queue_specs = (QueueSpec("requestq", 64, by_exit=True),)
    counted = ("requests", "bytes")

    def notify(self, queue: Virtqueue) -> None:
        """Fill the available buffers."""
        while (chain := self.pop(queue)) is not None:
            written = chain.write(os.getrandom(min(chain.writable_size, MOST)))
            if not written or chain.readable:
                with self.lock:
                    self.fail(f"requestq chain {chain.head} must have writable buffers only")
            self.count(requests=1, bytes=written)
            self.push(queue, chain, written)
        with self.lock:
            self.lend_queues()
