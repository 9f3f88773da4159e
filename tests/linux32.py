"""Debian's 32-bit Arm kernel (armmp) with a small initramfs, for guests in AArch32."""

from __future__ import annotations

import io
from pathlib import Path

from pyvmm.base.dirs import cached
from pyvmm.host.parts import kernel, tools
from pyvmm.host.parts.cpio import CpioWriter
from pyvmm.host.parts.debian import Suite
from pyvmm.host.progress import Progress
from tests.linux import INIT

SUITE = "bookworm"
PACKAGES = ("linux-image-armmp", "busybox-static")
MODULES = ("virtio_mmio", "virtio_console")


def tree() -> Path:
    """Return a tree of the kernel, its modules, and a static busybox, for armhf."""

    def build(into: Path) -> None:
        source = Suite(SUITE, "armhf")
        found = source.closure(PACKAGES)
        wanted = [p for p in found if p.name in PACKAGES or p.name.startswith("linux-image-")]
        source.unpack(wanted, into, Progress())

    return cached(tools.trees_dir() / f"armmp-{SUITE}", build)


def image() -> Path:
    """Return the kernel's zImage, which has an EFI stub."""
    (found,) = tree().glob("boot/vmlinuz-*")
    return found


def initramfs() -> bytes:
    """Return an initramfs whose shell reads the console."""
    (modules,) = tree().glob("lib/modules/*")
    found = kernel.Kernel(image(), modules.name, modules).modules(MODULES)
    archive = io.BytesIO()
    writer = CpioWriter(archive)
    for directory in ("dev", "proc", "sys"):
        writer.directory(directory)
    writer.device("dev/console", 5, 1)
    (busybox,) = (path for path in tree().glob("*bin/busybox") if path.is_file())
    writer.file("bin/busybox", busybox.read_bytes(), 0o755)
    writer.file("init", INIT, 0o755)
    for number, (name, content) in enumerate(found.items()):
        writer.file(f"modules/{number:02}-{name}.ko", content, 0o644)
    writer.close()
    return archive.getvalue()
