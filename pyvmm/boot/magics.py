"""Name files that are no image and no initrd, by their content.

A person who gives the wrong file learns what it is, and what to do instead. The file's name does
not matter. An unknown file may be a flat binary, so a magic of two bytes counts only together with
other bytes that the format requires.

Source: each format's specification; for text, file(1)'s set of characters.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pyvmm.boot import pe
from pyvmm.devices.diskformats import CONVERT, FORMATS
from pyvmm.errors import ImageError

HEAD = 0x1_0048  # bytes: the magic of btrfs, at the highest offset, ends here
CHUNK = 1 << 20

INITRD = "an initrd: give it with `initrd`"
DISK = "a disk: give it with `devices.disk`"
RAW_DISK = f"{CONVERT}: give that with `devices.disk`"
UNPACK = "unpack it with `{}`, and give the kernel that it holds"
UBOOT = "cut off its header with `tail -c +65`"
UBOOT_INITRD = f"{UBOOT}, then give it with `initrd`"
ARCHIVE = "Linux reads a cpio archive, packed or not, or a file system"
KERNEL = "a kernel: give it as the image"
FIRMWARE = "pyvmm runs no firmware (most is built for QEMU's virt machine): give it the kernel"
PORT = "use a kernel for arm64"

# What a file is, what to do instead, and its magics: (offset, bytes); all of them must match.
# The first row that matches counts.
MAGICS: tuple[tuple[str, str, tuple[tuple[int, bytes], ...]], ...] = (
    # kernels: the rows for arm64 match only an initrd, because image.py boots such images
    ("an arm64 Linux Image", KERNEL, ((56, b"ARM\x64"),)),
    ("an EFI zboot image", KERNEL, ((0, b"MZ"), (4, b"zimg"))),
    ("a 32-bit Arm zImage", KERNEL, ((0x24, b"\x18\x28\x6f\x01"),)),
    ("a Linux kernel for x86, not AArch64", PORT, ((0x202, b"HdrS"),)),
    ("a Linux kernel for RISC-V, not AArch64", PORT, ((0x38, b"RSC\x05"),)),
    ("a program of macOS (Mach-O)", "link an ELF for AArch64", ((0, b"\xcf\xfa\xed\xfe"),)),
    ("a program of macOS (Mach-O)", "link an ELF for AArch64", ((0, b"\xce\xfa\xed\xfe"),)),
    ("a program of macOS (Mach-O)", "link an ELF for AArch64", ((0, b"\xca\xfe\xba\xbe"),)),
    ("a kernel module or an object", ARCHIVE, ((0, b"\x7fELF"), (16, b"\x01\0"))),
    ("an ELF", KERNEL, ((0, b"\x7fELF"),)),
    # what boot loaders and firmware read
    ("a U-Boot image of a kernel", UBOOT, ((0, b"\x27\x05\x19\x56"), (30, b"\x02"))),
    ("a U-Boot image of an initrd", UBOOT_INITRD, ((0, b"\x27\x05\x19\x56"), (30, b"\x03"))),
    ("a U-Boot legacy image", "U-Boot alone reads it", ((0, b"\x27\x05\x19\x56"),)),
    ("an Android boot image", UNPACK.format("unpack_bootimg"), ((0, b"ANDROID!"),)),
    ("an Android vendor boot image", UNPACK.format("unpack_bootimg"), ((0, b"VNDRBOOT"),)),
    ("UEFI firmware (EDK2)", FIRMWARE, ((40, b"_FVH"),)),
    ("UEFI firmware (EDK2)", FIRMWARE, ((0x1028, b"_FVH"),)),  # the first volume, behind a branch
    ("a boot image for Allwinner's boot ROM", FIRMWARE, ((4, b"eGON.BT0"),)),
    ("a boot image for Rockchip's boot ROM", FIRMWARE, ((0, b"\x3b\x8c\xdc\xfc\xbe\x9f\x9d\x51"),)),
    # initrds, packages and archives
    ("an initramfs (a cpio archive)", INITRD, ((0, b"070701"),)),
    ("an initramfs (a cpio archive)", INITRD, ((0, b"070702"),)),
    ("a cpio archive (odc)", "make an initrd with `cpio -H newc`", ((0, b"070707"),)),
    ("a Debian package", UNPACK.format("dpkg-deb -x"), ((0, b"!<arch>\ndebian-binary"),)),
    ("an archive of objects (ar)", "link it to an ELF", ((0, b"!<arch>\n"),)),
    ("an archive of objects (ar)", "link it to an ELF", ((0, b"!<thin>\n"),)),
    ("an RPM package", UNPACK.format("rpm2cpio"), ((0, b"\xed\xab\xee\xdb"),)),
    ("a tar archive", UNPACK.format("tar -x"), ((257, b"ustar"),)),
    ("a zip archive", UNPACK.format("unzip"), ((0, b"PK\x03\x04"),)),
    ("a 7-zip archive", UNPACK.format("7z x"), ((0, b"7z\xbc\xaf\x27\x1c"),)),
    ("a snapshot of pyvmm", "restore it with `pyvmm restore`", ((0, b"pyvmm snapshot "),)),
    # disks; an ISO 9660 image may be a disk with partitions too
    *((name, RAW_DISK, ((offset, magic),)) for name, offset, magic in FORMATS),
    ("an ISO 9660 image", DISK, ((0x8001, b"CD001"),)),
    ("a disk image (GPT)", DISK, ((512, b"EFI PART"),)),
    ("an encrypted disk (LUKS)", DISK, ((0, b"LUKS\xba\xbe"),)),
    # file systems.  ext: s_magic, the high bytes of s_log_block_size and of s_rev_level
    (
        "an ext file system",
        DISK,
        ((0x438, b"\x53\xef"), (0x419, b"\0\0\0"), (0x44D, b"\0\0\0")),
    ),
    ("an XFS file system", DISK, ((0, b"XFSB"),)),
    ("a btrfs file system", DISK, ((0x1_0040, b"_BHRfS_M"),)),
    ("a squashfs file system", DISK, ((0, b"hsqs"),)),
    ("an erofs file system", DISK, ((0x400, b"\xe2\xe1\xf5\xe0"),)),
    ("an f2fs file system", DISK, ((0x400, b"\x10\x20\xf5\xf2"),)),
    ("a cramfs file system", DISK, ((0, b"\x45\x3d\xcd\x28"), (16, b"Compressed ROMFS"))),
    ("a romfs file system", DISK, ((0, b"-rom1fs-"),)),
    ("a FAT file system", DISK, ((0x1FE, b"\x55\xaa"), (0x36, b"FAT"))),
    ("a FAT file system", DISK, ((0x1FE, b"\x55\xaa"), (0x52, b"FAT32"))),
    ("an exFAT file system", DISK, ((0x1FE, b"\x55\xaa"), (3, b"EXFAT   "))),
    ("an NTFS file system", DISK, ((0x1FE, b"\x55\xaa"), (3, b"NTFS    "))),
    # packed in a way that packings.py does not know
    ("packed with lrzip", "lrunzip it", ((0, b"LRZI"),)),
    ("packed with lzip", "lunzip it", ((0, b"LZIP"),)),
    ("packed with compress", "uncompress it", ((0, b"\x1f\x9d\x90"),)),
)  # fmt: skip

FDT_MAGIC = b"\xd0\x0d\xfe\xed"
# Source: Devicetree Specification 0.4, 5.4 "Structure Block"
FDT_WORD = struct.Struct(">I")
FDT_STRUCTURE = 8  # the offset of off_dt_struct
FDT_BEGIN_NODE, FDT_END_NODE, FDT_PROP, FDT_NOP = 1, 2, 3, 4
TEXT = bytes({7, 8, 9, 10, 12, 13, 27, *range(0x20, 0x100)} - {0x7F})  # as file(1) defines it


def _fdt(head: bytes) -> tuple[str, str] | None:
    if not head.startswith(FDT_MAGIC):
        return None
    if b"images" in _fdt_nodes(head):
        return "a U-Boot FIT image", UNPACK.format("dumpimage -T flat_dt -p 0 -o Image")
    return "a device tree blob", "pyvmm makes the guest's device tree itself: give a kernel"


def _fdt_nodes(head: bytes) -> Iterator[bytes]:
    """Yield the names of the nodes below the root, as far as ``head`` goes."""
    with contextlib.suppress(struct.error):  # the end of the head
        (at,) = FDT_WORD.unpack_from(head, FDT_STRUCTURE)
        depth = 0
        while True:
            (token,) = FDT_WORD.unpack_from(head, at)
            at += FDT_WORD.size
            if token == FDT_BEGIN_NODE:
                end = head.find(b"\0", at)
                if end < 0:
                    return
                if depth == 1:
                    yield head[at:end]
                depth += 1
                at = end // 4 * 4 + 4
            elif token == FDT_PROP:
                at += 2 * FDT_WORD.size + -(-FDT_WORD.unpack_from(head, at)[0] // 4) * 4
            elif token == FDT_END_NODE:
                depth -= 1
            elif token != FDT_NOP:
                return


def _pe(head: bytes) -> tuple[str, str] | None:
    """Name a program for EFI or Windows."""
    machine = pe.read_machine(io.BytesIO(head))
    if machine is None:
        return None
    kind = f"an EFI program for {pe.MACHINES.get(machine, hex(machine))}"
    if machine != pe.ARM64:
        return f"{kind}, not AArch64", PORT
    return (
        f"{kind} without the magic of an arm64 Linux Image",
        "use an arm64 Linux Image: it has ARM\\x64 at byte 56",
    )


def _mbr(head: bytes) -> tuple[str, str] | None:
    """Name a disk with an MBR partition table: four entries, each active or not."""
    table = head[0x1BE:0x1FE]
    if head[0x1FE:0x200] != b"\x55\xaa" or set(table[::16]) - {0, 0x80} or not any(table[4::16]):
        return None
    return "a disk image (MBR)", DISK


def _text(head: bytes) -> tuple[str, str] | None:
    if head.startswith(b"#!") and b"\n" in head:
        line = head[: head.index(b"\n")].decode("ascii", "replace").rstrip()
        return f"a script ({line})", "give the kernel that it starts"
    if not head or head.translate(None, TEXT):
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD)
    except UnicodeDecodeError:
        return None
    return "a text file", "give a kernel, or a program linked for arm64"


# Formats that take more than a comparison, asked in this order after MAGICS
TESTS: tuple[Callable[[bytes], tuple[str, str] | None], ...] = (_fdt, _pe, _mbr, _text)


def identify(head: bytes) -> tuple[str, str] | None:
    """Return what a file that begins with ``head`` is, and what to do instead of booting it.

    ``head`` holds HEAD bytes, unless the file is shorter. None means: it may be a flat binary.
    """
    for what, hint, magics in MAGICS:
        if all(head.startswith(magic, offset) for offset, magic in magics):
            return what, hint
    return next((found for test in TESTS if (found := test(head))), None)


def refuse(file: BinaryIO, name: str, limit: int) -> None:
    """Refuse a file that cannot be an image; ``name`` is its name in messages.

    In a file of more than ``limit`` bytes, the guest's RAM, only the head is searched.

    Raises: ImageError, with what it is and what to do instead.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEAD)
    found = identify(head)
    if found is None and not any(head):
        if size <= limit and _all_zeros(file):
            found = "all zeros", "check how the file was made or copied"
        elif size > limit > 0:
            found = "larger than the guest's RAM, and begins with zeros", DISK
    if found is not None:
        raise ImageError(f"{name} is {found[0]}", hint=found[1])


def refuse_as_initrd(head: bytes, name: str) -> None:
    """Refuse an initrd that Linux cannot use: it reads cpio archives and file systems.

    Raises: ImageError, with what it is and what to do instead.
    """
    found = identify(head)
    if found is not None and found[1] not in (INITRD, DISK):
        hint = found[1] if found[1] in (KERNEL, UBOOT_INITRD) else ARCHIVE
        raise ImageError(f"{name} is {found[0]}, which Linux does not read as initrd", hint=hint)


def refuse_module(file: BinaryIO, name: str) -> None:
    """Refuse an ELF object that is a module of Linux: it has a section .modinfo.

    Raises: ImageError.
    """
    file.seek(0)
    if any(b".modinfo\0" in piece for piece in iter(lambda: file.read(CHUNK), b"")):
        raise ImageError(
            f"{name} is a kernel module", hint="put it into the initrd, and `insmod` it there"
        )


def _all_zeros(file: BinaryIO) -> bool:
    """Return whether the rest of a file has only zeros."""
    return not any(piece.strip(b"\0") for piece in iter(lambda: file.read(CHUNK), b""))
