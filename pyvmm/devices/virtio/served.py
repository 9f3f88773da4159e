"""virtio devices whose chains are requests, each served by a thread of the device's own.

Neither a vCPU nor the machine's loop waits for what a request waits for. Requests are taken in
the order of the queue; where a device has more threads than one, several are in flight and are
given back as they end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory import Memory


class ServedDevice(VirtioDevice):
    """The base of such devices, which fill in `serve`.

    Threads are started when there is more to do than those that are there can take, up to
    ``threads``. A reset, the end of the machine and `drain` wait for the requests in flight, so
    that nothing touches guest RAM afterwards.
    """

    threads: ClassVar[int] = 1

    def __init__(self, memory: Memory, log: Callable[[str], None]) -> None:
        super().__init__(memory, log)
        self._kicked: dict[Virtqueue, None] = {}  # those that may have chains, in order
        self._news = threading.Condition(self.lock)  # there may be something to do
        self._quiet = threading.Condition(self.lock)  # a request has been served
        self._busy = 0  # requests in flight
        self._idle = 0  # threads that wait for news
        self._started = 0

    def serve(self, queue: Virtqueue, chain: Chain) -> int:
        """Do what a request says; returns how many bytes were written to it. Without the lock.

        Raises: QueueError, where the driver breaks the rules.
        """
        raise NotImplementedError

    def notify(self, queue: Virtqueue) -> None:
        """The driver has put requests into a queue."""
        with self.lock:
            if self.live:
                self._kicked[queue] = None
                self._call_in()

    def deactivate(self) -> None:
        """Wait for the requests in flight; what they still write is where it was to go."""
        self._kicked.clear()
        self._news.notify_all()  # threads leave, if this is the end
        self._quiet.wait_for(lambda: not self._busy)

    def drain(self) -> None:
        """Serve all that was kicked for, and wait for its end; from any thread."""
        with self.lock:
            self._quiet.wait_for(lambda: not (self._busy or self._kicked))

    def _call_in(self) -> None:
        """Have a thread look for work, a new one if none is free and there may be; with lock."""
        if self._idle:
            self._news.notify()
        elif self._started < self.threads:
            self._started += 1
            name = f"{self.name}-{self._started}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        """A thread's life."""
        try:
            while (job := self._next_job()) is not None:
                self._serve(*job)
        finally:
            with self.lock:
                self._started -= 1

    def _serve(self, queue: Virtqueue, chain: Chain) -> None:
        written = 0
        try:
            written = self.serve(queue, chain)
        except QueueError as error:
            with self.lock:
                self.fail(error.message)
        finally:
            with self.lock:
                self._busy -= 1
                queue.push(chain, written)
                self.signal(queue)
                self._quiet.notify_all()

    def _next_job(self) -> tuple[Virtqueue, Chain] | None:
        """Wait for a request; None when the machine is at its end."""
        with self.lock:
            while not self.stopped:
                job = self._take()
                if job is not None:
                    return job
                self._quiet.notify_all()
                self._idle += 1
                self._news.wait()
                self._idle -= 1
            return None

    def _take(self) -> tuple[Virtqueue, Chain] | None:
        """The next request of a kicked queue; queues take turns. With the lock."""
        while self._kicked:
            queue = next(iter(self._kicked))
            del self._kicked[queue]
            chain = None
            try:
                chain = self.next_chain(queue) if self.live else None
                if chain is not None:
                    self._busy += 1
                    self._look_for_more(queue)
            except QueueError as error:
                self.fail(error.message)
            if chain is not None:
                return queue, chain
        return None

    def _look_for_more(self, queue: Virtqueue) -> None:
        """Have another thread go on with a queue, now or when it is kicked; with the lock.

        When all are busy no kicks are needed: whoever is done first looks into the queue again.
        """
        spare = self._idle or self._started < self.threads
        if not spare or queue.waiting or queue.enable_kicks():
            self._kicked[queue] = None
        if spare and self._kicked:
            self._call_in()
