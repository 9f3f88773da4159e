"""The virtio file system device: a directory of the host, served by virtiofsd.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.11; linux/virtio_fs.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.devices.vhost.device import VhostDevice
from pyvmm.devices.vhost.user import VhostUser
from pyvmm.devices.virtio.device import ConfigField, QueueSpec
from pyvmm.errors import HostError, VmmError
from pyvmm.memory.ram import Memory

TAG_BYTES: Final = 36
QUEUE_SIZE: Final = 128


class VirtioFs(VhostDevice):
    """A directory, which the guest mounts by its tag."""

    device_id = 26
    name = "virtio-fs"
    queue_specs = (QueueSpec("hiprio", QUEUE_SIZE), QueueSpec("request", QUEUE_SIZE))
    theirs = (0, 1)

    tag = ConfigField(0, TAG_BYTES, "the name by which the guest mounts the directory")
    unsaveable = "virtiofsd's open files are not in a snapshot"

    num_request_queues = ConfigField(TAG_BYTES, 4, "queues for requests")

    def __init__(
        self,
        memory: Memory,
        log: Callable[[str], None],
        backend: VhostUser,
        tag: str,
        fail: Callable[[VmmError], None],
    ) -> None:
        """Make the device. ``fail`` ends the machine: its guest would wait for ever for replies."""
        super().__init__(memory, log, backend)
        self._server, self._fail = backend, fail
        self.tag = int.from_bytes(tag.encode(), "little")
        self.num_request_queues = 1
        self.backing = f"{backend.name} {tag}"

    def watched(self) -> dict[int, Callable[[], None]]:
        """Return the connection, too: it is readable when virtiofsd has ended."""
        return {**super().watched(), self._server.fileno(): self._on_end}

    def _on_end(self) -> None:
        with self.lock:
            if self.stopped or not self._server.has_ended():
                return
            self.lost()
        self._fail(
            HostError(
                f"{self.backing}: virtiofsd has ended, and the guest cannot go on without it",
                hint="its last words are above, if it had any; dmesg shows what the kernel killed",
            )
        )
