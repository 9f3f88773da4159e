"""The headers of PE files: EFI programs, and arm64 Linux Images.

Source: Microsoft, PE Format.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO

DOS_MAGIC, MAGIC = b"MZ", b"PE\0\0"
OFFSET = struct.Struct("<60xI")  # of the PE header
# "PE", Machine, NumberOfSections; SizeOfOptionalHeader
HEADER = struct.Struct("<4s2H12xH2x")
# Name, VirtualSize, VirtualAddress, SizeOfRawData, PointerToRawData
SECTION = struct.Struct("<8s4I16x")

ARM64 = 0xAA64
MACHINES = {ARM64: "AArch64", 0x8664: "x86-64", 0x14C: "32-bit x86", 0x5064: "RISC-V",
            0x6264: "LoongArch", 0x1C2: "32-bit Arm"}  # fmt: skip


def read_machine(file: BinaryIO) -> int | None:
    """Return the number of the machine that a PE file is for; None for any other file."""
    found = _read_header(file)
    return None if found is None else found[0]


def raw_end(file: BinaryIO) -> tuple[str, int]:
    """Return which part of a PE file reaches furthest, and where it ends; 0 for any other file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(OFFSET.size)
    at = OFFSET.unpack(head)[0] if len(head) == OFFSET.size and head.startswith(DOS_MAGIC) else 0
    if at and at + HEADER.size > size:
        return "EFI header ends", at + HEADER.size
    found = _read_header(file)
    if found is None:
        return "EFI header ends", 0
    table = file.tell() + found[1] * SECTION.size
    if table > size:
        return "EFI header ends", table
    ends = (offset + size for _, _, size, offset in read_sections(file) if size)
    return "sections end", max(ends, default=0)


def read_sections(file: BinaryIO) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield each section's name, its size in memory, and its size and offset in the file.

    A file that is no PE file has none.
    """
    found = _read_header(file)
    if found is None:
        return
    _, count = found
    table = file.read(count * SECTION.size)
    table = table[: len(table) // SECTION.size * SECTION.size]
    for name, memory, _, size, offset in SECTION.iter_unpack(table):
        yield name.rstrip(b"\0"), memory, size, offset


def _read_header(file: BinaryIO) -> tuple[int, int] | None:
    """Return the machine and the number of sections; leave the position at the section table."""
    file.seek(0)
    head = file.read(OFFSET.size)
    if len(head) < OFFSET.size or not head.startswith(DOS_MAGIC):
        return None
    file.seek(OFFSET.unpack(head)[0])
    header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        return None
    _, machine, count, optional = HEADER.unpack(header)
    file.seek(optional, 1)
    return machine, count
