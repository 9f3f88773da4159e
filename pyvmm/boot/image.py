"""Putting an image into guest memory, with places for a device tree and an initrd.

What an image is, its content says: an ELF, an arm64 Linux Image, or else a flat binary. All start
alike: at their entry point, with the device tree's address in X0.

Source: Linux, Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyvmm import layout
from pyvmm.boot.placement import Placed, Range, check_in_ram, place_dtb
from pyvmm.errors import ImageError
from pyvmm.memory import GuestMemory

ELF_MAGIC = b"\x7fELF"
LINUX_MAGIC = b"ARM\x64"  # at offset 56
HEAD = 0x206  # bytes, enough of a file to recognise it

# What does not boot as it is: (offset, magic, what it is, what to do)
UNBOOTABLE = (
    (0, b"\x1f\x8b", "compressed (gzip)", "gunzip"),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unzstd"),
    (0, b"\xfd7zXZ\x00", "compressed (xz)", "unxz"),
    (0, b"BZh", "compressed (bzip2)", "bunzip2"),
    (0, b"\x04\x22\x4d\x18", "compressed (lz4)", "unlz4"),
    (0, b"\x02\x21\x4c\x18", "compressed (lz4)", "unlz4"),
)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image in guest memory, ready to start."""

    kind: str  # "ELF", "Linux Image" or "flat binary"
    entry: int
    ranges: tuple[Range, ...]  # what the image takes up
    dtb: int  # where the device tree is to be written: layout.DTB_SIZE bytes are free there
    initrd: Range | None = None


def load_image(
    path: str | Path, memory: GuestMemory, *, initrd: str | Path | None = None
) -> LoadedImage:
    """Load the image at ``path``, and the initrd if there is one, into guest memory.

    Raises:
        ImageError: one of them cannot be opened, is nothing that boots, or does not fit.
    """
    with _open(path, "kernel") as file:
        head = file.read(HEAD)
        _refuse_unbootable(head, str(path))
        if head.startswith(ELF_MAGIC):
            # Only here, since pyelftools takes longer to import than all else to load.
            from pyvmm.boot.elf import load_elf

            kind, placed = "ELF", load_elf(file, str(path), memory)
        elif head[56:60] == LINUX_MAGIC:
            kind, placed = "Linux Image", _load_linux(file, head, str(path), memory)
        else:
            kind, placed = (
                "flat binary",
                _load_at(file, str(path), memory, memory.base + layout.KERNEL_OFFSET),
            )
    if initrd is None:
        dtb, _ = place_dtb(placed.ranges, 0, memory)
        return LoadedImage(kind, placed.entry, placed.ranges, dtb)
    with _open(initrd, "initrd") as file:
        dtb, room = place_dtb(placed.ranges, _size(file), memory)
        _load_at(file, str(initrd), memory, room[0])
    return LoadedImage(kind, placed.entry, placed.ranges, dtb, room)


def _open(path: str | Path, what: str) -> BinaryIO:
    """Open a file to be loaded; kvmtool's users know the message by its first words."""
    sentence = f"Unable to open {what} {path}"
    try:
        # Non-blocking, so that a FIFO without a writer is refused and not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(f"{sentence}: {reason}") from error
    status = os.fstat(fd)
    problem = None
    if stat.S_ISDIR(status.st_mode):
        problem = "it is a directory"
    elif not stat.S_ISREG(status.st_mode):
        problem = "it is not a regular file"
    elif status.st_size == 0:
        problem = "it is empty"
    if problem is not None:
        os.close(fd)
        raise ImageError(f"{sentence}: {problem}")
    return os.fdopen(fd, "rb")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _refuse_unbootable(head: bytes, name: str) -> None:
    """Refuse what would only be run as garbage."""
    for offset, magic, what, tool in UNBOOTABLE:
        if head.startswith(magic, offset):
            raise ImageError(
                f"{name} is {what}: compressed images are not supported yet", hint=f"{tool} it"
            )
    if head.startswith(b"MZ") and head.startswith(b"zimg", 4):
        raise ImageError(
            f"{name} is an EFI zboot image: compressed images are not supported yet",
            hint="take the Image it was made from (arch/arm64/boot/Image)",
        )
    if head.startswith(b"HdrS", 0x202):
        raise ImageError(f"{name} is a Linux kernel for x86, not AArch64")


def _load_linux(file: BinaryIO, head: bytes, name: str, memory: GuestMemory) -> Placed:
    """Load an arm64 Linux Image to where, and with the room after it that, its header asks for."""
    text_offset, image_size = struct.unpack_from("<QQ", head, 8)
    if image_size == 0:  # before Linux v3.17 the header did not say
        text_offset = layout.KERNEL_OFFSET
    return _load_at(file, name, memory, memory.base + text_offset, image_size)


def _load_at(file: BinaryIO, name: str, memory: GuestMemory, address: int, room: int = 0) -> Placed:
    """Load a whole file to an address, with at least ``room`` bytes from there on to itself."""
    size = _size(file)
    room = max(size, room)
    check_in_ram(name, address, room, memory)
    if memory.load(address, size, file.fileno(), 0) != size:
        raise ImageError(f"{name} became shorter while it was loaded")
    memory.zero(address + size, room - size)
    return Placed(address, ((address, address + room),))
