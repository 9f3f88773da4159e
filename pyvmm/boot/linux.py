"""The header of an arm64 Linux Image: its address, and the CPU that it needs.

Source: Linux, Documentation/arch/arm64/booting.rst, "Call the kernel image".
"""

from __future__ import annotations

import io
import struct
from enum import IntEnum
from typing import BinaryIO

from pyvmm.arm64.bits import Bits, bit, bits
from pyvmm.base.records import Record
from pyvmm.boot import pe
from pyvmm.errors import DamagedImage, HostError
from pyvmm.layout import KERNEL_OFFSET, KIB

MAGIC = b"ARM\x64"
MAGIC_OFFSET = 56
PAGE = 4 * KIB  # the kernel's code must start at a page
HEADER_SIZE = 64
_HEADER = struct.Struct("<8xQQQ")  # two instructions, text_offset, image_size, flags


class PageSize(IntEnum):
    """The page size that the kernel was built for."""

    UNSPECIFIED = 0
    KIB_4 = 1
    KIB_16 = 2
    KIB_64 = 3


class Flags(Bits):
    """The flags of the header."""

    PLACEMENT = bit(3, "may lie anywhere in memory, not only near the start of RAM")
    PAGE_SIZE = bits(2, 1, "page size", PageSize)
    BIG_ENDIAN = bit(0, "runs big-endian")


class LinuxHeader(Record):
    """A kernel's offset from the start of RAM, its size in memory, and its flags."""

    text_offset: int
    image_size: int
    flags: Flags


def is_linux(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` is an arm64 Linux Image."""
    return head.startswith(MAGIC, MAGIC_OFFSET)


def read_header(head: bytes, name: str) -> LinuxHeader:
    """Read the header of the Image called ``name``.

    Raises:
        ImageError: no kernel has such a text_offset.
    """
    text_offset, image_size, flags = _HEADER.unpack_from(head)
    if image_size == 0:  # Linux before v3.17
        text_offset = KERNEL_OFFSET
    if text_offset % PAGE:
        raise DamagedImage(
            f"{name} is damaged: its text_offset is {text_offset:#x}, not a multiple of {PAGE:#x}"
        )
    return LinuxHeader(text_offset, image_size, Flags(flags))


def check_whole(file: BinaryIO, name: str) -> None:
    """Refuse an Image that ends before its EFI header, or before the sections that this names.

    image_size cannot show this: it includes .bss, which is not in the file. An Image without the
    EFI header cannot be checked.

    Raises: ImageError.
    """
    (part, expected), size = pe.raw_end(file), file.seek(0, io.SEEK_END)
    if size < expected:
        raise DamagedImage(
            f"{name} is truncated: its {part} at byte {expected:#x}, the file at {size:#x}"
        )


# ID_AA64MMFR0_EL1: the shifts of TGran4, TGran16 and TGran64 with their values for "not supported",
# and the shift of BigEnd. Importing arm64/idregs.py takes longer than all other work on an Image.
# Source: Arm ARM DDI 0487, ID_AA64MMFR0_EL1
TGRAN = {PageSize.KIB_4: (28, 0xF), PageSize.KIB_16: (20, 0), PageSize.KIB_64: (24, 0xF)}
BIGEND = 8


def check_cpu(flags: Flags, id_aa64mmfr0: int, name: str) -> None:
    """Refuse an image that would hang silently on a CPU with that ID_AA64MMFR0_EL1.

    Raises:
        HostError: the CPU lacks the image's page size or byte order.
    """
    has = {size: id_aa64mmfr0 >> shift & 0xF != no for size, (shift, no) in TGRAN.items()}
    wanted = flags.PAGE_SIZE
    if not has.get(PageSize(wanted), True):
        sizes = [_kib(size) for size, supported in has.items() if supported]
        raise HostError(
            f"{name} was built for pages of {_kib(PageSize(wanted))} KiB, "
            f"this CPU has {' and '.join(sizes)} KiB"
        )
    if flags.BIG_ENDIAN and not id_aa64mmfr0 >> BIGEND & 0xF:
        raise HostError(f"{name} is big-endian, this CPU supports only little-endian")


def _kib(size: PageSize) -> str:
    return size.name.removeprefix("KIB_")
