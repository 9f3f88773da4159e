"""LZ4, unpacked by the system's liblz4: frames, and legacy frames, which Linux's builds make.

Source: lz4frame.h and lz4.h; lz4_Frame_format.md, "Legacy frame".
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import BinaryIO

from pyvmm.errors import HostError
from pyvmm.layout import MIB

LIBRARY = "liblz4.so.1"
MAGIC = b"\x04\x22\x4d\x18"
LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LEGACY_BLOCK = 8 * MIB  # the unpacked size of a block, at most
LEGACY_PACKED = LEGACY_BLOCK + LEGACY_BLOCK // 255 + 16  # LZ4_compressBound() of that
VERSION = 100  # LZ4F_VERSION


class Lz4Error(ValueError):
    """Data that is not lz4, or damaged."""


class Decompressor:
    """The decompressor of one frame, with the interface of ``bz2.BZ2Decompressor``.

    Raises: HostError, where the machine has no liblz4.
    """

    def __init__(self) -> None:
        self.eof = False
        self.needs_input = True
        self.unused_data = b""
        self._library = _library()
        self._context = ctypes.c_void_p()
        error = self._library.LZ4F_createDecompressionContext(
            ctypes.byref(self._context), ctypes.c_uint(VERSION)
        )
        if self._library.LZ4F_isError(error):
            raise HostError("liblz4: out of memory")

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._library.LZ4F_freeDecompressionContext(self._context)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack at most ``max_length`` bytes; raise Lz4Error for damaged data."""
        data = self.unused_data + data
        room = ctypes.create_string_buffer(max_length)
        made, used = ctypes.c_size_t(max_length), ctypes.c_size_t(len(data))
        left = self._library.LZ4F_decompress(
            self._context, room, ctypes.byref(made), data, ctypes.byref(used), None
        )
        if self._library.LZ4F_isError(left):
            raise Lz4Error(self._library.LZ4F_getErrorName(left).decode())
        self.eof = left == 0
        self.unused_data = data[used.value :]
        # The library may hold more output than there was room for
        self.needs_input = not self.unused_data and made.value < max_length
        return ctypes.string_at(room, made.value)


def read_legacy(file: BinaryIO) -> Iterator[bytes]:
    """Unpack a legacy frame; it ends with the file, or before a number that is no block size.

    Raises:
        Lz4Error: the data is damaged, or the file ends within it.
        HostError: the machine has no liblz4.
    """
    library = _library()
    room = ctypes.create_string_buffer(LEGACY_BLOCK)
    file.seek(len(LEGACY_MAGIC), 1)
    while 0 < (size := int.from_bytes(field := file.read(4), "little")) <= LEGACY_PACKED:
        data = file.read(size)
        if not data:  # Linux's builds append the unpacked size
            break
        made = library.LZ4_decompress_safe(data, room, len(data), LEGACY_BLOCK)
        if len(data) < size or made < 0:
            raise Lz4Error("it ends too early" if len(data) < size else "a block is damaged")
        yield ctypes.string_at(room, made)
    file.seek(-len(field), 1)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise HostError(
            f"lz4 needs {LIBRARY}, which this machine lacks",
            hint="apt-get install liblz4-1 (Fedora: lz4-libs), or unpack the file with unlz4",
        ) from None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.LZ4F_createDecompressionContext.restype = size
    library.LZ4F_freeDecompressionContext.argtypes = (pointer,)
    library.LZ4F_decompress.argtypes = (pointer,) * 6
    library.LZ4F_decompress.restype = size
    library.LZ4F_isError.argtypes = (size,)
    library.LZ4F_getErrorName.argtypes = (size,)
    library.LZ4F_getErrorName.restype = ctypes.c_char_p
    return library
