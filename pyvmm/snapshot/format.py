"""The snapshot file's outer form: its first page, and where everything else lies.

    0            pyvmm snapshot 1 SHA-256-OF-THE-REST-OF-THIS-PAGE
                 {"page": 4096, "block": 2097152, "state": {...}, "index": ..., ...}
    4096         the state: JSON, ended by newlines to a whole page
    index        the extents (24 bytes each), then the blocks' SHA-256 (32 bytes each), then zeros
    memory       pages of guest memory, to the end of the file

The first page holds the SHA-256 of state and index, the index that of every 2 MiB of memory: so
the 64 digits in the first line stand for everything in the file, and are its identity.  Nothing
of a file is used before what vouches for it has been checked.  docs/snapshot-format.md says all
this to whoever writes another reader.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pyvmm.errors import UsageError
from pyvmm.snapshot.codec import Damaged, decode, encode

MAGIC: Final = b"pyvmm snapshot "
VERSION: Final = 1
PAGE: Final = 4096  # of the file and of guest memory, whatever the host's
BLOCK: Final = 2 << 20  # memory that has one SHA-256, at multiples of that in the file
ADDRESSES: Final = 1 << 52  # guest physical addresses there can be.  Source: Arm ARM, FEAT_LPA

# What a file that may hold anything is allowed to have us do.  512 vCPUs' registers are 25 MiB.
MOST_STATE: Final = 64 << 20  # bytes of JSON
MOST_VALUES: Final = 1_000_000  # in that JSON
MOST_EXTENTS: Final = 1 << 20
MOST_MEMORY: Final = 1 << 44  # bytes stored

SHORTER: Final = "the file has become shorter while it was read"
EXTENT: Final = struct.Struct("<QQQ")
DIGEST: Final = hashlib.sha256().digest_size
_FIRST_LINE: Final = re.compile(rb"pyvmm snapshot ([1-9][0-9]{0,9}) ([0-9a-f]{64})\n")
_IDENTITY: Final = re.compile("[0-9a-f]{64}")


class Extent(NamedTuple):
    """Guest memory in the file: ``length`` bytes at guest address ``gpa`` are at ``offset``.

    An offset of 0 means that they are zero, and stored nowhere: an incremental snapshot has such.
    """

    gpa: int
    length: int
    offset: int

    @property
    def end(self) -> int:
        """The first guest address after it."""
        return self.gpa + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Bytes of the file, and their SHA-256."""

    offset: int
    length: int
    sha256: str

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The section that says where guest memory lies, and with how many extents."""

    offset: int
    length: int
    sha256: str
    extents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The pages of guest memory, to the end of the file."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The file's size."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The snapshot that an incremental one goes on from; the path starts at the latter's place."""

    sha256: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first page."""

    page: int = PAGE
    block: int = BLOCK
    state: Section
    index: Index
    memory: Memory
    parent: Parent | None = None

    def pack(self) -> bytes:
        """The page itself.

        Raises: UsageError, where the parent's path does not fit.
        """
        text = json.dumps(encode(self), indent=1).encode() + b"\n"
        room = PAGE - len(MAGIC) - len(str(VERSION)) - 2 * DIGEST - 2
        if len(text) > room:
            raise UsageError("the path to the parent is too long to be kept in a snapshot")
        body = text.ljust(room, b"\n")
        return b"%s%d %s\n%s" % (MAGIC, VERSION, _sha256(body).encode(), body)

    @classmethod
    def unpack(cls, page: bytes) -> tuple[Header, str]:
        """The header in a file's first page, and the snapshot's identity.

        Raises: UsageError, for what is no snapshot, is damaged, or is of a newer pyvmm.
        """
        line = _FIRST_LINE.match(page)
        if line is None:
            damaged = page.startswith(MAGIC)
            raise Damaged("its first line is damaged" if damaged else "no snapshot of pyvmm's")
        if (version := int(line[1])) > VERSION:
            raise UsageError(
                f"a snapshot of version {version}, and this pyvmm reads up to {VERSION}",
                hint="a newer pyvmm wrote it: use that one",
            )
        body = page[line.end() :]
        if len(page) != PAGE or _sha256(body) != line[2].decode():
            raise Damaged("its first page is damaged: the SHA-256 is another")
        header = decode(cls, parse_json(body, "the header"), "header")
        header.check()
        return header, line[2].decode()

    def check(self) -> None:
        """Refuse what no writer makes, however well its hashes fit.

        Raises: Damaged.
        """
        index, memory = self.index, self.memory
        if (self.page, self.block) != (PAGE, BLOCK):
            raise Damaged(f"pages of {self.page} and blocks of {self.block} bytes")
        starts = (self.state.offset, index.offset, memory.offset)
        ends = (PAGE, self.state.end, index.offset + index.length)
        lengths = (self.state.length, index.length, memory.length)
        if starts != ends or any(n < 0 or n % PAGE for n in lengths):
            raise Damaged("its parts do not follow upon each other in whole pages")
        if not 0 < self.state.length <= MOST_STATE:
            raise Damaged(f"a state of {self.state.length} bytes")
        if not 0 <= index.extents <= MOST_EXTENTS or memory.length > MOST_MEMORY:
            raise Damaged(f"{index.extents} extents, {memory.length} bytes of memory")
        if not 0 <= index.length - index_size(index.extents, memory) <= PAGE:
            raise Damaged(f"an index of {index.length} bytes for {index.extents} extents")
        hashes = [self.state.sha256, index.sha256, *([self.parent.sha256] if self.parent else [])]
        if not all(_IDENTITY.fullmatch(text) for text in hashes):
            raise Damaged("a SHA-256 that is none")


def whole_pages(size: int) -> int:
    """The size up to the next whole page."""
    return -(-size // PAGE) * PAGE


def blocks(memory: Memory) -> list[tuple[int, int]]:
    """Start and end in the file of each piece that has one SHA-256."""
    if not memory.length:
        return []
    edges = range(memory.offset // BLOCK * BLOCK + BLOCK, memory.end, BLOCK)
    return list(itertools.pairwise([memory.offset, *edges, memory.end]))


def index_size(extents: int, memory: Memory) -> int:
    """How long the index section is at least, for so many extents of that memory."""
    hashes = -(-memory.end // BLOCK) - memory.offset // BLOCK if memory.length else 0
    return whole_pages(EXTENT.size * extents + DIGEST * hashes)


def pack_index(extents: Iterable[Extent], hashes: Iterable[bytes], length: int) -> bytes:
    """The index section, of that length."""
    data = b"".join([*(EXTENT.pack(*extent) for extent in extents), *hashes])
    return data.ljust(length, b"\0")


def unpack_index(data: bytes, header: Header) -> tuple[list[Extent], list[bytes]]:
    """The extents, by guest address, and the blocks' hashes.

    Raises: Damaged.
    """
    table = EXTENT.size * header.index.extents
    extents = [Extent(*fields) for fields in EXTENT.iter_unpack(data[:table])]
    _check_extents(extents, header)
    count = len(blocks(header.memory))
    hashes = [data[at : at + DIGEST] for at in range(table, table + count * DIGEST, DIGEST)]
    if data[table + count * DIGEST :].strip(b"\0"):
        raise Damaged("there is something behind its index")
    return extents, hashes


def _check_extents(extents: Sequence[Extent], header: Header) -> None:
    """Refuse extents that are out of order, overlap, or lie outside of memory or file."""
    memory, last = header.memory, 0
    for gpa, length, offset in extents:
        if length <= 0 or (gpa | length | offset) % PAGE or not last <= gpa <= ADDRESSES - length:
            raise Damaged(f"an extent of {length:#x} bytes at guest address {gpa:#x}")
        stored = memory.offset <= offset <= memory.end - length
        if not stored and (offset or header.parent is None):
            raise Damaged(f"an extent of {length:#x} bytes at {offset:#x}, outside of its memory")
        last = gpa + length
    at = 0
    for _, length, offset in sorted((e for e in extents if e.offset), key=lambda e: e.offset):
        if offset < at:
            raise Damaged(f"two extents at {offset:#x}")
        at = offset + length


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in bytes that may be anything, within the limits of this module.

    Raises: Damaged.
    """
    # Every value but the first has one of these before it: an upper bound, and found fast.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_VALUES:
        raise Damaged(f"{what} has more than {MOST_VALUES} values")
    try:
        document = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # no text, no JSON; brackets without end
        raise Damaged(f"{what} is not JSON ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise Damaged(f"{what} is not a JSON object")
    return document


def pack_state(document: dict[str, Any]) -> bytes:
    """The state section: JSON, to be read by people too.

    Raises: UsageError, for more than read() would take.
    """
    text = json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"
    if len(text) > MOST_STATE:
        raise UsageError(f"the machine's state is too large for a snapshot: {len(text)} bytes")
    return text.ljust(whole_pages(len(text)), b"\n")


def section(offset: int, data: bytes) -> Section:
    """Data at that offset of the file."""
    return Section(offset=offset, length=len(data), sha256=_sha256(data))


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """That many bytes of a file.

    Raises: Damaged, where it ends before.
    """
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise Damaged(SHORTER)
        data += more
    return data


def read_into(fd: int, offset: int, view: memoryview) -> None:
    """Fill a view with what is at that offset of a file.

    Raises: Damaged, where it ends before.
    """
    done = 0
    while done < len(view):
        came = os.preadv(fd, [view[done:]], offset + done)
        if not came:
            raise Damaged(SHORTER)
        done += came


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(constant)
