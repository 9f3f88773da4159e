"""Read a unified kernel image (UKI): an EFI program with a kernel, its initrd and its parameters.

Its stub would pass the parts to the kernel by EFI, which pyvmm's machine lacks. pyvmm takes the
parts from the file: `.linux`, `.initrd` and `.cmdline`. pyvmm shows `.osrel` and `.uname`, and
makes the device tree itself. If there are several profiles, pyvmm boots the first one, as the stub
does.

Source: UAPI.5, "Unified Kernel Image".
"""

from __future__ import annotations

import io
from typing import BinaryIO

from pyvmm.base.records import Record
from pyvmm.boot import pe
from pyvmm.errors import DamagedImage

USED = frozenset((b".linux", b".initrd", b".cmdline", b".osrel", b".uname", b".dtb"))


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
    if pe.read_machine(file) != pe.ARM64:
        return {}
    found: dict[bytes, tuple[int, int]] = {}
    profiles = 0
    for section, memory, size, offset in pe.read_sections(file):
        profiles += section == b".profile"
        if profiles == 2:
            break
        if section in USED:
            found[section] = offset, min(memory or size, size)
    return {section: _read(file, section, *place, name) for section, place in found.items()}


def _read(file: BinaryIO, section: bytes, offset: int, length: int, name: str) -> bytes:
    file.seek(offset)
    content = file.read(length)
    if len(content) < length:
        raise DamagedImage(
            f"{name} is truncated: section {section.decode()} ends at byte {offset + length:#x}, "
            f"the file at {file.seek(0, io.SEEK_END):#x}"
        )
    return content


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
    """Decode text, with spaces for unprintable characters, as the stub does."""
    text = data.decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
