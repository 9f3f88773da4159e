"""Unpack images: gzip, zstd, and Linux's EFI zboot.

A file's first bytes identify its format. pyvmm unpacks it into memory of its own, up to the guest's
RAM size: a small file cannot make it allocate more.

Source: RFC 1952 (gzip); RFC 8878 (zstd); Linux, drivers/firmware/efi/libstub/zboot-header.S.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pyvmm.boot import zstd
from pyvmm.errors import ImageError
from pyvmm.layout import MIB

LAYERS = 2  # a zboot image in a .gz exists, a third layer does not
CHUNK = 1 << 20  # bytes unpacked at a time

# The head of a zboot image: MZ, "zimg", the payload's offset and size, reserved, its compression.
ZBOOT = struct.Struct("<2s2x4sII8x32s")
ZBOOT_MAGIC = (b"MZ", b"zimg")

# Formats that pyvmm does not unpack: (magic, name, the tool that does)
FOREIGN = (
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"\x02\x21\x4c\x18", "lz4", "unlz4"),
)


def unwrap(file: BinaryIO, name: str, limit: int) -> tuple[BinaryIO, tuple[str, ...]]:
    """Unpack the image in ``file``, and list its wrappings, the outermost first.

    ``name`` is the image's name in messages. An image that is not packed is returned as it is.

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
        if _is_zboot(head):
            kind, payload = _zboot_payload(file, head, name)
            wrapping, unpack = f"EFI zboot, {kind}", UNPACK[kind]
        elif packed := _method(head):
            payload, wrapping, unpack = file, packed, UNPACK[packed]
        else:
            return file, tuple(wrappings)
        if len(wrappings) == LAYERS:
            raise ImageError(f"{name} is packed more than {LAYERS} times")
        file = _collect(unpack(payload), name, wrapping, limit)
        wrappings.append(wrapping)


def _is_zboot(head: bytes) -> bool:
    return (head[:2], head[4:8]) == ZBOOT_MAGIC


def _method(head: bytes) -> str | None:
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def _refuse_foreign(head: bytes, name: str) -> None:
    for magic, kind, tool in FOREIGN:
        if head.startswith(magic):
            raise ImageError(
                f"{name} is compressed with {kind}; pyvmm unpacks {' and '.join(UNPACK)}",
                hint=f"{tool} it",
            )


def _zboot_payload(file: BinaryIO, head: bytes, name: str) -> tuple[str, BinaryIO]:
    """Return the compression of a zboot image's payload, and the payload."""
    if len(head) < ZBOOT.size:
        raise ImageError(f"{name} is truncated: an EFI zboot image of {len(head)} bytes")
    _, _, offset, size, field = ZBOOT.unpack(head)
    # Linux before v6.14 calls zstd "zstd22"
    kind = field.partition(b"\0")[0].decode("ascii", "replace").replace("zstd22", "zstd")
    if kind not in UNPACK:
        raise ImageError(
            f"{name} is an EFI zboot image packed with {kind!r}; pyvmm unpacks "
            f"{' and '.join(UNPACK)}",
            hint="use the Image that it was made from (arch/arm64/boot/Image)",
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
    """Join the unpacked chunks of an image."""
    image = io.BytesIO()
    try:
        for chunk in chunks:
            image.write(chunk)
            if image.tell() > limit:
                raise ImageError(
                    f"{name} ({wrapping}) unpacks to more than the {limit // MIB} MiB of RAM",
                    hint="use a larger `memory`",
                )
    except (zlib.error, zstd.ZstdError) as error:
        raise ImageError(f"{name} ({wrapping}) is truncated or damaged: {error}") from error
    if not image.tell():
        raise ImageError(f"{name} ({wrapping}) is empty")
    return image


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Unpack the first member; ignore all that follows."""
    member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    while data := file.read(CHUNK):
        full = False
        while data or full:
            out = member.decompress(data, CHUNK)
            yield out
            if member.eof:
                return
            data = member.unconsumed_tail
            full = len(out) == CHUNK  # more output may follow without input
    raise zlib.error("it ends too early")


MAGIC = {b"\x1f\x8b\x08": "gzip", zstd.MAGIC: "zstd"}
UNPACK: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "gzip": _gunzip,
    "zstd": zstd.decompress,
}
