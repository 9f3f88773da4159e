"""Load the segments of an ELF into guest memory.

An image is untrusted: pyvmm checks its headers before it writes guest memory. No header makes pyvmm
allocate or loop more than the file is long.

pyvmm reads two structures of an ELF, which have a fixed layout. pyelftools would take four times as
long as the rest of a guest's start.

Source: System V ABI, chapters 4 (ELF header) and 5 (program headers); ELF for the Arm 64-bit
Architecture (IHI 0056).
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import BinaryIO

from pyvmm.base.records import Record
from pyvmm.boot.placement import Placed, check_in_ram
from pyvmm.errors import ImageError
from pyvmm.layout import KERNEL_OFFSET
from pyvmm.memory.ram import GuestMemory

# 64-bit little-endian ELF: e_ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff,
# e_flags, e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
HEADER = struct.Struct("<16s2HI3QI6H")
# p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
PROGRAM_HEADER = struct.Struct("<2I6Q")
EI_CLASS, ELFCLASS32, ELFCLASS64 = 4, 1, 2
EI_DATA, ELFDATA2LSB, ELFDATA2MSB = 5, 1, 2
KIND = 16  # the offset of e_type and e_machine in every ELF

EM_AARCH64 = 183
MACHINES = {
    3: "32-bit x86",
    8: "MIPS",
    21: "64-bit PowerPC",
    22: "s390",
    40: "32-bit Arm",
    62: "x86-64",
    EM_AARCH64: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
ET_EXEC, ET_DYN = 2, 3
TYPES = {
    0: "of no type",
    1: "a relocatable object: link it first",
    4: "a core dump",
}
PT_LOAD, PT_INTERP = 1, 3
PN_XNUM = 0xFFFF  # "more program headers than e_phnum can hold"


class Header(Record):
    """The fields of an ELF header that loading needs."""

    type: int
    entry: int
    phoff: int
    phentsize: int
    phnum: int
    shoff: int
    shentsize: int
    shnum: int


class ProgramHeader(Record):
    """A program header: the file's description of one segment."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class Segment(Record):
    """A loadable segment: file bytes from ``offset`` on go to guest physical ``start``."""

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
    """Load an ELF into guest memory; ``name`` is its name in messages.

    Segments go to their physical addresses (p_paddr). The entry point moves with its segment. A
    static PIE goes to the address of a flat image, and relocates itself.

    Raises:
        ImageError: the ELF cannot be loaded. Guest memory is then unchanged.
    """
    size = file.seek(0, 2)
    header = read_header(file, name)
    _check_header(header, name, size)
    headers = read_program_headers(file, header, name)
    if any(item.type == PT_INTERP for item in headers):
        raise ImageError(
            f"{name} is dynamically linked: it needs an interpreter, which a bare machine lacks",
            hint="link it with -static",
        )
    loads = [item for item in headers if item.type == PT_LOAD and item.memsz]
    if not loads:
        raise ImageError(f"{name} has no loadable segment")
    bias = _bias(loads, memory)
    segments = [_segment(item, header.type, bias) for item in loads]
    _check_segments(segments, name, size, memory)
    entry = _entry(header.entry, segments, name)
    for segment in segments:
        _load(segment, file, name, memory)
    return Placed(entry, tuple((segment.start, segment.end) for segment in segments))


def read_header(file: BinaryIO, name: str) -> Header:
    """Read the header of an ELF.

    Raises: ImageError, unless the ELF is for 64-bit little-endian AArch64.
    """
    file.seek(0)
    head = file.read(HEADER.size)
    if len(head) < KIND + 4:
        raise ImageError(f"{name} is truncated: an ELF of {len(head)} bytes")
    size, order = head[EI_CLASS], head[EI_DATA]
    if size not in (ELFCLASS32, ELFCLASS64) or order not in (ELFDATA2LSB, ELFDATA2MSB):
        raise ImageError(f"{name} is damaged: its ELF header has class {size}, encoding {order}")
    _, machine = struct.unpack_from("<2H" if order == ELFDATA2LSB else ">2H", head, KIND)
    if machine != EM_AARCH64:
        raise ImageError(f"{name} is an ELF for {MACHINES.get(machine, machine)}, not AArch64")
    if size != ELFCLASS64:
        raise ImageError(f"{name} is a 32-bit AArch64 ELF (ILP32), which no machine boots")
    if order != ELFDATA2LSB:
        raise ImageError(f"{name} is a big-endian ELF: only little-endian images boot")
    if len(head) < HEADER.size:
        raise ImageError(f"{name} is truncated: an ELF of {len(head)} bytes")
    _, kind, _, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, _ = HEADER.unpack(
        head
    )
    return Header(kind, entry, phoff, phentsize, phnum, shoff, shentsize, shnum)


def read_program_headers(file: BinaryIO, header: Header, name: str) -> list[ProgramHeader]:
    """Read the program headers.

    Raises: ImageError, where the file ends before they do.
    """
    file.seek(header.phoff)
    table = file.read(header.phnum * PROGRAM_HEADER.size)
    if len(table) != header.phnum * PROGRAM_HEADER.size:
        raise ImageError(f"{name} is truncated: it ends within its program headers")
    return [ProgramHeader(kind, *rest) for kind, _, *rest in PROGRAM_HEADER.iter_unpack(table)]


def _check_header(header: Header, name: str, size: int) -> None:
    """Refuse an ELF that is not an executable, or ends before its tables do."""
    if header.type not in (ET_EXEC, ET_DYN):
        kind = TYPES.get(header.type, f"of type {header.type:#x}")
        raise ImageError(f"{name} is not an executable but {kind}")
    if header.phnum in (0, PN_XNUM) or header.phentsize != PROGRAM_HEADER.size:
        raise ImageError(
            f"{name} is damaged: {header.phnum} program headers of {header.phentsize} bytes"
        )
    tables = (
        ("program headers", header.phoff, header.phnum * header.phentsize),
        ("section headers", header.shoff, header.shnum * header.shentsize),
    )
    for table, offset, length in tables:
        end = offset + length
        if offset and end > size:
            raise ImageError(
                f"{name} is truncated: its {table} end at byte {end:#x}, the file at {size:#x}"
            )


def _segment(header: ProgramHeader, kind: int, bias: int) -> Segment:
    # Position-independent code keeps the distances between its virtual addresses.
    start = header.vaddr + bias if kind == ET_DYN else header.paddr
    return Segment(header.offset, header.filesz, start, header.memsz, header.vaddr)


def _bias(loads: list[ProgramHeader], memory: GuestMemory) -> int:
    """Return the number to add to the addresses of a position-independent image."""
    align = max(1, *(item.align for item in loads))
    return -(-(memory.base + KERNEL_OFFSET) // align) * align


def _check_segments(segments: list[Segment], name: str, size: int, memory: GuestMemory) -> None:
    """Refuse segments that lie outside the file or RAM, or overlap."""
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
    """Return the guest physical address of the entry point."""
    for segment in segments:
        if segment.vaddr <= entry < segment.vaddr + segment.filesz:
            if entry % 4:
                raise ImageError(f"{name}: its entry point {entry:#x} is not a multiple of 4")
            return entry - segment.vaddr + segment.start
    raise ImageError(f"{name}: its entry point {entry:#x} is in none of its segments")


def _load(segment: Segment, file: BinaryIO, name: str, memory: GuestMemory) -> None:
    loaded = memory.load_from(segment.start, segment.filesz, file, segment.offset)
    if loaded != segment.filesz:
        raise ImageError(f"{name} shrank while pyvmm loaded it")
    memory.zero(segment.start + segment.filesz, segment.memsz - segment.filesz)
