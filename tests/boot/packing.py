"""Packed images: zstd by libzstd's simple interface, and Linux's EFI zboot."""

from __future__ import annotations

import ctypes
import struct


def zstd_compress(data: bytes) -> bytes:
    """Pack data into a zstd frame."""
    library = ctypes.CDLL("libzstd.so.1")
    for name in ("ZSTD_compress", "ZSTD_compressBound"):
        getattr(library, name).restype = ctypes.c_size_t
    library.ZSTD_compressBound.argtypes = (ctypes.c_size_t,)
    library.ZSTD_compress.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
    )  # fmt: skip
    room = ctypes.create_string_buffer(library.ZSTD_compressBound(len(data)))
    size: int = library.ZSTD_compress(room, len(room), data, len(data), 3)
    return room.raw[:size]


def zboot(kind: bytes, payload: bytes, *, offset: int = 0x1000, size: int | None = None) -> bytes:
    """Make an EFI zboot image of packed data, in the layout of zboot-header.S."""
    length = len(payload) if size is None else size
    head = struct.pack("<4s4sII8x32sI", b"MZ\0\0", b"zimg", offset, length, kind, 0x8182_23CD)
    return head.ljust(0x1000, b"\0") + payload
