"""Load the segments of an ELF into guest memory.

An ELF is one of these:

 - linked into RAM: each segment goes to its physical address (p_paddr).
 - a Linux vmlinux: its first segment begins with the header of an arm64 Image. Its segments are
   that Image, as objcopy would cut it out, and go to the Image's place.
 - position-independent (ET_DYN) and linked elsewhere: it goes to the place of a flat binary. The
   guest applies the relocations: pyvmm cannot know whether its start code does that, and
   applying them twice may be wrong.

An image is untrusted: pyvmm checks its headers before it writes guest memory. No header makes pyvmm
allocate more bytes than the file has, or loop more often.

pyvmm reads three structures of an ELF, which have a fixed layout. pyelftools would take four times
as long as the rest of a guest's start.

Source: System V ABI, chapters 4 (ELF header) and 5 (program headers, notes); ELF for the Arm 64-bit
Architecture (IHI 0056); Linux Standard Base, "Executable ABI" (.note.ABI-tag).
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import BinaryIO

from pyvmm import layout
from pyvmm.base.records import Record
from pyvmm.boot import linux
from pyvmm.boot.linux import Flags, LinuxHeader
from pyvmm.boot.placement import Placed, check_in_ram
from pyvmm.errors import DamagedImage, ImageError
from pyvmm.memory.ram import GuestMemory

# 64-bit ELF: e_ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize,
# e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
HEADER, HEADER_SIZE = "16s2HI3QI6H", 64
# p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
PROGRAM_HEADER, PROGRAM_HEADER_SIZE = "2I6Q", 56
# A note: n_namesz, n_descsz, n_type; then name and description, each padded to 4 bytes
NOTE, NOTE_SIZE = "3I", 12
EI_CLASS, ELFCLASS32, ELFCLASS64 = 4, 1, 2
EI_DATA = 5
LITTLE, BIG = "<", ">"
ORDERS = {1: LITTLE, 2: BIG}  # ELFDATA2LSB, ELFDATA2MSB -> the struct module's names
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
    1: "a relocatable object",
    4: "a core dump",
}
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PN_XNUM = 0xFFFF  # "more program headers than e_phnum can hold"
SHORT = 1024  # bytes of an interpreter's name or of notes that pyvmm reads

# The first note of a program for Linux: its name, NT_GNU_ABI_TAG, and the first word of its
# description.
ABI_TAG, LINUX_ABI = (b"GNU\0", 1), 0
# What to do next
SHOW = "`readelf -lW` lists the segments"
LINK = "link it to an executable: `ld -o FILE`"
START = "link it with `-e SYMBOL`, the symbol of its first instruction"
# Source: QEMU, hw/arm/virt.c, base_memmap
QEMU_RAM = 0x4000_0000
# Dynamic loaders of Linux: glibc's, musl's, Android's
LINUX_LOADERS = ("/ld-linux", "/ld-musl", "/linker")


class Header(Record):
    """The fields of an ELF header that loading needs, and its byte order."""

    order: str
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
    paddr: int  # where it was linked to run; ``start`` may differ

    @property
    def end(self) -> int:
        """The first guest physical address after it."""
        return self.start + self.memsz

    def __str__(self) -> str:
        return f"the segment at {self.start:#x} to {self.end:#x}"


def load_elf(file: BinaryIO, name: str, memory: GuestMemory) -> Placed:
    """Load an ELF into guest memory; ``name`` is its name in messages.

    Bytes of the file win over another segment's zeros.

    Raises:
        ImageError: the ELF cannot be loaded. Guest memory is then unchanged.
    """
    size = file.seek(0, 2)
    header = read_header(file, name)
    _check_header(header, name, size)
    headers = read_program_headers(file, header, name)
    _refuse_linux_program(file, header.order, headers, name)
    segments = [
        Segment(item.offset, item.filesz, item.paddr, item.memsz, item.vaddr, item.paddr)
        for item in headers
        if item.type == PT_LOAD and item.memsz
    ]
    if not segments:
        raise ImageError(
            f"{name} has no loadable segment", hint="link code and data into segments (PT_LOAD)"
        )
    _check_in_file(segments, name, size)
    flags = Flags.of(BIG_ENDIAN=header.order == BIG)
    details: tuple[str, ...] = ()
    if not all(memory.contains(segment.start, segment.memsz) for segment in segments):
        image = _image_header(file, segments, name)
        if image is not None:
            return _load_image(image, segments, file, name, memory)
        if header.type == ET_DYN:
            segments, details = _move(segments, headers, memory)
    _check_in_ram(segments, name, memory)
    _check_overlap(segments, name)
    entry = _entry(header.entry, segments, name)
    for segment in segments:
        memory.zero(segment.start + segment.filesz, segment.memsz - segment.filesz)
    _load(segments, file, name, memory)
    ranges = tuple((segment.start, segment.end) for segment in segments)
    return Placed("ELF", entry, ranges, flags, details)


def read_header(file: BinaryIO, name: str) -> Header:
    """Read the header of an ELF.

    Raises: ImageError, unless the ELF is for 64-bit AArch64.
    """
    file.seek(0)
    head = file.read(HEADER_SIZE)
    if len(head) < KIND + 4:
        raise DamagedImage(f"{name} is truncated: an ELF of {len(head)} bytes")
    size, order = head[EI_CLASS], ORDERS.get(head[EI_DATA])
    if size not in (ELFCLASS32, ELFCLASS64) or order is None:
        raise DamagedImage(
            f"{name} is damaged: its ELF header has class {size}, encoding {head[EI_DATA]}"
        )
    _, machine = struct.unpack_from(f"{order}2H", head, KIND)
    if machine != EM_AARCH64:
        raise ImageError(
            f"{name} is an ELF for {MACHINES.get(machine, machine)}, not AArch64",
            hint="use a kernel for arm64",
        )
    if size != ELFCLASS64:
        raise ImageError(
            f"{name} is a 32-bit AArch64 ELF (ILP32), which no machine boots",
            hint="build it with -mabi=lp64",
        )
    if len(head) < HEADER_SIZE:
        raise DamagedImage(f"{name} is truncated: an ELF of {len(head)} bytes")
    _, kind, _, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, _ = struct.unpack(
        order + HEADER, head
    )
    return Header(order, kind, entry, phoff, phentsize, phnum, shoff, shentsize, shnum)


def read_program_headers(file: BinaryIO, header: Header, name: str) -> list[ProgramHeader]:
    """Read the program headers.

    Raises: ImageError, where the file ends before they do.
    """
    file.seek(header.phoff)
    table = file.read(header.phnum * PROGRAM_HEADER_SIZE)
    if len(table) != header.phnum * PROGRAM_HEADER_SIZE:
        raise DamagedImage(f"{name} is truncated: it ends within its program headers")
    entries = struct.iter_unpack(header.order + PROGRAM_HEADER, table)
    return [ProgramHeader(kind, *rest) for kind, _, *rest in entries]


def _check_header(header: Header, name: str, size: int) -> None:
    """Refuse an ELF that is not an executable, or ends before its tables do."""
    if header.type not in (ET_EXEC, ET_DYN):
        kind = TYPES.get(header.type, f"of type {header.type:#x}")
        raise ImageError(f"{name} is not an executable but {kind}", hint=LINK)
    if header.phnum in (0, PN_XNUM) or header.phentsize != PROGRAM_HEADER_SIZE:
        raise DamagedImage(
            f"{name} is damaged: {header.phnum} program headers of {header.phentsize} bytes"
        )
    tables = (
        ("program headers", header.phoff, header.phnum * header.phentsize),
        ("section headers", header.shoff, header.shnum * header.shentsize),
    )
    for table, offset, length in tables:
        end = offset + length
        if offset and end > size:
            raise DamagedImage(
                f"{name} is truncated: its {table} end at byte {end:#x}, the file at {size:#x}"
            )


def _refuse_linux_program(
    file: BinaryIO, order: str, headers: list[ProgramHeader], name: str
) -> None:
    """Refuse programs that an operating system runs."""
    for item in headers:
        if item.type == PT_INTERP:
            loader = _content(file, item).partition(b"\0")[0].decode("ascii", "backslashreplace")
            why = f"it needs the dynamic loader {loader!r}"
            if not any(part in loader for part in LINUX_LOADERS):
                raise ImageError(
                    f"{name}: {why}, which a bare machine lacks",
                    hint="link it with -static -nostdlib",
                )
        elif item.type == PT_NOTE and _has_abi_tag(_content(file, item), order):
            why = "its .note.ABI-tag says so"
        else:
            continue
        raise ImageError(
            f"{name} is a program for Linux, not a kernel: {why}",
            hint="run it from an initrd, or link a bare-metal one with -static -nostdlib",
        )


def _content(file: BinaryIO, header: ProgramHeader) -> bytes:
    """Return a segment's first bytes in the file; fewer where the file ends."""
    if header.offset > file.seek(0, 2):
        return b""
    file.seek(header.offset)
    return file.read(min(header.filesz, SHORT))


def _has_abi_tag(notes: bytes, order: str) -> bool:
    """Return whether one of the notes names Linux as the program's operating system."""
    at = 0
    while at + NOTE_SIZE <= len(notes):
        namesz, descsz, kind = struct.unpack_from(order + NOTE, notes, at)
        name = notes[at + NOTE_SIZE :][:namesz]
        desc = at + NOTE_SIZE + (namesz + 3) // 4 * 4
        if (name, kind) == ABI_TAG and desc + 4 <= len(notes):
            return bool(struct.unpack_from(f"{order}I", notes, desc)[0] == LINUX_ABI)
        at = desc + (descsz + 3) // 4 * 4
    return False


def _check_in_file(segments: list[Segment], name: str, size: int) -> None:
    """Refuse segments that lie outside the file."""
    for segment in segments:
        if segment.filesz > segment.memsz:
            raise DamagedImage(
                f"{name} is damaged: {segment} has {segment.filesz:#x} bytes in the file"
            )
        if segment.offset + segment.filesz > size:
            raise DamagedImage(
                f"{name} is truncated: {segment} ends at byte "
                f"{segment.offset + segment.filesz:#x} of the file, the file at {size:#x}"
            )


def _check_in_ram(segments: list[Segment], name: str, memory: GuestMemory) -> None:
    """Refuse segments that lie outside RAM."""
    for segment in segments:
        if QEMU_RAM <= segment.start < layout.RAM_BASE:
            raise ImageError(
                f"{name} was built for QEMU's virt machine, whose RAM starts at {QEMU_RAM:#x}: "
                f"it has {segment}",
                hint=f"link it to run at {memory.base + layout.KERNEL_OFFSET:#x}, and use the UART "
                f"at {layout.UART.base:#x}",
            )
    for segment in segments:
        check_in_ram(f"a segment of {name}", segment.start, segment.memsz, memory)


def _check_overlap(segments: list[Segment], name: str) -> None:
    """Refuse segments that claim one address for two bytes of the file."""
    filled = sorted((item for item in segments if item.filesz), key=lambda item: item.start)
    for first, second in pairwise(filled):
        if second.start < first.start + first.filesz:
            raise ImageError(
                f"{name}: {first} overlaps {second}",
                hint=f"{SHOW}; give each segment physical addresses of its own (AT) in the "
                "linker script",
            )


def _image_header(file: BinaryIO, segments: list[Segment], name: str) -> LinuxHeader | None:
    """Return the header of the Linux Image that an ELF's first segment begins with."""
    first = min(segments, key=lambda item: item.paddr)
    file.seek(first.offset)
    head = file.read(min(first.filesz, linux.HEADER_SIZE))
    return linux.read_header(head, name) if linux.is_linux(head) else None


def _load_image(
    header: LinuxHeader, segments: list[Segment], file: BinaryIO, name: str, memory: GuestMemory
) -> Placed:
    """Load a vmlinux as the Image that it contains."""
    start = memory.base + header.text_offset
    bias = start - min(segment.paddr for segment in segments)
    moved = [segment.replace(start=segment.paddr + bias) for segment in segments]
    end = max(start + header.image_size, *(segment.end for segment in moved))
    check_in_ram(f"the Image in {name}", start, end - start, memory)
    _check_overlap(moved, name)
    memory.zero(start, end - start)
    _load(moved, file, name, memory)
    return Placed("vmlinux", start, ((start, end),), header.flags)


def _move(
    segments: list[Segment], headers: list[ProgramHeader], memory: GuestMemory
) -> tuple[list[Segment], tuple[str, ...]]:
    """Move position-independent segments to the address of a flat binary.

    The distances between their virtual addresses stay. Returns: the segments, and lines that
    describe the move.
    """
    align = max(1, *(item.align for item in headers if item.type == PT_LOAD))
    lowest = min(segment.vaddr for segment in segments)
    bias = -(-(memory.base + layout.KERNEL_OFFSET - lowest) // align) * align
    moved = [segment.replace(start=segment.vaddr + bias) for segment in segments]
    return moved, (f"moved from {lowest:#x} to {lowest + bias:#x}: it must relocate itself",)


def _entry(entry: int, segments: list[Segment], name: str) -> int:
    """Return the guest physical address of the entry point.

    It is a virtual address. Kernels that run at high virtual addresses use a physical one too.
    """
    for linked in ("vaddr", "paddr"):
        for segment in segments:
            offset = entry - getattr(segment, linked)
            if not 0 <= offset < segment.filesz:
                continue
            if entry % 4:
                raise ImageError(
                    f"{name}: its entry point {entry:#x} is not a multiple of 4", hint=START
                )
            return segment.start + int(offset)
    raise ImageError(
        f"{name}: its entry point {entry:#x} is in none of its segments", hint=f"{SHOW}; {START}"
    )


def _load(segments: list[Segment], file: BinaryIO, name: str, memory: GuestMemory) -> None:
    for segment in segments:
        loaded = memory.load_from(segment.start, segment.filesz, file, segment.offset)
        if loaded != segment.filesz:
            raise ImageError(f"{name} shrank while pyvmm loaded it", hint="start the run again")
