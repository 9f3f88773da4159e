"""Load an image into guest memory, with room for a device tree and an initrd.

An image is an ELF, an arm64 Linux Image, or else a flat binary; each may be packed (wrapping.py). A
unified kernel image holds one, and perhaps an initrd and a command line (uki.py). Other files are
named and refused (magics.py). An image starts at its entry point with the device tree's address in
X0, a 32-bit image in R2.

Source: Linux, Documentation/arch/arm64/booting.rst and arch/arm/booting.rst.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pyvmm import layout
from pyvmm.base.records import Record
from pyvmm.boot import linux
from pyvmm.boot.linux import Flags
from pyvmm.boot.placement import Placed, Range, check_in_ram, place_dtb
from pyvmm.errors import DamagedImage, ImageError
from pyvmm.memory.ram import GuestMemory

if TYPE_CHECKING:
    from pyvmm.boot.uki import Uki

ELF_MAGIC, EFI_MAGIC = b"\x7fELF", b"MZ"
KIND, ET_REL = 16, b"\x01\0"  # the offset of e_type; the type of an object that is not linked
HEAD = 64  # bytes, enough of a file to recognize its format
NEWC = b"070701"  # the usual initrd: a cpio archive
LINUX = ("Linux Image", "vmlinux")  # the kinds of image that may be Linux
SPECIAL = "it is not a regular file"
BANNER = b"Linux version "  # in every kernel.  Source: Linux, init/version.c

# A zImage: 32-bit Arm Linux, little-endian.  Its magic, and where it starts and ends.  One with an
# EFI stub begins with MZ too.  Source: Linux, arch/arm/boot/compressed/head.S, efi-header.S
ZIMAGE_OFFSET, ZIMAGE_MAGIC = 0x24, b"\x18\x28\x6f\x01"
ZIMAGE_EXTENT = struct.Struct("<II")  # behind the magic


class LoadedImage(Record):
    """An image in guest memory, ready to start."""

    kind: str  # "ELF", "vmlinux", "Linux Image", "zImage" or "flat binary"
    entry: int
    ranges: tuple[Range, ...]  # the memory of the image
    dtb: int  # the address for the device tree: layout.DTB_SIZE bytes are free
    initrd: Range | None = None
    wrappings: tuple[str, ...] = ()  # its packings, the outermost first
    flags: Flags = Flags(0)  # the CPU features it needs
    cmdline: str = ""  # a unified kernel image's
    details: tuple[str, ...] = ()  # further lines for a verbose run
    notes: tuple[str, ...] = ()  # lines that every user sees


def load_image(
    path: str | Path,
    memory: GuestMemory,
    *,
    initrd: str | Path | None = None,
    aarch32: bool = False,
) -> LoadedImage:
    """Load the image at ``path``, and an initrd, into guest memory.

    Raises:
        ImageError: a file cannot be opened, does not boot, or does not fit.
        HostError: this machine lacks the library that unpacks it.
    """
    name = str(path)
    notes: list[str] = []
    with _open(path, "kernel") as file:
        unpacked, wrappings = _unwrap(file, name, memory.size, notes.append)
        uki = _read_uki(unpacked, name)
        if uki is not None:
            section = f"{name}, section .linux"
            unpacked, inner = _unwrap(uki.linux, section, memory.size, notes.append)
            wrappings += ("unified kernel image", *inner)
        label = f"{name} ({', '.join(wrappings)})" if wrappings else name
        placed = _place(unpacked, label, memory, aarch32, notes.append)
    own = None if uki is None else uki.initrd
    if own and initrd is not None:
        notes.append(f"`initrd` replaces the initrd in {name}")
    with contextlib.nullcontext(own) if initrd is None else _open(initrd, "initrd") as ramdisk:
        if ramdisk and placed.kind in LINUX and ramdisk.read(len(NEWC)) != NEWC:
            _check_initrd(ramdisk, str(initrd or name), placed, memory)
        dtb, room = place_dtb(placed.ranges, _size(ramdisk) if ramdisk else 0, memory)
        if ramdisk:
            _load_at(ramdisk, str(initrd or name), memory, room[0])
    return LoadedImage(
        placed.kind,
        placed.entry,
        placed.ranges,
        dtb,
        room if ramdisk else None,
        wrappings,
        placed.flags,
        "" if uki is None else uki.cmdline,
        placed.details if uki is None else (*uki.details, *placed.details),
        tuple(notes),
    )


def _unwrap(
    file: BinaryIO, name: str, limit: int, log: Callable[[str], None]
) -> tuple[BinaryIO, tuple[str, ...]]:
    """Unpack the image, and list its wrappings."""
    head = _head(file)
    if head.startswith(ELF_MAGIC) or linux.is_linux(head):
        return file, ()
    from pyvmm.boot.wrapping import unwrap  # imported lazily: few images are packed

    return unwrap(file, name, limit, log)


def _read_uki(file: BinaryIO, name: str) -> Uki | None:
    """Return the parts of a unified kernel image, or None for any other file."""
    head = _head(file)
    if not head.startswith(EFI_MAGIC) or linux.is_linux(head) or _is_zimage(head):
        return None
    from pyvmm.boot.uki import read_uki  # imported lazily: few images are EFI programs

    return read_uki(file, name)


def _place(
    file: BinaryIO, name: str, memory: GuestMemory, aarch32: bool, log: Callable[[str], None]
) -> Placed:
    """Load an unpacked image to its address; ``log`` gets a line if it may be no kernel."""
    head = _head(file)
    elf = head.startswith(ELF_MAGIC)
    if aarch32 and (elf or linux.is_linux(head)):
        raise ImageError(
            f"{name} is {'an ELF' if elf else 'an arm64 Linux Image'}; with `cpu.aarch32` only a "
            f"zImage or a flat binary boots",
            hint="leave out `cpu.aarch32`, or use arch/arm/boot/zImage",
        )
    if elf:
        from pyvmm.boot.elf import load_elf  # imported lazily: a Linux Image needs none

        if head.startswith(ET_REL, KIND):
            from pyvmm.boot.magics import refuse_module

            refuse_module(file, name)
        placed = load_elf(file, name, memory)
        if placed.details:  # it was moved: built for another machine, or for any
            _check_uboot(file, name, None, log)
        return placed
    if linux.is_linux(head):
        header = linux.read_header(head, name)
        linux.check_whole(file, name)
        start = memory.base + header.text_offset
        if not head.startswith(EFI_MAGIC):  # U-Boot has this header too
            _check_uboot(file, name, start, log)
        placed = _load_at(file, name, memory, start, header.image_size)
        return placed.replace(kind="Linux Image", flags=header.flags)
    offset = layout.KERNEL_OFFSET_32 if aarch32 else layout.KERNEL_OFFSET
    kind = "flat binary"
    if _is_zimage(head):
        kind = "zImage"
        if not aarch32:
            raise ImageError(f"{name} is a 32-bit Arm zImage", hint="use `cpu.aarch32`=True")
        _check_whole_zimage(file, head, name)
    else:
        from pyvmm.boot.magics import refuse  # imported lazily: an ELF or Linux Image needs none

        refuse(file, name, memory.size)
        _check_uboot(file, name, memory.base + offset, log)
    return _load_at(file, name, memory, memory.base + offset).replace(kind=kind)


def _is_zimage(head: bytes) -> bool:
    return head.startswith(ZIMAGE_MAGIC, ZIMAGE_OFFSET)


def _check_whole_zimage(file: BinaryIO, head: bytes, name: str) -> None:
    """Refuse a zImage that ends before its header says.  Raises: ImageError."""
    place = ZIMAGE_OFFSET + len(ZIMAGE_MAGIC)
    if len(head) < place + ZIMAGE_EXTENT.size:
        raise DamagedImage(f"{name} is truncated: its header is incomplete")
    start, end = ZIMAGE_EXTENT.unpack_from(head, place)
    if (size := _size(file)) < end - start:
        raise DamagedImage(
            f"{name} is truncated: its header says {end - start:#x} bytes, the file has {size:#x}"
        )


def _check_uboot(file: BinaryIO, name: str, place: int | None, log: Callable[[str], None]) -> None:
    """Refuse U-Boot of other machines, or log that it may be one."""
    from pyvmm.boot import uboot  # imported lazily: few images are flat binaries

    note = uboot.check(file, name, place)
    if note is not None:
        log(note)


def _check_initrd(file: BinaryIO, name: str, image: Placed, memory: GuestMemory) -> None:
    """Refuse an initrd that Linux cannot use; other kernels may read other formats."""
    from pyvmm.boot.wrapping import check_initrd  # imported lazily: the usual initrd needs none

    try:
        check_initrd(file, name)
    except ImageError:
        # Other kernels have the header of a Linux Image too.
        if any(BANNER in memory.read(start, end - start) for start, end in image.ranges):
            raise


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(HEAD)


def _open(path: str | Path, role: str) -> BinaryIO:
    """Open a file to load. Errors begin like kvmtool's."""
    sentence = f"Unable to open {role} {path}"
    try:
        # Non-blocking: opening a FIFO must not wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.errno == errno.ENXIO:  # a socket
            reason = SPECIAL
        raise ImageError(f"{sentence}: {reason}") from error
    status = os.fstat(fd)
    problem = None
    if stat.S_ISDIR(status.st_mode):
        problem = "it is a directory"
    elif not stat.S_ISREG(status.st_mode):
        problem = SPECIAL
    elif status.st_size == 0:
        problem = "it is empty"
    if problem is not None:
        os.close(fd)
        raise ImageError(f"{sentence}: {problem}")
    return os.fdopen(fd, "rb")


def _size(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END)


def _load_at(file: BinaryIO, name: str, memory: GuestMemory, address: int, room: int = 0) -> Placed:
    """Load a file to an address; zero the rest of the ``room`` bytes from there on."""
    size = _size(file)
    room = max(size, room)
    hint = "check text_offset and image_size in its header: the file may be damaged"
    check_in_ram(name, address, room, memory, hint)
    if memory.load_from(address, size, file, 0) != size:
        raise ImageError(f"{name} shrank while pyvmm loaded it", hint="start the run again")
    memory.zero(address + size, room - size)
    return Placed("", address, ((address, address + room),))
