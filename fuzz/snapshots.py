"""Snapshot files with right hashes, whose other content is any."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyvmm.snapshot import format
from pyvmm.snapshot.format import PAGE


@functools.cache
def scratch() -> Path:
    """Return a directory for files, in memory where this machine has one there."""
    memory = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    atexit.register(made.cleanup)
    return Path(made.name)


def snapshot(header: dict[str, Any], state: bytes, index: bytes, memory: bytes) -> bytes:
    """Return a file of these parts, each padded to whole pages; ``index`` has the extents alone.

    What the header lacks is as a reader expects it.
    """
    state = state.ljust(format.whole_pages(len(state)), b"\n")
    memory = memory.ljust(format.whole_pages(len(memory)), b"\0")
    extents = len(index) // format.EXTENT.size
    section = format.Memory(offset=0, length=len(memory))
    at = PAGE + len(state)
    length = format.index_size(extents, section.replace(offset=at))
    start = at + length
    index = format.pack_index([], [index, *_hashes(memory, start)], length)
    right: dict[str, Any] = {
        "page": PAGE,
        "block": format.BLOCK,
        "state": {"offset": PAGE, "length": len(state), "sha256": format.sha256(state)},
        "index": {"offset": at, "length": len(index), "sha256": format.sha256(index),
                  "extents": extents},
        "memory": {"offset": start, "length": len(memory)},
    }  # fmt: skip
    for name, value in header.items():
        if isinstance(right.get(name), dict) and isinstance(value, dict):
            right[name] = right[name] | value
        else:
            right[name] = value
    first = b"%s%d " % (format.MAGIC, format.VERSION)
    text = json.dumps(right).encode()
    body = text.ljust(PAGE - len(first) - 2 * format.DIGEST - 1, b"\n")
    return first + format.sha256(body).encode() + b"\n" + body + state + index + memory


def _hashes(memory: bytes, start: int) -> Iterator[bytes]:
    """Yield the SHA-256 of each block of memory that begins at ``start`` in the file."""
    for low, high in format.blocks(format.Memory(offset=start, length=len(memory))):
        yield hashlib.sha256(memory[low - start : high - start]).digest()
