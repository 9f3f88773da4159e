"""The threads that run vCPUs: started, parked, woken and ended together.

A thread is either in KVM_RUN, in the handler of an exit, or parked. Nobody else touches its
vCPU but while it is parked or after it has ended: a vCPU ioctl would wait for KVM_RUN to return.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from pyvmm.base.units import show_cpulist
from pyvmm.errors import HostError

Outcome = int | BaseException


class Runnable(Protocol):
    """What the runner needs of a vCPU; ``run`` gives an exit to be handled."""

    @property
    def id(self) -> int:
        """The vCPU's number."""

    def run(self) -> object:
        """Run the guest until it needs something, or a kick."""

    def kick(self) -> None:
        """Make ``run`` return soon; from any thread."""


V = TypeVar("V", bound=Runnable)


class Runner(Generic[V]):
    """Runs vCPUs, each in a thread of its own, until the first outcome.

    ``step`` runs a vCPU once and handles its exit, in the vCPU's thread; what it raises is the
    outcome. ``on_end`` is called when there is one, and must let go whatever a step may wait
    for; ``ended_fd`` becomes readable when the last thread has left. ``cpus`` are the host's
    CPUs that the threads may run on, all of them if None.
    """

    def __init__(
        self,
        vcpus: Sequence[V],
        step: Callable[[V], None],
        on_end: Callable[[], None],
        cpus: frozenset[int] | None = None,
    ) -> None:
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._vcpus = vcpus
        self._step = step
        self._on_end = on_end
        self._cpus = cpus
        self._threads = [
            threading.Thread(target=self._work, args=(vcpu,), name=f"vcpu{vcpu.id}")
            for vcpu in vcpus
        ]
        self._changed = threading.Condition()
        self._going = False  # read without the lock at every exit; False sends a thread to park
        self._started = False
        self._paused = False
        self._alive = 0  # threads that have not left
        self._parked = 0
        self._outcome: Outcome | None = None

    def start(self) -> None:
        """Start every thread.

        Raises: HostError, when the host has no thread left to give.
        """
        with self._changed:
            if self._started:
                raise RuntimeError("started twice")
            self._started = True
            self._going = self._outcome is None and not self._paused
            self._alive = len(self._threads)
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError as error:
                self.end(HostError(f"cannot start a thread for {thread.name}: {error}"))
                self._leave(len(self._threads) - number)
                return

    def pause(self) -> None:
        """Park every vCPU, and return when all are; not from a vCPU's own thread."""
        with self._changed:
            self._paused = True
            self._going = False
        self._kick()
        with self._changed:
            self._changed.wait_for(lambda: self._parked >= self._alive)

    def resume(self) -> None:
        """Let parked vCPUs go on."""
        with self._changed:
            self._paused = False
            self._going = self._started and self._outcome is None
            self._changed.notify_all()

    def end(self, outcome: Outcome) -> None:
        """Make every thread leave; the first outcome counts. Safe from any thread."""
        with self._changed:
            if self._outcome is not None:
                return
            self._outcome = outcome
            self._going = False
            self._changed.notify_all()
        self._kick()
        self._on_end()

    def join(self) -> None:
        """Wait until every thread has left."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def result(self) -> int:
        """The exit code of a run that has ended, or the error that ended it, raised."""
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        if self._outcome is None:
            raise RuntimeError("the run has not ended")
        return self._outcome

    def close(self) -> None:
        """End what still runs and give back ``ended_fd``; idempotent."""
        if self.ended_fd >= 0:
            self.end(0)
            self.join()
            os.close(self.ended_fd)
            self.ended_fd = -1

    @property
    def has_ended(self) -> bool:
        """Whether there is an outcome; threads may still be on their way out."""
        return self._outcome is not None

    def _kick(self) -> None:
        for vcpu in self._vcpus:
            vcpu.kick()

    def _work(self, vcpu: V) -> None:
        """A vCPU's thread."""
        try:
            self._stay_on_cpus()
            while self._going or self._may_go_on():
                self._step(vcpu)
        except BaseException as error:  # also a bug of ours: it must end the VM, not hang it
            self.end(error)
        finally:
            self._leave()

    def _stay_on_cpus(self) -> None:
        """Bind the calling thread to the CPUs it may run on."""
        if self._cpus is None:
            return
        try:
            os.sched_setaffinity(0, self._cpus)  # 0 is the thread, not the process
        except OSError as error:
            raise HostError(
                f"vCPUs cannot run on CPU {show_cpulist(self._cpus)}: {error.strerror}",
                hint="taskset -p $$ shows the CPUs that this shell's programs may run on",
            ) from error

    def _may_go_on(self) -> bool:
        """Park while paused; False when the run is over."""
        with self._changed:
            self._parked += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._paused or self._outcome is not None)
            self._parked -= 1
            return self._outcome is None

    def _leave(self, threads: int = 1) -> None:
        with self._changed:
            self._alive -= threads
            last = self._alive == 0 and self.has_ended
            self._changed.notify_all()
        if last:
            os.eventfd_write(self.ended_fd, 1)
