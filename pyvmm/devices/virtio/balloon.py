"""The virtio balloon: memory that a guest gives up goes back to this machine.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, section 5.5; linux/virtio_balloon.h.

Its queues are all served by exits. Linux's driver waits for the answer to all but two of them; of
statistics there is one buffer, and for hints it is a matter of life and death: a hinted page may
be in use again as soon as the driver's kick is over (get_free_page_and_send() in
drivers/virtio/virtio_balloon.c), so that it must have been discarded by then.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pyvmm.devices.state import StateError, StateField
from pyvmm.devices.virtio.balloonpages import AREA_PAGES, PAGE, BalloonPages
from pyvmm.devices.virtio.device import (
    STATUS_DRIVER_OK,
    ConfigField,
    Feature,
    QueueSpec,
    VirtioDevice,
)
from pyvmm.devices.virtio.queue import Chain, QueueError, Virtqueue
from pyvmm.memory.ram import Memory, OutOfRange

# Linux numbers the queues that exist in one row, the specification gives each its own number:
# the two agree where all of the features with queues are offered, which Linux takes together.
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
PFN_BLOCK = 16 << 10  # bytes of page numbers that are worked on at once
PFN_MOST = 64 << 10  # bytes in a chain: a vCPU that is to pause finishes its work.  Linux has 1 KiB

CONFIG_SIZE = 16  # struct virtio_balloon_config

STAT = struct.Struct("<HQ")  # struct virtio_balloon_stat: tag, val
STATS_MOST = 64 * STAT.size  # bytes of a buffer that are looked at

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


class Statistics(NamedTuple):
    """What the guest said last of its memory, and when, by the device's clock."""

    values: dict[str, int]
    at: float


class VirtioBalloon(VirtioDevice):
    """A balloon: `ask` says how large it should be, ``pages`` are those that are in it.

    Pages that go into it, and free ones that the guest reports or hints at, are given back to the
    host. A guest that fills free pages with something but zeroes (``poison_val``) would miss
    that: its reports and hints are acknowledged, and nothing is done.
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

    num_pages = ConfigField(0, 4, "pages of 4 KiB the balloon should have")
    actual = ConfigField(4, 4, "pages the driver says it has")
    free_page_hint_cmd_id = ConfigField(8, 4, "0: stop, 1: done, else give hints for that round")
    poison_val = ConfigField(12, 4, "what the guest fills free pages with")

    def __init__(
        self,
        memory: Memory,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(memory, log)
        self.memory = memory
        self.clock = clock
        self.inflateq, self.deflateq, self.statsq, self.free_page_vq, self.reporting_vq = (
            self.queues
        )
        self.pages = BalloonPages(memory)
        self.statistics: Statistics | None = None
        self.hinted_bytes = 0  # in the last round
        self._round = CMD_ID_FIRST - 1  # of hints, the last that was begun
        self._hints_count = False  # the driver's hints are those of that round
        self._stats_chain: Chain | None = None  # given back when statistics are wanted
        self._stats_skip = False  # the next are a legacy driver's first: not set
        self._news = threading.Condition(self.lock)  # of statistics
        self._written = bytearray(CONFIG_SIZE)  # what the driver wrote, byte by byte

    # For whoever runs the machine

    def ask(self, pages: int) -> None:
        """Say how many pages the balloon should have; the guest does what it can."""
        with self.lock:
            if pages != self.num_pages:
                self.num_pages = pages
                self.config_changed()

    @property
    def has_driver(self) -> bool:
        """Whether the guest has a driver that works."""
        return self.live and bool(self.status & STATUS_DRIVER_OK)

    def refresh_statistics(self, timeout_s: float) -> Statistics | None:
        """Ask the guest for statistics, wait a little, and return the last there are.

        Not from a vCPU's thread, which is needed for the answer.
        """
        with self.lock:
            before = self.statistics
            if self._ask_for_statistics():
                self._news.wait_for(lambda: self.statistics is not before, timeout_s)
            return self.statistics

    def start_hinting(self) -> bool:
        """Begin a round of hints, if there is a driver that gives some: it says what is free."""
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
        """Whether a round of hints goes on."""
        return self.free_page_hint_cmd_id >= CMD_ID_FIRST

    def info(self) -> dict[str, Any]:
        """The balloon as JSON has it; bytes."""
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
        """Return the statistics' buffer: the driver fills another one."""
        with self.lock:
            self._ask_for_statistics()

    def own_state(self) -> dict[str, Any]:
        """The pages in the balloon, as runs: the first, and how many."""
        return {"pages": [list(run) for run in self.pages.runs()]}

    def restore_own(self, state: object, where: str) -> None:
        """Have the pages that `own_state` gave."""
        self.pages.restore(_checked_runs(state, where))

    # For the driver

    def notify(self, queue: Virtqueue) -> None:
        """The driver has put something into a queue: deal with all of it."""
        serve = {
            "inflateq": self._inflate,
            "deflateq": self._deflate,
            "statsq": self._take_statistics,
            "free_page_vq": self._take_hint,
            "reporting_vq": self._take_report,
        }[queue.name]
        while (chain := self.pop(queue)) is not None:
            serve(chain)

    def activate(self) -> None:
        """A driver is there; a legacy one's first statistics mean nothing."""
        self._stats_skip = self.legacy

    def deactivate(self) -> None:
        """All pages are the guest's again; what it is asked for stays."""
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
        """Take what the driver writes; a legacy one writes a byte at a time, the last counts."""
        end = min(offset + length, len(self._written))
        for at in range(offset, end):
            self._written[at] = value >> 8 * (at - offset) & 0xFF
        for field in (type(self).actual, type(self).poison_val):
            last = field.offset + field.size
            if offset < last <= offset + length:
                written = self._written[field.offset : last]
                setattr(self, field.name, int.from_bytes(written, "little"))

    # Each deals with a chain, which nobody else has, and gives it back

    def _inflate(self, chain: Chain) -> None:
        self._change(self.inflateq, chain, self.pages.add)

    def _deflate(self, chain: Chain) -> None:
        self._change(self.deflateq, chain, self.pages.remove)

    def _change(
        self, queue: Virtqueue, chain: Chain, change: Callable[[tuple[int, ...]], None]
    ) -> None:
        """Put the pages a chain names into the balloon, or take them out."""
        try:
            with self.guard:
                size = chain.readable_size
                if chain.writable or size % PFN.size or size > PFN_MOST:
                    what = f"no array of pages, of at most {PFN_MOST} bytes"
                    raise QueueError(f"{queue.name} chain {chain.head}: {what}")
            for data in _in_blocks(chain):
                with self.guard:
                    if not queue.owns(chain):  # there was a reset, or the end of the machine
                        return
                    before = self.pages.count
                    change(struct.unpack(f"<{len(data) // PFN.size}I", data))
                    more = (self.pages.count - before) * PAGE
                    self.counts["inflated_bytes" if more > 0 else "deflated_bytes"] += abs(more)
        finally:
            self.push(queue, chain, 0)

    def _take_statistics(self, chain: Chain) -> None:
        """Keep statistics, and their buffer until others are wanted."""
        with self.guard:
            if chain.writable:
                chain.release()
                raise QueueError(f"statsq chain {chain.head}: a buffer to write to")
            if not self.statsq.owns(chain):
                chain.release()
                return
            data = next(chain.pieces(STATS_MOST), b"")
            if self._stats_chain is not None:  # the driver is to have one of them, at most
                self.statsq.push(self._stats_chain, 0)
            self._stats_chain = chain
            if not self._stats_skip:
                self.statistics = Statistics(_parse_statistics(data), self.clock())
            self._stats_skip = False
            self._news.notify_all()

    def _take_hint(self, chain: Chain) -> None:
        """A command id says which round the hints after it are of; pages are hints."""
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
            raise QueueError(f"free_page_vq chain {chain.head}: no command id")
        (command,) = PFN.unpack(chain.read())
        if self.is_hinting and command == self.free_page_hint_cmd_id:
            self._hints_count = True
        elif self._hints_count:  # else it ends an earlier round, which was cut short
            self._end_hinting()

    def _end_hinting(self) -> None:
        """Let the driver have the pages again that it hinted at; with the lock."""
        self._hints_count = False
        self.free_page_hint_cmd_id = CMD_ID_DONE
        self.config_changed()

    def _take_report(self, chain: Chain) -> None:
        """Free pages of the guest's, which it holds back until the chain is returned."""
        with self.guard:
            if self.reporting_vq.owns(chain):
                if chain.readable:
                    raise QueueError(f"reporting_vq chain {chain.head}: something to read")
                self.counts["reported_bytes"] += self._discard(chain)
        self.push(self.reporting_vq, chain, 0)

    def _discard(self, chain: Chain) -> int:
        """Give the pages of a chain back to the host; returns how many bytes that was."""
        if self.has(F_PAGE_POISON) and self.poison_val:
            return 0
        with contextlib.suppress(OutOfRange):  # another vCPU has just unplugged it
            for address, length in chain.places:
                self.memory.discard(address, length)
        return chain.writable_size

    def _ask_for_statistics(self) -> bool:
        """Return the statistics' buffer, which asks for new ones; with the lock."""
        chain, self._stats_chain = self._stats_chain, None
        if chain is None or not self.live:
            return False
        self.statsq.push(chain, 0)
        self.signal(self.statsq)
        return True


def _checked_runs(state: object, where: str) -> list[tuple[int, int]]:
    """Runs of pages from a snapshot, each of them in one area.

    Raises: StateError.
    """
    runs = state.get("pages") if isinstance(state, Mapping) else None
    if not isinstance(runs, list):
        raise StateError(f"{where} has no pages")
    for run in runs:
        if not (isinstance(run, list) and [type(number) for number in run] == [int, int]):
            raise StateError(f"{where}.pages has {str(run)[:40]}, no run of pages")
        first, count = run
        if not (0 <= first <= UINT32 and 0 < count <= AREA_PAGES - first % AREA_PAGES):
            raise StateError(f"{where}.pages has a run that cannot be: {count} from {first:#x} on")
    return [(first, count) for first, count in runs]


def _in_blocks(chain: Chain) -> Iterator[bytes]:
    """What a chain holds, in blocks of whole page numbers, however its descriptors cut them."""
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
    """Statistics by name; those that nobody knows are left out."""
    whole = len(data) // STAT.size * STAT.size
    return {STATS[tag]: value for tag, value in STAT.iter_unpack(data[:whole]) if tag in STATS}
