"""The formats that pack one file: gzip, zstd, xz, lzma, bzip2, lz4 and lzo.

Packed files of one format may follow each other, as `cat` puts them: members of gzip, frames of
zstd and lz4, streams of xz and bzip2. All are unpacked. Zeros may pad them.

Each library is imported when a file needs it: most images are not packed.

Source: RFC 1952 (gzip); RFC 8878 (zstd, and the skippable frames of zstd and lz4); the .xz file
format 1.1.0; LZMA SDK, lzma.txt; lz4_Frame_format.md.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from pyvmm.base.records import Record
from pyvmm.errors import HostError
from pyvmm.layout import KIB, MIB

CHUNK = 1 * MIB  # bytes read and unpacked at a time, at most
BLOCK = 4 * KIB  # bytes read first
MAGIC_SIZE = 16  # bytes, enough to recognize each format
DICTIONARY = 256 * MIB  # a file that needs more memory to be unpacked is refused
SKIPPED = 64  # skippable frames before the first frame, at most
SKIPPABLE = rb"[\x50-\x5f]\x2a\x4d\x18"


class Damaged(ValueError):
    """Packed data that is damaged, or ends too early."""


class Decompressor(Protocol):
    """The decompressor of one stream, as bz2.BZ2Decompressor and lzma.LZMADecompressor are."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was reached."""

    @property
    def needs_input(self) -> bool:
        """Whether it can return more output only after more input."""

    @property
    def unused_data(self) -> bytes:
        """The input after the end of the stream."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack at most ``max_length`` bytes."""


Started = tuple[Decompressor, type[Exception]]


class Packing(Record):
    """A format: a pattern of its first bytes, its reader, and a program that unpacks it too.

    ``read`` unpacks one member, frame or stream, and leaves the position after it.
    """

    magic: re.Pattern[bytes]
    read: Callable[[BinaryIO], Iterator[bytes]]
    program: str


def read_stream(file: BinaryIO, start: Callable[[], Started]) -> Iterator[bytes]:
    """Unpack one stream; ``start`` returns a decompressor, and its exception for damaged data.

    The position is then after the stream, if the file can seek.

    Raises: Damaged, also if the file ends too early.
    """
    decompressor, error = start()
    size = BLOCK
    while not decompressor.eof:
        data = b""
        if decompressor.needs_input:
            data = file.read(size)
            size = min(2 * size, CHUNK)  # short streams need only short reads
            if not data:
                raise Damaged("it ends too early")
        try:
            yield decompressor.decompress(data, CHUNK)
        except error as damage:
            raise Damaged(str(damage)) from damage
    if file.seekable():
        file.seek(-len(decompressor.unused_data), io.SEEK_CUR)


class _Gunzip:
    """zlib's decompressor with the interface of the others."""

    def __init__(self, member: Any) -> None:
        self._member = member
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return bool(self._member.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._member.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out: bytes = self._member.decompress(self._member.unconsumed_tail + data, max_length)
        self.needs_input = len(out) < max_length and not self._member.unconsumed_tail
        return out


def _gzip() -> Started:
    import zlib

    return _Gunzip(zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)), zlib.error


def zstd_frame() -> Started:
    """Return a decompressor for one frame of zstd, and its exception."""
    from pyvmm.boot import zstd

    return zstd.Decompressor(), zstd.ZstdError


def _xz() -> Started:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, DICTIONARY), lzma.LZMAError


def _lzma() -> Started:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, DICTIONARY), lzma.LZMAError


def _bzip2() -> Started:
    import bz2

    return bz2.BZ2Decompressor(), OSError


def _read_lz4(file: BinaryIO) -> Iterator[bytes]:
    from pyvmm.boot import lz4

    magic = file.read(len(lz4.LEGACY_MAGIC))
    file.seek(-len(magic), io.SEEK_CUR)
    if magic == lz4.LEGACY_MAGIC:
        yield from _reporting(lz4.read_legacy(file), lz4.Lz4Error)
    else:
        yield from read_stream(file, lambda: (lz4.Decompressor(), lz4.Lz4Error))


def _read_lzo(file: BinaryIO) -> Iterator[bytes]:
    from pyvmm.boot import lzo

    yield from _reporting(lzo.read(file), lzo.LzoError)


def _reporting(chunks: Iterator[bytes], error: type[Exception]) -> Iterator[bytes]:
    try:
        yield from chunks
    except error as damage:
        raise Damaged(str(damage)) from damage


def _streams(start: Callable[[], Started]) -> Callable[[BinaryIO], Iterator[bytes]]:
    return lambda file: read_stream(file, start)


# lzma has no magic: lc=3, lp=0, pb=2; a dictionary of 2^n or 2^n + 2^(n-1) bytes, 64 KiB or more;
# and a size that is unknown or less than 256 GiB. xz tells it apart in the same way.
_SIZES = rb"\x01\x02\x04\x08\x10\x20\x40\x80\x03\x06\x0c\x18\x30\x60\xc0"
_LZMA = rb"\x5d\0\0(?:[%b]\0|\0[%b]|\x80\x01)(?:\xff{8}|.{4}[\0-\x3f]\0\0\0)" % (_SIZES, _SIZES)

PACKINGS = {
    name: Packing(re.compile(magic, re.DOTALL), read, program)
    for name, magic, read, program in (
        ("gzip", rb"\x1f\x8b\x08", _streams(_gzip), "gunzip"),
        ("zstd", rb"\x28\xb5\x2f\xfd|" + SKIPPABLE, _streams(zstd_frame), "unzstd"),
        ("xz", rb"\xfd7zXZ\0", _streams(_xz), "unxz"),
        ("lzma", _LZMA, _streams(_lzma), "unlzma"),
        ("bzip2", rb"BZh[1-9]", _streams(_bzip2), "bunzip2"),
        ("lz4", rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18|" + SKIPPABLE, _read_lz4, "unlz4"),
        ("lzo", rb"\x89LZO\0\r\n\x1a\n", _read_lzo, "lzop -d"),
    )
}


def packing_of(file: BinaryIO) -> str | None:
    """Return the name of the format that the file is packed in; None, if it is not."""
    position = 0
    for _ in range(SKIPPED + 1):
        file.seek(position)
        head = file.read(MAGIC_SIZE)
        if not re.match(SKIPPABLE, head):
            break
        position += 8 + int.from_bytes(head[4:8], "little")
    return next((name for name, packing in PACKINGS.items() if packing.magic.match(head)), None)


def unpack(file: BinaryIO, kind: str) -> Iterator[bytes]:
    """Unpack all packed data from the file's position on, and leave the position after it.

    Raises:
        Damaged: the data is damaged, or the file ends within it.
        HostError: this machine lacks the library.
    """
    packing = PACKINGS[kind]
    more: object = True
    while more:
        try:
            yield from packing.read(file)
        except ImportError as missing:
            raise HostError(
                f"{kind} needs Python's module {missing.name}, which this Python lacks",
                hint=f"unpack the file with {packing.program}",
            ) from None
        _skip_zeros(file)
        head = file.read(MAGIC_SIZE)
        file.seek(-len(head), io.SEEK_CUR)
        more = packing.magic.match(head)


def _skip_zeros(file: BinaryIO) -> None:
    while piece := file.read(BLOCK):
        if rest := piece.lstrip(b"\0"):
            file.seek(-len(rest), io.SEEK_CUR)
            return
