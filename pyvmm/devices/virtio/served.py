"""virtio devices whose chains are requests, served by threads of the device.

Neither a vCPU nor the machine's loop waits for the I/O of a request. The threads are leader and
followers: one thread waits for kicks, and takes requests in the order of the queue.

                        +--------------------------------------------+
                        v                                            |
    start ---> FOLLOWER: waits until        no leader          returns it
                there is no leader                                   ^
                        |                                            |
                        v                   overlap, step_back       |
      +-----> LEADER: takes a request -----------------------> SERVES ALONE: makes another
      |       or waits for a kick                              thread the leader, then serves
      |                 | no overlap
      |                 v
      +--- SERVES AS LEADER, returns it

If no request waits for I/O, as with a disk in the page cache, a single thread is fastest. It serves
as leader, and interrupts the guest once for all requests found together. If requests wait, the
device overlaps them: several are in flight. Overlapping begins when two requests waited within
`WAIT_WINDOW` requests: one alone may have been preempted. It ends `OVERLAP` requests after the last
such pair. `serve` calls `step_back` for a request that is known to take long. A request that waited
interrupts the guest as soon as the device returns it.

With a data path (loan.py), the leader lends the queue instead of waiting for a kick. Then Python
sees only the requests that the data path does not know.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import ClassVar, cast

from pyvmm.devices.virtio.device import VirtioDevice
from pyvmm.devices.virtio.loan import DataPath, QueueLock
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory.ram import Memory

WAITED_NS = 50_000  # off the CPU: a request that took longer has waited for I/O
WAIT_WINDOW = 8  # requests: two waits this close together mean I/O, not preemption
OVERLAP = 64  # requests to overlap after the last such pair


class Job:
    """A request, its counts, and whether its thread is still the leader."""

    __slots__ = ("chain", "counts", "leads", "queue")

    def __init__(self, queue: Virtqueue, chain: Chain) -> None:
        self.queue = queue
        self.chain = chain
        self.leads = True
        self.counts: Mapping[str, int] | None = None


class ServedDevice(VirtioDevice):
    """The base of these devices; each implements `serve`.

    The device starts up to ``threads`` threads as it needs them. ``kick_fd`` is an eventfd: after
    `listen`, a signal makes the device look into its queues. A reset, the end of the machine and
    `drain` wait for the requests in flight, so that nothing touches guest RAM afterwards.
    """

    threads: ClassVar[int] = 1

    def __init__(self, memory: Memory, log: Callable[[str], None]) -> None:
        super().__init__(memory, log)
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC)
        # Threads
        self._started = 0
        self._has_leader = False
        self._followers = 0
        self._no_leader = threading.Condition(self.lock)  # wakes a follower
        # Requests
        self._in_flight = 0
        self._ended = threading.Condition(self.lock)  # signalled: a request ended, or none is left
        self._waiting = 0  # threads that wait for that: in `drain` or `deactivate`
        # Whether requests wait for I/O: both count down to 0, request by request
        self._since_wait = 0  # set to WAIT_WINDOW by a request that waited
        self._overlap = 0  # set to OVERLAP by the second such request
        # The loan of the queue
        self._path: DataPath | None = None
        self._owes = False  # the queue's next request is Python's
        self._returned: list[Chain] = []  # requests that the data path could not serve

    def _make_lock(self) -> threading.Lock:
        self._ownership = QueueLock()
        return cast("threading.Lock", self._ownership)

    def serve(self, job: Job) -> int:
        """Serve a request, and return the number of bytes written to it. Without the lock.

        Call `step_back` first for a request that takes long.

        Raises: QueueError, if the driver breaks the rules.
        """
        raise NotImplementedError

    def doorbell_fd(self, queue: int) -> int | None:
        """Return the eventfd that the leader waits for."""
        return self.kick_fd

    def notify(self, queue: Virtqueue) -> None:
        """Make the leader serve the driver's new requests."""
        with self.lock:
            self._look()

    def step_back(self, job: Job) -> None:
        """Make another thread the leader while that request is served."""
        with self.lock:
            if job.leads:
                self.signal(job.queue)
                self._hand_over(job)

    def use_data_path(self, path: DataPath | None) -> None:
        """Lend the queue to ``path`` when Python has no request; None: never."""
        with self.lock:
            self._path = path

    def listen(self) -> None:
        """Begin to wait for kicks."""
        with self.lock:
            self._look()

    def deactivate(self) -> None:
        """Wait for the requests in flight, which still write to guest RAM."""
        if self.stopped and self.kick_fd >= 0:
            os.eventfd_write(self.kick_fd, 1)
            self._no_leader.notify_all()
            self._close_if_last()
        while self._returned:
            self._returned.pop().release()
        self._wait_until(lambda: not self._in_flight)

    def drain(self) -> None:
        """Serve all requests of the driver, and wait for their end; while no vCPU runs."""
        with self.lock:
            if self._has_requests():
                self._look()
            self._wait_until(lambda: not (self._in_flight or self._has_requests()))

    def _wait_until(self, done: Callable[[], bool]) -> None:
        self._waiting += 1
        self._ended.wait_for(done)
        self._waiting -= 1

    def _has_requests(self) -> bool:
        """Return whether a queue has requests that no thread has taken; with the lock."""
        try:
            waits = self._returned or any(queue.has_chains() for queue in self.queues)
            return self.live and bool(waits)
        except QueueError as error:
            self.fail(error.message)
            return False

    def _look(self) -> None:
        """Make the leader look into the queues; with the lock."""
        if not self.stopped:
            os.eventfd_write(self.kick_fd, 1)
            if not self._started:
                self._start()

    def _start(self) -> bool:
        """Start one more thread; False if the host refuses one. With the lock."""
        name = f"{self.name}-{self._started + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError as error:
            self.report(f"{error}; requests wait until a thread is free")
            return False
        self._started += 1
        return True

    def _work(self) -> None:
        """Serve requests until the device stops. Replace a thread that a bug ends."""
        job, leads = None, False
        try:
            while (job := self._next_job(leads)) is not None:
                self._serve(job)
                leads = job.leads
        finally:
            with self.lock:
                self._started -= 1
                if job is not None and not self.stopped:
                    self._has_leader = self._has_leader and not job.leads
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
                if waited and self._since_wait:
                    self._overlap = OVERLAP
                self._since_wait = WAIT_WINDOW if waited else max(0, self._since_wait - 1)
                if job.counts:
                    for name, number in job.counts.items():
                        self.counts[name] += number
                self._in_flight -= 1
                job.queue.push(job.chain, written)
                if waited or self._overlap or not (job.leads and job.queue.waiting):
                    self.signal(job.queue)
                if self._waiting:
                    self._ended.notify_all()

    def _next_job(self, leads: bool) -> Job | None:
        """Become the leader, and wait for a request; None at the end of the machine."""
        with self.lock:
            if not leads and not self._wait_to_lead():
                return None
        while not self.stopped:
            with self.lock:
                path = self._lend()
                job = None if path is not None else self._take()
            if job is not None:
                return job
            if path is not None:
                path.serve()
            else:
                os.eventfd_read(self.kick_fd)
        return None

    def _lend(self) -> DataPath | None:
        """Lend the queue, unless Python has requests or a thread waits for them; with the lock."""
        path, mine = self._path, self._in_flight or self._owes or self._returned
        if path is None or mine or self._waiting or not (self.live and self.queues[0].ready):
            return None
        if not path.lend(self.queues[0]):
            return None
        self._ownership.lend(self._take_back)
        return path

    def _take_back(self) -> None:
        """Own the queue again; called by the lock."""
        assert self._path is not None
        (queue,) = self.queues
        back = self._path.take_back(queue)
        self._owes = back.handed
        for name, number in back.counts.items():
            self.counts[name] += number
        for head in back.failed:
            try:
                self._returned.append(queue.retake(head))
            except QueueError as error:
                self.fail(error.message)

    def _wait_to_lead(self) -> bool:
        """Become the leader once there is none; False at the machine's end. With the lock."""
        self._followers += 1
        self._no_leader.wait_for(lambda: self.stopped or not self._has_leader)
        self._followers -= 1
        self._has_leader = True
        return not self.stopped

    def _take(self) -> Job | None:
        """Return the next request of any queue, if there is one; with the lock."""
        self._overlap = max(0, self._overlap - 1)
        self._owes = False
        for queue in self.queues:
            chain = None
            try:
                chain = self._next_of(queue) if self.live else None
            except QueueError as error:
                self.fail(error.message)
            if chain is not None:
                self._in_flight += 1
                job = Job(queue, chain)
                if self._overlap and self._path is None:
                    self._hand_over(job)
                return job
        if self._waiting:
            self._ended.notify_all()
        return None

    def _next_of(self, queue: Virtqueue) -> Chain | None:
        return self._returned.pop(0) if self._returned else self.next_chain(queue)

    def _hand_over(self, job: Job) -> None:
        """Appoint a leader: a follower, else a new thread, else the first that ends its request.

        If the host refuses a new thread, this thread stays the leader.
        """
        if self._followers:
            self._no_leader.notify()
        elif self._started < self.threads and not self._start():
            return
        job.leads = self._has_leader = False

    def _close_if_last(self) -> None:
        """Close the eventfd once no thread waits for it; with the lock."""
        if self.stopped and not self._started and self.kick_fd >= 0:
            os.close(self.kick_fd)
            self.kick_fd = -1
