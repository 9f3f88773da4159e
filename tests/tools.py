"""The programs that tests compare pyvmm with, or run it in: ``python -m tests.tools`` gets them.

A program that is not installed comes from Debian, unpacked in the cache.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path
from typing import Final

from pyvmm.host.parts import tools
from pyvmm.host.parts.tools import TOOLS_SUITE, Tool, through_loader, tree
from pyvmm.host.progress import Progress

# program -> its package, and where it is in that package
PACKAGES: Final = {
    "busybox": ("busybox", "bin"),
    "bzip2": ("bzip2", "bin"),
    "cpio": ("cpio", "bin"),
    "debugfs": ("e2fsprogs", "sbin"),
    "dtc": ("device-tree-compiler", "usr/bin"),
    "e2fsck": ("e2fsprogs", "sbin"),
    "lz4": ("lz4", "usr/bin"),
    "lzop": ("lzop", "usr/bin"),
    "mandoc": ("mandoc", "usr/bin"),
    "mke2fs": ("e2fsprogs", "sbin"),
    "mkimage": ("u-boot-tools", "usr/bin"),
    "pzstd": ("zstd", "usr/bin"),
    "tmux": ("tmux", "usr/bin"),
    "xz": ("xz-utils", "usr/bin"),
    "zstd": ("zstd", "usr/bin"),
}

# The tree's C library needs its own loader, but /lib64 in the tree is a link to this machine's.
UNDEFINED: Final = ("-Wl,--allow-shlib-undefined",)
HEADERS: Final = Path("/usr/include")
# Debian 12's crash finds no tasks in Debian 12's kernel 6.1.176, and its QEMU does not run this one
CRASH_SUITE: Final = "trixie"


def find(program: str, progress: Progress) -> Tool:
    """Return one of the programs."""
    if program == "gcc":
        return gcc(progress)
    package, directory = PACKAGES[program]
    return tools.packaged(program, package, progress, directory)


def gcc(progress: Progress, headers: Path = HEADERS) -> Tool:
    """Return a compiler for this machine, with the C library's and the kernel's headers.

    The headers of this machine are below ``headers``.
    """
    installed = shutil.which("gcc")
    if installed and all((headers / name).exists() for name in ("stdlib.h", "linux/kvm.h")):
        return Tool((installed,))
    root = tree("gcc", TOOLS_SUITE, ["gcc", "libc6-dev"], progress)
    # gcc starts other programs of the tree, so no loader; they run with this machine's C library.
    libraries = root / "usr/lib" / tools.TRIPLETS[platform.machine()]
    programs = root / "usr/bin"  # gcc would find the assembler by PATH alone
    command = (f"{programs}/gcc", f"-B{programs}/", f"--sysroot={root}", *UNDEFINED)
    return Tool(command, {"LD_LIBRARY_PATH": str(libraries)})


def gdb(progress: Progress) -> Tool:
    """Return gdb for every architecture, with its Python."""
    installed = shutil.which("gdb-multiarch")
    if installed:
        return Tool((installed,))
    root = tree("gdb-multiarch", TOOLS_SUITE, ["gdb-multiarch"], progress)
    data = f"--data-directory={root}/usr/share/gdb"
    command = through_loader(root, "usr/bin/gdb-multiarch", data)
    return Tool(command, {"PYTHONHOME": str(root / "usr")})


def lldb(progress: Progress) -> Tool:
    """Return lldb, with its Python."""
    installed = shutil.which("lldb")
    if installed:
        return Tool((installed,))
    root = tree("lldb", TOOLS_SUITE, ["lldb"], progress)
    (binary,) = root.glob("usr/lib/llvm-*/bin/lldb")
    command = through_loader(root, str(binary.relative_to(root)))
    (modules,) = root.glob("usr/lib/llvm-*/lib/python3/dist-packages")
    return Tool(command, {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(modules)})


def crash(progress: Progress) -> Tool:
    """Return crash for arm64; elsewhere QEMU's user mode runs it."""
    if platform.machine() == "aarch64" and (installed := shutil.which("crash")):
        return Tool((installed,))
    root = tree("crash-arm64", CRASH_SUITE, ["crash:arm64"], progress)
    command = through_loader(root, "usr/bin/crash", machine="aarch64")
    if platform.machine() == "aarch64":
        return Tool(command)
    emulator = tree("qemu-user", CRASH_SUITE, ["qemu-user"], progress)
    return Tool((str(emulator / "usr/bin/qemu-aarch64"), *command))


if __name__ == "__main__":
    sys.exit(tools.main(sys.argv[1:], find))
