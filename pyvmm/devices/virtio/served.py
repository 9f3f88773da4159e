"""virtio devices whose chains are requests, each served by a thread of the device's own.

Neither a vCPU nor the machine's loop waits for what a request waits for. Requests are taken in
the order of the queue; where a device has more threads than one, several are in flight and are
given back as they end.

One thread at a time leads: it waits for kicks. What needs no waiting, as with a disk that is in
the page cache, is served best by one thread that hands nothing over, so it serves what it takes
itself, and tells the guest of all that it found together, at the latest with the first that had to
wait. Where requests have had to wait a moment ago, or one says that it will take its time, it lets
another lead first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import ClassVar

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory.ram import Memory

WAITED_NS = 50_000  # off the CPU: as for a disk
RECENT = 8  # requests after one that waited: if another does, neither was just kept from the CPU
LINGER = 64  # requests that did not wait, until the next are taken not to either


class Job:
    """A request; whether who took it still leads; and what its device counts of it."""

    __slots__ = ("chain", "counts", "leads", "queue")

    def __init__(self, queue: Virtqueue, chain: Chain) -> None:
        self.queue = queue
        self.chain = chain
        self.leads = True
        self.counts: Mapping[str, int] | None = None


class ServedDevice(VirtioDevice):
    """The base of such devices, which fill in `serve`.

    Up to ``threads`` threads are started as there is need. ``kick_fd`` is an eventfd: who signals
    it has the device look into its queues, once `listen` was called. A reset, the end of the
    machine and `drain` wait for the requests in flight, so that nothing touches guest RAM
    afterwards.
    """

    threads: ClassVar[int] = 1

    def __init__(self, memory: Memory, log: Callable[[str], None]) -> None:
        super().__init__(memory, log)
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._vacancy = threading.Condition(self.lock)  # nobody leads
        self._quiet = threading.Condition(self.lock)  # there may be nothing to do any more
        self._waiting = 0  # threads that wait for that
        self._led = False
        self._idle = 0  # threads that wait to lead
        self._busy = 0  # requests in flight
        self._started = 0
        self._recent = 0  # as long as it is not 0, a request has waited not long ago
        self._overlap = 0  # as long as it is not 0, somebody leads while others serve

    def serve(self, job: Job) -> int:
        """Do what a request says; returns how many bytes were written to it. Without the lock.

        One that will take its time calls `step_back` first.

        Raises: QueueError, where the driver breaks the rules.
        """
        raise NotImplementedError

    def notify(self, queue: Virtqueue) -> None:
        """The driver has put requests into a queue."""
        with self.lock:
            self._look()

    def step_back(self, job: Job) -> None:
        """Have another thread wait for kicks while that request is served."""
        with self.lock:
            if job.leads:
                self.signal(job.queue)
                self._hand_over(job)

    def listen(self) -> None:
        """Begin to wait for kicks."""
        with self.lock:
            self._look()

    def deactivate(self) -> None:
        """Wait for the requests in flight; what they still write is where it was to go."""
        if self.stopped and self.kick_fd >= 0:
            os.eventfd_write(self.kick_fd, 1)
            self._vacancy.notify_all()
            self._close_if_last()
        self._wait_until(lambda: not self._busy)

    def drain(self) -> None:
        """Serve all that the driver has asked for, and wait for its end; while no vCPU runs."""
        with self.lock:
            if self._asked():
                self._look()
            self._wait_until(lambda: not (self._busy or self._asked()))

    def _wait_until(self, quiet: Callable[[], bool]) -> None:
        self._waiting += 1
        self._quiet.wait_for(quiet)
        self._waiting -= 1

    def _asked(self) -> bool:
        """Whether there are requests that nobody has taken; with the lock."""
        try:
            return self.live and any(queue.has_chains() for queue in self.queues)
        except QueueError as error:
            self.fail(error.message)
            return False

    def _look(self) -> None:
        """Have whoever leads look into the queues; with the lock."""
        if not self.stopped:
            os.eventfd_write(self.kick_fd, 1)
            if not self._started:
                self._start()

    def _start(self) -> bool:
        """Start one more thread; False when this machine has none to give. With the lock."""
        name = f"{self.name}-{self._started + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError as error:
            self.report(f"{error}; requests wait until there is one")
            return False
        self._started += 1
        return True

    def _work(self) -> None:
        """A thread's life; what `serve` throws is a bug of ours: another thread goes on."""
        job, leads = None, False
        try:
            while (job := self._next_job(leads)) is not None:
                self._serve(job)
                leads = job.leads
        finally:
            with self.lock:
                self._started -= 1
                if job is not None and not self.stopped:
                    self._led = self._led and not job.leads
                    self._start()
                self._close_if_last()

    def _serve(self, job: Job) -> None:
        written = 0
        began, busy = time.monotonic_ns(), time.thread_time_ns()
        try:
            written = self.serve(job)
        except QueueError as error:
            with self.lock:
                self.fail(error.message)
        finally:
            busy, took = time.thread_time_ns() - busy, time.monotonic_ns() - began
            waited = took - busy > WAITED_NS
            with self.lock:
                if waited and self._recent:
                    self._overlap = LINGER
                self._recent = RECENT if waited else max(0, self._recent - 1)
                if job.counts:
                    for name, number in job.counts.items():
                        self.counts[name] += number
                self._busy -= 1
                job.queue.push(job.chain, written)
                if waited or self._overlap or not (job.leads and job.queue.waiting):
                    self.signal(job.queue)
                if self._waiting:
                    self._quiet.notify_all()

    def _next_job(self, leads: bool) -> Job | None:
        """Lead, unless we do, and wait for a request; None when the machine is at its end."""
        with self.lock:
            if not leads and not self._wait_to_lead():
                return None
            job = self._take()
        while job is None and not self.stopped:
            os.eventfd_read(self.kick_fd)
            with self.lock:
                job = self._take()
        return job

    def _wait_to_lead(self) -> bool:
        """Wait until nobody leads, and do it; False at the machine's end. With the lock."""
        self._idle += 1
        self._vacancy.wait_for(lambda: self.stopped or not self._led)
        self._idle -= 1
        self._led = True
        return not self.stopped

    def _take(self) -> Job | None:
        """The next request of any queue, if there is one; with the lock."""
        self._overlap = max(0, self._overlap - 1)
        for queue in self.queues:
            chain = None
            try:
                chain = self.next_chain(queue) if self.live else None
            except QueueError as error:
                self.fail(error.message)
            if chain is not None:
                self._busy += 1
                job = Job(queue, chain)
                if self._overlap:
                    self._hand_over(job)
                return job
        if self._waiting:
            self._quiet.notify_all()
        return None

    def _hand_over(self, job: Job) -> None:
        """Let another thread lead, or whoever is done first if all have something to do."""
        if self._idle:
            self._vacancy.notify()
        elif self._started < self.threads and not self._start():
            return
        job.leads = self._led = False

    def _close_if_last(self) -> None:
        """Give the eventfd back, when nobody waits for it any more; with the lock."""
        if self.stopped and not self._started and self.kick_fd >= 0:
            os.close(self.kick_fd)
            self.kick_fd = -1
