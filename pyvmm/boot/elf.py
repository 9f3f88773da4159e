"""Loading an ELF: every segment to its place in guest memory.

An image is untrusted: all that its headers say is checked before guest memory is touched, and
nothing in them makes pyvmm allocate or loop more than the file is long.

Source: System V ABI, chapter 5 (program headers); ELF for the Arm 64-bit Architecture (IHI 0056).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from pyvmm.boot.placement import Placed, check_in_ram
from pyvmm.errors import ImageError
from pyvmm.layout import KERNEL_OFFSET
from pyvmm.memory import GuestMemory

MACHINES = {
    "EM_AARCH64": "AArch64",
    "EM_ARM": "32-bit Arm",
    "EM_X86_64": "x86-64",
    "EM_386": "32-bit x86",
    "EM_RISCV": "RISC-V",
    "EM_PPC64": "64-bit PowerPC",
    "EM_S390": "s390",
    "EM_LOONGARCH": "LoongArch",
    "EM_MIPS": "MIPS",
}
TYPES = {
    "ET_REL": "a relocatable object: link it first",
    "ET_CORE": "a core dump",
    "ET_NONE": "of no type",
}
PN_XNUM = 0xFFFF  # "more program headers than e_phnum can hold"


class Segment(NamedTuple):
    """A loadable segment: from the file's ``offset`` on, to guest physical ``start``."""

    offset: int
    filesz: int
    start: int
    memsz: int
    vaddr: int

    @property
    def end(self) -> int:
        """The first guest physical address after it."""
        return self.start + self.memsz

    def __str__(self) -> str:
        return f"the segment at {self.start:#x} to {self.end:#x}"


def load_elf(file: BinaryIO, name: str, memory: GuestMemory) -> Placed:
    """Load an ELF into guest memory; ``name`` is what to call it in messages.

    Segments go to their physical addresses (p_paddr), and the entry point is where its segment
    went; a static PIE goes to where a flat image would, and relocates itself.

    Raises:
        ImageError: it cannot be loaded; guest memory is then as it was.
    """
    size = file.seek(0, 2)
    elf = _parse(file, name)
    _check_header(elf.header, name, size)
    headers = list(_program_headers(elf, name))
    if any(header["p_type"] == "PT_INTERP" for header in headers):
        raise ImageError(
            f"{name} is dynamically linked: it asks for an interpreter, which a bare machine "
            f"does not have",
            hint="link it with -static",
        )
    loads = [header for header in headers if header["p_type"] == "PT_LOAD" and header["p_memsz"]]
    if not loads:
        raise ImageError(f"{name} has no loadable segment")
    bias = _bias(loads, memory)
    segments = [_segment(header, elf.header["e_type"], bias) for header in loads]
    _check_segments(segments, name, size, memory)
    entry = _entry(elf.header["e_entry"], segments, name)
    for segment in segments:
        _load(segment, file, name, memory)
    return Placed(entry, tuple((segment.start, segment.end) for segment in segments))


def _parse(file: BinaryIO, name: str) -> ELFFile:
    # pyelftools answers garbage with whatever its parsing runs into: ELFError, construct's
    # errors, ValueError, KeyError, UnicodeDecodeError and more.
    try:
        return ELFFile(file)
    except Exception as error:
        raise ImageError(f"{name} is truncated or damaged: its ELF header ({error})") from error


def _program_headers(elf: ELFFile, name: str) -> Iterator[Any]:
    # Not iter_segments(): it also reads the sections behind PT_DYNAMIC, however many those claim.
    for index in range(elf.header["e_phnum"]):
        offset = elf.header["e_phoff"] + index * elf.header["e_phentsize"]
        try:
            yield struct_parse(elf.structs.Elf_Phdr, elf.stream, stream_pos=offset)
        except Exception as error:
            raise ImageError(f"{name} is damaged: program header {index} ({error})") from error


def _check_header(header: Any, name: str, size: int) -> None:
    """Refuse an ELF that is for something else, or whose tables are not all in the file."""
    machine = header["e_machine"]
    if machine != "EM_AARCH64":
        raise ImageError(f"{name} is an ELF for {MACHINES.get(machine, machine)}, not AArch64")
    if header["e_ident"]["EI_CLASS"] != "ELFCLASS64":
        raise ImageError(f"{name} is a 32-bit AArch64 ELF (ILP32), which no machine boots")
    if header["e_ident"]["EI_DATA"] != "ELFDATA2LSB":
        raise ImageError(f"{name} is a big-endian ELF: only little-endian images boot")
    kind = header["e_type"]
    if kind not in ("ET_EXEC", "ET_DYN"):
        raise ImageError(f"{name} is not an executable but {TYPES.get(kind, kind)}")
    if header["e_phnum"] == 0 or header["e_phnum"] == PN_XNUM or header["e_phentsize"] != 56:
        raise ImageError(
            f"{name} is damaged: {header['e_phnum']} program headers of "
            f"{header['e_phentsize']} bytes"
        )
    tables = (
        ("program headers", "e_phoff", header["e_phnum"] * header["e_phentsize"]),
        ("section headers", "e_shoff", header["e_shnum"] * header["e_shentsize"]),
    )
    for table, offset, length in tables:
        end = header[offset] + length
        if header[offset] and end > size:
            raise ImageError(
                f"{name} is truncated: its {table} end at byte {end:#x}, the file at {size:#x}"
            )


def _segment(header: Any, kind: str, bias: int) -> Segment:
    # Position-independent code keeps the distances between its virtual addresses.
    start = header["p_vaddr"] + bias if kind == "ET_DYN" else header["p_paddr"]
    return Segment(
        header["p_offset"], header["p_filesz"], start, header["p_memsz"], header["p_vaddr"]
    )


def _bias(loads: list[Any], memory: GuestMemory) -> int:
    """What to add to the addresses of a position-independent image."""
    align = max(1, *(int(header["p_align"]) for header in loads))
    return -(-(memory.base + KERNEL_OFFSET) // align) * align


def _check_segments(segments: list[Segment], name: str, size: int, memory: GuestMemory) -> None:
    """Refuse segments that are not in the file, not in RAM, or in each other's way."""
    for segment in segments:
        if segment.filesz > segment.memsz:
            raise ImageError(
                f"{name} is damaged: {segment} has {segment.filesz:#x} bytes in the file"
            )
        if segment.offset + segment.filesz > size:
            raise ImageError(
                f"{name} is truncated: {segment} ends at byte "
                f"{segment.offset + segment.filesz:#x} of the file, the file at {size:#x}"
            )
        check_in_ram(f"a segment of {name}", segment.start, segment.memsz, memory)
    ordered = sorted(segments, key=lambda segment: segment.start)
    for first, second in pairwise(ordered):
        if second.start < first.end:
            raise ImageError(f"{name}: {first} overlaps {second}")


def _entry(entry: int, segments: list[Segment], name: str) -> int:
    """The guest physical address of the entry point."""
    for segment in segments:
        if segment.vaddr <= entry < segment.vaddr + segment.filesz:
            if entry % 4:
                raise ImageError(f"{name}: its entry point {entry:#x} is not a multiple of 4")
            return entry - segment.vaddr + segment.start
    raise ImageError(f"{name}: its entry point {entry:#x} is in none of its segments")


def _load(segment: Segment, file: BinaryIO, name: str, memory: GuestMemory) -> None:
    came = memory.load_from(segment.start, segment.filesz, file, segment.offset)
    if came != segment.filesz:
        raise ImageError(f"{name} became shorter while it was loaded")
    memory.zero(segment.start + segment.filesz, segment.memsz - segment.filesz)
