"""LZO in the format of lzop, unpacked by the system's liblzo2.

A file is a header, then blocks, each with the checksums that the header's flags name, then a zero.
All numbers are big-endian.

Source: lzo1x.h; Linux, lib/decompress_unlzo.c.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pyvmm.errors import HostError
from pyvmm.layout import MIB

LIBRARY = "liblzo2.so.2"
MAGIC = b"\x89LZO\0\r\n\x1a\n"
LARGEST_BLOCK = 64 * MIB
VERSION_WITH_LEVEL = 0x0940  # lzop's version; since then the header has three more fields

# Flags of the header
F_EXTRA, F_FILTER = 0x40, 0x800
# The checksums of a block's unpacked bytes, and the flags for checksums of its packed ones
CHECKS: tuple[tuple[int, Callable[[bytes], int]], ...] = ((0x1, zlib.adler32), (0x100, zlib.crc32))
PACKED_CHECKS = (0x2, 0x200)


class LzoError(ValueError):
    """Data that is not in lzop's format, or damaged."""


def read(file: BinaryIO) -> Iterator[bytes]:
    """Unpack one file that lzop made, and leave the position after it.

    Raises:
        LzoError: the data is damaged, or the file ends within it.
        HostError: the machine has no liblzo2.
    """
    library = _library()
    flags = _read_header(file)
    while size := _number(file, 4):
        packed = _number(file, 4)
        if not packed <= size <= LARGEST_BLOCK:
            raise LzoError(f"a block of {size} bytes, packed to {packed}")
        checks = [(check, _number(file, 4)) for flag, check in CHECKS if flags & flag]
        for flag in PACKED_CHECKS if packed < size else ():
            if flags & flag:
                _bytes(file, 4)
        data = _bytes(file, packed)
        if packed < size:
            data = _decompress(library, data, size)
        if any(check(data) != expected for check, expected in checks):
            raise LzoError("a block has a wrong checksum")
        yield data


def _read_header(file: BinaryIO) -> int:
    """Read the header, and return its flags."""
    _bytes(file, len(MAGIC))
    recent = _number(file, 2) >= VERSION_WITH_LEVEL
    _bytes(file, 2 + 2 * recent)  # the library's version, the version that is needed
    _bytes(file, 1 + recent)  # the method, the level
    flags = _number(file, 4)
    if flags & F_FILTER:
        raise LzoError("it uses a filter, which lzop never does")
    _bytes(file, 8 + 4 * recent)  # mode, time
    _bytes(file, _number(file, 1))  # the file's name
    _bytes(file, 4)  # the header's checksum
    if flags & F_EXTRA:
        _bytes(file, _number(file, 4) + 4)
    return flags


def _decompress(library: ctypes.CDLL, data: bytes, size: int) -> bytes:
    room, made = ctypes.create_string_buffer(size), ctypes.c_size_t(size)
    error = library.lzo1x_decompress_safe(data, len(data), room, ctypes.byref(made), None)
    if error or made.value != size:
        raise LzoError("a block is damaged")
    return room.raw


def _number(file: BinaryIO, size: int) -> int:
    return int.from_bytes(_bytes(file, size), "big")


def _bytes(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise LzoError("it ends too early")
    return data


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise HostError(
            f"lzo needs {LIBRARY}, which this machine lacks",
            hint="apt-get install liblzo2-2 (Fedora: lzo), or unpack the file with lzop -d",
        ) from None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.lzo1x_decompress_safe.argtypes = (pointer, size, pointer, pointer, pointer)
    return library
