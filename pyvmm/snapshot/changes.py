"""The memory an incremental snapshot must store: pages that may differ from its parent.

DirtyPages lists them if tracking started from the parent.  Untracked memory is compared with the
parent.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.machine.dirty import DirtyPages
from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range, clipped, merged, runs
from pyvmm.snapshot import pages
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import SnapshotFile


def changed(memory: GuestMemory, parent: SnapshotFile, dirty: DirtyPages) -> list[Range]:
    """Return the ranges of ``memory`` that may differ from the parent."""
    if memory is dirty.memory and dirty.since == parent.identity:
        return dirty.ranges()
    return list(by_content(memory, parent))


def by_content(memory: GuestMemory, parent: SnapshotFile) -> Iterator[Range]:
    """Compare memory with the parent, and yield the pages that differ as ranges."""
    end = memory.base + memory.size
    stored = clipped(parent.stored(), memory.base, end)
    for low, high in merged([*pages.touched(memory), *stored]):
        for start in range(low, high, BLOCK):
            length = min(BLOCK, high - start)
            with memory.view(start, length) as now, memoryview(parent.read(start, length)) as then:
                flags = pages.differing(now, then)
            yield from runs(flags, start, PAGE)
