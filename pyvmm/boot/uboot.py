"""Recognize U-Boot in a file without a magic: by its version string, and by its start code.

U-Boot's build puts a string with its version and its date into every stage. On arm64 the start code
also has four numbers: the address that U-Boot is linked for, and offsets of its end and its .bss.

Source: U-Boot, cmd/version.c and arch/arm/cpu/armv8/start.S.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

from pyvmm.base.records import Record
from pyvmm.errors import ImageError
from pyvmm.layout import MIB

# U-Boot SPL 2025.01-3+deb13u1 (Jun 24 2026 - 09:07:15 +0000)
VERSION = re.compile(
    rb"U-Boot (?:[STV]PL )?20\d\d\.\d\d[ -~]{0,60}? "
    rb"\([A-Z][a-z]{2} \d\d 20\d\d - \d\d:\d\d:\d\d(?: [+-]\d{4})?\)"
)
# _TEXT_BASE, _end_ofs, _bss_start_ofs, _bss_end_ofs
OFFSETS = struct.Struct("<4Q")
START = 0x1000  # bytes: a board's own header may precede the start code
TEXT_ALIGN = 0x100
LARGEST = 16 * MIB  # bytes that are searched


class UBoot(Record):
    """A stage of U-Boot: its version, and the address that an arm64 one is linked for."""

    version: str
    address: int | None


def find(content: bytes) -> UBoot | None:
    """Return the U-Boot in a file; the first one, if there are several."""
    found = VERSION.search(content)
    if found is None:
        return None
    return UBoot(found[0].decode().partition(" (")[0], _address(content))


def _address(content: bytes) -> int | None:
    """Return the address that arm64 start code is linked for."""
    for at in range(8, min(START, len(content) - OFFSETS.size), 8):
        text, end, bss, bss_end = OFFSETS.unpack_from(content, at)
        # Only the device tree follows the end, so U-Boot is most of the file.
        is_size = len(content) // 4 < end <= len(content)
        if not text % TEXT_ALIGN and is_size and bss <= bss_end:
            return int(text)
    return None


def check(file: BinaryIO, name: str, place: int | None) -> str | None:
    """Refuse U-Boot that is linked for another address than ``place``; None accepts every address.

    Returns: a note about any other file with U-Boot's version string: it may be U-Boot for pyvmm.

    Raises: ImageError.
    """
    file.seek(0)
    found = find(file.read(LARGEST))
    if found is None:
        return None
    if found.address is None or place in (None, found.address):
        return (
            f"{name} contains {found.version}. U-Boot for another machine does not run on pyvmm's"
        )
    from pyvmm.boot.magics import FIRMWARE  # imported lazily: only for a refusal

    raise ImageError(
        f"{name} is {found.version}, which is linked for address {found.address:#x}", hint=FIRMWARE
    )
