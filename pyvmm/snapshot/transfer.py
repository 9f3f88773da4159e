"""Snapshots for transfer: a chain written as one file, a file packed with zstd, and unpacked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

from pyvmm.base.files import PRIVATE, cannot_write, replacing, write_all
from pyvmm.boot import zstd
from pyvmm.boot.packings import Damaged as BadData
from pyvmm.boot.packings import read_stream, zstd_frame
from pyvmm.errors import UsageError
from pyvmm.memory.ranges import runs
from pyvmm.snapshot.codec import Damaged
from pyvmm.snapshot.format import BLOCK, PAGE, Header, read_exactly
from pyvmm.snapshot.mark import own_key
from pyvmm.snapshot.pages import not_zero
from pyvmm.snapshot.reader import SnapshotFile, path_in_errors
from pyvmm.snapshot.writer import MemoryToSave, write_into, write_snapshot

WORKERS: Final = min(4, os.cpu_count() or 1)
LEVELS: Final = zstd.LEVELS
PACKED_HINT: Final = "`pyvmm snapshot export` packs a snapshot with zstd"


def flatten(snapshot: SnapshotFile, path: Path) -> str:
    """Check a chain and write it as one file without a parent.

    Returns:
        The new file's identity.

    Raises:
        UsageError: the snapshot is damaged, or the file cannot be written.
        HostError: the disk is full.
    """
    key = own_key() if snapshot.is_own else None  # a stranger's snapshot gets no mark
    return write_snapshot(
        path, snapshot.document, [MemoryToSave(snapshot, snapshot.stored())], key=key
    )


def export(snapshot: SnapshotFile, place: Path, level: int) -> Iterator[bytes]:
    """Check a snapshot and yield it packed with zstd; a chain is packed as one file.

    ``place`` is a directory for a temporary file, which a chain needs.

    Raises:
        UsageError: the snapshot is damaged.
        HostError: libzstd is missing, or the disk is full.
    """
    if snapshot.parent is None:
        yield from zstd.compress(_pieces(snapshot), level, WORKERS)
        return
    key = own_key() if snapshot.is_own else None
    try:
        with tempfile.TemporaryFile(dir=place, prefix=".pyvmm-export-") as file:
            parts = [MemoryToSave(snapshot, snapshot.stored())]
            write_into(file.fileno(), snapshot.document, parts, key=key)
            fd = os.dup(file.fileno())
    except OSError as error:
        raise cannot_write(place, error) from error
    with closing(SnapshotFile(snapshot.path, fd)) as whole:
        yield from zstd.compress(_pieces(whole), level, WORKERS)


def _pieces(snapshot: SnapshotFile) -> Iterator[bytes]:
    """Yield the bytes of one file, from the start to the end."""
    with path_in_errors(snapshot.path):
        yield read_exactly(snapshot.fd, 0, snapshot.header.memory.offset)
    for number in range(len(snapshot.blocks)):
        yield snapshot.read_block(number)


def unpack(source: BinaryIO, name: str, path: Path) -> str:
    """Write the snapshot that export() packed; it gets its name after all of it was checked.

    Returns:
        The identity.

    Raises:
        UsageError: the source cannot be read, is damaged or not a packed snapshot, or the file
            cannot be written.
        HostError: libzstd is missing, or the disk is full.
    """
    with replacing(path, PRIVATE) as fd:
        try:
            size = _write_sparsely(fd, _unpacked(source, name))
            os.ftruncate(fd, size)
            with closing(SnapshotFile(Path(name), os.dup(fd))) as snapshot:
                if snapshot.header.parent is not None:
                    raise UsageError("it needs a parent", hint=PACKED_HINT)
                snapshot.verify(workers=WORKERS)
                return snapshot.identity
        except BadData as error:
            raise Damaged(f"{name}: damaged, or not packed: {error}", hint=PACKED_HINT) from None
        except UsageError as error:
            message = error.message if name in error.message else f"{name}: {error.message}"
            raise type(error)(message, hint=error.hint) from None


def _unpacked(source: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the unpacked bytes.

    Raises: UsageError, if the source cannot be read.
    """
    try:
        yield from read_stream(source, zstd_frame)
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error


def _write_sparsely(fd: int, pieces: Iterable[bytes]) -> int:
    """Write pieces one after the other, without pages of zeros.

    Returns:
        The number of bytes.

    Raises: Damaged, if there are more bytes than the first page says.
    """
    done, limit, held = 0, None, b""
    for piece in pieces:
        held += piece
        if limit is None and len(held) >= PAGE:
            limit = Header.unpack(held[:PAGE])[0].memory.end
        if limit is not None and done + len(held) > limit:
            raise Damaged(f"it is longer than the {limit} bytes that its first page says")
        while len(held) >= BLOCK:
            _write_used(fd, held[:BLOCK], done)
            held, done = held[BLOCK:], done + BLOCK
    _write_used(fd, held, done)
    return done + len(held)


def _write_used(fd: int, data: bytes, offset: int) -> None:
    if len(data) % PAGE:
        raise Damaged("it ends within a page")
    with memoryview(data) as view:
        for low, high in runs(not_zero(view), 0, PAGE):
            write_all(fd, view[low:high], offset + low)
