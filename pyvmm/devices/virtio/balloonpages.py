"""The pages a guest has given up, and what of this machine's memory that makes free.

A balloon speaks of pages of 4 KiB, whatever the guest's and the host's are. They are kept by areas
of 2 MiB, a bit a page: what is given back to the host are runs of them, as long as can be, and an
area with a hole in it is kept from having huge pages. Else khugepaged would fill the hole again.

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
HOST_PAGES = max(1, mmap.PAGESIZE // PAGE)  # pages of the balloon's in one of the host's

# Areas that are kept from having huge pages, at most: each may split a mapping in three, and a
# process has 65,530 of them by default.  Source: Linux, Documentation/admin-guide/sysctl/vm.rst
SMALL_AREAS = 16 << 10

Run = tuple[int, int]  # the first page, and how many


class BalloonPages:
    """A set of page numbers (guest physical addresses / 4096); no pages are in it at first."""

    def __init__(self, memory: Memory, host_pages: int = HOST_PAGES) -> None:
        self._memory = memory
        self._host_pages = host_pages
        self._areas: dict[int, int] = {}  # the pages of each area that has some, a bit each
        self._small: set[int] = set()  # those of them that are to have no huge pages
        self.count = 0

    def add(self, pages: Iterable[int]) -> None:
        """Take pages, and give back to the host what of its own pages is in the set, whole.

        Raises:
            QueueError: one of them is no RAM; those before it in order may have been taken.
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
            with contextlib.suppress(OutOfRange):  # another vCPU has just unplugged it
                for first, count in _runs(self._whole(had | new, new)):
                    self._memory.discard(area * AREA + first * PAGE, count * PAGE)

    def remove(self, pages: Iterable[int]) -> None:
        """Return pages to the guest; what is not in the set is no matter."""
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
        """Return all of them."""
        for area in self._areas:
            self._prefer_huge_pages(area, True)
        self._areas.clear()
        self.count = 0

    def runs(self) -> Iterator[Run]:
        """The pages in the set, as runs of one area each, in order."""
        for area, mask in sorted(self._areas.items()):
            for first, count in _runs(mask):
                yield (area << AREA_SHIFT) + first, count

    def restore(self, runs: Iterable[Run]) -> None:
        """Have those pages and no others; nothing is discarded, they are empty already."""
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
        """The bits of host pages that are in ``mask`` as a whole, and partly in ``new``."""
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
        """Let an area have huge pages again, or not, as long as not too many may not."""
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
    """The runs of ones in a mask, lowest first."""
    shift = 0
    while mask:
        zeroes = (mask & -mask).bit_length() - 1
        mask >>= zeroes
        shift += zeroes
        ones = (~mask & mask + 1).bit_length() - 1
        yield shift, ones
        mask >>= ones
        shift += ones
