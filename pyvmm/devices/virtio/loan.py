"""The loan of a device's queue to code that serves requests without Python.

One side owns the queue at a time. The device's threads lend the queue when Python has no request
left. A thread that takes the device's lock takes the queue back first. So code that holds the lock
needs no knowledge of the loan:

                    the leader lends it
    Python owns -----------------------------> the data path owns
         ^                                              |
         |   a thread takes the lock, or                |
         +-- the data path meets a request of Python's -+

The data path (kvm/datapath/blk.c) holds no policy. It knows the common requests. Any other stays
in the ring, and ends the loan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pyvmm.devices.virtio.queue import Virtqueue


class TakenBack(Protocol):
    """What a data path did during a loan, and what it left."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What to add to the device's counts."""

    @property
    def failed(self) -> Sequence[int]:
        """The heads of chains that it took, and could not serve."""

    @property
    def handed(self) -> bool:
        """Whether the next chain of the ring is for Python."""


class DataPath(Protocol):
    """Code that serves the requests of one queue without Python."""

    def lend(self, queue: Virtqueue) -> bool:
        """Begin a loan; return whether the data path can serve this queue."""

    def serve(self) -> None:
        """Serve requests until the loan ends; it may have ended before."""

    def take_back(self, queue: Virtqueue) -> TakenBack:
        """End the loan, wait for the requests in flight, and update ``queue``."""


class QueueLock:
    """A lock whose holder owns the device's queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._take_back: Callable[[], None] | None = None  # set during a loan

    def lend(self, take_back: Callable[[], None]) -> None:
        """Note that the queue is lent. The next holder calls ``take_back``. With the lock."""
        self._take_back = take_back

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock as threading.Lock does, and take the queue back."""
        if not self._lock.acquire(blocking, timeout):
            return False
        if self._take_back is not None:
            take_back, self._take_back = self._take_back, None
            take_back()
        return True

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def locked(self) -> bool:
        """Return whether a thread holds the lock."""
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
