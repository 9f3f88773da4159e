"""Guest memory for tests of snapshot files."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range
from pyvmm.snapshot.format import BLOCK, PAGE
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.restorememory import fill, map_into
from pyvmm.snapshot.state import State
from pyvmm.snapshot.writer import MemoryToSave, write_snapshot

BASE = 0x8000_0000
SIZE = 4 * BLOCK
DOCUMENT: dict[str, Any] = {"vcpus": [{"PC": "0x80080000"}], "who": "a test"}

FILLERS = {"eager": fill, "lazy": map_into}


@functools.cache
def noise(length: int, seed: int = 1) -> bytes:
    """Return random bytes without a zero page; the seed determines them."""
    return random.Random(seed).randbytes(length)


def write_scene(memory: GuestMemory) -> None:
    """Write single pages, a run with a whole block in it, and the last page."""
    memory.write(BASE + 3 * PAGE, noise(PAGE, 1))
    memory.write(BASE + BLOCK - 2 * PAGE, noise(BLOCK + 5 * PAGE, 2))
    memory.write(BASE + SIZE - 1, b"!")


def save(
    path: Path,
    memory: GuestMemory,
    ranges: list[Range] | None = None,
    parent: SnapshotFile | None = None,
) -> str:
    return write_snapshot(path, DOCUMENT, [MemoryToSave(memory, ranges)], parent=parent)


def restored(path: Path, how: str = "eager") -> bytes:
    """Return all memory of a snapshot."""
    with SnapshotFile.open(path) as snapshot, GuestMemory(BASE, SIZE) as memory:
        FILLERS[how](snapshot, [memory])
        return memory.read(BASE, SIZE)


def save_machine(path: Path, state: State, memory: GuestMemory | None = None) -> str:
    """Write a snapshot of a machine; without ``memory`` its memory is zero."""
    parts = [] if memory is None else [MemoryToSave(memory)]
    return write_snapshot(path, state.document(), parts)
