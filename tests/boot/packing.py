"""Packed images: zstd by libzstd's simple interface, Linux's EFI zboot, and EFI programs."""

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


def efi_program(*sections: tuple[bytes, bytes], machine: int = 0xAA64) -> bytes:
    """Make an EFI program of those sections, in the layout of Microsoft's PE Format."""
    optional = 112
    table = 0x40 + 24 + optional
    offset = -(-(table + 40 * len(sections)) // 512) * 512
    out = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    out += struct.pack("<4sHHIIIHH", b"PE\0\0", machine, len(sections), 0, 0, 0, optional, 0x22E)
    out += struct.pack("<H", 0x20B).ljust(optional, b"\0")
    body = b""
    for name, data in sections:
        padded = data.ljust(-(-len(data) // 512) * 512, b"\0")
        place = offset + len(body)
        sizes = (len(data), place, len(padded), place)
        out += struct.pack("<8s4I12xI", name, *sizes, 0x4000_0040)
        body += padded
    return out.ljust(offset, b"\0") + body
