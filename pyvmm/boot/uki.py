"""Read a unified kernel image (UKI): an EFI program with a kernel and what it boots with.

Its stub would pass the parts to the kernel by EFI, which pyvmm's machine lacks. pyvmm takes the
parts from the file: `.linux`, `.initrd` and `.cmdline`. It shows `.osrel` and `.uname`, and makes
the device tree itself. Of several profiles it boots the first, as the stub does.

Source: UAPI.5, "Unified Kernel Image"; Microsoft, PE Format.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

from pyvmm.base.records import Record
from pyvmm.errors import ImageError

PE_OFFSET = 0x3C  # in the file: the offset of the PE header
# PE\0\0, the machine, the number of sections, and the size of the optional header after this one
HEADER = struct.Struct("<4sHH12xH2x")
MAGIC, ARM64 = b"PE\0\0", 0xAA64
# A section's name, its size in memory, its address, its size and offset in the file
SECTION = struct.Struct("<8s4I16x")


class Uki(Record):
    """The parts of a unified kernel image that pyvmm uses."""

    linux: BinaryIO
    initrd: BinaryIO | None
    cmdline: str
    details: tuple[str, ...]  # its system, as text for a person


def read_uki(file: BinaryIO, name: str) -> Uki | None:
    """Return the parts of a UKI for arm64, or None for any other file.

    Raises: ImageError, for a damaged one.
    """
    sections = _read_sections(file, name)
    if b".linux" not in sections:
        return None
    initrd = sections.get(b".initrd")
    cmdline = _text(sections.get(b".cmdline", b""))
    details = [_system(sections)]
    if cmdline:
        details.append(f"its command line is {cmdline}")
    if b".dtb" in sections:
        details.append("its device tree is not used: pyvmm makes one for the machine")
    return Uki(
        io.BytesIO(sections[b".linux"]),
        io.BytesIO(initrd) if initrd else None,
        cmdline,
        tuple(filter(None, details)),
    )


def _read_sections(file: BinaryIO, name: str) -> dict[bytes, bytes]:
    """Return the sections of the first profile that belong to a UKI, by their names."""
    file.seek(PE_OFFSET)
    at = int.from_bytes(file.read(4), "little")
    file.seek(at)
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        return {}
    magic, machine, count, optional = HEADER.unpack(head)
    if (magic, machine) != (MAGIC, ARM64):
        return {}
    file.seek(at + HEADER.size + optional)
    table = file.read(count * SECTION.size)
    found: dict[bytes, tuple[int, int]] = {}
    profiles = 0
    for entry in SECTION.iter_unpack(table[: len(table) // SECTION.size * SECTION.size]):
        field, virtual, _, raw, offset = entry
        section = field.rstrip(b"\0")
        profiles += section == b".profile"
        if profiles == 2:
            break
        if section in USED:
            found[section] = offset, min(virtual or raw, raw)
    return {section: _read(file, section, *place, name) for section, place in found.items()}


def _read(file: BinaryIO, section: bytes, offset: int, length: int, name: str) -> bytes:
    file.seek(offset)
    content = file.read(length)
    if len(content) < length:
        raise ImageError(
            f"{name} is truncated: section {section.decode()} ends at byte {offset + length:#x}, "
            f"the file at {file.seek(0, io.SEEK_END):#x}"
        )
    return content


USED = frozenset((b".linux", b".initrd", b".cmdline", b".osrel", b".uname", b".dtb"))


def _system(sections: dict[bytes, bytes]) -> str:
    """Return the name of the operating system in a UKI, and its kernel's version."""
    fields = {}
    for line in sections.get(b".osrel", b"").splitlines():
        key, _, value = _text(line).partition("=")
        fields[key] = value.strip("\"'")
    system = fields.get("PRETTY_NAME") or fields.get("NAME", "")
    release = _text(sections.get(b".uname", b""))
    return ", ".join(filter(None, (system, release and f"Linux {release}")))


def _text(data: bytes) -> str:
    """Decode text; what cannot be printed becomes spaces, as in the stub."""
    text = data.decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
