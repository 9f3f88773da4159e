"""The data paths of devices that a vCPU serves in its exit: see console.c and rng.c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyvmm.base.records import Record
from pyvmm.kvm.datapath.disk import SplitQueue, set_memory, set_queue
from pyvmm.kvm.native import Native, native


class Ended(Record):
    """The result of a loan; see devices.virtio.exitserved.TakenBack."""

    counts: Mapping[str, int]
    chains: int
    skip: int = 0


class ExitPath:
    """The data path of one device. Keep it as long as a vCPU may use its doorbell.

    ``doorbell`` is the index of the queue whose kicks C serves. A vCPU calls ``serve``, a function
    in C, with ``state``.
    """

    doorbell: int
    function: str  # serve's name

    def __init__(self, state: Any, extension: Native) -> None:
        self.state = state
        self._ffi, self._lib = extension.ffi, extension.lib
        self.serve = self._ffi.addressof(self._lib, self.function)

    def lend(self, queues: Sequence[SplitQueue], skip: int = 0, *, ready: bool = True) -> bool:
        """Begin a loan; see devices.virtio.exitserved.ExitPath."""
        raise NotImplementedError

    def take_back(self, queues: Sequence[SplitQueue]) -> Ended:
        """End the loan, wait for the chain in progress, and update the queues."""
        raise NotImplementedError

    def ring(self) -> bool:
        """Serve a kick as a vCPU does; return whether C served it."""
        return bool(getattr(self._lib, self.function)(self.state))


class ConsolePath(ExitPath):
    """The data path of a virtio console's output and input.

    ``memory`` are the MemoryRegions of its driver's buffers. ``output_fd`` never blocks; C uses it
    while the byte in ``busy`` is 0. ``irq_fd`` is the eventfd of the interrupt, ``isr`` the address
    of InterruptStatus in this process. All of them must live as long as this object. ``extension``
    is for tests without KVM.
    """

    doorbell = 1  # transmitq
    function = "pyvmm_console_transmit"

    def __init__(
        self,
        memory: Sequence[Any],
        *,
        output_fd: int,
        busy: bytearray,
        irq_fd: int,
        isr: int,
        extension: Native | None = None,
    ) -> None:
        extension = extension or native()
        ffi, lib = extension.ffi, extension.lib
        state = ffi.new("struct pyvmm_console *")
        super().__init__(state, extension)
        lib.pyvmm_console_init(state)
        flag = ffi.from_buffer(busy)
        state.output, state.irq, state.isr = output_fd, irq_fd, isr
        state.busy = int(ffi.cast("uintptr_t", flag))
        kept = [set_memory(extension, queue, memory) for queue in (state.receiveq, state.transmitq)]
        self._kept = (flag, kept)

    @property
    def has_transmitted(self) -> bool:
        """Whether the guest has output bytes during the loan."""
        return bool(self.state.sent)

    def lend(self, queues: Sequence[SplitQueue], skip: int = 0, *, ready: bool = True) -> bool:
        """Begin a loan; return whether C can serve these queues."""
        receiveq, transmitq = queues
        _set(self.state.receiveq, receiveq)
        _set(self.state.transmitq, transmitq)
        self.state.skip, self.state.takes_input = skip, ready
        return bool(self._lib.pyvmm_console_lend(self.state))

    def receive(self, data: bytes) -> int:
        """Put input into the guest's buffers; return the number of bytes taken."""
        return int(self._lib.pyvmm_console_receive(self.state, data, len(data)))

    def read(self, fd: int) -> int:
        """Read input into the guest's buffers, without waiting; return the number of bytes."""
        return int(self._lib.pyvmm_console_read(self.state, fd))

    def take_back(self, queues: Sequence[SplitQueue]) -> Ended:
        """End the loan, and update the queues."""
        state = self.state
        self._lib.pyvmm_console_take_back(state)
        for queue, lent in zip(queues, (state.receiveq, state.transmitq), strict=True):
            _update(queue, lent)
        return Ended({}, state.chains, state.skip)


class RngPath(ExitPath):
    """The data path of an entropy device; a request gets at most ``most`` bytes."""

    doorbell = 0
    function = "pyvmm_rng_serve"

    def __init__(
        self,
        memory: Sequence[Any],
        *,
        most: int,
        irq_fd: int,
        isr: int,
        extension: Native | None = None,
    ) -> None:
        extension = extension or native()
        state = extension.ffi.new("struct pyvmm_rng *")
        super().__init__(state, extension)
        extension.lib.pyvmm_rng_init(state)
        state.most, state.irq, state.isr = most, irq_fd, isr
        self._kept = set_memory(extension, state.queue, memory)

    def lend(self, queues: Sequence[SplitQueue], skip: int = 0, *, ready: bool = True) -> bool:
        """Begin a loan; return whether C can serve this queue."""
        _set(self.state.queue, queues[0])
        return bool(self._lib.pyvmm_rng_lend(self.state))

    def take_back(self, queues: Sequence[SplitQueue]) -> Ended:
        """End the loan, and update the queue."""
        state = self.state
        self._lib.pyvmm_rng_take_back(state)
        _update(queues[0], state.queue)
        return Ended({"requests": state.requests, "bytes": state.bytes}, state.requests)


def _set(lent: Any, queue: SplitQueue) -> None:
    set_queue(lent, queue)
    lent.waiting = queue.waiting


def _update(queue: SplitQueue, lent: Any) -> None:
    queue.last_avail, queue.used_idx = lent.last_avail, lent.used_idx
    queue.signalled, queue.waiting = lent.signalled, lent.waiting
