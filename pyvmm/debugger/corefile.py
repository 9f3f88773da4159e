"""An ELF64 core file of a guest: its physical memory, and the registers of its vCPUs.

Linux's /proc/vmcore and QEMU's dump-guest-memory have this layout, so drgn and crash read it. For a
Linux guest they need VMCOREINFO, which the kernel keeps in its memory.

    ELF header, program headers: a PT_NOTE, and a PT_LOAD for each piece of memory
    notes: per vCPU NT_PRSTATUS, NT_FPREGSET, NT_ARM_SVE; then VMCOREINFO
    memory, from a page boundary on; zero pages are holes

p_align is 0, as in /proc/vmcore: crash takes a file with another value for one of netdump, in which
it does not look for the beginning of memory.

Source: System V ABI, "ELF header" and "Note Section"; Linux, arch/arm64/include/uapi/asm/ptrace.h,
include/linux/elfcore.h, kernel/vmcore_info.c.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from pyvmm.arm64.vl import VlSet
from pyvmm.base.records import Record
from pyvmm.debugger import values
from pyvmm.debugger.addresses import Cpu
from pyvmm.debugger.values import Vectors
from pyvmm.errors import KvmError
from pyvmm.kvm import regs
from pyvmm.memory.ranges import Range

EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR: Final = struct.Struct("<IIQQQQQQ")
NHDR: Final = struct.Struct("<III")
IDENT: Final = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64 bits, little endian, version 1
ET_CORE, EM_AARCH64, EV_CURRENT = 4, 183, 1
PT_LOAD, PT_NOTE = 1, 4
RWX: Final = 7
PAGE: Final = 0x1_0000  # bytes: the largest page size
CHUNK: Final = 1 << 20

NT_PRSTATUS, NT_FPREGSET, NT_ARM_SVE = 1, 2, 0x405
PRSTATUS: Final = struct.Struct("<32xI76x34QI4x")  # pr_pid, pr_reg, pr_fpvalid
FPSIMD: Final = struct.Struct("<512sII8x")  # V0 to V31, FPSR, FPCR
SVE_HEADER: Final = struct.Struct("<IIHHHH")  # size, max_size, vl, max_vl, flags, reserved
SVE_REGS: Final = 1  # SVE_PT_REGS_SVE: Z and P registers follow
QUADWORD: Final = 16  # bytes
PREDICATE: Final = 8  # bytes of a vector for each byte of a predicate

# The first line of VMCOREINFO, at the beginning of a page of the guest
FIRST_LINE: Final = b"OSRELEASE="
NEEDED_LINES: Final = (b"\nPAGESIZE=", b"\nSYMBOL(")
SMALLEST_PAGE: Final = 4096
MOST_VMCOREINFO: Final = PAGE

ReadMemory = Callable[[int, int], bytes]


class Piece(Record):
    """A piece of guest memory, and the ranges of it that may be other than zero."""

    base: int
    size: int
    stored: Sequence[Range]


class Core(Record):
    """What was written: the size of the file in bytes, and whether VMCOREINFO was found."""

    size: int
    has_vmcoreinfo: bool


def write_core(
    fd: int, cpus: Sequence[Cpu], vls: VlSet, memory: Sequence[Piece], read: ReadMemory
) -> Core:
    """Write a core file to an empty file.

    Raises: OSError, if it cannot be written; VmmError, if a register cannot be read.
    """
    info = find_vmcoreinfo(memory, read)
    notes = b"".join(_notes(cpus, vls))
    if info:
        notes += _note(b"VMCOREINFO", 0, info)
    first = EHDR.size + PHDR.size * (1 + len(memory))
    headers = [PHDR.pack(PT_NOTE, 0, first, 0, 0, len(notes), len(notes), 0)]
    offset = _aligned(first + len(notes), PAGE)
    offsets = []
    for piece in memory:
        offsets.append(offset)
        where = (offset, 0, piece.base, piece.size, piece.size, 0)
        headers.append(PHDR.pack(PT_LOAD, RWX, *where))
        offset = _aligned(offset + piece.size, PAGE)
    ehdr = EHDR.pack(
        IDENT, ET_CORE, EM_AARCH64, EV_CURRENT, 0, EHDR.size, 0, 0,
        EHDR.size, PHDR.size, len(headers), 0, 0, 0,
    )  # fmt: skip
    os.ftruncate(fd, offset)
    _write(fd, ehdr + b"".join(headers) + notes, 0)
    for piece, start in zip(memory, offsets, strict=True):
        for gpa, data in _chunks(piece, read):
            _write(fd, data, start + gpa - piece.base)
    return Core(offset, bool(info))


def find_vmcoreinfo(memory: Sequence[Piece], read: ReadMemory) -> bytes:
    """Return a Linux guest's VMCOREINFO, the longest if there are several; empty if none.

    It is text that the guest controls.
    """
    found = [b""]
    for piece in memory:
        for gpa, data in _chunks(piece, read):
            for match in re.finditer(re.escape(FIRST_LINE), data):
                if (gpa + match.start()) % SMALLEST_PAGE == 0:
                    found.append(_text(piece, gpa + match.start(), read))
    return max(found, key=len)


def _text(piece: Piece, gpa: int, read: ReadMemory) -> bytes:
    """Return the VMCOREINFO at an address, or nothing if it is not one."""
    length = min(MOST_VMCOREINFO, piece.base + piece.size - gpa)
    text = read(gpa, length).partition(b"\0")[0]
    return text if all(line in text for line in NEEDED_LINES) else b""


def _chunks(piece: Piece, read: ReadMemory) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of a piece that are not zero, each within a MiB."""
    for low, high in piece.stored:
        at = max(low, piece.base)
        end = min(high, piece.base + piece.size)
        while at < end:
            size = min(CHUNK - at % CHUNK, end - at)
            data = read(at, size)
            if data.count(0) < size:
                yield at, data
            at += size


def _notes(cpus: Iterable[Cpu], vls: VlSet) -> Iterator[bytes]:
    for cpu in cpus:
        has = values.vectors(cpu, vls)
        general = [_get(cpu, regs.X(n)) for n in range(31)]
        general += [_get(cpu, values.stack_pointer(cpu)), _get(cpu, regs.PC)]
        general.append(_get(cpu, regs.PSTATE))
        yield _note(b"CORE", NT_PRSTATUS, PRSTATUS.pack(cpu.id + 1, *general, 1))
        yield _note(b"CORE", NT_FPREGSET, _fpsimd(cpu, has))
        if has.current:
            yield _note(b"LINUX", NT_ARM_SVE, _sve(cpu, has))


def _fpsimd(cpu: Cpu, has: Vectors) -> bytes:
    vectors = [_get(cpu, regs.Z(n) if has.current else regs.V(n)) for n in range(32)]
    low = b"".join((value & (1 << 128) - 1).to_bytes(QUADWORD, "little") for value in vectors)
    return FPSIMD.pack(low, _get(cpu, regs.FPSR), _get(cpu, regs.FPCR))


def _sve(cpu: Cpu, has: Vectors) -> bytes:
    """Return struct user_sve_header, and the registers at the present vector length."""
    length = has.current // 8

    def register(reg_id: int, size: int) -> bytes:
        return (_get(cpu, reg_id) & (1 << 8 * size) - 1).to_bytes(size, "little")

    data = b"".join(register(regs.Z(n), length) for n in range(32))
    data += b"".join(register(regs.P(n), length // PREDICATE) for n in range(16))
    data += register(regs.FFR(), length // PREDICATE)
    data = data.ljust(_aligned(len(data), QUADWORD), b"\0")
    data += struct.pack("<II", _get(cpu, regs.FPSR), _get(cpu, regs.FPCR))
    data = data.ljust(_aligned(len(data), QUADWORD), b"\0")
    size = SVE_HEADER.size + len(data)
    header = SVE_HEADER.pack(size, size, length, max(has.vls) // 8, SVE_REGS, 0)
    return header + data


def _get(cpu: Cpu, reg_id: int) -> int:
    """Return a register; 0 if a saved vCPU lacks it."""
    try:
        return cpu.get_one_reg(reg_id)
    except KvmError:
        return 0


def _note(name: bytes, kind: int, data: bytes) -> bytes:
    owner = name + b"\0"
    padded = owner.ljust(_aligned(len(owner), 4), b"\0")
    return (
        NHDR.pack(len(owner), len(data), kind) + padded + data.ljust(_aligned(len(data), 4), b"\0")
    )


def _aligned(number: int, size: int) -> int:
    return -(-number // size) * size


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
