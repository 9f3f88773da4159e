"""The layout of a snapshot file: its first page, and the sections it points to.

    0            pyvmm snapshot 2 SHA-256-OF-THE-REST-OF-THIS-PAGE
                 {"page": 4096, "block": 2097152, "state": {...}, "index": ..., ...}
    4096         the state: JSON, ended by newlines to a whole page
    index        the extents (24 bytes each), then the blocks' SHA-256 (32 bytes each), then zeros
    memory       pages of guest memory, to the end of the file

The first page has the SHA-256 of state and index, and the index that of every 2 MiB of memory.
So the SHA-256 in the first line covers the whole file, and is its identity.  A reader checks each
part against its SHA-256 before it uses the part.  docs/snapshot-format.md is the specification.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyvmm.base.paths import check_path
from pyvmm.base.records import Record
from pyvmm.errors import UsageError
from pyvmm.snapshot.codec import Damaged, decode, encode
from pyvmm.snapshot.mark import mark_of

MAGIC: Final = b"pyvmm snapshot "
VERSION: Final = 2
PAGE: Final = 4096  # bytes, in the file and in guest memory, whatever the host's page size is
BLOCK: Final = 2 << 20  # bytes of memory with one SHA-256, aligned in the file
ADDRESSES: Final = 1 << 52  # limit of guest physical addresses.  Source: Arm ARM, FEAT_LPA

# Limits on untrusted files.  The registers of 512 vCPUs are 25 MiB.
MOST_STATE: Final = 64 << 20  # bytes of JSON
MOST_VALUES: Final = 1_000_000  # of that JSON
MOST_EXTENTS: Final = 1 << 20
MOST_MEMORY: Final = 1 << 44  # bytes stored

SHORTER: Final = "the file became shorter while it was read"
EXTENT: Final = struct.Struct("<QQQ")
DIGEST: Final = hashlib.sha256().digest_size
_FIRST_LINE: Final = re.compile(rb"pyvmm snapshot ([1-9][0-9]{0,9}) ([0-9a-f]{64})\n")
_IDENTITY: Final = re.compile("[0-9a-f]{64}")


class Extent(NamedTuple):
    """Guest memory in the file: ``length`` bytes at guest address ``gpa`` are at ``offset``.

    An offset of 0 marks zeros of an incremental snapshot, which are not stored.
    """

    gpa: int
    length: int
    offset: int

    @property
    def end(self) -> int:
        """The end as a guest address, exclusive."""
        return self.gpa + self.length


class _Section(Record, kw_only=True):
    """The base of sections: a range of the file."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The end as an offset in the file, exclusive."""
        return self.offset + self.length


class StateSection(_Section):
    """The section with the machine's state."""

    sha256: str


class Index(_Section):
    """The section with the extents of guest memory."""

    sha256: str
    extents: int


class Memory(_Section):
    """The section with the pages of guest memory, at the end of the file."""


class Parent(Record, kw_only=True):
    """The parent of an incremental snapshot; the path is relative to the child's directory."""

    sha256: str
    path: str

    def __post_init__(self) -> None:
        check_path(Path(self.path), "path")


class Header(Record, kw_only=True):
    """The first page."""

    page: int = PAGE
    block: int = BLOCK
    state: StateSection
    index: Index
    memory: Memory
    parent: Parent | None = None
    mark: str | None = None  # since version 2

    def mark_with(self, key: bytes) -> str:
        """Return the mark that this key gives to the rest of the header, which has all hashes."""
        return mark_of(key, json.dumps(encode(self.replace(mark=None)), indent=1).encode())

    @property
    def bare_identity(self) -> str:
        """The identity of the same snapshot without a mark."""
        return self.unpack(self.replace(mark=None).pack())[1]

    def pack(self) -> bytes:
        """Return the page.

        Raises: UsageError, if the parent's path does not fit.
        """
        text = json.dumps(encode(self), indent=1).encode() + b"\n"
        room = PAGE - len(MAGIC) - len(str(VERSION)) - 2 * DIGEST - 2
        if len(text) > room:
            raise UsageError("the path of the parent is too long for a snapshot")
        body = text.ljust(room, b"\n")
        return b"%s%d %s\n%s" % (MAGIC, VERSION, sha256(body).encode(), body)

    @classmethod
    def unpack(cls, page: bytes) -> tuple[Header, str, int]:
        """Return the header in a file's first page, the snapshot's identity and its version.

        Raises: UsageError, if it is damaged or not a snapshot, or a newer pyvmm wrote it.
        """
        line = _FIRST_LINE.match(page)
        if line is None:
            damaged = page.startswith(MAGIC)
            raise Damaged("its first line is damaged" if damaged else "not a pyvmm snapshot")
        if (version := int(line[1])) > VERSION:
            raise UsageError(
                f"it has version {version}, this pyvmm reads up to {VERSION}",
                hint="use the newer pyvmm that wrote it",
            )
        body = page[line.end() :]
        if len(page) != PAGE or sha256(body) != line[2].decode():
            raise Damaged("its first page is damaged: the SHA-256 differs")
        header = decode(cls, parse_json(body, "the header"), "header")
        header.check()
        if version == 1 and header.mark is not None:
            raise Damaged("a mark, which version 1 does not have")
        return header, line[2].decode(), version

    def check(self) -> None:
        """Check the values: a file with matching hashes may still be made up.

        Raises: Damaged.
        """
        index, memory = self.index, self.memory
        if (self.page, self.block) != (PAGE, BLOCK):
            raise Damaged(f"pages of {self.page} and blocks of {self.block} bytes")
        starts = (self.state.offset, index.offset, memory.offset)
        ends = (PAGE, self.state.end, index.end)
        lengths = (self.state.length, index.length, memory.length)
        if starts != ends or any(n < 0 or n % PAGE for n in lengths):
            raise Damaged("its sections are not adjacent whole pages")
        if not 0 < self.state.length <= MOST_STATE:
            raise Damaged(f"a state of {self.state.length} bytes")
        if not 0 <= index.extents <= MOST_EXTENTS or memory.length > MOST_MEMORY:
            raise Damaged(f"{index.extents} extents, {memory.length} bytes of memory")
        if not 0 <= index.length - index_size(index.extents, memory) <= PAGE:
            raise Damaged(f"an index of {index.length} bytes for {index.extents} extents")
        hashes = [self.state.sha256, index.sha256, *([self.parent.sha256] if self.parent else [])]
        hashes += [self.mark] if self.mark is not None else []
        if not all(_IDENTITY.fullmatch(text) for text in hashes):
            raise Damaged("a malformed SHA-256")


def whole_pages(size: int) -> int:
    """Round a size up to whole pages."""
    return -(-size // PAGE) * PAGE


def blocks(memory: Memory) -> list[tuple[int, int]]:
    """Return start and end in the file of each block: memory with one SHA-256."""
    if not memory.length:
        return []
    aligned = range(memory.offset // BLOCK * BLOCK + BLOCK, memory.end, BLOCK)
    return list(itertools.pairwise([memory.offset, *aligned, memory.end]))


def per_block(memory: Memory, extents: Sequence[Extent]) -> Iterator[list[tuple[int, Extent]]]:
    """Yield for each block the parts of extents in it, each with the extent's index.

    The extents are sorted by offset and stored in ``memory``.
    """
    at = 0
    for start, end in blocks(memory):
        parts = []
        while at < len(extents) and extents[at].offset < end:
            gpa, length, offset = extents[at]
            low, high = max(offset, start), min(offset + length, end)
            if low < high:
                parts.append((at, Extent(gpa + low - offset, high - low, low)))
            if offset + length > end:
                break
            at += 1
        yield parts


def index_size(extents: int, memory: Memory) -> int:
    """Return the minimal length of the index section for that many extents."""
    hashes = -(-memory.end // BLOCK) - memory.offset // BLOCK if memory.length else 0
    return whole_pages(EXTENT.size * extents + DIGEST * hashes)


def pack_index(extents: Iterable[Extent], hashes: Iterable[bytes], length: int) -> bytes:
    """Return the index section, padded to that length."""
    data = b"".join([*(EXTENT.pack(*extent) for extent in extents), *hashes])
    return data.ljust(length, b"\0")


def unpack_index(data: bytes, header: Header) -> tuple[list[Extent], list[bytes]]:
    """Return the extents, sorted by guest address, and the blocks' hashes.

    Raises: Damaged.
    """
    table = EXTENT.size * header.index.extents
    extents = [Extent(*fields) for fields in EXTENT.iter_unpack(data[:table])]
    _check_extents(extents, header)
    count = len(blocks(header.memory))
    hashes = [data[at : at + DIGEST] for at in range(table, table + count * DIGEST, DIGEST)]
    if data[table + count * DIGEST :].strip(b"\0"):
        raise Damaged("data follows its index")
    return extents, hashes


def _check_extents(extents: Sequence[Extent], header: Header) -> None:
    """Check that extents are sorted, do not overlap, and lie within the guest and the file."""
    memory, last = header.memory, 0
    for gpa, length, offset in extents:
        if length <= 0 or (gpa | length | offset) % PAGE or not last <= gpa <= ADDRESSES - length:
            raise Damaged(f"an extent of {length:#x} bytes at guest address {gpa:#x}")
        stored = memory.offset <= offset <= memory.end - length
        if not stored and (offset or header.parent is None):
            raise Damaged(f"an extent of {length:#x} bytes at {offset:#x}, outside its memory")
        last = gpa + length
    at = 0
    for _, length, offset in sorted((e for e in extents if e.offset), key=lambda e: e.offset):
        if offset < at:
            raise Damaged(f"two extents at {offset:#x}")
        at = offset + length


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in untrusted bytes, within the limits of this module.

    Raises: Damaged.
    """
    # Every value except the first follows one of these: their number is a fast upper bound.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_VALUES:
        raise Damaged(f"{what} has more than {MOST_VALUES} values")
    try:
        document = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # not text or not JSON; too deeply nested
        raise Damaged(f"{what} is not JSON ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise Damaged(f"{what} is not a JSON object")
    return document


def pack_state(document: dict[str, Any]) -> bytes:
    """Return the state section: indented JSON.

    Raises: UsageError, if it is larger than a reader accepts.
    """
    text = json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"
    if len(text) > MOST_STATE:
        raise UsageError(f"the machine's state is too large for a snapshot: {len(text)} bytes")
    return text.ljust(whole_pages(len(text)), b"\n")


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """Read that many bytes of a file.

    Raises: Damaged, if the file is shorter.
    """
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise Damaged(SHORTER)
        data += more
    return data


def read_into(fd: int, offset: int, view: memoryview) -> None:
    """Fill a view from a file.

    Raises: Damaged, if the file is shorter.
    """
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            raise Damaged(SHORTER)
        done += count


def sha256(data: bytes) -> str:
    """Return the SHA-256 of data in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(constant)
