"""Zstandard, packed and unpacked by the system's libzstd.

ctypes works on a real arm64 machine and on the emulated host, whose Python has no compiled packages
but Debian's. Nearly every distribution's package manager and init link libzstd.so.1. Its stable
interface has not changed since 1.0.

Source: zstd.h, "Streaming decompression", "Streaming compression"; RFC 8878 for the format.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator

from pyvmm.errors import HostError

LIBRARY = "libzstd.so.1"
MAGIC = b"\x28\xb5\x2f\xfd"
CHUNK = 1 << 20  # bytes of output
LEVELS = range(1, 20)  # higher levels need very much memory

# Source: zstd.h, ZSTD_cParameter and ZSTD_EndDirective
C_LEVEL, C_CHECKSUM, C_WORKERS = 100, 201, 400
E_CONTINUE, E_END = 0, 2


class ZstdError(ValueError):
    """Data that is not zstd, or damaged."""


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer, which have the same layout."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))


class Decompressor:
    """The decompressor of one frame, with the interface of ``bz2.BZ2Decompressor``.

    Raises: HostError, where the machine has no libzstd.
    """

    def __init__(self) -> None:
        self.eof = False
        self.needs_input = True
        self.unused_data = b""
        self._library = _library()
        self._stream = ctypes.c_void_p(self._library.ZSTD_createDStream())
        if not self._stream:
            raise HostError("libzstd: out of memory")

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._library.ZSTD_freeDStream(self._stream)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack at most ``max_length`` bytes; raise ZstdError for damaged data."""
        data = self.unused_data + data
        held = ctypes.create_string_buffer(data, max(len(data), 1))
        room = ctypes.create_string_buffer(max_length)
        source = _Buffer(ctypes.addressof(held), len(data), 0)
        out = _Buffer(ctypes.addressof(room), max_length, 0)
        left = self._library.ZSTD_decompressStream(
            self._stream, ctypes.byref(out), ctypes.byref(source)
        )
        if self._library.ZSTD_isError(left):
            raise ZstdError(self._library.ZSTD_getErrorName(left).decode())
        self.eof = left == 0
        self.unused_data = data[source.pos :]
        # The library may hold more output than there was room for
        self.needs_input = not self.unused_data and out.pos < max_length
        return ctypes.string_at(room, out.pos)


def compress(chunks: Iterable[bytes], level: int = 3, workers: int = 0) -> Iterator[bytes]:
    """Pack into one frame with a checksum, in ``workers`` threads if the library supports them.

    Raises: HostError, where the machine has no libzstd.
    """
    library = _library()
    context = ctypes.c_void_p(library.ZSTD_createCCtx())
    if not context:
        raise HostError("libzstd: out of memory")
    try:
        for parameter, value in ((C_LEVEL, level), (C_CHECKSUM, 1), (C_WORKERS, workers)):
            # Not checked: a library without threads refuses C_WORKERS
            library.ZSTD_CCtx_setParameter(context, parameter, value)
        for chunk in chunks:
            yield from _pack(library, context, chunk, E_CONTINUE)
        yield from _pack(library, context, b"", E_END)
    finally:
        library.ZSTD_freeCCtx(context)


def _pack(
    library: ctypes.CDLL, context: ctypes.c_void_p, data: bytes, directive: int
) -> Iterator[bytes]:
    room = ctypes.create_string_buffer(CHUNK)
    held = ctypes.create_string_buffer(data, max(len(data), 1))
    source = _Buffer(ctypes.addressof(held), len(data), 0)
    while True:
        out = _Buffer(ctypes.addressof(room), CHUNK, 0)
        left = library.ZSTD_compressStream2(
            context, ctypes.byref(out), ctypes.byref(source), directive
        )
        if library.ZSTD_isError(left):
            raise HostError(f"libzstd: {library.ZSTD_getErrorName(left).decode()}")
        if out.pos:
            yield ctypes.string_at(room, out.pos)
        if left == 0 if directive == E_END else source.pos == source.size:
            return


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise HostError(
            f"zstd needs {LIBRARY}, which this machine lacks",
            hint="apt-get install libzstd1 (Fedora: libzstd)",
        ) from None
    size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    library.ZSTD_createCCtx.restype = pointer
    library.ZSTD_freeCCtx.argtypes = (pointer,)
    library.ZSTD_CCtx_setParameter.argtypes = (pointer, number, number)
    library.ZSTD_CCtx_setParameter.restype = size
    library.ZSTD_compressStream2.argtypes = (pointer, pointer, pointer, number)
    library.ZSTD_compressStream2.restype = size
    library.ZSTD_createDStream.restype = pointer
    library.ZSTD_freeDStream.argtypes = (pointer,)
    library.ZSTD_decompressStream.argtypes = (pointer, pointer, pointer)
    library.ZSTD_decompressStream.restype = size
    library.ZSTD_isError.argtypes = (size,)
    library.ZSTD_getErrorName.argtypes = (size,)
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library
