"""pyvmm's own kernel modules, built with the headers of the kernel that loads them.

A machine other than arm64 cross-compiles them: with Debian's headers for arm64, its kbuild
programs for this machine, and the cross compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from pyvmm.base.dirs import cache_dir
from pyvmm.errors import HostError
from pyvmm.host.logs import failure
from pyvmm.host.parts import kernel
from pyvmm.host.parts.debian import Suite
from pyvmm.host.parts.tools import Tool, cross, through_loader, write_wrapper
from pyvmm.host.parts.trees import Tree, trees_dir
from pyvmm.host.progress import Progress
from pyvmm.host.settings import LINUX, is_path

WANTED: Final = re.compile(r"(linux-(headers|kbuild)-.*|libc6|libelf1(t64)?|zlib1g|libzstd1)$")
# kbuild's make variables -> tools
TOOLS: Final = {
    "CC": "gcc", "LD": "ld", "AR": "ar", "NM": "nm", "OBJCOPY": "objcopy", "OBJDUMP": "objdump",
    "READELF": "readelf", "STRIP": "strip",
}  # fmt: skip
# kbuild's programs for this machine; they run with their own suite's C library
KBUILD: Final = {"scripts/mod/modpost": "modpost.real-lsb-64", "scripts/basic/fixdep": "fixdep"}
# Features of Debian's compiler and build machine that this machine lacks
SETTINGS: Final = (
    "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=",  # GCC 14
    "CONFIG_DEBUG_INFO_BTF_MODULES=",  # pahole
    "CONFIG_GCC_PLUGINS=",
)
LEGACY_SOURCES: Final = "/usr/src/"


def build(choice: str, source: Path, progress: Progress) -> Path:
    """Build a module (a .ko) for the emulated host's kernel `host.kernel`, from one C file.

    Raises:
        HostError: there are no headers for that kernel, or the compiler fails.
    """
    if is_path(choice):
        raise HostError(
            f"`host.kernel`={choice}: a kernel module needs the headers, which pyvmm gets "
            "for Debian's kernels only",
            hint=f"use a kernel of Debian's suites: {', '.join(LINUX.suites)}",
        )
    tree = kernel.tree(choice, progress)
    release = kernel.find(choice, progress).release
    headers = _headers(tree, release, progress)
    return _built(headers, source, release, progress)


def build_for_this_machine(source: Path, progress: Progress) -> Path:
    """Build a module for this machine's running kernel.

    Raises:
        HostError: its headers are not installed, or the compiler fails.
    """
    release = platform.release()
    headers = Path("/lib/modules") / release / "build"
    if not (headers / "Makefile").exists():
        raise HostError(
            f"{headers} has no kernel headers, which the module needs",
            hint=f"apt-get install linux-headers-{release}",
        )
    return _built(headers, source, release, progress)


def _built(headers: Path, source: Path, release: str, progress: Progress) -> Path:
    code = source.read_bytes()
    recipe = "\0".join([str(headers), Path(__file__).read_text()]).encode()
    key = hashlib.sha256(code + recipe).hexdigest()[:12]
    path = cache_dir("modules") / f"{source.stem}-{release}-{key}"
    what = f"building {source.stem}.ko for Linux {release}"
    made = progress.cached(what, path, lambda into: _make(headers, source, into, progress))
    return made / f"{source.stem}.ko"


def _make(headers: Path, source: Path, into: Path, progress: Progress) -> None:
    """Run kbuild in a directory, and remove all files there but the module."""
    make = shutil.which("make")
    if make is None:
        raise HostError("make is missing: it builds kernel modules", hint="apt-get install make")
    work = into / "work"
    work.mkdir()
    shutil.copyfile(source, work / source.name)
    (work / "Makefile").write_text(f"obj-m := {source.stem}.o\n")
    command = [make, "-s", "-C", str(headers), f"M={work}", "ARCH=arm64", *SETTINGS]
    if platform.machine() != "aarch64":
        command += _cross_tools(into / "bin", progress)
    done = subprocess.run(
        [*command, "modules"],
        env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    module = work / f"{source.stem}.ko"
    if done.returncode or not module.exists():
        raise failure(f"make {source.name}", done.stderr)
    module.rename(into / module.name)
    shutil.rmtree(work)
    shutil.rmtree(into / "bin", ignore_errors=True)


def _cross_tools(directory: Path, progress: Progress) -> list[str]:
    """Return the arguments of make that choose the cross compiler.

    They name each tool: some headers set a CROSS_COMPILE of their own.
    """
    for name in TOOLS.values():
        write_wrapper(cross(name, progress), directory / f"aarch64-linux-gnu-{name}")
    prefix = directory / "aarch64-linux-gnu-"
    return [f"CROSS_COMPILE={prefix}", *(f"{make}={prefix}{tool}" for make, tool in TOOLS.items())]


def _headers(tree: Tree, release: str, progress: Progress) -> Path:
    """Return the directory to run kbuild in, with the headers of exactly that release."""
    suite, package = tree.suite, f"linux-headers-{release}"
    path = trees_dir().resolve() / f"linux-headers-{release}"  # make follows links

    def build(into: Path) -> None:
        source = Suite(suite)
        if package not in source.names(package):
            raise HostError(
                f"Debian {suite} no longer has the headers of Linux {release}",
                hint=f"use `host.kernel`={suite}",
            )
        wanted = [p for p in source.closure([f"{package}:arm64"]) if WANTED.match(p.name)]
        source.unpack(wanted, into, progress)
        _arrange(into, path)

    progress.cached(f"getting the headers of Linux {release} from Debian {suite}", path, build)
    return path / "usr/src" / f"linux-headers-{release}"


def _arrange(tree: Path, home: Path) -> None:
    """Make an unpacked tree work at its final path ``home``."""
    for makefile in tree.glob("usr/src/linux-headers-*/Makefile"):
        text = makefile.read_text()
        if len(text) < 4096:  # Debian's own: it includes the kernel's by an absolute path
            makefile.write_text(text.replace(LEGACY_SOURCES, f"{home}{LEGACY_SOURCES}"))
    if platform.machine() == "aarch64":
        return
    for kbuild in tree.glob("usr/lib/linux-kbuild-*"):
        for name, real in KBUILD.items():
            program = kbuild / name
            moved = program.with_name(f"{program.name}.elf")
            (program.with_name(real)).rename(moved)
            program.unlink(missing_ok=True)
            command = through_loader(tree, str(moved.relative_to(tree)))
            write_wrapper(Tool(tuple(w.replace(str(tree), str(home)) for w in command)), program)
