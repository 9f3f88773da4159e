"""Writing of snapshot files: a file is complete before it gets its name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvmm.base.files import PRIVATE, cannot_write, left_beside, replacing, write_all
from pyvmm.base.records import Record
from pyvmm.errors import HostError, UsageError
from pyvmm.memory.ram import GuestMemory
from pyvmm.memory.ranges import Range, merged, whole, without
from pyvmm.snapshot import format, pages
from pyvmm.snapshot.format import (
    BLOCK,
    DIGEST,
    EXTENT,
    MOST_EXTENTS,
    PAGE,
    Extent,
    Header,
    Index,
    Memory,
    Parent,
    StateSection,
    whole_pages,
)
from pyvmm.snapshot.mark import made_key
from pyvmm.snapshot.reader import SnapshotFile, in_threads

MOST_LEFT: Final = 3  # files that a warning names


class MemoryToSave(NamedTuple):
    """Guest memory to save: these ranges of guest addresses, by default all of a GuestMemory."""

    memory: pages.MemorySource
    ranges: Iterable[Range] | None = None


class _Layout(Record):
    """The layout of a file: ``pieces`` of guest memory, sorted by offset in the file."""

    index: int  # bytes
    memory: Memory
    pieces: list[tuple[Extent, pages.MemorySource]]
    zero: list[Range]


def write_snapshot(
    path: Path,
    document: dict[str, Any],
    parts: Sequence[MemoryToSave],
    *,
    parent: SnapshotFile | None = None,
    key: bytes | None = None,
    fd: int | None = None,
) -> str:
    """Write the state and memory of a stopped machine, and return the file's identity.

    Zero pages are not stored.  Memory outside the parts' ranges is that of the ``parent``.  Only
    the user may read the file: it has the guest's secrets.  With a ``key`` it has the user's mark.
    With ``fd`` the snapshot is written there, to an empty file that the caller gives its ``path``.

    Raises:
        UsageError: the file cannot be written.
        HostError: the disk is full.
    """
    reference = None if parent is None else _reference(parent, path)
    if fd is None:
        with replacing(path, PRIVATE) as new:
            return write_into(new, document, parts, reference, key)
    try:
        return write_into(fd, document, parts, reference, key)
    except OSError as error:
        raise cannot_write(path, error) from error


def finish(fd: int, path: Path) -> tuple[str, tuple[str, ...]]:
    """Mark a complete snapshot as this user's, before the caller renames it to ``path``.

    A confined process has no access to the key, nor to the directory. So its client does this.

    Returns:
        The file's identity, and warnings: about a key that cannot be used, and killed saves.

    Raises: UsageError or HostError, if the file is no snapshot, or cannot be written.
    """
    warnings = []
    try:
        header, identity, _ = Header.unpack(os.pread(fd, PAGE, 0))
        try:
            page = header.replace(mark=header.mark_with(made_key())).pack()
            write_all(fd, page)
            identity = Header.unpack(page)[1]
        except HostError as error:
            warnings.append(
                f"the snapshot has no mark of yours ({error}): a restore may need `trust`"
            )
    except OSError as error:
        raise cannot_write(path, error) from error
    if left := left_beside(path):  # they hold the memory of guests
        names = " ".join(str(one) for one in left[:MOST_LEFT])
        more = f" and {len(left) - MOST_LEFT} more" if len(left) > MOST_LEFT else ""
        warnings.append(f"left by a killed save (unless a save is running now): {names}{more}")
    return identity, tuple(warnings)


def write_into(
    fd: int,
    document: dict[str, Any],
    parts: Sequence[MemoryToSave],
    parent: Parent | None = None,
    key: bytes | None = None,
) -> str:
    """Write a snapshot to an empty file, and return its identity.

    Raises:
        UsageError: the state or the parent's path exceeds a limit of the format.
        OSError: the write fails.
    """
    state = format.pack_state(document)
    layout = _lay_out(PAGE + len(state), parts, keep_zero=parent is not None)
    os.ftruncate(fd, layout.memory.end)
    hashes = in_threads(lambda job: _write_block(fd, *job), _jobs(layout))
    zeros = [Extent(low, high - low, 0) for low, high in layout.zero]
    extents = sorted([*(extent for extent, _ in layout.pieces), *zeros])
    index = format.pack_index(extents, hashes, layout.index)
    header = Header(
        state=StateSection(offset=PAGE, length=len(state), sha256=format.sha256(state)),
        index=Index(
            offset=PAGE + len(state),
            length=len(index),
            sha256=format.sha256(index),
            extents=len(extents),
        ),
        memory=layout.memory,
        parent=parent,
    )
    if key is not None:
        header = header.replace(mark=header.mark_with(key))
    page = header.pack()
    write_all(fd, state + index, PAGE)
    write_all(fd, page)  # last: without it the file is no snapshot
    return Header.unpack(page)[1]


def _reference(parent: SnapshotFile, child: Path) -> Parent:
    """Return the reference to a parent: a relative path, so that both can be moved together.

    Raises: UsageError, if the child would replace a file that it needs.
    """
    for file in parent.chain():
        if child.exists() and os.path.samestat(os.fstat(file.fd), child.stat()):
            raise UsageError(
                f"{child}: an incremental snapshot cannot replace its own parent",
                hint="write it to another file",
            )
    place = os.path.dirname(os.path.realpath(child))  # noqa: PTH120 - relpath takes text
    return Parent(
        sha256=parent.identity, path=os.path.relpath(os.path.realpath(parent.path), place)
    )


def _lay_out(start: int, parts: Sequence[MemoryToSave], *, keep_zero: bool) -> _Layout:
    """Lay the file out; ``start`` is the offset of the index.

    Memory that fills whole aligned blocks gets aligned blocks in the file, so that a host with
    larger pages can map it.  The other memory comes before that, page by page.
    """
    small: list[tuple[Range, pages.MemorySource]] = []
    large: list[tuple[Range, pages.MemorySource]] = []
    zero: list[Range] = []
    for memory, data, holes in _contents(parts, keep_zero):
        zero += holes
        for low, high in data:
            inner = -(-low // BLOCK) * BLOCK, high // BLOCK * BLOCK
            if inner[0] < inner[1]:
                large.append((inner, memory))
                ends = (low, inner[0]), (inner[1], high)
                small += [(end, memory) for end in ends if end[0] < end[1]]
            else:
                small.append(((low, high), memory))
    stored = sum(high - low for (low, high), _ in (*small, *large))
    # Three more hashes than whole blocks: a block at each end, and the gap before large pieces.
    hashes = stored // BLOCK + 3 if stored else 0
    extents = len(small) + len(large) + len(zero)
    index = whole_pages(EXTENT.size * extents + DIGEST * hashes)
    at = offset = start + index
    pieces = []
    for group, alignment in ((small, PAGE), (large, BLOCK)):
        at = -(-at // alignment) * alignment if group else at
        for (low, high), memory in group:
            pieces.append((Extent(low, high - low, at), memory))
            at += high - low
    return _Layout(index, Memory(offset=offset, length=at - offset), pieces, zero)


def _contents(
    parts: Sequence[MemoryToSave], keep_zero: bool
) -> Iterator[tuple[pages.MemorySource, list[Range], list[Range]]]:
    """Yield each part's memory, the ranges to store, and the ranges to mark as zero."""
    for memory, ranges in parts:
        if ranges is None:
            if not isinstance(memory, GuestMemory):
                raise TypeError("only a GuestMemory may come without ranges")
            ranges = pages.touched(memory)
        asked = whole(ranges, PAGE)
        data = pages.used(memory, asked)
        gap = PAGE
        while len(data) > MOST_EXTENTS // 4:  # too many: store small gaps as well
            data, gap = merged(data, gap), 2 * gap
        yield memory, data, without(asked, data) if keep_zero else []


Piece = tuple[pages.MemorySource, int, int]  # memory, guest address and length


def _jobs(layout: _Layout) -> Iterator[tuple[int, int, list[Piece]]]:
    """Yield each block's offset, its length, and the pieces in it."""
    memories = [memory for _, memory in layout.pieces]
    parts = format.per_block(layout.memory, [extent for extent, _ in layout.pieces])
    for (start, end), mine in zip(format.blocks(layout.memory), parts, strict=True):
        yield start, end - start, [(memories[at], part.gpa, part.length) for at, part in mine]


def _write_block(fd: int, offset: int, length: int, pieces: list[Piece]) -> bytes:
    """Write one block without the zeros at its end, and return its hash."""
    if len(pieces) == 1 and pieces[0][2] == length:
        memory, gpa, _ = pieces[0]
        with memory.view(gpa, length) as view:
            write_all(fd, view, offset)
            return hashlib.sha256(view).digest()
    data = bytearray(length)
    at = 0
    for memory, gpa, size in pieces:
        with memory.view(gpa, size) as view:
            data[at : at + size] = view
        at += size
    with memoryview(data) as whole:
        write_all(fd, whole[:at], offset)
    return hashlib.sha256(data).digest()
