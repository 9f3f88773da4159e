"""The file of a snapshot: header, index and memory, with right hashes or as raw bytes.

The input is the header's JSON, the state's JSON, the extents and memory, with SEPARATOR between
them.  Without one it is the whole file.  Memory is a number of pages, and the bytes that fill them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fuzz.jsonmutator import mutated
from fuzz.snapshots import scratch, snapshot
from pyvmm.errors import VmmError
from pyvmm.memory.ram import GuestMemory
from pyvmm.snapshot.format import EXTENT, PAGE, VERSION, parse_json
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.restorememory import fill, map_into

SEPARATOR = b"\xff\xfe"
BASE, SIZE = 0x8000_0000, 16 * PAGE
MOST_PAGES = 16


def check(data: bytes) -> None:
    """Open the file with its parents, read and restore all its memory, or refuse it."""
    path = scratch() / "it.snap"
    path.write_bytes(_file(data))
    try:
        with SnapshotFile.open(path) as file:
            assert file.version <= VERSION
            file.verify()
            for low, high in file.stored()[:4]:
                assert len(file.read(low, min(high - low, 2 * PAGE))) == min(high - low, 2 * PAGE)
            file.check_within([(BASE, BASE + SIZE)])
            for restore in (fill, map_into):
                with GuestMemory(BASE, SIZE) as memory:
                    restore(file, [memory])
                    held = memory.read(BASE, SIZE)
                assert held == file.read(BASE, SIZE), "it restores other memory than it reads"
    except VmmError as error:
        assert error.message


def _file(data: bytes) -> bytes:
    parts = data.split(SEPARATOR, 3)
    if len(parts) < 4:
        return data
    try:
        header = parse_json(parts[0], "the header")
        return snapshot(header, parts[1], parts[2], _memory(parts[3]))
    except (VmmError, ValueError, RecursionError):
        return data


def _memory(pattern: bytes) -> bytes:
    size = PAGE * (pattern[0] % MOST_PAGES) if pattern else 0
    filling = pattern[1:] or b"\0"
    return (filling * (size // len(filling) + 1))[:size]


def mutate(data: bytes, most: int, seed: int) -> bytes | None:
    """Change the header's JSON."""
    first, separator, rest = data.partition(SEPARATOR)
    changed = mutated(first, most - len(separator) - len(rest), seed)
    return None if changed is None else changed + separator + rest


def seeds() -> Iterator[bytes]:
    """Yield files with no memory, two extents, a parent, a mark and more of the header."""
    at = 3 * PAGE
    index = EXTENT.pack(BASE, PAGE, at) + EXTENT.pack(BASE + 4 * PAGE, PAGE, at + PAGE)
    zero = EXTENT.pack(BASE, PAGE, 0)
    parent = {"sha256": "0" * 64, "path": "parent.snap"}
    headers: tuple[dict[str, Any], ...] = (
        {}, {"mark": "1" * 64}, {"parent": parent}, {"parent": {**parent, "path": "it.snap"}},
        {"memory": {"offset": at}, "index": {"extents": 2}, "page": PAGE},
    )  # fmt: skip
    for header in headers:
        for extents, memory in ((b"", b""), (index, b"\2pattern"), (zero, b"\1")):
            yield SEPARATOR.join((json.dumps(header).encode(), b'{"schema":1}', extents, memory))
    yield snapshot({}, b"{}", b"", b"")[:512]
