"""Formats of disk images that are not raw: a guest would see the format, not the disk in it.

Source: QEMU, docs/interop/qcow2.rst; VMware, Virtual Disk Format 5.0; Microsoft, [MS-VHDX] 2.2.1
and Virtual Hard Disk Image Format; VirtualBox, VDICore.h.
"""

from __future__ import annotations

CONVERT = "qemu-img convert -O raw makes a raw image of it"
HEAD = 0x44  # bytes, enough to recognize each

# Name, offset, magic
FORMATS = (
    ("a QCOW image", 0, b"QFI\xfb"),
    ("a VMDK image", 0, b"KDMV"),
    ("a VMDK description", 0, b"# Disk DescriptorFile"),
    ("a VHDX image", 0, b"vhdxfile"),
    ("a VHD image", 0, b"conectix"),
    ("a VDI image", 0x40, b"\x7f\x10\xda\xbe"),
)


def disk_format(head: bytes) -> str | None:
    """Return the name of the format, or None for a raw disk."""
    return next((name for name, at, magic in FORMATS if head.startswith(magic, at)), None)
