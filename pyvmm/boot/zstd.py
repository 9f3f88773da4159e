"""Zstandard, unpacked by the system's libzstd.

By ctypes, since one path then serves everywhere an image is booted: a real arm64 machine and the
emulated host, whose Python has no compiled packages but Debian's. Nearly every distribution's
package manager and init link libzstd.so.1; its stable interface has not changed since 1.0.

Source: zstd.h, "Streaming decompression"; RFC 8878 for the format.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import BinaryIO

from pyvmm.errors import HostError

LIBRARY = "libzstd.so.1"
MAGIC = b"\x28\xb5\x2f\xfd"
CHUNK = 1 << 20  # bytes, of input and of output


class ZstdError(ValueError):
    """The data is no zstd, or damaged."""


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer, which are alike."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


def decompress(file: BinaryIO) -> Iterator[bytes]:
    """Unpack the first frame of ``file`` from where it stands, at most CHUNK bytes at a time.

    Raises:
        ZstdError: the frame is damaged, or the file ends in the middle of it.
        HostError: the machine has no libzstd.
    """
    library = _library()
    stream = ctypes.c_void_p(library.ZSTD_createDStream())
    if not stream:
        raise HostError("libzstd: out of memory")
    try:
        yield from _frame(library, stream, file)
    finally:
        library.ZSTD_freeDStream(stream)


def _frame(library: ctypes.CDLL, stream: ctypes.c_void_p, file: BinaryIO) -> Iterator[bytes]:
    room = ctypes.create_string_buffer(CHUNK)
    out = _Buffer(ctypes.addressof(room), CHUNK, 0)
    while data := file.read(CHUNK):
        held = ctypes.create_string_buffer(data, len(data))
        source = _Buffer(ctypes.addressof(held), len(data), 0)
        full = False
        while full or source.pos < source.size:
            out.pos = 0
            left = library.ZSTD_decompressStream(stream, ctypes.byref(out), ctypes.byref(source))
            if library.ZSTD_isError(left):
                raise ZstdError(library.ZSTD_getErrorName(left).decode())
            yield room.raw[: out.pos]
            if left == 0:
                return
            full = out.pos == out.size  # then there may be more without more input
    raise ZstdError("it ends in the middle")


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise HostError(
            f"unpacking zstd needs {LIBRARY}, which this machine has not",
            hint="apt-get install libzstd1 (Fedora: libzstd), or unzstd the image",
        ) from None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.ZSTD_createDStream.restype = pointer
    library.ZSTD_freeDStream.argtypes = (pointer,)
    library.ZSTD_decompressStream.argtypes = (pointer, pointer, pointer)
    library.ZSTD_decompressStream.restype = size
    library.ZSTD_isError.argtypes = (size,)
    library.ZSTD_getErrorName.argtypes = (size,)
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library
