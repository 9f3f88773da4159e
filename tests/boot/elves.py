"""ELF files that no linker would make."""

from __future__ import annotations

import struct

from pyvmm.base.records import Record

EHDR, EHDR_SIZE = "4sBBBB8x2HI3QI6H", 64
PHDR, PHDR_SIZE = "2I6Q", 56
LITTLE, BIG = "<", ">"

ET_EXEC, ET_DYN = 2, 3
EM_AARCH64 = 183
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4

BASE = 0x8008_0000
CODE = bytes(range(64))


class Phdr(Record, kw_only=True):
    """A program header; the physical address defaults to the virtual one."""

    data: bytes = CODE
    vaddr: int = BASE
    paddr: int | None = None
    memsz: int | None = None
    filesz: int | None = None
    type: int = PT_LOAD
    align: int = 0x1000


class Elf(Record, kw_only=True):
    """An ELF; by default one that boots."""

    phdrs: tuple[Phdr, ...] = (Phdr(),)
    entry: int = BASE
    type: int = ET_EXEC
    machine: int = EM_AARCH64
    phentsize: int = PHDR_SIZE
    phnum: int | None = None
    order: str = LITTLE

    def build(self) -> bytes:
        """Return the file: header, program headers, then the data of each."""
        phnum = len(self.phdrs) if self.phnum is None else self.phnum
        out = struct.pack(
            self.order + EHDR, b"\x7fELF", 2, 1 + (self.order == BIG), 1, 0, self.type,
            self.machine, 1, self.entry, EHDR_SIZE, 0, 0,
            EHDR_SIZE, self.phentsize, phnum, 64, 0, 0,
        )  # fmt: skip
        offset = len(out) + PHDR_SIZE * len(self.phdrs)
        for phdr in self.phdrs:
            size = len(phdr.data)
            out += struct.pack(
                self.order + PHDR, phdr.type, 7, offset, phdr.vaddr,
                phdr.vaddr if phdr.paddr is None else phdr.paddr,
                size if phdr.filesz is None else phdr.filesz,
                size if phdr.memsz is None else phdr.memsz,
                phdr.align,
            )  # fmt: skip
            offset += size
        return out + b"".join(phdr.data for phdr in self.phdrs)
