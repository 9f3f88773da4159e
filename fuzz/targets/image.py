"""Images and initrds: every container, packing and magic, loaded into guest memory."""

from __future__ import annotations

import functools
import gzip
import lzma
import struct
from collections.abc import Iterator
from pathlib import Path

from fuzz import snapshots
from pyvmm import layout
from pyvmm.boot import lz4, lzo
from pyvmm.boot.image import load_image
from pyvmm.errors import HostError, ImageError
from pyvmm.layout import MIB, RAM_BASE
from pyvmm.memory.ram import GuestMemory
from tests.boot import formats
from tests.boot.elves import ET_DYN, PT_INTERP, PT_NOTE, Elf, Phdr
from tests.boot.judges import library_of
from tests.boot.packing import efi_program, zboot, zstd_compress

RAM = 16 * MIB
AARCH32, INITRD = 1, 2
TOOLS = Path(__file__).resolve().parents[2] / "build/tools"


@functools.cache
def scratch() -> Path:
    """Return a directory for the files; let pyvmm find the libraries of the tests' tools."""
    for module, program in ((lz4, "lz4"), (lzo, "lzop")):
        vars(module)["LIBRARY"] = library_of(TOOLS / program, vars(module)["LIBRARY"])
    return snapshots.scratch()


def check(data: bytes) -> None:
    """Load the file; all of it must be inside RAM, or pyvmm refuse it.

    The first byte chooses 32-bit state and an initrd; then two bytes are the initrd's length.
    """
    flags, content = data[:1] or b"\0", data[1:]
    image, initrd = scratch() / "image", None
    if flags[0] & INITRD:
        length = int.from_bytes(content[:2], "little")
        initrd = scratch() / "initrd"
        initrd.write_bytes(content[2 : 2 + length])
        content = content[2 + length :]
    image.write_bytes(content)
    with GuestMemory(RAM_BASE, RAM) as memory:
        try:
            loaded = load_image(image, memory, initrd=initrd, aarch32=bool(flags[0] & AARCH32))
        except (ImageError, HostError) as error:
            assert error.message
            return
    for start, end in loaded.ranges:
        assert RAM_BASE <= start <= end <= RAM_BASE + RAM, "outside RAM"
    assert any(start <= loaded.entry < end for start, end in loaded.ranges), "no entry"
    assert RAM_BASE <= loaded.dtb <= RAM_BASE + RAM - layout.DTB_SIZE, "the device tree"
    assert all(
        end <= loaded.dtb or start >= loaded.dtb + layout.DTB_SIZE for start, end in loaded.ranges
    ), "the device tree is over the image"


def seeds() -> Iterator[bytes]:
    """Yield one small file of each kind."""
    for data in _files():
        yield b"\0" + data
    linux = formats.linux(image_size=0x1000, length=0)[:256]
    for ramdisk in (formats.CPIO, gzip.compress(formats.CPIO), b"\x7fELF" + bytes(20)):
        yield bytes([INITRD]) + len(ramdisk).to_bytes(2, "little") + ramdisk + linux
    zimage = bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(32)
    yield bytes([AARCH32]) + zimage


def _files() -> Iterator[bytes]:
    linux = formats.linux(image_size=0x1000, length=0)[:256]
    yield linux
    yield formats.with_efi_header(linux.ljust(0xA00, b"\1"), raw=0x900)
    yield Elf().build()
    yield Elf(type=ET_DYN, entry=0, phdrs=(Phdr(vaddr=0, align=0x1_0000),)).build()
    note = struct.pack("<3I4sI", 4, 4, 1, b"GNU\0", 0)
    yield Elf(phdrs=(Phdr(), Phdr(type=PT_NOTE, data=note, vaddr=0))).build()
    yield Elf(phdrs=(Phdr(), Phdr(type=PT_INTERP, data=b"/lib/ld-linux.so.1\0"))).build()
    yield Elf(phdrs=(Phdr(data=linux, vaddr=0xFFFF_8000_0000_0000, paddr=0),), entry=0).build()
    yield efi_program((b".linux", linux), (b".initrd", formats.CPIO), (b".cmdline", b"quiet"),
                      (b".osrel", b'NAME="x"\n'), (b".uname", b"6.1"))  # fmt: skip
    yield zboot(b"gzip", gzip.compress(linux))
    packed = (gzip.compress(linux), zstd_compress(linux), lzma.compress(linux),
              lzma.compress(linux, lzma.FORMAT_ALONE), lz4_frame(linux), lz4_legacy(linux),
              lzop(linux), b"\x50\x2a\x4d\x18\2\0\0\0ab" + zstd_compress(linux))  # fmt: skip
    yield from packed
    yield from (formats.pe(0x8664), formats.pe(0xAA64), formats.mbr(), formats.ar(b"debian-binary"))
    yield from (b"#!/bin/sh\n", b"text\n", bytes(64), formats.KERNEL, formats.CPIO)


def lz4_frame(data: bytes) -> bytes:
    """Return a frame of lz4."""
    return formats.run(TOOLS, "lz4", "-q", "-c", "-", given=data)


def lz4_legacy(data: bytes) -> bytes:
    """Return a legacy frame of lz4."""
    return formats.run(TOOLS, "lz4", "-q", "-l", "-c", "-", given=data)


def lzop(data: bytes) -> bytes:
    """Return a file of lzop."""
    return formats.run(TOOLS, "lzop", "-q", "-c", given=data)
