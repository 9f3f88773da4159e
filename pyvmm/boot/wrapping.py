"""Unpacking an image that is wrapped: gzip, zstd, and Linux's EFI zboot.

What a file is, its first bytes say. It is unpacked into memory of pyvmm's own, up to a limit, so
that a small file cannot ask for more than the guest has.

Source: RFC 1952 (gzip); RFC 8878 (zstd); Linux, drivers/firmware/efi/libstub/zboot-header.S.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from pyvmm.boot import zstd
from pyvmm.errors import ImageError
from pyvmm.layout import MIB

LAYERS = 2  # a zboot image in a .gz is real, a third layer is not
CHUNK = 1 << 20  # bytes unpacked at a time

# The head of a zboot image: MZ, "zimg", the payload's offset and size, reserved, its compression.
ZBOOT = struct.Struct("<2s2x4sII8x32s")
ZBOOT_MAGIC = (b"MZ", b"zimg")

# What only its own tool unpacks: (magic, name, tool)
FOREIGN = (
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"\x02\x21\x4c\x18", "lz4", "unlz4"),
)


class Unwrapped(NamedTuple):
    """An image without its wrappings; those are named from the outside in."""

    file: BinaryIO
    wrappings: tuple[str, ...]


def unwrap(file: BinaryIO, name: str, limit: int) -> Unwrapped:
    """Take the wrappings off the image in ``file``, called ``name``; none is no error.

    Raises:
        ImageError: it is damaged, packed in a way pyvmm does not know, or unpacks to more than
            ``limit`` bytes.
    """
    wrappings: list[str] = []
    while True:
        file.seek(0)
        head = file.read(ZBOOT.size)
        file.seek(0)
        _refuse_foreign(head, name)
        if is_zboot(head):
            kind, payload = _zboot_payload(file, head, name)
            wrapping, unpack = f"EFI zboot, {kind}", UNPACK[kind]
        elif packed := _method(head):
            payload, wrapping, unpack = file, packed, UNPACK[packed]
        else:
            return Unwrapped(file, tuple(wrappings))
        if len(wrappings) == LAYERS:
            raise ImageError(f"{name} is packed more than {LAYERS} times over")
        file = _collect(unpack(payload), name, wrapping, limit)
        wrappings.append(wrapping)


def is_zboot(head: bytes) -> bool:
    """Whether that is the beginning of an EFI zboot image."""
    return (head[:2], head[4:8]) == ZBOOT_MAGIC


def _method(head: bytes) -> str | None:
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def _refuse_foreign(head: bytes, name: str) -> None:
    for magic, what, tool in FOREIGN:
        if head.startswith(magic):
            raise ImageError(
                f"{name} is compressed with {what}; pyvmm unpacks {' and '.join(UNPACK)}",
                hint=f"{tool} it",
            )


def _zboot_payload(file: BinaryIO, head: bytes, name: str) -> tuple[str, BinaryIO]:
    """How a zboot image's payload is packed, and the payload."""
    if len(head) < ZBOOT.size:
        raise ImageError(f"{name} is truncated: an EFI zboot image of {len(head)} bytes")
    _, _, offset, size, field = ZBOOT.unpack(head)
    # "zstd22" is what Linux before v6.14 calls zstd
    kind = field.partition(b"\0")[0].decode("ascii", "replace").replace("zstd22", "zstd")
    if kind not in UNPACK:
        raise ImageError(
            f"{name} is an EFI zboot image packed with {kind!r}; pyvmm unpacks "
            f"{' and '.join(UNPACK)}",
            hint="take the Image it was made from (arch/arm64/boot/Image)",
        )
    length = file.seek(0, io.SEEK_END)
    if offset < ZBOOT.size or offset + size > length:
        raise ImageError(
            f"{name} is damaged: its EFI zboot header has {size:#x} bytes of payload at "
            f"{offset:#x}, the file has {length:#x}"
        )
    file.seek(offset)
    return kind, io.BytesIO(file.read(size))


def _collect(chunks: Iterator[bytes], name: str, wrapping: str, limit: int) -> BinaryIO:
    """Gather what a packed image holds."""
    image = io.BytesIO()
    try:
        for chunk in chunks:
            image.write(chunk)
            if image.tell() > limit:
                raise ImageError(
                    f"{name} ({wrapping}) unpacks to more than the {limit // MIB} MiB of RAM",
                    hint="use a larger -m",
                )
    except (zlib.error, zstd.ZstdError) as error:
        raise ImageError(f"{name} ({wrapping}) is truncated or damaged: {error}") from error
    if not image.tell():
        raise ImageError(f"{name} ({wrapping}) holds nothing")
    return image


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Unpack the first member; what follows it is not looked at."""
    member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    while data := file.read(CHUNK):
        full = False
        while data or full:
            out = member.decompress(data, CHUNK)
            yield out
            if member.eof:
                return
            data = member.unconsumed_tail
            full = len(out) == CHUNK  # then there may be more without more input
    raise zlib.error("it ends in the middle")


MAGIC = {b"\x1f\x8b\x08": "gzip", zstd.MAGIC: "zstd"}
UNPACK: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "gzip": _gunzip,
    "zstd": zstd.decompress,
}
