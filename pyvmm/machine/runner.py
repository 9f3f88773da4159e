"""The threads that run vCPUs: started, parked, resumed and ended together.

A thread is in KVM_RUN, in the handler of an exit, or parked. Other threads access its vCPU only
while it is parked or after it has ended: a vCPU ioctl waits for KVM_RUN to return.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pyvmm.base.units import show_cpulist
from pyvmm.errors import HostError
from pyvmm.kvm.vcpu import Vcpu

Result = int | BaseException

V = TypeVar("V", bound=Vcpu)


class Runner(Generic[V]):
    """The threads that run vCPUs, one for each, until the first result.

    ``step`` runs a vCPU once and handles its exit, in the vCPU's thread; an exception it raises is
    the result. ``on_end`` is called at the result, and must end whatever a step waits for.
    ``ended_fd`` becomes readable when the last thread has ended. The threads run on ``cpus`` of the
    host, on all of them if None.
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
        self._going = False  # read without the lock at every exit; False parks a thread
        self._started = False
        self._paused = False
        self._held: set[int] = set()  # the vCPUs that a debugger has stopped
        self._chosen: frozenset[int] | None = None  # the only vCPUs that may run
        self._alive = 0  # threads that have not left
        self._parked = 0
        self._result: Result | None = None

    def start(self) -> None:
        """Start every thread.

        Raises: HostError, if the host cannot start another thread.
        """
        with self._changed:
            if self._started:
                raise RuntimeError("started twice")
            self._started = True
            self._update()
            self._alive = len(self._threads)
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError as error:
                self.end(HostError(f"cannot start a thread for {thread.name}: {error}"))
                self._leave(len(self._threads) - number)
                return

    def pause(self) -> None:
        """Park every vCPU and wait for that. Do not call this in a vCPU's own thread."""
        with self._changed:
            self._paused = True
            self._going = False
        self._kick()
        with self._changed:
            self._changed.wait_for(lambda: self._parked >= self._alive)

    def resume(self) -> None:
        """Resume parked vCPUs."""
        with self._changed:
            self._paused = False
            self._update()

    def hold(self, vcpu_id: int) -> None:
        """Park a vCPU before its next run, until ``release``; in its own thread."""
        with self._changed:
            self._held.add(vcpu_id)
            self._update()

    def release(self) -> None:
        """Let the vCPUs that were held run again."""
        with self._changed:
            self._held.clear()
            self._update()

    def choose(self, vcpu_ids: frozenset[int] | None) -> None:
        """Let only these vCPUs run, or all; while all are parked."""
        with self._changed:
            self._chosen = vcpu_ids
            self._update()

    def _update(self) -> None:
        """Decide anew which threads run; the caller has the lock."""
        self._going = (
            self._started
            and self._result is None
            and not self._paused
            and not self._held
            and self._chosen is None
        )
        self._changed.notify_all()

    def _may_run(self, vcpu: V) -> bool:
        chosen = self._chosen is None or vcpu.id in self._chosen
        return not self._paused and chosen and vcpu.id not in self._held

    def end(self, result: Result) -> None:
        """End the run with a result; the first one counts. Safe from any thread."""
        with self._changed:
            if self._result is not None:
                return
            self._result = result
            self._going = False
            self._changed.notify_all()
        self._kick()
        self._on_end()

    def join(self) -> None:
        """Wait until every thread has ended."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def result(self) -> int:
        """Return the exit code of a run that has ended, or raise its error."""
        if isinstance(self._result, BaseException):
            raise self._result
        if self._result is None:
            raise RuntimeError("the run has not ended")
        return self._result

    def close(self) -> None:
        """End the run and close ``ended_fd``; idempotent."""
        if self.ended_fd >= 0:
            self.end(0)
            self.join()
            os.close(self.ended_fd)
            self.ended_fd = -1

    @property
    def has_ended(self) -> bool:
        """Whether there is a result; threads may still be ending."""
        return self._result is not None

    def _kick(self) -> None:
        for vcpu in self._vcpus:
            vcpu.kick()

    def _work(self, vcpu: V) -> None:
        """Run a vCPU until the end, in its own thread."""
        try:
            self._stay_on_cpus()
            while self._going or self._wait_while_paused(vcpu):
                self._step(vcpu)
        except BaseException as error:  # also of a bug: it must end the VM, not hang it
            self.end(error)
        finally:
            self._leave()

    def _stay_on_cpus(self) -> None:
        """Bind the calling thread to ``cpus``."""
        if self._cpus is None:
            return
        try:
            os.sched_setaffinity(0, self._cpus)  # 0 is the thread, not the process
        except OSError as error:
            raise HostError(
                f"vCPUs cannot run on CPU {show_cpulist(self._cpus)}: {error.strerror}",
                hint="choose among the CPUs that taskset -p $$ shows",
            ) from error

    def _wait_while_paused(self, vcpu: V) -> bool:
        """Park while paused or not chosen; return False when the run is over."""
        with self._changed:
            self._parked += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._result is not None or self._may_run(vcpu))
            self._parked -= 1
            return self._result is None

    def _leave(self, threads: int = 1) -> None:
        with self._changed:
            self._alive -= threads
            last = self._alive == 0 and self.has_ended
            self._changed.notify_all()
        if last:
            os.eventfd_write(self.ended_fd, 1)
