"""A vhost back end: it serves a device's queues in guest memory, with eventfds for both signals.

      guest                pyvmm                        back end
      kick ---ioeventfd---------------------------> kick_fd
      interrupt <---irqfd-------------------------- call_fd
                  start, stop, features -----------> control

Source: linux/vhost.h; QEMU, docs/interop/vhost-user.rst, which has the same terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pyvmm.base.records import Record
from pyvmm.memory.map import MemoryRegion


class Ring(Record):
    """A queue's rings, by their addresses in this process, and its eventfds.

    ``next_avail`` is the index of the first entry that the back end has not taken.
    """

    size: int
    desc: int
    avail: int
    used: int
    next_avail: int
    kick_fd: int
    call_fd: int
    error_fd: int


class VhostBackend(Protocol):
    """The control of one device's back end. Each method raises HostError if it refuses."""

    @property
    def name(self) -> str:
        """The back end's name, for people."""

    @property
    def features(self) -> int:
        """The feature bits that it offers."""

    def start(self, features: int, memory: Sequence[MemoryRegion], rings: dict[int, Ring]) -> None:
        """Serve these queues, by their indices, with the features that the driver accepted."""

    def stop(self, queues: Sequence[int]) -> dict[int, int]:
        """Stop; return the ``next_avail`` of these queues. No memory is accessed afterwards."""

    def close(self) -> None:
        """End the back end's work for this device; idempotent."""
