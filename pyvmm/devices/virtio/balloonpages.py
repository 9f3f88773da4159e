"""The pages in a balloon, and the release of their memory to the host.

A balloon uses pages of 4 KiB, independent of the guest's and the host's page size. A bitmap for
each area of 2 MiB holds them. The balloon discards runs of pages, as long as possible. An area with
a hole gets no huge pages, else khugepaged would fill the hole again.

Source: OASIS Virtual I/O Device (VIRTIO) 1.2, 5.5.6; Linux, Documentation/admin-guide/mm/
transhuge.rst, khugepaged/max_ptes_none.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import defaultdict
from collections.abc import Iterable, Iterator

from pyvmm.devices.virtio.queue import QueueError
from pyvmm.layout import MIB
from pyvmm.memory.ram import Memory, OutOfRange

PAGE = 4096  # Source: linux/virtio_balloon.h, VIRTIO_BALLOON_PFN_SHIFT
AREA = 2 * MIB
AREA_PAGES = AREA // PAGE
ALL = (1 << AREA_PAGES) - 1
AREA_SHIFT = AREA_PAGES.bit_length() - 1
HOST_PAGES = max(1, mmap.PAGESIZE // PAGE)  # balloon pages in a host page

# Areas without huge pages, at most: each may split a mapping in three, and a process may have
# 65,530 mappings by default.  Source: Linux, Documentation/admin-guide/sysctl/vm.rst
SMALL_AREAS = 16 << 10

Run = tuple[int, int]  # the first page, and the count


class BalloonPages:
    """A set of page numbers (guest physical addresses / 4096), empty at first."""

    def __init__(self, memory: Memory, host_pages: int = HOST_PAGES) -> None:
        self._memory = memory
        self._host_pages = host_pages
        self._areas: dict[int, int] = {}  # a bitmap of the pages in each area
        self._small: set[int] = set()  # the areas without huge pages
        self.count = 0

    def add(self, pages: Iterable[int]) -> None:
        """Add pages, and discard the host's pages that are now in the set as a whole.

        Raises: QueueError, for a page outside RAM; lower pages may have been added.
        """
        for area, mask in self._by_area(pages):
            self._check(area, mask)
            had = self._areas.get(area, 0)
            new = mask & ~had
            if not new:
                continue
            if not had:
                self._prefer_huge_pages(area, False)
            self._areas[area] = had | new
            self.count += new.bit_count()
            with contextlib.suppress(OutOfRange):  # another vCPU may have unplugged it
                for first, count in _runs(self._whole(had | new, new)):
                    self._memory.discard(area * AREA + first * PAGE, count * PAGE)

    def remove(self, pages: Iterable[int]) -> None:
        """Remove pages from the set; ignore pages outside it."""
        for area, mask in self._by_area(pages):
            had = self._areas.get(area, 0)
            gone = mask & had
            self.count -= gone.bit_count()
            if had and gone == had:
                del self._areas[area]
                self._prefer_huge_pages(area, True)
            elif gone:
                self._areas[area] = had & ~gone

    def clear(self) -> None:
        """Remove all pages."""
        for area in self._areas:
            self._prefer_huge_pages(area, True)
        self._areas.clear()
        self.count = 0

    def runs(self) -> Iterator[Run]:
        """Yield the pages in the set in order, as runs within an area."""
        for area, mask in sorted(self._areas.items()):
            for first, count in _runs(mask):
                yield (area << AREA_SHIFT) + first, count

    def restore(self, runs: Iterable[Run]) -> None:
        """Replace the set; discard nothing, as the pages are empty already."""
        self.clear()
        for area, mask in self._by_area(
            page for first, count in runs for page in range(first, first + count)
        ):
            self._areas[area] = mask
            self.count += mask.bit_count()
            self._prefer_huge_pages(area, False)

    def _by_area(self, pages: Iterable[int]) -> list[tuple[int, int]]:
        masks: defaultdict[int, int] = defaultdict(int)
        for page in pages:
            masks[page >> AREA_SHIFT] |= 1 << (page & AREA_PAGES - 1)
        return sorted(masks.items())

    def _check(self, area: int, mask: int) -> None:
        if self._memory.contains(area * AREA, AREA):
            return
        for first, count in _runs(mask):
            if not self._memory.contains(area * AREA + first * PAGE, count * PAGE):
                page = (area << AREA_SHIFT) + first
                raise QueueError(f"pages {page:#x} to {page + count - 1:#x} are not all RAM")

    def _whole(self, mask: int, new: int) -> int:
        """Return the bits of host pages that lie within ``mask`` and overlap ``new``."""
        size = self._host_pages
        if size == 1:
            return new
        found = 0
        for shift in range(0, AREA_PAGES, size):
            bits = (1 << size) - 1 << shift
            if new & bits and mask & bits == bits:
                found |= bits
        return found

    def _prefer_huge_pages(self, area: int, prefer: bool) -> None:
        """Allow or forbid huge pages in an area; forbid them in at most SMALL_AREAS areas."""
        if prefer and area not in self._small:
            return
        if not prefer and (
            len(self._small) >= SMALL_AREAS or not self._memory.contains(area * AREA, AREA)
        ):
            return
        (self._small.discard if prefer else self._small.add)(area)
        with contextlib.suppress(OutOfRange):  # it may have been unplugged
            self._memory.prefer_huge_pages(area * AREA, AREA, prefer)


def _runs(mask: int) -> Iterator[Run]:
    """Yield the runs of ones in a mask, lowest first."""
    shift = 0
    while mask:
        zeroes = (mask & -mask).bit_length() - 1
        mask >>= zeroes
        shift += zeroes
        ones = (~mask & mask + 1).bit_length() - 1
        yield shift, ones
        mask >>= ones
        shift += ones
