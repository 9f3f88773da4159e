"""Files of many formats that are no image, each made by its own tool, or by its specification."""

from __future__ import annotations

import io
import lzma
import os
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.conftest import TOOLS, tool

KERNEL = b"\x1f\x20\x03\xd5" * 64  # NOPs
CPIO = b"070701" + b"0" * 104 + b"TRAILER!!!\0" + bytes(3)

FIT = """/dts-v1/;
/ { description = "one kernel"; #address-cells = <1>;
 images { kernel { description = "k"; data = /incbin/("kernel"); type = "kernel"; arch = "arm64";
   os = "linux"; compression = "none"; load = <0x80080000>; entry = <0x80080000>;
   hash { algo = "crc32"; }; }; };
 configurations { default = "c"; c { kernel = "kernel"; }; };
};
"""


def linux(text_offset: int = 0, image_size: int = 0x20_0000, length: int = 0x1000) -> bytes:
    """Return a file with the header of an arm64 Linux Image."""
    header = struct.pack(
        "<2I6Q4sI", 0x9100_5A4D, 1, text_offset, image_size, 0xA, 0, 0, 0, b"ARM\x64", 0
    )
    return header + bytes(range(1, 256)) * 16 + bytes(length)


def run(directory: Path, program: str, *arguments: str, given: bytes = b"") -> bytes:
    """Run a tool in a directory, and return its output."""
    path = f"{TOOLS}:{os.environ['PATH']}"  # mkimage runs dtc
    done = subprocess.run(
        [tool(program), *arguments], cwd=directory, input=given, capture_output=True,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def uboot(directory: Path, kind: str) -> bytes:
    """Return U-Boot's legacy image of a file."""
    (directory / "data").write_bytes(KERNEL)
    run(directory, "mkimage", "-A", "arm64", "-O", "linux", "-T", kind, "-C", "none",
        "-a", "0x80080000", "-e", "0x80080000", "-n", "test", "-d", "data", "out")  # fmt: skip
    return (directory / "out").read_bytes()


def fit(directory: Path) -> bytes:
    """Return a U-Boot FIT image."""
    (directory / "kernel").write_bytes(KERNEL)
    (directory / "it.its").write_text(FIT)
    run(directory, "mkimage", "-f", "it.its", "out")
    return (directory / "out").read_bytes()


def dtb(directory: Path) -> bytes:
    """Return a device tree blob, with nodes that are called like one of a FIT image's."""
    source = b"/dts-v1/; / { p = [00 01 02]; images-of { images { }; }; };"
    return run(directory, "dtc", "-I", "dts", "-O", "dtb", given=source)


def cpio(directory: Path, form: str) -> bytes:
    """Return an archive of one file."""
    (directory / "init").write_bytes(b"#!/bin/sh\n")
    return run(directory, "cpio", "-o", "-H", form, given=b"init\n")


def ext(directory: Path, kind: str) -> bytes:
    """Return a file system of 1 MiB."""
    path = directory / "disk"
    path.touch()
    os.truncate(path, 1 << 20)
    run(directory, "mke2fs", "-q", "-F", "-t", kind, str(path))
    return path.read_bytes()


def tar(_: Path) -> bytes:
    """Return a tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("Image"))
    return out.getvalue()


def zipped(_: Path) -> bytes:
    """Return a zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("Image", KERNEL)
    return out.getvalue()


def at(*pairs: tuple[int, bytes], size: int = 0x2_0000) -> Callable[[Path], bytes]:
    """Return a maker of a file that has these bytes at these offsets, and is not zero elsewhere."""

    def make(_: Path) -> bytes:
        data = bytearray(b"\x1f" * size)
        for offset, piece in pairs:
            data[offset : offset + len(piece)] = piece
        return bytes(data)

    return make


def pe(machine: int) -> bytes:
    """Return the head of an EFI program."""
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    return (dos + b"PE\0\0" + struct.pack("<HH", machine, 0)).ljust(0x400, b"\0")


UBOOT_VERSION = b"U-Boot %s2025.01-3 (Jun 24 2026 - 09:07:15 +0000)\0"


def uboot_start(address: int, *, stage: str = "") -> bytes:
    """Return U-Boot for arm64: its start code, and its version."""
    code = KERNEL * 4 + UBOOT_VERSION % stage.encode()
    end = 40 + len(code) & ~7
    return struct.pack("<2I4Q", 0x1400_000A, 0xD503_201F, address, end, end, end + 0x1000) + code


def mbr() -> bytes:
    """Return the first sector of a disk with one partition."""
    entry = struct.pack("<B3xB3x2I", 0x80, 0x83, 2048, 4096)
    return bytes(0x1BE) + entry + bytes(48) + b"\x55\xaa"


def ar(name: bytes) -> bytes:
    """Return an ar archive of one member."""
    return b"!<arch>\n%-16s%-12d%-6d%-6d%-8o%-10d`\n2.0\n" % (name, 0, 0, 0, 0o644, 4)


def packed(make: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
    """Return a maker of the same file, packed with xz."""
    return lambda directory: lzma.compress(make(directory))


def fixed(data: bytes) -> Callable[[Path], bytes]:
    """Return a maker of this file."""
    return lambda _: data


def with_efi_header(image: bytes, *, raw: int) -> bytes:
    """Return a Linux Image with an EFI header whose only section ends at byte ``raw``."""
    optional = 0x20
    head = struct.pack("<4s2H12x2H", b"PE\0\0", 0xAA64, 1, optional, 0)
    section = struct.pack("<8s4I16x", b".text", raw, 0x1000, raw - 0x800, 0x800)
    data = image[:0x3C] + struct.pack("<I", 0x40) + head + bytes(optional) + section
    return data + image[len(data) :]


SECTOR_END = (0x1FE, b"\x55\xaa")

# What it is, how it is made, words of the message, words of the hint
REFUSED: tuple[tuple[str, Callable[[Path], bytes], str, str], ...] = (
    ("uImage", lambda d: uboot(d, "kernel"), "a U-Boot image of a kernel", "tail -c +65"),
    ("uInitrd", lambda d: uboot(d, "ramdisk"), "a U-Boot image of an initrd", "with `initrd`"),
    ("U-Boot firmware", lambda d: uboot(d, "firmware"), "a U-Boot legacy image", "U-Boot"),
    ("FIT", fit, "a U-Boot FIT image", "dumpimage"),
    ("dtb", dtb, "a device tree blob", "makes the guest's device tree itself"),
    ("Android", fixed(b"ANDROID!" + bytes(600)), "an Android boot image", "unpack_bootimg"),
    ("cpio", lambda d: cpio(d, "newc"), "an initramfs", "an initrd: give it with `initrd`"),
    ("cpio crc", lambda d: cpio(d, "crc"), "an initramfs", "an initrd: give it with `initrd`"),
    ("cpio odc", lambda d: cpio(d, "odc"), "a cpio archive", "cpio -H newc"),
    ("cpio.xz", packed(lambda d: cpio(d, "newc")), r"\(xz\) is an initramfs", "an initrd"),
    ("deb", fixed(ar(b"debian-binary")), "a Debian package", "dpkg-deb -x"),
    ("ar", fixed(ar(b"start.o/")), "an archive of objects", "link it"),
    ("rpm", fixed(b"\xed\xab\xee\xdb" + bytes(99)), "an RPM package", "rpm2cpio"),
    ("tar", tar, "a tar archive", "tar -x"),
    ("tar.xz", packed(tar), r"\(xz\) is a tar archive", "tar -x"),
    ("zip", zipped, "a zip archive", "unzip"),
    ("qcow2", fixed(b"QFI\xfb\0\0\0\x03" + bytes(600)), "a QCOW image", "qemu-img convert -O raw"),
    ("vmdk", fixed(b"KDMV" + bytes(600)), "a VMDK image", "qemu-img convert"),
    ("vmdk text", fixed(b"# Disk DescriptorFile\nversion=1\n"), "a VMDK desc", "qemu-img convert"),
    ("vhdx", fixed(b"vhdxfile" + bytes(600)), "a VHDX image", "qemu-img convert"),
    ("vhd", fixed(b"conectix" + bytes(600)), "a VHD image", "qemu-img convert"),
    ("vdi", at((0x40, b"\x7f\x10\xda\xbe")), "a VDI image", "qemu-img convert"),
    ("iso", at((0x8001, b"CD001")), "an ISO 9660 image", "a disk: give it with `devices.disk`"),
    ("hybrid iso", at((0, mbr()), (0x8001, b"CD001")), "an ISO 9660 image", "a disk"),
    ("gpt", at((0, mbr()), (512, b"EFI PART")), r"a disk image \(GPT\)", "a disk"),
    ("mbr", at((0, mbr())), r"a disk image \(MBR\)", "a disk"),
    ("luks", fixed(b"LUKS\xba\xbe\0\x02" + bytes(600)), "an encrypted disk", "a disk"),
    ("ext2", lambda d: ext(d, "ext2"), "an ext file system", "a disk"),
    ("ext4", lambda d: ext(d, "ext4"), "an ext file system", "a disk"),
    ("xfs", fixed(b"XFSB\0\0\x10\0" + bytes(600)), "an XFS file system", "a disk"),
    ("btrfs", at((0x1_0040, b"_BHRfS_M")), "a btrfs file system", "a disk"),
    ("squashfs", fixed(b"hsqs" + bytes(600)), "a squashfs file system", "a disk"),
    ("erofs", at((0x400, b"\xe2\xe1\xf5\xe0")), "an erofs file system", "a disk"),
    ("fat", at(SECTOR_END, (0x36, b"FAT16   ")), "a FAT file system", "a disk"),
    ("fat32", at(SECTOR_END, (0x52, b"FAT32   ")), "a FAT file system", "a disk"),
    ("script", fixed(b"#!/bin/sh\necho hello\n"), r"a script \(#!/bin/sh\)", "the kernel"),
    ("config", fixed(b"CONFIG_ARM64=y\n"), "a text file", "give a kernel"),
    ("long text", fixed("Größe é\n".encode() * 20000), "a text file", "give a kernel"),
    ("zeros", fixed(bytes(1 << 20)), "is all zeros", "check how the file was made"),
    ("EDK2", at((0, bytes(40)), (40, b"_FVH")), "UEFI firmware", "QEMU's virt machine"),
    ("EDK2 code", at((0, b"\0\x04\0\x14"), (0x1028, b"_FVH")), "UEFI firmware", "the kernel"),
    ("U-Boot", fixed(uboot_start(0)), "U-Boot 2025.01-3, which is linked for address 0x0",
     "QEMU's virt machine"),
    ("U-Boot SPL", fixed(bytes(0x620) + uboot_start(0x4A00_0000, stage="SPL ")),
     "U-Boot SPL 2025.01-3, which is linked for address 0x4a000000", "QEMU's virt machine"),
    ("Allwinner", at((0, b"\x16\0\0\xeaeGON.BT0")), "Allwinner's boot ROM", "the kernel"),
    ("Rockchip", at((0, bytes.fromhex("3b8cdcfcbe9f9d51"))), "Rockchip's boot ROM", "the kernel"),
    ("bzImage", at((0x202, b"HdrS")), "a Linux kernel for x86", "a kernel for arm64"),
    ("RISC-V", at((0x38, b"RSC\x05")), "a Linux kernel for RISC-V", "a kernel for arm64"),
    ("PE x86", fixed(pe(0x8664)), "an EFI program for x86-64, not", "a kernel for arm64"),
    ("PE arm64", fixed(pe(0xAA64)), "an EFI program for AArch64 without", r"ARM\x64 at byte 56"),
    ("Mach-O", fixed(b"\xcf\xfa\xed\xfe\x0c\0\0\x01" + bytes(99)), "Mach-O", "link an ELF"),
    ("snapshot", fixed(b"pyvmm snapshot 4 abc\n"), "a snapshot of pyvmm", "`pyvmm restore`"),
)  # fmt: skip
