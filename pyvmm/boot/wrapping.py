"""Unpack images: the formats of packings.py, and Linux's EFI zboot.

A file's first bytes identify its format. pyvmm unpacks it into memory of its own, up to the guest's
RAM size: a small file cannot make it allocate more.

Source: Linux, drivers/firmware/efi/libstub/zboot-header.S.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pyvmm.boot.magics import HEAD, refuse, refuse_as_initrd
from pyvmm.boot.packings import PACKINGS, Damaged, packing_of, unpack
from pyvmm.errors import DamagedImage, HostError, ImageError
from pyvmm.layout import MIB

LAYERS = 2  # a zboot image in a .gz exists, a third layer does not

# The head of a zboot image: MZ, "zimg", the payload's offset and size, reserved, its compression.
ZBOOT = struct.Struct("<2s2x4sII8x32s")
ZBOOT_MAGIC = (b"MZ", b"zimg")
# Kinds of zboot whose packing has another name in PACKINGS; Linux before v6.14 calls zstd "zstd22"
ZBOOT_KINDS = {"zstd22": "zstd", "xzkern": "xz"}


def unwrap(
    file: BinaryIO, name: str, limit: int, log: Callable[[str], None]
) -> tuple[BinaryIO, tuple[str, ...]]:
    """Unpack the image in ``file``, and list its wrappings, the outermost first.

    ``name`` is the image's name in messages. An image that is not packed is returned as it is.
    ``log`` gets a line about bytes that are not used.

    Raises:
        ImageError: it is damaged, packed in a way pyvmm does not know, or unpacks to more than
            ``limit`` bytes.
        HostError: this machine lacks the library that unpacks it.
    """
    wrappings: list[str] = []
    while True:
        file.seek(0)
        head = file.read(ZBOOT.size)
        if _is_zboot(head):
            kind, payload = _zboot_payload(file, head, name)
            wrapping = f"EFI zboot, {kind}"
        elif packed := packing_of(file):
            payload, wrapping, kind = file, packed, packed
            file.seek(0)
        else:
            return file, tuple(wrappings)
        if len(wrappings) == LAYERS:
            raise ImageError(f"{name} is packed more than {LAYERS} times")
        image = _collect(unpack(payload, kind), name, wrapping, limit)
        end = payload.tell()
        rest = payload.seek(0, io.SEEK_END) - end
        if rest and payload is file:  # in a zboot image these bytes are the unpacked size
            log(f"{name}: the last {rest} bytes are not {kind} data, and are not used")
        file = image
        wrappings.append(wrapping)


def check_initrd(file: BinaryIO, name: str) -> None:
    """Refuse an initrd that Linux cannot use, packed or not.

    Raises: ImageError.
    """
    file.seek(0)
    head = file.read(HEAD)
    kind = None if _is_zboot(head) else packing_of(file)
    if kind is not None:
        file.seek(0)
        head = b""
        # The guest reports damage, and may know formats for which this machine lacks a library.
        with contextlib.suppress(Damaged, HostError):
            for chunk in unpack(file, kind):
                head += chunk
                if len(head) >= HEAD:
                    break
    refuse_as_initrd(head, name)


def _is_zboot(head: bytes) -> bool:
    return (head[:2], head[4:8]) == ZBOOT_MAGIC


def _zboot_payload(file: BinaryIO, head: bytes, name: str) -> tuple[str, BinaryIO]:
    """Return the compression of a zboot image's payload, and the payload."""
    if len(head) < ZBOOT.size:
        raise DamagedImage(f"{name} is truncated: an EFI zboot image of {len(head)} bytes")
    _, _, offset, size, field = ZBOOT.unpack(head)
    kind = field.partition(b"\0")[0].decode("ascii", "replace")
    kind = ZBOOT_KINDS.get(kind, kind)
    if kind not in PACKINGS:
        raise ImageError(
            f"{name} is an EFI zboot image packed with {kind!r}; pyvmm unpacks "
            f"{', '.join(PACKINGS)}",
            hint="use the Image that it was made from (arch/arm64/boot/Image)",
        )
    length = file.seek(0, io.SEEK_END)
    if offset < ZBOOT.size or offset + size > length:
        raise DamagedImage(
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
                refuse(image, f"{name} ({wrapping})", 0)
                raise ImageError(
                    f"{name} ({wrapping}) unpacks to more than the {limit // MIB} MiB of RAM",
                    hint="use a larger `memory`",
                )
    except Damaged as error:
        raise DamagedImage(f"{name} ({wrapping}) is truncated or damaged: {error}") from error
    if not image.tell():
        raise ImageError(f"{name} ({wrapping}) is empty")
    return image
