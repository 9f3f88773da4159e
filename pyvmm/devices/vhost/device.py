"""The base of virtio devices whose queues a vhost back end serves.

The driver's status, features and configuration stay here. The back end has the queues from
DRIVER_OK to a reset, except while the machine is paused:

             DRIVER_OK, proceed
    HERE ---------------------------> the BACK END serves the queues
      ^                                    |
      +------ reset, failure, drain -------+   it returns the index of each queue

The back end pulses the interrupt without pyvmm. So InterruptStatus always says that buffers were
used: a driver reads it only after an interrupt, and looks into its queues then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, ClassVar

from pyvmm.devices.vhost.backend import Ring, VhostBackend
from pyvmm.devices.virtio.device import INT_VRING, Feature, VirtioDevice
from pyvmm.devices.virtio.queue import INDEX, Virtqueue
from pyvmm.errors import HostError
from pyvmm.memory.map import regions
from pyvmm.memory.ram import Memory


class VhostDevice(VirtioDevice):
    """A device with a back end, which serves the queues whose indices are ``theirs``."""

    theirs: ClassVar[tuple[int, ...]]
    always_set = INT_VRING
    writes_unlogged = True

    def __init__(self, memory: Memory, log: Callable[[str], None], backend: VhostBackend) -> None:
        super().__init__(memory, log)
        self.backend = backend
        self.backing = backend.name
        self.memory = memory
        self.kick_fds = {index: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                         for index in self.theirs}  # fmt: skip
        self.error_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._served: tuple[int, ...] | None = None  # the queues that the back end has
        self._closed = False

    @property
    def known_features(self) -> tuple[Feature, ...]:
        """The features that both sides know."""
        offered = self.backend.features
        return tuple(f for f in super().known_features if offered >> f.bit & 1)

    def doorbell_fd(self, queue: int) -> int | None:
        """Return the eventfd that the back end waits for."""
        return self.kick_fds.get(queue)

    def notify(self, queue: Virtqueue) -> None:
        """Pass on a kick that came as an exit."""
        index = self.queues.index(queue)
        if index in self.theirs and not self._closed:
            os.eventfd_write(self.kick_fds[index], 1)

    def activate(self) -> None:
        """Give the queues to the back end."""
        self._give()

    def look_into_queues(self) -> None:
        """Give the queues to the back end, which looks for chains; with the lock."""
        self._give()

    def proceed(self) -> None:
        """Continue after `drain`."""
        with self.lock:
            self._give()

    def drain(self) -> None:
        """Take the queues back: no memory changes until `proceed`."""
        with self.lock:
            self._take_back()

    def reset(self) -> None:
        """Reset the device; its queues are taken back before."""
        self._take_back()
        super().reset()

    def fail(self, what: str) -> None:
        """Stop until the driver resets the device; its queues are taken back before."""
        self._take_back()
        super().fail(what)

    def deactivate(self) -> None:
        """Take the queues back, and close the back end at the machine's end."""
        self._take_back()
        if self.stopped and not self._closed:
            self._closed = True
            self.backend.close()
            for fd in (*self.kick_fds.values(), self.error_fd):
                os.close(fd)

    def stop(self) -> None:
        """Stop serving, while the queues' memory still exists."""
        with self.lock:
            self._take_back()
        super().stop()

    def watched(self) -> dict[int, Callable[[], None]]:
        """Return the eventfd that the back end signals when a ring breaks the rules."""
        return {self.error_fd: self._on_error}

    def _on_error(self) -> None:
        with self.lock:
            if self._closed:
                return
            _clear(self.error_fd)
            if self._served is not None:
                self.fail(f"{self.backend.name} finds a ring or a buffer that breaks the rules")

    def lost(self) -> None:
        """Note that the back end is gone, with the queues; with the lock."""
        self._served = None

    def describe(self) -> dict[str, Any]:
        """Return what every device says; the back end has the indices while it serves."""
        said = super().describe()
        with self.lock:
            return {**said, "lent": self._served is not None}

    def _give(self) -> None:
        """Give the queues to the back end, if the driver is ready; with the lock."""
        if self._served is not None or not self.has_driver:
            return
        rings = {index: self._ring(index) for index in self.theirs if self.queues[index].ready}
        for ring in rings.values():  # virtiofsd 1.13 fails at a kick before the ring is complete
            _clear(ring.kick_fd)
        try:
            pieces = regions(self.memory)
            self.backend.start(self.driver_features & self.backend.features, pieces, rings)
        except HostError as error:
            self.give_up(error.message)
            return
        self._served = tuple(rings)
        for index in rings:  # the driver may have kicked before
            os.eventfd_write(self.kick_fds[index], 1)

    def _take_back(self) -> None:
        """Take the queues back, with their indices; with the lock."""
        served, self._served = self._served, None
        if served is None:
            return
        try:
            bases = self.backend.stop(served)
        except HostError as error:
            self.report(error.message)
            return
        for index, base in bases.items():
            queue = self.queues[index]
            if queue.ready:
                queue.adopt(base & INDEX)

    def _ring(self, index: int) -> Ring:
        queue = self.queues[index]
        places = (queue.desc, queue.driver, queue.device)
        desc, avail, used = (self._address(address) for address in places)
        return Ring(
            queue.size, desc, avail, used, queue.last_avail, self.kick_fds[index], self.call_fd,
            self.error_fd,
        )  # fmt: skip

    def _address(self, gpa: int) -> int:
        """Return the address in this process of a part of a queue, which `enable` has checked."""
        piece = next(p for p in regions(self.memory) if p.base <= gpa < p.base + p.size)
        return piece.host_address + gpa - piece.base


def _clear(fd: int) -> None:
    """Take the signals of an eventfd."""
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)
