"""The virtio balloon: the guest returns memory to the host.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.5; linux/virtio_balloon.h.

The vCPU that kicks a queue serves it, before it resumes. Linux's driver waits for the replies
anyway, except to statistics and hints. Statistics have one buffer. The guest may use a hinted page
again as soon as its kick returns (get_free_page_and_send() in drivers/virtio/virtio_balloon.c), so
the device must have discarded the page by then.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyvmm.base.records import Record
from pyvmm.devices.state import StateError, StateField, checked_runs
from pyvmm.devices.virtio.balloonpages import AREA_PAGES, PAGE, BalloonPages
from pyvmm.devices.virtio.device import (
    ConfigField,
    Feature,
    QueueSpec,
    VirtioDevice,
)
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory.ram import Memory, OutOfRange

# Linux numbers the existing queues in sequence, the specification gives each queue a fixed number.
# Both agree if the device offers all features that have queues.
F_STATS_VQ = Feature(1, "BALLOON_F_STATS_VQ")
F_DEFLATE_ON_OOM = Feature(2, "BALLOON_F_DEFLATE_ON_OOM")
F_FREE_PAGE_HINT = Feature(3, "BALLOON_F_FREE_PAGE_HINT")
F_PAGE_POISON = Feature(4, "BALLOON_F_PAGE_POISON")
F_REPORTING = Feature(5, "BALLOON_F_REPORTING")

# Values of free_page_hint_cmd_id; the others name a round of hints.
CMD_ID_STOP = 0
CMD_ID_DONE = 1
CMD_ID_FIRST = 2

UINT32 = (1 << 32) - 1
UINT64 = (1 << 64) - 1

PFN = struct.Struct("<I")
PFN_BLOCK = 16 << 10  # bytes of page numbers handled at once
PFN_MOST = 64 << 10  # bytes in a chain: bounds the delay of a pause.  Linux has 1 KiB

CONFIG_SIZE = 16  # struct virtio_balloon_config

STAT = struct.Struct("<HQ")  # struct virtio_balloon_stat: tag, val
STATS_MOST = 64 * STAT.size  # bytes read of a buffer

# Source: linux/virtio_balloon.h, VIRTIO_BALLOON_S_*, and drivers/virtio/virtio_balloon.c (VM_EVENT)
STATS = {
    0: "swap_in_bytes",
    1: "swap_out_bytes",
    2: "major_faults",
    3: "minor_faults",
    4: "free_bytes",
    5: "total_bytes",
    6: "available_bytes",
    7: "disk_caches_bytes",
    8: "hugetlb_allocations",
    9: "hugetlb_failures",
    10: "oom_kills",
    11: "allocation_stalls",
    12: "async_scans",
    13: "direct_scans",
    14: "async_reclaims",
    15: "direct_reclaims",
}


class Statistics(Record):
    """The guest's last memory statistics, and their time by the device's clock."""

    values: dict[str, int]
    at: float


class VirtioBalloon(VirtioDevice):
    """A balloon: `request` sets its target size, ``pages`` are the pages in it.

    The device discards inflated pages, and free pages that the guest reports or hints. A guest may
    fill free pages with another value than zero (``poison_val``) and expect it to stay. Then the
    device acknowledges reports and hints, but discards nothing.
    """

    device_id = 5
    name = "virtio-balloon"
    features = (F_STATS_VQ, F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_PAGE_POISON, F_REPORTING)
    queue_specs = (
        QueueSpec("inflateq", 16, by_exit=True),
        QueueSpec("deflateq", 16, by_exit=True),
        QueueSpec("statsq", 16, by_exit=True),
        QueueSpec("free_page_vq", 128, by_exit=True),
        QueueSpec("reporting_vq", 32, by_exit=True),  # Linux wants PAGE_REPORTING_CAPACITY
    )

    counted = ("inflated_bytes", "deflated_bytes", "reported_bytes", "hinted_bytes")
    state_fields = (
        StateField("num_pages", 0, UINT32),
        StateField("actual", 0, UINT32),
        StateField("free_page_hint_cmd_id", 0, UINT32),
        StateField("poison_val", 0, UINT32),
        StateField("hinted_bytes", 0, UINT64),
        StateField("_round", CMD_ID_FIRST - 1, UINT32),
        StateField("_hints_count", 0, 1),
        StateField("_stats_skip", 0, 1),
    )

    num_pages = ConfigField(0, 4, "target size, pages of 4 KiB")
    actual = ConfigField(4, 4, "pages that the driver reports in the balloon")
    free_page_hint_cmd_id = ConfigField(8, 4, "0: stop, 1: done, else the id of a round of hints")
    poison_val = ConfigField(12, 4, "the value with which the guest fills free pages")

    def __init__(
        self,
        memory: Memory,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(memory, log)
        self.memory = memory
        self.clock = clock
        self.statsq, self.free_page_vq, self.reporting_vq = self.queues[2:]
        self.pages = BalloonPages(memory)
        self.statistics: Statistics | None = None
        self.hinted_bytes = 0  # in the last round
        self._round = CMD_ID_FIRST - 1  # the id of the last round of hints
        self._hints_count = False  # whether the driver's hints belong to that round
        self._stats_chain: Chain | None = None  # the buffer to return when statistics are requested
        self._stats_skip = False  # ignore the next statistics: a legacy driver's first are invalid
        self._news = threading.Condition(self.lock)  # of statistics
        self._written = bytearray(CONFIG_SIZE)  # the driver's writes, byte by byte

    # For the machine

    def request(self, pages: int) -> None:
        """Set the balloon's target size; the guest inflates or deflates it."""
        with self.lock:
            if pages != self.num_pages:
                self.num_pages = pages
                self.config_changed()

    def refresh_statistics(self, timeout_s: float) -> Statistics | None:
        """Ask the guest for statistics, wait up to the timeout, and return the last ones.

        A vCPU's thread must not call this: the vCPU has to reply.
        """
        with self.lock:
            before = self.statistics
            if self._ask_for_statistics():
                self._news.wait_for(lambda: self.statistics is not before, timeout_s)
            return self.statistics

    def start_hinting(self) -> bool:
        """Begin a round of hints, in which the driver names free pages, if it can."""
        with self.lock:
            if not (self.has_driver and self.has(F_FREE_PAGE_HINT)) or self.is_hinting:
                return False
            self._round = max(CMD_ID_FIRST, self._round + 1 & UINT32)
            self.hinted_bytes = 0
            self._hints_count = False
            self.free_page_hint_cmd_id = self._round
            self.config_changed()
            return True

    def stop_hinting(self) -> None:
        """End a round of hints early."""
        with self.lock:
            if self.is_hinting:
                self._end_hinting()

    @property
    def is_hinting(self) -> bool:
        """Whether a round of hints is in progress."""
        return self.free_page_hint_cmd_id >= CMD_ID_FIRST

    def info(self) -> dict[str, Any]:
        """Return the balloon's sizes in bytes, for JSON."""
        with self.lock:
            return {
                "target_bytes": self.num_pages * PAGE,
                "actual_bytes": self.pages.count * PAGE,
                "has_driver": self.has_driver,
                "hinting": self.is_hinting,
                "hinted_bytes": self.hinted_bytes,
                "reported_bytes": self.counts["reported_bytes"],
            }

    def drain(self) -> None:
        """Return the statistics' buffer; the driver adds another."""
        with self.lock:
            self._ask_for_statistics()

    def own_state(self) -> dict[str, Any]:
        """Return the pages in the balloon as runs: the first page and the count."""
        return {"pages": [list(run) for run in self.pages.runs()]}

    def restore_own(self, state: object, where: str) -> None:
        """Put the saved pages into the balloon."""
        runs = checked_runs(state, "pages", where)
        for first, count in runs:
            if not (0 <= first <= UINT32 and 0 < count <= AREA_PAGES - first % AREA_PAGES):
                raise StateError(f"{where}.pages has an invalid run: {count} from {first:#x} on")
        self.pages.restore(runs)

    # For the driver

    def notify(self, queue: Virtqueue) -> None:
        """Serve all chains in a queue."""
        serve = {
            "inflateq": lambda chain: self._change(queue, chain, self.pages.add),
            "deflateq": lambda chain: self._change(queue, chain, self.pages.remove),
            "statsq": self._take_statistics,
            "free_page_vq": self._take_hint,
            "reporting_vq": self._take_report,
        }[queue.name]
        while (chain := self.pop(queue)) is not None:
            serve(chain)

    def activate(self) -> None:
        """Ignore a legacy driver's first statistics: they are invalid."""
        self._stats_skip = self.legacy

    def deactivate(self) -> None:
        """Return all pages to the guest; the target size stays."""
        if self._stats_chain is not None:
            self._stats_chain.release()
            self._stats_chain = None
        self.free_page_hint_cmd_id = CMD_ID_STOP
        self._hints_count = False
        self.actual = self.poison_val = 0
        self._written = bytearray(CONFIG_SIZE)
        if not self.stopped:
            self.pages.clear()
            self.statistics = None
        self._news.notify_all()

    def write_config(self, offset: int, length: int, value: int) -> None:
        """Handle the driver's write; a legacy driver writes single bytes, the last one counts."""
        end = min(offset + length, len(self._written))
        for at in range(offset, end):
            self._written[at] = value >> 8 * (at - offset) & 0xFF
        for field in (type(self).actual, type(self).poison_val):
            last = field.offset + field.size
            if offset < last <= offset + length:
                written = self._written[field.offset : last]
                setattr(self, field.name, int.from_bytes(written, "little"))

    # Each of these serves and returns a chain

    def _change(
        self, queue: Virtqueue, chain: Chain, change: Callable[[tuple[int, ...]], None]
    ) -> None:
        """Put the pages that a chain names into the balloon, or take them out."""
        try:
            with self.guard:
                size = chain.readable_size
                if chain.writable or size % PFN.size or size > PFN_MOST:
                    what = f"is not an array of page numbers of at most {PFN_MOST} bytes"
                    raise QueueError(f"{queue.name} chain {chain.head} {what}")
            for data in _in_blocks(chain):
                with self.guard:
                    if not queue.owns(chain):  # after a reset or a stop
                        return
                    before = self.pages.count
                    change(struct.unpack(f"<{len(data) // PFN.size}I", data))
                    more = (self.pages.count - before) * PAGE
                    self.counts["inflated_bytes" if more > 0 else "deflated_bytes"] += abs(more)
        finally:
            self.push(queue, chain, 0)

    def _take_statistics(self, chain: Chain) -> None:
        """Store statistics, and hold their buffer until the next request."""
        with self.guard:
            if chain.writable:
                chain.release()
                raise QueueError(f"statsq chain {chain.head} has a writable buffer")
            if not self.statsq.owns(chain):
                chain.release()
                return
            data = next(chain.pieces(STATS_MOST), b"")
            if self._stats_chain is not None:  # a driver may have one such buffer only
                self.statsq.push(self._stats_chain, 0)
            self._stats_chain = chain
            if not self._stats_skip:
                self.statistics = Statistics(_parse_statistics(data), self.clock())
            self._stats_skip = False
            self._news.notify_all()

    def _take_hint(self, chain: Chain) -> None:
        """Handle a hint, or the command id of the round that the next hints belong to."""
        with self.guard:
            if self.free_page_vq.owns(chain):
                if chain.readable:
                    self._take_command(chain)
                elif self._hints_count:
                    size = self._discard(chain)
                    self.hinted_bytes += size
                    self.counts["hinted_bytes"] += size
        self.push(self.free_page_vq, chain, 0)

    def _take_command(self, chain: Chain) -> None:
        if chain.writable or chain.readable_size != PFN.size:
            raise QueueError(f"free_page_vq chain {chain.head} is not a command id")
        (command,) = PFN.unpack(chain.read())
        if self.is_hinting and command == self.free_page_hint_cmd_id:
            self._hints_count = True
        elif self._hints_count:  # otherwise it ends an earlier round, which was stopped
            self._end_hinting()

    def _end_hinting(self) -> None:
        """Return the hinted pages to the driver; with the lock."""
        self._hints_count = False
        self.free_page_hint_cmd_id = CMD_ID_DONE
        self.config_changed()

    def _take_report(self, chain: Chain) -> None:
        """Discard free pages, which the guest does not use until the device returns the chain."""
        with self.guard:
            if self.reporting_vq.owns(chain):
                if chain.readable:
                    raise QueueError(f"reporting_vq chain {chain.head} has a readable buffer")
                self.counts["reported_bytes"] += self._discard(chain)
        self.push(self.reporting_vq, chain, 0)

    def _discard(self, chain: Chain) -> int:
        """Discard the pages of a chain; return the number of bytes."""
        if self.has(F_PAGE_POISON) and self.poison_val:
            return 0
        with contextlib.suppress(OutOfRange):  # another vCPU may have unplugged it
            for address, length in chain.places:
                self.memory.discard(address, length)
        return chain.writable_size

    def _ask_for_statistics(self) -> bool:
        """Return the statistics' buffer to ask for new ones; with the lock."""
        chain, self._stats_chain = self._stats_chain, None
        if chain is None or not self.live:
            return False
        self.statsq.push(chain, 0)
        self.signal(self.statsq)
        return True


def _in_blocks(chain: Chain) -> Iterator[bytes]:
    """Yield a chain's content in blocks of whole page numbers, across its descriptors."""
    left = b""
    for piece in chain.pieces(PFN_BLOCK):
        data = left + piece
        whole = len(data) // PFN.size * PFN.size
        left = data[whole:]
        if whole:
            yield data[:whole]
    if left:
        yield left


def _parse_statistics(data: bytes) -> dict[str, int]:
    """Return the known statistics by name."""
    whole = len(data) // STAT.size * STAT.size
    return {STATS[tag]: value for tag, value in STAT.iter_unpack(data[:whole]) if tag in STATS}
