"""A snapshot's memory becomes a machine's: read at once, or mapped and read when it is used."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, TypeVar

from pyvmm.memory.ranges import Range, merged, without
from pyvmm.snapshot import format
from pyvmm.snapshot.codec import Damaged
from pyvmm.snapshot.format import Extent
from pyvmm.snapshot.reader import SnapshotFile, in_threads, told_with

# Each may split another in three.  Source: Linux, DEFAULT_MAX_MAP_COUNT is 65530
MOST_MAPPED: Final = 16384


class FillableMemory(Protocol):
    """Guest memory to be filled."""

    base: int
    size: int

    def view(self, gpa: int, length: int) -> memoryview:
        """The memory itself at a guest address."""

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy into it."""

    def zero(self, gpa: int, length: int) -> None:
        """Make it zero."""


class MappableMemory(FillableMemory, Protocol):
    """Guest memory whose bytes can be a file's."""

    def map_file(self, gpa: int, length: int, fd: int, offset: int) -> None:
        """Have a file's bytes there, read when they are first used, and written to privately."""

    @property
    def takes_files(self) -> bool:
        """Whether map_file() works here."""


M = TypeVar("M", bound=FillableMemory)


def fill(snapshot: SnapshotFile, memories: Sequence[FillableMemory]) -> None:
    """Read all of guest memory into memory that is zero; everything is checked.

    Raises: Damaged, also where there is memory outside of what is to be filled.
    """
    _check_covered(snapshot, memories)
    for file in snapshot.chain():
        _zero(file, memories)
        in_threads(_Filler(file, memories), list(_per_block(file, file.extents)))


class _Filler:
    """Reads a block of a file to where it belongs."""

    def __init__(self, file: SnapshotFile, memories: Sequence[FillableMemory]) -> None:
        self._file = file
        self._memories = memories

    def __call__(self, job: tuple[int, list[Extent]]) -> None:
        number, pieces = job
        file = self._file
        start, end = file.blocks[number]
        if len(pieces) == 1 and pieces[0].length == end - start:
            parts = list(_within(self._memories, pieces[0].gpa, pieces[0].length))
            if len(parts) == 1:  # then without a copy
                memory, gpa, length = parts[0]
                with told_with(file.path), memory.view(gpa, length) as view:
                    format.read_into(file.fd, start, view)
                    file.check_block(number, view)
                return
        _scatter(file.read_block(number), start, pieces, self._memories)


def map_into(snapshot: SnapshotFile, memories: Sequence[MappableMemory]) -> None:
    """Have the files' bytes as guest memory, unread and unchecked: verify() is to follow.

    What cannot be mapped, as on a host with larger pages than the file's, is read; so are the
    smallest pieces, where there are more than a process should have mappings of.

    Raises: Damaged, where there is memory outside of what is to be filled.
    """
    _check_covered(snapshot, memories)
    least = _least_to_map(snapshot)
    for file in snapshot.chain():
        _zero(file, memories)
        left: list[Extent] = []
        for extent in file.extents:
            if extent.offset:
                for memory, gpa, length in _within(memories, extent.gpa, extent.length):
                    shift = extent.offset - extent.gpa
                    piece = Extent(gpa, length, gpa + shift)
                    left += _map(file, piece, memory) if length >= least else [piece]
        for number, pieces in _per_block(file, left):
            if pieces:
                start, end = file.blocks[number]
                with told_with(file.path):
                    data = format.read_exactly(file.fd, start, end - start)
                _scatter(data, start, pieces, memories)


def _least_to_map(snapshot: SnapshotFile) -> int:
    """How long a piece must be to be worth a mapping."""
    lengths = sorted((e.length for file in snapshot.chain() for e in file.extents), reverse=True)
    return lengths[MOST_MAPPED] + 1 if len(lengths) > MOST_MAPPED else 0


def _map(file: SnapshotFile, piece: Extent, memory: MappableMemory) -> list[Extent]:
    """Map a piece; returns what of it has to be read instead."""
    page = mmap.PAGESIZE
    if not memory.takes_files or (piece.gpa - piece.offset) % page:
        return [piece]
    low, high = -(-piece.gpa // page) * page, piece.end // page * page
    if low >= high:
        return [piece]
    shift = piece.offset - piece.gpa
    memory.map_file(low, high - low, file.fd, low + shift)
    edges = (piece.gpa, low), (high, piece.end)
    return [Extent(a, b - a, a + shift) for a, b in edges if a < b]


def _zero(file: SnapshotFile, memories: Sequence[FillableMemory]) -> None:
    """Make zero what became zero after the parent."""
    for extent in file.extents:
        if not extent.offset:
            for memory, gpa, length in _within(memories, extent.gpa, extent.length):
                memory.zero(gpa, length)


def _scatter(
    data: bytes, start: int, pieces: Sequence[Extent], memories: Sequence[FillableMemory]
) -> None:
    """Copy a block's data, which is at ``start`` of the file, to where it belongs."""
    with memoryview(data) as view:
        for piece in pieces:
            for memory, gpa, length in _within(memories, piece.gpa, piece.length):
                at = piece.offset - start + gpa - piece.gpa
                memory.write(gpa, view[at : at + length])


def _check_covered(snapshot: SnapshotFile, memories: Sequence[FillableMemory]) -> None:
    room = merged((memory.base, memory.base + memory.size) for memory in memories)
    for file in snapshot.chain():
        ranges = ((extent.gpa, extent.end) for extent in file.extents)
        for low, high in without(ranges, room):
            raise Damaged(
                f"{file.path}: memory at guest addresses {low:#x} to {high:#x}, "
                "which the machine does not have"
            )


def _within(memories: Sequence[M], gpa: int, length: int) -> Iterator[tuple[M, int, int]]:
    """The parts of a range of guest addresses, with the memory each is in."""
    for memory in memories:
        low, high = max(gpa, memory.base), min(gpa + length, memory.base + memory.size)
        if low < high:
            yield memory, low, high - low


def _per_block(file: SnapshotFile, extents: Sequence[Extent]) -> Iterator[tuple[int, list[Extent]]]:
    """Each block's number, and what of the extents is in it, by their place in the file."""
    stored = sorted((e for e in extents if e.offset), key=lambda extent: extent.offset)
    at = 0
    for number, block in enumerate(file.blocks):
        mine: list[Extent] = []
        while at < len(stored) and stored[at].offset < block[1]:
            mine += _cut(stored[at], block)
            if stored[at].offset + stored[at].length > block[1]:
                break
            at += 1
        yield number, mine


def _cut(extent: Extent, block: Range) -> Iterator[Extent]:
    """What of an extent is in a block."""
    low, high = max(extent.offset, block[0]), min(extent.offset + extent.length, block[1])
    if low < high:
        yield Extent(extent.gpa + low - extent.offset, high - low, low)
