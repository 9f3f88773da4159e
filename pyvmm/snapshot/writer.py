"""A snapshot file is written: whole and under its name, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pyvmm.base.files import PRIVATE, replacing, write_all
from pyvmm.errors import UsageError
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
    whole_pages,
)
from pyvmm.snapshot.reader import SnapshotFile, in_threads


class Part(NamedTuple):
    """Guest memory to be saved: those guest addresses of it, by default all of a GuestMemory."""

    memory: pages.MemorySource
    ranges: Iterable[Range] | None = None


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which guest memory goes where: ``pieces`` by file offset, with the memory each is in."""

    index: int  # its length
    memory: Memory
    pieces: list[tuple[Extent, pages.MemorySource]]
    zero: list[Range]

    @property
    def extents(self) -> list[Extent]:
        stored = [extent for extent, _ in self.pieces]
        return sorted([*stored, *(Extent(low, high - low, 0) for low, high in self.zero)])


def write_snapshot(
    path: Path,
    document: dict[str, Any],
    parts: Sequence[Part],
    *,
    parent: SnapshotFile | None = None,
) -> str:
    """Write the state and the memory of a machine that stands still; returns the identity.

    Of the parts, pages that are zero are not stored.  With a ``parent``, memory outside of the
    parts' ranges is as it is there.  The file is the user's alone, as it holds what the guest
    keeps secret.

    Raises:
        UsageError: there can be no such file.
        HostError: the disk is full.
    """
    reference = None if parent is None else _reference(parent, path)
    with replacing(path, PRIVATE) as fd:
        return write_into(fd, document, parts, reference)


def write_into(
    fd: int, document: dict[str, Any], parts: Sequence[Part], parent: Parent | None = None
) -> str:
    """Write a snapshot to an empty file; returns the identity.

    Raises:
        UsageError: what is to be written does not fit the format.
        OSError: the disk does not take it.
    """
    state = format.pack_state(document)
    layout = _lay_out(PAGE + len(state), parts, keep_zero=parent is not None)
    os.ftruncate(fd, layout.memory.end)
    hashes = _write_memory(fd, layout)
    extents = layout.extents
    index = format.pack_index(extents, hashes, layout.index)
    where = format.section(PAGE + len(state), index)
    header = Header(
        state=format.section(PAGE, state),
        index=Index(
            offset=where.offset, length=where.length, sha256=where.sha256, extents=len(extents)
        ),
        memory=layout.memory,
        parent=parent,
    )
    page = header.pack()
    write_all(fd, state + index, PAGE)
    write_all(fd, page)  # last: a file without it is no snapshot
    return Header.unpack(page)[1]


def _reference(parent: SnapshotFile, child: Path) -> Parent:
    """How a snapshot names its parent: so that both can be moved together.

    Raises: UsageError, where the child would be in the place of what it needs.
    """
    for file in parent.chain():
        if child.exists() and os.path.samestat(os.fstat(file.fd), child.stat()):
            raise UsageError(
                f"{child}: the snapshot to be written needs that file: it goes on from it",
                hint="write it to another name; `pyvmm snapshot flatten` makes one of both",
            )
    place = os.path.dirname(os.path.realpath(child))  # noqa: PTH120 - relpath takes text
    return Parent(
        sha256=parent.identity, path=os.path.relpath(os.path.realpath(parent.path), place)
    )


def _lay_out(start: int, parts: Sequence[Part], *, keep_zero: bool) -> _Layout:
    """Decide where memory goes; ``start`` is where the index does.

    What fills whole blocks, with guest addresses aligned as they are, gets whole blocks in the
    file: a host with larger pages can map it.  The rest lies before, page by page.
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
                edges = (low, inner[0]), (inner[1], high)
                small += [(edge, memory) for edge in edges if edge[0] < edge[1]]
            else:
                small.append(((low, high), memory))
    stored = sum(high - low for (low, high), _ in (*small, *large))
    # Three more hashes than whole blocks: a block at each end, and the gap before the large.
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
    parts: Sequence[Part], keep_zero: bool
) -> Iterator[tuple[pages.MemorySource, list[Range], list[Range]]]:
    """Of each part what is to be stored, and what is to be noted as zero."""
    for memory, ranges in parts:
        if ranges is None:
            if not isinstance(memory, GuestMemory):
                raise TypeError("whose memory is not this process's own needs ranges")
            ranges = pages.touched(memory)
        asked = whole(ranges, PAGE)
        data = pages.used(memory, asked)
        gap = PAGE
        while len(data) > MOST_EXTENTS // 4:  # then what lies between is stored too
            data, gap = merged(data, gap), 2 * gap
        yield memory, data, without(asked, data) if keep_zero else []


def _write_memory(fd: int, layout: _Layout) -> list[bytes]:
    """Write the pages; returns the blocks' hashes."""
    return in_threads(lambda job: _write_block(fd, *job), _jobs(layout))


Piece = tuple[pages.MemorySource, int, int]  # memory, guest address and length


def _jobs(layout: _Layout) -> Iterator[tuple[int, int, list[Piece]]]:
    """Each block's place in the file, its length, and what goes there, from its start on."""
    pieces = iter(layout.pieces)
    extent, memory = next(pieces, (Extent(0, 0, layout.memory.end), None))
    for start, end in format.blocks(layout.memory):
        mine: list[Piece] = []
        while memory is not None and extent.offset < end:
            low, high = max(extent.offset, start), min(extent.offset + extent.length, end)
            mine.append((memory, extent.gpa + low - extent.offset, high - low))
            if extent.offset + extent.length > end:
                break
            extent, memory = next(pieces, (extent, None))
        yield start, end - start, mine


def _write_block(fd: int, offset: int, length: int, pieces: list[Piece]) -> bytes:
    """Write one block, which may end in zeros that nothing is written for; returns its hash."""
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
