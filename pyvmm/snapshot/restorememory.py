"""Restore of guest memory: read at once, or mapped from the file and read on first use."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot import format
from pyvmm.snapshot.format import Extent
from pyvmm.snapshot.reader import SnapshotFile, in_threads, path_in_errors

# Each mapping may split another one into three.  Source: Linux, DEFAULT_MAX_MAP_COUNT is 65530
MOST_MAPPED: Final = 16384


def fill(snapshot: SnapshotFile, memories: Sequence[GuestMemory]) -> None:
    """Read and check all of guest memory; ``memories`` are zero.

    Raises: Damaged, also if the file has memory outside ``memories``.
    """
    snapshot.check_within((memory.base, memory.base + memory.size) for memory in memories)
    for file in snapshot.chain():
        _zero(file, memories)
        in_threads(partial(_fill_block, file, memories), list(_per_block(file, file.extents)))


def _fill_block(
    file: SnapshotFile, memories: Sequence[GuestMemory], job: tuple[int, list[Extent]]
) -> None:
    """Read a block of a file into guest memory."""
    number, pieces = job
    start, end = file.blocks[number]
    if len(pieces) == 1 and pieces[0].length == end - start:
        parts = list(_within(memories, pieces[0].gpa, pieces[0].length))
        if len(parts) == 1:  # without a copy
            memory, gpa, length = parts[0]
            with path_in_errors(file.path), memory.view(gpa, length) as view:
                format.read_into(file.fd, start, view)
                file.check_block(number, view)
            return
    _scatter(file.read_block(number), start, pieces, memories)


def map_into(snapshot: SnapshotFile, memories: Sequence[GuestMemory]) -> None:
    """Map the files as guest memory, without a check: verify() must follow.

    Pieces that cannot be mapped are read, for example on a host with larger pages.  So are the
    smallest pieces, if the process would have too many mappings.

    Raises: Damaged, if the file has memory outside ``memories``.
    """
    snapshot.check_within((memory.base, memory.base + memory.size) for memory in memories)
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
                with path_in_errors(file.path):
                    data = format.read_exactly(file.fd, start, end - start)
                _scatter(data, start, pieces, memories)


def _least_to_map(snapshot: SnapshotFile) -> int:
    """Return the minimal length of a piece to map."""
    lengths = sorted((e.length for file in snapshot.chain() for e in file.extents), reverse=True)
    return lengths[MOST_MAPPED] + 1 if len(lengths) > MOST_MAPPED else 0


def _map(file: SnapshotFile, piece: Extent, memory: GuestMemory) -> list[Extent]:
    """Map a piece, and return the parts that must be read instead."""
    page = mmap.PAGESIZE
    if not memory.takes_files or (piece.gpa - piece.offset) % page:
        return [piece]
    low, high = -(-piece.gpa // page) * page, piece.end // page * page
    if low >= high:
        return [piece]
    shift = piece.offset - piece.gpa
    memory.map_file(low, high - low, file.fd, low + shift)
    rest = (piece.gpa, low), (high, piece.end)
    return [Extent(a, b - a, a + shift) for a, b in rest if a < b]


def _zero(file: SnapshotFile, memories: Sequence[GuestMemory]) -> None:
    """Clear the memory that became zero after the parent was saved."""
    for extent in file.extents:
        if not extent.offset:
            for memory, gpa, length in _within(memories, extent.gpa, extent.length):
                memory.zero(gpa, length)


def _scatter(
    data: bytes, start: int, pieces: Sequence[Extent], memories: Sequence[GuestMemory]
) -> None:
    """Copy a block's data, at ``start`` of the file, into guest memory."""
    with memoryview(data) as view:
        for piece in pieces:
            for memory, gpa, length in _within(memories, piece.gpa, piece.length):
                at = piece.offset - start + gpa - piece.gpa
                memory.write(gpa, view[at : at + length])


def _within(
    memories: Sequence[GuestMemory], gpa: int, length: int
) -> Iterator[tuple[GuestMemory, int, int]]:
    """Yield the parts of a range of guest addresses, each with its memory."""
    for memory in memories:
        low, high = max(gpa, memory.base), min(gpa + length, memory.base + memory.size)
        if low < high:
            yield memory, low, high - low


def _per_block(file: SnapshotFile, extents: Sequence[Extent]) -> Iterator[tuple[int, list[Extent]]]:
    """Yield each block's number and the parts of the extents in it, by offset in the file."""
    stored = sorted((e for e in extents if e.offset), key=lambda extent: extent.offset)
    for number, parts in enumerate(format.per_block(file.header.memory, stored)):
        yield number, [part for _, part in parts]
