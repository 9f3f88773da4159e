"""The virtio persistent memory device: a file of the host in the guest's memory.

The guest reads and writes it as memory; the device only flushes the file.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.19; linux/virtio_pmem.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pyvmm.devices.diskfile import DiskFile
from pyvmm.devices.virtio.device import ConfigField, QueueSpec
from pyvmm.devices.virtio.queue import QueueError
from pyvmm.devices.virtio.served import Job, ServedDevice
from pyvmm.memory.file import FileMemory
from pyvmm.memory.ram import Memory

WORD = struct.Struct("<I")  # struct virtio_pmem_req: type; struct virtio_pmem_resp: ret
REQ_FLUSH = 0
RESP_OK, RESP_EIO = 0, 1


class VirtioPmem(ServedDevice):
    """The flush requests for a file mapped into guest memory as ``content``."""

    device_id = 27
    name = "virtio-pmem"
    queue_specs = (QueueSpec("req_vq", 64),)
    counted = ("flushes", "failed")

    start = ConfigField(0, 8, "guest physical address of the memory")
    size = ConfigField(8, 8, "bytes of the memory")

    def __init__(
        self, memory: Memory, disk: DiskFile, content: FileMemory, log: Callable[[str], None]
    ) -> None:
        super().__init__(memory, log)
        self.disk = disk
        self.content = content
        self.backing = str(disk.path)
        self.start = content.base
        self.size = content.size

    def serve(self, job: Job) -> int:
        """Flush the file, and return the result to the guest."""
        chain = job.chain
        if chain.readable_size != WORD.size or chain.writable_size < WORD.size:
            raise QueueError(f"req_vq chain {chain.head} is not a flush request")
        (request,) = WORD.unpack(chain.read())
        done = request == REQ_FLUSH and self._flush()
        job.counts = {"flushes" if done else "failed": 1}
        return chain.write(WORD.pack(RESP_OK if done else RESP_EIO))

    def _flush(self) -> bool:
        try:
            self.disk.flush()
        except OSError as error:
            self.report(f"flush: {error.strerror}; the guest gets an I/O error")
            return False
        return True
