"""The data path of a disk: its reads, writes and flushes in C; see blk.c."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pyvmm.base.closing import Closing
from pyvmm.base.records import Record
from pyvmm.kvm.native import Native, native

COUNTS = ("reads", "bytes_read", "writes", "bytes_written", "flushes")


class SplitQueue(Protocol):
    """An enabled queue: devices.virtio.queue.Virtqueue is one."""

    size: int
    event_idx: bool
    indirect: bool
    desc: int
    driver: int
    device: int
    last_avail: int
    used_idx: int
    signalled: int
    waiting: int


class Disk(Protocol):
    """An open disk: devices.diskfile.DiskFile is one."""

    fd: int
    size: int
    block_size: int
    read_only: bool


class Loan(Record):
    """The result of a loan; see devices.virtio.loan.TakenBack."""

    counts: Mapping[str, int]
    failed: Sequence[int]
    handed: bool


class DiskPath(Closing):
    """The data path of one disk. Close it after the device has stopped using it.

    ``memory`` are the MemoryRegions of its driver's buffers. ``kick_fd`` and ``irq_fd`` are the
    eventfds of the doorbell and of the interrupt. ``isr`` is the address of InterruptStatus in this
    process. All of them must live as long as this object. C serves writes if ``may_write`` returns
    True at the beginning of a loan. ``extension`` is for tests without KVM.
    """

    def __init__(
        self,
        disk: Disk,
        memory: Sequence[Any],
        *,
        kick_fd: int,
        irq_fd: int,
        isr: int,
        threads: int,
        may_write: Callable[[], bool],
        extension: Native | None = None,
    ) -> None:
        extension = extension or native()
        self._ffi, self._lib = extension.ffi, extension.lib
        self._may_write = may_write
        self._state = state = self._ffi.new("struct pyvmm_blk *")
        self._lib.pyvmm_blk_init(state)
        state.disk, state.kick, state.irq, state.isr = disk.fd, kick_fd, irq_fd, isr
        state.read_only, state.block, state.size = disk.read_only, disk.block_size, disk.size
        state.threads = min(threads, self._lib.PYVMM_BLK_THREADS)
        self._kept = set_memory(extension, state.queue, memory)

    def close(self) -> None:
        """End the threads in C; idempotent."""
        self._lib.pyvmm_blk_close(self._state)

    def lend(self, queue: SplitQueue) -> bool:
        """Begin a loan; return whether C can serve this queue."""
        self._state.no_writes = not self._may_write()
        set_queue(self._state.queue, queue)
        return bool(self._lib.pyvmm_blk_lend(self._state))

    def serve(self) -> None:
        """Serve requests until the loan ends."""
        self._lib.pyvmm_blk_serve(self._state)

    def take_back(self, queue: SplitQueue) -> Loan:
        """End the loan, wait for the requests in flight, and update ``queue``."""
        state = self._state
        self._lib.pyvmm_blk_take_back(state)
        lent = state.queue
        queue.last_avail, queue.used_idx = lent.last_avail, lent.used_idx
        queue.signalled, queue.waiting = lent.signalled, 0
        counts = {name: getattr(state, name) for name in COUNTS}
        failed = [state.failed[n] for n in range(state.failures)]
        return Loan(counts, failed, bool(state.handed))


def set_memory(extension: Native, lent: Any, memory: Sequence[Any]) -> list[Any]:
    """Describe a memory to a struct pyvmm_split_queue; return the objects to keep alive.

    Without room for all regions, it gets none, and cannot serve a queue.
    """
    ffi, kept = extension.ffi, []
    lent.page_size = mmap.PAGESIZE
    if len(memory) > extension.lib.PYVMM_MEMORY_REGIONS:
        return []
    for number, piece in enumerate(memory):
        region = lent.region[number]
        region.base, region.size, region.host = piece.base, piece.size, piece.host_address
        region.log = piece.log
        if piece.plugged is not None:
            kept.append(ffi.from_buffer(piece.plugged))
            region.plugged = int(ffi.cast("uintptr_t", kept[-1]))
            region.block = piece.block_size
    lent.regions = len(memory)
    return kept


def set_queue(lent: Any, queue: SplitQueue) -> None:
    """Copy an enabled queue's set-up and indices to a struct pyvmm_split_queue."""
    lent.size, lent.event_idx, lent.indirect = queue.size, queue.event_idx, queue.indirect
    lent.desc, lent.driver, lent.device = queue.desc, queue.driver, queue.device
    lent.last_avail, lent.used_idx = queue.last_avail, queue.used_idx
    lent.signalled = queue.signalled
